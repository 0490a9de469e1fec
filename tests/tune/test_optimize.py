"""optimize on a small trained-looking model: arguments, data, metrics, journals, plans."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxinfer as ji
from jaxinfer.core.errors import InputError
from jaxinfer.tune.budget import Budget
from jaxinfer.tune.optimize import dry_run, optimize
from jaxinfer.tune.plan import UnmetError
from jaxinfer.tune.search import BudgetError
from jaxinfer.tune.space import Space

SMALL = Space(precision=("bf16", "W8A8-static"), options=(), backend=("xla",))


@pytest.fixture(scope="module", autouse=True)
def one_profile():
    """Stand for the device: no test here is about its numbers, and these bound nothing."""
    from jaxinfer.tune import optimize as module
    from jaxinfer.tune.device import DeviceProfile

    found = DeviceProfile("cpu", "cpu", 2, {}, 0.0, 1 << 20, 10.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "profile", lambda: found)
        yield


def rng(seed=0):
    return np.random.default_rng(seed)


def network(params, x):
    for layer in params["layers"]:
        x = jnp.tanh(x @ layer["w"] + layer["b"])
    return x @ params["head"]["w"]


def params():
    draw = lambda *shape: jnp.asarray(rng(3).standard_normal(shape) * 0.3, jnp.float32)
    layers = [{"w": draw(16, 16), "b": draw(16)} for _ in range(3)]
    return {"layers": layers, "head": {"w": draw(16, 5)}}


def model():
    return ji.from_function(network, params(), (jnp.ones((2, 16)),))


def data(count=4, size=8):
    made = []
    for number in range(count):
        x = rng(number).standard_normal((size, 16)).astype(np.float32)
        made.append({"x": x, "label": np.asarray(network(params(), x)).argmax(-1)})
    return made


def accuracy(outputs, batch):
    return float((outputs.argmax(-1) == batch["label"]).mean())


@pytest.fixture(scope="module")
def plan():
    return optimize(
        model(), data(), metric=accuracy, max_drop=0.1, budget=Budget(seconds=60), space=SMALL
    )


def test_a_plan_has_a_model_a_recipe_and_all_measurements(plan):
    x = rng(9).standard_normal((8, 16)).astype(np.float32)
    got, want = np.asarray(plan.model(x)), np.asarray(network(params(), x))
    assert np.abs(got - want).max() < 0.1 * np.abs(want).max()
    held = plan.results.measurements
    assert plan.results.reference == 1.0  # labels are the model's own
    assert held[0].label == "f32"
    assert held[0].drop == 0
    assert {each.candidate.get("precision", "f32") for each in held} >= {"f32", "bf16"}
    assert plan.recipe.candidate.to_json() == held[plan.results.chosen].candidate
    assert plan.results.verdict in plan.table(200)
    assert set(plan.front) <= set(range(len(held)))
    assert plan.results.layers


def test_calls_of_the_result_do_not_compile(plan):
    x = rng(9).standard_normal((8, 16)).astype(np.float32)
    with ji.no_compile():
        plan.model(x)


def test_another_candidate_of_the_plan(plan):
    x = rng(9).standard_normal((8, 16)).astype(np.float32)
    other = plan.candidate(0)
    assert np.allclose(other(x), network(params(), x), atol=1e-5)
    with pytest.raises(InputError, match="candidate 99"):
        plan.candidate(99)


def test_the_recipe_makes_it_again(plan, tmp_path):
    from jaxinfer.tune.tuned import apply_recipe

    plan.recipe.save(tmp_path / "recipe.json")
    again = apply_recipe(tmp_path / "recipe.json", model(), data())
    x = rng(9).standard_normal((8, 16)).astype(np.float32)
    assert np.array_equal(np.asarray(again(x)), np.asarray(plan.model(x)))


def test_a_journal_is_gone_on_from_and_gives_the_same(tmp_path):
    path = tmp_path / "search.jsonl"
    settings = {"budget": Budget(seconds=60), "space": SMALL, "cache": path}
    first = optimize(model(), data(), **settings)
    with pytest.raises(InputError, match="resume=True"):
        optimize(model(), data(), **settings)
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[: len(lines) // 2]) + lines[len(lines) // 2][:20])
    optimize(model(), data(), **settings, resume=True)
    path.write_text("".join(lines))
    again = optimize(model(), data(), **settings, resume=True)
    assert again.recipe.candidate == first.recipe.candidate
    assert again.results.measurements == first.results.measurements
    assert path.read_text() == "".join(lines)  # nothing was measured anew


def test_another_model_does_not_take_steps_of_a_journal(tmp_path):
    path = tmp_path / "search.jsonl"
    few = Space(precision=(), options=(), backend=("xla",), fold=False)
    optimize(model(), data(), budget=Budget(seconds=60), space=few, cache=path)
    count = len(path.read_text().splitlines())
    changed = jax.tree.map(lambda leaf: leaf * 1.01, params())
    other = ji.from_function(network, changed, (jnp.ones((2, 16)),))
    optimize(other, data(), budget=Budget(seconds=60), space=few, cache=path, resume=True)
    assert len(path.read_text().splitlines()) > count + 3


def test_nothing_meets_the_constraints_and_the_best_is_shown():
    few = Space(precision=(), options=(), backend=("xla",), fold=False)
    with pytest.raises(UnmetError, match="best reachable") as caught:
        optimize(model(), data(), constraints={"p50_ms": 1e-6}, space=few)
    assert caught.value.results.chosen is None
    assert "p50_ms" in str(caught.value)


def test_a_drop_that_nothing_meets():
    few = Space(precision=(), options=(), backend=("xla",), fold=False)
    with pytest.raises(UnmetError, match=r"max_drop: required -0.1 .*best reachable is 0"):
        optimize(model(), data(), metric=accuracy, max_drop=-0.1, space=few)


def test_a_budget_too_small_says_what_is_needed():
    with pytest.raises(BudgetError, match=r"give \d+ s or more"):
        optimize(model(), data(), budget=Budget(seconds=0.01), space=SMALL)


def test_one_sample_judges_and_nothing_calibrates():
    one = optimize(model(), [data(1, 1)[0]], space=SMALL, budget=Budget(seconds=60))
    assert any("one sample" in note for note in one.results.notes)
    static = [m for m in one.results.measurements if "static" in m.label]
    assert static
    assert all("calibration" in each.reason for each in static)


def test_all_problems_of_the_arguments_at_once():
    with pytest.raises(InputError) as caught:
        optimize(
            model(), data(), objective="speed", max_drop=float("nan"), budget=3, space="all",
            constraints={"p99": 3, "peak_bytes": -1},
        )  # fmt: skip
    for word in ("objective", "max_drop", "budget", "space", "'p99'", "peak_bytes"):
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        (lambda outputs, batch: 1 / 0, "ZeroDivisionError"),
        (lambda outputs, batch: float("nan"), "nan"),
        (lambda outputs, batch: float(outputs[0, 0]), "order"),
        ("bleu", "bleu"),
        (3, "required a function"),
    ],
)
def test_metrics_that_cannot_be_used(metric, message):
    with pytest.raises(InputError, match=message):
        optimize(model(), data(), metric=metric, space=SMALL)


def test_throughput_chooses_the_number_of_samples():
    few = Space(precision=(), options=(), backend=("xla",), fold=False, batch=(4, 16))
    plan = optimize(model(), data(), objective="throughput", space=few, budget=Budget(seconds=60))
    assert {each.batch for each in plan.results.measurements} == {8, 4, 16}
    best = plan.results.measurements[plan.results.chosen]
    assert plan.model(np.ones((best.batch, 16), np.float32)).shape == (best.batch, 5)


def test_a_dry_run_measures_nothing():
    made, calls = model(), _read()
    with ji.no_compile():
        found = dry_run(made, calls, space=SMALL)
    assert "W8A8-static" in found.text()
    assert found.compiles > 3
    assert found.data == (16, 16)


def _read():
    from jaxinfer.tune.data import read

    return read(model(), data(), check=False)
