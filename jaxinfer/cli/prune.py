"""``jaxinfer prune OUT --sparsity 0.5 -o SMALL``: weights masked to zero, audited."""

from __future__ import annotations

from typing import Any

import click

from jaxinfer.cli._transform import Job, common_options


@click.command("prune")
@click.argument("model_dir", metavar="OUT")
@click.option("--method", metavar="NAME", help="magnitude or random.  [default: magnitude]")
@click.option(
    "--sparsity", type=float, metavar="SHARE", help="Share of zeros, in [0, 1).  [default: 0.5]"
)
@click.option(
    "--pattern",
    metavar="NAME",
    help="unstructured, or N:M (2:4): N of M successive weights are kept.  [default: unstructured]",
)
@click.option(
    "--seed", type=click.IntRange(0), metavar="N", help="Seed of the random key, for random."
)
@common_options
def command(
    model_dir: str,
    method: str | None,
    sparsity: float | None,
    pattern: str | None,
    seed: int | None,
    **given: Any,
) -> None:
    """Prune the model directory OUT into SMALL.

    Weights that products multiply by get a mask of what is kept; the values are kept beside it.
    """
    import jax

    from jaxinfer.transforms.prune import prune

    job = Job(model_dir, **given)
    key = None if seed is None else jax.random.key(seed)
    job.run(
        "pruning",
        prune(**job.settings(method=method, sparsity=sparsity, pattern=pattern, key=key)),
    )
