"""``jaxinfer fold OUT -o SMALL``: scales, batch norms and the like into the kernels before them."""

from __future__ import annotations

from typing import Any

import click

from jaxinfer.cli._transform import Job, common_options


@click.command("fold")
@click.argument("model_dir", metavar="OUT")
@common_options
def command(model_dir: str, **given: Any) -> None:
    """Fold what is affine around the products of the model directory OUT into their kernels."""
    from jaxinfer.transforms.fold import fold

    job = Job(model_dir, **given)
    job.run("folding", fold(**job.settings()))
