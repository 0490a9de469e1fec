"""inspect: what a model holds, takes, gives and costs."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxinfer.cli import _describe
from jaxinfer.core.errors import InputError
from jaxinfer.core.model import Model
from jaxinfer.core.program import FunctionProgram, signature_of
from jaxinfer.core.signature import LeafSpec, Signature
from jaxinfer.core.structure import LEAF
from tests.cli import fakes


def test_shows_everything(cli, model_dir):
    result = cli("inspect", model_dir)
    assert result.code == 0, result.err
    for text in (
        "model  (2 leaves, 72 B)",
        "head  (2 leaves, 72 B)",
        "weight  float32[3, 5]",
        "x: float32[batch, 5]",
        "mask: int32[batch, 4]",
        "logits: float32[batch, 3]",
        "1 <= batch <= 9",
        "cost at batch=1",
        "aten.linear.default",
        "dot_general",
        "changes",
        "samples",
        "jaxlib",
    ):
        assert text in result.out


def test_json_is_only_json(cli, model_dir):
    data = cli("inspect", model_dir, "--json", "--size", "batch=7").json
    assert data["parameters"] == {"leaves": 2, "values": 18, "bytes": 72, "constant_bytes": 0}
    assert data["cost"]["by_primitive"]["dot_general"] == 2 * 7 * 5 * 3
    assert data["cost"]["transcendentals"] == 7 * 3
    assert {leaf["name"]: leaf["shape"] for leaf in data["leaves"]} == {
        "head.weight": [3, 5],
        "head.bias": [3],
    }
    assert data["outputs"] == ["logits: float32[batch, 3]", "count: int64[4]"]
    assert data["cost"]["at"] == {"batch": 7}
    assert data["sizes"] == {"batch": [1, 9]}
    assert data["operators"]["aten.linear.default"] == 1
    assert data["samples"] is False


def test_depth_sums_up(cli, model_dir):
    result = cli("inspect", model_dir, "--depth", 1)
    assert "head  (2 leaves, 72 B)" in result.out
    assert "weight  float32" not in result.out
    assert "weight  float32[3, 5]" in cli("inspect", model_dir, "--depth", 0).out


def test_unknown_sizes_are_wrong_usage(cli, model_dir):
    result = cli("inspect", model_dir, "--size", "seq=8")
    assert result.code == 2
    assert "no such size: seq" in result.err


def test_sizes_outside_the_range_are_errors(cli, model_dir):
    result = cli("inspect", model_dir, "--size", "batch=10")
    assert result.code == 1
    assert "batch = 10 is outside 1 <= batch <= 9" in result.err


@pytest.mark.parametrize("path", ["nowhere", "in.txt"])
def test_what_is_no_model_is_an_error(cli, tmp_path, path):
    (tmp_path / "in.txt").write_text("hello")
    result = cli("inspect", path)
    assert result.code == 1
    assert path in result.err
    assert "bug" not in result.err


def symbolic():
    """x: float32[batch, 2*seq], with 2 <= batch <= 9."""
    program = FunctionProgram(
        lambda p, x, s: x @ x.T + s.sum() * p["w"].sum(), signature_of((jnp.ones((2, 6)),))
    )
    signature = Signature(
        ("x", "s"),
        2,
        (LEAF, LEAF),
        (LeafSpec("x", ("batch", "2*seq"), "float32"), LeafSpec("s", ("seq",), "float32")),
        {"batch": (2, 9), "seq": (0, None)},
    )
    object.__setattr__(program, "signature", signature)
    return Model(program, {"w": np.ones((3, 5), np.float32)})


def test_costs_follow_the_sizes():
    model = symbolic()
    assert _describe.chosen_sizes(model, {}) == {"batch": 2, "seq": 1}
    sizes = _describe.chosen_sizes(model, {"batch": 7, "seq": 4})
    found = _describe.costs(model, sizes)
    assert found.cost.by_primitive["dot_general"] == 2 * 7 * 8 * 7
    assert found.cost.bytes_in >= 4 * (15 + 7 * 8 + 4)
    assert _describe.output_texts(model, found.outputs) == ["output: float32[7, 7]"]
    assert _describe.symbol_ranges(model) == ["2 <= batch <= 9", "any seq"]


def test_sizes_outside_the_range_are_all_listed():
    with pytest.raises(InputError, match="batch = 10 is outside") as error:
        _describe.chosen_sizes(symbolic(), {"nope": 1, "batch": 10})
    assert "nope: no such size" in str(error.value)


def test_provenance_of_any_form_is_shown(cli, tmp_path):
    """A directory's provenance is what somebody wrote: it may be anything, or hostile."""
    odd = {"parity": {"max_abs": None}, "notes": 3, "tied": 7, "source": "a\x1b[2Jb [red]c"}
    fakes.model().replace(provenance=odd).save(tmp_path / "odd")
    result = cli("inspect", "odd")
    assert result.code == 0, result.err
    assert "a\\x1b[2Jb [red]c" in result.out
    assert "\x1b" not in result.out
    assert cli("inspect", "odd", "--json").json["provenance"]["notes"] == 3
