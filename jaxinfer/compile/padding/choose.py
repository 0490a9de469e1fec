"""The buckets with the least padded work for a histogram of sizes.

    least(j, k) = min over i < j of  least(i, k - 1) + work(s_j) * count(s_i < s <= s_j)

by dynamic programming over the sizes that occur: an optimal bucket is one of them, for a smaller
one would do else. ``work`` is what one run of a size costs, linear by default.

Cost: O(k m**2) for m sizes that occur. It does not know what a bucket costs to compile.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from jaxinfer.core.errors import InputError, listing

Histogram = Mapping[int, int] | Sequence[int]


def choose_buckets(
    histogram: Histogram, count: int, *, work: Callable[[int], float] | None = None
) -> list[int]:
    """Return at most ``count`` buckets that hold every size with the least padded work.

    Args:
      histogram: how often each size occurs, ``{size: count}``, or the sizes themselves.
      count: how many buckets there may be.
      work: cost of one run of a size; it must not fall as sizes grow. Default: the size.

    Returns:
      The buckets, ascending; fewer than ``count`` where fewer sizes occur.

    Raises:
      InputError: nothing occurs, sizes or counts that are none, a count below 1, work that falls.

    >>> choose_buckets({3: 10, 4: 1, 100: 1}, 2)
    [4, 100]
    >>> choose_buckets([7, 7, 9], 5)
    [7, 9]
    """
    counts = counted(histogram)
    if count < 1:
        raise InputError(f"required at least 1 bucket, got count={count}")
    work = work or float
    sizes = sorted(counts)
    costs = [float(work(size)) for size in sizes]
    falls = [f"work({b}) < work({a})" for a, b, x, y in
             zip(sizes, sizes[1:], costs, costs[1:], strict=False) if y < x]  # fmt: skip
    if falls:
        raise InputError(listing("work must not fall as sizes grow:", falls))
    seen = [0]
    for size in sizes:
        seen.append(seen[-1] + counts[size])
    m, infinity = len(sizes), float("inf")
    least = [0.0] + [infinity] * m
    cuts: list[list[int]] = []
    for _ in range(min(count, m)):
        after, cut = [infinity] * (m + 1), [0] * (m + 1)
        after[0] = 0.0
        for j in range(1, m + 1):
            for i in range(j):
                cost = least[i] + costs[j - 1] * (seen[j] - seen[i])
                if cost < after[j]:
                    after[j], cut[j] = cost, i
        least = after
        cuts.append(cut)
    buckets, j = [], m
    for cut in reversed(cuts):
        if j:
            buckets.append(sizes[j - 1])
            j = cut[j]
    return buckets[::-1]


def waste(
    buckets: Sequence[int], histogram: Histogram, *, work: Callable[[int], float] | None = None
) -> float:
    """Return the share of the work that is padding: ``1 - real / padded``.

    Args:
      buckets: ascending sizes.
      histogram: as for ``choose_buckets``.
      work: as for ``choose_buckets``.

    Raises:
      InputError: a size above the largest bucket, or buckets that are none.

    >>> waste([4, 8], {3: 2, 8: 1})
    0.125
    """
    counts = counted(histogram)
    if faults := bucket_faults(buckets):
        raise InputError(listing("the buckets:", faults))
    if max(counts) > buckets[-1]:
        raise InputError(f"size {max(counts)} is above the largest bucket, {buckets[-1]}")
    work = work or float
    real = sum(work(size) * count for size, count in counts.items())
    padded = sum(
        work(next(b for b in buckets if b >= size)) * count for size, count in counts.items()
    )
    return 1 - real / padded if padded else 0.0


def counted(histogram: Histogram) -> dict[int, int]:
    """Return a histogram as ``{size: count}``, without what does not occur.

    Raises:
      InputError: see ``choose_buckets``; all problems at once.
    """
    given = histogram if isinstance(histogram, Mapping) else Counter(histogram)
    whole = lambda value: isinstance(value, int) or hasattr(value, "__index__")
    faults = [
        f"{size!r}: {count!r}"
        for size, count in given.items()
        if not (whole(size) and whole(count) and int(size) > 0 and int(count) >= 0)
    ]
    if faults:
        title = "a histogram needs positive sizes and counts of 0 or more, integers; got"
        raise InputError(listing(title, faults))
    found = {int(size): int(count) for size, count in given.items() if count}
    if not found:
        raise InputError("the histogram is empty: no size occurs")
    return found


def bucket_faults(buckets: Sequence[int]) -> list[str]:
    """Return what is wrong with a list of buckets."""
    sizes = list(buckets)
    if not sizes:
        return ["required at least one bucket, got none"]
    faults = [
        f"required positive integers, got {size!r}"
        for size in sizes
        if isinstance(size, bool) or not hasattr(size, "__index__") or size < 1
    ]
    if faults:
        return faults
    doubled = sorted({size for size in sizes if sizes.count(size) > 1})
    faults = [f"bucket {size} is there more than once" for size in doubled]
    if sizes != sorted(sizes):
        faults.append(f"required ascending sizes, got {sizes}; write {sorted(set(sizes))}")
    return faults
