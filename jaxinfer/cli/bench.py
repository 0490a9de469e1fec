"""``jaxinfer bench OUT --against torch,onnxruntime``: a model directory against its peers.

All sides run in one go, in turn, in processes of their own, on the same inputs, with the same
number of threads; their outputs are compared. What is not installed, crashes or hangs is a row that
says so.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from jaxinfer.core.errors import ArtefactError, InputError, JaxinferError, listing


class BenchError(JaxinferError, RuntimeError):
    """A side of jaxinfer's own did not run, or gave other numbers."""


@click.command("bench")
@click.argument("model_dir", metavar="OUT")
@click.option(
    "--against",
    default="torch,torch-compile,torch-compile-max-autotune,onnxruntime,openvino",
    show_default=True,
    metavar="PEER,...",
    help='Peers; "" for none. Also: onnxruntime-int8, openvino-int8, and torch... with -bf16 or '
    "-fp16.",
)
@click.option("--source", metavar="SRC", help="The original model, as for convert.")
@click.option("--weights", metavar="FILE", help="Weights of SRC, as for convert.")
@click.option("--class", "class_name", metavar="NAME", help="Class to build from a checkpoint.")
@click.option("--dtype", metavar="DTYPE", help="Float dtype to build SRC in.")
@click.option("--batch", default="1,8,32", show_default=True, metavar="N,...", help="Batch sizes.")
@click.option(
    "--size", "sizes", multiple=True, metavar="NAME=N", help="A named size (sequence=128)."
)
@click.option(
    "--data",
    metavar="FILE.npz",
    help="Inputs by name, samples along axis 0: the first are run, int8 peers are calibrated on "
    "the others. Default: random inputs.",
)
@click.option("--repeats", type=click.IntRange(1), default=25, show_default=True)
@click.option(
    "--block", type=click.IntRange(1), default=5, show_default=True, help="Calls in a turn."
)
@click.option("--threads", type=click.IntRange(1), help="Of every side. Default: all processors.")
@click.option(
    "--tuned", multiple=True, metavar="FAST", help="What `jaxinfer optimize` wrote; also several."
)
@click.option("--profile", metavar="DIR", help="Write traces of jaxinfer's sides there.")
@click.option(
    "--timeout",
    type=click.FloatRange(0, min_open=True),
    default=900.0,
    show_default=True,
    metavar="SECONDS",
    help="For each step of a side.",
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("-o", "--out", metavar="FILE.json", help="Write the result, every time in it.")
@click.option("--overwrite", is_flag=True, help="Replace FILE.json if it exists.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def command(model_dir: str, out: str | None, overwrite: bool, as_json: bool, **given: Any) -> None:
    """Time the model directory OUT against its peers, interleaved, and compare the outputs.

    Exit code 1 if jaxinfer itself does not run or gives other numbers than the reference; a peer
    that fails is a row of the table.
    """
    from jaxinfer.cli import _console
    from jaxinfer.tune.bench import bench_model
    from jaxinfer.tune.bench.result import HEADER

    target = _target(out, overwrite)
    names = ("weights", "class_name", "dtype")
    options = {name: given[name] for name in names if given[name] is not None}
    if options and not given["source"]:
        raise click.UsageError("--weights, --class and --dtype are of a source: give --source")
    result = bench_model(
        model_dir,
        _names(given["against"]),
        source=given["source"],
        source_options=options,
        batches=_numbers("--batch", given["batch"]),
        sizes=_sizes(given["sizes"]),
        data=given["data"],
        repeats=given["repeats"],
        block=given["block"],
        threads=given["threads"],
        seed=given["seed"],
        timeout_s=given["timeout"],
        tuned=given["tuned"] or None,
        profile=given["profile"],
        progress=_Progress(),
    )
    if target is not None:
        _write(target, json.dumps(result.to_json(), indent=1, allow_nan=False) + "\n")
    if as_json:
        _console.echo_json(result.to_json())
    else:
        console = _console.out()
        console.print(_console.table(result.cells(), HEADER))
        for line in (*result.remarks(), *_machine(result), *result.profiles):
            console.print(line, markup=False)
        if out:
            console.print(f"wrote {out}", markup=False)
    _judge(result)


def _machine(result: Any) -> list[str]:
    found = result.environment
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    loads = [found["load_average"][:1], found["load_average_after"][:1]]
    busy = ", ".join(f"{each[0]:g}" for each in loads if each)
    return [
        f"{found['cpu']}, {result.threads} threads; {versions}",
        *([f"load average before and after: {busy}"] if busy else []),
    ]


def _judge(result: Any) -> None:
    """Raise if a side of jaxinfer's own failed, or gave other numbers."""
    own = [row for row in result.rows if row.side.startswith("jaxinfer")]
    at = lambda row: row.side + ("" if row.batch is None else f" at batch {row.batch}")
    failed = [f"{at(row)}: {row.reason}" for row in own if not row.measured]
    wrong = [
        f"{at(row)}: error {row.error:.1e} against {result.reference}" for row in own if row.wrong
    ]
    if failed:
        raise BenchError(listing("jaxinfer did not run:", [*failed, *wrong]))
    if wrong:
        advice = "Is SRC the model that OUT was converted from, with the same weights?"
        raise BenchError(listing("jaxinfer gives other numbers:", wrong, advice))


class _Progress:
    """A line on stderr for every step of a side, and one for all its turns."""

    def __init__(self) -> None:
        self._seen: set[str] = set()

    def __call__(self, side: str, step: str, batch: int | None) -> None:
        at = "" if batch is None else f"batch {batch}: "
        line = f"{at}taking turns" if step.startswith("time") else f"{at}{side}: {step}"
        if line not in self._seen:
            self._seen.add(line)
            click.echo(f"{line} ...", err=True)


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _numbers(option: str, text: str) -> list[int]:
    parts = _names(text)
    if not parts or not all(part.isdecimal() and int(part) for part in parts):
        raise click.UsageError(f"{option}: required numbers from 1 on, got {text!r}")
    return [int(part) for part in parts]


def _sizes(given: Sequence[str]) -> dict[str, int]:
    found: dict[str, int] = {}
    for item in given:
        name, equals, size = item.partition("=")
        if not name or not equals or not size.strip().isdecimal() or not int(size):
            raise click.UsageError(f"--size: required NAME=N, got {item!r}")
        if name in found:
            raise click.UsageError(f"--size: {name} is there twice")
        found[name.strip()] = int(size)
    return found


def _target(out: str | None, overwrite: bool) -> Path | None:
    if out is None:
        return None
    target = Path(out)
    if not target.parent.is_dir():
        raise InputError(f"{target}: the directory {target.parent} does not exist")
    if target.is_dir():
        raise InputError(f"{target} is a directory; give a file to write")
    if os.path.lexists(target) and not overwrite:
        raise ArtefactError(f"{target} exists already; choose another path or pass --overwrite")
    return target


def _write(target: Path, text: str) -> None:
    aside = target.with_name(f".{target.name[:100]}.{os.getpid()}.tmp")
    try:
        aside.write_text(text)
        os.replace(aside, target)
    except OSError as error:
        aside.unlink(missing_ok=True)
        raise ArtefactError(f"{target}: not written: {error.strerror or error}") from error
