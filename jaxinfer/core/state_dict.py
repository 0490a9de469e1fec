"""Parameters as the checkpoint had them: its names, its shapes, its order of axes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxinfer.core.array_types import is_array_type
from jaxinfer.core.errors import InputError, listing
from jaxinfer.core.multi import MultiProgram

if TYPE_CHECKING:
    from jaxinfer.core.model import Model
    from jaxinfer.core.program import Program


def to_state_dict(model: Model, params: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return parameters, or what has their shapes, in the checkpoint's own layout.

    A converted model stores convolution kernels ``[..., in, out]``, dense weights ``[in, out]``
    and scanned layers stacked. This undoes all three, and gives tied tensors under each of
    their names, so that ``module.load_state_dict`` and the tools of torch can read them.

    Args:
      params: a dict with names of ``model.params``, not necessarily all: parameters after
        training, gradients, an optimizer's moments. None: the model's own.

    Returns:
      Arrays by checkpoint name, of the kind they were given in (numpy or JAX). Buffers that the
      model does not read (``num_batches_tracked``) are not in it: load with ``strict=False``.

    Raises:
      InputError: the model was not converted from a checkpoint, or ``params`` has names that
        ``model.params`` has not, or holds array types (quantized, masked), or a rewrite has given
        the parameters other names than the checkpoint's (``fold``).

    Example, back to torch after training::

        state = {k: torch.tensor(np.asarray(v)) for k, v in ji.to_state_dict(model, params).items()}
        module.load_state_dict(state, strict=False)
    """
    stored = _stored(model.program)
    if stored is None:
        raise InputError(
            f"to_state_dict: a {model.program.kind} program has no checkpoint; its params are "
            "what you gave"
        )
    params = dict(model.params) if params is None else params
    if unknown := [name for name in params if name not in model.params]:
        raise InputError(f"to_state_dict: model.params has no {', '.join(map(repr, unknown))}")
    _require_plain(model, params)
    found: dict[str, Any] = {}
    for name, value in params.items():
        perm, parts = stored.get(name, ((), ()))
        for part, array in zip(parts, value, strict=True) if parts else ((name, value),):
            found[part] = array.transpose(np.argsort(perm)) if perm else array
    for name, canonical in model.provenance.get("tied", {}).items():
        if canonical in found:
            found[name] = found[canonical]
    return found


def _require_plain(model: Model, params: Mapping[str, Any]) -> None:
    """Raise if a checkpoint could not hold the parameters as they are."""
    renaming = [r.kind for r in model.rewrites if hasattr(r, "param_specs")]
    if renaming:
        raise InputError(
            f"to_state_dict: {', '.join(renaming)} has changed the parameters, which are no longer "
            "the checkpoint's; take the state dict of the model before it"
        )
    kinds = [f"{name}: {type(v).__name__}" for name, v in params.items() if is_array_type(v)]
    if kinds:
        raise InputError(
            listing(
                "to_state_dict: a checkpoint holds arrays, these parameters are of other types:",
                kinds,
                "Give the arrays that they stand for, if that is meant: params = {name: "
                "jaxinfer.core.array_types.materialize(leaf) for name, leaf in "
                "model.params.items()}; to_state_dict(model, params).",
            )
        )


def _stored(program: Program) -> Mapping[str, Any] | None:
    if isinstance(program, MultiProgram):
        each = [_stored(part) for part in program.programs.values()]
        known = [found for found in each if found is not None]
        return {k: v for found in known for k, v in found.items()} if known == each else None
    return getattr(program, "stored", None)
