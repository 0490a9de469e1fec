"""Metrics: similarity against slow sums, and a judge that no bad metric convinces."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxinfer as ji
from jaxinfer.core.errors import InputError
from jaxinfer.tune.data import read, run_all
from jaxinfer.tune.metrics import Judge, MetricError, similarity

RNG = np.random.default_rng(0)


def normal(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def slow(got, want):
    """Return the four similarities of one float result, row by row."""
    cosine, same, kl, count = 0.0, 0, 0.0, 0
    for g, w in zip(got.astype(float), want.astype(float), strict=True):
        cosine += (g * w).sum() / math.sqrt((g * g).sum() * (w * w).sum())
        for q, p in zip(g.reshape(-1, g.shape[-1]), w.reshape(-1, w.shape[-1]), strict=True):
            same += q.argmax() == p.argmax()
            p, q = np.exp(p) / np.exp(p).sum(), np.exp(q) / np.exp(q).sum()
            kl += (p * np.log(p / q)).sum()
            count += 1
    error = np.abs(got.astype(float) - want).max() / np.abs(want).max()
    return {"cosine": cosine / len(got), "max": error, "top1": same / count, "kl": kl / count}


@pytest.mark.parametrize("shape", [(7, 5), (3, 2, 5), (1, 4)])
def test_similarity_is_that_of_the_slow_sums(shape):
    want = normal(*shape)
    got = want + 0.3 * normal(*shape)
    found = similarity([got], [want])
    for name, value in slow(got, want).items():
        assert found[name] == pytest.approx(value, rel=1e-9)  # float64 sums of some terms


def test_calls_are_one_set_of_samples():
    want, got = normal(6, 5), normal(6, 5)
    whole = similarity([got], [want])
    cut = similarity([[got[:4]], [got[4:]]], [[want[:4]], [want[4:]]])
    assert cut == pytest.approx(whole, rel=1e-12)


def test_equal_results_are_perfect():
    want = [[normal(4, 3), np.arange(4), normal(4) > 0]]
    assert similarity(want, want) == pytest.approx({"cosine": 1, "max": 0, "top1": 1, "kl": 0})
    assert similarity([], []) == {"cosine": 1.0, "max": 0.0}
    assert similarity([normal(0, 3)], [normal(0, 3)]) == {"cosine": 1.0, "max": 0.0}
    zero = np.zeros((2, 3), np.float32)
    assert similarity([zero], [zero])["cosine"] == 1
    assert similarity([zero + 1], [zero])["cosine"] == 0


def test_the_worst_of_several_results_counts():
    good, bad = normal(4, 3), normal(4, 3)
    found = similarity([good, -bad], [good, bad])
    assert found["cosine"] == pytest.approx(-1)
    assert found["max"] == pytest.approx(2)
    assert found == pytest.approx(similarity([-bad, good], [bad, good]))


def test_integers_count_by_agreement():
    want = np.arange(8)
    found = similarity([np.where(want < 2, -1, want)], [want])
    assert found == {"cosine": 0.75, "max": 0.25, "top1": 0.75}
    assert similarity([want > 3], [want > 4])["cosine"] == 0.875


def test_large_values_and_half_types():
    want = np.float32([[3e38, -2e38, 1e38]])
    assert similarity([want], [want])["cosine"] == pytest.approx(1)
    half = normal(4, 3).astype(jnp.bfloat16)
    assert similarity([half], [half.astype(np.float32)])["max"] == 0
    wave = normal(4, 3) + 1j * normal(4, 3)
    assert similarity([wave], [wave])["cosine"] == pytest.approx(1)
    assert "kl" not in similarity([wave], [wave])


def test_masked_logits_are_left_out():
    want = normal(4, 5)
    want[:, 3] = -np.inf
    got = want + np.where(np.isinf(want), 0, 0.01).astype(np.float32)
    found = similarity([got], [want])
    kept = np.delete(got, 3, 1), np.delete(want, 3, 1)
    assert found == pytest.approx(slow(*kept), rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_no_near_miss(bad):
    want = normal(4, 5)
    got = want.copy()
    got[1] = bad
    found = similarity([got], [want])
    assert found["cosine"] == pytest.approx(0.75)
    assert found["max"] == math.inf
    got[:] = bad
    found = similarity([got], [want])
    assert found["cosine"] == 0
    assert found["kl"] == math.inf
    assert found["top1"] == 0 or not math.isnan(bad)


def test_other_shapes_are_an_error():
    with pytest.raises(MetricError, match="shape"):
        similarity([normal(4, 3)], [normal(4, 2)])
    with pytest.raises(MetricError, match="results of each call"):
        similarity([normal(4, 3)], [normal(4, 3), normal(4)])


# The judge


def classifier(rows=4):
    return ji.from_function(lambda p, x: {"logits": x @ p}, jnp.eye(5), (jnp.ones((rows, 5)),))


@pytest.fixture
def setting():
    model = classifier()
    x = normal(10, 5)
    labels = x.argmax(1)
    labels[:3] = (labels[:3] + 1) % 5  # the model has 7 of 10
    data = read(model, [(x[:4], labels[:4]), (x[4:8], labels[4:8]), (x[8:], labels[8:])])
    outputs = run_all(lambda arrays: jax.tree.leaves(model(*arrays)), data)
    return model, data, outputs


def accuracy(outputs, batch):
    return np.mean(outputs["logits"].argmax(-1) == batch["0"])


def test_a_metric_sees_all_real_samples_at_once(setting):
    model, data, outputs = setting
    seen = []

    def metric(outs, batch):
        seen.append((outs["logits"].shape, batch["x"].shape, batch["0"].shape))
        return accuracy(outs, batch)

    judge = Judge(model, data, outputs, metric)
    assert judge.reference == pytest.approx(0.7)
    assert set(seen) == {((10, 5), (10, 5), (10,))}  # the two rows that fill are not there
    assert judge.name == "metric"
    regrouped = data.rebatch(3)
    again = run_all(lambda arrays: jax.tree.leaves(model(*arrays)), regrouped)
    assert Judge(model, regrouped, again, metric).reference == judge.reference


def test_drops(setting):
    model, data, outputs = setting
    worse = [[np.where(np.arange(len(out))[:, None] == len(out) - 1, -out, out)]
             for (out,) in outputs]  # fmt: skip
    score = Judge(model, data, outputs, accuracy).score(worse)
    lost = 0.7 - score.metric
    assert lost > 0
    assert score.drop == pytest.approx(lost)
    relative = Judge(model, data, outputs, accuracy, drop="relative").score(worse)
    assert relative.drop == pytest.approx(lost / 0.7)
    assert Judge(model, data, outputs, accuracy).score(outputs).drop == 0
    negative = Judge(model, data, outputs, lambda o, b: -1 - accuracy(o, b), drop="relative")
    assert negative.score(worse).drop == pytest.approx(-lost / 1.7)  # better, of |-1.7|


@pytest.mark.parametrize(
    ("name", "reference"), [(None, 1), ("cosine", 1), ("top1", 1), ("max", 1), ("kl", 0)]
)
def test_named_metrics(setting, name, reference):
    model, data, outputs = setting
    judge = Judge(model, data, outputs, name)
    assert judge.name == (name or "cosine")
    assert judge.reference == pytest.approx(reference, abs=1e-12)
    near = [[out + np.float32(0.2) * normal(*out.shape)] for (out,) in outputs]
    score = judge.score(near)
    found = similarity(near, outputs)
    assert score.similarity == found
    want = {None: found["cosine"], "cosine": found["cosine"], "top1": found["top1"],
            "max": 1 - found["max"], "kl": -found["kl"]}[name]  # fmt: skip
    assert score.metric == want
    assert score.drop == pytest.approx(reference - want, abs=1e-12)


def test_settings_that_cannot_be(setting):
    model, data, outputs = setting
    with pytest.raises(InputError, match="one of cosine, max, top1, kl"):
        Judge(model, data, outputs, "accuracy")
    with pytest.raises(InputError, match="required a function"):
        Judge(model, data, outputs, 3)  # pyright: ignore
    with pytest.raises(InputError, match="absolute, relative"):
        Judge(model, data, outputs, drop="percent")
    with pytest.raises(InputError, match="kl is 0"):
        Judge(model, data, outputs, "kl", drop="relative")
    with pytest.raises(InputError, match="at least one sample"):
        Judge(model, data.take(0), [])
    column = ji.from_function(lambda p, x: x.sum(1), {}, (jnp.ones((4, 5)),))
    few = read(column, [normal(4, 5)])
    with pytest.raises(InputError, match="top1 is of float results"):
        Judge(column, few, [[normal(4)]], "top1")


def test_results_that_are_not_finite_are_rejected(setting):
    model, data, outputs = setting
    broken = [[out.copy() for out in call] for call in outputs]
    broken[1][0][2, 1] = np.nan
    with pytest.raises(MetricError) as caught:
        Judge(model, data, outputs).score(broken)
    assert "not finite: result 0['logits']: 1 of 20 values" in str(caught.value)
    assert "sample 6" in str(caught.value)
    with pytest.raises(MetricError, match="shape"):
        Judge(model, data, outputs).score([[out[:1] for out in call] for call in outputs])


def test_infinities_of_the_reference_are_allowed(setting):
    model, data, outputs = setting
    masked = [[np.where(np.arange(5) == 2, -np.inf, out)] for (out,) in outputs]
    judge = Judge(model, data, masked)
    assert judge.score(masked).drop == pytest.approx(0, abs=1e-12)
    with pytest.raises(MetricError, match="not finite"):
        judge.score([[-out] for (out,) in masked])
    with pytest.raises(MetricError, match="not finite"):
        Judge(model, data, outputs).score(masked)


# Metrics that cannot judge


def raises(outputs, batch):
    return batch["labels"].mean()


class Counter:
    def __init__(self):
        self.calls = 0

    def __call__(self, outputs, batch):
        self.calls += 1
        return float(self.calls)


def first_only(outputs, batch):
    return float(outputs["logits"][0].sum())


def in_place(outputs, batch):
    outputs["logits"] -= outputs["logits"].mean()
    return float(outputs["logits"].max())


def in_place_of_the_batch(outputs, batch):
    batch["x"][0] = 7
    return 1.0


@pytest.mark.parametrize(
    ("metric", "words"),
    [
        (raises, "metric raises: KeyError: 'labels'"),
        (raises, "test_metrics.py:"),
        (raises, 'return batch["labels"].mean()'),
        (lambda o, b: math.nan, "finite number, got nan"),
        (lambda o, b: -math.inf, "finite number, got -inf"),
        (lambda o, b: None, "required a number, got NoneType"),
        (lambda o, b: "0.5", "required a number, got str"),
        (lambda o, b: o["logits"], "array of shape [10, 5]"),
        (lambda o: 1.0, "TypeError"),
        (first_only, "depends on the order of the samples"),
        (lambda o, b: float((o["logits"][:-1] * o["logits"][1:]).sum()), "depends on the order"),
        (Counter(), "metric Counter: is 1.0 and then 2.0"),
        (lambda o, b: np.random.rand(), "keeps a state or draws random numbers"),
        (in_place, "changes what it is given (outputs 0)"),
        (in_place_of_the_batch, "changes what it is given (x)"),
    ],
)
def test_metrics_that_cannot_judge_are_refused(setting, metric, words):
    model, data, outputs = setting
    before = [call.arrays[0].copy() for call in data.calls]
    with pytest.raises(InputError) as caught:
        Judge(model, data, outputs, metric)
    assert words in str(caught.value)
    for call, want in zip(data.calls, before, strict=True):
        np.testing.assert_array_equal(call.arrays[0], want)  # the user's own arrays


@pytest.mark.parametrize(
    "metric",
    [
        lambda o, b: np.float32(o["logits"].mean()),
        lambda o, b: jnp.mean(o["logits"]),
        lambda o, b: [0.5],
        lambda o, b: np.ones((1, 1)),
        lambda o, b: 3,
        lambda o, b: -float(np.square(o["logits"] - b["x"]).mean()),
        lambda o, b: float((o["logits"] - b["x"]).sum()),  # cancels to rounding
    ],
)
def test_numbers_of_any_kind_are_fine(setting, metric):
    model, data, outputs = setting
    judge = Judge(model, data, outputs, metric)
    assert judge.score(outputs).drop == pytest.approx(0, abs=1e-6)  # float32 sums of 50 terms


def test_torch_numbers_and_partial_functions(setting):
    torch = pytest.importorskip("torch")
    model, data, outputs = setting

    def metric(outs, batch, scale):
        return (torch.from_numpy(outs["logits"]) * scale).mean().requires_grad_()

    judge = Judge(model, data, outputs, functools.partial(metric, scale=2.0))
    assert judge.name == "metric"
    assert math.isfinite(judge.reference)


def test_a_metric_that_fails_on_a_candidate_alone(setting):
    model, data, outputs = setting

    def picky(outs, batch):
        if outs["logits"].max() > 100:
            raise OverflowError("too large")
        return math.nan if outs["logits"].max() < -100 else 1.0

    judge = Judge(model, data, outputs, picky)
    with pytest.raises(MetricError, match="OverflowError: too large"):
        judge.score([[out + 200] for (out,) in outputs])
    with pytest.raises(MetricError, match="finite number, got nan"):
        judge.score([[out - 200] for (out,) in outputs])


def test_one_sample_is_judged(setting):
    model, data, outputs = setting
    one = data.take(1)
    assert Judge(model, one, [[outputs[0][0][:1]]], first_only).reference == pytest.approx(
        float(outputs[0][0][0].sum())
    )


def test_samples_of_other_shapes_are_averaged_by_samples():
    model = ji.from_function(lambda p, x: x * 2, {}, (jnp.ones((2, 3)),))
    batches = [normal(3, 5), normal(3, 7), normal(3, 5), normal(1, 7)]
    data = read(model, batches)
    outputs = run_all(lambda arrays: [model(*arrays)], data)
    sizes = []

    def metric(outs, batch):
        sizes.append(outs.shape)
        return float(outs.shape[1])

    judge = Judge(model, data, outputs, metric)
    assert set(sizes) == {(6, 5), (4, 7)}
    assert judge.reference == pytest.approx((6 * 5 + 4 * 7) / 10)


def test_calls_that_are_not_sampled_are_averaged():
    model = ji.from_function(lambda p, x: x.sum(), {}, (jnp.ones((4, 3)),))
    batches = [normal(4, 3) for _ in range(3)]
    data = read(model, [(x, i) for i, x in enumerate(batches)])
    outputs = run_all(lambda arrays: [model(*arrays)], data)
    judge = Judge(model, data, outputs, lambda out, batch: float(out) + batch["0"])
    want = np.mean([x.sum() + i for i, x in enumerate(batches)])
    assert judge.reference == pytest.approx(want, rel=1e-5)
    with pytest.raises(MetricError, match="call 2"):
        judge.score([*outputs[:2], [np.float32(np.nan)]])


def test_half_results_reach_a_metric_as_float32():
    model = ji.from_function(lambda p, x: x.astype(jnp.bfloat16), {}, (jnp.ones((4, 3)),))
    data = read(model, [normal(4, 3)])
    outputs = run_all(lambda arrays: [model(*arrays)], data)
    assert outputs[0][0].dtype == jnp.bfloat16
    kinds = []
    Judge(model, data, outputs, lambda out, batch: kinds.append(out.dtype) or 1.0)
    assert set(kinds) == {np.dtype(np.float32)}
