"""``jaxinfer bench``: the table, the JSON, exit codes, bad options."""

import dataclasses
import json

import numpy as np
import pytest

from jaxinfer.tune.bench import BenchResult, Row


@pytest.fixture
def bench(cli, monkeypatch):
    """Run the command as `jaxinfer bench`."""
    import jaxinfer.cli as package

    monkeypatch.setitem(package._COMMANDS, "bench", "Time a model against its peers.")
    return lambda *args: cli("bench", *args)


@pytest.fixture
def faked(monkeypatch):
    """Let bench_model return given rows; returns what it was called with."""

    def install(*rows, **fields):
        calls = []
        environment = {
            "cpu": "a cpu",
            "versions": {"jax": "1"},
            "load_average": [0.5, 0, 0],
            "load_average_after": [1.5, 0, 0],
        }
        result = BenchResult("a model", rows, "torch", environment=environment, **fields)

        def bench_model(*args, **options):
            calls.append((args, options))
            options["progress"]("torch", "compile", 1)
            options["progress"]("torch", "time 5/25", 1)
            options["progress"]("torch", "time 10/25", 1)
            return result

        monkeypatch.setattr("jaxinfer.tune.bench.bench_model", bench_model)
        return calls

    return install


GOOD = Row("jaxinfer", 1, times_ms=(1.0, 2.0, 3.0), error=1e-7, compile_s=1.5, ratio=0.5)
PEER = Row("torch", 1, times_ms=(4.0,), error=0.0, ratio=1.0)


def test_options_go_through(bench, faked, tmp_path):
    calls = faked(GOOD, PEER)
    result = bench(
        *("m", "--against", "torch, onnxruntime", "--source", "a:b", "--class", "C"),
        *("--batch", "1,4", "--size", "seq=128", "--size", "width=3", "--data", "d.npz"),
        *("--repeats", 7, "--block", 3, "--threads", 2, "--timeout", 9, "--seed", 5),
        *("--tuned", "f1", "--tuned", "f2", "--profile", "p", "-o", "r.json"),
    )
    assert result.code == 0, result.err
    (args, options) = calls[0]
    options.pop("progress")
    assert args == ("m", ["torch", "onnxruntime"])
    assert options == {
        "source": "a:b",
        "source_options": {"class_name": "C"},
        "batches": [1, 4],
        "sizes": {"seq": 128, "width": 3},
        "data": "d.npz",
        "repeats": 7,
        "block": 3,
        "threads": 2,
        "timeout_s": 9,
        "seed": 5,
        "tuned": ("f1", "f2"),
        "profile": "p",
    }
    for text in ("jaxinfer", "2.000", "x best peer", "0.50", "load average", "wrote r.json"):
        assert text in result.out
    assert result.err.count("taking turns") == 1
    saved = BenchResult.from_json(json.loads((tmp_path / "r.json").read_text()))
    assert [row.times_ms for row in saved.rows] == [[1, 2, 3], [4]]
    again = bench("m", "-o", "r.json")
    assert again.code == 1
    assert "r.json exists already" in again.err
    assert bench("m", "-o", "r.json", "--overwrite").code == 0
    assert bench("m", "-o", "no/r.json").code == 1
    assert len(calls) == 2


def test_a_peer_that_failed_is_in_the_table(bench, faked):
    faked(GOOD, Row("openvino", 1, status="failed", reason="it was [killed]"))
    result = bench("m")
    assert result.code == 0
    assert "openvino at batch 1: failed: it was [killed]" in result.out
    assert bench("m", "--json").json["rows"][1]["reason"] == "it was [killed]"


def test_jaxinfer_itself_failed(bench, faked):
    faked(dataclasses.replace(GOOD, times_ms=(), status="failed", reason="no memory"), PEER)
    result = bench("m")
    assert result.code == 1
    assert "jaxinfer did not run:\n  jaxinfer at batch 1: no memory" in result.err
    assert "4.000" in result.out  # the others are shown
    assert bench("m", "--json").json["rows"][0]["status"] == "failed"


def test_other_numbers(bench, faked):
    faked(dataclasses.replace(GOOD, error=0.3, wrong=True), PEER)
    result = bench("m")
    assert result.code == 1
    assert "error 3.0e-01 against torch" in result.err
    assert "Is SRC the model" in result.err
    assert "WRONG" in result.out


@pytest.mark.parametrize(
    ("args", "text"),
    [
        (("--batch", "0"), "--batch"),
        (("--batch", "1,x"), "--batch"),
        (("--batch", ""), "--batch"),
        (("--size", "seq"), "--size"),
        (("--size", "seq=0"), "--size"),
        (("--size", "s=1", "--size", "s=2"), "there twice"),
        (("--repeats", "0"), "--repeats"),
        (("--threads", "0"), "--threads"),
        (("--timeout", "0"), "--timeout"),
        (("--weights", "w"), "give --source"),
    ],
)
def test_wrong_usage(bench, faked, args, text):
    calls = faked(GOOD)
    result = bench("m", *args)
    assert result.code == 2
    assert text in result.err
    assert not calls


def test_bad_names_and_models(bench, model_dir):
    result = bench(model_dir, "--against", "torchcompile")
    assert result.code == 1
    assert "'torchcompile'; near: torch-compile" in result.err
    assert bench("none", "--against", "").code == 1
    result = bench(model_dir, "--against", "", "--batch", "10")
    assert result.code == 1
    assert "batch = 10: the model takes 1 <= batch <= 9" in result.err


def test_a_real_run(bench, model_dir, tmp_path):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((5, 5)).astype(np.float32)
    np.savez(tmp_path / "in.npz", x=x, mask=np.ones((5, 4), np.int32))
    result = bench(
        *(model_dir, "--against", "torch", "--batch", "2", "--repeats", "2"),
        *("--data", "in.npz", "--json"),
    )
    assert result.code == 0, result.err
    own, peer = result.json["rows"]
    assert own["status"] == "measured"
    assert len(own["times_ms"]) == 2
    assert own["error"] == 0
    assert peer["status"] in ("skipped", "missing")
