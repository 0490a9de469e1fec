"""Statistics of what parameters are multiplied by, as one pure function of parameters and inputs.

An interpreter that evaluates a trace and observes the other operand of every product with a
parameter that is asked for. What is observed inside a loop or a branch comes out of it:

    scan    stacked: kept so for the layers of a stacked parameter, else merged
    while   merged in the carry, beginning with neutral statistics
    cond    every branch returns the statistics of all, neutral where it does not pass

Not inside ``shard_map`` (a range would have to be agreed on by all shards), nor in the condition
of a ``while``: what is asked for there stays neutral, which ``calibration.problems`` reports.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxinfer.core._compat import scan_counts, within
from jaxinfer.core.interpret import (
    ENTERING,
    Bodies,
    Equation,
    Interpreter,
    as_declared,
    materialize,
)
from jaxinfer.core.provenance import Address, Site
from jaxinfer.core.trace import Traced
from jaxinfer.numerics.calibration import Observer, merge

PRODUCTS = ("dot_general", "conv_general_dilated", "ragged_dot_general")

Frame = dict[Address, Any]


def collect(
    traced: Traced, sites: Sequence[Site], observer: Observer
) -> Callable[[Sequence[Any], Sequence[Any]], dict[str, Any]]:
    """Return a pure function of parameters (in ``traced.paths``' order) and inputs.

    Args:
      traced: the trace of a model at the shapes of the inputs.
      sites: products, of ``traced.uses``, whose other operand is observed.
      observer: of values of any shape; they are observed flat, so its statistics have shape [1],
        behind the sizes of the scans that slice the parameter.

    Returns:
      A function to {path: statistics}, those of a parameter's sites merged.
    """
    wanted = {site.address: site for site in sites if site.primitive in PRODUCTS}

    def fn(params: Sequence[Any], inputs: Sequence[Any]) -> dict[str, Any]:
        collector = _Collector(wanted, observer)
        collector.run(traced.jaxpr, traced.consts, [*params, *inputs])
        found: dict[str, Any] = {}
        for address, site in wanted.items():
            stats = collector.frame.get(address)
            if stats is None:
                continue
            one = found.get(site.path)
            found[site.path] = stats if one is None else merge(*_alike(one, stats))
        return found

    return fn


def _alike(a: Any, b: Any) -> tuple[Any, Any]:
    """Bring the statistics of two sites of one parameter to one shape."""
    deeper = max(a.low.ndim, b.low.ndim)
    grow = lambda s: jax.tree.map(lambda x: x[None], s)
    while a.low.ndim < deeper:
        a = grow(a)
    while b.low.ndim < deeper:
        b = grow(b)
    shape = np.broadcast_shapes(a.low.shape, b.low.shape)
    return _broadcast(a, shape), _broadcast(b, shape)


def _broadcast(stats: Any, shape: Sequence[int]) -> Any:
    """Broadcast statistics; histograms have one more axis behind."""
    rank = stats.low.ndim
    return jax.tree.map(lambda x: jnp.broadcast_to(x, (*shape, *x.shape[rank:])), stats)


class _Collector(Interpreter):
    """Keeps the statistics of the body that it is in, by address."""

    def __init__(self, wanted: Mapping[Address, Site], observer: Observer):
        self.places = {address[:end] for address in wanted for end in range(len(address))}
        super().__init__(self._observe, lambda equation: equation.address in self.places)
        self.wanted, self.observer = wanted, observer
        self.frame: Frame = {}

    def _observe(self, equation: Equation, values: Sequence[Any]) -> None:
        site = self.wanted.get(equation.address)
        if site is None:
            return
        other = materialize(values[1 - site.side]).reshape(-1)
        before = self.observer.init((1,))
        seen = self.observer.update(before, other)
        known = self.frame.get(equation.address)
        self.frame[equation.address] = seen if known is None else merge(known, seen)

    @contextlib.contextmanager
    def nested(self) -> Iterator[Frame]:
        """Collect into a frame of its own."""
        outer, self.frame = self.frame, {}
        try:
            yield self.frame
        finally:
            self.frame = outer

    def framed(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function that gives its statistics as well."""

        def both(*args: Any) -> tuple[Any, Frame]:
            with self.nested() as frame:
                out = fn(*args)
                return out, dict(frame)

        return both

    def neutral(self, shapes: Frame) -> Frame:
        """Return statistics of nothing, of the shapes of others."""
        return {
            address: _broadcast(self.observer.init((1,)), stats.low.shape)
            for address, stats in shapes.items()
        }

    def absorb(self, frame: Frame) -> None:
        """Add statistics to those of the body that it is in."""
        for address, stats in frame.items():
            known = self.frame.get(address)
            self.frame[address] = stats if known is None else merge(known, stats)


def _scan(
    collector: Any, equation: Equation, inside: Bodies, values: Sequence[Any]
) -> Sequence[Any]:
    params = equation.params
    consts, carry = scan_counts(params)
    given = list(values)
    init = as_declared(equation, slice(consts, consts + carry), given)
    fn = collector.framed(collector.body(equation, 0, inside[0]))

    def step(state: Any, x: Any) -> tuple[Any, Any]:
        outs, frame = fn(*given[:consts], *state, *x)
        return outs[:carry], (outs[carry:], frame)

    options = {name: params[name] for name in ("reverse", "unroll")}
    with within(equation.eqn):
        xs = given[consts + carry :]
        state, (ys, frame) = lax.scan(step, init, xs, length=params["length"], **options)
        for address, stats in frame.items():
            if equation.address not in collector.wanted[address].scans:
                frame[address] = _merged(collector, stats)
    collector.absorb(frame)
    return [*state, *ys]


def _merged(collector: Any, stats: Any) -> Any:
    """Merge the statistics that a scan has stacked."""
    start = _broadcast(collector.observer.init((1,)), stats.low.shape[1:])
    total, _ = lax.scan(lambda a, b: (merge(a, b), None), start, stats)
    return total


def _while(
    collector: Any, equation: Equation, inside: Bodies, values: Sequence[Any]
) -> Sequence[Any]:
    first, second = (equation.params[f"{name}_nconsts"] for name in ("cond", "body"))
    of_cond, of_body = values[:first], values[first : first + second]
    carried = as_declared(equation, slice(first + second, None), values)
    cond, body = (collector.framed(collector.body(equation, i, inside[i])) for i in (0, 1))
    with within(equation.eqn):
        _, shapes = jax.eval_shape(lambda state: body(*of_body, *state), carried)

        def step(both: Any) -> Any:
            state, before = both
            outs, frame = body(*of_body, *state)
            return outs, {address: merge(before[address], frame[address]) for address in before}

        start = (carried, collector.neutral(shapes))
        test = lambda both: cond(*of_cond, *both[0])[0][0]
        state, frame = lax.while_loop(test, step, start)
    collector.absorb(frame)
    return state


def _cond(
    collector: Any, equation: Equation, inside: Bodies, values: Sequence[Any]
) -> Sequence[Any]:
    index, *operands = values
    branches = [
        collector.framed(collector.body(equation, i, body)) for i, body in enumerate(inside)
    ]
    platforms = equation.params.get("branches_platforms")
    with within(equation.eqn):
        shapes: Frame = {}
        for branch in branches:
            shapes |= jax.eval_shape(branch, *operands)[1]

        def padded(branch: Any) -> Callable[..., Any]:
            def run(*args: Any) -> Any:
                outs, frame = branch(*args)
                return outs, {**collector.neutral(shapes), **frame}

            return run

        full = [padded(branch) for branch in branches]
        if platforms is None:
            outs, frame = lax.switch(index, full, *operands)
        else:
            chosen = {
                name: branch
                for names, branch in zip(platforms, full, strict=True)
                for name in names or ("default",)
            }
            outs, frame = lax.platform_dependent(*operands, **chosen)
    collector.absorb(frame)
    return outs


def _remat(
    collector: Any, equation: Equation, inside: Bodies, values: Sequence[Any]
) -> Sequence[Any]:
    outs, frame = collector.framed(collector.body(equation, 0, inside[0]))(*values)
    collector.absorb(frame)
    return outs


def _shard_map(
    collector: Any, equation: Equation, inside: Bodies, values: Sequence[Any]
) -> Sequence[Any]:
    with collector.nested():  # what is seen by one shard is not the range
        return ENTERING["shard_map"](collector, equation, inside, values)


_Collector.entering = {
    **ENTERING,
    "scan": _scan,
    "while": _while,
    "cond": _cond,
    "remat2": _remat,
    "checkpoint": _remat,
    "shard_map": _shard_map,
}
