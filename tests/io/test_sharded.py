"""Weights into shards: equal to the whole array cut by hand, each slice read once, all faults."""

import json
import types

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from jaxinfer.core.array_types import ARRAY_TYPES
from jaxinfer.core.errors import ArtefactError, CheckpointError, InputError
from jaxinfer.core.leaves import leaves
from jaxinfer.core.model import Model
from jaxinfer.io import _shardings, sharded
from jaxinfer.io._safetensors import write
from jaxinfer.io._shardings import resolve
from jaxinfer.io.artefact import load, save
from jaxinfer.io.checkpoint import open_checkpoint
from jaxinfer.io.sharded import read_sharded
from jaxinfer.numerics.masks import Masked
from jaxinfer.numerics.qtensor import QTensor
from jaxinfer.numerics.quantize import quantize
from tests.io.models import function_model, graph_model, rule

P = jax.P
AUTO = jax.sharding.AxisType.Auto


@pytest.fixture(scope="module")
def mesh():
    return jax.make_mesh((2, 4), ("data", "model"), axis_types=(AUTO, AUTO))


def on(mesh, *spec):
    return jax.NamedSharding(mesh, P(*spec))


def values(shape, dtype, seed=0):
    drawn = np.random.default_rng(seed).integers(-99, 99, shape)
    return (drawn > 0) if dtype == "bool" else drawn.astype(jnp.dtype(dtype))


WEIGHTS = {
    "w": values((16, 12), "float32"),
    "h": values((8, 4, 3), "bfloat16"),
    "e": values((12, 7), "float8_e4m3fn"),
    "m": values((4, 8), "bool"),
    "i": values((8,), "int64"),
    "four": np.arange(16).reshape(4, 4).astype(ml_dtypes.float4_e2m1fn),
    "none": values((0, 8), "float32"),
    "one": values((1, 1), "int8"),
    "scalar": np.float32(7),
}
SPECS = {
    "w": ("data", "model"),
    "h": (None, "model"),
    "e": ("model",),
    "m": (None, ("data", "model")),
    "i": (("model", "data"),),
    "four": (None, "data"),
    "none": (None, "model"),
    "one": (),
    "scalar": (),
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Two files and an index."""
    folder = tmp_path_factory.mktemp("checkpoint")
    names = list(WEIGHTS)
    where = {}
    for number, part in enumerate((names[:4], names[4:])):
        write(folder / f"part-{number}.safetensors", {n: WEIGHTS[n] for n in part})
        where |= dict.fromkeys(part, f"part-{number}.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    return folder


def check(array, want, sharding):
    """Hold every shard against the slice of the whole that its device should have."""
    assert array.sharding == sharding
    assert array.shape == want.shape
    assert array.dtype == jax.dtypes.canonicalize_dtype(want.dtype)
    index = sharding.devices_indices_map(want.shape)
    assert len(array.addressable_shards) == 8
    for shard in array.addressable_shards:
        np.testing.assert_array_equal(np.asarray(shard.data), want[index[shard.device]])


def test_every_dtype_and_rank(checkpoint, mesh):
    shardings = {name: on(mesh, *spec) for name, spec in SPECS.items()}
    arrays = read_sharded(checkpoint, shardings, threads=3)
    assert list(arrays) == list(open_checkpoint(checkpoint))
    for name, array in arrays.items():
        check(array, WEIGHTS[name], shardings[name])


def test_pieces(checkpoint, mesh, monkeypatch):
    """A slice is put together from pieces of a row or more, from first to last."""
    want = read_sharded(checkpoint, on(mesh), names=["w"])["w"]
    for piece in (1, 5 * 12 * 4):  # one row; five of the eight rows of a shard
        monkeypatch.setattr(sharded, "_PIECE", piece)
        got = read_sharded(checkpoint, on(mesh, "data", "model"), names=["w"])["w"]
        assert jnp.array_equal(got, want)


def test_each_slice_is_read_once_and_only_what_is_asked(checkpoint, mesh, monkeypatch):
    read = []
    copy = sharded._copy
    monkeypatch.setattr(sharded, "_copy", lambda *a: read.append(a[2].shape) or copy(*a))
    read_sharded(checkpoint, on(mesh, "model"), names=["w"])
    assert read == [(4, 12)] * 4  # eight devices, two of each
    read.clear()
    read_sharded(checkpoint, on(mesh), names=["w"])
    assert read == [(16, 12)]


def test_shards_own_their_memory(tmp_path, mesh):
    """Nothing that happens to the file later reaches the arrays, nor does donation."""
    want = values((64, 256), "float32")
    write(tmp_path / "a.safetensors", {"w": want})
    array = read_sharded(tmp_path / "a.safetensors", on(mesh, "model"))["w"]
    with open(tmp_path / "a.safetensors", "r+b") as file:
        file.seek(-want.nbytes, 2)
        file.write(b"\xff" * want.nbytes)
    check(array, want, on(mesh, "model"))
    shards = {shard.device.id: shard.data for shard in array.addressable_shards}
    first, *others = [d for d in shards if array.addressable_shards[d].index[0].start == 0]
    doubled = jax.jit(lambda x: x * 2, donate_argnums=0)(shards[first])
    np.testing.assert_array_equal(doubled, want[:16] * 2)
    assert others
    for other in others:  # on CPU they may share memory
        np.testing.assert_array_equal(shards[other], want[:16])


def test_progress(checkpoint, mesh):
    seen = []
    read_sharded(
        checkpoint,
        lambda name: on(mesh, *SPECS[name]),
        names=["w", "h", "one"],
        progress=lambda *a: seen.append(a),
    )
    total = WEIGHTS["w"].nbytes + WEIGHTS["h"].nbytes + 1
    assert sorted(name for *_, name in seen) == ["h", "one", "w"]
    assert [total] * 3 == [item[1] for item in seen]
    assert [item[0] for item in seen] == sorted(item[0] for item in seen)
    assert seen[-1][0] == total
    assert all(rate > 0 for _, _, rate, _ in seen)


def test_what_progress_raises_ends_the_read(checkpoint, mesh):
    def stop(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        read_sharded(checkpoint, on(mesh), names=["w", "h"], progress=stop)


def test_casts(tmp_path, mesh):
    file = tmp_path / "a.safetensors"
    wide = np.array([1.0, 2.5, 1e30, np.inf] * 2)
    write(file, {"f": wide, "g": wide.astype(np.float32), "i": np.array([1, 2**40] * 4)})
    got = read_sharded(
        file, on(mesh, "data"), names=["f", "g"], dtypes={"f": "float32", "g": "bfloat16"}
    )
    check(got["f"], wide.astype(np.float32), on(mesh, "data"))
    check(got["g"], wide.astype(ml_dtypes.bfloat16), on(mesh, "data"))
    with pytest.raises(CheckpointError) as error:
        read_sharded(file, on(mesh, "data"), dtypes={"g": "float16"})
    assert "f: float64 values are not exact in float32" in str(error.value)
    assert "g: 1 values of float32 are too large for float16" in str(error.value)
    assert "i: int64 value 1099511627776 does not fit int32" in str(error.value)
    with jax.enable_x64(True):  # a context of this thread, which the readers must take over
        got = read_sharded(file, on(mesh, "data"), names=["f", "i"])
    assert got["f"].dtype == np.float64
    assert got["i"].tolist() == [1, 2**40] * 4


def test_bad_requests(checkpoint, mesh):
    with pytest.raises(CheckpointError) as error:
        read_sharded(
            checkpoint,
            on(mesh),
            names=["w", "nil", "m", "i"],
            dtypes={"m": "float32", "w": "float99", "i": "int8", "e": "float32"},
        )
    text = str(error.value)
    assert "nil: not in " in text
    assert "m: stored as bool, which is not cast to float32" in text
    assert "w: unknown dtype 'float99'" in text
    assert "i: stored as int64, which is not cast to int8" in text
    assert "e: a dtype is given, it is not read" in text
    with pytest.raises(InputError, match="threads: required 1 or more, got 0"):
        read_sharded(checkpoint, on(mesh), threads=0)


def test_booleans_are_checked(tmp_path, mesh):
    file = tmp_path / "a.safetensors"
    write(file, {"a": np.ones(8, bool), "b": np.ones(8, bool)})
    data = bytearray(file.read_bytes())
    data[-1] = 2
    file.write_bytes(bytes(data))
    with pytest.raises(CheckpointError, match="b: bytes that are neither 0 nor 1"):
        read_sharded(file, on(mesh, "model"))


def test_out_of_memory(checkpoint, mesh, monkeypatch):
    def full(shape, dtype):
        raise MemoryError("Unable to allocate")

    monkeypatch.setattr(sharded, "aligned", full)
    with pytest.raises(MemoryError, match=r"w: no memory for its 0\.0 MB here, after 0\.00 of"):
        read_sharded(checkpoint, on(mesh), names=["w"])


def test_other_errors_pass(checkpoint, mesh, monkeypatch):
    monkeypatch.setattr(sharded, "aligned", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        read_sharded(checkpoint, on(mesh), names=["w"])


class Nowhere:
    platform, id = "nowhere", 9

    def __repr__(self):
        return "Nowhere(9)"


class Elsewhere(jax.sharding.Sharding):
    """A sharding over a device that this machine has not, and over none that divides."""

    device_set = frozenset({Nowhere()})

    def shard_shape(self, global_shape):
        raise ValueError("no shard of it")


def test_shardings_that_do_not_fit(mesh):
    avals = {
        name: jax.ShapeDtypeStruct(shape, jnp.float32)
        for name, shape in {
            "odd": (6, 9),
            "rank": (8,),
            "none": (8,),
            "kind": (8,),
            "far": (8,),
            "shape": (8,),
            "flat": (8,),
            "fine": (8, 8),
        }.items()
    }
    given = {
        "odd": on(mesh, "model", ("data",)),
        "rank": on(mesh, None, "data"),
        "kind": P("data"),
        "far": Elsewhere(),
        "shape": types.SimpleNamespace(),
        "flat": jax.NamedSharding(mesh.abstract_mesh, P("data")),
        "fine": on(mesh, "data", "model"),
        "extra": on(mesh),
    }
    with pytest.raises(InputError) as error:
        resolve(given, avals)
    assert str(error.value).splitlines() == [
        "shardings: 9 do not fit the parameters:",
        "  odd: float32[6, 9]: axis 0 of size 6 does not divide by 4 (model=4)",
        "  odd: float32[6, 9]: axis 1 of size 9 does not divide by 2 (data=2)",
        f"  rank: float32[8]: {P(None, 'data')} has 2 entries for 1 axes",
        "  none: float32[8] has no sharding",
        f"  kind: float32[8]: required a jax.sharding.Sharding, got {P.__name__}",
        "  far: float32[8]: 1 of its 1 devices do not exist here (Nowhere(9), ...); nowhere has 0",
        "  shape: float32[8]: required a jax.sharding.Sharding, got SimpleNamespace",
        "  flat: float32[8]: the mesh {'data': 2, 'model': 4} is abstract: it has no devices to "
        "place shards on",
        "  extra: a sharding, but no such parameter",
    ]
    with pytest.raises(InputError, match="required a Sharding, a mapping or a function"):
        resolve(3, avals)
    assert resolve(lambda name: on(mesh), avals) == dict.fromkeys(avals, on(mesh))


def test_other_kinds_of_sharding(checkpoint):
    avals = {"w": jax.ShapeDtypeStruct((6, 4), jnp.float32)}
    single = jax.sharding.SingleDeviceSharding(jax.devices()[3])
    assert resolve(single, avals) == {"w": single}
    free = jax.NamedSharding(jax.make_mesh((2,), ("a",), axis_types=(AUTO,)), P(P.UNCONSTRAINED))
    assert resolve(free, avals) == {"w": free}
    array = read_sharded(checkpoint, free, names=["w"])["w"]
    np.testing.assert_array_equal(array, WEIGHTS["w"])
    known: dict = {}
    elsewhere = types.SimpleNamespace(
        device_set=frozenset(jax.devices()[:1]), shard_shape=Elsewhere().shard_shape
    )
    (fault,) = _shardings._faults(elsewhere, (6, 4), known)
    assert fault.endswith("no shard of it")


class Plan:
    """What ``load`` needs of a plan."""

    def __init__(self, mesh):
        self.mesh, self.asked = mesh, None

    def param_shardings(self, params):
        self.asked = params
        return {"layer.w": on(self.mesh, None, "model")}


@pytest.fixture
def model_dir(tmp_path):
    with rule():
        save(graph_model(f=8), tmp_path / "m")
        yield tmp_path / "m"


def test_a_model_without_weights(model_dir, tmp_path):
    """Shapes first: the weight file may even be damaged, as long as its header is not."""
    file = model_dir / "params.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(bytes(data))
    model = load(model_dir, abstract=True)
    assert model.params == {"layer.w": jax.ShapeDtypeStruct((3, 8), jnp.float32)}
    assert model.nbytes == 3 * 8 * 4
    out = jax.eval_shape(model.apply, model.params, jnp.ones((2, 3)))
    assert out.shape == (2, 8)
    with pytest.raises(ArtefactError, match="a shape without values"):
        save(model, tmp_path / "again")
    with pytest.raises(InputError, match="not both"):
        load(model_dir, abstract=True, shardings=lambda name: None)
    with pytest.raises(ArtefactError, match=r"params\.safetensors: damaged"):
        load(model_dir)


def test_a_plan_then_its_model(model_dir, mesh):
    plan = Plan(mesh)
    model = load(model_dir, shardings=plan)
    assert plan.asked == load(model_dir, abstract=True).params
    want = load(model_dir)
    check(model.params["layer.w"], np.asarray(want.params["layer.w"]), on(mesh, None, "model"))
    x = np.random.default_rng(1).normal(size=(5, 3)).astype(np.float32)
    np.testing.assert_allclose(
        model(x), want(x), rtol=0, atol=2e-6
    )  # three products of order 1: float32 rounds each within 6e-8 of it, fused or not
    assert "loaded_unverified" not in model.provenance


def test_checksums_with_and_without(model_dir, mesh):
    file = model_dir / "params.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(bytes(data))
    with pytest.raises(ArtefactError, match=r"params\.safetensors: damaged"):
        load(model_dir, shardings=Plan(mesh))
    for shardings in (Plan(mesh), None):
        model = load(model_dir, shardings=shardings, verify=False)
        assert model.provenance["loaded_unverified"] == ["params.safetensors"]
    file.write_bytes(bytes(data[:-4]))  # a length is always seen
    with pytest.raises(ArtefactError, match="truncated"):
        load(model_dir, shardings=Plan(mesh), verify=False)
    file.unlink()
    with pytest.raises(ArtefactError, match=r"params\.safetensors: missing"):
        load(model_dir, abstract=True)


def test_constants_are_always_verified(model_dir, mesh):
    file = model_dir / "constants.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(bytes(data))
    for options in ({"abstract": True}, {"shardings": Plan(mesh), "verify": False}):
        with pytest.raises(ArtefactError, match=r"constants\.safetensors: damaged"):
            load(model_dir, **options)


def test_progress_of_a_model(model_dir, mesh):
    size = sum(f.stat().st_size for f in model_dir.glob("*.safetensors"))
    for shardings in (Plan(mesh), None):
        seen = []
        load(model_dir, shardings=shardings, progress=lambda *a: seen.append(a))  # noqa: B023
        checks = [item for item in seen if item[3].startswith("checksum of ")]
        reads = [item for item in seen if not item[3].startswith("checksum of ")]
        assert checks[-1][:2] == (size, size)
        assert [item[:2] + item[3:] for item in reads] == [(96, 96, "layer.w")]


def test_shardings_of_a_model_that_do_not_fit(model_dir, mesh):
    with pytest.raises(InputError, match=r"layer\.w: float32\[3, 8\]: axis 0 of size 3 does not"):
        load(model_dir, shardings={"layer.w": on(mesh, "model")})
    with pytest.raises(InputError, match=r"layer\.w: float32\[3, 8\] has no sharding"):
        load(model_dir, shardings={})


def test_nested_parameters(tmp_path, mesh):
    model = function_model()
    save(model, tmp_path / "m")
    want = load(tmp_path / "m")
    got = load(tmp_path / "m", shardings=on(mesh))
    assert jax.tree.structure(got.params) == jax.tree.structure(want.params)
    shapes = load(tmp_path / "m", abstract=True)
    assert {n: a.shape for n, a in leaves(shapes.params).items()} == {
        n: a.shape for n, a in leaves(want.params).items()
    }


def test_array_types_follow(tmp_path, mesh):
    """A quantized and a masked leaf: by the names of their parts, and abstract ones of shapes."""
    with rule():
        base = graph_model(d=8, f=8)
        w = base.params["layer.w"]
        quantized = quantize(w, "int8", axes=(0, 1), tiles={0: 2, 1: 2})
        masked = Masked(w, jnp.abs(w) > 0.3)
        for leaf, specs in (
            (quantized, {"qvalue": ("data", "model"), "scale": ("data", "model")}),
            (masked, {"weight": ("model",), "mask": ("model", "data")}),
        ):
            folder = tmp_path / type(leaf).__name__
            save(Model(base.program, {"layer.w": leaf}), folder)
            shapes = load(folder, abstract=True).params["layer.w"]
            assert type(shapes) is type(leaf)
            assert shapes.shape == (8, 8)
            assert type(shapes).kind in ARRAY_TYPES
            assert all(isinstance(part, jax.ShapeDtypeStruct) for part in jax.tree.leaves(shapes))
            given = {f"layer.w.{part}": on(mesh, *spec) for part, spec in specs.items()}
            model = load(folder, shardings=given)
            got = model.params["layer.w"]
            for part, spec in specs.items():
                array = getattr(got, part)
                check(array, np.asarray(getattr(leaf, part)), on(mesh, *spec))
            x = np.random.default_rng(1).normal(size=(5, 8)).astype(np.float32)
            np.testing.assert_allclose(
                model(x), load(folder)(x), rtol=0, atol=1e-5
            )  # sums of 8 terms of order 1, in another order
    assert isinstance(quantized, QTensor)


def test_damage_that_only_a_read_finds(tmp_path, mesh):
    """Without a checksum, a boolean of 2 is still an error of the artefact."""
    with rule():
        base = graph_model(d=8, f=8)
        w = base.params["layer.w"]
        save(Model(base.program, {"layer.w": Masked(w, w > 0)}), tmp_path / "m")
        file = tmp_path / "m" / "params.safetensors"
        data = bytearray(file.read_bytes())
        data[-1] = 2
        file.write_bytes(bytes(data))
        with pytest.raises(ArtefactError, match=r"layer\.w\.mask: bytes that are neither 0 nor 1"):
            load(tmp_path / "m", shardings=on(mesh), verify=False)
