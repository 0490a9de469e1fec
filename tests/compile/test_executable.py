"""Executables: any size up to the largest bucket, the structure of results, errors, donation."""

import threading
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxinfer as ji
from jaxinfer.compile.build import compile
from jaxinfer.compile.guard import CompileError, no_compile
from jaxinfer.core.errors import InputError, InputTypeError
from tests.compile import models
from tests.compile.models import TOL, D, F

SHAPE = {"x": ("batch", D)}


@pytest.fixture(scope="module")
def exe():
    return compile(models.mlp_model(), SHAPE, buckets={"batch": [7, 2]})


@pytest.mark.parametrize("n", [0, 1, 2, 3, 6, 7])
def test_any_batch_up_to_the_largest_bucket(exe, n):
    x = models.rows(n, D)
    with no_compile():
        out = exe(x)
    y, total = models.mlp_reference(models.weights(), x)
    assert sorted(out) == ["none", "sum", "y"]
    assert out["none"] is None
    assert isinstance(out["y"], jax.Array)
    assert out["y"].shape == (n, D)
    assert out["sum"].shape == (n,)
    np.testing.assert_allclose(out["y"], y, atol=TOL)
    np.testing.assert_allclose(out["sum"], total, atol=TOL)


def test_inputs_of_every_kind(exe):
    x = models.rows(3, D)
    want = exe(x)["y"]
    for same in (jnp.asarray(x), x.astype(">f4"), np.asfortranarray(x)):
        np.testing.assert_array_equal(exe(same)["y"], want)
    np.testing.assert_array_equal(exe(x=x)["y"], want)
    away = jax.device_put(x[:2], jax.devices()[3])  # has a bucket's shape, on another device
    np.testing.assert_array_equal(exe(away)["y"], want[:2])


def test_torch_tensors(exe):
    torch = pytest.importorskip("torch")
    x = models.rows(3, D)
    np.testing.assert_array_equal(exe(torch.tensor(x))["y"], exe(x)["y"])


def test_a_thousand_random_sizes_compile_nothing(exe):
    rng = np.random.default_rng(0)
    inputs = [models.rows(int(n), D, seed=int(n)) for n in rng.integers(1, 8, 1000)]
    with no_compile():
        for x in inputs:
            assert exe(x)["y"].shape == x.shape


def test_calls_from_several_threads(exe):
    wrong = []

    def work(seed):
        for n in range(1, 8):
            x = models.rows(n, D, seed=seed + n)
            if not np.allclose(exe(x)["y"], models.mlp_reference(models.weights(), x)[0], atol=TOL):
                wrong.append((seed, n))

    threads = [threading.Thread(target=work, args=(10 * i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def problems_of(exe, *args, **kwargs):
    with pytest.raises((InputError, InputTypeError)) as found:
        exe(*args, **kwargs)
    return found.type, str(found.value)


def test_inputs_that_do_not_fit(exe):
    kind, text = problems_of(exe, models.rows(8, D))
    assert kind is InputError
    assert "batch: 8 is above the largest bucket, 7" in text
    assert "compiled for batch: [2, 7]" in text
    kind, text = problems_of(exe, models.rows(2, D + 1))
    assert "x: float32[batch, 3]: axis 1 must be 3, got shape [2, 4]" in text
    assert "got shape [3]" in problems_of(exe, models.rows(D))[1]
    kind, text = problems_of(exe, models.rows(2, D).astype(np.float64))
    assert kind is InputTypeError
    assert "x.astype('float32')" in text
    assert "no such input" in problems_of(exe, models.rows(2, D), y=1)[1]
    assert "x: missing" in problems_of(exe)[1]
    assert "required an array" in problems_of(exe, "text")[1]


def test_all_problems_of_a_call_at_once():
    fn = lambda p, a, b: a @ p + b
    model = ji.from_function(fn, jnp.eye(D), (jnp.ones((2, D)), jnp.ones((2, D))))
    exe = compile(model, {"x0": ("n", D), "x1": ("n", D)}, buckets={"n": [2, 4]})
    text = problems_of(exe, models.rows(3, D), models.rows(4, 5))[1]
    assert "x1: float32[n, 3]: axis 0 must be 3 (n of x0), got shape [4, 5]" in text
    assert "axis 1 must be 3" in text


def test_two_dimensions_and_masks():
    """Both axes are bucketed; the mean over the second needs its real length."""
    model = models.pooled_model()
    exe = compile(
        model,
        {"x": ("batch", "time", D)},
        buckets={"batch": [1, 3], "time": [2, 5]},
        check=True,
    )
    assert len(exe.report()) == 4
    w = np.asarray(models.weights()["in"]["w"], np.float64)
    with no_compile():
        for b, t in ((1, 1), (2, 3), (3, 5), (1, 4)):
            x = models.rows(b, t, D)
            np.testing.assert_allclose(exe(x), x.astype(np.float64).mean(1) @ w, atol=TOL)
    masked = [bucket for bucket in exe.report() if bucket.masked]
    assert {bucket.sizes["time"] for bucket in masked} == {2, 5}
    assert all("error" in bucket.check for bucket in exe.report())


def test_sizes_below_which_the_model_computes_something_else(tmp_path):
    """``x[:, :3]`` is shorter where x is: the code for 7 holds from 3 on."""
    model = ji.from_function(lambda p, x: x[:, :3].sum(1) * p, jnp.float32(2), (jnp.ones((2, 7)),))
    exe = compile(model, {"x": (2, "t")}, buckets={"t": [7]})
    exe.save(tmp_path / "exe")
    for made in (exe, ji.load_executable(tmp_path / "exe")):
        x = models.rows(2, 3)
        np.testing.assert_allclose(made(x), 2 * x.sum(1), rtol=1e-6)
        with pytest.raises(InputError, match="t: 2: the code for 7 holds from 3 on"):
            made(models.rows(2, 2))


def test_the_report():
    exe = compile(models.mlp_model(), SHAPE, buckets={"batch": [2, 7]})
    report = exe.report()
    small, large = report
    assert (small.sizes, large.sizes) == ({"batch": 2}, {"batch": 7})
    per_row = 2 * D * F * 2 + F + (D - 1)  # two products, the bias, the sum
    assert (small.flops, large.flops) == (2 * per_row, 7 * per_row)
    weights = 4 * (D * F + F + F * D)
    assert report.param_bytes == report.param_bytes_per_device == weights == exe.nbytes
    assert small.argument_bytes == weights + 2 * D * 4
    assert small.output_bytes >= 2 * D * 4 + 2 * 4
    assert small.compile_s > 0
    assert small.code_bytes > 0
    assert small.origin == "compiled"
    assert "is itself the reference" in small.check["result"]
    text = str(report)
    assert "batch=2" in text
    assert "1 x cpu" in text
    again = ji.compile(models.mlp_model(), SHAPE, buckets={"batch": 2}).report()
    assert again[0].check == small.check


def test_a_scan_is_counted_in_full():
    def fn(w, x):
        return jax.lax.scan(lambda h, _: (h @ w, None), x, None, length=11)[0]

    exe = compile(ji.from_function(fn, jnp.eye(D), (jnp.ones((2, D)),)))
    assert exe.report()[0].flops == 11 * 2 * 2 * D * D


def test_results_keep_their_structure():
    def fn(p, x):
        return (x + p, [x.sum()], {"b": x > 0, "a": None})

    exe = compile(ji.from_function(fn, jnp.float32(1), (jnp.ones((2, 2)),)))
    x = models.rows(2, 2)
    first, (total,), rest = exe(x)
    np.testing.assert_allclose(first, x + 1)
    np.testing.assert_allclose(total, x.sum(), rtol=1e-6)
    assert rest["b"].dtype == bool
    assert rest["a"] is None


@pytest.mark.parametrize("how", ["quantize", "prune", "cast"])
def test_transformed_models(how):
    transform = {
        "quantize": ji.quantize("W8A16"),
        "prune": ji.prune(sparsity=0.5),
        "cast": ji.cast("bf16"),
    }[how]
    model = transform(models.mlp_model(d=32, f=64))
    exe = compile(model, {"x": ("batch", 32)}, buckets={"batch": [4]}, check=True)
    x = models.rows(3, 32)
    want = model(x)["y"].astype(jnp.float32)
    got = exe(x)["y"].astype(jnp.float32)
    np.testing.assert_allclose(got, want, atol=0.05 * float(jnp.abs(want).max()))
    assert exe.nbytes == model.nbytes


def test_donation_saves_the_bytes_it_should():
    fn = lambda p, x, cache: (x @ p, cache + x[0, 0])
    model = ji.from_function(fn, jnp.eye(D), (jnp.ones((2, D)), jnp.ones((7, 11))))
    exe = compile(model, donate="x1")
    assert exe.report()[0].aliased_bytes == 7 * 11 * 4
    cache = jnp.ones((7, 11))
    _, new = exe(jnp.ones((2, D)), cache)
    assert cache.is_deleted()
    np.testing.assert_array_equal(new, np.full((7, 11), 2))
    x = jnp.ones((2, D))
    exe(x, new)
    assert not x.is_deleted()


def test_donation_that_saves_nothing_is_an_error():
    model = ji.from_function(lambda p, x: x.sum() * p, jnp.float32(1), (jnp.ones((5, 7)),))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(InputError, match="140 bytes are donated, XLA writes 0 over"):
            compile(model, donate=["x"])
    with pytest.raises(InputError, match="donate: no such array input: y; there are x"):
        compile(model, donate=["y"])


def test_options_of_one_executable():
    model = models.mlp_model()
    exe = compile(model, compiler_options={"xla_cpu_enable_fast_math": False})
    assert "error" in exe.report()[0].check  # options change the code, so it is compared
    with pytest.raises(InputError, match="XLA refuses xla_no_such_option=1"):
        compile(model, compiler_options={"xla_no_such_option": 1})


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"backend": "tensorrt"}, "backend: required one of xla, openvino, got 'tensorrt'"),
        ({"fallback": "cpu"}, "fallback: required None or 'xla'"),
        ({"check": "maybe"}, "check: required True, False or 'auto'"),
        ({"backend": "openvino", "mesh": {"data": 2}}, "openvino runs on one device"),
    ],
)
def test_settings_that_are_none(given, text):
    with pytest.raises(InputError, match=text):
        compile(models.mlp_model(), **given)


def test_a_model_that_samples_needs_its_key():
    class Random:
        kind, fixed, random = "random", True, True
        arrays, blobs = {}, {}
        signature = models.mlp_model().signature

        def run(self, params, leaves, rng_key=None):
            return [leaves[0] + jax.random.normal(rng_key, leaves[0].shape)]

        def finish(self, flat):
            return flat[0]

    model = ji.Model(Random(), {})
    exe = compile(model)
    x, key = models.rows(2, D), jax.random.key(3)
    with no_compile():
        got = exe(x, rng_key=key)
    np.testing.assert_allclose(got, x + jax.random.normal(key, (2, D)), rtol=1e-6)
    with pytest.raises(InputError, match="pass rng_key"):
        exe(x)
    with pytest.raises(InputError, match="compiled for keys of"):
        exe(x, rng_key=jax.random.key(0, impl="rbg"))
    assert "samples" in compile(model, check=True).report()[0].check["result"]


def test_the_guard_sees_every_compilation():
    double = jax.jit(lambda x: 2 * x)
    with no_compile(), pytest.raises(CompileError, match="a program would be compiled"):
        double(jnp.asarray(models.rows(13)))
    double(np.ones(17, np.float32))
    with no_compile():
        double(np.ones(17, np.float32))
    double(np.ones(19, np.float32))  # the guard is gone


def test_models_that_cannot_be_compiled():
    with pytest.raises(InputError, match="give from_function example_inputs"):
        compile(ji.from_function(models.mlp, models.weights()))


def test_progress_and_threads():
    seen = []
    compile(
        models.mlp_model(),
        SHAPE,
        buckets={"batch": [2, 3, 5]},
        threads=2,
        progress=lambda *args: seen.append(args),
    )
    assert [args[:2] for args in seen] == [(1, 3), (2, 3), (3, 3)]
    assert {args[2] for args in seen} == {"batch=2", "batch=3", "batch=5"}


def test_repr(exe):
    assert repr(exe) == "Executable(2 compiled: batch=2; batch=7; 140 bytes)"
    assert exe.buckets == {"batch": (2, 7)}
