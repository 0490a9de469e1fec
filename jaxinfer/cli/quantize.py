"""``jaxinfer quantize OUT --scheme W8A8 -o SMALL``: int8, fp8 and 4-bit weights, audited."""

from __future__ import annotations

from typing import Any

import click

from jaxinfer.cli._transform import Job, common_options, data_options


@click.command("quantize")
@click.argument("model_dir", metavar="OUT")
@click.option(
    "--scheme",
    metavar="NAME",
    help="W8A16, W8A8, FP8, W4A16, W4A8 or NF4: bits of weights and activations.  [default: W8A16]",
)
@click.option(
    "--group",
    type=click.IntRange(0),
    metavar="N",
    help="Elements of the contracting axis that share a scale; 0: all.  [default: the scheme's]",
)
@click.option(
    "--activation",
    type=click.Choice(["dynamic", "static"]),
    help="Scales of activations: of each token as it passes, or one, calibrated on --data.  "
    "[default: dynamic]",
)
@click.option(
    "--calibration",
    metavar="METHOD",
    help="For static activations: absmax, minmax, percentile, mse or moving_average.  "
    "[default: absmax]",
)
@data_options
@common_options
def command(
    model_dir: str,
    scheme: str | None,
    group: int | None,
    activation: str | None,
    calibration: str | None,
    **given: Any,
) -> None:
    """Quantize the model directory OUT into SMALL.

    Parameters that products multiply by, and embeddings, become codes and scales; each of the
    others is listed with the equation and the line that needs it as it is. Static activations
    need --data.
    """
    from jaxinfer.transforms.quantize import quantize

    job = Job(model_dir, **given)
    settings = job.settings(
        scheme=scheme, group=group, activation=activation, calibration=calibration
    )
    job.run("quantizing", quantize(**settings), data_for="calibration")
