"""The check of executables against the reference: it finds what is wrong."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

import jaxinfer as ji
from jaxinfer.compile import _check, _memory, _native, build
from jaxinfer.compile._memory import DeviceMemoryError
from jaxinfer.compile.build import compile
from jaxinfer.core.errors import ParityError
from tests.compile import models


def test_compare():
    w = np.array([1.0, -4.0, np.nan], np.float32)
    assert _check.compare([w], [w]) == (0.0, [])
    error, faults = _check.compare([w], [w + np.float32(0.5)])
    assert (error, faults) == (0.125, [])  # 0.5 of the largest, 4
    assert "NaN" in _check.compare([w], [np.nan_to_num(w)])[1][0]
    assert "required float32[3]" in _check.compare([w], [w.astype(np.float16)])[1][0]
    assert "required float32[3]" in _check.compare([w], [w[:2]])[1][0]
    flags = np.arange(200) % 2 == 0
    assert _check.compare([flags], [flags]) == (0.0, [])
    assert "50.0% of its values differ" in _check.compare([flags], [np.ones(200, bool)])[1][0]
    assert _check.compare([w[:0]], [w[:0]]) == (0.0, [])
    assert _check.compare([np.zeros(3)], [np.full(3, 0.25)]) == (0.25, [])


def wrong(monkeypatch, amount):
    """Let XLA's code return results that are off by a factor."""
    build_native = _native.build

    def off(*args):
        compiled, payload, origin = build_native(*args)

        class Off:
            memory_analysis = staticmethod(compiled.memory_analysis)
            as_text = staticmethod(compiled.as_text)

            def __call__(self, *given):
                return [out * amount for out in compiled(*given)]

        return Off(), payload, origin

    monkeypatch.setattr(_native, "build", off)


def test_a_wrong_executable_is_found(monkeypatch):
    wrong(monkeypatch, 1.01)
    with pytest.raises(ParityError, match=r"fixed: error 1.00e-02, allowed 0.001"):
        compile(models.mlp_model(), check=True, warm_up=False)
    compile(models.mlp_model(), check=True, tolerance=0.02, warm_up=False)
    report = compile(models.mlp_model(), check=False, warm_up=False).report()
    assert report[0].check["result"] == "not checked: check=False"


def test_tolerances_by_dtype():
    assert _check.tolerance_of(models.mlp_model()) == _check.EXACT
    assert _check.tolerance_of(ji.cast("bf16")(models.mlp_model())) == _check.ROUNDED
    quantized = ji.quantize("W8A16")(models.mlp_model(d=32, f=64))
    assert _check.tolerance_of(quantized) == _check.ROUNDED
    half = ji.from_function(lambda p, x: x, {}, (jnp.ones(3, jnp.bfloat16),))
    assert _check.tolerance_of(half) == _check.ROUNDED


def test_the_sizes_at_which_a_bucket_is_checked():
    shape, buckets = {"x": (2, "t", 3)}, {"t": [2, 7]}
    exe = compile(models.pooled_model(), shape, buckets=buckets)  # masks: most padding as well
    checks = [bucket.check for bucket in exe.report()]
    assert [check["sizes"] for check in checks] == [[{"t": 1}], [{"t": 6}, {"t": 3}]]
    assert all(check["error"] < 1e-5 for check in checks)
    rows = compile(models.mlp_model(), {"x": ("b", 3)}, buckets={"b": [2, 7]}, check=True)
    assert [bucket.check["sizes"] for bucket in rows.report()] == [[{"b": 1}], [{"b": 6}]]


def test_a_fault_in_a_late_row_is_found(monkeypatch):
    """What only the last rows of a bucket have wrong (a mesh that sums twice, say)."""
    build_native = _native.build

    def off(*args):
        compiled, payload, origin = build_native(*args)

        def code(*given):
            return [out.at[5].add(1) for out in compiled(*given)]

        code.memory_analysis, code.as_text = compiled.memory_analysis, compiled.as_text
        return code, payload, origin

    monkeypatch.setattr(_native, "build", off)
    with pytest.raises(ParityError, match="b=6: error"):
        compile(models.mlp_model(), {"x": ("b", 3)}, buckets={"b": [7]}, check=True, warm_up=False)


def test_memory_that_is_not_there(monkeypatch):
    monkeypatch.setattr(_memory, "available", lambda device: 10)
    with pytest.raises(DeviceMemoryError) as found:
        compile(models.mlp_model())
    text = str(found.value)
    assert "out of memory: it needs" in text
    assert "10 B are free" in text
    assert "what would help: a smaller largest bucket" in text
    monkeypatch.setattr(_memory, "available", lambda device: None)  # where nobody says
    compile(models.mlp_model())


def test_memory_that_runs_out_in_a_call(monkeypatch):
    import jax

    exe = compile(models.mlp_model())

    def exhausted(*_):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 99 bytes")

    entry = dataclasses.replace(exe._entries[0], code=exhausted)
    broken = build.Executable(exe._frame, [entry])
    with pytest.raises(DeviceMemoryError, match=r"(?s)it needs .* for each device.*99 bytes"):
        broken(models.rows(2, 3))

    def other(*_):
        raise jax.errors.JaxRuntimeError("INTERNAL: something else")

    broken = build.Executable(exe._frame, [dataclasses.replace(entry, code=other)])
    with pytest.raises(jax.errors.JaxRuntimeError, match="something else"):
        broken(models.rows(2, 3))


def test_free_memory_is_read():
    import jax

    free = _memory.available(jax.devices()[0])
    assert free is None or free > 1 << 20
