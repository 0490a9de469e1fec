"""StableHLO exports: equal to the model, readable without jaxinfer, and safe against bad files."""

import dataclasses
import errno
import json
import os
from collections import namedtuple

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from jax import lax

import jaxinfer as ji
from jaxinfer.compile import _export_files
from jaxinfer.compile.export import ExportError, export, load_export
from jaxinfer.core.errors import ArtefactError, InputError
from jaxinfer.core.model import Model
from jaxinfer.core.multi import MultiProgram
from jaxinfer.core.program import FunctionProgram, signature_of
from jaxinfer_converters.graph import Aval
from tests.cli import fakes

RNG = np.random.default_rng(0)


def draw(*shape):
    return jnp.asarray(RNG.normal(size=shape), jnp.float32)


def net(rows=3):
    params = {"w": draw(64, 48), "v": draw(48, 32), "b": draw(32)}

    def fn(p, x):
        return {"z": jnp.tanh(x @ p["w"]) @ p["v"] + p["b"], "a": x.sum()}

    return ji.from_function(fn, params, (draw(rows, 64),))


def same(got, want):
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert (g.shape, g.dtype) == (w.shape, w.dtype)
        np.testing.assert_array_equal(np.asarray(g), np.asarray(w))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "m.stablehlo"


# What is written.


def test_the_same_numbers_and_the_report(path):
    model, x = net(), draw(3, 64)
    report = export(model, path)
    loaded = load_export(path)
    same(loaded(x), model(x))
    assert report.platforms == ("cpu", "cuda", "tpu")
    assert report.inputs == {"model": ("x: float32[3, 64]",)}
    assert report.components == {"model": str(path)}
    assert report.files == {str(p): p.stat().st_size for p in path.parent.iterdir()}
    assert report.weights == "beside"
    json.dumps(report.to_json())
    assert loaded.provenance["exported"]["platforms"] == ["cpu", "cuda", "tpu"]
    same(jax.jit(loaded.apply)(loaded.params, x), model(x))
    with pytest.raises(InputError, match="axis 0 must be 3"):
        loaded(draw(2, 64))


def test_read_by_jax_alone(path):
    model, x = net(), draw(3, 64)
    export(model, path)
    exported = jax.export.deserialize(bytearray(path.read_bytes()))
    weights = safetensors.numpy.load_file(path.with_suffix(".safetensors"))
    outs = exported.call(weights, x)
    same(outs, jax.tree.leaves(model(x)))
    assert exported.platforms == ("cpu", "cuda", "tpu")


def test_weights_inside(path):
    model, x = net(), draw(3, 64)
    report = export(model, path, weights="inside", platforms="cpu")
    assert list(report.files) == [str(path)]
    same(load_export(path)(x), model(x))
    exported = jax.export.deserialize(bytearray(path.read_bytes()))
    same(exported.call({}, x), jax.tree.leaves(model(x)))


def test_a_model_without_parameters_has_no_file_of_weights(path):
    model = ji.from_function(lambda p, x: x * 2, {}, (draw(3),))
    assert list(export(model, path).files) == [str(path)]
    same(load_export(path)(jnp.ones(3)), jnp.full(3, 2.0))


def test_open_sizes_of_a_function(path):
    model = net()
    report = export(model, path, inputs={"x": ("batch", 64)}, dynamic=["batch"])
    assert report.inputs == {"model": ("x: float32[batch, 64]",)}
    assert report.dynamic == ("batch",)
    loaded = load_export(path)
    for rows in (1, 2, 13):
        x = draw(rows, 64)
        same(loaded(x), model(x))


def test_open_sizes_of_a_converted_model(path):
    """The ranges of the model are those of the export."""
    model = fakes.model()
    export(model, path, dynamic=("batch",))
    loaded = load_export(path)
    for rows in (1, 4, 9):
        args = draw(rows, 5), np.ones((rows, 4), np.int32)
        same(loaded(*args), model(*args))
    with pytest.raises(InputError, match="outside the sizes"):
        loaded(draw(10, 5), np.ones((10, 4), np.int32))
    with pytest.raises(InputError, match="axis 0 must be 4"):
        loaded(draw(4, 5), np.ones((3, 4), np.int32))


def test_sizes_by_number(path):
    model = fakes.model()
    report = export(model, path, sizes={"batch": 4})
    assert report.inputs["model"][0] == "x: float32[4, 5]"
    args = draw(4, 5), np.ones((4, 4), np.int32)
    same(load_export(path)(*args), model(*args))
    report = export(model, path, inputs={"x": (5, 5)}, overwrite=True)
    assert report.inputs["model"] == ("x: float32[5, 5]", "mask: int32[5, 4]")


def test_expressions_of_open_sizes(path):
    """An axis of 2*n + 3 beside one of n."""
    model = fakes.graph_model(
        {"x": (("n", 5), "float32"), "y": (("2*n + m", 5), "float32")},
        [
            ("first", "aten.sum.dim_IntList", ("x", [0]), None),
            ("second", "aten.sum.dim_IntList", ("y", [0]), None),
            ("add", "aten.add.Tensor", ("first", "second"), Aval((5,), "float32")),
        ],
        {"sum": "add"},
        symbols={"n": (1, None), "m": (1, None)},
    )
    export(model, path, dynamic="n", sizes={"m": 3})
    loaded = load_export(path)
    assert str(loaded.inputs[1]) == "y: float32[2*n + 3, 5]"
    args = draw(4, 5), draw(11, 5)
    np.testing.assert_array_equal(loaded(*args)["sum"], model(*args)["sum"])


@pytest.mark.parametrize("scheme", ["W8A16", "W8A8", "W4A16"])
def test_quantized_models(path, scheme):
    model, x = ji.quantize(scheme)(net()), draw(3, 64)
    export(model, path)
    same(load_export(path)(x), model(x))
    held = safetensors.numpy.load_file(path.with_suffix(".safetensors"))
    assert not {"w", "v"}.intersection(held)  # by their parts, not as floats


def test_pruned_models(path):
    model, x = ji.prune(sparsity=0.5, pattern="2:4")(net()), draw(3, 64)
    export(model, path, inputs={"x": ("n", 64)}, dynamic="n")
    same(load_export(path)(x), model(x))


def test_cast_and_folded_models(path):
    model, x = ji.cast("bf16")(net()), draw(3, 64)
    export(model, path)
    same(load_export(path)(x), model(x))


def test_x64(path):
    model = fakes.graph_model(
        {"x": ((3,), "float64"), "n": ((3,), "int64")},
        [
            ("sum", "aten.add.Tensor", ("x", "w"), Aval((3,), "float64")),
            ("more", "aten.add.Tensor", ("n", "n"), Aval((3,), "int64")),
        ],
        {"sum": "sum", "more": "more"},
        {"w": np.asarray([1e-12, 1, 2])},
    )
    model = model.replace(program=dataclasses.replace(model.program, x64=True))
    args = np.ones(3), np.asarray([2**40, 1, 2])
    export(model, path)
    loaded = load_export(path)
    got = loaded(*args)
    assert got["sum"].dtype == np.float64
    assert np.asarray(got["sum"])[0] - 1 == pytest.approx(1e-12, rel=1e-3)
    assert np.asarray(got["more"])[0] == 2**41
    with pytest.raises(ArtefactError, match="kept as its file"):
        loaded.save(path.parent / "dir")


def test_random_models(path):
    model, x = fakes.sampler(), jnp.zeros(3)
    export(model, path)
    loaded, key = load_export(path), jax.random.key(7)
    same(loaded(x, rng_key=key), model(x, rng_key=key))
    with pytest.raises(InputError, match="rng_key"):
        loaded(x)
    with pytest.raises(InputError, match="takes a key of"):
        loaded(x, rng_key=jax.random.key(0, impl="rbg"))


def test_an_export_is_kept_as_a_model_directory_too(path):
    model, x = ji.from_function(lambda p, x: x @ p, draw(5, 7), (draw(3, 5),)), draw(3, 5)
    export(model, path)
    load_export(path).save(path.parent / "dir")
    same(ji.load(path.parent / "dir")(x), model(x))


def several():
    params = {"w": draw(5, 7), "b": draw(7)}
    example = signature_of((draw(3, 5),))
    programs = {
        "prefill": FunctionProgram(lambda p, x: x @ p["w"], example),
        "decode": FunctionProgram(lambda p, x: x @ p["w"] + p["b"], example),
    }
    return Model(MultiProgram(programs), params)


def test_several_functions_share_one_file_of_weights(path):
    model, x = several(), draw(3, 5)
    report = export(model, path)
    assert sorted(p.name for p in path.parent.iterdir()) == [
        "m.decode.stablehlo",
        "m.prefill.stablehlo",
        "m.safetensors",
    ]
    for name, part in model.components.items():
        same(load_export(report.components[name])(x), part(x))
    with pytest.raises(ArtefactError, match=r"several functions: m\.decode\.stablehlo, m\.prefill"):
        load_export(path)


Pair = namedtuple("Pair", "second first")


def test_the_structure_of_the_outputs(path):
    def fn(p, x):
        return {"z": [x, None, (x + 1, {"k": x * 2})], "a": Pair(x.sum(), x.max()), "n": None}

    model, x = ji.from_function(fn, {}, (draw(3),)), draw(3)
    export(model, path)
    got, want = load_export(path)(x), model(x)
    assert list(got) == list(want)
    assert got["n"] is None
    assert got["z"][1] is None
    assert got["a"]._fields == want["a"]._fields
    same(got["z"], want["z"])
    same(tuple(got["a"]), tuple(want["a"]))
    with pytest.raises(ArtefactError, match="returns None"):
        load_export(path).save(path.parent / "dir")


def test_buffers_that_change(path):
    model = fakes.graph_model(
        {"x": ((3,), "float32")},
        [("add", "aten.add.Tensor", ("x", "seen"), Aval((3,), "float32"))],
        {"z": "add", "a": fakes.Ref("x")},
        {"seen": jnp.ones(3)},
        changes=[("seen", fakes.Ref("add"))],
    )
    export(model, path)
    x = draw(3)
    same(load_export(path)(x), model(x))
    outputs, state = load_export(path)(x)
    assert list(outputs) == ["z", "a"]
    assert list(state) == ["seen"]


def test_code_by_platform_is_exported_for_all(path):
    def fn(p, x):
        return lax.platform_dependent(
            x, cpu=lambda x: x + 1, cuda=lambda x: x + 222, default=lambda x: x + 333
        )

    export(ji.from_function(fn, {}, (draw(3),)), path)
    same(load_export(path)(jnp.zeros(3)), jnp.ones(3))
    exported = jax.export.deserialize(bytearray(path.read_bytes()))
    text = exported.mlir_module()
    assert "2.220000e+02" in text
    assert "3.330000e+02" in text


def test_not_for_this_platform(path):
    model = net()
    export(model, path, platforms=("cuda", "tpu"))
    with pytest.raises(InputError, match="exported for cuda, tpu, not cpu"):
        load_export(path)(draw(3, 64))


# What is refused.


def test_everything_that_does_not_fit_at_once(path):
    with pytest.raises(InputError) as caught:
        export(
            fakes.model(),
            path,
            platforms=("cpu", "gpu"),
            dynamic=("seq", "batch"),
            inputs={"z": (1,), "x": (3,)},
            sizes={"batch": 77, "q": 1, "r": -1},
            weights="above",
        )
    text = str(caught.value)
    for part in (
        "platforms: 'gpu': unknown; known: cpu, cuda, rocm, tpu",
        "weights: required beside or inside, got 'above'",
        "dynamic: seq: not an open size of any input; open: batch",
        "dynamic: batch: has a number too (77)",
        "inputs: z: no such array input; there are x, mask",
        "required 2 sizes, got (3,)",
        "sizes: batch: the model takes 1 to 9, not 77",
        "sizes: q: not a dimension",
        "sizes: r: required a number from 0 on, got -1",
    ):
        assert part in text, part
    with pytest.raises(InputError, match=r"batch: has no size.*\n.*platforms|platforms.*\n.*batch"):
        export(fakes.model(), path, platforms=())
    with pytest.raises(InputError, match="example_inputs"):
        export(ji.from_function(lambda p, x: x, {}), path)
    with pytest.raises(InputError, match=r"ends in \.stablehlo"):
        export(net(), path.with_suffix(".bin"))
    assert os.listdir(path.parent) == []


def test_sizes_that_cannot_stay_open_are_named(path):
    def fn(p, x):
        return x.reshape(int(x.shape[1]) * x.shape[0])

    model = ji.from_function(fn, {}, (draw(3, 5),))
    with pytest.raises(ExportError) as caught:
        export(model, path, inputs={"x": ("batch", "width")}, dynamic=("batch", "width"))
    assert "width: InconclusiveDimensionOperation" in str(caught.value)
    assert "batch alone can stay open" in str(caught.value)
    assert "buckets" in str(caught.value)
    export(model, path, inputs={"x": ("batch", 5)}, dynamic="batch")
    same(load_export(path)(jnp.ones((2, 5))), jnp.ones(10))


def test_sizes_that_can_stay_open_one_by_one_only(path):
    def fn(p, x):
        if not any(type(size) is int for size in x.shape):
            raise ValueError("one of them at least")
        return x.sum()

    model = ji.from_function(fn, {}, (draw(3, 5),))
    with pytest.raises(ExportError, match="a and b together: ValueError: one of them"):
        export(model, path, inputs={"x": ("a", "b")}, dynamic=("a", "b"))


def test_a_function_that_cannot_be_traced(path):
    def fn(p, x):
        raise TypeError("no such thing\nand more")

    model = ji.from_function(fn, {}, (draw(3),))
    with pytest.raises(ExportError, match=r"cannot be traced: TypeError: no such thing$"):
        export(model, path)
    assert os.listdir(path.parent) == []


def test_a_platform_that_cannot_run_it_is_named(path):
    """schur is there on the CPU only."""
    model = ji.from_function(lambda p, x: jax.scipy.linalg.schur(x)[0], {}, (draw(3, 3),))
    with pytest.raises(ExportError) as caught:
        export(model, path)
    text = str(caught.value)
    assert "  tpu: " in text
    assert "schur" in text
    assert "  cpu: " not in text
    export(model, path, platforms=("cpu",))


# Files that are in the way, and disks that are full.


def listed(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()}


def test_paths_that_are_taken(path):
    export(net(), path)
    before = listed(path.parent)
    with pytest.raises(ArtefactError, match=r"(?s)m\.safetensors: exists.*m\.stablehlo: exists"):
        export(net(), path)
    with pytest.raises(ArtefactError, match=r"m\.safetensors: exists"):
        export(net(), path.parent / "m.stablehlo")
    assert listed(path.parent) == before
    (path.parent / "d.stablehlo").mkdir()
    with pytest.raises(ArtefactError, match="is a directory"):
        export(net(), path.parent / "d.stablehlo", overwrite=True)
    with pytest.raises(ArtefactError, match="does not exist; make it first"):
        export(net(), path.parent / "no" / "m.stablehlo")
    model, x = net(), draw(3, 64)
    export(model, path, overwrite=True)
    same(load_export(path)(x), model(x))
    assert sorted(listed(path.parent)) == ["m.safetensors", "m.stablehlo"]


def test_a_full_disk_leaves_what_was_there(path, monkeypatch):
    export(net(), path)
    before = listed(path.parent)

    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(_export_files, "write_bytes", full)
    with pytest.raises(ArtefactError, match="No space left on device; nothing was left behind"):
        export(net(), path, overwrite=True)
    assert listed(path.parent) == before


@pytest.mark.parametrize("at", range(1, 5))
def test_a_failure_while_the_files_are_swapped(path, monkeypatch, at):
    """At each of the four renames: both old files are there again."""
    export(net(), path)
    before, real, count = listed(path.parent), os.rename, iter(range(1, 100))

    def rename(*args):
        if next(count) == at:
            raise OSError(errno.EIO, "Input/output error")
        real(*args)

    monkeypatch.setattr(os, "rename", rename)
    with pytest.raises(ArtefactError, match="Input/output error"):
        export(net(), path, overwrite=True)
    assert listed(path.parent) == before


def test_a_file_that_appears_meanwhile(path, monkeypatch):
    real = _export_files.write_bytes

    def write(target, data):
        path.write_bytes(b"another's")
        return real(target, data)

    monkeypatch.setattr(_export_files, "write_bytes", write)
    with pytest.raises(ArtefactError, match="another process"):
        export(net(), path)
    assert listed(path.parent) == {"m.stablehlo": b"another's"}


# Files that are damaged.


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("export")
    export(net(), folder / "m.stablehlo")
    return folder


@pytest.fixture
def files(written, tmp_path):
    for file in written.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


def test_missing_files(files):
    path = files / "m.stablehlo"
    with pytest.raises(ArtefactError, match="cannot be read: No such file"):
        load_export(files / "other.stablehlo")
    with pytest.raises(ArtefactError, match="cannot be read"):
        load_export(files)
    (files / "m.safetensors").unlink()
    with pytest.raises(ArtefactError, match="its weights are missing"):
        load_export(path)


def test_cut_short_anywhere(files):
    path = files / "m.stablehlo"
    whole = path.read_bytes()
    for size in [0, 1, 23, 24, *np.linspace(25, len(whole) - 1, 12).astype(int)]:
        path.write_bytes(whole[:size])
        with pytest.raises(ArtefactError, match="cut short"):
            load_export(path)


def test_a_changed_byte_anywhere(files):
    path = files / "m.stablehlo"
    whole = path.read_bytes()
    for place in np.linspace(0, len(whole) - 1, 60).astype(int):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x41]) + whole[place + 1 :])
        with pytest.raises(ArtefactError, match=r"damaged|cut short|weights|not readable"):
            load_export(path)


def test_changed_weights(files):
    path, weights = files / "m.stablehlo", files / "m.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(ArtefactError, match=r"not the weights that m\.stablehlo was written with"):
        load_export(path)
    load_export(path, check=False)
    weights.write_bytes(whole[:-1])
    with pytest.raises(ArtefactError, match="its weights"):
        load_export(path, check=False)
    safetensors.numpy.save_file(
        {"w": np.ones((64, 47), np.float32), "v": np.ones((48, 32), np.float32), "x": np.ones(1)},
        weights,
    )
    with pytest.raises(ArtefactError, match=r"(?s)b: missing.*x: not a parameter.*w: required"):
        load_export(path, check=False)


def test_a_file_of_jax_export_alone(files):
    exported = jax.export.export(jax.jit(lambda x: x + 1))(jnp.ones(3))
    (files / "plain.stablehlo").write_bytes(bytes(exported.serialize()))
    with pytest.raises(ArtefactError, match=r"jax\.export\.deserialize reads"):
        load_export(files / "plain.stablehlo")


def rewrite(path, **changes):
    """Change fields of the trailer; the digest of the function is as it was unless given."""
    raw = path.read_bytes()
    tail = len(_export_files.tail_of(b""))
    length = int.from_bytes(raw[32 - tail : -len(_export_files.MARK)], "little")
    start = len(raw) - tail - length
    fields = json.loads(raw[start:-tail]) | changes
    text = json.dumps({k: v for k, v in fields.items() if v is not ...}).encode()
    path.write_bytes(raw[:start] + text + _export_files.tail_of(text))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": 2}, "schema 2; this version"),
        ({"platforms": "cpu"}, "malformed: platforms"),
        ({"order": ["a"]}, "malformed: order"),
        ({"key_impl": 3}, "malformed: key_impl"),
        ({"weights": {"file": "../m", "sha256": ""}}, "malformed: weights"),
        ({"weights": {"file": "m"}}, "malformed: weights"),
        ({"more": 1}, "unexpected keyword"),
        ({"x64": ...}, "missing 1 required"),
        ({"signature": {}}, "not readable"),
        ({"outputs": {"kind": "odd"}}, "not readable"),
        ({"order": [0, 0]}, "not readable"),
        ({"outputs": "*"}, "not readable"),
        ({"weights": None}, "b: missing"),
        ({"sha256": "00"}, "SHA-256 is not"),
    ],
)
def test_trailers_that_are_wrong(files, change, message):
    rewrite(files / "m.stablehlo", **change)
    with pytest.raises(ArtefactError, match=message):
        load_export(files / "m.stablehlo")


def test_a_trailer_that_is_no_object(files):
    path = files / "m.stablehlo"
    text = b"[1]"
    path.write_bytes(b"x" + text + _export_files.tail_of(text))
    with pytest.raises(ArtefactError, match="required an object"):
        load_export(path)
    path.write_bytes(b"x" * 33 + (1 << 40).to_bytes(8, "little") + _export_files.MARK)
    with pytest.raises(ArtefactError, match="a trailer of"):
        load_export(path)


def test_an_export_that_this_jax_does_not_read(files):
    """A function of another JAX: the digest fits, the bytes are not for this one."""
    import hashlib

    path = files / "m.stablehlo"
    rewrite(path)
    raw = path.read_bytes()
    tail = len(_export_files.tail_of(b""))
    start = len(raw) - tail - int.from_bytes(raw[32 - tail : -len(_export_files.MARK)], "little")
    path.write_bytes(b"\0" * 64 + raw[start:])
    rewrite(path, sha256=hashlib.sha256(b"\0" * 64).hexdigest(), jax="0.4.30", date="2024-08-01")
    with pytest.raises(ArtefactError, match=r"exported on 2024-08-01 by JAX 0.4.30.*six months"):
        load_export(path)
