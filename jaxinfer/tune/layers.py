"""The layers of a model on a device: what each group costs, alone, and how well it is computed.

Times are of products on random values, each alone (``_layers_times.py``); what is between them
(norms, activations, softmax) is in no group. The bound is that of the arithmetic, without
margin, so ``achieved`` is the share of the best rate that the micro-benchmark has seen.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jaxinfer.core.leaves import leaves
from jaxinfer.core.model import Model
from jaxinfer.tune._layers_levels import level_of, read_level
from jaxinfer.tune._layers_products import products_of
from jaxinfer.tune._layers_times import GroupTimes as GroupTimes
from jaxinfer.tune._layers_times import group_times as group_times
from jaxinfer.tune.bounds import compute_dtype, peak_of
from jaxinfer.tune.candidate import Candidate
from jaxinfer.tune.device import DeviceProfile
from jaxinfer.tune.groups import Group
from jaxinfer.tune.results import Layer


def layers(
    model: Model,
    candidate: Candidate,
    groups: Sequence[Group],
    arrays: Any,
    device: DeviceProfile,
    sensitivity: Mapping[str, float] | None = None,
    *,
    level: str = "",
    seconds: float = 10.0,
    note: Callable[[str], None] | None = None,
    profile: Mapping[str, float] | None = None,
) -> list[Layer]:
    """Return what is known of each group in an arrangement.

    Args:
      model: the model before the candidate's transforms, in float32.
      candidate: the arrangement: precisions are read from it.
      groups: of the model.
      arrays: the inputs of one call, arrays or shapes, or a data set.
      device: its micro-benchmark.
      sensitivity: of ``sensitivities``, by group; None if it was not measured.
      level: the level that they are of.
      seconds: for timing; what is not reached has no time.
      note: is called with each line about what was left out.
      profile: milliseconds by group where the back-end counts them itself (OpenVINO).

    Returns:
      A Layer for each group, in order. Times are None for groups that are only gathered from, and
      for what the seconds did not reach or the back-end did not count.
      Products are those of the model as it came, also where folding joins some.
    """
    say = note or (lambda line: None)
    named, known = leaves(model.params), sensitivity or {}
    own = {group.name: level_of(candidate, group.name) for group in groups}
    times: Mapping[str, float | None] = {}
    if candidate.backend == "xla":
        wanted = {name: (each,) for name, each in own.items()}
        found = group_times(model, groups, arrays, wanted, seconds)
        times = {name: found.ms[name][each] for name, each in own.items()}
        for line in found.notes:
            say(line)
    elif profile:
        times = dict(profile)
        say(f"times of layers are {candidate.backend}'s own counters, bias and activation included")
    else:
        say(f"layers are not timed alone by {candidate.backend}")
    total = sum(each for each in times.values() if each is not None)
    bounds = _bounds(model, candidate, groups, arrays, device)
    made = []
    for group in groups:
        took, bound = times.get(group.name), bounds[group.name]
        made.append(
            Layer(
                name=group.name,
                parameters=sum(named[path].size for path in group.paths),
                flops=group.flops,
                precision=own[group.name],
                sensitivity=known.get(group.name),
                sensitivity_level=level if group.name in known else "",
                time_ms=took,
                time_share=took / total if took is not None and total else None,
                bound_ms=bound,
                achieved=bound / took if took and bound is not None else None,
            )
        )
    if any(each.achieved is not None and each.achieved > 1 for each in made):
        say(
            "some layers beat the micro-benchmark: the machine was busier then, bounds are too high"
        )
    return made


def product_times(
    model: Model, groups: Sequence[Group], arrays: Any, level: str, seconds: float = 10.0
) -> dict[str, float]:
    """Return the milliseconds that each group saves at a level, against float32; may be negative.

    Args:
      model, groups, arrays, seconds: as for ``group_times``.
      level: to compare with float32.

    Returns:
      By group, 0 for what is only gathered. A group that was not timed in full is taken to save
      per FLOP what the timed ones save together.
    """
    found = group_times(
        model, groups, arrays, {group.name: ("f32", level) for group in groups}, seconds
    )
    saved: dict[str, float] = {}
    flops = 0
    for group in groups:
        slow, fast = (found.ms[group.name][each] for each in ("f32", level))
        if slow is not None and fast is not None:
            saved[group.name] = slow - fast
            flops += group.flops
    rate = sum(saved.values()) / flops if flops else 0.0
    return {group.name: saved.get(group.name, rate * group.flops) for group in groups}


def _bounds(
    model: Model, candidate: Candidate, groups: Sequence[Group], arrays: Any, device: DeviceProfile
) -> dict[str, float | None]:
    """Return the roofline of each group: the best rate seen, no margin; None if it is unknown."""
    place = {path: group.name for group in groups for path in group.paths}
    found: dict[str, float | None] = {g.name: 0.0 if g.flops else None for g in groups}
    for product in products_of(model, arrays).all:
        name = place.get(product.path or "")
        if name is None or not product.counted or not product.flops:
            continue
        level = read_level(level_of(candidate, name))
        rate = peak_of(compute_dtype(product, level), candidate, device)
        before = found[name]
        if before is not None:
            found[name] = None if rate is None else before + 1e3 * product.flops / rate
    return found
