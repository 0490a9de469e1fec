"""``jaxinfer convert SRC -o OUT``: convert, prove parity, write; nothing is written on failure."""

from __future__ import annotations

from typing import Any

import click

from jaxinfer.cli._source import ERROR_HEADER, error_rows, opened, seeds_of, source_options


@click.command("convert")
@click.argument("source", metavar="SRC")
@click.option("-o", "--out", required=True, metavar="OUT", help="The model directory to make.")
@source_options
@click.option(
    "--layout",
    type=click.Choice(["NCHW", "NHWC", "keep"]),
    default="NCHW",
    show_default=True,
    help="Layout of images at the interface. Inside, convolutions run channels-last; 'keep' "
    "leaves every layout as it was.",
)
@click.option(
    "--scan-layers",
    is_flag=True,
    help="Run repeated layers as one scan over stacked weights: compiles faster.",
)
@click.option("--no-verify", is_flag=True, help="Do not compare with the original first.")
@click.option("--overwrite", is_flag=True, help="Replace a model directory that exists.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
def command(
    source: str,
    out: str,
    tolerance: float | None,
    no_verify: bool,
    overwrite: bool,
    as_json: bool,
    **given: Any,
) -> None:
    """Convert SRC to a model directory OUT.

    SRC is model.pt2, model.onnx, a Hugging Face checkpoint directory, timm:NAME, or
    package.module:factory (a function that returns a torch module, or a tuple of module and
    example inputs).

    The original and the converted model are run on the same random inputs (two seeds) before
    anything is written; above the tolerance the command fails and OUT is not made.
    """
    from jaxinfer.cli import _console
    from jaxinfer.core.parity import Report, prove
    from jaxinfer.io.artefact import check_target, save

    check_target(out, overwrite=overwrite)
    stages = _console.Stages()
    with stages.stage("open", f"opening {source}"):
        opened_source = opened(source, given)
    with stages.stage("convert", f"capturing {opened_source.label}") as progress:
        model = opened_source.convert(progress)
    report: Report | None = None
    if not no_verify:
        seeds = seeds_of(given["seed"])
        with stages.stage("verify", f"comparing with the original on {len(seeds)} random inputs"):
            report = prove(model, opened_source, seeds, tolerance=tolerance)
        report.check()
    parity = None if report is None else report.to_json()
    notes = {**dict.fromkeys(opened_source.notes), **dict.fromkeys(_notes(model.provenance))}
    model = model.replace(provenance={**model.provenance, "parity": parity, "notes": list(notes)})
    with stages.stage("write", f"writing {out}"):
        save(model, out, overwrite=overwrite)
    summary = _summary(model, out, opened_source.label, stages.seconds)
    if as_json:
        _console.echo_json(summary)
    else:
        _show(summary, report)


def _notes(provenance: Any) -> list[str]:
    return [str(note) for note in provenance.get("notes", ())]


def _summary(model: Any, out: str, label: str, seconds: dict[str, float]) -> dict[str, Any]:
    from jaxinfer.cli import _describe

    leaves = _describe.parameters(model)
    operators = _describe.operators(model)
    kept = (
        "parity",
        "notes",
        "tied",
        "cast",
        "narrowed",
        "nonfinite",
        "unread_buffers",
        "effects",
        "scan_layers",
    )
    return {
        "source": label,
        "out": out,
        "operators": {"nodes": sum(operators.values()), "kinds": len(operators)},
        "parameters": {
            "leaves": len(leaves),
            "values": sum(leaf.size for leaf in leaves),
            "bytes": sum(leaf.nbytes for leaf in leaves),
            "constant_bytes": _describe.constant_bytes(model),
        },
        "inputs": [str(spec) for spec in model.inputs],
        "sizes": _describe.symbol_ranges(model),
        "samples": bool(model.program.random),
        **{key: model.provenance[key] for key in kept if key in model.provenance},
        "seconds": seconds,
    }


def _show(summary: dict[str, Any], report: Any) -> None:
    from jaxinfer.cli import _console, _describe

    console, leaves = _console.out(), summary["parameters"]
    operators = summary["operators"]
    rows = [
        ("source", summary["source"]),
        ("operators", f"{operators['nodes']} calls of {operators['kinds']} kinds"),
        (
            "parameters",
            f"{_console.in_units(leaves['values'])} values in {leaves['leaves']} leaves, "
            f"{_console.in_bytes(leaves['bytes'])}",
        ),
        *(("input", text) for text in summary["inputs"]),
    ]
    if summary["sizes"]:
        rows.append(("sizes", "; ".join(summary["sizes"])))
    if summary["samples"]:
        rows.append(("samples", "yes: calls need a random key"))
    rows += [(what, text) for what, text in _changes(summary)]
    rows += _describe.scan_rows(summary.get("scan_layers"))
    rows.append(("parity", _parity_text(report)))
    rows += [("note", note) for note in (*summary["notes"], *(report.notes if report else ()))]
    times = ", ".join(f"{stage} {value:.1f} s" for stage, value in summary["seconds"].items())
    console.print(_console.table([*rows, ("time", times)]))
    if report is not None:
        console.print()
        console.print(_console.table(error_rows(report), ERROR_HEADER))
    console.print(f"wrote {summary['out']}", markup=False)


def _parity_text(report: Any) -> str:
    if report is None:
        return "NOT CHECKED (--no-verify)"
    seeds = ", ".join(map(str, report.seeds))
    if not report.compared:
        return f"shapes and dtypes agree, numbers not compared (seeds {seeds})"
    return (
        f"largest error {report.max_abs:.3g} absolute, {report.max_rel:.3g} relative "
        f"(seeds {seeds})"
    )


def _changes(summary: dict[str, Any]) -> list[tuple[str, str]]:
    """Return what the conversion tied, cast and left out, shortened."""
    tied = summary.get("tied", {})
    cast = [" ".join(map(str, record)) for record in summary.get("cast", ())]
    named = {
        "tied": [f"{alias} = {name}" for alias, name in tied.items()],
        "cast": cast,
        "narrowed": list(summary.get("narrowed", ())),
        "NaN or inf": list(summary.get("nonfinite", ())),
        "not carried over": list(summary.get("effects", ())),
        "not read": list(summary.get("unread_buffers", ())),
    }
    return [(what, _shortened(items)) for what, items in named.items() if items]


def _shortened(items: list[str], most: int = 4) -> str:
    more = f" and {len(items) - most} more" if len(items) > most else ""
    return "; ".join(items[:most]) + more
