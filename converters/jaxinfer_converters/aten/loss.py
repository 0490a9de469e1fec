"""Loss functions that decompositions keep, or that are clearer whole.

Formulas: https://docs.pytorch.org/docs/stable/nn.html#loss-functions. ``reduction`` is torch's
code: 0 none, 1 mean, 2 sum. Half types are computed in float32 and rounded once. The losses
that torch builds of these and of elementwise operators are left to its decompositions.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxinfer_converters.aten._common import Array, acc_dtype, cast, category, promote, rule
from jaxinfer_converters.aten.matmul import linear

NONE, MEAN, SUM = 0, 1, 2


def _reduce(loss: Array, reduction: int) -> Array:
    return loss if reduction == NONE else (jnp.mean if reduction == MEAN else jnp.sum)(loss)


def _wide(*xs: Array) -> list[Array]:
    return [cast(x, acc_dtype(x.dtype)) for x in promote(*xs)]


@rule("aten.mse_loss.default")
def mse_loss(x: Array, target: Array, reduction: int = MEAN) -> Array:
    """(x - target)²."""
    a, b = _wide(x, target)
    return cast(_reduce(jnp.square(a - b), reduction), promote(x, target)[0].dtype)


@rule("aten.l1_loss.default")
def l1_loss(x: Array, target: Array, reduction: int = MEAN) -> Array:
    """|x - target|."""
    a, b = _wide(x, target)
    return cast(_reduce(jnp.abs(a - b), reduction), jnp.abs(promote(x, target)[0]).dtype)


@rule("aten.huber_loss.default")
def huber_loss(x: Array, target: Array, reduction: int = MEAN, delta: float = 1.0) -> Array:
    """d²/2 where d = |x - target| < delta, else delta (d - delta/2)."""
    a, b = _wide(x, target)
    d = jnp.abs(a - b)
    loss = jnp.where(d < delta, 0.5 * d * d, delta * (d - 0.5 * delta))
    return cast(_reduce(loss, reduction), promote(x, target)[0].dtype)


@rule("aten.smooth_l1_loss.default")
def smooth_l1_loss(x: Array, target: Array, reduction: int = MEAN, beta: float = 1.0) -> Array:
    """d²/(2 beta) where d = |x - target| < beta, else d - beta/2."""
    a, b = _wide(x, target)
    d = jnp.abs(a - b)
    loss = jnp.where(d < beta, 0.5 * d * d / beta, d - 0.5 * beta) if beta else d
    return cast(_reduce(loss, reduction), promote(x, target)[0].dtype)


@rule("aten.kl_div.default")
def kl_div(x: Array, target: Array, reduction: int = MEAN, *, log_target: bool = False) -> Array:
    """Target (log target - x); log_target: target is a logarithm already."""
    a, b = _wide(x, target)
    if log_target:
        loss = jnp.exp(b) * (b - a)
    else:
        loss = jax.scipy.special.xlogy(b, b) - b * a
    return cast(_reduce(loss, reduction), promote(x, target)[0].dtype)


@rule("aten.binary_cross_entropy.default")
def binary_cross_entropy(
    x: Array, target: Array, weight: Array | None = None, reduction: int = MEAN
) -> Array:
    """-weight (t log x + (1 - t) log(1 - x)), the logarithms at least -100."""
    p, t = _wide(x, target)
    loss = (t - 1) * jnp.maximum(jnp.log1p(-p), -100) - t * jnp.maximum(jnp.log(p), -100)
    if weight is not None:
        loss = loss * cast(weight, loss.dtype)
    return cast(_reduce(loss, reduction), x.dtype)


@rule("aten.binary_cross_entropy_with_logits.default")
def binary_cross_entropy_with_logits(
    x: Array,
    target: Array,
    weight: Array | None = None,
    pos_weight: Array | None = None,
    reduction: int = MEAN,
) -> Array:
    """weight ((1 - t) x - (1 + (pos_weight - 1) t) log σ(x))."""
    z, t = _wide(x, target)
    log_sigmoid = jax.nn.log_sigmoid(z)
    scale = 1 if pos_weight is None else 1 + (cast(pos_weight, z.dtype) - 1) * t
    loss = (1 - t) * z - scale * log_sigmoid
    if weight is not None:
        loss = loss * cast(weight, loss.dtype)
    return cast(_reduce(loss, reduction), promote(x, target)[0].dtype)


def _classes(x: Array) -> int:
    """The axis of classes: 1, or 0 of a single sample."""
    return 1 if x.ndim > 1 else 0


def _pick(
    x: Array, target: Array, weight: Array | None, ignore_index: int
) -> tuple[Array, Array, Array]:
    """(x at the target class, the weight there, whether it counts), for each target."""
    axis = _classes(x)
    counts = target != ignore_index
    index = jnp.where(counts, target, 0)
    if x.shape[axis] == 0:
        return jnp.zeros(target.shape, x.dtype), jnp.zeros(target.shape, x.dtype), counts
    picked = jnp.squeeze(jnp.take_along_axis(x, jnp.expand_dims(index, axis), axis), axis)
    scale = jnp.ones((), x.dtype) if weight is None else cast(weight, x.dtype)[index]
    return picked, jnp.where(counts, scale, 0), counts


def _nll(
    x: Array, target: Array, weight: Array | None, reduction: int, ignore_index: int
) -> tuple[Array, Array]:
    """(reduced -weight[t] x[t], Σ weight[t]), in the accumulation dtype."""
    picked, scale, counts = _pick(cast(x, acc_dtype(x.dtype)), target, weight, ignore_index)
    loss = jnp.where(counts, -picked * scale, 0)
    if reduction == NONE:
        return loss, jnp.zeros((), loss.dtype)
    total = jnp.sum(scale)
    return jnp.sum(loss) / total if reduction == MEAN else jnp.sum(loss), total


@rule("aten.nll_loss.default", "aten.nll_loss_nd.default", "aten.nll_loss2d.default")
def nll_loss(
    x: Array,
    target: Array,
    weight: Array | None = None,
    reduction: int = MEAN,
    ignore_index: int = -100,
) -> Array:
    """-weight[t] x[t] over the targets that are not ignored; mean divides by Σ weight[t]."""
    return cast(_nll(x, target, weight, reduction, ignore_index)[0], x.dtype)


@rule("aten.nll_loss_forward.default", "aten.nll_loss2d_forward.default")
def nll_loss_forward(
    x: Array, target: Array, weight: Array | None, reduction: int, ignore_index: int
) -> tuple[Array, Array]:
    """(nll_loss, Σ weight[t], which is 0 without reduction)."""
    loss, total = _nll(x, target, weight, reduction, ignore_index)
    return cast(loss, x.dtype), cast(total, x.dtype)


def _per_class(weight: Array, x: Array) -> Array:
    """The weight of each class along the class axis of x."""
    return cast(weight, x.dtype).reshape(-1, *(1,) * (x.ndim - _classes(x) - 1))


@rule("aten.cross_entropy_loss.default")
def cross_entropy_loss(
    x: Array,
    target: Array,
    weight: Array | None = None,
    reduction: int = MEAN,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
) -> Array:
    """nll_loss of log_softmax x; target holds classes, or (as floats) their probabilities."""
    axis, classes = _classes(x), x.shape[_classes(x)]
    logs = jax.nn.log_softmax(cast(x, acc_dtype(x.dtype)), axis)
    weighted = logs if weight is None else logs * _per_class(weight, logs)
    if category(target.dtype) == 2:
        share = cast(target, logs.dtype) * (1 - label_smoothing) + label_smoothing / classes
        loss = -jnp.sum(weighted * share, axis)
        total = jnp.asarray(loss.size, loss.dtype)
    else:
        loss, _ = _nll(logs, target, weight, NONE, ignore_index)
        _, scale, counts = _pick(logs, target, weight, ignore_index)
        total = jnp.sum(scale)
        if label_smoothing > 0:
            spread = jnp.where(counts, -jnp.sum(weighted, axis), 0)
            loss = (1 - label_smoothing) * loss + label_smoothing / classes * spread
    if reduction == NONE:
        return cast(loss, x.dtype)
    return cast(jnp.sum(loss) / total if reduction == MEAN else jnp.sum(loss), x.dtype)


@rule("torch_nn._linear_cross_entropy_batch_chunked_no_reduction.default")
def linear_cross_entropy(
    x: Array,
    linear_weight: Array,
    target: Array,
    bias: Array | None,
    weight: Array | None,
    ignore_index: int,
    batch_chunk_size: int,
    acc_policy: str,
    acc_dtype: Any,
    *,
    reduction: int = NONE,
    label_smoothing: float = 0.0,
) -> Array:
    """cross_entropy_loss of x linear_weightᵀ + bias; of all rows at once, not chunk by chunk."""
    del batch_chunk_size, acc_policy
    logits = linear(*(None if a is None else cast(a, acc_dtype) for a in (x, linear_weight, bias)))
    loss = cross_entropy_loss(logits, target, weight, reduction, ignore_index, label_smoothing)
    return cast(loss, x.dtype)


@rule("torch_nn._linear_cross_entropy_batch_chunked.default")
def linear_cross_entropy_reduced(
    x: Array,
    linear_weight: Array,
    target: Array,
    bias: Array | None,
    weight: Array | None,
    reduction: str,
    ignore_index: int,
    label_smoothing: float,
    batch_chunk_size: int,
    acc_policy: str,
    acc_dtype: Any,
    allow_retain_graph: bool,
    *wanted: bool,
) -> tuple[Array, Array, Array, Array]:
    """The mean or sum of linear_cross_entropy, and its gradients by x, weight and bias.

    ``wanted`` says which gradients; those that are not are empty.
    """
    del allow_retain_graph

    def loss_of(*operands: Array | None) -> Array:
        return linear_cross_entropy(
            operands[0], operands[1], target, operands[2], weight,
            ignore_index, batch_chunk_size, acc_policy, acc_dtype,
            reduction={"mean": MEAN, "sum": SUM}[reduction], label_smoothing=label_smoothing,
        )  # fmt: skip

    operands = (x, linear_weight, bias)
    places = tuple(place for place, want in enumerate(wanted) if want)
    found = jax.grad(loss_of, places)(*operands) if places else ()
    by_place = dict(zip(places, found, strict=True))
    empty = ((0, 0), (0, 0), (0,))
    grads = [by_place.get(i, jnp.zeros(empty[i], x.dtype)).astype(x.dtype) for i in range(3)]
    return loss_of(*operands), grads[0], grads[1], grads[2]
