"""Pruning masks: scores to booleans of the same shape, True where a weight is kept.

The sparsity is exact: of ``size`` elements (blocks, channels) ``round(sparsity * size)`` are
pruned, halves rounded to even. Among equal scores the earlier position (row-major) is kept, so
a mask depends on the scores alone.

Sparsity may be a traced scalar (of ``jaxinfer.numerics.schedules``); values are checked only
where they are known: a NaN score under ``jit`` counts as the lowest.

Sources: magnitude, Han, Pool, Tran, Dally, "Learning both weights and connections", 2015,
https://arxiv.org/abs/1506.02626; N:M, Mishra et al., "Accelerating sparse deep neural networks",
2021, https://arxiv.org/abs/2104.08378; channels by their L1 norm, Li, Kadav, Durdanovic, Samet,
Graf, "Pruning filters for efficient ConvNets", 2017, https://arxiv.org/abs/1608.08710; ERK, Evci,
Gale, Menick, Castro, Elsen, "Rigging the lottery", 2020, https://arxiv.org/abs/1911.11134.

Not done here: which parameters are pruned and along which axis they contract (the transform),
scores that need data or gradients (the user's), making the computation faster.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxinfer.core.array_types import ARRAY_TYPES, ArrayType
from jaxinfer.core.errors import InputError, listing
from jaxinfer.numerics import _checks, _select

Array = jax.Array

DISTRIBUTIONS = ("uniform", "erk")


def magnitude(w: Array) -> Array:
    """Return the scores ``|w|``, in the real floating dtype of ``w`` (float32 for integers)."""
    w = jnp.asarray(w)
    return jnp.abs(w if jnp.issubdtype(w.dtype, jnp.inexact) else w.astype(jnp.float32))


def random(key: Array, shape: Sequence[int]) -> Array:
    """Return scores f32[shape], uniform in [0, 1)."""
    return jax.random.uniform(key, tuple(shape), jnp.float32)


def unstructured(scores: Array, sparsity: float | Array, *, path: str = "scores") -> Array:
    """Keep the elements with the largest scores.

    Args:
      scores: floating, any shape, not empty.
      sparsity: fraction in [0, 1) to prune; a number, or a JAX scalar (also traced).
      path: names the leaf in errors.

    Returns:
      bool[scores.shape].

    Raises:
      InputError: sparsity outside [0, 1), no elements, or NaN among known scores.
      InputTypeError: scores that are not floating.

    Cost: 33 to 64 passes over the scores, no sort (``jaxinfer.numerics._select``).

    >>> unstructured(jnp.array([1.0, 3.0, 2.0, 2.0]), 0.5).tolist()
    [False, True, True, False]
    """
    scores = _checks.scores(scores, path)
    return _keep(scores, sparsity, path)


def nm(scores: Array, n: int, m: int, axis: int, *, path: str = "scores") -> Array:
    """Keep the ``n`` largest of each ``m`` successive elements along ``axis``.

    Where ``m`` does not divide the axis, the ``rest`` elements of the last group keep
    ``ceil(n rest / m)``: never a smaller fraction than the others.

    Args:
      scores: floating[..., k, ...], not empty.
      n, m: ``1 <= n <= m``, for example 2 and 4.
      axis: the axis that the product sums over; may be negative.
      path: names the leaf in errors.

    Returns:
      bool[scores.shape].

    Raises:
      InputError: n or m out of range, no such axis, no elements, or NaN among known scores.
      InputTypeError: scores that are not floating.

    Cost: each element is compared with the m of its group.

    >>> nm(jnp.array([4.0, 1, 2, 3, 0, 0, 5]), 2, 4, 0).astype(int).tolist()
    [1, 0, 0, 1, 1, 0, 1]
    """
    scores = _checks.scores(scores, path)
    _checks.nm(n, m, path)
    axis = _checks.axis(scores.shape, axis, path)
    return _nm(scores, n, m, axis)


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def _nm(scores: Array, n: int, m: int, axis: int) -> Array:
    x = jnp.moveaxis(lax.stop_gradient(scores), axis, -1)
    size = x.shape[-1]
    groups = -(-size // m)
    x = jnp.where(jnp.isnan(x), -jnp.inf, x)
    x = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, groups * m - size)], constant_values=-jnp.inf)
    x = x.reshape(*x.shape[:-1], groups, m)
    place = jnp.arange(m)

    def ahead(j: Array, rank: Array) -> Array:
        """Count element j for those of its group that it precedes."""
        other = lax.dynamic_index_in_dim(x, j, axis=-1)
        return rank + ((other > x) | ((other == x) & (j < place)))

    rank = lax.fori_loop(0, m, ahead, jnp.zeros(x.shape, jnp.int32), unroll=min(m, 16))
    keep = np.full((groups, 1), n)
    keep[-1] = -(-n * (size - (groups - 1) * m) // m)
    mask = (rank < jnp.asarray(keep)).reshape(*x.shape[:-2], groups * m)
    return jnp.moveaxis(lax.slice_in_dim(mask, 0, size, axis=-1), -1, axis)


def block(
    scores: Array, sparsity: float | Array, shape: Sequence[int], *, path: str = "scores"
) -> Array:
    """Keep the blocks whose scores have the largest sums.

    A block's score is the sum of its elements' (in float32), that is ``sum |w|`` for
    ``magnitude``. Where ``shape`` does not divide, the blocks at the far edges are smaller,
    and sum fewer terms. ``round(sparsity * blocks)`` blocks are pruned.

    Args:
      scores: floating, not empty.
      sparsity: fraction of the blocks in [0, 1) to prune; a number or a JAX scalar.
      shape: sizes of a block along the last axes; along those before it is 1.
      path: names the leaf in errors.

    Returns:
      bool[scores.shape].

    Raises:
      InputError: as for ``unstructured``, a block of more axes than the scores or with a size
        below 1, or sums that are NaN (scores of +inf and -inf in one block).
      InputTypeError: scores that are not floating.

    >>> block(jnp.array([[1.0, 1, 5], [1, 1, 0], [2, 2, 2]]), 0.5, (2, 2)).astype(int).tolist()
    [[1, 1, 1], [1, 1, 1], [0, 0, 0]]
    """
    scores = _checks.scores(scores, path)
    sizes = (1,) * (scores.ndim - len(shape)) + tuple(shape)
    if len(sizes) != scores.ndim or any(size < 1 for size in sizes):
        raise InputError(
            f"block mask of {path}: a block has at most the {scores.ndim} axes of the scores "
            f"{scores.shape} and sizes of at least 1, got {tuple(shape)}"
        )
    grid = tuple(-(-full // size) for full, size in zip(scores.shape, sizes, strict=True))
    extra = [(0, g * b - s) for g, b, s in zip(grid, sizes, scores.shape, strict=True)]
    split = [size for pair in zip(grid, sizes, strict=True) for size in pair]
    x = (jnp.pad(scores, extra) if extra else scores).reshape(split)
    sums = jnp.sum(x, axis=tuple(range(1, 2 * scores.ndim, 2)), dtype=_sum_dtype(scores))
    kept = _keep(_checks.scores(sums, f"{path}, summed over blocks"), sparsity, path)
    wide = jnp.expand_dims(kept, tuple(range(1, 2 * scores.ndim, 2)))
    full = jnp.broadcast_to(wide, split).reshape([g * b for g, b in zip(grid, sizes, strict=True)])
    return lax.slice(full, [0] * scores.ndim, scores.shape)


def channel(
    scores: Array,
    sparsity: float | Array,
    axis: int | Sequence[int],
    *,
    path: str = "scores",
) -> Array:
    """Keep the output channels whose scores have the largest sums (the L1 norm of ``|w|``).

    Args:
      scores: floating, not empty.
      sparsity: fraction of the channels in [0, 1) to prune; a number or a JAX scalar.
      axis: the output axis, or axes (of [d, n, h] for example (1, 2)); may be negative.
      path: names the leaf in errors.

    Returns:
      bool[scores.shape], constant along all other axes.

    Raises:
      InputError: as for ``block``, or no such axis.
      InputTypeError: scores that are not floating.

    >>> channel(jnp.array([[1.0, 5, 2], [4, 1, 2]]), 0.34, axis=1).astype(int).tolist()
    [[1, 1, 0], [1, 1, 0]]
    """
    scores = _checks.scores(scores, path)
    axes = {_checks.axis(scores.shape, a, path) for a in np.atleast_1d(axis).tolist()}
    rest = tuple(a for a in range(scores.ndim) if a not in axes)
    sums = jnp.sum(scores, axis=rest, keepdims=True, dtype=_sum_dtype(scores))
    kept = _keep(_checks.scores(sums, f"{path}, summed over channels"), sparsity, path)
    return jnp.broadcast_to(kept, scores.shape)


def global_masks(scores_by_path: Mapping[str, Array], sparsity: float | Array) -> dict[str, Array]:
    """Keep the elements with the largest scores of all leaves together: one threshold.

    Exactly ``round(sparsity * total)`` elements are pruned. Ties are kept from the first path
    (in sorted order) and the first position on.

    Args:
      scores_by_path: floating arrays by leaf path, none empty; comparable with each other
        (normalize them where layers differ in scale).
      sparsity: fraction of all elements in [0, 1) to prune; a number or a JAX scalar.

    Returns:
      bool masks by path, in the order given.

    Raises:
      InputError: sparsity outside [0, 1), no leaves, empty leaves, NaN scores: all listed.
      InputTypeError: scores that are not floating.

    Cost: 33 passes over all scores, and one for each bit of the size of a leaf of whose ties
    only some are kept. The leaves are not joined: memory beyond scores and masks is at most two
    bytes an element, six on CPUs.
    """
    if not scores_by_path:
        raise InputError("global masks: required scores of at least one leaf, got none")
    leaves, problems = {}, []
    for path in sorted(scores_by_path):
        leaves[path] = _checks.floating(scores_by_path[path], path)
        problem = _checks.problem(leaves[path], path)
        problems += [problem] if problem else []
    if problems:
        raise InputError(listing("global masks:", problems))
    _checks.sparsity(sparsity, "all leaves")
    keep = _select.kept(sum(x.size for x in leaves.values()), sparsity)
    masks = dict(zip(leaves, _select.largest(tuple(leaves.values()), keep), strict=True))
    return {path: masks[path] for path in scores_by_path}


def allocate(
    shapes: Mapping[str, Sequence[int]], sparsity: float, distribution: str = "uniform"
) -> dict[str, float]:
    """Divide a total sparsity among leaves.

    ``uniform``: the same for each leaf. ``erk`` (Erdős–Rényi kernel): the density of a leaf is
    ``eps * sum(shape) / prod(shape)``, at most 1; eps such that the total is met. Leaves for
    which that exceeds 1 stay dense and the rest shares what is left, until none does. The
    counts are then rounded (largest remainders first), so that the masks of all leaves
    together prune exactly ``round(sparsity * total)`` elements.

    Args:
      shapes: shapes by leaf path.
      sparsity: fraction of all elements to prune, a number in [0, 1).
      distribution: ``"uniform"`` or ``"erk"``.

    Returns:
      sparsity by path, in the order given, each in [0, 1).

    Raises:
      InputError: sparsity outside [0, 1), no or empty leaves, unknown distribution.

    >>> allocate({"a": (4, 4), "b": (100, 100)}, 0.9, "erk")
    {'a': 0.0, 'b': 0.9014}
    """
    _checks.sparsity(sparsity, "all leaves")
    if distribution not in DISTRIBUTIONS:
        near = difflib.get_close_matches(str(distribution), DISTRIBUTIONS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        known = ", ".join(DISTRIBUTIONS)
        raise InputError(f"distribution of sparsity: one of {known}, got {distribution!r}{hint}")
    sizes = {path: math.prod(shape) for path, shape in shapes.items()}
    empty = [_checks.empty(path, shapes[path]) for path, size in sizes.items() if not size]
    if empty or not shapes:
        raise InputError(listing("allocating sparsity:", empty or ["required a leaf, got none"]))
    if distribution == "uniform":
        return dict.fromkeys(shapes, float(sparsity))
    return _erk(shapes, sizes, float(sparsity))


def _erk(
    shapes: Mapping[str, Sequence[int]], sizes: Mapping[str, int], sparsity: float
) -> dict[str, float]:
    total = sum(sizes.values())
    target = total - round(sparsity * total)
    raw = {path: max(sum(shape), 1) / sizes[path] for path, shape in shapes.items()}
    dense: set[str] = set()
    while True:
        rest = [path for path in sizes if path not in dense]
        budget = target - sum(sizes[path] for path in dense)
        eps = budget / sum(raw[path] * sizes[path] for path in rest) if rest else 0.0
        over = {path for path in rest if eps * raw[path] > 1}
        if not over:
            break
        dense |= over
    share = {path: eps * raw[path] * sizes[path] for path in rest} | {p: sizes[p] for p in dense}
    kept = {path: min(int(share[path]), sizes[path]) for path in sizes}
    left = target - sum(kept.values())
    for path in sorted(sizes, key=lambda path: (kept[path] - share[path], path)):
        more = min(left, 1, sizes[path] - kept[path])
        kept[path] += more
        left -= more
    # A leaf of which nothing is kept: the largest number below 1, which rounds to all of it.
    most = math.nextafter(1.0, 0.0)
    return {path: min((size - kept[path]) / size, most) for path, size in sizes.items()}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Masked(ArrayType):
    """A weight with a mask: an array type, of the weight's shape and dtype.

    Both children may have leading axes more (stacked layers under ``scan`` and ``vmap``).
    ``Masked.create`` checks; the constructor does not, since JAX builds trees of other things
    than arrays.

    Attributes:
      weight: any dtype[shape]; what it holds where the mask is False does not matter.
      mask: bool[shape], True where the weight is kept.
    """

    kind: ClassVar[str] = "Masked"
    weight: Any
    mask: Any

    @classmethod
    def create(cls, weight: Array, mask: Array, *, path: str = "weight") -> Masked:
        """Return a masked weight.

        Raises:
          InputError: the mask has another shape than the weight.
          InputTypeError: the mask is not boolean.
        """
        return cls(*_checks.mask(weight, mask, path))

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the weight."""
        return self.weight.shape

    @property
    def dtype(self) -> Any:
        """The dtype of the weight."""
        return self.weight.dtype

    def validate(self, path: str) -> None:
        """Raise if the mask does not fit the weight.

        Raises:
          InputError, InputTypeError: it has another shape, or is not boolean.
        """
        _checks.mask(self.weight, self.mask, path)

    def materialize(self) -> Array:
        """Return ``where(mask, weight, 0)``; gradients reach the kept elements only."""
        return jnp.where(self.mask, self.weight, jnp.zeros((), self.dtype))

    def both(self, layout: Callable[[Array], Array]) -> Masked:
        """Apply a function that only moves elements to the weight and to the mask."""
        return Masked(layout(self.weight), layout(self.mask))

    def transpose(self, *axes: int) -> Masked:
        """Permute the axes; reverse them if none are given."""
        return self.both(lambda x: jnp.transpose(x, axes or None))

    def reshape(self, *shape: int) -> Masked:
        """Give weight and mask another shape (one size may be -1)."""
        return self.both(lambda x: jnp.reshape(x, shape))

    def slice(
        self, start: Sequence[int], limit: Sequence[int], strides: Sequence[int] | None = None
    ) -> Masked:
        """Return a slice, as ``jax.lax.slice`` does."""
        return self.both(lambda x: lax.slice(x, start, limit, strides))

    @staticmethod
    def concatenate(parts: Sequence[Masked | Array], axis: int = 0) -> Masked:
        """Join along an axis; of a part that is a plain array everything is kept."""
        all_of = [p if isinstance(p, Masked) else Masked(p, jnp.ones(p.shape, bool)) for p in parts]
        return Masked(
            jnp.concatenate([p.weight for p in all_of], axis),
            jnp.concatenate([p.mask for p in all_of], axis),
        )


ARRAY_TYPES.register("Masked")(Masked)


def _keep(scores: Array, sparsity: float | Array, path: str) -> Array:
    _checks.sparsity(sparsity, path)
    return _select.largest((scores,), _select.kept(scores.size, sparsity))[0]


def _sum_dtype(scores: Array) -> Any:
    return jnp.promote_types(scores.dtype, jnp.float32)
