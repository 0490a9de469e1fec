"""prune: weights that are zero by a mask, in a pattern, to an exact sparsity.

    w -> Masked(w, mask),  where(mask, w, 0) wherever the weight is used

A score for each element (its magnitude, a random number, or the user's) decides which are kept:
the largest of the parameter, of all parameters together (``scope="global"``), of each m along
the axis that the product sums over (``"2:4"``), of the blocks, or of the output channels.
Exactly ``round(sparsity * size)`` elements (blocks, channels) are pruned; of equal scores the
earlier are kept. The weights themselves stay as they are under the mask until ``finalize``, so
that a schedule can choose again.

What is pruned: floating parameters that a matrix product or a convolution multiplies by. One
that is also used in some other way is *blocked*, an embedding or a bias is *unfit*; both
are pruned if a rule says ``anywhere=True`` (any use of a masked weight is correct, it is only
that pruning it is rarely meant).

Sources: Han, Pool, Tran, Dally, "Learning both weights and connections", 2015,
https://arxiv.org/abs/1506.02626; Mishra et al., "Accelerating sparse deep neural networks",
2021, https://arxiv.org/abs/2104.08378; Evci et al., "Rigging the lottery", 2020 (ERK),
https://arxiv.org/abs/1911.11134; more in ``jaxinfer.numerics.masks``.

What it does not do: make the model faster (a masked product costs what a dense one does, and
smaller channels are not cut out); scores that need data or gradients; restore the accuracy
(``jaxinfer.recover``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxinfer.core._compat import x64_scope
from jaxinfer.core.array_types import nbytes
from jaxinfer.core.audit import Audit, Entry, merged, with_audit
from jaxinfer.core.errors import InputError, listing
from jaxinfer.core.leaves import leaves, with_leaves
from jaxinfer.core.model import Model
from jaxinfer.core.program import x64_of
from jaxinfer.core.selectors import Rule
from jaxinfer.core.transform import TRANSFORMS, Transform, staged
from jaxinfer.numerics.masks import Masked
from jaxinfer.numerics.sparse import compress as compressed
from jaxinfer.transforms import _prune_masks, _prune_plan
from jaxinfer.transforms._prune_plan import Choice

Array = jax.Array


@TRANSFORMS.register("prune")
def prune(
    method: str = "magnitude",
    *,
    sparsity: float | None = None,
    pattern: str = "unstructured",
    scope: str = "local",
    distribution: str = "uniform",
    rules: Sequence[Rule] = (),
    scores: Any = None,
    key: Any = None,
    strict: bool = False,
) -> Transform:
    """Return the transform that masks weights.

    Args:
      method: what is kept: ``"magnitude"`` (the largest ``|w|``), ``"random"`` (needs ``key``;
        the same key on the same paths gives the same masks), or ``"scores"`` (the largest of
        yours).
      sparsity: fraction to prune, in [0, 1); 0.5 by default. That of ``"n:m"`` is ``1 - n / m``.
      pattern: ``"unstructured"``; ``"n:m"``: n of each m along the axis that the products sum
        over (of several the longest that m divides, else the longest; the last among equals);
        ``"block:AxB"``: blocks along the last axes; ``"channel"``: the output channels, which
        lie along the axes that no product sums over and no gather or group indexes.
      scope: ``"local"``: each parameter has the sparsity; ``"global"``: all that were asked the
        same have one threshold.
      distribution: how a sparsity is divided among the parameters that were asked the same:
        ``"uniform"``, or ``"erk"`` (layers with few inputs and outputs keep more).
      rules: of ``jaxinfer.core.selectors``; the first that matches a path decides it. Settings:
        ``method``, ``sparsity``, ``pattern``, ``axis`` (the parameter's own, for n:m and
        channels), ``anywhere``.
      scores: for ``"scores"``: floats of the parameters' shapes, a pytree like ``params`` or a
        dict by path; only those that are pruned are needed.
      key: for ``"random"``: a JAX key, or a number to make one from.
      strict: raise if a parameter is blocked.

    Returns:
      A Transform. ``init(model)`` computes the masks, ``{path: bool[shape]}``; ``update(model,
      masks)`` puts ``Masked`` leaves. The stage is ``prune``.

    Raises:
      InputError: unknown words, sparsities out of range, contradictions (at once, here); rules
        that decide nothing, NaN weights (which), scores that do not fit (where it is applied).

    Cost: one abstract trace, and 33 to 64 passes over each weight.

    >>> import jax.numpy as jnp, jaxinfer as ji
    >>> w = jnp.array([[3.0, 1.0], [-2.0, 5.0], [1.0, 0.5], [0.0, 4.0]])
    >>> model = ji.from_function(lambda p, x: x @ p["w"], {"w": w}, (jnp.ones((1, 4)),))
    >>> small = prune(pattern="2:4")(model)
    >>> small.params["w"].materialize().tolist()
    [[3.0, 0.0], [-2.0, 5.0], [0.0, 0.0], [0.0, 4.0]]
    >>> print(small.audit())
    prune: 1 of 1 parameters changed; 32 B -> 40 B
      changed  w  2:4 along axis 0, 50.00 % zero  32 B -> 40 B
    """
    asked = _prune_plan.options(method, sparsity, pattern, scope, distribution, rules)
    words = {method, *(each.settings.get("method", method) for each in rules)}
    if "random" in words and key is None:
        raise InputError("prune: method 'random' requires key=, a number or jax.random.key(0)")
    if isinstance(key, int):
        key = jax.random.key(key)

    def init(model: Model, *data: Any) -> dict[str, Array]:
        staged(model, "prune")
        choices, _ = _prune_plan.plan(model, asked)
        return masks_for(model, choices)

    def masks_for(model: Model, choices: Mapping[str, Choice]) -> dict[str, Array]:
        if not choices:
            return {}
        named = leaves(model.params)
        with x64_scope(x64_of(model.program)):
            weights = {path: jnp.asarray(named[path]) for path in choices}
            shapes = {path: weight.shape for path, weight in weights.items()}
            given = _prune_masks.user_scores(scores, choices, shapes)
            _require_numbers(weights, given)
            found = {
                path: _prune_masks.scores_of(path, choice, weights[path], key, given)
                for path, choice in choices.items()
            }
            each = _prune_masks.divided(choices, shapes, asked.distribution)
            return _prune_masks.masks_of(choices, found, each, asked.scope)

    def update(model: Model, state: Mapping[str, Array]) -> Model:
        return finished(model, state, *_prune_plan.plan(model, asked))

    def finished(
        model: Model, state: Mapping[str, Array], choices: Mapping[str, Choice], rest: list[Entry]
    ) -> Model:
        named = leaves(model.params)
        if set(state) != set(choices):
            odd = ", ".join(sorted(set(state) ^ set(choices)))
            raise InputError(
                f"prune: the masks are for other parameters than this model has to prune: {odd}"
            )
        with x64_scope(x64_of(model.program)):
            made = {path: Masked.create(named[path], state[path], path=path) for path in choices}
        entries = [
            Entry(path, "changed", _why(choice, made[path].mask), "", nbytes(named[path]),
                  nbytes(made[path]))
            for path, choice in choices.items()
        ]  # fmt: skip
        audit = Audit("prune", merged([*entries, *rest], list(named)))
        if strict:
            audit.require()
        shapes = {path: weight.shape for path, weight in made.items()}
        each = _prune_masks.divided(choices, shapes, asked.distribution)
        base = _prune_plan.DEFAULT if sparsity is None else sparsity
        record = _record(choices, each, base, asked.scope, key)
        marked = staged(model, "prune")
        provenance = {**with_audit(marked.provenance, audit), "prune": record}
        return marked.replace(params=with_leaves(model.params, made), provenance=provenance)

    def apply(model: Model, *data: Any) -> Model:
        """Plan once, where ``init`` and ``update`` have to each."""
        staged(model, "prune")
        choices, rest = _prune_plan.plan(model, asked)
        return finished(model, masks_for(model, choices), choices, rest)

    return Transform(init, update, "prune", apply)


def _require_numbers(weights: Mapping[str, Array], scores: Mapping[str, Array]) -> None:
    problems = []
    for what, arrays in (("weights", weights), ("scores", scores)):
        for path, array in arrays.items():
            if not jnp.issubdtype(array.dtype, jnp.floating):
                problems.append(f"{path}: {what} of {array.dtype}, required floats")
            elif count := int(jnp.isnan(array).sum()):
                problems.append(f"{path}: {count} of {array.size} {what} are NaN")
    if problems:
        advice = "Repair the checkpoint, or leave these parameters out by a rule (ignore=True)."
        raise InputError(listing("prune: values that cannot be ranked:", problems, advice))


def _why(choice: Choice, mask: Array) -> str:
    along = {"nm": " along axis ", "channel": " of axes "}
    where = along.get(_prune_plan.pattern_of(choice.pattern).kind, "")
    if where:
        where += ", ".join(map(str, choice.axes))
    return f"{choice.pattern}{where}, {zero_text(mask)}"


def zero_text(mask: Array) -> str:
    """Return the sparsity of a mask in words: it is counted, not what was asked.

    >>> zero_text(jnp.array([True, False, True]))
    '33.33 % zero'
    """
    return f"{100 * (mask.size - int(mask.sum())) / mask.size:.2f} % zero"


def _record(
    choices: Mapping[str, Choice], each: Mapping[str, float], base: float, scope: str, key: Any
) -> dict[str, Any]:
    """Return what it takes to choose masks again, as plain data."""
    data = None
    if key is not None:
        typed = key if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else None
        wrapped = jax.random.wrap_key_data(key) if typed is None else typed
        numbers = jax.random.key_data(wrapped).ravel().tolist()
        data = [str(jax.random.key_impl(wrapped)), numbers]
    table = {
        path: [c.method, c.pattern, c.sparsity, list(c.axes), each[path]]
        for path, c in choices.items()
    }
    return {"sparsity": base, "scope": scope, "key": data, "leaves": table}


def masks(model: Model) -> dict[str, Array]:
    """Return the masks of a pruned model: ``{path: bool[shape]}``, True where a weight is kept.

    >>> import jax.numpy as jnp, jaxinfer as ji
    >>> model = ji.from_function(jnp.dot, jnp.arange(4.0), (jnp.ones(4),))
    >>> masks(prune(sparsity=0.25)(model))["value"].tolist()
    [False, True, True, True]
    """
    return {
        path: leaf.mask for path, leaf in leaves(model.params).items() if isinstance(leaf, Masked)
    }


def with_sparsity(model: Model, sparsity: float) -> Model:
    """Return a pruned model with its masks chosen again, at another sparsity.

    Where it is above that of the masks, what is pruned stays pruned; where it is below, masks
    are chosen from all weights, which come back with the values that they had. A parameter to
    which ``prune`` gave another share (by a rule, or ERK) keeps the same proportion to
    ``sparsity``; those of n:m keep their masks.

    Args:
      model: of ``prune``, not finalized.
      sparsity: in [0, 1), in the place of that which ``prune`` was asked.

    Raises:
      InputError: not a model of ``prune``, its parameters are n:m alone, or the scores were the
        user's (they are not kept).

    >>> import jax.numpy as jnp, jaxinfer as ji
    >>> model = ji.from_function(jnp.dot, jnp.arange(4.0), (jnp.ones(4),))
    >>> masks(with_sparsity(prune(sparsity=0.25)(model), 0.5))["value"].tolist()
    [False, False, True, True]
    """
    named = {path: leaf for path, leaf in leaves(model.params).items() if isinstance(leaf, Masked)}
    choose = remasking(model)
    if isinstance(sparsity, bool) or not 0 <= sparsity < 1:
        raise InputError(f"with_sparsity: required a sparsity in [0, 1), got {sparsity}")
    with x64_scope(x64_of(model.program)):
        weights = {path: leaf.weight for path, leaf in named.items()}
        held = {path: leaf.mask for path, leaf in named.items()}
        zeros = sum(mask.size - int(mask.sum()) for mask in held.values())
        if zeros > sparsity * sum(mask.size for mask in held.values()):
            held = {path: jnp.ones_like(mask) for path, mask in held.items()}
        chosen = choose(weights, held, sparsity)
    made = {path: Masked(named[path].weight, mask) for path, mask in chosen.items()}
    every = leaves(model.params)
    entries = []
    for path, leaf in every.items():
        size = nbytes(leaf)
        if path in made:
            entries.append(Entry(path, "changed", zero_text(made[path].mask), "", size, size))
        else:
            why = "n:m: its sparsity is fixed" if path in named else "has no mask"
            entries.append(Entry(path, "unfit", why, "", size, size))
    provenance = with_audit(model.provenance, Audit("with_sparsity", tuple(entries)))
    return model.replace(params=with_leaves(model.params, made), provenance=provenance)


def remasking(model: Model) -> Any:
    """Return ``choose(weights, masks, sparsity) -> masks`` for a pruned model, as it was pruned.

    A pure function of dicts by path; ``sparsity`` may be traced. It returns masks for those of
    the paths given that are not n:m. What a mask prunes already is pruned first, so masks of a
    growing sparsity are nested.

    Raises:
      InputError: as for ``with_sparsity``.
    """
    record = model.provenance.get("prune")
    held = masks(model)
    if record is None or not held:
        raise InputError("choosing masks again: required a model of ji.prune, not finalized")
    table = {path: row for path, row in record["leaves"].items() if path in held}
    choices = {
        path: Choice(method, pattern, share, tuple(axes))
        for path, (method, pattern, share, axes, _) in table.items()
    }
    given = [path for path, choice in choices.items() if choice.method == "scores"]
    free = {p: c for p, c in choices.items() if _prune_plan.pattern_of(c.pattern).kind != "nm"}
    if given:
        raise InputError(
            f"choosing masks again: {', '.join(given)}: the scores were yours and are not kept; "
            "prune the dense model with new ones"
        )
    if not free:
        raise InputError(
            "choosing masks again: every masked parameter is n:m, whose sparsity is fixed; "
            "prune the dense model with another pattern"
        )
    key = None
    if record["key"] is not None:
        impl, numbers = record["key"]
        key = jax.random.wrap_key_data(jnp.asarray(numbers, jnp.uint32), impl=impl)
    base, scope = record["sparsity"], record["scope"]

    def choose(
        weights: Mapping[str, Array], now: Mapping[str, Array], sparsity: Any
    ) -> dict[str, Array]:
        mine = {path: choice for path, choice in free.items() if path in now}
        found, each = {}, {}
        for path, choice in mine.items():
            scores = _prune_masks.scores_of(path, choice, weights[path], key, {})
            found[path] = jnp.where(now[path], scores, -1)  # below all: scores are 0 or more
            own = choice.sparsity if scope == "global" else table[path][4]
            each[path] = _share(own, base, sparsity)
        return _prune_masks.masks_of(mine, found, each, scope)

    return choose


def _share(own: float, base: float, sparsity: Any) -> Any:
    """Return ``sparsity`` in the proportion of a parameter's own to the asked one."""
    if own == base:
        return sparsity
    if not base:
        return own
    if isinstance(sparsity, (int, float)):
        return min(sparsity * own / base, 1 - 2**-24)
    return jnp.minimum(sparsity * (own / base), 1 - 2**-24)


def finalize(model: Model, *, compress: bool = False) -> Model:
    """Return a pruned model with the zeros written into its weights, and no masks.

    Args:
      model: with ``Masked`` leaves.
      compress: store weights that were pruned n:m without their zeros (``Compressed``: for 2:4
        9/16 of the bytes of bfloat16, 17/32 of float32); other patterns become plain arrays,
        and the audit says which. A compressed weight is decompressed where it is used.

    Raises:
      InputError: the model has no masked parameter.

    Cost: one pass over each masked weight. Outputs are those of the masked model, bit for bit.

    >>> import jax.numpy as jnp, jaxinfer as ji
    >>> model = ji.from_function(jnp.dot, jnp.arange(1.0, 5.0), (jnp.ones(4),))
    >>> finalize(prune()(model)).params.tolist()
    [0.0, 0.0, 3.0, 4.0]
    >>> print(finalize(prune(pattern="2:4")(model), compress=True).audit()["finalize"])
    finalize: 1 of 1 parameters changed; 20 B -> 9 B
      changed  value  2:4 compressed along axis 0  20 B -> 9 B
    """
    if not masks(model):
        raise InputError("finalize: the model has no masked parameter; prune it first")
    record = model.provenance.get("prune", {}).get("leaves", {})
    changes, entries = {}, []
    for path, leaf in leaves(model.params).items():
        if not isinstance(leaf, Masked):
            entries.append(Entry(path, "unfit", "has no mask", "", nbytes(leaf), nbytes(leaf)))
            continue
        with x64_scope(x64_of(model.program)):
            changes[path], why = _final(path, leaf, record.get(path), compress)
        entries.append(Entry(path, "changed", why, "", nbytes(leaf), nbytes(changes[path])))
    provenance = with_audit(model.provenance, Audit("finalize", tuple(entries)))
    return model.replace(params=with_leaves(model.params, changes), provenance=provenance)


def _final(path: str, leaf: Masked, row: Any, compress: bool) -> tuple[Any, str]:
    zeros = f"zeros written, {zero_text(leaf.mask)}"
    if not compress:
        return leaf.materialize(), zeros
    if row is None or (pattern := _prune_plan.pattern_of(row[1])).kind != "nm":
        return leaf.materialize(), f"{zeros}; not compressed: the pattern is not n:m"
    n, m = pattern.sizes
    (axis,) = row[3]
    try:
        made = compressed(leaf.weight, leaf.mask, n, m, axis, path=path)
    except InputError as error:
        return leaf.materialize(), f"{zeros}; not compressed: {error}"
    return made, f"{n}:{m} compressed along axis {axis}"
