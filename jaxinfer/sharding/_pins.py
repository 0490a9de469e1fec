"""What XLA is told inside a program: parameters to gather before use, splits that must not spread.

XLA decides from the shardings of parameters and inputs how everything between lies. Two of its
choices cost more than they need to:

* a parameter that is split to save memory (fsdp) is multiplied in pieces, and the activations
  are reduced over all devices. A parameter in ``gathered`` is made whole over those mesh axes
  right where a product takes it, so that its gather is what is communicated; in a scan one
  layer at a time; of a quantized one the codes are. What no product takes (norms, positions)
  is made whole where it enters.
* a table of embeddings that is split along the model axis makes the whole residual stream split
  along it, with a reduction at every norm. What a parameter in ``closed`` is multiplied with,
  and the result, are made whole along the axes that are split in it.

Both are ``with_sharding_constraint`` on operands and results of the equations that use the
parameter, found again in every trace by following it (``_auto_flow``). They change no number.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxinfer.core._compat import bind
from jaxinfer.core.array_types import array_rule, is_array_type, materialize
from jaxinfer.core.interpret import Equation, Interpreter
from jaxinfer.core.leaves import leaves as named_leaves
from jaxinfer.core.leaves import map_leaves
from jaxinfer.core.provenance import Address
from jaxinfer.sharding import _specs
from jaxinfer.sharding._auto_factors import Axis, Factor, lead
from jaxinfer.sharding._auto_flow import Flow, Product

FREE = PartitionSpec.UNCONSTRAINED

Pin = tuple[int | None, PartitionSpec]
"""Which operand (None: the result), and what is demanded of it."""


def pinned(
    run: Callable[..., Any],
    mesh: Mesh,
    params: Mapping[str, PartitionSpec],
    inputs: Sequence[PartitionSpec],
    gathered: Mapping[str, Sequence[str]],
    closed: Sequence[str],
) -> Callable[..., Any]:
    """Return a flat function ``run(params, leaves, rng_key)`` with its pins.

    Args:
      run: the function.
      mesh: the mesh.
      params: specs of the parameters by path.
      inputs: specs of the array inputs.
      gathered: mesh axes over which a parameter is made whole where it is used, by path.
      closed: paths of parameters whose splits must not spread to what comes after.
    """
    if not gathered and not closed:
        return run

    def with_pins(values: Any, leaves: Any, rng_key: Any = None) -> Any:
        named = named_leaves(values)
        flat, tree = jax.tree.flatten(leaves)
        arrays = [value for value in flat if hasattr(value, "dtype")]

        def fn(own: Sequence[Any], given: Sequence[Any], key: Any) -> Any:
            by_path = dict(zip(named, own, strict=True))
            filled = iter(given)
            full = [next(filled) if hasattr(value, "dtype") else value for value in flat]
            whole = map_leaves(lambda path, _: by_path[path], values)
            return run(whole, tree.unflatten(full), key)

        avals = [jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in named.values()]
        trace = jax.make_jaxpr(fn, return_shape=True)
        jaxpr, shapes = trace(avals, arrays, rng_key)
        pins, met = _find(jaxpr.jaxpr, list(named), params, inputs, gathered, closed)
        own = [
            leaf if path in met else _entered(leaf, params.get(path), gathered.get(path), mesh)
            for path, leaf in named.items()
        ]
        inside = {address[:n] for address in pins for n in range(len(address))}
        evaluate = Interpreter(_rule(mesh, pins), lambda equation: equation.address in inside)
        key = [] if rng_key is None else [rng_key]
        outs = evaluate.run(jaxpr.jaxpr, jaxpr.consts, [*own, *arrays, *key])
        return jax.tree.unflatten(jax.tree.structure(shapes), list(map(materialize, outs)))

    return with_pins


def _rule(mesh: Mesh, pins: Mapping[Address, Sequence[Pin]]) -> Callable[..., Any]:
    def rule(equation: Equation, values: Sequence[Any]) -> Sequence[Any] | None:
        own = pins.get(equation.address)
        if own is None:
            return array_rule(equation, values)
        given = list(values)
        for side, spec in own:
            if side is not None:
                given[side] = _constrained(given[side], spec, mesh)
        outs = array_rule(equation, given) if any(map(is_array_type, given)) else None
        if outs is None:
            outs = bind(equation.eqn, list(map(materialize, given)))
        for side, spec in own:
            if side is None:
                outs = [_constrained(outs[0], spec, mesh), *outs[1:]]
        return outs

    return rule


def _constrained(value: Any, spec: PartitionSpec, mesh: Mesh) -> Any:
    """Demand a spec of an array, or of those parts of an array type that have its rank."""
    rank = len(value.shape)

    def one(part: Any) -> Any:
        if part.ndim != rank:
            return part
        pairs = zip(part.shape, spec, strict=True)
        own = [entry if _divides(size, entry, mesh) else None for size, entry in pairs]
        return lax.with_sharding_constraint(part, NamedSharding(mesh, PartitionSpec(*own)))

    return jax.tree.map(one, value)


def _divides(size: int, entry: Any, mesh: Mesh) -> bool:
    return entry is FREE or size % _specs.shards(entry, mesh) == 0


def _find(
    jaxpr: Any,
    paths: Sequence[str],
    params: Mapping[str, PartitionSpec],
    inputs: Sequence[PartitionSpec],
    gathered: Mapping[str, Sequence[str]],
    closed: Sequence[str],
) -> tuple[dict[Address, list[Pin]], set[str]]:
    """Return the pins by equation, and the parameters that any equation multiplies by."""
    flow = Flow()
    flow.add(jaxpr, paths)
    outside: dict[Factor, tuple[str, ...]] = {}
    for axes, spec in zip(flow.inputs[0], inputs, strict=False):
        for each, entry in zip(axes, spec, strict=False):
            if (factor := lead(each)) and entry is not None:
                outside[factor] = _specs.axes_of(entry)
    found: dict[Address, list[Pin]] = {}
    for address, product in flow.products[0].items():
        path = product.path
        split = {
            factor: _specs.axes_of(entry)
            for each, entry in zip(flow.params[path], params.get(path, ()), strict=False)
            if (factor := lead(each)) and entry is not None
        }
        pins: list[Pin] = []
        if path in gathered:
            pins.append((product.side, _gather(product, split, gathered[path])))
        if path in closed:
            pins += _close(product, split, outside)
        if pins:
            found[address] = pins
    return found, {product.path for product in flow.products[0].values()}


def _entered(leaf: Any, spec: PartitionSpec | None, names: Sequence[str] | None, mesh: Mesh) -> Any:
    """Gather a parameter that no product takes (a norm, a table of positions) where it enters."""
    if spec is None or not names:
        return leaf
    entries = [tuple(n for n in _specs.axes_of(entry) if n not in names) for entry in spec]
    kept = [each or None for each in entries]
    return _constrained(leaf, PartitionSpec(*kept, *[None] * (len(leaf.shape) - len(kept))), mesh)


def _gather(
    product: Product, split: Mapping[Factor, Sequence[str]], names: Sequence[str]
) -> PartitionSpec:
    """Return the spec of an operand that is whole over some mesh axes, otherwise as it is."""
    entries: list[Any] = []
    for each in product.operand:
        factor = lead(each)
        own = split.get(factor, ()) if factor else ()
        if set(own) & set(names):
            left = tuple(name for name in own if name not in names)
            entries.append(left or None)
        else:
            entries.append(FREE)
    return PartitionSpec(*entries)


def _close(
    product: Product,
    split: Mapping[Factor, Sequence[str]],
    outside: Mapping[Factor, tuple[str, ...]],
) -> list[Pin]:
    """Return what makes the other operand and the result whole along the parameter's axes."""
    found: list[Pin] = []
    for side, axes in ((1 - product.side, product.other), (None, product.result)):
        entries: list[Any] = [_closed_entry(each, split, outside) for each in axes]
        if any(entry is None for entry in entries):
            found.append((side, PartitionSpec(*entries)))
    return found


def _closed_entry(
    each: Axis, split: Mapping[Factor, Sequence[str]], outside: Mapping[Factor, tuple[str, ...]]
) -> Any:
    factor = lead(each)
    if factor in split:
        return None
    return outside.get(factor, FREE) if factor else FREE
