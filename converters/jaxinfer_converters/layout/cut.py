"""The cheapest choice of two layouts: a minimum cut.

Every operator that may run in either layout is a variable, False (channels first) or True
(channels last). A value whose producer and users disagree costs its bytes once for each
direction, however many users disagree: an auxiliary vertex gathers them. The sum over all
values is the weight of a cut between the source (False) and the sink (True), so the minimum
cut is the best choice.
Source: Hochbaum, An efficient algorithm for image segmentation, Markov random fields and
related problems, JACM 48(4), 2001 (two labels, convex costs: one minimum cut).
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from typing import NamedTuple

import numpy as np

Vertex = Hashable
FIRST, LAST = "first", "last"
"""Vertices whose layout is given."""

_LIMIT = 2**30  # scipy's capacities are int32


class Edge(NamedTuple):
    """A value: who makes it, who reads it, and what it costs to have it in both layouts."""

    producer: Vertex
    users: Sequence[Vertex]
    cost: int


def minimum_cut(edges: Iterable[Edge]) -> dict[Vertex, bool]:
    """Return for each variable whether it is channels-last, at the least total cost.

    Where costs are equal, channels-last.

    >>> minimum_cut([Edge(FIRST, ["a"], 5), Edge("a", ["b"], 2), Edge("b", [LAST], 9)])
    {'a': False, 'b': True}
    """
    from scipy.sparse import csr_matrix  # not at the top: models load without it
    from scipy.sparse.csgraph import breadth_first_order, maximum_flow

    edges = list(edges)
    number: dict[Vertex, int] = {FIRST: 0, LAST: 1}
    for edge in edges:
        for vertex in (edge.producer, *edge.users):
            number.setdefault(vertex, len(number))
    scale = max(1, -(-2 * sum(edge.cost for edge in edges) // _LIMIT))
    forever = _LIMIT
    capacity: dict[tuple[int, int], int] = {}

    def add(a: int, b: int, weight: int) -> None:
        if a != b:
            capacity[a, b] = min(capacity.get((a, b), 0) + weight, forever)

    size = len(number)
    for edge in edges:
        producer, users = number[edge.producer], {number[user] for user in edge.users}
        weight = -(-edge.cost // scale)
        if not weight or users <= {producer}:
            continue
        to, fro, size = size, size + 1, size + 2
        add(producer, to, weight)
        add(fro, producer, weight)
        for user in users - {producer}:
            add(to, user, forever)
            add(user, fro, forever)
    if not capacity:
        return {vertex: True for vertex in number if vertex not in (FIRST, LAST)}
    rows, columns = zip(*capacity, strict=True)
    graph = csr_matrix(
        (np.array(list(capacity.values()), np.int32), (rows, columns)), shape=(size, size)
    )
    residual = graph - maximum_flow(graph, 0, 1).flow
    residual.data = np.where(residual.data > 0, residual.data, 0)
    residual.eliminate_zeros()
    reached = set(breadth_first_order(residual, 0, return_predecessors=False).tolist())
    return {v: n not in reached for v, n in number.items() if v not in (FIRST, LAST)}
