"""Linear algebra on parameters that leaves the function as it is: one pass of arithmetic less.

    affine after     (x W + c) a + b = x (W a) + (c a + b)            ``scale_outputs``
    batch norm       a = gamma / sqrt(var + eps), b = beta - mean a   ``affine_of_norm``
    affine before    (x a + b) W + c = x (a W) + (b W + c)            ``scale_inputs``
    composition      (x W1 + c1) W2 + c2 = x (W1 W2) + (c1 W2 + c2)   ``compose``
    parallel         [x W1, x W2] = x [W1, W2]                        ``concatenate``, ``split``

for dense layers and, channel by channel, for convolutions of any kind. Equal in exact arithmetic.
An affine map BEFORE a convolution is exact if the shift is zero, or if the convolution reads
nothing but its input: padding is zeros in front of the kernel, and the shift is not added to it;
nor to the zeros that a transposed convolution puts between the inputs.

Rounding. With u = eps / 2 of the dtype that parameters and activations are stored in, U the same
of the dtype that sums are accumulated in (float32 for half types), K the number of products in a
sum, and M the sum of the magnitudes of all terms (|x| |W a| + |c a| + |mean a| + |beta|; an affine
map's own |b| for the last two):

    unfolded: |y - exact| <= (G + 9 u) M   the sum, and its rounding; + c; - mean; * rsqrt, itself
                                           2 roundings and a sum; * gamma; + beta
    folded:   |y - exact| <= (G + 4 u) M   the rounding of W a and of c a + b; the sum's; + bias
    G = K U / (1 - K U)                    (Higham, "Accuracy and Stability of Numerical
                                           Algorithms", 2nd ed. 2002, section 3.1)

so |folded - unfolded| <= (2 G + 16 u) M = (2 G + 8 eps) M, where 3 u are left for terms in u^2.
``rounding_bound`` gives the factor. The same holds for the others, with K the sum of both lengths
in a composition, and no more roundings. It bounds the error by M: where terms cancel, the result
is small against M, before folding as after. It supposes no overflow or underflow.

Not done here: finding out where folding applies (a transform's task), nonlinearities in between,
composing convolutions, shifts through padding, moving an outlier's scale from activations to
weights (SmoothQuant: it is ``scale_inputs`` with a scale to be chosen).

Source of batch-norm folding: Jacob et al., "Quantization and Training of Neural Networks for
Efficient Integer-Arithmetic-Only Inference", CVPR 2018, section 3.2,
https://arxiv.org/abs/1712.05877.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from jaxinfer.core.errors import InputError, InputTypeError


class Layout(NamedTuple):
    """Which axes of a kernel are its outputs and its inputs; all others are taps.

    Attributes:
      output: the axis of the output channels, or several (of an einsum; a batch axis of both
        operands, as of experts, is an output).
      input: the axis of the input channels, or several.
      groups: of a convolution.
      inputs_whole: with groups, the input axis holds the channels of all groups and the output
        axis those of one (torch's transposed convolutions). Else the other way round.
    """

    output: int | tuple[int, ...]
    input: int | tuple[int, ...]
    groups: int = 1
    inputs_whole: bool = False


DENSE = Layout(output=1, input=0)
"""Kernels [inputs, outputs], as in Flax."""
TORCH_DENSE = Layout(output=0, input=1)
"""Kernels [outputs, inputs], as in torch."""
HWIO = Layout(output=-1, input=-2)
"""Kernels [*taps, inputs / groups, outputs]; ``HWIO._replace(groups=...)``."""
OIHW = Layout(output=0, input=1)
"""Kernels [outputs, inputs / groups, *taps]."""
IOHW = Layout(output=1, input=0, inputs_whole=True)
"""Kernels [inputs, outputs / groups, *taps], of torch's transposed convolutions."""


def affine_of_norm(
    mean: Array,
    var: Array,
    gamma: Array | None = None,
    beta: Array | None = None,
    *,
    epsilon: float,
) -> tuple[Array, Array]:
    """Return (a, b) with y a + b = (y - mean) / sqrt(var + epsilon) * gamma + beta.

    Args:
      mean: float[c], of any shape that all share.
      var: float[c]; where var + epsilon <= 0 the result is not finite.
      gamma: float[c], 1 if None.
      beta: float[c], 0 if None.
      epsilon: what is added to the variance.

    Returns:
      f32[c] twice (f64 for float64).

    >>> import jax.numpy as jnp
    >>> a, b = affine_of_norm(jnp.array([2.0]), jnp.array([3.0]), epsilon=1.0)
    >>> a.tolist(), b.tolist()
    ([0.5], [-1.0])
    """
    given = [x for x in (mean, var, gamma, beta) if x is not None]
    shapes = [jnp.shape(x) for x in given]
    if len(set(shapes)) > 1:
        raise InputError(f"fold: mean, var, gamma and beta must have one shape, got {shapes}")
    wide = _wide(*given)
    scale = lax.rsqrt(jnp.asarray(var, wide) + jnp.asarray(epsilon, wide))
    if gamma is not None:
        scale = scale * jnp.asarray(gamma, wide)
    shift = -jnp.asarray(mean, wide) * scale
    return scale, shift if beta is None else shift + jnp.asarray(beta, wide)


def scale_outputs(
    kernel: Array,
    bias: Array | None,
    scale: Array,
    shift: Array | None = None,
    *,
    layout: Layout = DENSE,
    path: str = "kernel",
) -> tuple[Array, Array | None]:
    """Fold y -> y scale + shift into the dense layer or convolution that gives y.

    Args:
      kernel: float of any rank.
      bias: float[outputs] or None.
      scale: float[outputs]; of the shape of the output axes if there are several.
      shift: float[outputs] or None for 0.
      layout: of the kernel; convolutions may be grouped, depthwise, strided, transposed.
      path: of the leaf, for messages.

    Returns:
      (kernel, bias), in the dtypes they came in; computed in float32 (float64) and rounded once.
      A bias that was None stays so without a shift, and has the kernel's dtype with one.

    Raises:
      InputError: a shape that does not fit the layout.
      InputTypeError: a kernel that is not of a float dtype.
    """
    wide, layout = _checked(kernel, layout, path)
    size = _outputs(kernel, layout)
    for what, vector in (("scale", scale), ("shift", shift), ("bias", bias)):
        _fits(vector, size, what, f"{path}: folding into outputs", kernel, layout)
    scale = jnp.asarray(scale, wide)
    factor = _spread(scale, kernel.shape, layout, inputs=False)
    folded = (kernel.astype(wide) * factor).astype(kernel.dtype)
    if bias is None and shift is None:
        return folded, None
    total = jnp.zeros(size, wide) if bias is None else bias.astype(wide) * scale
    if shift is not None:
        total = total + jnp.asarray(shift, wide)
    return folded, total.astype(kernel.dtype if bias is None else bias.dtype)


def scale_inputs(
    kernel: Array,
    bias: Array | None,
    scale: Array,
    shift: Array | None = None,
    *,
    padded: bool,
    layout: Layout = DENSE,
    path: str = "kernel",
) -> tuple[Array, Array | None]:
    """Fold x -> x scale + shift into the dense layer or convolution that reads x.

    Args:
      kernel: float of any rank.
      bias: float[outputs] or None.
      scale: float[inputs]; of the shape of the input axes if there are several. The same for
        all outputs, so also for all entries of a batch axis (experts).
      shift: float[inputs] or None for 0.
      padded: whether the kernel meets zeros that are no values of x: any padding, any dilation
        of the input (transposed convolutions). False for dense layers. Then a shift is refused,
        even if its values are zeros: at trace time they are not known.
      layout: of the kernel.
      path: of the leaf, for messages.

    Returns:
      (kernel, bias) as of ``scale_outputs``; the shift is summed over inputs and taps.

    Raises:
      InputError: a shift with ``padded``; a shape that does not fit the layout.
      InputTypeError: a kernel that is not of a float dtype.
    """
    wide, layout = _checked(kernel, layout, path)
    if padded and shift is not None:
        raise InputError(
            f"{path}: a shift before a padded or transposed convolution does not fold: it is not "
            "added to the padding, so the border would change; pass shift=None if it is zero, "
            "or leave the shift where it is"
        )
    for what, vector in (("scale", scale), ("shift", shift)):
        size = _inputs(kernel, layout)
        _fits(vector, size, what, f"{path}: folding into inputs", kernel, layout)
    size = _outputs(kernel, layout)
    _fits(bias, size, "bias", f"{path}: folding into inputs", kernel, layout)
    wide_kernel = kernel.astype(wide)
    factor = _spread(jnp.asarray(scale, wide), kernel.shape, layout, inputs=True)
    folded = (wide_kernel * factor).astype(kernel.dtype)
    if shift is None:
        return folded, bias
    terms = wide_kernel * _spread(jnp.asarray(shift, wide), kernel.shape, layout, inputs=True)
    total = _sum_to_outputs(terms, layout)
    if bias is not None:
        total = total + bias.astype(wide)
    return folded, total.astype(kernel.dtype if bias is None else bias.dtype)


def compose(
    first: Array,
    second: Array,
    first_bias: Array | None = None,
    second_bias: Array | None = None,
    *,
    path: str = "kernel",
) -> tuple[Array, Array | None]:
    """Return the one dense layer that does what two do, one right after the other.

    Args:
      first: float[k, m].
      second: float[m, n].
      first_bias: float[m] or None.
      second_bias: float[n] or None.
      path: of the leaf, for messages.

    Returns:
      (float[k, n], float[n] or None), in the promoted dtype of the kernels; 2 k m n FLOPs, once.
      Worth it where ``worth_composing`` says so.

    Raises:
      InputError: shapes that do not fit.
      InputTypeError: a kernel that is not of a float dtype.
    """
    for kernel in (first, second):
        _checked(kernel, DENSE, path)
    if first.ndim != 2 or second.ndim != 2 or first.shape[1] != second.shape[0]:
        raise InputError(
            f"{path}: composing needs kernels [k, m] and [m, n], got {first.shape} and "
            f"{second.shape}; transpose kernels that are stored [outputs, inputs]"
        )
    _fits(first_bias, first.shape[1:], "bias of the first", f"{path}: composing", first, DENSE)
    _fits(second_bias, second.shape[1:], "bias of the second", f"{path}: composing", second, DENSE)
    wide, dtype = _wide(first, second), jnp.promote_types(first.dtype, second.dtype)
    a, b = first.astype(wide), second.astype(wide)
    kernel = jnp.matmul(a, b, precision=lax.Precision.HIGHEST).astype(dtype)
    biases = []
    if first_bias is not None:
        biases.append(jnp.matmul(first_bias.astype(wide), b, precision=lax.Precision.HIGHEST))
    if second_bias is not None:
        biases.append(second_bias.astype(wide))
    if not biases:
        return kernel, None
    return kernel, sum(biases[1:], biases[0]).astype(dtype)


def composition_flops(rows: int, k: int, m: int, n: int) -> tuple[int, int]:
    """Return the FLOPs of two layers [k, m], [m, n] on ``rows`` rows, and of their composition."""
    return 2 * rows * m * (k + n), 2 * rows * k * n


def worth_composing(rows: int, k: int, m: int, n: int, *, each_call: bool = False) -> bool:
    """Return whether composing two dense layers saves FLOPs.

    k n < m (k + n): true unless the middle is narrow (a low-rank pair, m < k n / (k + n)). It does
    not depend on the rows, and decides in the same way on the bytes of the weights. With
    ``each_call`` the product of the kernels is counted too, and needs rows to pay for it.

    Args:
      rows: how many vectors x a call multiplies.
      k: inputs of the first.
      m: outputs of the first, inputs of the second.
      n: outputs of the second.
      each_call: the kernels are no parameters, and are multiplied at each call.

    >>> worth_composing(8, 64, 64, 64), worth_composing(8, 64, 16, 64)
    (True, False)
    >>> [worth_composing(rows, 64, 64, 64, each_call=True) for rows in (64, 65)]
    [False, True]
    """
    two, one = composition_flops(rows, k, m, n)
    return one + (2 * k * m * n if each_call else 0) < two


def concatenate(
    kernels: Sequence[Array],
    biases: Sequence[Array | None],
    *,
    axis: int = 1,
    path: str = "kernel",
) -> tuple[Array, Array | None, tuple[int, ...]]:
    """Merge layers that read one input into one, whose outputs are theirs side by side.

    Args:
      kernels: of one dtype, equal in shape but for the outputs. Dense, or convolutions with the
        same strides and padding; not grouped, for the groups would mix.
      biases: float[outputs] or None for each; one that is None among others becomes zeros.
      axis: of the outputs.
      path: of the leaves, for messages.

    Returns:
      (kernel, bias or None, the number of outputs of each, for ``split``). No arithmetic is done;
      the results are equal but for the order in which a matmul of another width adds.

    Raises:
      InputError: no kernels, numbers or shapes that do not fit.
      InputTypeError: kernels or biases of several dtypes, or not of a float dtype.
    """
    if not kernels or len(kernels) != len(biases):
        raise InputError(
            f"{path}: merging needs kernels and as many biases (None is one), got "
            f"{len(kernels)} and {len(biases)}"
        )
    dtypes = {str(x.dtype) for x in kernels}, {str(x.dtype) for x in biases if x is not None}
    if any(len(names) > 1 for names in dtypes):
        names = ", ".join(sorted(dtypes[0] | dtypes[1]))
        raise InputTypeError(f"{path}: merging needs one dtype, got {names}; cast first")
    layouts = [_checked(x, Layout(output=axis, input=()), path)[1] for x in kernels]
    rest = {(*x.shape[: axis % x.ndim], *x.shape[axis % x.ndim + 1 :]) for x in kernels}
    if len(rest) > 1:
        raise InputError(
            f"{path}: merging needs kernels equal in all axes but {axis}, got "
            f"{[x.shape for x in kernels]}; merge only layers that read the same input"
        )
    for kernel, bias, layout in zip(kernels, biases, layouts, strict=True):
        _fits(bias, _outputs(kernel, layout), "bias", f"{path}: merging", kernel, layout)
    sizes = tuple(x.shape[axis] for x in kernels)
    kernel = jnp.concatenate(kernels, axis=axis)
    some = [bias for bias in biases if bias is not None]
    if not some:
        return kernel, None, sizes
    filled = [
        jnp.zeros(n, some[0].dtype) if bias is None else bias
        for n, bias in zip(sizes, biases, strict=True)
    ]
    return kernel, jnp.concatenate(filled), sizes


def split(y: Array, sizes: Sequence[int], *, axis: int = -1) -> list[Array]:
    """Return the outputs of the layers that ``concatenate`` merged.

    Args:
      y: [..., sum of sizes, ...].
      sizes: outputs of each layer.
      axis: of the outputs in y.

    Raises:
      InputError: the sizes do not add up to the axis.
    """
    if not -y.ndim <= axis < y.ndim or y.shape[axis] != sum(sizes):
        raise InputError(
            f"split: sizes {tuple(sizes)} need {sum(sizes)} along axis {axis}, got {y.shape}"
        )
    return jnp.split(y, np.cumsum(sizes)[:-1].tolist(), axis=axis)


def rounding_bound(terms: int, dtype: Any, accumulator: Any = None) -> float:
    """Return f with |folded - unfolded| <= f M; see the head of this module for M and a proof.

    Args:
      terms: products in a sum: inputs times taps; k + m for a composition.
      dtype: of parameters and activations.
      accumulator: that sums are computed in; float32 if None, float64 for float64. With TF32 or
        a bfloat16 accumulator (a matmul's default precision on some devices) pass that.

    Raises:
      InputError: so many terms that there is no bound.

    >>> round(rounding_bound(100, "float32") * 2**23)
    108
    """
    dtype = jnp.dtype(dtype)
    wide = jnp.promote_types(dtype, jnp.float32) if accumulator is None else accumulator
    sums = terms * float(jnp.finfo(wide).eps) / 2
    if sums >= 1:
        raise InputError(f"fold: {terms} terms in {jnp.dtype(wide).name} have no rounding bound")
    return 2 * sums / (1 - sums) + 8 * float(jnp.finfo(dtype).eps)


def _wide(*arrays: Array) -> Any:
    """Return float32, or float64 for float64."""
    return jnp.promote_types(jnp.result_type(*arrays), jnp.float32)


def _checked(kernel: Array, layout: Layout, path: str) -> tuple[Any, Layout]:
    """Return the dtype to compute in, and the layout with axes as tuples counted from the left."""
    if not jnp.issubdtype(kernel.dtype, jnp.floating):
        raise InputTypeError(
            f"{path}: folding needs a float kernel, got {kernel.dtype}; fold before quantizing"
        )
    ndim = kernel.ndim
    output, inputs = (
        (axes,) if isinstance(axes, int) else axes for axes in (layout.output, layout.input)
    )
    both = (*output, *inputs)
    normal = [axis % ndim for axis in both if -ndim <= axis < ndim]
    if len(set(normal)) != len(both):
        raise InputError(
            f"{path}: output axes {output} and input axes {inputs} must be different axes of the "
            f"kernel {kernel.shape}"
        )
    layout = layout._replace(
        output=tuple(normal[: len(output)]), input=tuple(normal[len(output) :])
    )
    if layout.groups == 1:
        return _wide(kernel), layout._replace(inputs_whole=False)
    if len(output) != 1 or len(inputs) != 1 or layout.groups < 1:
        raise InputError(
            f"{path}: groups={layout.groups} with output axes {output} and input axes {inputs}; "
            "groups are 1 or more, and need one axis of each"
        )
    whole = normal[1] if layout.inputs_whole else normal[0]
    if kernel.shape[whole] % layout.groups:
        raise InputError(
            f"{path}: axis {whole} of the kernel {kernel.shape} is no multiple of "
            f"groups={layout.groups}; check groups and inputs_whole of the layout"
        )
    return _wide(kernel), layout


def _outputs(kernel: Array, layout: Layout) -> tuple[int, ...]:
    """Return the shape of the outputs."""
    times = layout.groups if layout.inputs_whole else 1
    return tuple(kernel.shape[axis] * times for axis in _tuple(layout.output))


def _inputs(kernel: Array, layout: Layout) -> tuple[int, ...]:
    """Return the shape of the inputs."""
    times = 1 if layout.inputs_whole else layout.groups
    return tuple(kernel.shape[axis] * times for axis in _tuple(layout.input))


def _spread(vector: Array, shape: tuple[int, ...], layout: Layout, *, inputs: bool) -> Array:
    """Return a vector over all inputs (or outputs) so that it broadcasts against the kernel.

    With g groups, entry [i, o] of a kernel [inputs / g, outputs] belongs to the group o // (outputs
    / g), and so to input (o // (outputs / g)) * (inputs / g) + i; and likewise the other way round.
    """
    own, other = (layout.input, layout.output) if inputs else (layout.output, layout.input)
    if layout.groups == 1 or inputs == layout.inputs_whole:
        return _along(vector, len(shape), _tuple(own))
    each = shape[_tuple(other)[0]] // layout.groups
    rows = jnp.repeat(vector.reshape(layout.groups, -1), each, axis=0)
    return _along(rows, len(shape), (*_tuple(other), *_tuple(own)))


def _along(x: Array, ndim: int, axes: tuple[int, ...]) -> Array:
    """Return x, whose axes are ``axes`` of a kernel of rank ``ndim``, with size 1 on the others."""
    x = x.transpose([axes.index(axis) for axis in sorted(axes)])
    return jnp.expand_dims(x, [axis for axis in range(ndim) if axis not in axes])


def _sum_to_outputs(terms: Array, layout: Layout) -> Array:
    """Return the sums of the terms of a kernel over its inputs and taps, [outputs]."""
    output = _tuple(layout.output)
    if layout.inputs_whole:
        (input_axis,) = _tuple(layout.input)
        rows = jnp.moveaxis(terms, (input_axis, *output), (0, 1))
        rows = rows.reshape(layout.groups, -1, *rows.shape[1:])
        return rows.sum(axis=(1, *range(3, rows.ndim))).reshape(-1)
    first = jnp.moveaxis(terms, output, range(len(output)))
    return first.sum(axis=tuple(range(len(output), terms.ndim)))


def _tuple(axes: int | tuple[int, ...]) -> tuple[int, ...]:
    return (axes,) if isinstance(axes, int) else axes


def _fits(
    vector: Array | None,
    shape: tuple[int, ...],
    what: str,
    operation: str,
    kernel: Array,
    layout: Layout,
) -> None:
    """Raise if a vector is not of the shape of the outputs or inputs."""
    if vector is not None and jnp.shape(vector) != shape:
        raise InputError(
            f"{operation}: {what} must have shape {shape} for a kernel {kernel.shape} with "
            f"{layout}, got {jnp.shape(vector)}; check the layout"
        )
