"""run: arrays in by name or by place, arrays out by path, all or nothing."""

import os
import pickle

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from jaxinfer.cli import run as run_module
from tests.cli import fakes

X, MASK = fakes.examples(0)[0]


def loaded(path):
    with np.load(path, allow_pickle=False) as archive:
        return dict(archive)


@pytest.mark.parametrize("named", [True, False])
def test_runs_by_name_and_by_position(cli, model_dir, tmp_path, named):
    arrays = {"x": X, "mask": MASK} if named else {"arr_0": X, "arr_1": MASK}
    np.savez(tmp_path / "in.npz", **arrays)
    result = cli("run", model_dir, "in.npz", "-o", "out.npz")
    assert result.code == 0, result.err
    got = loaded(tmp_path / "out.npz")
    logits, count = fakes.reference((X, MASK), {})
    assert set(got) == {"count", "logits"}
    np.testing.assert_array_equal(got["count"], count)
    np.testing.assert_allclose(got["logits"], logits, rtol=1e-5, atol=1e-6)
    assert "logits: float32[2, 3]" in result.out
    assert sorted(os.listdir(tmp_path)) == ["in.npz", "model", "out.npz"]


def test_missing_and_unknown_names_are_all_listed(cli, model_dir, tmp_path):
    np.savez(tmp_path / "in.npz", x=X, Mask=MASK, other=X)
    result = cli("run", model_dir, "in.npz", "-o", "out.npz")
    assert result.code == 1
    for text in ("missing: mask: int32[batch, 4]", "'Mask'", "'other'"):
        assert text in result.err
    assert not (tmp_path / "out.npz").exists()


def test_too_many_and_too_few_by_position(cli, model_dir, tmp_path):
    np.savez(tmp_path / "in.npz", X, MASK, X)
    result = cli("run", model_dir, "in.npz", "-o", "out.npz")
    assert result.code == 1
    assert "'arr_2'" in result.err
    np.savez(tmp_path / "in.npz", X)
    result = cli("run", model_dir, "in.npz", "-o", "out.npz")
    assert "missing: mask: int32[batch, 4] (as arr_1)" in result.err


def test_names_and_positions_do_not_mix(cli, model_dir, tmp_path):
    np.savez(tmp_path / "in.npz", X, mask=MASK)
    result = cli("run", model_dir, "in.npz", "-o", "out.npz")
    assert result.code == 1
    assert "missing: x:" in result.err


def test_wrong_shapes_and_dtypes_are_errors(cli, model_dir, tmp_path):
    np.savez(tmp_path / "in.npz", x=X[:, :4], mask=MASK[0])
    result = cli("run", model_dir, "in.npz", "-o", "out.npz")
    assert result.code == 1
    assert "x: float32[batch, 5]: axis 1" in result.err
    assert "mask: int32[batch, 4]: got rank 1" in result.err
    np.savez(tmp_path / "in.npz", x=X.astype(np.float64), mask=MASK)
    result = cli("run", model_dir, "in.npz", "-o", "out.npz")
    assert "float64" in result.err


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("boom",)


def test_pickles_are_refused(cli, model_dir, tmp_path):
    np.savez(tmp_path / "in.npz", x=np.array([Bomb()], object), mask=MASK)
    (tmp_path / "bare.npz").write_bytes(pickle.dumps(Bomb()))
    for file in ("in.npz", "bare.npz", "none.npz"):
        result = cli("run", model_dir, file, "-o", "out.npz")
        assert result.code == 1
        assert file in result.err
    assert not (tmp_path / "boom").exists()
    assert not (tmp_path / "out.npz").exists()


def test_output_that_exists(cli, model_dir, tmp_path):
    np.savez(tmp_path / "in.npz", X, MASK)
    (tmp_path / "out.npz").write_text("precious")
    result = cli("run", "no model", "no input", "-o", "out.npz")
    assert result.code == 1
    assert "out.npz exists already" in result.err
    assert (tmp_path / "out.npz").read_text() == "precious"
    assert cli("run", model_dir, "in.npz", "-o", "out.npz", "--overwrite").code == 0
    assert set(loaded(tmp_path / "out.npz")) == {"count", "logits"}
    assert cli("run", model_dir, "in.npz", "-o", "model", "--overwrite").code == 1
    assert cli("run", model_dir, "in.npz", "-o", "no/dir/out.npz").code == 1


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failed_write_leaves_the_old_file(cli, model_dir, tmp_path, monkeypatch, error):
    np.savez(tmp_path / "in.npz", X, MASK)
    (tmp_path / "out.npz").write_text("precious")

    def full(*args, **kwargs):
        raise error

    monkeypatch.setattr(run_module.np.lib.format, "write_array", full)
    result = cli("run", model_dir, "in.npz", "-o", "out.npz", "--overwrite")
    assert result.code == 1
    assert (tmp_path / "out.npz").read_text() == "precious"
    assert sorted(os.listdir(tmp_path)) == ["in.npz", "model", "out.npz"]


def test_bfloat16_goes_through_float32_and_says_so(cli, tmp_path):
    fakes.graph_model(
        {"x": ((4,), "bfloat16")},
        [("y", "aten.mul.Tensor", ("x", "p"), None)],
        {"y": "y"},
        {"p": jnp.bfloat16(3)},
    ).save(tmp_path / "half")
    x = np.array([1, 2.5, -3, 0.1], np.float32)
    np.savez(tmp_path / "in.npz", x=x)
    result = cli("run", "half", "in.npz", "-o", "out.npz")
    assert result.code == 0, result.err
    assert "x: float32 rounded to bfloat16" in result.out
    assert "y: bfloat16 written as float32 (exact)" in result.out
    want = (x.astype(ml_dtypes.bfloat16) * ml_dtypes.bfloat16(3)).astype(np.float32)
    np.testing.assert_array_equal(loaded(tmp_path / "out.npz")["y"], want)


def test_outputs_with_awkward_names(cli, tmp_path):
    fakes.graph_model(
        {"x": ((2,), "float32")},
        [("y", "aten.add.Tensor", ("x", 1.0), None)],
        {"file": "x", "a/b": "y"},
    ).save(tmp_path / "m")
    np.savez(tmp_path / "in.npz", x=np.ones(2, np.float32))
    assert cli("run", "m", "in.npz", "-o", "out.npz").code == 0
    assert set(loaded(tmp_path / "out.npz")) == {"file", "a/b"}


def test_a_model_that_samples_needs_a_key(cli, tmp_path):
    fakes.sampler().save(tmp_path / "m")
    np.savez(tmp_path / "in.npz", x=np.zeros(3, np.float32))
    result = cli("run", "m", "in.npz", "-o", "out.npz")
    assert result.code == 1
    assert "--key" in result.err
    assert cli("run", "m", "in.npz", "-o", "a.npz", "--key", 7).code == 0
    assert cli("run", "m", "in.npz", "-o", "b.npz", "--key", 7).code == 0
    assert cli("run", "m", "in.npz", "-o", "c.npz", "--key", 8).code == 0
    a, b, c = (loaded(tmp_path / f"{n}.npz")["noisy"] for n in "abc")
    np.testing.assert_array_equal(a, b)
    assert (a != c).any()


def test_a_key_that_is_not_used_is_noted(cli, model_dir, tmp_path):
    np.savez(tmp_path / "in.npz", X, MASK)
    result = cli("run", model_dir, "in.npz", "-o", "out.npz", "--key", 7)
    assert result.code == 0
    assert "does not sample" in result.out
