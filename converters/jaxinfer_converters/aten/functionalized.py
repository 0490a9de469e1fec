"""Operators that write to their arguments, and operators given as arguments.

torch makes a call of an operator that writes functional: the higher-order operator
``auto_functionalized_v2`` takes the tensors that are written to (or the tensors of which they are
views), and gives them back with their new values. The operator's own rule is pure: it returns the
operator's outputs, followed by the new values of the arguments that it writes to, in the
order of the schema.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxinfer.core.errors import MissingRulesError
from jaxinfer.core.ops import OPS
from jaxinfer_converters.aten._common import Array, cast, is_array, rule
from jaxinfer_converters.aten.slicing import as_strided_scatter, slice_scatter, slice_tensor
from jaxinfer_converters.aten.view import as_strided


def _call(context: Any, op: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Call the rule of an operator that is an argument."""
    called = OPS.get(op)
    if called is None:
        raise MissingRulesError(f"{op}: no rule ({context.node.where()})")
    first = (context,) if getattr(called, "wants_context", False) else ()
    return called(*first, *args, **kwargs)


class _View:
    """Which part of a base tensor an argument is: all of it, a slice, or any strided view."""

    def __init__(self, prefix: str, described: Mapping[str, Any]):
        get = lambda field: described.get(f"_{prefix}_{field}")
        self.base: int | None = get("base_index")
        self.slice = (get("slice_dim"), get("slice_start"), get("slice_end"))
        self.strides = (get("size"), get("stride"), get("storage_offset"))

    def read(self, bases: Sequence[Array]) -> Any:
        if self.base is None:
            return None
        x = bases[self.base]
        if self.slice[0] is not None:
            return slice_tensor(x, *self.slice)
        return x if self.strides[0] is None else as_strided(x, *self.strides)

    def write(self, bases: list[Array], new: Any) -> None:
        """Put a new value into its base."""
        if self.base is None:
            return
        x = bases[self.base]
        new = cast(new, x.dtype)
        if self.slice[0] is not None:
            new = slice_scatter(x, new, *self.slice)
        elif self.strides[0] is not None:
            new = as_strided_scatter(x, new, *self.strides)
        bases[self.base] = new


@rule("higher_order.auto_functionalized_v2", context=True)
def auto_functionalized(
    context: Any,
    op: str,
    positional: Sequence[str],
    written: Sequence[str],
    returns: int,
    *,
    _all_bases: Sequence[Array],
    **given: Any,
) -> tuple[Any, ...]:
    """(outputs of op, new bases): op's outputs (None if it has none), then each written tensor.

    Args:
      positional: names of op's positional arguments, in the order of its schema.
      written: names of the arguments that op writes to, in the order of its schema.
      returns: how many outputs op has.
      given: op's other arguments by name, and for each written argument ``x`` where it lies:
        ``_x_base_index``, with ``_x_slice_*``, ``_x_size`` ... where it is a part.
    """
    views: dict[str, Any] = {}
    for name in written:
        count = given.get(f"_{name}_length")
        if count is not None:
            views[name] = [_View(f"{name}_{i}", given) for i in range(count)]
        elif f"_{name}_base_index" in given:
            views[name] = _View(name, given)
    values = {name: item for name, item in given.items() if not _describes(name, written)}
    for name, view in views.items():
        lists = isinstance(view, list)
        values[name] = [v.read(_all_bases) for v in view] if lists else view.read(_all_bases)
    args = []
    for name in positional:
        if name not in values:
            break  # the rest have defaults
        args.append(values.pop(name))
    out = _call(context, op, args, values)
    flat = list(out) if isinstance(out, (tuple, list)) else [out]
    if len(flat) != returns + len(views):
        raise ValueError(
            f"the rule of {op} returns {len(flat)} values, required {returns + len(views)}: its "
            f"{returns} outputs and the new values of {', '.join(views)}"
        )
    bases = list(_all_bases)
    for view, new in zip(views.values(), flat[returns:], strict=True):
        for part, value in zip(view, new, strict=True) if isinstance(view, list) else [(view, new)]:
            part.write(bases, value)
    return (*(flat[:returns] or [None]), *bases)


def _describes(name: str, written: Sequence[str]) -> bool:
    """Whether ``_x_base_index`` and the like says where a written argument x lies."""
    return any(name.startswith(f"_{argument}_") for argument in written)


@rule("higher_order.out_dtype", context=True)
def out_dtype(context: Any, op: str, dtype: Any, *args: Any) -> Array:
    """op(args) computed in a wider dtype: an int8 product that is summed in int32."""
    wide = [cast(x, dtype) if is_array(x) else x for x in args]
    return cast(_call(context, op, wide, {}), np.dtype(dtype))
