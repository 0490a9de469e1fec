"""cast, fold, prune, quantize and audit: all or nothing, and every parameter accounted for."""

import json
import os
import pickle
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxinfer as ji
from jaxinfer.cli import _arrays
from jaxinfer.core.errors import ArtefactError, InputError
from jaxinfer.core.signature import LeafSpec, Signature
from jaxinfer.core.structure import LEAF, Structure
from jaxinfer.core.transform import Transform, staged
from jaxinfer.numerics.masks import Masked
from jaxinfer.numerics.quantize import quantize as quantize_array
from jaxinfer_converters.graph import Aval
from tests.cli import fakes

RNG = np.random.default_rng(0)
COMMANDS = ("cast", "fold", "prune", "quantize")


def net():
    """y = relu(x @ W.T + b); z = y @ V.T, for x: f32[batch, 64], 1 <= batch <= 9."""
    draw = lambda *shape: jnp.asarray(RNG.normal(size=shape) / 8, jnp.float32)
    return fakes.graph_model(
        {"x": (("batch", 64), "float32")},
        [
            ("first", "aten.linear.default", ("x", "a.weight", "a.bias"), None),
            ("relu", "aten.relu.default", ("first",), None),
            ("second", "aten.linear.default", ("relu", "b.weight"), None),
            ("tail", "aten.sort.default", ("b.other",), None),
            ("add", "aten.add.Tensor", ("second", "b.scale"), Aval(("batch", 48), "float32")),
        ],
        {"z": "add"},
        {
            "a.weight": draw(32, 64),
            "a.bias": draw(32),
            "b.weight": draw(48, 32),
            "b.scale": draw(48),
            "b.other": draw(16, 16),
        },
        {"batch": (1, 9)},
    )


@pytest.fixture
def source(tmp_path):
    net().save(tmp_path / "net")
    return "net"


X = RNG.normal(size=(9, 64)).astype(np.float32)


def close(result, model="small", atol=0.2):
    """The transformed model gives about the numbers of the one before it."""
    assert result.code == 0, result.err
    want, got = ji.load("net")(X)["z"], ji.load(model)(X)["z"]
    np.testing.assert_allclose(np.asarray(got, np.float32), want, atol=atol)


@pytest.mark.parametrize("scheme", [None, "W8A16", "W8A8", "W4A16"])
def test_quantize(cli, source, scheme):
    chosen = ["--scheme", scheme] if scheme else []
    result = cli("quantize", source, *chosen, "--group", 16, "-o", "small")
    close(result, atol=0.8 if scheme == "W4A16" else 0.2)
    assert "2 changed, 0 ignored" in result.out
    before, after = ji.load(source), ji.load("small")
    assert after.nbytes < before.nbytes / 2
    assert f"{scheme or 'W8A16'}" in cli("audit", "small").out
    audit = after.audit()["quantize"]
    assert {entry.path for entry in audit} == set(before.params)


def test_quantize_on_data(cli, source, tmp_path):
    np.savez(tmp_path / "calib.npz", x=X)
    result = cli(
        *("quantize", source, "--scheme", "W8A8", "--activation", "static"),
        *("--calibration", "percentile", "--data", "calib.npz", "--batch-size", 4, "-o", "small"),
    )
    close(result)
    assert "calibration" in ji.load("small").provenance
    assert "--data was not used" not in result.out
    result = cli("quantize", source, "--data", "calib.npz", "-o", "other")
    close(result, "other")
    assert "--data was not used" in result.out


def test_static_activations_need_data(cli, source, tmp_path):
    result = cli("quantize", source, "--scheme", "W8A8", "--activation", "static", "-o", "small")
    assert result.code == 1
    assert "batches" in result.err
    assert sorted(os.listdir(tmp_path)) == ["net"]


@pytest.mark.parametrize("how", [(), ("--pattern", "2:4"), ("--method", "random", "--seed", 3)])
def test_prune(cli, source, how):
    result = cli("prune", source, "--sparsity", 0.5, *how, "-o", "small")
    assert result.code == 0, result.err
    pruned = ji.load("small")
    assert isinstance(pruned.params["a.weight"], Masked)
    assert float(pruned.params["a.weight"].mask.mean()) == 0.5
    assert pruned(X)["z"].shape == (9, 48)
    assert "float32 Masked[32, 64]" in cli("inspect", "small").out


def test_cast(cli, source):
    close(cli("cast", source, "--policy", "params=bf16,compute=bf16,output=f32", "-o", "small"))
    small = ji.load("small")
    assert small.params["a.weight"].dtype == jnp.bfloat16
    shown = cli("inspect", "small").out
    assert "cast {" in shown
    assert "transforms" in shown
    assert cli("inspect", "small", "--json").json["stages"] == ["cast"]
    assert cli("inspect", "small", "--json").json["rewrites"][0]["kind"] == "cast"


def test_fold_cast_and_quantize_one_after_the_other(cli, source):
    assert cli("cast", source, "--policy", "bf16", "-o", "c").code == 0
    result = cli("fold", "c", "-o", "f")
    assert result.code == 0, result.err
    result = cli("quantize", "f", "--scheme", "W8A16", "-o", "small")
    close(result, atol=0.3)
    data = cli("audit", "small", "--json").json
    assert [audit["transform"] for audit in data] == ["cast", "fold", "quantize"]
    assert ji.load("small").provenance["stages"] == ["cast", "fold", "quantize"]
    result = cli("cast", "small", "-o", "again")
    assert result.code == 1
    assert "cast: this model has been through it already" in result.err


def test_a_process_that_imported_nothing_else_has_the_rewrites(cli, source, tmp_path):
    for name, start, end in (("cast", source, "c"), ("fold", "c", "f")):
        assert cli(name, start, "-o", end).code == 0
    options = ("--scheme", "W8A8", "-o", "small")
    assert cli("quantize", "f", *options).code == 0
    np.save(tmp_path / "x.npy", X)
    code = """
import numpy as np, jaxinfer as ji
np.save("y.npy", np.asarray(ji.load("small")(np.load("x.npy"))["z"], np.float32))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    want = np.asarray(ji.load("small")(X)["z"], np.float32)
    np.testing.assert_array_equal(np.load(tmp_path / "y.npy"), want)


def test_what_is_in_the_way_is_shown_with_its_line(cli, source):
    result = cli("quantize", source, "-o", "small")
    blocked = ji.load("small").audit()["quantize"].of("blocked")
    for entry in blocked:
        assert entry.path in result.out
        assert entry.why[:20] in result.out
    counts = {s: len(ji.load("small").audit()["quantize"].of(s)) for s in ("blocked", "unused")}
    for status, count in counts.items():
        assert f"{count} {status}" in result.out


def stub(monkeypatch, name, audit_of, changes=None, **settings_out):
    """Put a transform in the place of a real one; returns what it was called with."""
    import importlib

    from jaxinfer.core.audit import Audit, with_audit

    seen = []

    def make(**settings):
        seen.append(settings)

        def update(model, state):
            audit = Audit(name, audit_of(model))
            model = staged(model, name)
            provenance = with_audit(model.provenance, audit) | {"notes": ["a note"]}
            return model.replace(provenance=provenance, **(changes or (lambda m: {}))(model))

        def init(model, *data):
            seen.append(data)
            return ()

        return Transform(init, update, name)

    module = importlib.import_module(f"jaxinfer.transforms.{name}")
    monkeypatch.setattr(module, name, make)
    return seen


def entries(model):
    from jaxinfer.core.audit import Entry

    head, bias = "head.weight", "head.bias"
    return (
        Entry(head, "blocked", "sort needs the array", "model.py:12", 60, 60),
        Entry(bias, "ignored", "by a rule", "", 12, 12),
    )


@pytest.mark.parametrize("name", COMMANDS)
def test_the_summary(cli, model_dir, monkeypatch, tmp_path, name):
    seen = stub(monkeypatch, name, entries)
    (tmp_path / "r.toml").write_text("[[rule]]\npath = '.*bias'\nignore = true\n")
    result = cli(name, model_dir, "-o", "small", "--rules", "r.toml", "--strict")
    assert result.code == 0, result.err
    for text in ("0 changed, 1 ignored, 1 blocked", "head.weight", "sort needs the array"):
        assert text in result.out
    assert "model.py:12" in result.out
    assert "note" in result.out
    assert "a note" in result.out
    assert "72 B -> 72 B" in result.out
    assert "wrote small" in result.out
    assert seen == [{"rules": [ji.core.selectors.rule(".*bias", ignore=True)], "strict": True}, ()]
    data = cli(name, model_dir, "-o", "again", "--json").json
    assert data["audits"][0]["counts"]["blocked"] == 1
    assert data["audits"][0]["entries"][0]["source"] == "model.py:12"
    assert data["bytes"] == {"before": 72, "after": 72}
    assert data["bytes_on_disk"]["after"] == sum(
        file.stat().st_size for file in (tmp_path / "again").rglob("*") if file.is_file()
    )
    assert seen[2] == {"rules": (), "strict": False}


def test_every_option_reaches_the_transform(cli, model_dir, monkeypatch):
    seen = stub(monkeypatch, "quantize", entries)
    options = ("--scheme", "W4A8", "--group", 32, "--activation", "dynamic")
    assert cli("quantize", model_dir, *options, "--calibration", "mse", "-o", "q").code == 0
    want = {"scheme": "W4A8", "group": 32, "activation": "dynamic", "calibration": "mse"}
    assert seen[0] == want | {"rules": (), "strict": False}
    seen = stub(monkeypatch, "prune", entries)
    options = ("--method", "random", "--sparsity", 0.25, "--pattern", "1:2", "--seed", 7)
    assert cli("prune", model_dir, *options, "-o", "p").code == 0
    key = seen[0].pop("key")
    np.testing.assert_array_equal(jax.random.key_data(key), jax.random.key_data(jax.random.key(7)))
    want = {"method": "random", "sparsity": 0.25, "pattern": "1:2"}
    assert seen[0] == want | {"rules": (), "strict": False}
    seen = stub(monkeypatch, "cast", entries)
    assert cli("cast", model_dir, "--policy", "f16", "-o", "c").code == 0
    assert seen[0] == {"policy": "f16", "rules": (), "strict": False}


def test_the_target_is_checked_before_any_work(cli, model_dir, tmp_path):
    for name in COMMANDS:
        result = cli(name, "no model", "-o", model_dir)
        assert result.code == 1
        assert "exists already" in result.err
    assert cli("quantize", model_dir, "-o", "no/where").code == 1
    assert cli("quantize", model_dir, "-o", model_dir, "--overwrite").code == 0
    assert "int8 QTensor" in cli("inspect", model_dir).out
    assert os.listdir(tmp_path) == ["model"]


def test_a_failed_transform_writes_nothing(cli, model_dir, monkeypatch, tmp_path):
    def fail(model):
        raise InputError("this model cannot be quantized:\n  head.weight: is NaN")

    stub(monkeypatch, "quantize", fail)
    result = cli("quantize", model_dir, "-o", "small")
    assert result.code == 1
    assert "error: this model cannot be quantized:\n  head.weight: is NaN" in result.err
    assert os.listdir(tmp_path) == ["model"]


@pytest.mark.parametrize(
    ("args", "code", "text"),
    [
        (("quantize", "model"), 2, "-o"),
        (("quantize", "model", "-o", "s", "--scheme", "W9"), 1, "W9"),
        (("quantize", "model", "-o", "s", "--group", "-1"), 2, "--group"),
        (("quantize", "model", "-o", "s", "--activation", "both"), 2, "--activation"),
        (("quantize", "model", "-o", "s", "--calibration", "guess"), 1, "guess"),
        (("quantize", "model", "-o", "s", "--batch-size", "3"), 2, "--data only"),
        (("quantize", "model", "-o", "s", "--rules", "none.toml"), 1, "none.toml"),
        (("quantize", "model", "-o", "s", "--rules", "bad.toml"), 1, "bad.toml"),
        (("quantize", "model", "-o", "s", "--rules", "idle.toml"), 1, "decide no parameter"),
        (("prune", "model", "-o", "s", "--sparsity", "1.5"), 1, "1.5"),
        (("prune", "model", "-o", "s", "--pattern", "5:4"), 1, "5:4"),
        (("prune", "model", "-o", "s", "--method", "magic"), 1, "magic"),
        (("cast", "model", "-o", "s", "--policy", "int8"), 1, "int8"),
        (("fold", "nowhere", "-o", "s"), 1, "nowhere"),
        (("audit", "nowhere"), 1, "nowhere"),
        (("audit",), 2, "SMALL"),
    ],
)
def test_wrong_options(cli, model_dir, tmp_path, args, code, text):
    (tmp_path / "bad.toml").write_text("[rule")
    (tmp_path / "idle.toml").write_text("[[rule]]\npath = 'nothing'\nignore = true\n")
    result = cli(*args)
    assert result.code == code, result.err
    assert text in result.err
    assert "bug" not in result.err
    assert not (tmp_path / "s").exists()


# -- audit


def test_audit_of_nothing(cli, model_dir):
    assert cli("audit", model_dir).out.strip() == "no transform was applied"
    assert cli("audit", model_dir, "--json").json == []


@pytest.mark.parametrize(
    "audits",
    [5, [5], [{}], [{"transform": "t", "entries": [["p"]]}], {"a": 1}]
    + [[{"transform": "t", "entries": [["p", "dropped", "", "", 1, 1]]}]]
    + [[{"transform": "t", "entries": [["p", "changed", "", "", "a", "b"]]}]],
)
def test_malformed_audits_are_errors(cli, tmp_path, audits):
    fakes.model().replace(provenance={"audits": audits, "stages": 7}).save(tmp_path / "odd")
    result = cli("audit", "odd")
    assert result.code == 1
    assert "audits: malformed" in result.err
    assert cli("inspect", "odd").code == 0


@pytest.mark.parametrize("stages", [7, ["magic"], [["fold"]], "fold"])
def test_malformed_stages_are_errors(cli, tmp_path, stages):
    fakes.model().replace(provenance={"stages": stages}).save(tmp_path / "odd")
    result = cli("quantize", "odd", "-o", "s")
    assert result.code == 1
    assert "stages: required a list of cast, fold" in result.err
    assert cli("inspect", "odd").code == 0


# -- data


def batches(tmp_path, model=None, size=None, **arrays):
    np.savez(tmp_path / "d.npz", **arrays)
    notes = []
    found = _arrays.read_batches(model or fakes.model(), str(tmp_path / "d.npz"), size, notes)
    return found, notes


def samples(n):
    x = np.ones((n, 5), np.float32) * np.arange(n, dtype=np.float32)[:, None]
    return {"x": x, "mask": np.ones((n, 4), "i4")}


def test_batches_keep_the_order_and_the_rest(tmp_path):
    arrays = samples(19)
    found, _ = batches(tmp_path, size=8, **arrays)
    assert [len(batch["x"]) for batch in found] == [8, 8, 3]
    assert all(set(batch) == {"x", "mask"} for batch in found)
    np.testing.assert_array_equal(np.concatenate([b["x"] for b in found]), arrays["x"])
    by_place, _ = batches(tmp_path, size=8, arr_0=arrays["x"], arr_1=arrays["mask"])
    assert [len(batch["x"]) for batch in by_place] == [8, 8, 3]
    assert len(batches(tmp_path, **samples(16))[0]) == 2


def nested(first=("batch", 3), second=("batch",), alone=(), symbols=None):
    model = fakes.graph_model(
        {"x": (first, "float32"), "y": (second, "int32"), "t": (alone, "float32")},
        [("z", "aten.add.Tensor", ("x", 1.0), None)],
        {"z": "z"},
        symbols=symbols or {"batch": (1, None)},
    )
    leaves = (
        LeafSpec("d.x", first, "float32"),
        LeafSpec("d.more.0", second, "int32"),
        LeafSpec("flag", value=True),
        LeafSpec("t", alone, "float32"),
    )
    structure = Structure("dict", (LEAF, Structure("list", (LEAF,))), ("x", "more"))
    signature = Signature(
        ("d", "flag", "t"), 3, (structure, LEAF, LEAF), leaves, symbols or {"batch": (1, None)}
    )
    object.__setattr__(model.program, "signature", signature)
    return model


def test_nested_inputs_are_rebuilt(tmp_path):
    arrays = {"d.x": np.ones((5, 3), np.float32), "d.more.0": np.arange(5, dtype=np.int32)}
    found, _ = batches(tmp_path, nested(), 2, **arrays, t=np.float32(7))
    assert [batch["d"]["more"][0].tolist() for batch in found] == [[0, 1], [2, 3], [4]]
    assert all(batch["flag"] is True and batch["t"] == 7 for batch in found)
    model = nested()
    for batch in found:
        assert len(model.signature.flatten((), batch)) == 4


def test_the_default_size_is_what_the_model_takes(tmp_path):
    most = nested(symbols={"batch": (1, 3)})
    arrays = {"d.x": np.ones((7, 3), np.float32), "d.more.0": np.arange(7, dtype=np.int32)}
    assert [len(b["d"]["x"]) for b in batches(tmp_path, most, **arrays, t=np.float32(0))[0]] == [
        *(3, 3, 1)
    ]
    fixed = nested((2, 3), (2,))
    with pytest.raises(InputError, match=r"(?s)batch 3: .*must be 2.*7 samples in batches of 2"):
        batches(tmp_path, fixed, **arrays, t=np.float32(0))


NAN = samples(4)
NAN["x"][2, 1] = np.nan


@pytest.mark.parametrize(
    ("arrays", "texts"),
    [
        ({"x": samples(4)["x"]}, ["missing: mask: int32[batch, 4]"]),
        (samples(4) | {"more": np.ones(2)}, ["no input is called 'more'"]),
        (samples(4) | {"mask": np.ones((3, 4), "i4")}, ["x has 4, mask has 3"]),
        (samples(0), ["x: float32[batch, 5]: holds no sample", "mask: int32[batch, 4]: holds"]),
        (NAN, ["x: float32[batch, 5]: 1 of 20 values are NaN, the first in sample 2"]),
        (samples(4) | {"x": np.float32(1)}, ["x: float32[batch, 5]: got one number"]),
        (samples(4) | {"x": np.ones((4, 6), "f4")}, ["batch 0", "axis 1 must be 5"]),
        (samples(4) | {"x": np.ones((4, 5))}, ["batch 0", "float64"]),
        (samples(4) | {"x": np.array([pickle.dumps], object)}, ["Python objects (a pickle)"]),
        (None, ["d.npz is not a .npz archive"]),
    ],
)
def test_bad_data(cli, model_dir, tmp_path, arrays, texts):
    (tmp_path / "d.npz").write_text("hello")
    if arrays is not None:
        np.savez(tmp_path / "d.npz", **arrays)
    result = cli("quantize", model_dir, "--data", "d.npz", "-o", "small")
    assert result.code == 1
    for text in texts:
        assert text in result.err
    assert "bug" not in result.err
    assert sorted(os.listdir(tmp_path)) == ["d.npz", "model"]
    assert cli("quantize", model_dir, "--data", "no.npz", "-o", "small").code == 1


# -- commands on models that hold array types


def with_types():
    model = fakes.model()
    weight = model.params["head.weight"]
    params = {
        "head.weight": quantize_array(weight, "int8", axes=(1,)),
        "head.bias": jnp.arange(3.0),
    }
    return model.replace(params=params)


def test_inspect_shows_array_types(cli, tmp_path):
    with_types().save(tmp_path / "q")
    result = cli("inspect", "q")
    assert result.code == 0, result.err
    for text in ("weight  int8 QTensor[3, 5]", "bias  float32[3]", "q  (2 leaves, 39 B)"):
        assert text in result.out
    data = cli("inspect", "q", "--json").json
    assert data["parameters"]["bytes"] == 15 + 12 + 12
    assert data["parameters"]["values"] == 18
    leaf = next(leaf for leaf in data["leaves"] if leaf["name"] == "head.weight")
    assert leaf == {"name": "head.weight", "shape": [3, 5], "dtype": "int8 QTensor", "bytes": 27}


def test_inspect_of_parity_says_when(cli, tmp_path):
    parity = {"compared": True, "max_abs": 1e-6, "max_rel": 1e-5}
    provenance = {"parity": parity, "stages": ["quantize"]}
    with_types().replace(provenance=provenance).save(tmp_path / "q")
    assert "relative (when converted, before quantize)" in cli("inspect", "q").out


def test_run_and_verify(cli, open_as, tmp_path):
    with_types().save(tmp_path / "q")
    x, mask = fakes.examples(0)[0]
    np.savez(tmp_path / "in.npz", x=x, mask=mask)
    assert cli("run", "q", "in.npz", "-o", "out.npz").code == 0
    with np.load(tmp_path / "out.npz") as got:
        np.testing.assert_allclose(got["logits"], fakes.reference((x, mask), {})[0], atol=0.05)
    open_as()
    assert cli("verify", "q", "--against", "x", "--tolerance", 0.05).code == 0
    assert cli("verify", "q", "--against", "x", "--tolerance", 1e-7).code == 1


def test_a_function_saved_as_stablehlo(cli, tmp_path):
    fn = lambda params, x: jnp.tanh(x @ params["w"])
    w = jnp.asarray(RNG.normal(size=(8, 6)), jnp.float32)
    model = ji.from_function(fn, {"w": w}, (jnp.ones((2, 8)),))
    model.replace(params={"w": quantize_array(w, "int8", axes=(0,))}).save(tmp_path / "q")
    result = cli("inspect", "q")
    assert "w  int8 QTensor[8, 6]" in result.out, result.err
    np.savez(tmp_path / "in.npz", np.ones((2, 8), np.float32))
    assert cli("run", "q", "in.npz", "-o", "out.npz").code == 0
    model.save(tmp_path / "whole")
    result = cli("quantize", "whole", "-o", "small")
    assert result.code == 0, result.err
    assert "1 blocked" in result.out


def test_targets_of_python(tmp_path):
    with_types().save(tmp_path / "q")
    with pytest.raises(ArtefactError, match="exists already"):
        with_types().save(tmp_path / "q")
    assert json.loads((tmp_path / "q" / "model.json").read_text())["schema"] == 1
