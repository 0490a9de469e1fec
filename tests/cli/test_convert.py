"""convert: checks OUT first, proves parity, writes all or nothing, says what it did."""

import os

import jax.numpy as jnp
import numpy as np
import pytest

from jaxinfer.core.errors import CheckpointError
from jaxinfer.io.artefact import load
from tests.cli import fakes


def test_converts_proves_and_says_what_it_did(cli, open_as, tmp_path):
    seen = open_as()
    result = cli("convert", "pkg:make", "-o", "out", "--seed", 3, "--input", "float32[2,5]")
    assert result.code == 0, result.err
    source, options = seen[0]
    assert source == "pkg:make"
    assert (options.seed, options.inputs, options.dynamic) == (3, ("float32[2,5]",), "auto")
    for text in (
        fakes.LABEL,
        "72 B",
        "18 values in 2 leaves",
        "x: float32[batch, 5]",
        "1 <= batch <= 9",
        "4 calls of 4 kinds",
    ):
        assert text in result.out
    for text in ("a late note", "random weights (seed 0)", "a.weight = head.weight", "seeds 3, 4"):
        assert text in result.out
    for stage in ("open", "convert", "verify", "write"):
        assert stage in result.out
    assert "weights: 0 of 2" in result.err
    parity = load(tmp_path / "out").provenance["parity"]
    assert parity["ok"]
    assert parity["seeds"] == [3, 4]
    assert [output["path"] for output in parity["outputs"]] == ["logits", "count"]


def test_json_is_only_json(cli, open_as):
    open_as()
    result = cli("convert", "x", "-o", "out", "--json")
    data = result.json
    assert data["parameters"] == {"leaves": 2, "values": 18, "bytes": 72, "constant_bytes": 0}
    assert data["parity"]["max_abs"] < 1e-6
    assert set(data["seconds"]) == {"open", "convert", "verify", "write"}
    assert data["tied"] == {"a.weight": "head.weight"}


def test_above_the_tolerance_nothing_is_written(cli, open_as, tmp_path):
    open_as(reference=fakes.wrong_reference)
    result = cli("convert", "x", "-o", "out")
    assert result.code == 1
    assert "1 of 2 outputs" in result.err
    assert "logits: float32[2, 3]" in result.err
    assert "0.5" in result.err
    assert os.listdir(tmp_path) == []


def test_tolerance_is_the_users(cli, open_as, tmp_path):
    open_as(reference=fakes.wrong_reference)
    assert cli("convert", "x", "-o", "out", "--tolerance", 0.6).code == 0
    assert load(tmp_path / "out").provenance["parity"]["max_abs"] == pytest.approx(0.5, rel=1e-3)


def test_parity_needs_every_seed(cli, open_as, tmp_path):
    calls = []

    def reference(args, kwargs, state=()):
        calls.append(args)
        return (fakes.reference if len(calls) == 1 else fakes.wrong_reference)(args, kwargs)

    open_as(reference=reference)
    assert cli("convert", "x", "-o", "out").code == 1
    assert len(calls) == 2
    assert os.listdir(tmp_path) == []


def test_no_verify_says_so(cli, open_as, tmp_path):
    def reference(args, kwargs, state=()):
        raise AssertionError("must not be called")

    open_as(reference=reference)
    result = cli("convert", "x", "-o", "out", "--no-verify")
    assert result.code == 0
    assert "NOT CHECKED" in result.out
    assert load(tmp_path / "out").provenance["parity"] is None


def test_out_is_checked_before_any_work(cli, open_as, tmp_path):
    seen = open_as()
    (tmp_path / "out").mkdir()
    result = cli("convert", "x", "-o", "out")
    assert result.code == 1
    assert "exists already" in result.err
    assert "--overwrite" in result.err
    assert cli("convert", "x", "-o", "no/such/dir").code == 1
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    assert cli("convert", "x", "-o", "mine", "--overwrite").code == 1
    assert (tmp_path / "mine" / "thesis.tex").exists()
    assert seen == []


def test_overwrite_replaces_a_model(cli, open_as, tmp_path):
    open_as()
    assert cli("convert", "x", "-o", "out", "--no-verify").code == 0
    assert cli("convert", "x", "-o", "out").code == 1
    assert cli("convert", "x", "-o", "out", "--overwrite").code == 0
    assert load(tmp_path / "out").provenance["parity"]["ok"]
    assert os.listdir(tmp_path) == ["out"]


def test_a_failed_conversion_leaves_the_old_model(cli, open_as, tmp_path):
    open_as()
    assert cli("convert", "x", "-o", "out").code == 0

    def convert(progress):
        raise CheckpointError("weights.safetensors is truncated")

    open_as(convert=convert)
    result = cli("convert", "x", "-o", "out", "--overwrite")
    assert (result.code, result.out) == (1, "")
    assert load(tmp_path / "out").params
    assert os.listdir(tmp_path) == ["out"]


def test_a_full_disk_leaves_nothing(cli, open_as, tmp_path, monkeypatch):
    open_as()

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("jaxinfer.io.artefact.write", full)
    result = cli("convert", "x", "-o", "out")
    assert result.code == 1
    assert "No space left" in result.err
    assert os.listdir(tmp_path) == []


def test_an_unknown_source_lists_the_forms(cli):
    result = cli("convert", "no such thing", "-o", "out")
    assert result.code == 1
    assert "cannot open 'no such thing'" in result.err
    assert "bug" not in result.err


def test_a_model_that_samples_is_compared_in_shapes(cli, open_as, tmp_path):
    x = np.zeros(3, np.float32)
    open_as(
        convert=lambda progress: fakes.sampler(),
        examples=lambda seed: ((x,), {}),
        reference=lambda args, kwargs, _: [x + 99],
    )
    result = cli("convert", "x", "-o", "out")
    assert result.code == 0, result.err
    assert "numbers not compared" in result.out
    assert "random key" in result.out
    assert load(tmp_path / "out").provenance["parity"]["compared"] is False
    shown = cli("inspect", "out").out
    assert "shapes and dtypes only" in shown
    open_as(
        convert=lambda progress: fakes.sampler(),
        examples=lambda seed: ((x,), {}),
        reference=lambda args, kwargs, _: [x[:2]],
    )
    assert cli("convert", "x", "-o", "other").code == 1


def counter():
    """y = x + n, and the buffer n becomes n + 1."""
    return fakes.graph_model(
        {"x": ((3,), "float32")},
        [
            ("y", "aten.add.Tensor", ("x", "n"), None),
            ("more", "aten.add.Tensor", ("n", 1.0), None),
        ],
        {"y": "y"},
        {"n": jnp.zeros(3)},
        changes=[("n", "more")],
    )


@pytest.mark.parametrize(("state", "code"), [([np.ones(3)], 0), ([np.zeros(3)], 1), ([], 0)])
def test_new_state_is_compared_where_the_source_gives_it(cli, open_as, state, code):
    open_as(
        convert=lambda progress: counter(),
        examples=lambda seed: ((np.full(3, seed, np.float32),), {}),
        reference=lambda args, kwargs, _: [args[0], *(s.astype(np.float32) for s in state)],
    )
    result = cli("convert", "x", "-o", "out")
    assert result.code == code, result.err
    if code:
        assert "state.n: float32[3]" in result.err
    elif state:
        assert "state.n" in result.out
    else:
        assert "new state of buffers was not compared" in result.out
