"""Where to cut a list of equations into stages.

    cost(equation)  = FLOPs + transcendentals (core.flops: scans in full); an equation without
                      either (layout, gather) costs 1 for each value that it writes
    M               = the least possible maximum of the stages' costs
    cuts            = those that no stage of more than (1 + SLACK) M follows from, of which the
                      fewest bytes live across, of which the least maximum

M comes from a search by bisection (a greedy filling with limit M needs at most k stages), the
cuts from dynamic programming over their positions: O(k n) windows for n equations. A value is
live across a cut if an equation before it computes it and one after it reads it, however many
stages on; parameters and inputs are not counted, they go straight to who needs them.

*Shared* equations (those that need no parameter, and with all that they depend on cost at most
``SHARED`` of the total: masks from lengths, position tables) are not in the list: each stage
computes those that it needs again, from the inputs.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxinfer.compile.stages.trace import Program
from jaxinfer.core import flops
from jaxinfer.core.provenance import Address

SLACK = 0.05
"""How far above the least maximum a stage may be to save bytes on the cuts."""

SHARED = 1e-3
"""Share of the total cost up to which a value made of inputs alone is computed anew."""


class Costs(NamedTuple):
    """What every equation of a program costs, and what is in the list to be cut.

    Attributes:
      costs: of each equation.
      flops: of each equation; without transcendentals, 0 for layout.
      shared: equations that stages compute for themselves.
      order: the other equations, in program order: what is cut. Those that read parameters
        alone stand just before the first that reads them (a transposed tied embedding).
    """

    costs: list[int]
    flops: list[int]
    shared: frozenset[int]
    order: list[int]


class _One(NamedTuple):
    """One equation as ``flops.count`` takes it."""

    eqns: Sequence[Any]
    invars: Sequence[Any]
    outvars: Sequence[Any]
    consts: Sequence[Any] = ()


def nbytes(aval: Any) -> int:
    """Return the bytes of a value of that shape and dtype."""
    return math.prod(aval.shape) * getattr(aval.dtype, "itemsize", 0)


def measure(program: Program) -> Costs:
    """Return the cost of every equation of a program."""
    costs, arithmetic = [], []
    for eqn in program.eqns:
        counted = flops.count(_One([eqn], eqn.invars, eqn.outvars))
        work = counted.flops + counted.transcendentals
        arithmetic.append(counted.flops)
        costs.append(work or sum(math.prod(var.aval.shape) for var in eqn.outvars))
    shared = _shared(program, costs)
    order = _order(program, shared)
    return Costs(costs, arithmetic, shared, order)


def _shared(program: Program, costs: Sequence[int]) -> frozenset[int]:
    limit = SHARED * sum(costs)
    cones: dict[Any, frozenset[int]] = {var: frozenset() for var in program.inputs}
    cones |= {var: frozenset() for var in program.consts}
    found = set()
    for index, eqn in enumerate(program.eqns):
        read = [var for var in eqn.invars if not hasattr(var, "val")]
        if eqn.effects or any(var not in cones for var in read):
            continue
        cone = frozenset({index}).union(*(cones[var] for var in read))
        if sum(costs[i] for i in cone) <= limit:
            found.add(index)
            cones |= dict.fromkeys(eqn.outvars, cone)
    return frozenset(found)


def _order(program: Program, shared: frozenset[int]) -> list[int]:
    fixed = {*program.params, *program.consts}  # values that do not depend on the inputs
    waiting: dict[Any, int] = {}
    order: list[int] = []

    def emit(index: int) -> None:
        for var in program.eqns[index].invars:
            if not hasattr(var, "val") and (first := waiting.get(var)) is not None:
                for out in program.eqns[first].outvars:
                    waiting.pop(out, None)
                emit(first)
        order.append(index)

    for index, eqn in enumerate(program.eqns):
        if index in shared:
            continue
        alone = all(hasattr(var, "val") or var in fixed for var in eqn.invars)
        if alone and not eqn.effects:
            fixed.update(eqn.outvars)
            waiting |= dict.fromkeys(eqn.outvars, index)
        else:
            emit(index)
    for index in dict.fromkeys(waiting.values()):  # results that no equation reads
        if any(out in waiting for out in program.eqns[index].outvars):
            for out in program.eqns[index].outvars:
                waiting.pop(out, None)
            emit(index)
    return order


def crossing(program: Program, order: Sequence[int]) -> list[int]:
    """Return, for every position in ``order``, the bytes live across a cut before it."""
    made: dict[Any, int] = {}
    last: dict[Any, int] = {}
    for position, index in enumerate(order):
        eqn = program.eqns[index]
        last |= {var: position for var in eqn.invars if not hasattr(var, "val") and var in made}
        made |= dict.fromkeys(eqn.outvars, position)
    change = [0] * (len(order) + 1)
    for var, end in last.items():
        change[made[var] + 1] += nbytes(var.aval)
        change[end + 1] -= nbytes(var.aval)
    return list(itertools.accumulate(change))


def cut(
    costs: Sequence[int], across: Sequence[int], stages: int, slack: float = SLACK
) -> list[int]:
    """Return the ``stages - 1`` positions of the cuts; see the formulas above.

    Args:
      costs: of the equations in order, integers of 0 or more.
      across: bytes across a cut before each equation (index 0 is not used).
      stages: at most ``len(costs)``.
      slack: share of the least maximum that a stage may have more.

    Cost: O(stages * n) numpy reductions over windows of positions.

    >>> cut([4, 1, 1, 4, 1, 1], [0, 9, 1, 9, 9, 9], 2, slack=0.2)
    [2]
    """
    total = [0, *itertools.accumulate(costs)]
    limit = math.floor(_least_maximum(total, stages) * (1 + slack))
    count = len(costs)
    sums = np.array(total, np.float64)  # exact below 2**53, and near enough above
    bytes_, tops = np.full(count + 1, np.inf), np.full(count + 1, np.inf)
    bytes_[0] = tops[0] = 0
    choices = []
    for stage in range(stages):
        next_bytes, next_tops = np.full(count + 1, np.inf), np.full(count + 1, np.inf)
        choice = np.zeros(count + 1, np.int64)
        for end in range(stage + 1, count + 1):
            start = max(bisect.bisect_left(total, total[end] - limit), stage)
            if start >= end:
                continue
            window = bytes_[start:end]
            least = window.min()
            if not np.isfinite(least):
                continue
            tallest = np.maximum(tops[start:end], sums[end] - sums[start:end])
            tallest = np.where(window == least, tallest, np.inf)
            best = int(tallest.argmin())
            next_bytes[end] = least + (across[end] if end < count else 0)
            next_tops[end] = tallest[best]
            choice[end] = start + best
        bytes_, tops = next_bytes, next_tops
        choices.append(choice)
    positions = [count]
    for choice in reversed(choices[1:]):
        positions.append(int(choice[positions[-1]]))
    return positions[:0:-1]


def _least_maximum(total: Sequence[int], stages: int) -> int:
    """Return the least maximum of ``stages`` sums of neighbours, from the running totals."""
    low = max((b - a for a, b in itertools.pairwise(total)), default=0)
    high = total[-1]
    while low < high:
        limit = (low + high) // 2
        at, used = 0, 0
        while at < len(total) - 1 and used <= stages:
            at = bisect.bisect_right(total, total[at] + limit) - 1
            used += 1
        low, high = (low, limit) if used <= stages else (limit + 1, high)
    return low


def plan_splits(program: Program, measured: Costs, stages: int) -> dict[Address, list[int]]:
    """Return into which lengths to split scans that hold more than half a stage's cost.

    The cuts are planned with every step of such a scan as an equation of its own; between two
    steps the carry and all that is live across the scan cross.
    """
    share = sum(measured.costs) / (2 * stages)
    order, across = measured.order, crossing(program, measured.order)
    costs: list[int] = []
    bytes_: list[int] = []
    steps: list[tuple[Address | None, int]] = []
    for position, index in enumerate(order):
        eqn, cost = program.eqns[index], measured.costs[index]
        length = eqn.params["length"] if index in program.scans else 1
        if cost <= share or length < 2:
            costs.append(cost)
            bytes_.append(across[position])
            steps.append((None, 0))
            continue
        within = max(across[position], sum(nbytes(var.aval) for var in eqn.outvars))
        costs += [cost // length] * length
        bytes_ += [across[position], *[within] * (length - 1)]
        steps += [(program.scans[index], step) for step in range(length)]
    if all(address is None for address, _ in steps):
        return {}
    ends: dict[Address, list[int]] = {a: [] for a, _ in steps if a is not None}
    for position in cut(costs, bytes_, min(stages, len(costs))):
        address, step = steps[position]
        if address is not None and step:
            ends[address].append(step)
    whole = {address: sum(1 for other, _ in steps if other == address) for address in ends}
    return {
        address: [b - a for a, b in itertools.pairwise([0, *found, whole[address]])]
        for address, found in ends.items()
        if found
    }


def stage_costs(costs: Sequence[int], positions: Sequence[int]) -> list[int]:
    """Return the sums of the costs between the cuts."""
    edges = [0, *positions, len(costs)]
    return [sum(costs[a:b]) for a, b in itertools.pairwise(edges)]
