"""The slow obvious way to see where parameters go: number every element, and run the program.

Every equation is evaluated on arrays, loop by loop. Beside an array that holds elements of one
parameter, unchanged, goes an array of their numbers, which is sliced, turned and reshaped as it
is. Where such an array meets a product, its numbers along a contracting axis say over which of
the parameter's own axes the product sums. No rule about axes is needed, so none can be wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxinfer.core._compat import bind, inner, scan_counts
from jaxinfer.core.program import param_names
from tests.laws._program import Use

MOVES = {
    *("transpose", "reshape", "squeeze", "broadcast_in_dim", "expand_dims", "slice"),
    *("dynamic_slice", "rev", "split", "copy"),
}
NAMES_ONLY = {"stop_gradient", "pvary", "pcast", "psum", "psum_invariant"}  # sums over 1 device
CALLS = {
    *("jit", "checkpoint", "remat2", "closed_call", "shard_map"),
    *("custom_jvp_call", "custom_vjp_call"),
}


class Held(NamedTuple):
    """An array, and the numbers of its elements in the parameter at ``path`` (if any)."""

    value: Any
    path: str | None = None
    numbers: Any = None


class Follower:
    def __init__(self) -> None:
        self.found: dict[str, set[Use]] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}

    def run(self, closed: Any, held: Sequence[Held]) -> list[Held]:
        """Evaluate a closed jaxpr."""
        jaxpr, consts = inner(closed)
        env = dict(zip(jaxpr.constvars, map(Held, consts), strict=True))
        env |= dict(zip(jaxpr.invars, held, strict=True))
        read = lambda var: Held(var.val) if hasattr(var, "val") else env[var]
        for eqn in jaxpr.eqns:
            out = self.equation(eqn, [read(var) for var in eqn.invars])
            env |= dict(zip(eqn.outvars, out, strict=True))
        return [read(var) for var in jaxpr.outvars]

    def block(self, held: Sequence[Held], primitive: str) -> list[Held]:
        """Record a use by value of each, and forget their numbers."""
        for path in {one.path for one in held} - {None}:
            self.found[str(path)].add(Use(primitive, False))
        return [Held(one.value) for one in held]

    def equation(self, eqn: Any, held: list[Held]) -> list[Held]:
        name, params = eqn.primitive.name, eqn.params
        if name in CALLS:
            (body,) = (params[key] for key in ("jaxpr", "call_jaxpr") if key in params)
            return self.run(body, held)
        if name in ("scan", "while", "cond"):
            return getattr(self, f"{name}_")(params, held)
        if name in NAMES_ONLY:
            return held
        if name == "convert_element_type" and is_float(held[0]) and is_float(eqn.outvars[0].aval):
            return [held[0]._replace(value=value) for value in bind(eqn, [held[0].value])]
        values = bind(eqn, [one.value for one in held])
        sides = [side for side, one in enumerate(held) if one.path is not None]
        if name in MOVES and sides == [0]:
            numbers = bind(eqn, [held[0].numbers, *(one.value for one in held[1:])])
            return [Held(v, held[0].path, n) for v, n in zip(values, numbers, strict=True)]
        if len(sides) == 1 and (axes := summed(eqn, sides[0])) is not None:
            one = held[sides[0]]
            self.found[str(one.path)].add(Use(name, True, self.varying(one, axes)))
        else:
            self.block(held, name)
        return [Held(value) for value in values]

    def varying(self, one: Held, axes: Sequence[int]) -> tuple[int, ...]:
        """Return the parameter's axes whose index changes along some of these axes."""
        index = np.unravel_index(np.asarray(one.numbers, np.int64), self.shapes[str(one.path)])
        return tuple(
            own for own, at in enumerate(index) if any(np.ptp(at, axis=k).any() for k in axes)
        )

    def scan_(self, params: Any, held: list[Held]) -> list[Held]:
        split, carried = scan_counts(params)
        carry = self.block(held[split : split + carried], "scan")
        xs, rows = held[split + carried :], []
        order = range(params["length"])
        for i in reversed(order) if params["reverse"] else order:
            row = [Held(x.value[i], x.path, x.path and x.numbers[i]) for x in xs]
            out = self.block(self.run(params["jaxpr"], [*held[:split], *carry, *row]), "scan")
            carry = out[:carried]
            rows.append([one.value for one in out[carried:]])
        rows = rows[::-1] if params["reverse"] else rows
        return carry + [Held(jnp.stack(ys)) for ys in zip(*rows, strict=True)]

    def while_(self, params: Any, held: list[Held]) -> list[Held]:
        first, second = params["cond_nconsts"], params["body_nconsts"]
        consts, held = held[:first], held[first:]
        body, carry = held[:second], self.block(held[second:], "while")
        step = lambda: self.block(self.run(params["body_jaxpr"], [*body, *carry]), "while")
        step()  # once for its uses, also where the loop takes no step
        while self.run(params["cond_jaxpr"], [*consts, *carry])[0].value:
            carry = step()
        return carry

    def cond_(self, params: Any, held: list[Held]) -> list[Held]:
        outs = [self.run(branch, held[1:]) for branch in params["branches"]]
        taken = outs[int(held[0].value)]
        for number, results in enumerate(zip(*outs, strict=True)):
            if len({(r.path, np.asarray(r.numbers).tobytes()) for r in results}) > 1:
                self.block(results, "cond")
                taken[number] = Held(taken[number].value)
        return taken


def is_float(one: Any) -> bool:
    value = one.value if isinstance(one, Held) else one
    return jnp.issubdtype(value.dtype, jnp.floating)


def summed(eqn: Any, side: int) -> Sequence[int] | None:
    """Return the axes of an operand that a site sums over; None if it is no site."""
    name, params = eqn.primitive.name, eqn.params
    if name == "dot_general":
        return params["dimension_numbers"][0][side]
    if name == "ragged_dot_general" and side == 1:
        return params["ragged_dot_dimension_numbers"].dot_dimension_numbers[0][1]
    if name == "conv_general_dilated" and side == 1:
        return params["dimension_numbers"].rhs_spec[1:]
    return () if name == "gather" and side == 0 else None


def follow(fn: Any, params: Any, inputs: Sequence[Any]) -> tuple[dict[str, set[Use]], list[Any]]:
    """Return what is done with each leaf of ``params``, and the flat outputs."""
    follower = Follower()
    names, leaves = param_names(params), jax.tree.leaves(params)
    held = []
    for name, leaf in zip(names, leaves, strict=True):
        follower.found[name] = set()
        follower.shapes[name] = leaf.shape
        # float32 holds them exactly, and its moves are compiled already
        numbers = np.arange(leaf.size, dtype=np.float32).reshape(leaf.shape)
        held.append(Held(leaf, name, jnp.asarray(numbers)))
    out = follower.run(jax.make_jaxpr(fn)(params, *inputs), [*held, *map(Held, inputs)])
    return follower.found, [one.value for one in follower.block(out, "output")]
