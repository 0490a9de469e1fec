"""Adaptive: which point runs, when it changes, what is recorded; no call compiles."""

import threading
import types

import jax.numpy as jnp
import numpy as np
import pytest

import jaxinfer as ji
from jaxinfer.core.errors import InputError
from jaxinfer.tune._adaptive_points import spread
from jaxinfer.tune.adaptive import Adaptive, Point
from jaxinfer.tune.measurement import Measurement


class Clock:
    """A clock that the points themselves move."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def point(clock, name, ms, drop=0.0, spread=0.0, peak=None, factor=None):
    """Return a point whose call takes ``ms * factor[0]`` on the clock and returns its name."""

    def model(*args):
        clock.now += ms * (factor or [1.0])[0] / 1e3
        return name

    return Point(name, model, ms, ms + spread, 1, drop, 10, peak)


@pytest.fixture
def clock():
    return Clock()


def three(clock, factor=None, **settings):
    points = [
        point(clock, "int8", 2.0, 0.02, 0.3, 100, factor),
        point(clock, "f32", 10.0, 0.0, 1.5, 400, factor),
        point(clock, "bf16", 5.0, 0.01, 0.6, 200, factor),
    ]
    return Adaptive.of(points, clock=clock, **settings)


def test_the_most_accurate_that_fits_runs(clock):
    adaptive = three(clock, patience=0, alpha=1e-6)  # learns nothing here
    assert [p.name for p in adaptive.points] == ["f32", "bf16", "int8"]
    runs = [adaptive(0, deadline_ms=ms) for ms in (None, 12, 11.5, 11.4, 5.6, 5.5, 2.3, 2.2)]
    assert runs == ["f32", "f32", "f32", "bf16", "bf16", "int8", "int8", "int8"]
    last = adaptive.history[-1]
    assert not last.fits
    assert last.reason.startswith("nothing fits (p99 2.3 ms, deadline 2.2 ms)")
    assert adaptive.report().unfit == 1


def test_better_by_rounding_is_not_more_accurate(clock):
    points = [
        point(clock, "slow", 9.0, -1e-7),
        point(clock, "fast", 2.0),
        point(clock, "c", 1.0, 0.1),
    ]
    assert Adaptive.of(points, clock=clock)(0) == "fast"


def test_p99_starts_as_measured(clock):
    adaptive = three(clock)
    assert [round(row[3], 9) for row in adaptive.report().points] == [11.5, 5.6, 2.3]


def test_memory_limits(clock):
    adaptive = three(clock, patience=0)
    assert [adaptive(0, memory_bytes=n) for n in (400, 399, 100)] == ["f32", "bf16", "int8"]
    assert adaptive(0, memory_bytes=99) == "int8"  # nothing fits
    unknown = Adaptive.of([point(clock, "a", 2.0), point(clock, "b", 1.0, 0.1, peak=5)])
    assert unknown(0, memory_bytes=10) == "b"


def test_load_takes_points_by_speed(clock):
    adaptive = three(clock, patience=0)
    runs = [adaptive(0, load=load) for load in (0, 0.33, 0.34, 0.66, 0.67, 1)]
    assert runs == ["f32", "f32", "bf16", "bf16", "int8", "int8"]
    assert all(record.fits for record in adaptive.history)
    adaptive.report_load(0)
    assert adaptive(0) == "f32"
    adaptive.report_load(8)  # of 16
    assert adaptive(0) == "bf16"
    adaptive.report_load(1000)
    assert adaptive(0) == "int8"
    assert adaptive(0, load=0) == "f32"  # what a call says itself counts


def test_limits_hold_together(clock):
    adaptive = three(clock, patience=0)
    assert adaptive(0, deadline_ms=20, memory_bytes=250) == "bf16"
    assert adaptive(0, deadline_ms=3, memory_bytes=250) == "int8"
    assert adaptive(0, deadline_ms=20, load=0.9) == "int8"


def test_down_at_once_and_up_with_patience(clock):
    adaptive = three(clock, patience=4, margin=0.2)
    assert adaptive(0, deadline_ms=20) == "f32"
    assert adaptive(0, deadline_ms=6) == "bf16"  # at once
    assert adaptive(0, deadline_ms=2.5) == "int8"
    runs = [adaptive(0, deadline_ms=20) for _ in range(4)]
    assert runs == ["int8", "int8", "int8", "f32"]
    assert "f32 has fitted in 4 calls" in adaptive.history[-1].reason
    assert adaptive.report().switches == 3
    assert [record.switched for record in adaptive.history] == [
        *(False, True, True, False, False, False, True),
    ]


def test_a_point_without_the_margin_is_not_gone_back_to(clock):
    adaptive = three(clock, patience=2, margin=0.2)
    adaptive(0, deadline_ms=6)
    runs = [adaptive(0, deadline_ms=12) for _ in range(9)]  # 11.5 fits, but not 0.8 * 12
    assert set(runs) == {"bf16"}
    assert adaptive.history[-1].reason == "f32 fits without the margin"
    runs = [adaptive(0, deadline_ms=15) for _ in range(3)]
    assert runs == ["bf16", "f32", "f32"]
    assert adaptive(0, deadline_ms=12) == "f32"  # where it is, it stays


def test_an_interruption_starts_the_patience_again(clock):
    adaptive = three(clock, patience=3)
    adaptive(0, deadline_ms=2.5)
    runs = [adaptive(0, deadline_ms=ms) for ms in (20, 20, 2.5, 20, 20, 20)]
    assert runs == ["int8"] * 5 + ["f32"]


def test_the_cautious_goal_of_a_streak_is_taken(clock):
    adaptive = three(clock, patience=3)
    adaptive(0, deadline_ms=2.5)
    runs = [adaptive(0, deadline_ms=ms) for ms in (20, 7.5, 20)]
    assert runs == ["int8", "int8", "bf16"]


def test_it_learns_that_everything_is_slow_and_forgets_it(clock):
    factor = [1.0]
    adaptive = three(clock, factor, patience=2, alpha=0.3)
    assert {adaptive(0, deadline_ms=16) for _ in range(5)} == {"f32"}
    factor[0] = 2.0  # a neighbour takes half of the machine
    runs = [adaptive(0, deadline_ms=16) for _ in range(40)]
    assert runs[0] == "f32"
    assert runs[-1] == "bf16"  # 10 ms, where f32 takes 20
    missed = [record.met for record in adaptive.history].count(False)
    assert 0 < missed < 6
    assert [state.mean for state in adaptive._states] == pytest.approx([20, 10, 4], rel=0.05)
    factor[0] = 1.0
    runs = [adaptive(0, deadline_ms=16) for _ in range(40)]
    assert runs[-1] == "f32"
    report = adaptive.report()
    assert report.switches == 2
    assert sum(row[5] for row in report.points) == missed


def test_one_slow_call_does_not_ban_a_point_for_ever(clock):
    factor = [1.0]
    adaptive = three(clock, factor, patience=3)
    adaptive(0, deadline_ms=16)
    factor[0] = 30.0
    adaptive(0, deadline_ms=16)
    factor[0] = 1.0
    runs = [adaptive(0, deadline_ms=16) for _ in range(80)]
    assert runs[0] == "bf16"
    assert runs[-1] == "f32"


def test_spread_counts(clock):
    steady = Adaptive.of([point(clock, "a", 10.0), point(clock, "b", 1.0, 0.1)], clock=clock,
                         patience=0)  # fmt: skip
    assert steady(0, deadline_ms=11) == "a"
    state = steady._states[0]
    for ms in (8.0, 12.0) * 20:  # the same mean, another spread
        state.observe(ms, 0.1)
    assert state.mean == pytest.approx(10, abs=0.5)
    assert steady(0, deadline_ms=11) == "b"


def test_errors_come_through_and_are_recorded(clock):
    def broken(x):
        raise ValueError("no such input")

    adaptive = Adaptive.of([Point("a", broken, 1.0, 1.0)], clock=clock)
    with pytest.raises(ValueError, match="no such input"):
        adaptive(0, deadline_ms=5)
    record = adaptive.history[0]
    assert record.error == "ValueError: no such input"
    assert record.met is False
    assert adaptive.report().points[0][1] == 0  # its time is not learnt
    assert adaptive._states[0].mean == 1.0


def test_history_is_bounded_and_the_report_is_not(clock):
    adaptive = three(clock, remember=3)
    for _ in range(10):
        adaptive(0)
    assert [record.call for record in adaptive.history] == [7, 8, 9]
    report = adaptive.report()
    assert (report.calls, report.weight_bytes) == (10, 30)
    text = str(report)
    assert "f32" in text
    assert "10 calls, 0 switches" in text


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"alpha": 0}, "alpha"),
        ({"margin": 1}, "margin"),
        ({"patience": -1}, "patience"),
        ({"full_queue": 0}, "full_queue"),
        ({"remember": 0.5}, "remember"),
    ],
)
def test_settings_that_cannot_be(clock, settings, words):
    with pytest.raises(InputError, match=words):
        three(clock, **settings)


def test_points_that_cannot_be(clock):
    good = point(clock, "a", 2.0)
    with pytest.raises(InputError, match="at least one point"):
        Adaptive.of([])
    with pytest.raises(InputError) as caught:
        Adaptive.of([good, good, Point("b", None, 3.0, 2.0, batch=4, drop=np.nan)])  # pyright: ignore
    for words in ("twice: a", "batches of 1, 4", "b: required 0 < p50_ms", "drop", "be called"):
        assert words in str(caught.value)


@pytest.mark.parametrize(
    "limits", [{"deadline_ms": -1}, {"deadline_ms": "5"}, {"load": 1.5}, {"memory_bytes": np.nan}]
)
def test_limits_that_cannot_be(clock, limits):
    adaptive = three(clock)
    with pytest.raises(InputError, match=next(iter(limits))):
        adaptive(0, **limits)
    with pytest.raises(InputError, match="queue_length"):
        adaptive.report_load(-1)
    assert adaptive.history == []


def test_threads(clock):
    """Calls of many threads at once lose no record, and each gets the results of its inputs."""
    inside, most, lock = [0], [0], threading.Lock()

    def model(x):
        with lock:
            inside[0] += 1
            most[0] = max(most[0], inside[0])
        barrier.wait(timeout=30)  # all of them are in the model at once
        with lock:
            inside[0] -= 1
        return x

    count = 8
    barrier = threading.Barrier(count)
    adaptive = Adaptive.of([Point("a", model, 1.0, 2.0), Point("b", model, 0.5, 0.6, drop=0.1)])
    results = {}

    def work(index):
        for step in range(5):
            results[index, step] = adaptive((index, step), load=(index + step) % 2)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most[0] == count  # not one after the other
    assert results == {key: key for key in results}
    assert sorted(record.call for record in adaptive.history) == list(range(count * 5))
    assert sum(row[1] for row in adaptive.report().points) == count * 5


# With compiled code, and of a plan


def executables():
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((16, 16)).astype(np.float32)
    x = rng.standard_normal((4, 16)).astype(np.float32)
    model = ji.from_function(lambda p, x: jnp.tanh(x @ p["w"]), {"w": weight}, (x,))
    half = model.replace(params={"w": jnp.asarray(weight, jnp.bfloat16)})
    return x, ji.compile(model), ji.compile(half)


def test_changing_compiles_nothing():
    x, f32, bf16 = executables()
    points = [Point("f32", f32, 5.0, 6.0), Point("bf16", bf16, 0.5, 1.0, drop=0.01)]
    adaptive = Adaptive.of(points, patience=0, clock=Clock())
    with ji.no_compile():
        outs = [np.asarray(adaptive(x, load=load)) for load in (0, 1, 0, 1)]
        outs.append(np.asarray(adaptive(x=x, load=0)))
    assert [record.point for record in adaptive.history] == ["f32", "bf16", "f32", "bf16", "f32"]
    np.testing.assert_array_equal(outs[0], outs[2])
    np.testing.assert_array_equal(outs[1], outs[3])
    assert np.abs(outs[0] - outs[1]).max() > 1e-4  # they are not the same code
    assert adaptive.report().switches == 4


def measured(label, ms, drop, batch=4, **more):
    return Measurement({}, label, times_ms=[ms] * 99 + [ms * 1.5], batch=batch, drop=drop, **more)


class Plan:
    """What Adaptive needs of a plan."""

    def __init__(self, measurements, front, chosen, fails=()):
        self.results = types.SimpleNamespace(measurements=measurements, chosen=chosen)
        self.front, self.fails, self.built = front, fails, []

    def candidate(self, place):
        if place in self.fails:
            raise InputError("no such back-end")
        self.built.append(place)
        return lambda x: place


def test_points_of_a_plan():
    held = [
        measured("f32", 10, 0.0, peak_bytes=400, weight_bytes=40),
        measured("slower", 12, 0.1),
        measured("int8", 2, 0.02, peak_bytes=100, weight_bytes=10),
        measured("bf16", 5, 0.01),
        measured("W8A16", 6, 0.005),
        measured("int8, batch 32", 9, 0.02, batch=32),
    ]
    plan = Plan(held, (2, 3, 4, 0, 5), chosen=2)
    adaptive = Adaptive(plan, keep=3, patience=0)
    assert plan.built == [2, 4, 0]  # the ends, and one between
    assert [p.name for p in adaptive.points] == ["f32", "W8A16", "int8"]
    assert adaptive.points[0].p50_ms == 10
    assert adaptive.points[0].peak_bytes == 400
    assert adaptive(1, deadline_ms=4) == 2
    notes = adaptive.report().notes
    assert any("takes batches of 32, not 4" in note for note in notes)
    assert any("bf16: keep=3" in note for note in notes)
    assert "takes batches of 32" in str(adaptive.report())


def test_candidates_that_cannot_be_built_are_left_out():
    held = [measured("f32", 10, 0.0), measured("int8", 2, 0.02)]
    adaptive = Adaptive(Plan(held, (1, 0), chosen=1, fails=(1,)))
    assert [p.name for p in adaptive.points] == ["f32"]
    assert "int8: no such back-end" in adaptive.report().notes[0]
    with pytest.raises(InputError, match="no candidate could be built"):
        Adaptive(Plan(held, (1, 0), chosen=1, fails=(0, 1)))
    with pytest.raises(InputError, match="no candidate that was measured"):
        Adaptive(Plan(held, (), chosen=None))
    with pytest.raises(InputError, match="keep"):
        Adaptive(Plan(held, (1, 0), chosen=1), keep=0)


def test_spread_keeps_the_ends():
    for count in range(1, 9):
        for keep in range(2, 9):
            places = spread(list(range(count)), keep)
            assert len(set(places)) == len(places) == min(count, keep)
            assert (places[0], places[-1]) == (0, count - 1)
