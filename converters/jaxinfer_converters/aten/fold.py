"""im2col (``nn.Unfold``) and its adjoint col2im (``nn.Fold``).

Windows are slices of one axis after the other: kernel heights plus widths many, not their
product; col2im adds what overlaps. Source: PyTorch, ATen/native/im2col.h.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxinfer_converters.aten._common import Array, prod, rule
from jaxinfer_converters.aten._window import geometry, output_size, pad_axes, shifted


def _counts(shape, sizes, strides, paddings, dilations) -> list[int]:
    axes = zip(shape, sizes, strides, paddings, dilations, strict=True)
    counts = [output_size(*axis, False) for axis in axes]
    if min(counts) < 1:
        raise ValueError(f"blocks of {sizes} do not fit {tuple(shape)}: none is left")
    return counts


@rule("aten.im2col.default")
def im2col(self, kernel_size, dilation, padding, stride) -> Array:
    """y[b, c kh kw, oh ow] = x[b, c, s oh + d kh - p, s ow + d kw - p]; b may be missing."""
    window = geometry(2, kernel_size, stride, padding, dilation)
    sizes, strides, paddings, dilations = window
    outs = _counts(self.shape[-2:], *window)
    first = self.ndim - 2
    widths = {first + a: (paddings[a], paddings[a]) for a in (0, 1)}
    x = pad_axes(self, widths, jnp.zeros((), self.dtype))
    # Columns first: [.., h, kw, ow], then rows: [.., kh, oh, kw, ow].
    for a in (1, 0):
        axis = first + a
        x = jnp.stack(shifted(x, axis, sizes[a], strides[a], dilations[a], outs[a]), axis)
    x = x.swapaxes(first + 1, first + 2)
    lead = self.shape[: first - 1]
    return x.reshape(*lead, self.shape[first - 1] * prod(sizes), prod(outs))


@rule("aten.col2im.default")
def col2im(self, output_size, kernel_size, dilation, padding, stride) -> Array:
    """y[b, c, s oh + d kh - p, s ow + d kw - p] += x[b, c kh kw, oh ow]; b may be missing."""
    window = geometry(2, kernel_size, stride, padding, dilation)
    sizes, strides, paddings, dilations = window
    outs = _counts(output_size, *window)
    *lead, rows, _ = self.shape
    x = self.reshape(*lead, rows // prod(sizes), sizes[0], sizes[1], *outs)
    x = x.swapaxes(-2, -3)  # [.., c, kh, oh, kw, ow]
    zero = np.zeros((), x.dtype)[()]
    first = len(lead) + 1
    for a, axis in ((0, first), (1, first + 1)):
        # Axes (k, o) at ``axis`` become one padded axis: shift each k to its place, and add.
        total = output_size[a] + 2 * paddings[a]
        span = (outs[a] - 1) * strides[a] + 1
        parts = []
        for k in range(sizes[a]):
            low = k * dilations[a]
            part = lax.index_in_dim(x, k, axis, keepdims=False)
            config = [(0, 0, 0)] * part.ndim
            config[axis] = (low - paddings[a], total - low - span - paddings[a], strides[a] - 1)
            parts.append(lax.pad(part, zero, config))
        x = sum(parts[1:], parts[0])
    return x
