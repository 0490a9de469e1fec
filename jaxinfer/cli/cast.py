"""``jaxinfer cast OUT --policy params=bf16,compute=bf16,output=f32 -o SMALL``: dtypes, audited."""

from __future__ import annotations

from typing import Any

import click

from jaxinfer.cli._transform import Job, common_options, data_options


@click.command("cast")
@click.argument("model_dir", metavar="OUT")
@click.option(
    "--policy",
    metavar="POLICY",
    help="For example params=bf16,compute=bf16,output=f32; f16 alone is all three.  "
    "[default: bf16]",
)
@data_options
@common_options
def command(model_dir: str, policy: str | None, **given: Any) -> None:
    """Cast the model directory OUT into SMALL.

    What needs float32 (sums over many terms, normalization) keeps it. With a policy of float16
    the samples of --data are looked at for overflow.
    """
    from jaxinfer.transforms.cast import cast

    job = Job(model_dir, **given)
    job.run("casting", cast(**job.settings(policy=policy)))
