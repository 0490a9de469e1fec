"""Array types in model directories: bit for bit, by their parts, and every fault named."""

import contextlib
import copy
import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import jaxinfer as ji
from jaxinfer.core.array_types import ARRAY_TYPES, describe, is_array_type, rebuild
from jaxinfer.core.errors import ArtefactError
from jaxinfer.core.leaves import leaves
from jaxinfer.core.model import Model
from jaxinfer.core.multi import MultiProgram
from jaxinfer.core.program import FunctionProgram, signature_of
from jaxinfer.io import _array_types, artefact
from jaxinfer.io.artefact import load, save
from jaxinfer.numerics.act_qtensor import ActQTensor
from jaxinfer.numerics.masks import Masked
from jaxinfer.numerics.quantize import quantize
from jaxinfer.numerics.sparse import compress

from .models import function_model, graph_model, rule
from .test_artefact import Plain, holds, plain  # noqa: F401
from .test_bad_directories import edit, fault, set_

W = jnp.asarray(np.random.default_rng(0).normal(size=(6, 10)), jnp.float32)
MASK = jnp.asarray(np.random.default_rng(1).random((6, 10)) < 0.5)
X = jnp.asarray(np.random.default_rng(2).normal(size=(7, 3)), jnp.float32)


@pytest.fixture(autouse=True)
def _rule():
    with rule():
        yield


def two_of_four(w):
    keep = jnp.arange(w.shape[-1]) % 4 < 2
    return compress(w, jnp.broadcast_to(keep, w.shape), 2, 4, -1)


CASES = {
    "int8": lambda: quantize(W, "int8", axes=(0,)),
    "int4 packed": lambda: quantize(W, "int4", axes=(0,), tiles={0: 2}),
    "uint4 zero point": lambda: quantize(W, "uint4", axes=(0,)),
    "int4 odd": lambda: quantize(W[:5, :7], "int4", axes=(1,), tiles={1: 3}),
    "float8_e4m3fn": lambda: quantize(W.astype(jnp.bfloat16), "float8_e4m3fn", axes=(0, 1)),
    "float8_e5m2": lambda: quantize(W, "float8_e5m2", axes=(0,)),
    "masked": lambda: Masked(W, MASK),
    "masked bfloat16": lambda: Masked(W.astype(jnp.bfloat16), MASK),
    "compressed": lambda: two_of_four(W),
    "numpy parts": lambda: Masked(np.asarray(W), np.asarray(MASK)),
    "parts of one name": lambda: ActQTensor(
        quantize(W, "int8", axes=(1,)), jnp.full((1, 1), 0.5), "int8"
    ),
    "dynamic": lambda: ActQTensor(quantize(W, "int4", axes=(1,)), None, "int8"),
    "nested": lambda: Masked(quantize(W, "int8", axes=(0,)), MASK),  # as data; no meaning
}


def same(a, b):
    """Equal to the bit, metadata included."""
    assert type(a) is type(b) or not is_array_type(a)
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for want, got in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert isinstance(got, jax.Array)
        assert (got.shape, got.dtype) == (want.shape, want.dtype)
        assert np.asarray(got).tobytes() == np.asarray(want).tobytes()


@pytest.mark.usefixtures("plain")
@pytest.mark.parametrize("case", [case for case in CASES if case != "nested"])
def test_bit_for_bit(tmp_path, case):
    params = {"b": X, "w": CASES[case](), "a.w": X}
    save(Model(Plain(), params), tmp_path / "m")
    again = load(tmp_path / "m").params
    assert list(again) == ["b", "w", "a.w"]
    for path, leaf in params.items():
        same(leaf, again[path])
    save(Model(Plain(), again), tmp_path / "n")  # and again: the same files
    data = [json.loads((tmp_path / name / "model.json").read_text()) for name in "mn"]
    assert data[0]["params"] == data[1]["params"]
    assert data[0]["array_types"] == data[1]["array_types"]


def test_parts_of_parts_have_names():
    data, arrays = describe(CASES["nested"]())
    same(CASES["nested"](), rebuild(json.loads(json.dumps(data)), arrays))
    leaves, arrays = {"w": CASES["nested"](), "b": X}, ["w.weight.qvalue", "w.weight.scale"]
    split, types = artefact.split(leaves)
    assert list(split) == [*arrays, "w.mask", "b"]
    assert list(types) == ["w"]
    specs = {name: artefact.spec_of(array) for name, array in split.items()}
    grouped = _array_types.grouped(types, specs, [])
    same(leaves["w"], _array_types.join(split, {"w": grouped["w"]})["w"])


@pytest.mark.usefixtures("plain")
def test_trees_and_shards(tmp_path, monkeypatch):
    monkeypatch.setattr(artefact, "SHARD_BYTES", 100)
    params = {
        "layers": [{"w": CASES["int8"](), "b": X}, (CASES["masked"](), {})],
        "alone": CASES["int4 packed"](),
    }
    save(Model(Plain(), params), tmp_path / "m")
    assert "params.safetensors.index.json" in holds(tmp_path / "m")
    same(params, load(tmp_path / "m").params)
    save(Model(Plain(), CASES["int8"]()), tmp_path / "one")
    same(CASES["int8"](), load(tmp_path / "one").params)


@pytest.mark.usefixtures("plain")
def test_four_bits_take_half_a_byte(tmp_path):
    w = jnp.asarray(np.random.default_rng(3).normal(size=(512, 256)), jnp.float32)
    sizes = {}
    for name, leaf in {"whole": w, "int8": None, "int4": None}.items():
        leaf = quantize(w, name, axes=(0,)) if leaf is None else leaf
        save(Model(Plain(), {"w": leaf}), tmp_path / name)
        sizes[name] = (tmp_path / name / "params.safetensors").stat().st_size
    assert sizes["whole"] // 512 == 4 * 256
    assert w.size < sizes["int8"] < w.size + 4 * 256 + 400
    assert w.size / 2 < sizes["int4"] < w.size / 2 + 4 * 256 + 400


def test_without_array_types_nothing_is_new(tmp_path):
    save(graph_model(), tmp_path / "m")
    data = json.loads((tmp_path / "m" / "model.json").read_text())
    assert "array_types" not in data
    assert data["schema"] == 1


def graph_of(leaf):
    return graph_model().replace(params={"layer.w": leaf})


@pytest.mark.parametrize("make", [lambda w: quantize(w, "int8", axes=(0,)), two_of_four])
def test_a_converted_model(tmp_path, make):
    model = graph_of(make(graph_model().params["layer.w"]))
    save(model, tmp_path / "m")
    again = load(tmp_path / "m")
    assert again.nbytes == model.nbytes
    same(model.params["layer.w"], again.params["layer.w"])
    assert np.asarray(model(X)).tobytes() == np.asarray(again(X)).tobytes()


def test_another_process_knows_the_types(tmp_path):
    save(graph_of(quantize(graph_model().params["layer.w"], "int8", axes=(0,))), tmp_path / "m")
    code = """
import sys
import jaxinfer as ji
from tests.io.models import rule
with rule():
    print(type(ji.load(sys.argv[1]).params["layer.w"]).__name__)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "m")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.strip() == "QTensor", done.stderr


# -- functions: StableHLO


def typed_function():
    """A function of nested parameters, two of them array types, one by a rule of its type."""
    model = function_model()
    first = model.params["layers"][0]["w"]
    params = {
        "layers": [{"w": quantize(first, "int8", axes=(0,))}, model.params["layers"][1]],
        "scale": Masked(jnp.float32(3), jnp.bool_(True)),
    }
    return model.replace(params=params)


def test_a_function_takes_the_parts(tmp_path):
    model = typed_function()
    save(model, tmp_path / "m")
    again = load(tmp_path / "m")
    assert list(again.params) == ["layers.0.w", "layers.1", "scale"]
    assert type(again.params["layers.0.w"]).__name__ == "QTensor"
    assert again.nbytes == model.nbytes
    x = jnp.asarray(np.random.default_rng(5).normal(size=(4, 3)), jnp.float32)
    want, got = model(x), again(x)
    assert jax.tree.structure(want) == jax.tree.structure(got)
    jax.tree.map(np.testing.assert_array_equal, want, got)
    jax.tree.map(np.testing.assert_array_equal, want, again.apply(again.params, x))
    save(again, tmp_path / "m", overwrite=True)
    jax.tree.map(np.testing.assert_array_equal, want, load(tmp_path / "m")(x))


def test_an_export_of_arrays_takes_array_types_materialized(tmp_path):
    model = function_model()
    save(model, tmp_path / "m")
    again = load(tmp_path / "m")
    x = jnp.ones((4, 3))
    w = again.params["layers.0.w"]
    masked = again.replace(params=again.params | {"layers.0.w": Masked(w, jnp.ones(w.shape, bool))})
    jax.tree.map(np.testing.assert_array_equal, model(x), masked(x))


def test_float8_through_an_export(tmp_path):
    w = quantize(W, "float8_e4m3fn", axes=(0,))
    program = FunctionProgram(lambda p, x: x @ p["w"], signature_of((jnp.ones((2, 6)),)))
    model = Model(program, {"w": w})
    save(model, tmp_path / "m")
    again = load(tmp_path / "m")
    same(w, again.params["w"])
    x = jnp.asarray(np.random.default_rng(5).normal(size=(2, 6)), jnp.float32)
    np.testing.assert_array_equal(model(x), again(x))


def transforms():
    from jaxinfer.transforms.cast import cast
    from jaxinfer.transforms.fold import fold
    from jaxinfer.transforms.prune import prune
    from jaxinfer.transforms.quantize import quantize

    return {
        "cast": lambda model, data: cast("bf16")(model),
        "fold": lambda model, data: fold()(model),
        "prune": lambda model, data: prune(sparsity=0.5, pattern="2:4")(model),
        "W4A16": lambda model, data: quantize("W4A16", group=4)(model),
        "W8A8": lambda model, data: quantize("W8A8", activation="static")(model, data),
        "all": lambda model, data: quantize("W8A8", activation="static")(
            prune(sparsity=0.5)(fold()(cast("params=bf16,output=f32")(model))), data
        ),
    }


def perceptron():
    """Three products with scales between them, for ``fold`` to take up; nested parameters."""

    def fn(params, x):
        x = jnp.tanh((x @ params["a"]) * params["scale"] + params["bias"])
        return {"y": (x @ params["more"][0]) @ params["more"][1]}

    draw = lambda *shape: jnp.asarray(np.random.default_rng(7).normal(size=shape), jnp.float32)
    params = {
        "a": draw(8, 12),
        "scale": draw(12),
        "bias": draw(12),
        "more": [draw(12, 16), draw(16, 4)],
    }
    program = FunctionProgram(fn, signature_of((jnp.ones((4, 8)),)))
    return Model(program, params)


@pytest.mark.parametrize("name", ["cast", "fold", "prune", "W4A16", "W8A8", "all"])
def test_transformed_functions_come_back(tmp_path, name):
    """Outputs, parts, audits and calibration, all to the bit."""
    x = jnp.asarray(np.random.default_rng(5).normal(size=(4, 8)), jnp.float32)
    model = transforms()[name](perceptron(), [x])
    save(model, tmp_path / "m")
    again = load(tmp_path / "m")
    want, got = model(x), again(x)
    assert jax.tree.structure(want) == jax.tree.structure(got)
    for a, b in zip(jax.tree.leaves(want), jax.tree.leaves(got), strict=True):
        assert a.dtype == b.dtype
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()
    assert leaves(model.params).keys() == again.params.keys()
    for path, leaf in leaves(model.params).items():
        same(leaf, again.params[path])
    assert again.audit().to_json() == model.audit().to_json()
    for key in ("stages", "calibration"):
        assert again.provenance.get(key) == model.provenance.get(key)
    assert ("calibration" in again.provenance) == (name in ("W8A8", "all"))


# -- rewrites that change what the parameters are called


class Renamed:
    """``layer.w`` is read as ``halves.0`` and ``halves.1``, its rows."""

    kind = "iotest.renamed"
    NAMES = ("halves.0", "halves.1")

    def apply(self, run):
        def renamed(params, leaves, key):
            rest = {k: v for k, v in params.items() if k not in self.NAMES}
            whole = jnp.concatenate([params[name] for name in self.NAMES])
            return run({**rest, "layer.w": whole}, leaves, key)

        return renamed

    def param_specs(self, old):
        rest = {k: v for k, v in old.items() if k != "layer.w"}
        shapes = {self.NAMES[0]: (1, 5), self.NAMES[1]: (2, 5)}
        return rest | {
            name: jax.ShapeDtypeStruct(shape, old["layer.w"].dtype)
            for name, shape in shapes.items()
        }

    def to_json(self):
        return {}

    @classmethod
    def from_json(cls, data):
        return cls()


@pytest.fixture
def renamed(monkeypatch):
    monkeypatch.setitem(artefact.REWRITES._rules, Renamed.kind, Renamed)
    w = graph_model().params["layer.w"]
    params = {"halves.0": w[:1], "halves.1": quantize(w[1:], "int8", axes=(0,))}
    return graph_model().replace(params=params, rewrites=(Renamed(),))


def test_a_rewrite_says_what_is_read(tmp_path, renamed):
    save(renamed, tmp_path / "m")
    again = load(tmp_path / "m")
    np.testing.assert_array_equal(again(X), renamed(X))
    edit(tmp_path / "m", set_("rewrites", []))
    text = fault(tmp_path / "m")
    assert "layer.w: the program reads float32[3, 5], not among the parameters" in text
    assert "halves.1: not read by the program" in text


def test_a_rewrite_that_does_not_fit_the_program(tmp_path, renamed):
    save(renamed, tmp_path / "m")
    edit(tmp_path / "m", lambda data: data["rewrites"].append(data["rewrites"][0]))
    assert "rewrite iotest.renamed: does not fit the program" in fault(tmp_path / "m")


# -- what cannot be saved


@pytest.mark.usefixtures("plain")
def test_names_that_collide(tmp_path):
    params = {"w": CASES["int8"](), "w.scale": X, "v.mask": X, "v": CASES["masked"]()}
    with pytest.raises(ArtefactError) as caught:
        save(Model(Plain(), params), tmp_path / "m")
    for name, path in (("w.scale", "w"), ("v.mask", "v")):
        assert f"{name}: would stand for an array of '{path}' and '{name}'" in str(caught.value)
    assert os.listdir(tmp_path) == []


@pytest.mark.usefixtures("plain")
def test_types_and_parts_that_cannot_be_saved(tmp_path, monkeypatch):
    monkeypatch.delitem(ARRAY_TYPES._rules, "Masked")
    params = {"w": CASES["masked"](), "v": CASES["masked"]()}
    with pytest.raises(ArtefactError, match=r"(?s)w: Masked is no registered.*v: Masked is no"):
        save(Model(Plain(), params), tmp_path / "m")
    monkeypatch.undo()


@pytest.mark.usefixtures("plain")
def test_parts_that_safetensors_cannot_hold(tmp_path):
    params = {"w": Masked(jax.random.key(0), jnp.bool_(True))}
    with pytest.raises(ArtefactError, match=r"w\.weight: a random key"):
        save(Model(Plain(), params), tmp_path / "m")


# -- what cannot be loaded


@pytest.fixture
def saved(tmp_path):
    w = quantize(jnp.asarray(np.asarray(graph_model().params["layer.w"])), "int8", axes=(0,))
    save(graph_of(w), tmp_path / "m")
    return tmp_path / "m"


def entry(*keys_and_value):
    return set_("array_types", "layer.w", *keys_and_value)


@pytest.mark.parametrize(
    ("change", "messages"),
    [
        (set_("array_types", 5), ["array_types: required an object of paths, got '5'"]),
        (set_("array_types", {}), ["layer.w: the program reads float32[3, 5]", "qvalue: not read"]),
        (entry(None), ["layer.w: array type: unknown array type 'None'; known: "]),
        (entry("type", "Nonsense"), ["unknown array type 'Nonsense'; known: "]),
        (entry("type", ["QTensor"]), ["unknown array type"]),
        (entry("type", "Masked"), ["Masked: required the fields weight, mask, got "]),
        (entry("parts", []), ["QTensor: required parts and meta"]),
        (entry("parts", {}), ["QTensor: required the fields qvalue, scale"]),
        (entry("parts", "scale", None), ["layer.w: array type: ", "layer.w.scale: not read"]),
        (entry("parts", "scale", 7), ["layer.w: array type: unknown array type"]),
        (entry("parts", "zero_point", "array"), ["layer.w.zero_point: a part of layer.w, not in"]),
        (entry("meta", "format", "int9"), ["layer.w: the parts do not fit each other:", "int9"]),
        (entry("meta", "format", {"a": 1}), ["layer.w: array type: TypeError"]),
        (entry("meta", "format", "int4"), []),
        (entry("meta", "logical_dtype", "float99"), ["layer.w: array type: ValueError: unknown"]),
        (
            entry("meta", "logical_dtype", "int32"),
            ["layer.w: the program reads float32[3, 5], p"],
        ),
        (entry("meta", "packed", -1), ["packed=-1: required a format of 4 bits"]),
        (entry("meta", "packed", "x"), ["layer.w: array type: TypeError"]),
        (entry("meta", "packed", 1e400), ["axis inf: required -2 to -1"]),
        (
            entry("meta", "sizes", [[-1, 4]]),
            ["layer.w: the program reads float32[3, 5], p"],
        ),
        (entry("meta", "sizes", [[-1, 4.5]]), ["layer.w: array type: "]),
        (entry("meta", "sizes", [[-9, 4]]), ["axis -9: required -2 to -1"]),
        (entry("meta", "sizes", 3), ["layer.w: array type: TypeError"]),
        (set_("array_types", "other", {"type": "x"}), ["other: array type: unknown array type"]),
        (set_("params", "layer.w", [[3, 5], "float32"]), ["layer.w: an array and an array type"]),
    ],
)
def test_wrong_contents(saved, change, messages):
    edit(saved, change)
    if not messages:
        load(saved)
        return
    text = fault(saved)
    for message in messages:
        assert message in text


def test_parts_of_another_dtype_or_shape(saved, tmp_path):
    good = quantize(jnp.ones((3, 5)), "int8", axes=(0,))
    bad = {
        "qvalue: required int8, got float32": {"qvalue": good.qvalue.astype(jnp.float32)},
        "scale: required floats, got int8": {"scale": good.scale.astype(jnp.int8)},
        "scale: required divisors of (3, 5)": {"scale": jnp.ones((1, 2))},
        "scale: required rank 2": {"scale": jnp.ones(())},
        "layer.w: the program reads float32[3, 5], params has float32[5, 3]": {
            "qvalue": good.qvalue.reshape(5, 3),
            "scale": jnp.ones((1, 1)),
        },
    }
    for message, parts in bad.items():
        fields = {"qvalue": good.qvalue, "scale": good.scale} | parts
        leaf = type(good)(**fields, zero_point=None, format="int8", logical_dtype="float32")
        save(graph_of(leaf), saved, overwrite=True)
        assert message in fault(saved)


def test_all_faults_at_once(saved):
    masked = {"type": "Masked", "parts": {"weight": "array", "mask": "array"}, "meta": {}}
    edit(saved, set_("array_types", "m", masked))
    edit(saved, set_("array_types", "layer", masked | {"type": "?"}))
    edit(saved, entry("meta", "format", "int9"))
    text = fault(saved)
    for part in ("m.weight: a part of m", "m.mask: a part of m", "layer: array type: unknown"):
        assert part in text
    assert "int9" in text


@pytest.mark.usefixtures("plain")
def test_values_are_validated_too(tmp_path, monkeypatch):
    def validate(self, path):
        if not self.mask.any():
            raise ji.core.errors.InputError(f"{path}: nothing is kept")

    monkeypatch.setattr(Masked, "validate", validate)
    save(Model(Plain(), {"w": CASES["masked"]()}), tmp_path / "m")
    load(tmp_path / "m")
    save(Model(Plain(), {"w": Masked(W, ~(W == W))}), tmp_path / "n")
    assert "w: nothing is kept" in fault(tmp_path / "n")


FUZZ = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
VALUES = st.sampled_from(
    [None, True, 0, -1, 2, 10**40, 1.5, float("nan"), "", "int8", "float32", "QTensor", [], {}]
    + [[[-1, 2]], [["a", {}]], [-1], {"type": "QTensor", "parts": {}, "meta": {}}, "array"]
)


@pytest.mark.parametrize(
    "make",
    [
        lambda w: quantize(w, "int4", axes=(0,)),
        lambda w: ActQTensor(quantize(w, "int8", axes=(0,)), jnp.ones((1, 1)), "int8"),
        two_of_four,
        lambda w: Masked(w, w > 0),
    ],
    ids=["QTensor", "ActQTensor", "Compressed", "Masked"],
)
def test_hostile_metadata(tmp_path, make):
    """Whatever an array type says, it loads and computes, or fails with a list of faults."""
    save(graph_of(make(graph_model().params["layer.w"])), tmp_path / "m")
    file = tmp_path / "m" / "model.json"
    model = json.loads(file.read_text())

    @given(data=st.data())
    @FUZZ
    def run(data):
        changed = copy.deepcopy(model)
        item = changed["array_types"]["layer.w"]
        for _ in range(data.draw(st.integers(1, 3))):
            levels = [level for level in dicts(item) if level]
            level = data.draw(st.sampled_from(levels))
            level[data.draw(st.sampled_from([*level, "more"]))] = copy.deepcopy(data.draw(VALUES))
        file.write_text(json.dumps(changed))
        with contextlib.suppress(ArtefactError):
            load(tmp_path / "m")(X)

    run()


def dicts(item):
    return [item, *(d for value in item.values() if isinstance(value, dict) for d in dicts(value))]


def test_components_share_array_types(tmp_path):
    model = graph_of(quantize(graph_model().params["layer.w"], "int8", axes=(0,)))
    both = model.replace(program=MultiProgram({"a": model.program, "b": model.program}))
    save(both, tmp_path / "m")
    parts = load(tmp_path / "m").components
    for part in parts.values():
        np.testing.assert_array_equal(part(X), model(X))
    assert parts["a"].params["layer.w"] is parts["b"].params["layer.w"]
