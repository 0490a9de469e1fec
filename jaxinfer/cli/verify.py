"""``jaxinfer verify OUT --against SRC``: a saved model and its source on random inputs."""

from __future__ import annotations

from typing import Any

import click

from jaxinfer.cli._source import ERROR_HEADER, error_rows, opened, seeds_of, source_options


@click.command("verify")
@click.argument("model_dir", metavar="OUT")
@click.option("--against", "source", required=True, metavar="SRC", help="As for convert.")
@source_options
@click.option("--json", "as_json", is_flag=True, help="Print the errors as JSON.")
def command(
    model_dir: str, source: str, tolerance: float | None, as_json: bool, **given: Any
) -> None:
    """Compare the model directory OUT with SRC on two random inputs.

    Prints the largest absolute and relative error of each output, and exits with 1 if one is
    above the tolerance. Relative errors are |a - b| / max(|a|, sqrt(eps) * max|a|).
    """
    from jaxinfer.cli import _console
    from jaxinfer.core.parity import prove
    from jaxinfer.io.artefact import load

    stages, seeds = _console.Stages(), seeds_of(given["seed"])
    with stages.stage("load", f"loading {model_dir}"):
        model = load(model_dir)
    with stages.stage("open", f"opening {source}"):
        opened_source = opened(source, given)
    with stages.stage("verify", f"comparing on {len(seeds)} random inputs"):
        report = prove(model, opened_source, seeds, tolerance=tolerance)
    if as_json:
        against = {"model": model_dir, "source": opened_source.label}
        _console.echo_json({**against, **report.to_json(), "seconds": stages.seconds})
    else:
        console = _console.out()
        console.print(_console.table(error_rows(report), ERROR_HEADER))
        for note in (*opened_source.notes, *report.notes):
            console.print(f"note: {note}", markup=False)
    report.check()
