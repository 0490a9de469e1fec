"""The dimensions of a program: classes of factors, and what to split each would communicate."""

from __future__ import annotations

import dataclasses

from jaxinfer.sharding._auto_factors import Factor, expand, lead
from jaxinfer.sharding._auto_flow import Flow


@dataclasses.dataclass
class Dimension:
    """A class of factors: one dimension of the program.

    Attributes:
      size: its size.
      params: (path, axis) of every parameter axis that it leads.
      inside: paths of parameters that have it behind another factor of an axis.
      weight: paths' bytes, filled in by the one who knows them.
      wire: bytes that would be communicated if it were split, all uses.
      kinds: ``heads``, ``experts``, ``vocabulary``, ``scan``.
      summed: paths of parameters whose products sum over it.
      apart: dimensions that lead another axis of a value that it leads an axis of.
      inputs: (jaxpr, input, axis) of every input axis that it leads.
    """

    size: int
    number: int
    params: list[tuple[str, int]] = dataclasses.field(default_factory=list)
    inside: set[str] = dataclasses.field(default_factory=set)
    wire: int = 0
    kinds: set[str] = dataclasses.field(default_factory=set)
    summed: set[str] = dataclasses.field(default_factory=set)
    apart: set[Factor] = dataclasses.field(default_factory=set)
    inputs: list[tuple[int, int, int]] = dataclasses.field(default_factory=list)


def dimensions(flow: Flow) -> dict[Factor, Dimension]:
    """Return the dimensions of a program, by the factor that stands for each."""
    found: dict[Factor, Dimension] = {}

    def of(factor: Factor) -> Dimension:
        return found.setdefault(factor, Dimension(factor.size, factor.number))

    for path, axes in flow.params.items():
        for a, each in enumerate(axes):
            factors = expand(each)
            if factors:
                of(factors[0]).params.append((path, a))
            for factor in factors[1:]:
                of(factor).inside.add(path)
    for number, inputs in enumerate(flow.inputs):
        for index, axes in enumerate(inputs):
            for a, each in enumerate(axes):
                if factor := lead(each):
                    of(factor).inputs.append((number, index, a))
    values = [*((axes, 0) for axes in flow.params.values()), *flow.seen]
    for axes, size in values:
        expanded = [expand(each) for each in axes]
        leads = [factors[0] for factors in expanded if factors]
        for factor in leads:
            if leads.count(factor) > 1:
                of(factor).wire += size
            of(factor).apart |= {other for other in leads if other is not factor}
        for factors in expanded:
            for factor in factors[1:]:
                of(factor).wire += size  # behind another factor: the axis cannot be split along it
    for use in flow.uses:
        if factor := lead(use.axis):
            dimension = of(factor)
            dimension.wire += use.bytes * (1 if use.kind in ("break", "output") else 2)
            if use.kind == "contract" and use.path:
                dimension.summed.add(use.path)
    for kind, each in flow.tags:
        if factor := lead(each):
            of(factor).kinds.add(kind)
    return found
