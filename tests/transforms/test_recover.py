"""Recovery: accuracy comes back, masks and formats hold; and every bad input."""

import dataclasses
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxinfer as ji
from jaxinfer.core.array_types import ArrayType
from jaxinfer.core.errors import InputError, InputTypeError, MissingExtraError
from jaxinfer.core.leaves import leaves, with_leaves
from jaxinfer.core.selectors import rule
from jaxinfer.numerics.masks import Masked
from jaxinfer.numerics.quantize import quantize
from jaxinfer.numerics.schedules import cubic, iterative
from jaxinfer.transforms import _recover_leaves as kinds
from jaxinfer.transforms.prune import finalize, masks, prune
from jaxinfer.transforms.recover import recover


def net(p, x):
    return jnp.tanh(x @ p["a"] + p["c"]) @ p["b"]


@pytest.fixture(scope="module")
def task():
    """A dense model, batches of (x, its outputs): what is lost is lost by pruning alone."""
    generator = np.random.default_rng(0)
    normal = lambda *shape: jnp.asarray(generator.standard_normal(shape) / 3, jnp.float32)
    params = {"a": normal(8, 16), "b": normal(16, 4), "c": normal(16), "n": jnp.arange(3)}
    dense = ji.from_function(net, params, (jnp.ones((2, 8)),))
    xs = [normal(16, 8) * 3 for _ in range(4)]
    return dense, [(x, dense(x)) for x in xs]


def mse(output, target):
    return jnp.mean((output - target) ** 2)


def error(model, data):
    return float(np.mean([mse(model(x), y) for x, y in data]))


def zeros(mask):
    return mask.size - int(mask.sum())


def test_masks_are_held_exactly_and_the_loss_falls(task):
    dense, data = task
    pruned = prune(sparsity=0.6)(dense)
    tx = optax.adamw(1e-2, weight_decay=0.1)
    better = recover(pruned, data, mse, tx=tx, epochs=15)
    assert error(better, data) < 0.4 * error(pruned, data)
    jax.tree.map(np.testing.assert_array_equal, masks(better), masks(pruned))
    for path in ("a", "b"):
        old, new = pruned.params[path], better.params[path]
        assert isinstance(new, Masked)
        np.testing.assert_array_equal(new.weight[~old.mask], old.weight[~old.mask])
        assert (new.weight != old.weight)[old.mask].all()
    plain = finalize(better)
    assert int((plain.params["a"] == 0).sum()) == round(0.6 * 128)
    assert int((plain.params["b"] == 0).sum()) == round(0.6 * 64)
    np.testing.assert_array_equal(better.params["n"], dense.params["n"])
    entries = {entry.path: (entry.status, entry.why) for entry in better.audit()["recover"]}
    assert entries == {
        "a": ("changed", "trained under its mask, 60.16 % zero"),
        "b": ("changed", "trained under its mask, 59.38 % zero"),
        "c": ("changed", "trained"),
        "n": ("unfit", "int32"),
    }
    assert float(dense(data[0][0])[0, 0]) == float(data[0][1][0, 0]), "the model given lives on"


def test_finalized_zeros_stay_zero(task):
    dense, data = task
    plain = finalize(prune(sparsity=0.6)(dense))
    better = recover(plain, data, mse, tx=optax.adam(1e-2), epochs=10)
    assert error(better, data) < 0.5 * error(plain, data)
    np.testing.assert_array_equal(better.params["a"] == 0, plain.params["a"] == 0)


@pytest.mark.parametrize("divergence", ["kl", "mse"])
def test_distillation_needs_no_labels(task, divergence):
    dense, data = task
    pruned = prune(sparsity=0.6)(dense)
    unlabelled = [(x, ()) for x, _ in data]
    better = recover(
        pruned, unlabelled, None, tx=optax.adam(1e-2), steps=50, teacher=dense, distill=1.0,
        divergence=divergence,
    )  # fmt: skip
    probabilities = lambda model: jax.nn.softmax(model(data[0][0]))
    gap = lambda model: float(jnp.abs(probabilities(model) - probabilities(dense)).mean())
    assert gap(better) < 0.5 * gap(pruned)


def test_distillation_is_hintons_formula(task):
    dense, data = task
    pruned = prune(sparsity=0.6)(dense)
    (x, y), found = data[0], []
    recover(
        pruned, [(x, y)], mse, tx=optax.sgd(1e-3), teacher=dense, distill=0.3, temperature=3.0,
        progress=lambda done, total, loss: found.append((done, total, loss)),
    )  # fmt: skip
    ours, theirs = np.asarray(pruned(x), np.float64) / 3, np.asarray(dense(x), np.float64) / 3
    soft = lambda z: np.exp(z) / np.exp(z).sum(-1, keepdims=True)
    p, q = soft(theirs), soft(ours)
    divergence = 9 * np.mean(np.sum(p * (np.log(p) - np.log(q)), -1))
    want = 0.7 * float(mse(pruned(x), y)) + 0.3 * divergence
    ((done, total, loss),) = found
    assert (done, total) == (1, 1)
    np.testing.assert_allclose(loss, want, rtol=1e-4)


def test_a_schedule_prunes_step_by_step(task):
    dense, data = task
    pruned = prune(sparsity=0.75, rules=[rule("b", pattern="2:4"), rule(".*")])(dense)
    seen = []
    schedule = lambda step: seen.append(step) or cubic(0.0, 0.75, 0, 30)(step)
    better = recover(pruned, data, mse, tx=optax.adam(1e-2), steps=60, schedule=schedule, every=5)
    assert seen == list(range(0, 60, 5))
    assert zeros(better.params["a"].mask) == 96
    np.testing.assert_array_equal(better.params["b"].mask, pruned.params["b"].mask)
    assert error(better, data) < 0.5 * error(pruned, data)


@pytest.mark.slow
def test_masks_of_a_schedule_are_nested(task):
    dense, data = task
    pruned, found = prune(sparsity=0.5)(dense), []
    for steps in (1, 7):
        schedule = iterative(0.875, 3, every=3)
        made = recover(pruned, data, mse, tx=optax.sgd(0.1), steps=steps, schedule=schedule)
        found.append(made.params["a"].mask)
    assert [zeros(mask) for mask in found] == [64, 112]
    assert not (found[1] & ~found[0]).any()


def quantized(dense, **options):
    changes = {path: quantize(dense.params[path], axes=(0,), **options) for path in ("a", "b")}
    return dense.replace(params=with_leaves(dense.params, changes))


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"format": "int4", "tiles": {0: 5}},  # 8 and 16 are no multiples of 5
        {"format": "uint4", "tiles": {0: 4}},
        {"format": "nf4", "dtype": jnp.bfloat16},
    ],
    ids=lambda options: options["format"] + "-".join(map(str, options.get("tiles", {}).values())),
)
def test_straight_through_lowers_the_loss_of_four_bits(task, options):
    dense, data = task
    small = quantized(dense, **options)
    better = recover(small, data, mse, tx=optax.adam(3e-3), epochs=15)
    assert error(better, data) < 0.7 * error(small, data)
    assert jax.tree.structure(better.params) == jax.tree.structure(small.params)
    same = lambda a, b: (a.shape, a.dtype) == (b.shape, b.dtype)
    assert all(jax.tree.leaves(jax.tree.map(same, better.params, small.params)))
    why = {entry.path: entry.why for entry in better.audit()["recover"]}
    assert why["a"] == f"trained through {options['format']}"


def test_requantizing_what_was_quantized_gives_the_same_codes():
    x = jnp.asarray(np.random.default_rng(0).standard_normal((10, 6)), jnp.float32)
    for options in ({"format": "int4"}, {"format": "int8"}, {"format": "int4", "tiles": {0: 4}}):
        q = quantize(x, axes=(0,), **options)
        again = kinds.requantized(q.materialize(), q)
        np.testing.assert_array_equal(again.qvalue, q.qvalue)
        np.testing.assert_allclose(again.scale, q.scale, rtol=1e-6)


def test_pruned_and_quantized_keeps_its_zeros(task):
    dense, data = task
    small = quantized(finalize(prune(sparsity=0.5)(dense)), format="int8")
    better = recover(small, data, mse, tx=optax.adam(3e-3), epochs=5)
    assert error(better, data) < error(small, data)
    was, now = (model.params["a"].materialize() == 0 for model in (small, better))
    assert now[was].all()
    assert int(now.sum()) >= 64


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Wrapped(ArrayType):
    """An array type around a quantized weight, as that of quantized activations is."""

    weight: Any
    scale: Any
    kind = "Wrapped"
    shape = property(lambda self: self.weight.shape)
    dtype = property(lambda self: self.weight.dtype)

    def materialize(self):
        return self.weight.materialize()


def test_a_quantized_weight_in_another_type(task):
    dense, data = task
    inner = quantize(dense.params["a"], "int4", axes=(0,))
    small = dense.replace(params={**dense.params, "a": Wrapped(inner, jnp.ones(()))})
    moved = [(x, y + 0.5) for x, y in data]
    rules = [rule("b|c", ignore=True)]
    better = recover(small, moved, mse, tx=optax.adam(1e-2), epochs=10, trainable=rules)
    assert error(better, moved) < 0.9 * error(small, moved)
    assert isinstance(better.params["a"], Wrapped)
    assert jax.tree.structure(better.params["a"]) == jax.tree.structure(small.params["a"])
    assert float(better.params["a"].scale) == 1.0


def test_what_does_not_train(task):
    dense, data = task
    rules = [rule("c|b", ignore=True)]
    better = recover(dense, data, lambda y, t: mse(y, t + 1), tx=optax.sgd(0.1), trainable=rules)
    assert (better.params["a"] != dense.params["a"]).any()
    for path in ("b", "c", "n"):
        np.testing.assert_array_equal(better.params[path], dense.params[path])
    small = finalize(prune(pattern="2:4")(dense), compress=True)
    better = recover(small, data, mse, tx=optax.sgd(0.1), steps=1)
    entries = {entry.path: (entry.status, entry.why) for entry in better.audit()["recover"]}
    assert entries["a"] == ("unfit", "a Compressed does not train")
    with pytest.raises(InputError, match="no parameter trains: a: by a rule; b: by a rule"):
        recover(dense, data, mse, tx=optax.sgd(0.1), trainable=[rule(".*", ignore=True)])


def test_small_floats_train_in_float32():
    # 1 + 2**-9 is no bfloat16: updates of that size would be lost one by one
    model = ji.from_function(lambda p, x: x * p, jnp.ones(3, jnp.bfloat16), (jnp.ones(3),))
    better = recover(
        model, [(jnp.ones(3), ())], lambda y, t: -y.astype(jnp.float32).sum(),
        tx=optax.sgd(2**-9), steps=8,
    )  # fmt: skip
    assert better.params.dtype == jnp.bfloat16
    np.testing.assert_array_equal(better.params.astype(jnp.float32), 1 + 8 * 2**-9)


def test_steps_epochs_and_iterators(task):
    dense, data = task
    count = lambda data, **options: (
        seen := [],
        recover(
            dense, data, mse, tx=optax.sgd(0.0),
            progress=lambda done, total, loss: seen.append((done, total)), **options,
        ),
    )[0]  # fmt: skip
    assert count(data)[-1] == (4, 4)
    assert count(data, epochs=3)[-1] == (12, 12)
    assert count(data, steps=6)[-1] == (6, 6)
    assert count(iter(data))[-1] == (4, None)
    assert count(iter(data), epochs=2)[-1] == (8, None)
    forever = (data[i % 4] for i in iter(int, 1))
    assert count(forever, steps=3) == [(1, 3), (2, 3), (3, 3)]
    with pytest.raises(InputError, match="ended after 4 of 9 steps"):
        count(iter(data), steps=9)
    with pytest.raises(InputError, match="the data hold no batch"):
        count([])


def test_inputs_by_position_by_name_and_of_several_sizes(task):
    dense, data = task
    (x, y), (x2, y2) = data[:2]
    mixed = [((x,), y), ({"x": x2[:3]}, y2[:3]), (np.asarray(x), np.asarray(y))]
    recover(dense, mixed, mse, tx=optax.sgd(0.1))


def test_a_loss_that_is_nan_says_when(task):
    dense, data = task
    spoiled = [*data[:2], (data[2][0] * jnp.nan, data[2][1]), data[3]]
    with pytest.raises(InputError, match="step 2: the loss is nan; a smaller learning rate"):
        recover(dense, spoiled, mse, tx=optax.sgd(0.1))
    with pytest.raises(InputError, match="step 2: the loss is nan"):
        recover(dense, spoiled, mse, tx=optax.sgd(0.1), progress=lambda *report: None)
    with pytest.raises(InputError, match="the last step made a, b, c infinite or NaN"):
        recover(dense, data[:1], lambda y, t: mse(y, t + 1), tx=optax.scale(float("inf")))


BAD = {
    "distill": ({"distill": 1.5}, "distill: required a number from 0 to 1"),
    "no teacher": ({"distill": 0.5}, "required teacher="),
    "steps": ({"steps": 0}, "steps: required 1 or more, got 0"),
    "epochs": ({"epochs": -1}, "epochs: required 1 or more"),
    "temperature": ({"temperature": 0.0}, "temperature: required a number above 0"),
    "divergence": ({"divergence": "js"}, "required one of kl, mse, got 'js'"),
    "schedule": ({"schedule": cubic(0, 0.5, 0, 1)}, "required a model of ji.prune"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_options(task, name):
    options, message = BAD[name]
    with pytest.raises(InputError, match=message):
        recover(*task, mse, tx=optax.sgd(0.1), **options)


def test_bad_arguments(task, monkeypatch):
    dense, data = task
    run = lambda data=data, loss=mse, **options: recover(
        dense, data, loss, **{"tx": optax.sgd(0.1), **options}
    )
    with pytest.raises(InputTypeError, match=r"optax\.adam\(1e-3\), got float"):
        run(tx=0.1)
    with pytest.raises(InputError, match="loss: required a function"):
        run(loss=None)
    with pytest.raises(InputError, match=r"required a scalar, got shape \(16, 4\)"):
        run(loss=lambda y, t: y - t)
    with pytest.raises(InputError, match="required a float, got int32"):
        run(loss=lambda y, t: 1)
    with pytest.raises(InputTypeError, match=r"batch 0: required a pair \(inputs, target\)"):
        run(data=[data[0][0]])
    with pytest.raises(InputTypeError, match="iterable of"):
        run(data=3)
    with pytest.raises(InputError, match="batch 1: "):
        run(data=[data[0], ((data[0][0], data[0][0]), data[0][1])])
    with pytest.raises(InputError, match="no use for a teacher"):
        run(teacher=dense, distill=0.0)
    other = ji.from_function(lambda p, x: (x, x), jnp.ones(2), (jnp.ones((2, 8)),))
    with pytest.raises(InputError, match="the teacher's"):
        run(teacher=other)
    pruned = prune()(dense)
    with pytest.raises(InputError, match=r"step 0: the schedule gives 1\.5"):
        recover(pruned, data, mse, tx=optax.sgd(0.1), schedule=lambda step: 1.5)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"pip install 'jaxinfer\[recover\]'"):
        run(tx=None)


def test_a_state_that_holds_the_parameters(task):
    dense, data = task
    tx = optax.chain(optax.sgd(0.1), optax.ema(0.9))
    recover(dense, data, mse, tx=tx)
    holds = optax.GradientTransformation(
        lambda params: params, lambda updates, state, params: (updates, state)
    )
    recover(dense, data, mse, tx=optax.chain(holds, optax.sgd(0.1)))


def test_importing_jaxinfer_imports_no_optax():
    code = "import sys, jaxinfer, jaxinfer.transforms.recover; print('optax' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "False", done.stderr


@pytest.mark.slow
def test_a_converted_model_that_samples_and_changes_its_buffers():
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    layers = (torch.nn.Linear(8, 12), torch.nn.BatchNorm1d(12), torch.nn.Dropout(0.1))
    module = torch.nn.Sequential(*layers, torch.nn.Linear(12, 3)).train()
    x = torch.randn(16, 8)
    model = prune(pattern="2:4")(ji.from_torch(module, (x,)))
    with pytest.raises(InputError, match=r"this model samples: pass key="):
        recover(model, [(x, 0)], mse, tx=optax.sgd(0.1))
    batch, found = (x, x[:, :3]), []
    better = recover(
        model, [batch], mse, tx=optax.adam(1e-2), steps=30, key=jax.random.key(0),
        progress=lambda done, total, loss: found.append(loss),
    )  # fmt: skip
    assert found[-1] < 0.6 * found[0]
    jax.tree.map(np.testing.assert_array_equal, masks(better), masks(model))
    why = {entry.path: entry.why for entry in better.audit()["recover"]}
    assert why["1.running_mean"] == "a buffer"


def test_a_model_in_64_bits_stays_so():
    torch = pytest.importorskip("torch")
    x = torch.randn(6, 8, dtype=torch.float64)
    model = ji.from_torch(torch.nn.Linear(8, 4).double(), (x,), x64=True)
    pruned = prune(pattern="2:4")(model)
    better = recover(pruned, [(x, model(x))], mse, tx=optax.sgd(0.1), steps=3)
    for made in (pruned, better, finalize(pruned), finalize(better, compress=True)):
        assert all(leaf.dtype == np.float64 for leaf in leaves(made.params).values())
    np.testing.assert_array_equal(finalize(pruned)(x), pruned(x))
    gap = lambda made: np.square(np.asarray(made(x)) - np.asarray(model(x))).mean()
    assert gap(better) < gap(pruned)


def test_leaves_of_a_nested_tree_train(task):
    _, data = task
    params = {"block": {"layers": [jnp.full((8, 4), 0.1), jnp.zeros(4)]}}
    fn = lambda p, x: x @ p["block"]["layers"][0] + p["block"]["layers"][1]
    model = prune()(ji.from_function(fn, params, (data[0][0],)))
    better = recover(model, data, mse, tx=optax.adam(1e-2), epochs=5)
    assert jax.tree.structure(better.params) == jax.tree.structure(model.params)
    assert list(leaves(better.params)) == ["block.layers.0", "block.layers.1"]
    assert error(better, data) < error(model, data)
