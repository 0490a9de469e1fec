"""Operators whose result's shape depends on values: refused, with what to write instead.

A JAX function has static shapes, so ``nonzero`` and friends have no lowering. Their rules are
registered all the same, so that the error names the reason and not a missing rule.
"""

from __future__ import annotations

from typing import Any, NoReturn

import jax.numpy as jnp

from jaxinfer.core import dtypes
from jaxinfer_converters.aten._common import rule

_MASK = (
    "keep all elements and use torch.where, masked_fill or a weighted sum, or keep a fixed number "
    "k of them (torch.topk of the mask)"
)
_COUNT = "pass output_size, or repeat by an integer"
CURES: dict[str, str] = {
    "aten.index.Tensor": _MASK,
    "aten._unsafe_index.Tensor": _MASK,
    "aten.where.default": _MASK,
    "aten.nonzero_numpy.default": _MASK,
    "aten.repeat_interleave.Tensor": _COUNT,
    "aten.repeat_interleave.self_Tensor": _COUNT,
    "aten.one_hot.default": "pass num_classes",
    "torchvision.nms.default": "keep a fixed number k of boxes (torch.topk of the scores) with a "
    "mask of those suppressed, or return boxes and scores, and suppress outside the model",
}
"""What to write instead of an operator whose result's shape depends on values."""


def cure(op: str) -> str:
    """Return what to write instead of an operator of data-dependent shape."""
    return CURES.get(op, "use a fixed size: torch.where, masks, or padding to the largest size")


def refuse(what: str, instead: str) -> NoReturn:
    """Raise ``NotImplementedError``: the shape of ``what`` depends on data; do ``instead``."""
    raise NotImplementedError(
        f"the output shape of {what} depends on the data, and JAX needs static shapes; {instead}"
    )


def data_dependent(*names: str, instead: str) -> None:
    """Register rules that refuse operators whose output shape depends on data.

    Where torch recorded sizes all the same, one of them 0 (the operand is empty), the result
    is the empty array.
    """
    for name in names:
        CURES[name] = instead

        def refusing(context: Any, *args: Any, _name: str = name, **kwargs: Any) -> Any:
            avals = context.node.avals if context.node is not None else ()
            if avals and all(_is_empty(aval) for aval in avals):
                empty = [jnp.zeros(aval.shape, dtypes.canonical(aval.dtype)) for aval in avals]
                return empty if len(empty) > 1 else empty[0]
            refuse(_name, instead)

        rule(name, context=True)(refusing)


def _is_empty(aval: Any) -> bool:
    return aval is not None and all(isinstance(n, int) for n in aval.shape) and 0 in aval.shape
