"""The micro-benchmark: that it computes what it counts, and says what it leaves out."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxinfer.compile.openvino.function import available
from jaxinfer.core.errors import MissingExtraError
from jaxinfer.core.flops import count
from jaxinfer.tune import _device_kernels as kernels
from jaxinfer.tune import _device_measure as measure
from jaxinfer.tune._device_cache import OF_ACCELERATORS, UNKNOWN, cache_bytes
from jaxinfer.tune._device_openvino import openvino_kernels
from jaxinfer.tune.device import DeviceProfile, profile


def computed(make):
    fn, args = make()
    return np.asarray(jax.jit(fn)(*args).astype(jnp.float32)), args


def wide(value):
    return np.asarray(value.astype(jnp.float32), np.float64)


# float8 and halves: operands are exact in float32, sums of 8 of them to 1e-6, results to a half's
# 2**-8; int8 is exact
@pytest.mark.parametrize(
    ("dtype", "tol"),
    [("float32", 1e-6), ("bfloat16", 2**-8), ("float16", 2**-11), ("int8", 0),
     ("float8_e4m3fn", 1e-6)],
)  # fmt: skip
def test_matmul_is_the_product_in_its_dtype(dtype, tol):
    got, (a, b) = computed(kernels.matmul(3, 8, 5, dtype))
    assert a.dtype == b.dtype == jnp.dtype(dtype)
    want = wide(a) @ wide(b)
    np.testing.assert_allclose(got, want, rtol=tol, atol=tol * np.abs(want).max())


@pytest.mark.parametrize(("dtype", "tol"), [("float32", 1e-5), ("bfloat16", 2**-7), ("int8", 0)])
def test_convolution_sums_nine_taps_of_all_channels(dtype, tol):
    got, (x, w) = computed(kernels.convolution(4, 3, dtype))
    padded = np.pad(wide(x), ((0, 0), (1, 1), (1, 1), (0, 0)))
    want = sum(padded[:, i : i + 4, j : j + 4] @ wide(w)[i, j] for i in range(3) for j in range(3))
    np.testing.assert_allclose(got, want, rtol=tol, atol=tol * np.abs(want).max())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_matvec_decodes_int8(dtype):
    got, (row, w) = computed(kernels.matvec(6, 4, dtype))
    assert row.dtype == (jnp.float32 if dtype == "int8" else jnp.dtype(dtype))
    want = wide(row) @ wide(w)
    tol = 2**-8 if dtype == "bfloat16" else 1e-5
    np.testing.assert_allclose(got, want, rtol=tol, atol=tol * np.abs(want).max())


@pytest.mark.parametrize("level", ["W8A8", "W4A16"])
def test_levels_multiply_by_quantized_weights(level):
    got, (a, weight) = computed(kernels.quantized(4, 128, 3, level))
    want = wide(a) @ np.asarray(weight.materialize(), np.float64)
    # activations in int8 are off by up to 1/254 of the largest of a row
    tol = {"W4A16": 1e-5, "W8A8": 0.05}[level]
    assert np.abs(got - want).max() < tol * np.abs(want).max()


def test_flops_are_those_of_the_program():
    for make, flops in (
        (kernels.matmul(3, 8, 5, "float32"), 2 * 3 * 8 * 5),
        (kernels.convolution(4, 3, "float32"), 18 * (4 * 3) ** 2),
        (kernels.matvec(6, 4, "float32"), 2 * 6 * 4),
    ):
        fn, args = make()
        assert count(fn, *args).flops == flops


def small_bench(*dtypes):
    bench = measure.Bench()
    for dtype in dtypes:
        bench._add("matmul", dtype, (2, 3, 4), 48, 0, kernels.matmul(2, 3, 4, dtype))
    return bench


def test_what_fails_is_unsupported_with_its_reason_and_the_rest_goes_on():
    bench = small_bench("float32")

    def broken():
        raise RuntimeError("no such unit\nand more")

    assert bench._add("matmul", "float8_e4m3fn", (2, 3, 4), 48, 0, broken) is None
    assert bench.unsupported == {"matmul float8_e4m3fn": "at 2x3x4: RuntimeError: no such unit"}
    bench.run(0.0)
    assert list(bench.rates()["matmul"]) == ["float32"]


def test_what_is_absurdly_slow_is_left_out(monkeypatch):
    monkeypatch.setattr(measure, "ABSURD", 0)
    bench = small_bench("float32", "float16")
    assert [entry.name for entry in bench.entries] == ["float32"]
    assert "times slower than float32, at 2x3x4" in bench.unsupported["matmul float16"]


def test_the_fastest_call_counts():
    bench = small_bench("float32")
    (entry,) = bench.entries
    entry.best = 48e-9
    assert bench.rates() == {"matmul": {"float32": {"2x3x4": 1e9}}}
    before = entry.best
    bench.run(0.01)
    assert entry.best <= before


def test_without_openvino_it_says_so(monkeypatch):
    def absent(*_):
        raise MissingExtraError("openvino is not installed")

    monkeypatch.setattr(measure, "openvino_kernels", absent)
    bench = measure.Bench()
    bench.openvino()
    assert bench.unsupported == {"openvino": "not installed"}


def test_openvino_multiplies():
    if reason := available():
        pytest.skip(reason)
    made = openvino_kernels((4, 8, 3), (5, 2))
    assert [(name, shape, flops) for name, shape, flops, _ in made] == [
        (name, *each)
        for name in ("float32", "int8")
        for each in (("4x8x3", 192), ("5x2 3x3", 1800))
    ]
    plain, _, quantized, _ = (np.array(next(iter(call().values()))) for *_, call in made)
    block = np.random.default_rng(0).uniform(-1, 1, 4099).astype(np.float32)
    want = np.resize(block, (4, 8)) @ np.resize(block, (8, 3))
    np.testing.assert_allclose(plain, want, atol=1e-5)
    # two roundings of half a step of 1/127 to each of 8 products
    assert 0 < np.abs(quantized - want).max() < 8 * 2 * 0.5 / 127


def folder_of(root, cpu, index, **files):
    folder = root / f"cpu{cpu}" / "cache" / f"index{index}"
    folder.mkdir(parents=True)
    for name, text in files.items():
        (folder / name).write_text(text + "\n")


def test_caches_are_counted_once_each(tmp_path):
    for cpu in (0, 1):
        folder_of(tmp_path, cpu, 0, level="1", shared_cpu_list=str(cpu), size="32K")
        folder_of(tmp_path, cpu, 2, level="2", shared_cpu_list=str(cpu), size="1024K")
        folder_of(tmp_path, cpu, 3, level="3", shared_cpu_list="0-1", size="32M")
    assert cache_bytes("cpu", str(tmp_path)) == (2 + 32) << 20


def test_unknown_caches_are_taken_to_be_large(tmp_path):
    assert cache_bytes("cpu", str(tmp_path / "none")) == UNKNOWN
    folder_of(tmp_path, 0, 3, level="3", shared_cpu_list="0", size="what")
    assert cache_bytes("cpu", str(tmp_path)) == UNKNOWN
    assert cache_bytes("gpu") == OF_ACCELERATORS


def handmade(**changes):
    rates = {
        "matmul": {"float32": {"a": 1e9, "b": 2e9}, "bfloat16": {"a": 4e9}, "int8": {"a": 5e9}},
        "convolution": {"float32": {"c": 3e9}},
        "openvino": {"int8": {"a": 7e9}},
    }
    given = {"platform": "cpu", "kind": "a processor", "cores": 2, "rates": rates,
             "bandwidth": 1e10, "cache_bytes": 1 << 20, "dispatch_us": 5.0,
             "unsupported": {"matmul float16": "broken"}, "load": 0.5}  # fmt: skip
    return DeviceProfile(**{**given, **changes})


def test_json_and_words():
    device = handmade()
    assert DeviceProfile.from_json(json.loads(json.dumps(device.to_json()))) == device
    text = "\n".join(device.describe())
    for part in ("a processor (cpu), 2 cores", "matmul, GFLOP/s: float32 2, bfloat16 4", "10 GB/s",
                 "openvino, GFLOP/s: int8 7", "left out: matmul float16: broken"):  # fmt: skip
        assert part in text
    assert "busy" not in text
    assert "busy (load 1.5 on 2 cores)" in "\n".join(handmade(load=1.5).describe())
    with pytest.raises(TypeError):
        DeviceProfile.from_json({"platform": "cpu", "colour": "red"})


def test_peaks():
    assert handmade().peak("float32") == 3e9  # the convolution's
    assert handmade().peak("int8") == 5e9
    assert handmade().peak("float16") is None
    # a lone product may miss the units that a model's product finds
    assert handmade(platform="gpu").peak("int8") == 8e9


@pytest.mark.slow
def test_profile_of_this_device():
    device = profile(0.5)
    assert {"float32", "bfloat16", "int8"} <= set(device.matmul)
    assert all(
        math.isfinite(rate) and rate > 0
        for kind in device.rates.values()
        for shapes in kind.values()
        for rate in shapes.values()
    )
    assert device.bandwidth > 0
    assert device.dispatch_us > 0
    assert DeviceProfile.from_json(device.to_json()) == device
