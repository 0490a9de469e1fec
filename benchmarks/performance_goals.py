"""The goals of docs/performance.md: what is required, what was reached, and by how much."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

MET, EQUAL, MISSED, OPEN = "met", "met, equal within the noise", "missed", "not measured"
F32 = ("torch-compile", "torch-compile-max-autotune", "onnxruntime", "openvino")
INT8 = ("onnxruntime-int8", "openvino-int8")
OWN, LOSSLESS, TUNED = "jaxinfer", "jaxinfer-tuned:lossless", "jaxinfer-tuned:tuned"
BF16, FP8 = "jaxinfer-tuned:bf16", "jaxinfer-tuned:fp8"
RIVAL = "torch-compile-max-autotune-bf16"

Result = Mapping[str, Any]


class Verdict(NamedTuple):
    """Whether a goal is met.

    Attributes:
      status: ``MET``, ``EQUAL``, ``MISSED`` or ``OPEN``.
      reached: how many times as fast as what it is held against; None if unknown.
      required: of it.
      words: what was compared, or why nothing was.
    """

    status: str
    reached: float | None
    required: float
    words: str

    @property
    def missed_by(self) -> str:
        """How much slower than required, in percent."""
        if self.status != MISSED or not self.reached:
            return ""
        return f"{100 * (self.required / self.reached - 1):.0f} %"


def row_of(result: Result, side: str) -> Mapping[str, Any] | None:
    """Return the row of a side, if it was measured and its numbers are not wrong."""
    for row in result["bench"]["rows"]:
        if row["side"] == side and row["status"] == "measured" and not row["wrong"]:
            return row
    return None


def drop_of(result: Result, side: str) -> float | None:
    """Return the drop of a side on the held-out data, in the metric's unit; None if unknown."""
    reference = result["metric"]["reference"]
    name = side.partition(":")[2]
    if name:
        found = result["tunings"].get(name, {}).get("test_metric")
    else:
        found = result["judged"].get(side, {}).get("metric")
    return None if found is None or reference is None else reference - found


def keeps(result: Result, side: str) -> bool | None:
    """Return whether a side stays within the drop that the metric allows; None if unknown."""
    drop = drop_of(result, side)
    if drop is None:
        row = row_of(result, side)
        return True if row is not None and row["precision"] == "f32" else None
    return math.isfinite(drop) and drop <= result["metric"]["max_drop"]


def in_float32(result: Result) -> Verdict:
    """Hold the lossless arrangement against the fastest peer in float32.

    What is slower by at most two standard errors of the difference counts as equal.
    """
    ours = row_of(result, LOSSLESS)
    if ours is None:
        return Verdict(OPEN, None, 1.0, _why(result, LOSSLESS))
    return _held(result, ours, F32, "in float32")


def fastest_within(result: Result) -> str | None:
    """Return the fastest of our own arrangements that stays within the drop."""
    times = {
        side: row["median_ms"]
        for side in (LOSSLESS, TUNED)
        if keeps(result, side) and (row := row_of(result, side)) is not None
    }
    return min(times, key=times.__getitem__, default=None)


def within_drop(result: Result) -> Verdict:
    """Hold the fastest arrangement within the drop against the fastest int8 peer within it."""
    side = fastest_within(result)
    ours = row_of(result, side) if side else None
    if ours is None:
        return Verdict(OPEN, None, 1.0, _why(result, TUNED))
    rivals = [side for side in INT8 if keeps(result, side)]
    if not rivals:
        return Verdict(OPEN, None, 1.0, "no int8 peer stays within the drop")
    return _held(result, ours, rivals, "within the drop")


def _held(result: Result, ours: Mapping[str, Any], peers: Sequence[str], words: str) -> Verdict:
    rows = [row for side in peers if (row := row_of(result, side)) is not None]
    if not rows:
        return Verdict(OPEN, None, 1.0, f"no peer {words} was measured")
    best = min(rows, key=lambda row: row["median_ms"])
    reached = best["median_ms"] / ours["median_ms"]
    noise = 2 * math.hypot(_error_of_median(best), _error_of_median(ours))
    behind = ours["median_ms"] - best["median_ms"]
    status = MET if behind <= 0 else EQUAL if behind <= noise else MISSED
    return Verdict(
        status,
        reached,
        1.0,
        f"{ours['median_ms']:.3g} ms, {best['side']} {best['median_ms']:.3g} ms",
    )


def _error_of_median(row: Mapping[str, Any]) -> float:
    """Return the standard error of a median, of calls that scatter as a normal distribution."""
    return 1.2533 * 1.4826 * row["mad_ms"] / math.sqrt(row["calls"])


def on_gpu(results: Sequence[Result]) -> dict[str, Verdict]:
    """Hold bf16 against torch.compile(max-autotune), and FP8 against our own bf16."""
    found = {}
    pairs: dict[str, tuple[str, str, float, Callable[[Result], bool]]] = {
        "bf16 against torch.compile(max-autotune) in bf16": (BF16, RIVAL, 1.1, lambda _: True),
        "FP8 against our own bf16, batch 32 and more": (FP8, BF16, 1.4, lambda r: r["batch"] >= 32),
    }
    for title, (side, rival, required, fits) in pairs.items():
        ratios = []
        for result in filter(fits, results):
            ours, other = row_of(result, side), row_of(result, rival)
            if ours is not None and other is not None and keeps(result, side):
                ratios.append(other["median_ms"] / ours["median_ms"])
        if not ratios:
            found[title] = Verdict(OPEN, None, required, "no pair was measured")
            continue
        mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
        words = f"geometric mean of {len(ratios)}: {', '.join(f'{x:.2f}' for x in ratios)}"
        found[title] = Verdict(MET if mean >= required else MISSED, mean, required, words)
    return found


TIE = 0.03
"""What the search itself takes for noise (``jaxinfer.tune``)."""


def of_search(check: Result) -> dict[str, tuple[bool, str]]:
    """Return the goals of the search itself: whether met, and in words.

    Two searches measure anew, so that near equals may change places: a search that was killed has
    to decide as it does again on its own numbers, and as the one left alone, or for what is as
    fast by its own numbers (``TIE``).
    """
    kills = ", ".join(f"{each['after_s']:g} s" for each in check["kills"]) or "never"
    replay = "the same" if check["same_as_replayed"] else "ANOTHER"
    limit = check["limit_s"] or 1.25 * check["budget_s"]
    return {
        f"a search with a budget of {check['budget_s']:g} s ends within {limit:g} s": (
            check["process_s"] <= limit,
            f"the call took {check['optimize_s']:.1f} s, its process {check['process_s']:.1f} s",
        ),
        "killed at random moments and continued, it gives the same recipe": (
            bool(check["same_as_replayed"] and same_as_alone(check)),
            f"killed after {kills}: {beside_alone(check)}; from its journal: {replay} recipe",
        ),
    }


def same_as_alone(check: Result) -> bool:
    """Return whether the killed search chose as the one left alone, noise aside."""
    apart = check["apart"]
    return check["same_as_uninterrupted"] or (apart is not None and abs(apart) <= TIE)


def beside_alone(check: Result) -> str:
    """Return what the killed search and the one left alone chose, in words."""
    killed, alone = check["killed"]["label"], check["uninterrupted"]["label"]
    if check["same_as_uninterrupted"]:
        return f"{killed}, as left alone"
    apart = check["apart"]
    numbers = (
        "which it did not measure" if apart is None else f"{100 * apart:+.1f} % by its numbers"
    )
    return f"{killed}; left alone: {alone} ({numbers})"


def _why(result: Result, side: str) -> str:
    for row in result["bench"]["rows"]:
        if row["side"] == side:
            if row["status"] == "measured" and row["wrong"]:
                return f"{side}: wrong numbers (error {row['error']})"
            if row["status"] == "measured":
                return f"{side}: not within the drop on held-out data"
            return f"{side}: {row['status']}: {row['reason']}"
    missing = result["tunings"].get(side.partition(":")[2], {}).get("missing")
    return missing or f"no {side}"
