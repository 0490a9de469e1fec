"""Schedules are their formulas in float64, at every kind of step."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxinfer.core.errors import InputError
from jaxinfer.numerics import masks, schedules


def slow_cubic(step, initial, final, start, end):
    if step < start:
        return initial
    if step >= end:
        return final
    return final + (initial - final) * (1 - (step - start) / (end - start)) ** 3


def slow_iterative(step, final, rounds, every, start):
    density, done = 1.0, 0
    while done < rounds and step >= start + done * every:
        density *= (1 - final) ** (1 / rounds)
        done += 1
    return 1 - density


CASES = {
    "one shot": (schedules.one_shot(0.7, 5), lambda step: 0.7 * (step >= 5)),
    "cubic": (schedules.cubic(0.1, 0.9, 3, 16), lambda step: slow_cubic(step, 0.1, 0.9, 3, 16)),
    "one step": (schedules.cubic(0.1, 0.9, 3, 4), lambda step: slow_cubic(step, 0.1, 0.9, 3, 4)),
    "iterative": (
        schedules.iterative(0.9, 5, every=3, start=2),
        lambda step: slow_iterative(step, 0.9, 5, 3, 2),
    ),
    "one round": (schedules.iterative(0.7, 1, start=5), lambda step: 0.7 * (step >= 5)),
}


@pytest.mark.parametrize("name", CASES)
def test_formula(name):
    schedule, slow = CASES[name]
    steps = range(-2, 21)
    want = np.array([slow(step) for step in steps])
    for got in (
        [schedule(step) for step in steps],
        [schedule(float(step)) for step in steps],
        list(map(jax.jit(schedule), jnp.arange(-2, 21))),
        jax.vmap(schedule)(jnp.arange(-2, 21)),
    ):
        got = jnp.stack(got) if isinstance(got, list) else got
        assert got.dtype == jnp.float32
        np.testing.assert_allclose(got, want, rtol=0, atol=3e-7)  # a few roundings of float32
        assert (np.diff(got) >= 0).all()


@pytest.mark.parametrize("name", CASES)
def test_ends_exactly(name):
    schedule, slow = CASES[name]
    for step in (20, 2**30):
        assert float(schedule(step)) == float(np.float32(slow(20)))


def test_final_is_met_to_the_bit():
    for final in np.random.default_rng(0).uniform(0, 1, 20):
        for schedule in (
            schedules.one_shot(final),
            schedules.cubic(0, final, 0, 7),
            schedules.iterative(final, 7),
        ):
            assert np.asarray(schedule(7)) == np.float32(final)


def test_large_steps():
    schedule = schedules.cubic(0.0, 0.5, 2**30, 2**30 + 4)  # float32 would give steps of 64
    got = [float(schedule(2**30 + i)) for i in range(5)]
    np.testing.assert_allclose(got, [0.5 - 0.5 * (1 - i / 4) ** 3 for i in range(5)], atol=1e-7)


def test_masks_follow_a_schedule_under_one_trace():
    schedule = schedules.cubic(0.0, 0.8, 0, 10)
    x = jax.random.normal(jax.random.key(0), (31, 37))
    traced = jax.jit(lambda step: masks.unstructured(x, schedule(step)))
    kept = [traced(jnp.int32(step)) for step in range(12)]
    for step, mask in enumerate(kept):
        assert int(mask.sum()) == x.size - round(float(schedule(step)) * x.size)
    assert all((a | ~b).all() for a, b in itertools.pairwise(kept))  # nested
    assert traced._cache_size() == 1


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: schedules.one_shot(1.0), r"one_shot schedule: final must be in \[0, 1\), got 1"),
        (lambda: schedules.cubic(-0.1, 0.5, 0, 1), r"cubic schedule: initial must be in"),
        (lambda: schedules.cubic(0.0, float("nan"), 0, 1), r"final must be in"),
        (lambda: schedules.cubic(0.6, 0.5, 0, 1), "required initial <= final, got 0.6 > 0.5"),
        (lambda: schedules.cubic(0.0, 0.5, 4, 4), "required start < end, got 4 and 4"),
        (lambda: schedules.iterative(0.5, 0), "must be at least 1, got 0 and 1"),
        (lambda: schedules.iterative(0.5, 2, every=0), "must be at least 1, got 2 and 0"),
        (lambda: schedules.iterative(1.2, 2), r"iterative schedule: final must be in"),
    ],
)
def test_bad_input(call, match):
    with pytest.raises(InputError, match=match):
        call()
