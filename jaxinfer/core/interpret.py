"""The interpreter: evaluates a jaxpr over values some of which are array types.

An array type is a pytree that stands for an array (a quantized or masked weight): it has
``shape``, ``dtype`` and ``materialize()``. A *rule* is asked about every equation that has no
jaxpr inside; what it declines (None) is evaluated as it is, on materialized operands. An
equation with jaxprs inside is entered if an array type goes in, or if the pass asks for it: it
is called again by JAX's own function (``lax.scan``, ``lax.while_loop``, ``jax.checkpoint`` ...)
on a body that is interpreted. Equations are evaluated again, never constructed, in their order,
in their own context (mesh, names, source lines).

Array types go into a loop as constants or as slices, never in its carry, and never come out of
a loop or a branch. ``jit`` inside is inlined, its shardings kept as constraints; custom
derivatives are inlined where they are entered, so the derivative of what comes out is that of
the forward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxinfer.core._bodies import Body, bodies
from jaxinfer.core._compat import bind, scan_counts, within
from jaxinfer.core.array_types import is_array_type, materialize
from jaxinfer.core.provenance import Address


class Equation(NamedTuple):
    """An equation, and where it is in the trace (``provenance.Site.address``)."""

    eqn: Any
    address: Address

    @property
    def name(self) -> str:
        """The primitive's name."""
        return self.eqn.primitive.name

    @property
    def params(self) -> Mapping[str, Any]:
        """The primitive's parameters."""
        return self.eqn.params


Rule = Callable[[Equation, Sequence[Any]], "Sequence[Any] | None"]
Enter = Callable[[Equation], bool]
Entering = Callable[["Interpreter", Equation, Sequence[Body], Sequence[Any]], Sequence[Any]]


class Interpreter:
    """Evaluates jaxprs with a rule.

    Args:
      rule: gets an equation and its operands, array types among them; returns its results, or
        None to have it evaluated as it is.
      enter: whether to go into an equation that no array type enters.

    Attributes:
      materialized: equations that had an array type turned into an array for them.
      unconstrained: ``jit`` equations that demand a sharding of an array type, which is not
        demanded of its parts.
    """

    entering: Mapping[str, Entering]
    """How each primitive with jaxprs inside is entered; a subclass may have its own."""

    def __init__(self, rule: Rule, enter: Enter = lambda equation: False):
        self.rule, self.enter = rule, enter
        self.materialized: list[Equation] = []
        self.unconstrained: list[Equation] = []

    def call(self, fn: Callable[..., Any], *args: Any) -> Any:
        """Trace ``fn`` for the shapes of its arguments, and evaluate that.

        Array types among the arguments are traced as the arrays that they stand for.
        """
        flat, tree = jax.tree.flatten(args, is_leaf=is_array_type)
        flat = [value if hasattr(value, "dtype") else jnp.asarray(value) for value in flat]
        avals = [jax.ShapeDtypeStruct(v.shape, v.dtype) if is_array_type(v) else v for v in flat]
        trace = jax.make_jaxpr(lambda *leaves: fn(*tree.unflatten(leaves)), return_shape=True)
        closed, shapes = trace(*avals)
        outs = self.run(closed.jaxpr, closed.consts, flat)
        return jax.tree.unflatten(jax.tree.structure(shapes), map(materialize, outs))

    def run(
        self, jaxpr: Any, consts: Sequence[Any], args: Sequence[Any], address: Address = ()
    ) -> list[Any]:
        """Evaluate a jaxpr; results may be array types."""
        held = map(self.constant, consts)
        env: dict[Any, Any] = dict(zip(jaxpr.constvars, held, strict=True))
        env |= zip(jaxpr.invars, args, strict=True)
        last = _last_uses(jaxpr)

        def read(var: Any) -> Any:
            return self.constant(var.val) if hasattr(var, "val") else env[var]

        for index, eqn in enumerate(jaxpr.eqns):
            values = [read(var) for var in eqn.invars]
            outs = self._equation(Equation(eqn, (*address, index)), values)
            env |= zip(eqn.outvars, outs, strict=True)
            for var in last.get(index, ()):
                env.pop(var, None)
        return [read(var) for var in jaxpr.outvars]

    def constant(self, value: Any) -> Any:
        """Return what stands for a constant of a jaxpr: itself."""
        return value

    def _equation(self, equation: Equation, values: Sequence[Any]) -> Sequence[Any]:
        inside = bodies(equation.eqn)
        typed = any(map(is_array_type, values))
        if inside and (typed or self.enter(equation)):
            return self.entering[equation.name](self, equation, inside, values)
        if not inside:
            with within(equation.eqn):
                outs = self.rule(equation, values)
            if outs is not None:
                return outs
        if typed:
            self.materialized.append(equation)
        return bind(equation.eqn, list(map(materialize, values)))

    def arrays(self, equation: Equation, values: Sequence[Any]) -> list[Any]:
        """Return values as arrays, and record that an equation needed them so."""
        if any(map(is_array_type, values)):
            self.materialized.append(equation)
        return list(map(materialize, values))

    def body(self, equation: Equation, number: int, body: Body) -> Callable[..., list[Any]]:
        """Return a body as a function of its inputs whose results are arrays of its own types."""

        def fn(*values: Any) -> list[Any]:
            outs = self.run(body.jaxpr, body.consts, values, (*equation.address, number))
            avals = [var.aval for var in body.jaxpr.outvars]
            return [_as(aval, out) for aval, out in zip(avals, outs, strict=True)]

        return fn


def as_declared(
    equation: Equation,
    which: slice,
    values: Sequence[Any],
    interpreter: Interpreter | None = None,
) -> list[Any]:
    """Return some operands as arrays of the dtypes that the equation declares.

    What a loop carries keeps its type, whatever came in. The interpreter gets the record.
    """
    given = list(values[which])
    if interpreter is not None:
        given = interpreter.arrays(equation, given)
    pairs = zip(equation.eqn.invars[which], given, strict=True)
    return [_as(var.aval, value) for var, value in pairs]


def _as(aval: Any, value: Any) -> Any:
    value = materialize(value)
    return value if value.dtype == aval.dtype else lax.convert_element_type(value, aval.dtype)


def _last_uses(jaxpr: Any) -> dict[int, list[Any]]:
    """Return, by equation, the variables that no later one reads."""
    last: dict[Any, int] = {}
    for index, eqn in enumerate(jaxpr.eqns):
        last |= {var: index for var in eqn.invars if not hasattr(var, "val")}
    for var in jaxpr.outvars:
        if not hasattr(var, "val"):
            last.pop(var, None)
    found: dict[int, list[Any]] = {}
    for var, index in last.items():
        found.setdefault(index, []).append(var)
    return found


Bodies = Sequence[Body]


def _inline(
    interpreter: Interpreter, equation: Equation, inside: Bodies, values: Sequence[Any]
) -> Sequence[Any]:
    (body,) = inside
    with within(equation.eqn):
        return interpreter.run(body.jaxpr, body.consts, values, (*equation.address, 0))


def _jit(
    interpreter: Interpreter, equation: Equation, inside: Bodies, values: Sequence[Any]
) -> Sequence[Any]:
    """Inline; what was demanded of inputs and outputs that are arrays is demanded still."""
    demands = zip(values, equation.params["in_shardings"], strict=True)
    if any(is_array_type(v) and isinstance(s, jax.sharding.Sharding) for v, s in demands):
        interpreter.unconstrained.append(equation)
    given = map(_constrained, values, equation.params["in_shardings"])
    outs = _inline(interpreter, equation, inside, list(given))
    return list(map(_constrained, outs, equation.params["out_shardings"]))


def _constrained(value: Any, sharding: Any) -> Any:
    if not isinstance(sharding, jax.sharding.Sharding) or is_array_type(value):
        return value
    return lax.with_sharding_constraint(value, sharding)


def _remat(
    interpreter: Interpreter, equation: Equation, inside: Bodies, values: Sequence[Any]
) -> Sequence[Any]:
    fn = interpreter.body(equation, 0, inside[0])
    options = {name: equation.params[name] for name in ("prevent_cse", "policy")}
    with within(equation.eqn):
        return jax.checkpoint(fn, **options)(*values)


def _scan(
    interpreter: Interpreter, equation: Equation, inside: Bodies, values: Sequence[Any]
) -> Sequence[Any]:
    params = equation.params
    consts, carry = scan_counts(params)
    length, given = params["length"], list(values)
    init = as_declared(equation, slice(consts, consts + carry), given, interpreter)
    xs = given[consts + carry :]
    if any(is_array_type(x) and not _sliceable(x, length) for x in xs):
        xs = interpreter.arrays(equation, xs)
    fn = interpreter.body(equation, 0, inside[0])

    def step(state: Any, x: Any) -> tuple[Any, Any]:
        outs = fn(*given[:consts], *state, *x)
        return outs[:carry], outs[carry:]

    options = {name: params[name] for name in ("reverse", "unroll")}
    with within(equation.eqn):
        state, ys = lax.scan(step, init, xs, length=length, **options)
    return [*state, *ys]


def _sliceable(value: Any, length: int) -> bool:
    leaves = jax.tree.leaves(value)
    return all(leaf.ndim and leaf.shape[0] == length for leaf in leaves)


def _while(
    interpreter: Interpreter, equation: Equation, inside: Bodies, values: Sequence[Any]
) -> Sequence[Any]:
    first, second = (equation.params[f"{name}_nconsts"] for name in ("cond", "body"))
    of_cond, of_body = values[:first], values[first : first + second]
    carried = as_declared(equation, slice(first + second, None), values, interpreter)
    cond, body = (interpreter.body(equation, i, inside[i]) for i in (0, 1))
    with within(equation.eqn):
        return lax.while_loop(
            lambda state: cond(*of_cond, *state)[0], lambda state: body(*of_body, *state), carried
        )


def _cond(
    interpreter: Interpreter, equation: Equation, inside: Bodies, values: Sequence[Any]
) -> Sequence[Any]:
    index, *operands = values
    branches = [interpreter.body(equation, i, body) for i, body in enumerate(inside)]
    platforms = equation.params.get("branches_platforms")
    with within(equation.eqn):
        if platforms is None:
            return lax.switch(index, branches, *operands)
        chosen = {
            name: branch
            for names, branch in zip(platforms, branches, strict=True)
            for name in names or ("default",)
        }
        return lax.platform_dependent(*operands, **chosen)


def _shard_map(
    interpreter: Interpreter, equation: Equation, inside: Bodies, values: Sequence[Any]
) -> Sequence[Any]:
    params, mesh = equation.params, equation.params["mesh"]
    given, specs = [], []
    for value, spec in zip(values, params["in_specs"], strict=True):
        parts = part_specs(value, spec, mesh) if is_array_type(value) else spec
        given.append(value if parts is not None else interpreter.arrays(equation, [value])[0])
        specs.append(spec if parts is None else parts)
    names = params.get("newly_manual_axes", params.get("manual_axes"))
    fn = interpreter.body(equation, 0, inside[0])
    with within(equation.eqn):
        return jax.shard_map(
            lambda *local: tuple(fn(*local)),
            mesh=mesh,
            in_specs=tuple(specs),
            out_specs=tuple(params["out_specs"]),
            axis_names=set(names or mesh.axis_names),
            check_vma=params["check_vma"],
        )(*given)


def part_specs(value: Any, spec: Any, mesh: Any) -> Any:
    """Return the specs of an array type's parts, from that of the array; None: they do not fit.

    A part has the array's rank; an axis of size 1 in it is not sharded, and every other must
    divide evenly. A part of another rank is replicated only if nothing is sharded.
    """
    axes = [names if isinstance(names, tuple) else (names,) for names in spec if names is not None]
    if not axes:
        return jax.tree.map(lambda leaf: jax.sharding.PartitionSpec(), value)
    found = []
    leaves, tree = jax.tree.flatten(value)
    for leaf in leaves:
        if leaf.ndim != len(value.shape):
            return None
        parts = []
        for size, names in zip(leaf.shape, (*spec, *[None] * (leaf.ndim - len(spec))), strict=True):
            each = names if isinstance(names, tuple) else (names,) if names else ()
            shards = 1
            for name in each:
                shards *= mesh.shape[name]
            if size != 1 and size % shards:
                return None
            parts.append(names if size != 1 else None)
        found.append(jax.sharding.PartitionSpec(*parts))
    return jax.tree.unflatten(tree, found)


ENTERING: dict[str, Entering] = {
    "jit": _jit,
    "closed_call": _inline,
    "core_call": _inline,
    "custom_jvp_call": _inline,
    "custom_vjp_call": _inline,
    "remat2": _remat,
    "checkpoint": _remat,
    "scan": _scan,
    "while": _while,
    "cond": _cond,
    "shard_map": _shard_map,
}
Interpreter.entering = ENTERING
