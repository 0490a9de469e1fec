"""fold: what parameters alone decide is computed once, and neighbouring linear maps become one.

    computed    f(p, q) of parameters alone                     -> one parameter
    affine      ((x * k) - mean) g + beta, by channel           -> x * (k g) + (beta - mean g)
    merge       x k1, x k2, x k3                                -> x [k1 k2 k3], and its slices
    compose     (x k1 + b1) k2 + b2, where that saves FLOPs     -> x (k1 k2) + (b1 k2 + b2)
    dead        parameters that nothing reads                   -> none

in any JAX function: ``*`` is a ``dot_general`` or a ``conv_general_dilated``, or for affine maps a
branching of which every branch scales with its kernel (a convolution by platform). So batch norm
goes into the convolution before it, weight norm becomes a weight, query, key and value one product.
The plan is JSON and is applied again on load; it names parameters, never equations. A folded
model equals the unfolded one within ``numerics.folding.rounding_bound``.

A kernel is changed only if it is read once, and its product too. A kernel keeps its path and its
shape; a new bias takes the path of the bias that it replaces, if there is one. Merged and computed
parameters have new paths, ``query&key&value.weight``.

What it does not do: it does not go into loops, other branches, ``shard_map`` and functions with
derivatives of their own, which are evaluated as they stand (the audit names the parameters in
them); it does not fold a map before a product into it, nor one behind a transposed convolution
that is computed by phases; it does not merge convolutions. What depends on the sizes of the
inputs is left; where that shows only at a call, the call is refused, never wrong. Models of
several components are refused. ``remat`` is inlined. The derivative by a parameter is that by the
folded one.

Sources: Jacob et al., "Quantization and Training of Neural Networks for Efficient
Integer-Arithmetic-Only Inference", CVPR 2018, section 3.2, https://arxiv.org/abs/1712.05877
(batch norm); Shazeer, "Fast Transformer Decoding", 2019, https://arxiv.org/abs/1911.02150
(one projection of one input).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax

from jaxinfer.core._compat import x64_scope
from jaxinfer.core.array_types import has_array_types, nbytes
from jaxinfer.core.audit import Audit, Entry, merged, with_audit
from jaxinfer.core.errors import InputError
from jaxinfer.core.leaves import leaves
from jaxinfer.core.model import Model
from jaxinfer.core.program import x64_of
from jaxinfer.core.selectors import Rule, resolve
from jaxinfer.core.trace import example_sizes, input_structs, trace
from jaxinfer.core.transform import TRANSFORMS, Transform, staged
from jaxinfer.transforms import _fold_params
from jaxinfer.transforms._data import batches
from jaxinfer.transforms._fold_make import Options, make, origins
from jaxinfer.transforms._fold_match import Found, analyse, match
from jaxinfer.transforms._fold_plan import Plan, misfit
from jaxinfer.transforms._fold_rewrite import FoldRewrite


@TRANSFORMS.register("fold")
def fold(
    *, rules: Sequence[Rule] = (), merge: bool = True, compose: bool = True, strict: bool = False
) -> Transform:
    """Return the transform that folds linear maps and computes on parameters once.

    Its state is the plan, plain data, made from shapes alone. It needs no calibration data; for
    a model that was made without example inputs, it takes the shapes of a batch.

    Args:
      rules: which parameters to leave as they are (``rule(pattern, ignore=True)``).
      merge: put parallel products of one input side by side.
      compose: make one dense layer of several in a row, where that saves FLOPs.
      strict: raise if a fold was nearly possible (the audit's ``blocked``).

    Raises (when applied):
      InputError: rules that decide nothing, a model of several components or with array types
        among its parameters, one that has been folded already; blocked parameters, if strict.

    Example:
      >>> import jax.numpy as jnp, jaxinfer as ji
      >>> from jaxinfer.transforms.fold import fold
      >>> params = {"w": jnp.ones((3, 2)), "gain": jnp.array([2.0, 3.0])}
      >>> model = ji.from_function(lambda p, x: x @ p["w"] * p["gain"], params, (jnp.ones((1, 3)),))
      >>> folded = fold()(model)
      >>> folded.params
      {'w': Array([[2., 3.],
             [2., 3.],
             [2., 3.]], dtype=float32)}
      >>> folded(jnp.ones((4, 3)))[0].tolist()
      [6.0, 9.0]
    """

    def init(model: Model, *data: Any) -> dict[str, Any]:
        _require_one(model)
        with x64_scope(x64_of(model.program)):
            frozen = [*_ignored(model, rules), *_mutated(model)]
            example = _example(model, data)
            traces = _traces(model, frozen, _structs(example))
            options = Options(merge, compose, pinned=not model.program.fixed)
            plan, left = make(traces, list(dict.fromkeys(frozen)), options)
        reasons = {path: list(why) for path, why in left.items()}
        return {"plan": plan.to_json(), "left": reasons, "example": example}

    def update(model: Model, state: Mapping[str, Any]) -> Model:
        _require_one(model)
        plan = Plan.from_json(state["plan"])
        marked = staged(model, "fold")
        old = leaves(model.params)
        with x64_scope(x64_of(model.program)):
            found = _found(model, plan.frozen, _structs(state.get("example")))
            matched = match(found, plan)
            if matched.problems:
                raise misfit(list(matched.problems.values()))
            made: dict[str, Any] = {}
            for job in _fold_params.jobs(found, matched):
                made |= _fold_params.run(found, job, old)
        params = {path: made[path] if path in made else old[path] for path in plan.leaves}
        audit = Audit("fold", _entries(plan, old, params, state["left"], _ignored(model, rules)))
        if strict:
            audit.require()
        tree = None if _is_flat(model.params) else jax.tree.structure(model.params)
        return marked.replace(
            params=params,
            rewrites=(*model.rewrites, FoldRewrite(plan, tree)),
            provenance=with_audit(marked.provenance, audit),
        )

    return Transform(init, update, "fold")


def _is_flat(params: Any) -> bool:
    """Whether parameters are a flat dict by path already."""
    return type(params) is dict and list(leaves(params)) == list(params)


def _require_one(model: Model) -> None:
    if len(model.components) > 1:
        raise InputError(
            f"fold: required a model of one function, got {', '.join(model.components)}: "
            "one parameter may serve several functions in different ways; fold each by itself, "
            "model.components[name]"
        )
    if has_array_types(model.params):
        raise InputError(
            "fold: required parameters that are arrays; fold comes before what prunes and quantizes"
        )


def _ignored(model: Model, rules: Sequence[Rule]) -> list[str]:
    chosen = resolve(rules, leaves(model.params), {})
    return [path for path, settings in chosen.items() if settings is None]


def _mutated(model: Model) -> list[str]:
    """Return the parameters that the function gives back changed."""
    changes = set(getattr(model.program, "mutates", ()))
    return [path for path in leaves(model.params) if path in changes]


def _found(model: Model, frozen: Sequence[str], example: Sequence[Any] | None) -> Found:
    (traced,) = trace(model, example)
    return analyse(traced.jaxpr, traced.consts, traced.paths, frozenset(frozen))


def _example(model: Model, data: tuple[Any, ...]) -> list[list[Any]] | None:
    """Return shapes and dtypes of the first batch, for a model that was made without inputs."""
    if not model.signature.open or not data:
        return None
    batch = next(batches(model, data, "fold"))
    if any(not hasattr(value, "dtype") for value in batch):
        raise InputError(
            "fold: a model that was made without example inputs is folded at the shapes of a "
            "batch of arrays; give from_function example_inputs for inputs of other structure"
        )
    return [[list(value.shape), str(value.dtype)] for value in batch]


def _structs(example: Sequence[Any] | None) -> list[Any] | None:
    if example is None:
        return None
    return [jax.ShapeDtypeStruct(tuple(shape), dtype) for shape, dtype in example]


def _traces(model: Model, frozen: Sequence[str], example: list[Any] | None) -> list[Found]:
    """Return the function at the sizes of its example, and at others as far as it has any."""
    found = [_found(model, frozen, example)]
    for other in _others(model, example):
        try:
            found.append(_found(model, frozen, other))
        except Exception:  # the function, at sizes that may be none of its own
            continue
    return found


def _others(model: Model, example: list[Any] | None) -> list[list[Any]]:
    """Return inputs of other sizes: other symbols, or for any function other first axes."""
    if model.program.fixed:
        sizes = {
            name: _other(size, *model.signature.symbols[name])
            for name, size in example_sizes(model).items()
        }
        return [input_structs(model, sizes)] if sizes else []
    given = input_structs(model) if example is None else example
    first = {v.shape[0] for v in given if getattr(v, "shape", ())}
    return [
        [
            jax.ShapeDtypeStruct((size + 3, *v.shape[1:]), v.dtype)
            if getattr(v, "shape", ()) and v.shape[0] == size
            else v
            for v in given
        ]
        for size in sorted(first)
    ]


def _other(size: int, low: int, high: int | None) -> int:
    """Return another size in a range, if there is one."""
    larger = size + 3
    if high is None or larger <= high:
        return larger
    return high if high != size else max(low, 1)


def _entries(
    plan: Plan,
    old: Mapping[str, Any],
    params: Mapping[str, Any],
    left: Mapping[str, Sequence[str]],
    ignored: Sequence[str],
) -> tuple[Entry, ...]:
    done = _done(plan)
    after = {path: nbytes(params[path]) for path in old if path in params}
    for name, path in origins(plan).items():
        if name not in old and name in params:
            after[path] = after.get(path, 0) + nbytes(params[name])
    entries = []
    for path, leaf in old.items():
        source = ""
        if path in ignored:
            status, why = "ignored", "by a rule"
        elif path in done:
            status, why = "changed", "; ".join(dict.fromkeys(done[path]))
        elif path not in params:
            status, why = "unused", "removed: nothing reads it"
        elif path in left:
            status, why, source = left[path]
        elif path in plan.frozen:
            status, why = "unfit", "the function gives it back changed"
        else:
            status, why = "unfit", "nothing to fold"
        entries.append(Entry(path, status, why, source, nbytes(leaf), after.get(path, 0)))
    return merged(entries, list(old))


def _done(plan: Plan) -> dict[str, list[str]]:
    """Return what became of each parameter."""
    done: dict[str, list[str]] = {}

    def say(paths: Sequence[str], text: str) -> None:
        for path in paths:
            done.setdefault(path, []).append(text)

    made_of = {entry.name: entry.paths for entry in plan.computed}
    for entry in plan.computed:
        say(entry.paths, f"computed once into {entry.name}")
    for group in plan.groups:
        verb = {"merge": "merged", "compose": "composed"}.get(group.kind)
        for member in group.members:
            kernel = made_of.get(member.kernel, (member.kernel,))
            if verb:
                say(kernel, f"{verb} into {group.name}")
            if member.ops and (verb is None or set(member.ops) - {"add", "sub"}):
                by = ", ".join(member.paths) or "numbers"
                say(kernel, f"scaled by {by}: {', '.join(member.ops)} gone")
            into = group.name
            if group.kind == "merge" and group.bias is not None and set(member.ops) == {"add"}:
                into = group.bias
            for path in member.paths:
                new = path in (member.bias, group.bias)
                say([path], f"now the bias of {group.name}" if new else f"folded into {into}")
    return done
