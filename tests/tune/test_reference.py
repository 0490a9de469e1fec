"""The reference: plain results, and a guard that does find two compilers that disagree."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxinfer as ji
from jaxinfer.core.errors import InputError
from jaxinfer.tune import reference as module
from jaxinfer.tune.data import read
from jaxinfer.tune.reference import DisagreementError, difference, reference

RNG = np.random.default_rng(0)


def normal(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def network(dtype=np.float32):
    params = {"a": normal(16, 32).astype(dtype), "b": normal(32, 4).astype(dtype)}
    fn = lambda p, x: jax.nn.log_softmax(jnp.tanh(x.astype(dtype) @ p["a"]) @ p["b"])
    return ji.from_function(fn, params, (jnp.ones((4, 16)),))


def test_results_are_those_of_the_model():
    model = network()
    batches = [normal(4, 16), normal(4, 16), normal(3, 16)]
    found = reference(model, read(model, batches))
    assert [out.shape for (out,) in found.outputs] == [(4, 4), (4, 4), (3, 4)]
    for (out,), batch in zip(found.outputs, batches, strict=True):
        np.testing.assert_allclose(out, model(batch), atol=1e-6)
    assert found.agreement < 1e-5  # about 1e-7 of sums of 32 terms
    assert len(found.notes) == 1
    assert "second compilation" in found.notes[0]
    assert found.seconds > 0


def test_the_second_compilation_has_other_code():
    model = network()
    call = read(model, [normal(4, 16)], check=False).calls[0]
    texts = []
    for options in ({}, *module.OPTIONS["cpu"]):
        try:
            code = next(iter(module._compiled(model, [call], options).values()))
        except jax.errors.JaxRuntimeError:  # an option that this XLA does not know
            continue
        texts.append(code.as_text())
    assert texts[0] != texts[1]


def chaos(steps):
    """A map that amplifies a difference of rounding until nothing of the number is left."""

    def fn(p, x):
        return jax.lax.fori_loop(0, steps, lambda _, y: p * y * (1 - y) + 1e-3 * jnp.sin(y), x)

    return ji.from_function(fn, jnp.float32(3.97), (jnp.ones((4, 16)),))


def test_compilations_that_differ_are_an_error():
    x = RNG.uniform(0.2, 0.8, (4, 16)).astype(np.float32)
    few, many = chaos(1), chaos(200)
    assert reference(few, read(few, [x])).agreement < 1e-6
    with pytest.raises(DisagreementError) as caught:
        reference(many, read(many, [x], check=False))
    text = str(caught.value)
    for words in ("result 0 of call 0", "plain jax.jit", "xla_", "39103", "allowed 0.001", " at ["):
        assert words in text


def wrong_second(monkeypatch, change):
    real = module._compiled

    def compiled(model, calls, options):
        codes = real(model, calls, options)
        return {
            key: lambda *args, code=code: jax.tree.map(change, code(*args))
            for key, code in codes.items()
        }

    monkeypatch.setattr(module, "_compiled", compiled)


@pytest.mark.parametrize("size", [2e-3, -0.5, math.inf, math.nan])
def test_one_wrong_value_is_found(monkeypatch, size):
    model = network()
    data = read(model, [normal(4, 16)] * 3)
    scale = max(np.abs(np.asarray(model(call.arrays[0]))).max() for call in data.calls)
    wrong_second(monkeypatch, lambda out: out.at[2, 1].add(size * scale))
    with pytest.raises(DisagreementError, match="result 0 of call"):
        reference(model, data)


def test_a_difference_of_rounding_is_none(monkeypatch):
    model = network()
    wrong_second(monkeypatch, lambda out: out * (1 + 2e-4))
    found = reference(model, read(model, [normal(4, 16)]))
    assert found.agreement == pytest.approx(2e-4, rel=0.01)
    assert "unusual" in found.notes[-1]


def test_options_that_this_xla_does_not_know_are_passed_over(monkeypatch):
    model = network()
    data = read(model, [normal(4, 16)])
    unknown = {"xla_no_such_option": 1}
    monkeypatch.setitem(module.OPTIONS, "cpu", (unknown, module.OPTIONS["cpu"][1]))
    found = reference(model, data)
    assert "xla_no_such_option" not in found.notes[0]
    assert found.agreement < 1e-5
    monkeypatch.setitem(module.OPTIONS, "cpu", (unknown,))
    monkeypatch.setattr(module, "_LAST", unknown)
    found = reference(model, data)
    assert math.isnan(found.agreement)
    assert "NOT compared" in found.notes[0]
    assert "xla_no_such_option" in found.notes[0]


def test_nan_is_refused_and_infinity_is_not():
    model = ji.from_function(lambda p, x: jnp.log(x), {}, (jnp.ones((4, 3)),))
    x = np.ones((4, 3), np.float32)
    x[2, 0] = 0
    found = reference(model, read(model, [x, x]))
    assert found.outputs[0][0][2, 0] == -np.inf
    x = x.copy()
    x[2, 1] = -1
    with pytest.raises(InputError, match=r"result 0: 1 of 12 are NaN, from sample 6"):
        reference(model, read(model, [np.ones((4, 3), np.float32), x], check=False))


def test_a_model_in_half_precision_is_its_own_reference():
    model = network(jnp.bfloat16)
    found = reference(model, read(model, [normal(4, 16)]))
    assert "bfloat16" in found.notes[-1]
    assert found.agreement <= 5e-2


def test_many_calls_are_guarded_in_part_and_every_shape_is():
    model = ji.from_function(lambda p, x: x * p, jnp.float32(2), (jnp.ones((2, 3)),))
    batches = [normal(2, 3)] * 10 + [normal(2, 5)] * 2
    data = read(model, batches)
    found = reference(model, data)
    assert len(found.outputs) == 12
    assert f"on {module.GUARDED} of 12 calls" in found.notes[0]
    chosen = module._chosen(data)
    assert len(chosen) == module.GUARDED
    assert {data.calls[place].arrays[0].shape for place in chosen} == {(2, 3), (2, 5)}


def test_calls_that_are_not_sampled():
    model = ji.from_function(lambda p, x: (x.sum(), x.argmax()), {}, (jnp.ones((4, 3)),))
    found = reference(model, read(model, [normal(4, 3), normal(4, 3)]))
    assert [out.shape for out in found.outputs[0]] == [(), ()]


def test_a_model_that_cannot_run_is_an_input_error():
    model = ji.from_function(lambda p, x: x * p, jnp.ones(3), (jnp.ones((2, 3)),))
    data = read(model, [normal(2, 3)])
    broken = dataclasses.replace(model, params=jnp.ones(4))
    with pytest.raises(InputError, match="reference: the model cannot be run: "):
        reference(broken, data)


def test_sixty_four_bits():
    with jax.enable_x64(True):
        params = jnp.ones((3, 3), jnp.float64)
        model = ji.from_function(lambda p, x: x @ p, params, (jnp.ones((2, 3), jnp.float64),))
        found = reference(model, read(model, [RNG.standard_normal((2, 3))]))
    assert found.outputs[0][0].dtype == np.float64
    assert found.agreement < 1e-15


def test_products_on_accelerators_are_float32(monkeypatch):
    model = network()
    x = normal(4, 16)

    def text():
        with module._precise():
            return str(jax.make_jaxpr(model.apply)(model.params, x))

    assert "HIGHEST" not in text()
    plain = reference(model, read(model, [x]))
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert "HIGHEST" in text()
    found = reference(model, read(model, [x]))  # the options of a GPU, which a CPU ignores
    np.testing.assert_allclose(found.outputs[0][0], plain.outputs[0][0], atol=1e-5)
    assert "xla_gpu" in found.notes[0]


@pytest.mark.parametrize(
    ("a", "b", "want"),
    [
        (np.float32([1, 2]), np.float32([1, 2.5]), 0.25),
        (np.float32([0, 0]), np.float32([0, 0.5]), 0.5),
        (np.float32([np.inf, 2]), np.float32([np.inf, 2]), 0),
        (np.float32([np.inf, 2]), np.float32([-np.inf, 2]), math.inf),
        (np.float32([1, 2]), np.float32([np.nan, 2]), math.inf),
        (np.float32([1]), np.float32([[1]]), math.inf),
        (np.arange(9), np.arange(9), 0),
        (np.arange(9), np.minimum(np.arange(9), 7), 0),  # a single tie
        (np.arange(9), np.minimum(np.arange(9), 6), math.inf),
        (np.zeros((0, 3)), np.zeros((0, 3)), 0),
    ],
)
def test_difference(a, b, want):
    assert difference(a, b)[0] == want
