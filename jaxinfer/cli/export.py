"""``jaxinfer export OUT --to stablehlo -o m.stablehlo``: for platforms that need not be here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click


@click.command("export")
@click.argument("model_dir", metavar="OUT")
@click.option(
    "--to",
    type=click.Choice(["stablehlo"]),
    default="stablehlo",
    show_default=True,
    help="Format to write.",
)
@click.option(
    "-o", "--out", required=True, metavar="M.stablehlo", help="The file to make; weights beside."
)
@click.option(
    "--platforms",
    default="cpu,cuda,tpu",
    show_default=True,
    metavar="NAME,...",
    help="Of cpu, cuda, rocm and tpu; none has to be here.",
)
@click.option("--dynamic", default="", metavar="DIM,...", help="Sizes to keep open.")
@click.option(
    "--size", "sizes", multiple=True, metavar="DIM=N", help="A number for a named size (seq=128)."
)
@click.option(
    "--input",
    "inputs",
    multiple=True,
    metavar="NAME=SIZE,...",
    help="Shape of an input: numbers, and names of dimensions (x=batch,128).",
)
@click.option(
    "--weights",
    type=click.Choice(["beside", "inside"]),
    default="beside",
    show_default=True,
    help="In a .safetensors file beside, or baked into the function.",
)
@click.option("--overwrite", is_flag=True, help="Replace files that exist.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def command(
    model_dir: str,
    to: str,
    out: str,
    platforms: str,
    dynamic: str,
    sizes: Sequence[str],
    inputs: Sequence[str],
    weights: str,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Export the model directory OUT as StableHLO.

    ``ji.load_export("m.stablehlo")`` reads it, and so does ``jax.export.deserialize``. A model
    of several functions gives a file for each.
    """
    from jaxinfer.cli import _console, _sizes
    from jaxinfer.compile.export import export
    from jaxinfer.io.artefact import load

    del to  # the one format there is
    shapes, numbers = _sizes.shapes(inputs), _numbers(sizes)
    stages = _console.Stages()
    with stages.stage("load", f"loading {model_dir}"):
        model = load(model_dir)
    with stages.stage("export", f"exporting for {platforms}"):
        report = export(
            model,
            out,
            platforms=_list(platforms),
            dynamic=_list(dynamic),
            inputs=shapes or None,
            sizes=numbers or None,
            weights=weights,
            overwrite=overwrite,
        )
    summary = {"model": model_dir, **report.to_json(), "stages": stages.seconds}
    if as_json:
        _console.echo_json(summary)
    else:
        _show(summary)


def _list(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _numbers(given: Sequence[str]) -> dict[str, int]:
    """Return ``{"seq": 128}`` of ``["seq=128"]``.

    Raises:
      click.UsageError: no name or no number, or a name twice.
    """
    found: dict[str, int] = {}
    for item in given:
        name, _, number = item.partition("=")
        if not name or not number.isdecimal():
            raise click.UsageError(f"--size: required DIM=N, got {item!r}")
        if name in found:
            raise click.UsageError(f"--size: {name} is given twice")
        found[name] = int(number)
    return found


def _show(summary: dict[str, Any]) -> None:
    from jaxinfer.cli import _console

    console = _console.out()
    rows = [("model", summary["model"]), ("platforms", ", ".join(summary["platforms"]))]
    for name, specs in summary["inputs"].items():
        rows += [("input" if name == "model" else f"{name} takes", text) for text in specs]
    if summary["dynamic"]:
        rows.append(("open sizes", ", ".join(summary["dynamic"])))
    rows.append(("weights", summary["weights"]))
    rows.append(("by", f"JAX {summary['jax']}, calling convention {summary['calling_convention']}"))
    console.print(_console.table(rows))
    for path, size in summary["files"].items():
        console.print(f"wrote {path} ({_console.in_bytes(size)})", markup=False)
