"""What the search decides, on engines whose numbers are known."""

import itertools
import math

import pytest

from jaxinfer.tune.budget import Budget
from jaxinfer.tune.candidate import Candidate
from jaxinfer.tune.journal import Journal
from jaxinfer.tune.measurement import FAILED, MEASURED, REJECTED
from jaxinfer.tune.objective import Objective
from jaxinfer.tune.search import BudgetError, Search
from jaxinfer.tune.space import Choices
from tests.tune.fake_engine import GROUPS, FakeEngine

SPACE = {
    "fold": True, "precision": ("bf16", "W8A8"), "groups": True, "attention": ("whole",),
    "layout": (), "unroll": True, "batch": None, "buckets": {}, "mesh": (), "sharding": ("auto",),
    "donate": True, "options": (), "backend": ("xla",), "prune": (), "bucketings": (),
}  # fmt: skip


def clock(step=0.25):
    """Seconds that pass by themselves: the same in every run."""
    ticks = itertools.count()
    return lambda: next(ticks) * step


def searched(engine=None, *, max_drop=0.01, objective="latency", constraints=None, journal=None,
             budget=None, **space):  # fmt: skip
    engine = engine or FakeEngine()
    search = Search(
        engine, journal or Journal(clock=clock()), Choices({**SPACE, **space}),
        Objective(objective, constraints or {}), budget or Budget(seconds=600), max_drop,
    )  # fmt: skip
    place = search.run()
    found = list(search.found.values())
    return search, (Candidate.from_json(found[place].candidate) if place is not None else None)


def by_label(search, label):
    return next(each for each in search.found.values() if each.label == label)


def test_the_fastest_that_is_accurate_enough():
    search, chosen = searched(max_drop=1.0)
    assert chosen == Candidate(fold=True, precision="W8A8")
    assert by_label(search, "f32").p50_ms == pytest.approx(10)
    assert by_label(search, "W8A8, fold").p50_ms == pytest.approx(3.6)


def test_a_level_that_is_too_inaccurate_is_taken_for_some_groups():
    engine = FakeEngine()
    whole = engine.drop(Candidate(precision="W8A8"))
    search, chosen = searched(engine, max_drop=whole / 3)
    assert chosen.precision == "W8A8"
    assert chosen.groups
    assert engine.drop(chosen) <= whole / 3
    # one more group, the least harmful that is left, would be too much
    left = [name for name, _ in chosen.groups]
    smallest = min(left, key=GROUPS.index)
    more = chosen.replace(groups=tuple(pair for pair in chosen.groups if pair[0] != smallest))
    assert engine.drop(more) > whole / 3
    assert "drop" in by_label(search, "W8A8, fold").reason


def test_nothing_but_float32_is_allowed():
    _, chosen = searched(max_drop=0.0)
    assert chosen == Candidate(fold=True)


def test_what_is_slower_is_not_taken():
    engine = FakeEngine(ms={"bf16": 20.0, "W8A8": 15.0}, factors={"fold": 1.1})
    search, chosen = searched(engine, max_drop=1.0)
    assert chosen == Candidate()
    assert not any(each.candidate.get("groups") for each in search.found.values())


def test_judging_by_a_part_of_the_data_is_said():
    engine = FakeEngine(facts={"judged_all": False})
    search, _ = searched(engine, max_drop=1.0)
    assert any("first calls alone" in note for note in search.notes)
    assert not searched(max_drop=1.0)[0].notes


def test_ties_go_to_the_first_proposed():
    engine = FakeEngine(ms={"bf16": 9.9, "W8A8": 9.9}, factors={"fold": 0.99})
    _, chosen = searched(engine, max_drop=1.0)
    assert chosen == Candidate()


def test_differences_within_the_noise_are_ties():
    quiet = FakeEngine(factors={"fold": 0.93})
    assert searched(quiet, max_drop=0.0)[1] == Candidate(fold=True)
    noisy = FakeEngine(factors={"fold": 0.93}, noise=0.5)
    assert searched(noisy, max_drop=0.0)[1] == Candidate()


def test_a_bound_above_the_best_rejects_before_compiling():
    engine = FakeEngine()
    search, _ = searched(engine, precision=("f16",))
    held = by_label(search, "f16, fold")
    assert (held.status, held.times_ms) == (REJECTED, ())
    assert "20 ms" in held.reason
    assert all(what.precision != "f16" for kind, what in engine.log if kind == "build")


def test_what_does_not_compile_is_reported_and_the_search_goes_on():
    search, chosen = searched(FakeEngine(broken=["f32, fold"]), max_drop=1.0)
    assert by_label(search, "f32, fold").status == FAILED
    assert "does not compile" in by_label(search, "f32, fold").reason
    assert chosen == Candidate(precision="W8A8")


def test_wrong_numbers_are_not_timed():
    engine = FakeEngine(broken=["wrong f32, fold"])
    search, chosen = searched(engine, max_drop=1.0)
    held = by_label(search, "f32, fold")
    assert held.status == REJECTED
    assert "wrong numbers" in held.reason
    assert not held.times_ms
    assert not chosen.fold


def test_every_candidate_is_judged_before_it_is_timed():
    engine = FakeEngine()
    searched(engine, max_drop=0.003)
    judged = set()
    for kind, what in engine.log:
        if kind == "judge":
            judged.add(what.key)
        if kind == "time":
            assert {each.key for each in what} <= judged


def test_constraints():
    search, chosen = searched(max_drop=1.0, constraints={"peak_bytes": 2500})
    assert chosen.precision == "W8A8"
    assert search.found  # the baseline itself does not fit, and is measured all the same
    _, chosen = searched(max_drop=0.0, constraints={"p99_ms": 5})
    assert chosen is None


def test_throughput_takes_a_larger_batch():
    class Sublinear(FakeEngine):
        def milliseconds(self, candidate):
            each = super().milliseconds(candidate)
            return each * (candidate.batch or 4) ** -0.5

    _, chosen = searched(Sublinear(), objective="throughput", batch=(1, 2, 8, 16), max_drop=1.0)
    assert chosen.batch == 16
    _, chosen = searched(
        Sublinear(), objective="throughput", batch=(1, 2, 8, 16), constraints={"p50_ms": 6},
        max_drop=0.0,
    )  # fmt: skip
    assert chosen.batch < 16


def test_memory_and_a_function_of_the_user():
    _, chosen = searched(objective="memory", max_drop=1.0)
    assert chosen.precision == "W8A8"
    _, chosen = searched(objective=lambda held: held.drop + held.p50_ms * 1e-9, max_drop=1.0)
    assert chosen.levels == ("f32",)


def test_options_that_win_are_put_together():
    engine = FakeEngine(factors={"a": 0.9, "b": 0.8, "c": 1.3})
    _, chosen = searched(engine, options=(("a", True), ("b", 1), ("c", "x")), max_drop=0.0)
    assert set(chosen.options) == {("a", True), ("b", 1)}


def test_backends_and_their_own_level():
    engine = FakeEngine()
    _, chosen = searched(
        engine, backend=("xla", "openvino"), precision=("bf16", "int8"), max_drop=1.0
    )
    assert (chosen.backend, chosen.precision) == ("openvino", "int8")


def test_xla_is_the_baseline_alone_where_it_is_left_out():
    search, _ = searched(backend=("openvino",), precision=("bf16", "int8"), max_drop=1.0)
    assert [m.label for m in search.found.values() if "openvino" not in m.label] == ["f32"]


def test_a_budget_of_programs():
    engine = FakeEngine()
    search, chosen = searched(engine, budget=Budget(seconds=600, compiles=2), max_drop=1.0)
    assert search.compiles <= 2
    assert any("budget" in each.reason for each in search.found.values())
    assert chosen is not None


def test_a_budget_that_ends_says_what_was_not_tried():
    search, chosen = searched(budget=Budget(seconds=6), journal=Journal(clock=clock(0.2)))
    assert any("are left" in each.reason for each in search.found.values())
    assert chosen is not None


def test_a_budget_too_small_for_the_reference_says_what_is_needed():
    with pytest.raises(BudgetError, match=r"took \d.*give \d+ s or more"):
        searched(budget=Budget(seconds=0.5), journal=Journal(clock=clock()))


def test_the_same_search_is_the_same():
    noisy = lambda: FakeEngine(noise=0.05)
    first, chosen = searched(noisy(), max_drop=0.004)
    second, again = searched(noisy(), max_drop=0.004)
    assert chosen == again
    assert [m.to_json() for m in first.found.values()] == [
        m.to_json() for m in second.found.values()
    ]


@pytest.mark.parametrize("part", [0.0, 0.2, 0.4, 0.6, 0.8, 1.0])
def test_killed_anywhere_and_continued(part, tmp_path):
    make = lambda: FakeEngine(noise=0.05)
    settings = {"max_drop": 0.004, "options": (("a", 1),), "backend": ("xla", "openvino"),
                "precision": ("bf16", "W8A8", "int8")}  # fmt: skip
    counted = make()
    whole, want = searched(counted, **settings)
    step = 1 + round(part * (len(counted.log) - 1))
    path = tmp_path / "search.jsonl"
    dying = make()
    dying.dead = step
    with pytest.raises(KeyboardInterrupt):
        searched(dying, journal=Journal(path, clock=clock()), **settings)
    with path.open("a") as file:
        file.write('{"key": "cut in the midd')
    journal = Journal(path, resume=True, clock=clock())
    going = make()
    going.log = [None] * (step - 1)  # noise goes on where it was
    again, chosen = searched(going, journal=journal, **settings)
    assert chosen == want
    assert list(again.found) == list(whole.found)
    assert journal.replayed > 0 or step == 1


def test_every_measurement_has_a_place_and_numbers():
    search, _ = searched(max_drop=0.004)
    for held in search.found.values():
        assert held.status in (MEASURED, REJECTED, FAILED)
        assert (held.status == MEASURED) == bool(len(held.times_ms)), held.label
        if held.status == MEASURED:
            assert math.isfinite(held.drop)
