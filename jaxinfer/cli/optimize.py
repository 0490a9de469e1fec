"""``jaxinfer optimize OUT --data calib.npz -o FAST``: the fastest arrangement that is near enough.

FAST is a model directory with ``recipe.json``, ``report.html`` and ``report.json`` inside. The
journal of the search is kept beside it, ``FAST.search.jsonl``: ``--continue`` goes on from it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import click


@click.command("optimize")
@click.argument("model_dir", metavar="OUT")
@click.option(
    "--data",
    required=True,
    metavar="CALIB.npz",
    help="Inputs by name, samples along axis 0, and what the metric needs besides (labels). Half "
    "of the samples calibrate, the others judge.",
)
@click.option("-o", "--out", metavar="FAST", help="The model directory to make.")
@click.option(
    "--objective",
    type=click.Choice(["latency", "p99", "throughput", "memory"]),
    default="latency",
    show_default=True,
    help="What is made small, or large.",
)
@click.option(
    "--metric",
    default="cosine",
    show_default=True,
    metavar="NAME",
    help="cosine, max, top1 or kl against the float32 outputs; or package.module:function, which "
    "gets (outputs, batch), higher is better. The module's code runs.",
)
@click.option(
    "--max-drop",
    default="0.01",
    show_default=True,
    metavar="DROP",
    help="How much lower the metric may be: 0.005 or 0.5%.",
)
@click.option("--relative", is_flag=True, help="The drop is a share of the reference's metric.")
@click.option(
    "--constraint",
    "constraints",
    multiple=True,
    metavar="NAME=LIMIT",
    help="p50_ms, p99_ms, peak_bytes, weight_bytes, compile_s, first_call_ms at most; throughput "
    "at least. p99_ms=20, peak_bytes=2GiB.",
)
@click.option("--seconds", type=float, default=300.0, show_default=True, help="For the search.")
@click.option("--compiles", type=click.IntRange(1), metavar="N", help="Programs at most.")
@click.option("--batch", metavar="SIZE,...", help="Samples in a call, to choose from.")
@click.option(
    "--batch-size",
    type=click.IntRange(1),
    metavar="N",
    help="Samples of --data in a call.  [default: 8, or what the model takes]",
)
@click.option(
    "--buckets",
    multiple=True,
    metavar="DIM=SIZE,...",
    help="Sizes to compile a dimension for; several times: lists to choose from.",
)
@click.option(
    "--allow",
    metavar="NAME,...",
    help="Beyond what is usual here: prune, prune=0.7, prune=2:4, f16, W4A16, FP8 ...",
)
@click.option("--backend", metavar="NAME,...", help="xla, openvino.  [default: those there are]")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the split.")
@click.option("--report", metavar="FILE", help="A further report: .html, .json or .md.")
@click.option("--dry-run", is_flag=True, help="List the candidates; measure nothing.")
@click.option("--continue", "resume", is_flag=True, help="Go on from FAST.search.jsonl.")
@click.option(
    "--overwrite", is_flag=True, help="Replace FAST; without --continue its journal as well."
)
@click.option("--json", "as_json", is_flag=True, help="Print the results as JSON.")
def command(model_dir: str, **given: Any) -> None:
    """Find the fastest arrangement of the model directory OUT, and write it to FAST.

    Every candidate is compared with the float32 model before it is timed. What was tried, with
    times, accuracy and reasons, is in the report.
    """
    job = _job(model_dir, **given)
    if job.dry_run:
        _dry_run(job)
    else:
        _optimize(job)


@dataclasses.dataclass
class _Job:
    """One run; ``settings`` are the keyword arguments that ``optimize`` and ``dry_run`` share."""

    model_dir: str
    data: str
    batch_size: int
    settings: dict[str, Any]
    metric: Any
    drop: str
    out: Path | None
    report: str | None
    dry_run: bool
    resume: bool
    overwrite: bool
    as_json: bool

    @property
    def target(self) -> Path:
        assert self.out is not None
        return self.out

    @property
    def journal(self) -> Path:
        return self.target.with_name(f"{self.target.name}.search.jsonl")


def _job(model_dir: str, **given: Any) -> _Job:
    """Check everything that needs neither the model nor a device."""
    from jaxinfer.cli import _optimize_options as options
    from jaxinfer.tune.budget import Budget

    if given["out"] is None and not given["dry_run"]:
        raise click.UsageError("-o FAST is required (without --dry-run)")
    backends = [each.strip() for each in (given["backend"] or "").split(",") if each.strip()]
    levels, prunes = options.allowed(given["allow"])
    asked = {
        "precision": levels,
        "prune": tuple(prunes),
        "batch": options.sizes(given["batch"], "--batch"),
        "buckets": options.buckets(given["buckets"]),
        "backend": tuple(backends) or None,
    }
    settings = {
        "objective": given["objective"],
        "max_drop": options.percent(given["max_drop"]),
        "constraints": options.constraints(given["constraints"]) or None,
        "budget": Budget(given["seconds"], given["compiles"]),
        "seed": given["seed"],
        "space": asked,
    }
    job = _Job(
        model_dir,
        given["data"],
        given["batch_size"] or 0,
        settings,
        options.metric(given["metric"]),
        "relative" if given["relative"] else "absolute",
        None if given["out"] is None else Path(given["out"]).absolute(),
        *(given[name] for name in ("report", "dry_run", "resume", "overwrite", "as_json")),
    )
    if not job.dry_run:
        _check_targets(job)
    return job


def _check_targets(job: _Job) -> None:
    """Raise before the search what would fail after it."""
    from jaxinfer.core.errors import InputError
    from jaxinfer.io.artefact import check_target
    from jaxinfer.tune.journal import holds_steps
    from jaxinfer.tune.report import check_target as check_report

    check_target(job.target, overwrite=job.overwrite)
    if job.report is not None:
        check_report(job.report)
    if job.resume and not job.journal.exists():
        click.echo(f"{job.journal} is not there: the search begins anew", err=True)
    if holds_steps(job.journal) and not job.resume:
        if not job.overwrite:
            raise InputError(
                f"{job.journal} is of an earlier search: --continue goes on from it, --overwrite "
                "begins anew"
            )
        job.journal.unlink()


def _space(asked: Mapping[str, Any]) -> Any:
    """Return the space: the usual lists of this platform, and what is allowed beyond them."""
    from jaxinfer.tune.space import Space, choices

    levels = asked["precision"]
    space = Space(**{**asked, "precision": None})
    if levels:
        usual = choices(dataclasses.replace(space, options=()), [])["precision"]
        space = dataclasses.replace(space, precision=tuple(dict.fromkeys([*usual, *levels])))
    return space


def _load(job: _Job, stages: Any) -> tuple[Any, Any, dict[str, Any]]:
    """Return model, data, and the settings with the space made."""
    from jaxinfer.io.artefact import load
    from jaxinfer.tune.data import read_npz

    with stages.stage("load", f"loading {job.model_dir}"):
        model = load(job.model_dir)
    with stages.stage("data", f"reading {job.data}"):
        data = read_npz(model, job.data, batch=job.batch_size)
    return model, data, {**job.settings, "space": _space(job.settings["space"])}


def _dry_run(job: _Job) -> None:
    from jaxinfer.cli import _console
    from jaxinfer.tune.optimize import dry_run

    model, data, settings = _load(job, _console.Stages(quiet=job.as_json))
    found = dry_run(model, data, **settings)
    if job.as_json:
        _console.echo_json(found.to_json())
    else:
        _console.out().print(found.text(), markup=False)


def _optimize(job: _Job) -> None:
    from jaxinfer.cli import _console
    from jaxinfer.core.errors import JaxinferError
    from jaxinfer.tune.journal import holds_steps
    from jaxinfer.tune.optimize import optimize
    from jaxinfer.tune.plan import UnmetError

    stages = _console.Stages()
    model, data, settings = _load(job, stages)
    started = time.perf_counter()
    try:
        with _progress() as progress:
            plan = optimize(
                model,
                data,
                metric=job.metric,
                drop=job.drop,
                cache=job.journal,
                resume=job.resume,
                progress=progress,
                **settings,
            )
    except KeyboardInterrupt:
        click.echo(f"the journal is kept: --continue goes on from {job.journal}", err=True)
        raise
    except UnmetError as error:
        written = _report(job, error.results, None)
        _show(job, error.results, {"out": None, "recipe": None, "reports": written})
        # the table has said how near it came
        shown = str(error) if job.as_json else str(error).splitlines()[0].rstrip(":")
        click.echo(f"error: {shown}", err=True)
        click.echo(f"the journal is kept: --continue goes on from {job.journal}", err=True)
        raise click.exceptions.Exit(1) from error
    except JaxinferError:
        if holds_steps(job.journal):
            click.echo(f"the journal is kept: --continue goes on from {job.journal}", err=True)
        raise
    stages.seconds["search"] = round(time.perf_counter() - started, 3)
    with stages.stage("write", f"writing {job.target}"):
        plan.model.save(job.target, overwrite=job.overwrite)
        written = _report(job, plan.results, plan.recipe.to_json())
    more = {"out": str(job.target), "recipe": plan.recipe.to_json(), "reports": written}
    _show(job, plan.results, more)


def _report(job: _Job, results: Any, recipe: Mapping[str, Any] | None) -> list[str]:
    """Write the reports; returns where they are, or why one is not."""
    from jaxinfer.core.errors import MissingExtraError
    from jaxinfer.tune.report import write_report

    paths = [] if recipe is None else [job.target / "report.json", job.target / "report.html"]
    paths += [] if job.report is None else [Path(job.report)]
    written = []
    for path in paths:
        try:
            written.append(str(write_report(results, path, recipe)))
        except MissingExtraError as error:  # of FAST/report.html; --report was checked before
            click.echo(f"no {path}: {error}", err=True)
    return written


def _show(job: _Job, results: Any, more: Mapping[str, Any]) -> None:
    from jaxinfer.cli import _console
    from jaxinfer.tune.report import table

    if job.as_json:
        _console.echo_json({**results.to_json(), **more, "journal": str(job.journal)})
        return
    console = _console.out()
    console.print(table(results))
    for path in [more["out"], *more["reports"]]:
        if path:
            console.print(f"wrote {path}", markup=False)
    console.print(f"journal {job.journal} (--continue goes on from it)", markup=False)


def progress_text(stage: str, text: str, best_ms: float | None, left_s: float) -> str:
    """Return one line: stage, candidate, best so far, seconds left.

    >>> progress_text("precision", "bf16, fold", 31.24, 203.4)
    'precision: bf16, fold; best 31.2 ms; 203 s left'
    """
    best = "" if best_ms is None else f"; best {best_ms:.3g} ms"
    return f"{stage}: {text}{best}; {left_s:.0f} s left"


@contextlib.contextmanager
def _progress() -> Iterator[Callable[..., None]]:
    """Yield what a search reports to: one line that changes, or plain lines off a terminal."""
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    from jaxinfer.cli._console import plain

    console = Console(stderr=True, highlight=False)
    first = "measuring the reference and the device"
    if not console.is_terminal:
        console.print(f"{first} ...", markup=False)
        yield lambda *parts: console.print(plain(progress_text(*parts)), soft_wrap=True)
        return
    columns = (SpinnerColumn(), TimeElapsedColumn(), TextColumn("{task.description}", markup=False))
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(first, total=None)
        yield lambda *parts: bar.update(task, description=str(plain(progress_text(*parts))))
