"""Buckets with the least padded work, against every choice of buckets."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxinfer.compile.bucket import choose_buckets, waste
from jaxinfer.core.errors import InputError

histograms = st.dictionaries(st.integers(1, 30), st.integers(0, 9), min_size=1, max_size=7).filter(
    lambda h: any(h.values())
)
works = st.sampled_from([None, lambda n: n * n + 5, lambda n: -(-n // 8), lambda n: 1.0])


def work_of(buckets, histogram, work):
    work = work or float
    return sum(c * work(min(b for b in buckets if b >= n)) for n, c in histogram.items() if c)


@given(histograms, st.integers(1, 5), works)
@settings(max_examples=150, deadline=None)
def test_against_every_choice(histogram, count, work):
    buckets = choose_buckets(histogram, count, work=work)
    sizes = sorted(n for n, c in histogram.items() if c)
    best = min(
        work_of(chosen, histogram, work)
        for k in range(1, count + 1)
        for chosen in itertools.combinations(sizes, k)
        if chosen[-1] == sizes[-1]
    )
    assert work_of(buckets, histogram, work) == best
    assert len(buckets) <= count
    assert buckets == sorted(set(buckets))
    real = sum(c * (work or float)(n) for n, c in histogram.items())
    assert waste(buckets, histogram, work=work) == pytest.approx(1 - real / best)


def test_sizes_as_a_list():
    assert choose_buckets([3, 3, 4, 9], 2) == [4, 9]
    assert waste([4, 9], [3, 3, 4, 9]) == 1 - 19 / 21


def test_bad_histograms():
    with pytest.raises(InputError, match="the histogram is empty"):
        choose_buckets({3: 0}, 1)
    with pytest.raises(InputError, match="the histogram is empty"):
        choose_buckets([], 1)
    with pytest.raises(InputError, match=r"0: 1\n.*3: -1\n.*2.5: 1"):
        choose_buckets({0: 1, 3: -1, 2.5: 1}, 1)
    with pytest.raises(InputError, match="at least 1 bucket, got count=0"):
        choose_buckets({3: 1}, 0)
    with pytest.raises(InputError, match=r"work\(4\) < work\(3\)"):
        choose_buckets({3: 1, 4: 1}, 1, work=lambda n: -n)
    with pytest.raises(InputError, match="size 9 is above the largest bucket, 4"):
        waste([4], [9])
    with pytest.raises(InputError, match="the buckets:\n  bucket 4 is there more than once"):
        waste([4, 4], [3])
