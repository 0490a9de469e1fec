"""``jaxinfer shard OUT --mesh data=2,model=4``: how a model would lie on a mesh, and why.

Nothing is written, and no weights are moved: candidates are compiled on shapes.
"""

from __future__ import annotations

import pathlib
from typing import Any

import click


def _sizes(ctx: click.Context, param: click.Parameter, value: str | None) -> dict[str, int]:
    del ctx
    sizes: dict[str, int] = {}
    for part in filter(None, (value or "").split(",")):
        name, _, number = (piece.strip() for piece in part.partition("="))
        if not name.isidentifier() or not number.isdigit():
            raise click.BadParameter(
                f"{part!r} is not NAME=NUMBER, for example batch=8,seq=128", param=param
            )
        sizes[name] = int(number)
    return sizes


@click.command("shard")
@click.argument("model_dir", metavar="OUT")
@click.option(
    "--mesh",
    required=True,
    metavar="AXES",
    help="Sizes by axis name, in order, for example data=2,model=4. The names say what an axis "
    "is for: data, model, fsdp, expert, seq.",
)
@click.option(
    "--sharding",
    default="auto",
    show_default=True,
    metavar="NAME",
    help="auto (tries the strategies that make sense and scores them), logical (tables of known "
    "families), or strategies joined by +: data, tensor, fsdp, expert, sequence.",
)
@click.option(
    "--rules",
    "rules_file",
    type=click.Path(exists=True, dir_okay=False, path_type=pathlib.Path),
    metavar="FILE.toml",
    help="Rules instead: a table [rules] of regular expressions on parameter paths, each with "
    'one entry for each axis, for example \'query\\.weight$\' = ["", "model"]; and, if wanted, '
    "a table [logical] of logical axes.",
)
@click.option(
    "--sizes",
    callback=_sizes,
    metavar="NAME=N,...",
    help="Symbolic sizes at which candidates are compared, for example batch=8,seq=128. "
    "Default: as many rows as devices, 128 of anything else.",
)
@click.option(
    "--devices",
    type=click.IntRange(1),
    metavar="N",
    help="Plan for N CPU devices of this process, whatever the machine has. Without it that is "
    "done where the machine has fewer devices than the mesh, and said.",
)
@click.option("--explain", is_flag=True, help="Print every leaf with spec, bytes and reason.")
@click.option(
    "--no-compile",
    is_flag=True,
    help="Compare by bytes alone; communication is not known then.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the plan as JSON, and nothing else.")
def command(
    model_dir: str,
    mesh: str,
    sharding: str,
    rules_file: pathlib.Path | None,
    sizes: dict[str, int],
    devices: int | None,
    explain: bool,
    no_compile: bool,
    as_json: bool,
) -> None:
    """Plan how the model OUT lies on a mesh: specs, bytes per device, communication."""
    from jaxinfer.cli import _console

    if rules_file is not None and sharding != "auto":
        raise click.UsageError("--rules and --sharding exclude each other")
    rules, logical = read_rules(rules_file) if rules_file else (sharding, {})
    made, stand_in = _mesh(mesh, devices)
    from jaxinfer.io.artefact import load
    from jaxinfer.sharding.partition import partition

    model = load(model_dir)
    plan = partition(
        model, made, rules, sizes=sizes or None, compile=not no_compile, logical=logical
    )
    if as_json:
        _console.echo_json({"model": model_dir, "stand_in": stand_in, **plan.to_json()})
        return
    console = _console.out()
    if stand_in:
        console.print(_console.plain(stand_in))
    console.print(_console.plain(plan.table().splitlines()[0]))
    for note in plan.notes:
        console.print(_console.plain(f"note: {note}"))
    if explain:
        console.print()
        console.print(_console.table(_rows(plan), ("leaf", "shape", "spec", "bytes/device", "why")))
    if plan.candidates:
        console.print()
        header = ("candidate", "memory", "weights", "sent", "collectives", "cost", "")
        console.print(_console.table(_candidates(plan), header))


def read_rules(path: pathlib.Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read rules and logical axes from a TOML file.

    Raises:
      InputError: it is no TOML, or has other tables.
    """
    import tomllib

    from jaxinfer.core.errors import InputError

    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: no TOML: {error}") from error
    other = sorted(set(data) - {"rules", "logical"})
    if other or not isinstance(data.get("rules"), dict):
        raise InputError(
            f"{path}: required a table [rules], and [logical] if wanted; got {', '.join(data)}"
        )
    return data["rules"], data.get("logical", {})


def _mesh(spec: str, devices: int | None) -> tuple[Any, str]:
    """Return the mesh, and a line that says so if CPU devices stand for those it would have."""
    import contextlib
    import math

    import jax

    from jaxinfer.sharding.mesh import make_mesh, sizes_of

    need = math.prod(sizes_of(spec).values())
    with contextlib.suppress(RuntimeError):  # in use already: there are as many as there are
        jax.config.update("jax_num_cpu_devices", devices or need)
    if devices is None and len(jax.devices()) >= need and jax.default_backend() != "cpu":
        return make_mesh(spec), ""
    have = jax.devices("cpu")
    made = make_mesh(spec, have[:devices] if devices else have)
    return made, f"planned on {made.size} CPU devices of this process, which share its memory"


def _rows(plan: Any) -> list[tuple[str, ...]]:
    from jaxinfer.sharding.plan import text

    return [
        (row.path, str(list(row.shape)), text(row.spec), f"{row.bytes_per_device:,}", row.why)
        for row in plan.rows
    ]


def _candidates(plan: Any) -> list[tuple[str, ...]]:
    from jaxinfer.cli._console import in_bytes

    rows = []
    for index, score in enumerate(plan.candidates):
        kinds = ", ".join(f"{each.count} {each.kind}" for each in score.collectives)
        known = score.compiled
        remark = score.problem or ("" if score.fits else "does not fit")
        rows.append(
            (
                score.strategy,
                in_bytes(score.memory),
                in_bytes(score.param_bytes),
                in_bytes(score.wire_bytes) if known else "-",
                kinds or ("none" if known else "-"),
                in_bytes(score.cost) if known else "-",
                remark or ("chosen" if index == 0 else ""),
            )
        )
    return rows
