"""Memory of OpenVINO's results: used again, and never under a result that somebody has."""

import importlib.util
import sys
import threading

import jax
import numpy as np
import pytest

import jaxinfer as ji
from jaxinfer.compile.openvino.function import compile_jaxpr
from jaxinfer.compile.openvino.request import SMALL, Results
from tests.compile.openvino_check import traced

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("openvino") is None, reason="needs openvino"
)
COUNT = SMALL  # float32: four times what is copied
counts = pytest.mark.skipif(
    not getattr(sys, "_is_gil_enabled", lambda: True)(), reason="references are not counted"
)


@pytest.fixture(scope="module")
def function():
    return compile_jaxpr(traced(lambda x: x + 1, np.zeros(COUNT, np.float32)), threads=1)


@pytest.fixture(scope="module")
def executable():
    add = lambda params, x: x + params["one"]
    model = ji.from_function(add, {"one": np.float32(1)}, (np.zeros(COUNT, np.float32),))
    return ji.compile(model, {"x": (COUNT,)}, backend="openvino")


def full(value):
    return np.full(COUNT, value, np.float32)


def test_results_that_are_held_do_not_change(function):
    held = [function([full(value)])[0] for value in range(10)]
    assert len({each.ctypes.data for each in held}) == 10
    for value, each in enumerate(held):
        assert (each == value + 1).all()


@pytest.mark.parametrize(
    "part",
    [
        lambda a: a[5:],
        lambda a: a.reshape(2, -1)[1],
        lambda a: a.view(np.int32)[::2].view(np.float32),
        memoryview,
        jax.device_put,
        np.asarray,
    ],
)
def test_a_part_of_a_result_keeps_its_memory(function, part):
    kept = part(function([full(41)])[0])  # the result itself is gone
    for value in range(8):
        function([full(value)])
    assert (np.asarray(kept) == 42).all()


def test_arrays_of_jax_do_not_change(executable):
    first = executable(full(41))
    host = np.asarray(first)
    tail = host[7:]
    soon = jax.jit(lambda y: (y * 2).sum())(executable(full(1)))
    shared = np.from_dlpack(executable(full(9)))
    del first, host
    for value in range(8):
        executable(full(value))
    assert (tail == 42).all()
    assert (shared == 10).all()
    assert float(soon) == 4 * COUNT


@counts
def test_memory_is_used_again(function, executable):
    addresses = {function([full(value)])[0].ctypes.data for value in range(20)}
    assert len(addresses) == 1
    addresses = {executable(full(value)).unsafe_buffer_pointer() for value in range(20)}
    assert len(addresses) <= Results.KEPT


def test_calls_from_several_threads(function):
    wrong = []

    def work(start):
        held = [(value, function([full(value)])[0]) for value in range(start, start + 20)]
        wrong.extend(value for value, each in held if not (each == value + 1).all())

    threads = [threading.Thread(target=work, args=(100 * place,)) for place in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_where_references_are_not_counted_memory_is_new(monkeypatch):
    from jaxinfer.compile.openvino import request

    monkeypatch.setattr(request, "_COUNTS", False)
    results = Results((COUNT,), np.dtype(np.float32), lambda array, shared: array)
    first = results.next()
    assert results.next().owner is not first.owner
    assert first.array.ctypes.data % request.ALIGNMENT == 0
