"""compile: a model directory to an executable, and `run --executable` on it."""

import numpy as np
import pytest

from jaxinfer.compile.store import StaleExecutableWarning
from tests.cli import fakes

X, MASK = fakes.examples(0)[0]


@pytest.fixture
def exe(cli, model_dir):
    result = cli("compile", model_dir, "-o", "exe", "--buckets", "batch=2,4")
    assert result.code == 0, result.err
    return result


def test_compile_and_run(cli, exe, tmp_path):
    assert "batch=2" in exe.out
    assert "wrote exe" in exe.out
    np.savez(tmp_path / "in.npz", x=X, mask=MASK)
    result = cli("run", "exe", "in.npz", "-o", "out.npz", "--executable")
    assert result.code == 0, result.err
    logits, count = fakes.reference((X, MASK), {})
    with np.load(tmp_path / "out.npz") as got:
        assert set(got) == {"count", "logits"}
        np.testing.assert_array_equal(got["count"], count)
        np.testing.assert_allclose(got["logits"], logits, rtol=1e-5, atol=1e-6)


def test_run_does_not_execute_what_it_was_not_told_to(cli, exe, tmp_path):
    np.savez(tmp_path / "in.npz", x=X, mask=MASK)
    result = cli("run", "exe", "in.npz", "-o", "out.npz")
    assert result.code == 1
    assert "Traceback" not in result.err


def test_the_report_as_json(cli, model_dir):
    args = ("--input", "x=rows,5", "--input", "mask=rows,4", "--buckets", "rows=3")
    result = cli("compile", model_dir, "-o", "exe", *args, "--json", "--no-check")
    assert result.code == 0, result.err
    (bucket,) = result.json["buckets"]
    assert bucket["sizes"] == {"rows": 3}
    assert bucket["flops"] > 0
    assert result.json["out"] == "exe"


@pytest.mark.parametrize(
    ("args", "code", "text"),
    [
        ((), 1, "batch: has no size"),
        (("--buckets", "batch=a"), 2, "required numbers"),
        (("--buckets", "batch"), 2, "required NAME=SIZE"),
        (("--buckets", "batch=2", "--buckets", "batch=3"), 2, "batch is there twice"),
        (("--buckets", "batch=2", "--option", "xla"), 2, "required NAME=VALUE"),
        (("--buckets", "batch=2", "--option", "xla_none=1"), 1, "XLA refuses xla_none=1"),
        (("--buckets", "batch=2", "--backend", "tpu"), 1, "backend: required one of"),
        (("--buckets", "batch=99"), 1, "the model takes 1 to 9, not 99"),
    ],
)
def test_what_does_not_fit(cli, model_dir, tmp_path, args, code, text):
    result = cli("compile", model_dir, "-o", "exe", *args)
    assert result.code == code
    assert text in result.err
    assert "Traceback" not in result.err
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_an_executable_is_not_overwritten_unasked(cli, model_dir, exe):
    again = ("compile", model_dir, "-o", "exe", "--buckets", "batch=2")
    result = cli(*again)
    assert result.code == 1
    assert "exists already" in result.err
    assert cli(*again, "--overwrite").code == 0
    assert "no model directory" in cli(*again[:3], "model", *again[4:], "--overwrite").err


def test_stale_code_is_said(cli, exe, tmp_path):
    index = tmp_path / "exe" / "executable.json"
    index.write_text(index.read_text().replace('"jaxlib":"', '"jaxlib":"9'))
    np.savez(tmp_path / "in.npz", x=X, mask=MASK)
    with pytest.warns(StaleExecutableWarning, match="compiled again"):
        assert cli("run", "exe", "in.npz", "-o", "out.npz", "--executable").code == 0
