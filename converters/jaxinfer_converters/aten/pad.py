"""Padding: constant, reflect, replicate and circular; negative widths crop.

``pad`` lists (low, high) from the last axis backwards. Every mode but constant is a
concatenation of slices of the input, one axis after the other.
Does not do: reflections wider than the axis (torch refuses them too).
Source: PyTorch, ``torch.nn.functional.pad``.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
from jax import lax

from jaxinfer_converters.aten._common import Array, cast, rule
from jaxinfer_converters.aten._window import pad_axes


def _edge(x: Array, axis: int, width: int, mode: str, *, low: bool) -> Array:
    """The ``width`` values that go before (low) or after x."""
    n = x.shape[axis]
    if mode == "replicate":
        start = 0 if low else n - 1
        edge = lax.slice_in_dim(x, start, start + 1, axis=axis)
        return jnp.broadcast_to(edge, (*x.shape[:axis], width, *x.shape[axis + 1 :]))
    if mode == "reflect":
        start = 1 if low else n - 1 - width
        return lax.rev(lax.slice_in_dim(x, start, start + width, axis=axis), (axis,))
    start = n - width if low else 0
    return lax.slice_in_dim(x, start, start + width, axis=axis)


def _pad_axis(x: Array, axis: int, low: int, high: int, mode: str) -> Array:
    n = x.shape[axis]
    limit = n - 1 if mode == "reflect" else n
    if mode != "replicate" and max(low, high) > limit:
        raise ValueError(f"cannot {mode}-pad axis {axis} of {n} by {(low, high)}: at most {limit}")
    middle = lax.slice_in_dim(x, max(0, -low), n - max(0, -high), axis=axis)
    if mode == "circular":  # a cropped end is not wrapped to, though it is mirrored to
        x = middle
    parts = [middle]
    if low > 0:
        parts.insert(0, _edge(x, axis, low, mode, low=True))
    if high > 0:
        parts.append(_edge(x, axis, high, mode, low=False))
    return lax.concatenate(parts, axis) if len(parts) > 1 else parts[0]


def _pad_each(x: Array, pad: Sequence[int], mode: str) -> Array:
    for back in range(len(pad) // 2):
        low, high = pad[2 * back], pad[2 * back + 1]
        if low or high:
            x = _pad_axis(x, x.ndim - 1 - back, low, high, mode)
    return x


@rule("aten.constant_pad_nd.default")
def constant_pad_nd(self, pad, value=0) -> Array:
    """y[..., i] = x[..., i - low] inside, value outside; negative widths crop."""
    widths = {self.ndim - 1 - b: (pad[2 * b], pad[2 * b + 1]) for b in range(len(pad) // 2)}
    return pad_axes(self, widths, cast(value, self.dtype))


@rule("aten.pad.default")
def pad(self, pad, mode="constant", value=None) -> Array:
    """Pad the last len(pad) / 2 axes: constant, reflect, replicate or circular."""
    if mode == "constant":
        return constant_pad_nd(self, pad, 0 if value is None else value)
    return _pad_each(self, pad, mode)


@rule(*(f"aten.reflection_pad{nd}d.default" for nd in (1, 2, 3)))
def reflection_pad(self, padding) -> Array:
    """y[i] = x[|i - low|], mirrored at both ends without repeating them."""
    return _pad_each(self, padding, "reflect")


@rule(*(f"aten.replication_pad{nd}d.default" for nd in (1, 2, 3)))
def replication_pad(self, padding) -> Array:
    """y[i] = x[clip(i - low, 0, n - 1)]."""
    return _pad_each(self, padding, "replicate")


@rule("aten._pad_circular.default")
def _pad_circular(self, pad) -> Array:
    """y[i] = x[(i - low) mod n]."""
    return _pad_each(self, pad, "circular")
