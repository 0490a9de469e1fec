"""The benchmark: sides that are well and sides that are not, the numbers, and real peers."""

import gc
import importlib.util
import json
import math
import os
import pathlib
import time
import weakref

import jax
import numpy as np
import pytest

import jaxinfer as ji
from jaxinfer.core.errors import ArtefactError, InputError
from jaxinfer.tune.bench import PEERS, BenchResult, Row, Side, bench, bench_model
from jaxinfer.tune.bench._inputs import draw
from jaxinfer.tune.bench._peers import check_names, origin, peer_side
from jaxinfer.tune.bench._worker import read_arrays, write_arrays
from jaxinfer.tune.bench.result import difference, with_ratios
from tests.cli import fakes

X = np.arange(10, dtype=np.float32).reshape(2, 5)


def side(factory="numpy_side", **settings):
    return Side(f"tests.tune.bench_sides:{factory}", settings)


def run(sides, inputs=X, **options):
    given = {2: [inputs]} if isinstance(inputs, np.ndarray) else inputs
    return bench(sides, given, **({"repeats": 3, "block": 2, "timeout_s": 60} | options))


@pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="needs openvino")
def test_openvino_keeps_its_inputs():
    import openvino
    from openvino import opset13 as op

    from jaxinfer.tune.bench._openvino import prepared

    x = op.parameter([1 << 23], np.float32)
    model = openvino.Model([op.result(op.add(x, op.constant(np.float32(1))))], [x], "m")
    given = np.zeros(1 << 23, np.float32)
    made = prepared(model, [given], lambda outputs: outputs, 1)
    kept = weakref.ref(given)
    del given  # 32 MB: given back to the system if nobody keeps it
    gc.collect()
    assert kept() is not None
    made.run()
    assert (made.outputs(None)[0] == 1).all()


def test_sides_in_turn(tmp_path):
    log = tmp_path / "log"
    names = ("a", "b", "c")
    result = run({name: side(name=name, log=str(log)) for name in names}, repeats=5)
    lines = log.read_text().split()[::2]
    first, turns = lines[:3], lines[3:]
    assert first == ["a", "b", "c"]  # called once each
    # turns of 2, 2 and 1 timed calls after an untimed one, and each time another begins
    want = []
    for calls, order in ((3, "abc"), (3, "bca"), (2, "cab")):
        want += [name for name in order for _ in range(calls)]
    assert turns == want
    assert [row.side for row in result.rows] == list(names)
    for row in result.rows:
        assert row.measured
        assert len(row.times_ms) == 5
        assert row.error == 0
        assert row.cosine == pytest.approx(1)
        assert row.notes == ("compiled",)
        assert row.first_call_ms > 0
        assert row.compile_s >= 0
        assert row.load_s > 0
    assert result.reference == "a"


BAD = {
    "raise": "ValueError: cannot {} because",
    "memory": "out of memory: 8 GB",
    "exit": "the process ended with code 3; its last lines: a last word",
    "kill": "ended by SIGKILL (somebody killed it, or the system had no memory left)",
    "segfault": "ended by SIGSEGV",
}


def test_sides_that_fail_are_rows_and_the_others_go_on():
    sides = {"good": side()}
    places = {"raise": "prepare", "memory": "open", "exit": "run", "kill": "prepare"}
    sides |= {what: side(**{place: what}) for what, place in places.items()}
    sides["segfault"] = side(run="segfault", after=1)
    sides["missing"] = Side("no.such:thing", missing="needs nothing: pip install nothing")
    sides["unknown"] = Side("tests.tune.no_such_module:thing")
    sides["last"] = side()
    result = run(sides)
    assert [row.side for row in result.rows] == list(sides)
    for what, text in BAD.items():
        row = result.row(what)
        assert row.status == "failed"
        assert text.format(places.get(what)) in row.reason, row.reason
        assert not row.times_ms
    assert result.row("exit").reason.startswith("after 2 timed calls: run:")
    assert result.row("missing").status == "missing"
    assert "no_such_module" in result.row("unknown").reason
    for name in ("good", "last"):
        assert len(result.row(name).times_ms) == 3
    text = result.table()
    assert "SIGKILL" in text
    assert "pip install nothing" in text


def test_a_side_that_hangs_is_ended():
    started = time.monotonic()
    sides = {"good": side(), "hangs": side(run="hang", after=3)}
    result = run(sides, timeout_s=4.0)
    assert "no answer within 4 s" in result.row("hangs").reason
    assert len(result.row("good").times_ms) == 3
    assert time.monotonic() - started < 300


def test_no_process_is_left():
    sides = {"a": side(), "b": side(prepare="raise"), "c": side(prepare="kill")}
    run(sides)
    children = f"/proc/{os.getpid()}/task/{os.getpid()}/children"
    if not os.path.exists(children):
        pytest.skip("needs Linux")
    left = pathlib.Path(children).read_text().split()
    commands = [pathlib.Path(f"/proc/{pid}/cmdline").read_text() for pid in left]
    assert not [c for c in commands if "_worker" in c]


@pytest.mark.skipif(not os.path.exists("/proc/stat"), reason="needs Linux")
def test_a_side_that_spins_is_paused_while_others_compute(tmp_path):
    # the busy thread of "spins" would log steadily; paused, it gets no processor
    from jaxinfer.tune.bench._process import Process, side_environment

    process = Process(tmp_path / "log", side_environment(1, {}, tmp_path))
    try:
        where = [os.getcwd()]
        process.ask(
            "open", 60, factory="tests.tune.bench_sides:spinner", settings={}, path=where, cpus=[]
        )

        def used():
            fields = (
                pathlib.Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
            )
            return int(fields[11]) + int(fields[12]), fields[0]

        def until(done):
            end = time.monotonic() + 30
            while not done() and time.monotonic() < end:
                time.sleep(0.01)
            assert done()

        until(lambda: used()[1] == "T")
        before, _ = used()
        time.sleep(0.2)
        assert used()[0] == before
        process._resume()
        until(lambda: used()[0] > before)  # it would have
    finally:
        process.end()


def test_threads_are_the_same_for_all():
    result = run({"a": side("echo"), "b": side("echo")}, threads=1)
    assert not any(row.error for row in result.rows)
    assert any("1 of" in note for note in result.notes) == (len(os.sched_getaffinity(0)) > 1)
    with pytest.raises(InputError, match="threads: required 1 to"):
        run({"a": side()}, threads=10_000)


def test_the_device_of_the_first_side_is_told_to_the_others():
    result = run({"own": side("echo"), "peer": side("echo")})
    assert [row.device for row in result.rows] == ["on nothing", "on on nothing"]


def test_wrong_numbers_are_marked_in_float32():
    sides = {
        "a": side(),
        "off": side(off=0.1),
        "nan": side(off=math.nan),
        "int8": side(off=0.1, precision="int8"),
    }
    result = run(sides)
    scale = np.abs(X @ np.linspace(-1, 1, 15).reshape(5, 3)).max()
    assert result.row("off").error == pytest.approx(0.1 / scale, rel=1e-3)
    assert [row.wrong for row in result.rows] == [False, True, True, False]
    assert result.row("nan").error == math.inf
    text = result.table()
    assert text.count("WRONG NUMBERS") == 2
    again = BenchResult.from_json(json.loads(json.dumps(result.to_json(), allow_nan=False)))
    assert again == BenchResult.from_json(json.loads(json.dumps(again.to_json(), allow_nan=False)))
    assert again.row("nan").error == math.inf


def test_settings_that_do_not_fit():
    with pytest.raises(InputError) as caught:
        bench({}, {0: [X]}, repeats=0, block=-1, timeout_s=0, profiled=("x",))
    for text in ("sides: none", "repeats", "block", "batch", "timeout_s", "no side 'x'"):
        assert text in str(caught.value)


def test_difference():
    a = np.array([1.0, -4.0], np.float32)
    assert difference([a], [a]) == (0, pytest.approx(1), "")
    error, cosine, _ = difference([a], [a + np.float32(1)])
    assert error == 0.25
    assert cosine == pytest.approx((2 + 12) / math.hypot(1, 4) / math.hypot(2, 3))
    assert difference([np.array([1, 2])], [np.array([1, 3])])[0] == 0.5
    assert difference([a], [a[:1]])[0] == math.inf
    assert difference([a], [a, a])[2] == "2 outputs, the reference has 1"
    for bad in (math.nan, math.inf):
        worse = np.array([1.0, bad], np.float32)
        assert difference([a], [worse])[0] == math.inf
        assert difference([worse], [a])[0] == math.inf
        assert difference([worse], [worse])[0] == 0
    assert difference([a * 0], [a * 0])[:2] == (0, 1)
    assert difference([np.zeros((0, 3))], [np.zeros((0, 3))])[0] == 0
    assert difference([a * 1j], [a * 2j])[0] == pytest.approx(1)


def test_ratios():
    rows = [
        Row("own", 1, times_ms=(2.0,)),
        Row("p", 1, times_ms=(4.0,)),
        Row("q", 1, times_ms=(1.0,), wrong=True),
        Row("r", 1, times_ms=(1.0,), precision="int8"),
        Row("own8", 1, times_ms=(2.0,), precision="int8"),
        Row("own", 2, times_ms=(2.0,)),
        Row("p", 2, status="failed", reason="x"),
    ]
    ratios = [row.ratio for row in with_ratios(rows, ("p", "q", "r"))]
    assert ratios == [0.5, 1.0, 0.25, 1.0, 2.0, None, None]


def test_statistics():
    row = Row("a", 4, times_ms=(1.0, 2.0, 3.0, 4.0, 100.0))
    assert (row.median_ms, row.mad_ms, row.min_ms) == (3, 1, 1)
    assert row.p99_ms == pytest.approx(np.percentile(row.times_ms, 99))
    assert row.throughput == pytest.approx(4 / 3e-3)
    assert Row("a", 1).median_ms is None


def test_arrays_between_processes(tmp_path):
    arrays = [
        X,
        np.asarray(3, np.int64),
        np.zeros((0, 2), bool),
        np.asarray(jax.numpy.asarray([1.5, -2], "bfloat16")),
        X.T,
    ]
    write_arrays(tmp_path / "a.npz", arrays)
    for want, got in zip(arrays, read_arrays(tmp_path / "a.npz"), strict=True):
        assert got.dtype == want.dtype
        np.testing.assert_array_equal(got, want)
        assert got.ctypes.data % 64 == 0 or not got.size


# -- inputs -------------------------------------------------------------------------------------


def model(shape=("batch", 5), symbols=None):
    return fakes.graph_model(
        {"x": (shape, "float32")},
        [("y", "aten.tanh.default", ("x",), None)],
        {"y": "y"},
        symbols=symbols or {},
    )


def test_inputs_by_batch():
    drawn = draw(fakes.model(), [1, 4], {}, None, 0)
    assert {b: [a.shape for a in call] for b, call in drawn.calls.items()} == {
        1: [(1, 5), (1, 4)],
        4: [(4, 5), (4, 4)],
    }
    assert drawn.calls[1][1].dtype == np.int32
    assert np.all(drawn.calls[4][1] == 1)  # a mask
    again = draw(fakes.model(), [4], {}, None, 0)
    np.testing.assert_array_equal(again.calls[4][0], drawn.calls[4][0])


def test_inputs_of_a_fixed_batch():
    drawn = draw(model((3, 5)), [1, 8], {}, None, 0)
    assert list(drawn.calls) == [3]
    assert drawn.notes == ["the model's batch is fixed to 3: no other was run"]
    assert draw(model((3, 5)), [3], {}, None, 0).notes == []


def test_sizes():
    made = model(("batch", "seq"), {"batch": (1, 8), "seq": (2, 16)})
    drawn = draw(made, [2], {"seq": 7}, None, 0)
    assert drawn.calls[2][0].shape == (2, 7)
    assert drawn.sizes == {"seq": 7}
    for sizes, batches, text in (
        ({}, [1], "seq: has no size: --size seq=N (it takes 2 <= seq <= 16)"),
        ({"seq": 99}, [1], "seq = 99: the model takes 2 <= seq <= 16"),
        ({"seq": 4}, [9], "batch = 9: the model takes 1 <= batch <= 8"),
        ({"seq": 4, "sec": 2}, [1], "sec: no such size; there are: seq"),
        ({"seq": 4, "batch": 2}, [1], "--batch chooses it"),
        ({"seq": 4}, [0], "got 0"),
        ({"seq": 4}, [], "got none"),
    ):
        with pytest.raises(InputError) as caught:
            draw(made, batches, sizes, None, 0)
        assert text in str(caught.value)


def test_inputs_of_a_file(tmp_path):
    made = model(("batch", "seq"))
    x = np.random.default_rng(0).normal(size=(9, 6)).astype(np.float32)
    np.savez(tmp_path / "d.npz", x=x, label=np.arange(9))
    drawn = draw(made, [2, 12], {}, tmp_path / "d.npz", 0)
    np.testing.assert_array_equal(drawn.calls[2][0], x[:2])
    assert drawn.calls[12][0].shape == (12, 6)
    assert [each[0].shape for each in drawn.calibration[2]] == [(2, 6)] * 4
    np.testing.assert_array_equal(drawn.calibration[2][0][0], x[2:4])
    assert drawn.calibration[12] == []
    assert drawn.sizes == {"seq": 6}
    assert drawn.notes == ["batch 12: the data hold 9 samples, which were repeated"]
    with pytest.raises(InputError, match="seq: 6 in the data, --size says 7"):
        draw(made, [2], {"seq": 7}, tmp_path / "d.npz", 0)
    np.savez(tmp_path / "bad.npz", y=x)
    with pytest.raises(InputError, match="missing: x"):
        draw(made, [2], {}, tmp_path / "bad.npz", 0)
    np.savez(tmp_path / "bad.npz", x=x[0])
    with pytest.raises(InputError, match="x"):
        draw(made, [2], {}, tmp_path / "bad.npz", 0)


def test_models_that_cannot_be_run():
    with pytest.raises(InputError, match="samples random numbers"):
        draw(fakes.sampler(), [1], {}, None, 0)


# -- peers --------------------------------------------------------------------------------------


def test_names_of_peers():
    check_names(PEERS)
    with pytest.raises(InputError) as caught:
        check_names(["torch", "onnxruntim", "torch", "xyz"])
    assert "'onnxruntim'; near: onnxruntime" in str(caught.value)
    assert "'torch' is there twice" in str(caught.value)
    assert "'xyz'" in str(caught.value)


def test_where_the_peers_start():
    assert origin("a:b", {"source": "timm:resnet50"}).source == "a:b"
    assert origin(None, {"source": "timm:resnet50"}).source == "timm:resnet50"
    # a file never makes code run, and says only the last part of a checkpoint's place
    for said in ("Net from package.module:factory", "BertModel from minilm", "timm:x; y:z"):
        found = origin(None, {"source": said})
        assert found.source == ""
        assert said in found.why
        assert "--source" in found.why
    assert "names none" in origin(None, {}).why


def test_what_is_not_installed_is_said(monkeypatch):
    import importlib.util

    real = importlib.util.find_spec
    gone = ("openvino", "onnxruntime", "nncf")
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name in gone else real(name, *a)
    )
    start = origin("a.onnx", {})
    made = peer_side("openvino-int8", start, {})
    words = made.missing.partition(":")[0].removeprefix("needs ").split(", ")
    assert {"openvino", "nncf"} <= set(words) <= {"openvino", "nncf", "onnx"}
    assert made.missing.endswith("pip install 'jaxinfer[bench]'")
    assert "onnxruntime" in peer_side("onnxruntime", start, {}).missing
    torch_side = peer_side("torch", start, {})
    assert "ONNX file" in (torch_side.skipped or "") or "torch" in (torch_side.missing or "")


@pytest.fixture
def saved(tmp_path):
    fakes.model().save(tmp_path / "model")
    return tmp_path / "model"


def test_a_model_without_peers(saved, tmp_path):
    ji.cast("bf16")(fakes.model()).save(tmp_path / "half")
    result = bench_model(
        saved,
        ["torch"],
        batches=(3,),
        repeats=3,
        block=2,
        tuned=tmp_path / "half",
        profile=tmp_path / "traces",
    )
    assert [(row.batch, row.side, row.status) for row in result.rows] == [
        (3, "jaxinfer", "measured"),
        (3, "jaxinfer-tuned", "measured"),
        (3, "torch", "skipped" if importlib.util.find_spec("torch") else "missing"),
    ]
    own, tuned, torch_row = result.rows
    assert (own.error, own.precision, own.wrong, own.device) == (0, "f32", False, "cpu")
    assert own.ratio is None
    assert own.peak_mb >= own.base_mb > 0
    assert tuned.precision != "f32"
    assert 0 < tuned.error < 0.05
    assert "no recipe.json there: compiled as it is" in tuned.notes
    assert "names none" in torch_row.reason or "torch" in torch_row.reason
    assert result.reference == "jaxinfer"
    for name in ("jaxinfer-batch-3", "jaxinfer-tuned-batch-3"):
        for end in (".xplane.pb", "perfetto_trace.json.gz"):
            files = [p for p in result.profiles if name in p and p.endswith(end)]
            assert files
            assert all(os.path.getsize(p) for p in files)
    assert result.environment["versions"]["jax"] == jax.__version__


def test_bad_calls(saved, tmp_path):
    with pytest.raises(InputError, match="no such peer"):
        bench_model(saved, ["tensorrt"])
    with pytest.raises(ArtefactError):
        bench_model(tmp_path / "none", ["torch"])
    for source in ("nothing", "none/", "none.onnx"):
        with pytest.raises(InputError, match="no such file or directory"):
            bench_model(saved, ["torch"], source=source)
    with pytest.raises(InputError, match="no model directory"):
        bench_model(saved, [], tuned=tmp_path)
    with pytest.raises(InputError, match="there twice"):
        bench_model(saved, [], tuned=[saved, saved])


@pytest.fixture
def converted(tmp_path):
    torch = pytest.importorskip("torch")
    from tests.tune.bench_sides import network

    torch.manual_seed(1)
    module, args = network()
    made = ji.from_torch(module, args, dynamic_shapes=({0: "batch"},))
    made.save(tmp_path / "net")
    return tmp_path / "net"


NETWORK = "tests.tune.bench_sides:network"


def test_torch(converted):
    result = bench_model(converted, ["torch"], source=NETWORK, batches=(3,), repeats=3, block=2)
    assert [row.status for row in result.rows] == ["measured"] * 2
    assert result.reference == "torch"
    for row in result.rows:  # the factory's own weights are others
        assert row.error < 1e-5, row
        assert row.cosine == pytest.approx(1)
        assert row.notes == ()
        assert row.ratio is not None
    assert {"torch", "jax", "jaxinfer"} <= set(result.environment["versions"])


@pytest.mark.slow
def test_a_source_of_another_model(converted):
    result = bench_model(
        converted,
        ["torch"],
        source="tests.tune.bench_sides:other_network",
        batches=(2,),
        repeats=1,
    )
    assert result.row("jaxinfer").wrong
    (note,) = result.row("torch").notes
    assert "the weights differ" in note
    assert "conv.weight" in note or "stem.weight" in note


def test_weights_of_a_transformed_model_cannot_be_given_back(converted, tmp_path):
    from jaxinfer_converters.torch._peers_module import open_module, with_weights_of

    module = open_module(NETWORK, {})
    assert with_weights_of(module, str(converted))[1] == []
    ji.quantize("W8A16")(ji.load(converted)).save(tmp_path / "small")
    (note,) = with_weights_of(module, str(tmp_path / "small"))[1]
    assert "the weights differ" in note


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("tests.tune.bench_sides:no_such", "no_such"),
        ("tests.tune.no_such:thing", "cannot import"),
        ("tests.tune.bench_sides:WEIGHT", "not callable|required a torch"),
        ("nothing", "not a source"),
        ("none.pt2", "no such file"),
        ("none/", "no such directory"),
    ],
)
def test_sources_that_are_none(source, text):
    pytest.importorskip("torch")
    from jaxinfer_converters.torch._peers_module import open_module

    with pytest.raises((ValueError, ImportError, TypeError), match=text):
        open_module(source, {})


def test_images_with_other_axes(tmp_path):
    torch = pytest.importorskip("torch")
    from tests.tune.bench_sides import network

    module, args = network()
    made = ji.from_torch(module, args, layout="NHWC")
    made.save(tmp_path / "net")
    from jaxinfer.tune.bench._peer_inputs import Interface

    interface = Interface(str(tmp_path / "net"))
    x = np.random.default_rng(0).normal(size=(2, 7, 11, 3)).astype(np.float32)
    (inward,) = interface.inward([x])
    np.testing.assert_array_equal(inward, x.transpose(0, 3, 1, 2))
    assert inward.flags.c_contiguous
    with torch.no_grad():
        want = module(torch.from_numpy(inward))
    got = made(x)
    for name in want:
        np.testing.assert_allclose(got[name], want[name].numpy(), atol=1e-5)


@pytest.mark.slow
def test_an_onnx_file(converted, tmp_path):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    import onnx
    from onnx import TensorProto, helper

    weight = helper.make_tensor("w", TensorProto.FLOAT, (5, 3), np.arange(15.0) / 15)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"]), helper.make_node("Tanh", ["y"], ["z"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ("n", 5))],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, ("n", 3))],
        [weight],
    )
    file = tmp_path / "m.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]), file)
    ji.from_onnx(str(file)).save(tmp_path / "m")
    result = bench_model(
        tmp_path / "m", ["onnxruntime", "torch"], source=str(file), batches=(4,), repeats=2
    )
    assert result.row("onnxruntime").measured, result.row("onnxruntime").reason
    assert result.row("onnxruntime").error < 1e-6
    assert result.row("torch").status == "skipped"
    assert result.reference == "jaxinfer"


@pytest.mark.slow
def test_all_peers(converted, tmp_path):
    for name in ("openvino", "nncf", "onnxruntime", "onnxscript"):
        pytest.importorskip(name)
    x = np.random.default_rng(0).normal(size=(24, 3, 7, 11)).astype(np.float32)
    np.savez(tmp_path / "d.npz", x=x)
    names = [name for name in PEERS if not name.endswith("fp16")]
    result = bench_model(
        converted, names, source=NETWORK, batches=(4,), data=tmp_path / "d.npz", repeats=2
    )
    for row in result.rows:
        assert row.measured, (row.side, row.reason)
        assert row.error < (1e-5 if row.precision == "f32" else 0.1), row
        assert not any("timed inputs themselves" in note for note in row.notes)
    assert {row.precision for row in result.rows} == {"f32", "bfloat16", "int8"}


@pytest.mark.slow
def test_an_exported_program(converted, tmp_path):
    torch = pytest.importorskip("torch")
    for name in ("openvino", "onnxruntime", "onnxscript"):
        pytest.importorskip(name)
    from tests.tune.bench_sides import network

    module, args = network()
    torch.export.save(torch.export.export(module, args), tmp_path / "net.pt2")
    names = ["torch", "onnxruntime", "openvino"]
    result = bench_model(
        converted, names, source=str(tmp_path / "net.pt2"), batches=(2,), repeats=2
    )
    for row in result.rows:
        assert row.measured, (row.side, row.reason)
        assert row.error < 1e-5
        assert row.notes == ()


@pytest.mark.slow
def test_a_tuned_directory_is_compiled_by_its_recipe(converted, tmp_path):
    model = ji.load(converted)
    batch = {"x": np.random.default_rng(0).normal(size=(4, 3, 7, 11)).astype(np.float32)}
    plan = ji.optimize(model, [batch] * 4, max_drop=0.5, budget=ji.Budget(seconds=60, compiles=4))
    plan.model.save(tmp_path / "fast")
    result = bench_model(converted, [], batches=(4, 2), tuned=tmp_path / "fast", repeats=2)
    tuned = [row for row in result.rows if row.side == "jaxinfer-tuned"]
    assert all(row.measured for row in tuned), result.table()
    assert all(any(note.startswith("recipe: ") for note in row.notes) for row in tuned)
    assert any("found at other sizes" in note for note in tuned[1].notes)
