"""Padding in equations with jaxprs inside: calls, branches and loops.

call     its body, on the operands
cond     every branch; the results are padded where all of them are
while    the carry's padding before and after a step must be the same; found by repetition
scan     the same; over a padded axis, steps from the real length on keep the carry
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from jaxinfer.compile.padding.axes import (
    Factor,
    Refusal,
    State,
    canonical,
    is_uniform,
    join,
    show,
    varied,
)
from jaxinfer.compile.padding.site import Site, unknown
from jaxinfer.compile.padding.sizes import Length
from jaxinfer.core._compat import scan_counts


def _inline(site: Site, each: Any, live: Sequence[bool]) -> list[State | None]:
    return site.walker.inside(site, 0, each, site.ins, live)


def _cond(site: Site, each: Any, live: Any) -> list[State | None]:
    walker, outs = site.walker, None
    for number in range(len(each[0])):
        found = walker.inside(site, number, each, site.ins[1:])
        outs = found if outs is None else [_join(a, b) for a, b in zip(outs, found, strict=True)]
    return outs or []


def _join(a: State | None, b: State | None) -> State | None:
    if a is None or b is None:
        return None
    return tuple(join(x, y) for x, y in zip(a, b, strict=True))


def _carried(
    site: Site, init: list[State | None], step: Callable[[list[State | None]], list[State | None]]
) -> list[State | None]:
    """Return the states of a loop's carry: they hold before and after every step."""
    state = list(init)
    while True:  # it ends: an axis only ever stops being uniform
        site.walker.forget(site.address)
        after = [_join(a, b) for a, b in zip(state, step(state), strict=True)]
        if after == state or any(one is None for one in after):
            return after
        state = after


def _while(site: Site, each: Any, live: Any) -> list[State | None]:
    first, second = site.params["cond_nconsts"], site.params["body_nconsts"]
    of_cond, of_body = site.ins[:first], site.ins[first : first + second]
    walker = site.walker
    carry = _carried(
        site,
        list(site.ins[first + second :]),
        lambda state: walker.inside(site, 1, each, [*of_body, *state]),
    )
    walker.inside(site, 0, each, [*of_cond, *carry])
    return carry


def _scan(site: Site, each: Any, live: Any) -> list[State | None]:
    consts, carried = scan_counts(site.params)
    walker, ins = site.walker, site.ins
    xs = ins[consts + carried :]
    length = site.length(site.param("length"), "its number of steps")
    along = canonical(
        [Factor(site.params["length"], length if isinstance(length, Length) else None)]
    )
    for number, state in enumerate(xs):
        if varied(state[0]) != along and not is_uniform(state[0]):
            raise Refusal(f"it steps over {show(state[0])} (operand {consts + carried + number})")
    slices = [state[1:] for state in xs]
    outs: list[State | None] = []

    def step(state: list[State | None]) -> list[State | None]:
        outs[:] = walker.inside(site, 0, each, [*ins[:consts], *state, *slices])
        return outs[:carried]

    carry = _carried(site, list(ins[consts : consts + carried]), step)
    if isinstance(length, Length) and carried:
        site.replace(KeepCarry(length), f"steps from {length} on keep what is carried", length)
    return [*carry, *(None if y is None else (along, *y) for y in outs[carried:])]


@dataclasses.dataclass(frozen=True)
class KeepCarry:
    """Marks a scan whose steps from a real length on keep what is carried."""

    length: Length


def _shard_map(site: Site, each: Any, live: Any) -> list[State | None]:
    return list(unknown(site))


CONTROL: dict[str, Callable[..., list[State | None]]] = {
    "inline": _inline,
    "cond": _cond,
    "while": _while,
    "scan": _scan,
    "shard_map": _shard_map,
}
