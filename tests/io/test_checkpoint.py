"""Opening checkpoints in all their layouts, and holding them against a model."""

import json
import math
import pickle
import re
import zipfile

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jaxinfer.core.errors import CheckpointError, JaxinferError
from jaxinfer.io._safetensors import write
from jaxinfer.io.checkpoint import Report, match, nonfinite, open_checkpoint

A = np.arange(6, dtype=np.float32).reshape(2, 3)
B = np.arange(4, dtype=np.int64)


def index(directory, weight_map, name="model.safetensors.index.json"):
    path = directory / name
    path.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))
    return path


def sharded(directory):
    write(directory / "model-00001-of-00002.safetensors", {"a": A})
    write(directory / "model-00002-of-00002.safetensors", {"b": B})
    where = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    return index(directory, where), where


def fault(path, **kwargs) -> str:
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(path, **kwargs)
    return str(caught.value)


def test_one_file(tmp_path):
    write(tmp_path / "x.safetensors", {"a": A, "b": B}, metadata={"format": "pt"})
    checkpoint = open_checkpoint(str(tmp_path / "x.safetensors"))
    assert sorted(checkpoint) == ["a", "b"]
    assert checkpoint.spec("a") == ((2, 3), "float32")
    assert checkpoint.metadata == {"format": "pt"}
    assert checkpoint.file("b").name == "x.safetensors"
    np.testing.assert_array_equal(checkpoint["a"], A)
    checkpoint.release("a")
    assert "c" not in checkpoint
    with pytest.raises(KeyError):
        checkpoint["c"]


def test_shards_by_directory_by_index_and_by_list(tmp_path):
    path, where = sharded(tmp_path)
    for source in (tmp_path, path, [tmp_path / shard for shard in where.values()]):
        checkpoint = open_checkpoint(source)
        assert sorted(checkpoint) == ["a", "b"]
        assert len(checkpoint.files) == 2
        np.testing.assert_array_equal(checkpoint["b"], B)


def test_what_a_directory_is_opened_at(tmp_path):
    write(tmp_path / "other.safetensors", {"o": A})
    assert list(open_checkpoint(tmp_path)) == ["o"]
    np.savez(tmp_path / "w.npz", n=A)
    assert list(open_checkpoint(tmp_path)) == ["o"]
    write(tmp_path / "third.safetensors", {"t": A})
    assert "several weight files and no index: other.safetensors, third" in fault(tmp_path)
    sharded(tmp_path)
    assert sorted(open_checkpoint(tmp_path)) == ["a", "b"]
    index(tmp_path, {"x": "y"}, "model.fp16.safetensors.index.json")
    assert sorted(open_checkpoint(tmp_path)) == ["a", "b"]
    write(tmp_path / "model.safetensors", {"m": A})
    assert list(open_checkpoint(tmp_path)) == ["m"]


def test_nothing_to_open(tmp_path):
    assert "holds no weight files" in fault(tmp_path)
    assert "no such file" in fault(tmp_path / "none.safetensors")
    assert "no such file" in fault(tmp_path / "none")
    assert "no weight files are given" in fault([])
    (tmp_path / "notes.txt").write_text("hello")
    assert "not a weight file" in fault(tmp_path / "notes.txt")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "w.pth", "w.pt", "m.ckpt"])
def test_pickles_are_not_opened(tmp_path, name):
    (tmp_path / name).write_bytes(pickle.dumps({"a": 1}))
    for path in (tmp_path / name, tmp_path):
        assert "only torch may open (weights_only=True)" in fault(path)


def test_a_reader_for_another_suffix(tmp_path):
    (tmp_path / "w.pth").write_bytes(b"secret")
    opened = []

    def reader(path):
        opened.append(path)
        return {"a": A}

    for path in (tmp_path / "w.pth", tmp_path):
        checkpoint = open_checkpoint(path, readers={".pth": reader})
        assert checkpoint.spec("a") == ((2, 3), "float32")
        checkpoint.release("a")
        np.testing.assert_array_equal(checkpoint["a"], A)
    assert opened == [tmp_path / "w.pth"] * 2

    index(tmp_path, {"a": "shard.pth"}, "pytorch_model.pth.index.json")
    assert list(open_checkpoint(tmp_path, readers={".pth": reader})) == ["a"]


def test_every_fault_of_an_index(tmp_path):
    _, where = sharded(tmp_path)
    write(tmp_path / "model-00001-of-00002.safetensors", {"a": A, "extra": A})
    index(tmp_path, {**where, "lost": where["b"], "a": where["b"]})
    text = fault(tmp_path)
    # shard 1 is in the index no more, so its names are none of ours
    assert re.search("lost: the index says model-00002.*which lacks it", text)
    assert re.search("a: the index says model-00002.*which lacks it", text)
    index(tmp_path, where)
    assert "extra: in a shard, but not in the index" in fault(tmp_path)
    index(tmp_path, {**where, "extra": where["b"]})
    text = fault(tmp_path)
    assert re.search("extra: the index says model-00002.*it is in model-00001", text)


def test_missing_and_damaged_shards_are_all_named(tmp_path):
    _, where = sharded(tmp_path)
    (tmp_path / where["b"]).write_bytes(b"123")
    index(tmp_path, {**where, "c": "none.safetensors"})
    text = fault(tmp_path)
    assert "none.safetensors: no such file" in text
    assert "shorter than the length of a header" in text


@pytest.mark.parametrize(
    "shard",
    ["../x.safetensors", "/etc/x.safetensors", "a/x.safetensors", "..", "", "a\\x", "C:x", "x\0"],
)
def test_an_index_cannot_lead_elsewhere(tmp_path, shard):
    folder = tmp_path / "model"
    folder.mkdir()
    write(tmp_path / "x.safetensors", {"a": A})
    index(folder, {"a": shard})
    assert "not plain file names beside it" in fault(folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not JSON"),
        ("[]", "weight_map"),
        ("{}", "weight_map"),
        ('{"weight_map": ["a"]}', "weight_map"),
        ('{"weight_map": {"a": 1}}', "weight_map"),
        ('{"weight_map": {"a": "x.safetensors", "a": "y.safetensors"}}', "'a' is given twice"),
        ("[" * 100_000, "nested deeper"),
    ],
)
def test_bad_indexes(tmp_path, text, message):
    (tmp_path / "model.safetensors.index.json").write_text(text)
    assert message in fault(tmp_path)


def test_names_given_twice(tmp_path):
    write(tmp_path / "x.safetensors", {"a": A, "b": A})
    write(tmp_path / "y.safetensors", {"a": A, "b": A})
    text = fault([tmp_path / "x.safetensors", tmp_path / "y.safetensors"])
    assert "a: in x.safetensors and again in y.safetensors" in text
    assert "b: in x.safetensors" in text


def test_an_empty_index(tmp_path):
    index(tmp_path, {})
    assert len(open_checkpoint(tmp_path)) == 0


@pytest.mark.parametrize("saver", [np.savez, np.savez_compressed])
def test_npz(tmp_path, saver):
    leaves = {"a": A, "b": B, "f": np.asfortranarray(A), "be": A.astype(">f4"), "s": np.float64(2)}
    saver(tmp_path / "w.npz", **leaves, zero=np.zeros((0, 3), np.int8))
    checkpoint = open_checkpoint(tmp_path / "w.npz")
    assert checkpoint.spec("be") == ((2, 3), "float32")
    assert checkpoint.spec("s") == ((), "float64")
    assert checkpoint.spec("zero") == ((0, 3), "int8")
    for name, array in leaves.items():
        np.testing.assert_array_equal(checkpoint[name], array)
        assert checkpoint[name].dtype.isnative


def test_npz_faults_all_at_once(tmp_path):
    path = tmp_path / "w.npz"
    np.savez(
        path,
        good=A,
        objects=np.array([{}, None], object),
        bf16=A.astype(ml_dtypes.bfloat16),
        text=np.array(["x"]),
    )
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("plain.npy", b"not an array")
        archive.writestr("old.npy", b"\x93NUMPY\x09\x00")
        whole = zipfile.ZipFile(path).read("good.npy")
        archive.writestr("cut.npy", whole[:-4])
    text = fault(path)
    assert "'objects': holds Python objects (a pickle)" in text
    assert "'bf16': dtype |V2" in text
    assert "'text': dtype <U1" in text
    assert "'plain': " in text
    assert "'old': " in text
    assert "'cut': float32[2, 3] does not take 20 bytes" in text
    assert "good" not in text


def test_npz_that_is_no_archive(tmp_path):
    (tmp_path / "w.npz").write_bytes(b"hello")
    assert "not a .npz archive" in fault(tmp_path / "w.npz")
    assert "none.npz: no such file" in fault(tmp_path / "none.npz")


def npz_bytes(tmp_path):
    np.savez_compressed(tmp_path / "fuzz.npz", a=A, b=B)
    return bytearray((tmp_path / "fuzz.npz").read_bytes())


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(flips=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255))))
def test_damaged_npz_is_an_error_of_ours_or_harmless(tmp_path_factory, flips):
    folder = tmp_path_factory.getbasetemp()
    data = npz_bytes(folder)
    for place, value in flips:
        data[math.floor(place * len(data))] = value
    (folder / "fuzz.npz").write_bytes(data)
    try:
        checkpoint = open_checkpoint(folder / "fuzz.npz")
        arrays = {name: checkpoint[name] for name in checkpoint}
    except JaxinferError:
        return
    assert all(checkpoint.spec(n) == (a.shape, a.dtype.name) for n, a in arrays.items())


# -- match


def opened(tmp_path, **leaves):
    leaves = {name.replace("__", "."): leaf for name, leaf in leaves.items()}
    write(tmp_path / "x.safetensors", leaves)
    return open_checkpoint(tmp_path / "x.safetensors")


def misfit(*args, **kwargs) -> str:
    with pytest.raises(CheckpointError) as caught:
        match(*args, **kwargs)
    return str(caught.value)


def test_match_records_float_casts_only(tmp_path):
    f8 = A.astype(ml_dtypes.float8_e4m3fn)
    checkpoint = opened(tmp_path, same=A, half=A.astype(np.float16), f8=f8, i=B)
    wanted = {
        "same": ((2, 3), "float32"),
        "half": ((2, 3), "bfloat16"),
        "f8": ([2, 3], "float32"),
        "i": ((4,), "int64"),
    }
    report = match(checkpoint, wanted)
    assert sorted(report.casts) == [
        ("f8", "float8_e4m3fn", "float32"),
        ("half", "float16", "bfloat16"),
    ]
    assert report.warnings == []
    np.testing.assert_array_equal(checkpoint.read("f8", "float32", report), A)
    assert checkpoint.read("half", "bfloat16", report).dtype == ml_dtypes.bfloat16
    assert report.warnings == []


def test_match_reports_every_misfit(tmp_path):
    checkpoint = opened(tmp_path, fc__weigth=A, kernel=A, step=B, flag=np.array([True]), unused=A)
    wanted = {
        "fc.weight": ((2, 3), "float32"),
        "kernel": ((3, 2), "float32"),
        "step": ((4,), "float32"),
        "flag": ((1,), "int8"),
        "gone": ((), "float32"),
    }
    text = misfit(checkpoint, wanted)
    assert "7 weights do not fit the model" in text
    assert "x.safetensors" in text
    assert "fc.weight: required float32[2, 3], missing; near: fc.weigth" in text
    assert "gone: required float32[], missing\n" in text
    assert "kernel: required float32[3, 2], got float32[2, 3]" in text
    assert "step: required float32[4], got int64[4]" in text
    assert "flag: required int8[1], got bool[1]" in text
    assert "unused: float32[2, 3] is not read by the model" in text
    assert "fc.weigth: float32[2, 3] is not read by the model" in text


def test_match_lists_all_even_if_many(tmp_path):
    text = misfit(opened(tmp_path, a=A), {f"w{i}": ((2,), "float32") for i in range(3000)})
    assert "w2999: required float32[2], missing" in text


def test_ints_are_not_narrowed(tmp_path):
    assert "got int64" in misfit(opened(tmp_path, i=B), {"i": ((4,), "int32")})


def test_allow_unread(tmp_path):
    checkpoint = opened(tmp_path, a=A, h__0__ids=B, h__1__ids=B, inv=A)
    wanted = {"a": ((2, 3), "float32")}
    match(checkpoint, wanted, allow_unread=["inv", "h.*.ids"])
    text = misfit(checkpoint, wanted, allow_unread=["h.*.ids"])
    assert "1 weights" in text
    assert "inv: " in text


def test_a_prefix_is_named(tmp_path):
    checkpoint = opened(tmp_path, module__a=A, module__b=A)
    wanted = {"a": ((2, 3), "float32"), "b": ((2, 3), "float32")}
    text = misfit(checkpoint, wanted)
    assert "a: required float32[2, 3], missing; near: module.a" in text
    assert "All missing names are there with the prefix 'module.'." in text
    wanted = {f"deep.module.{n}": ((2, 3), "float32") for n in "ab"}
    assert "without the prefix 'deep.'" in misfit(checkpoint, wanted)
    wanted["deep.module.c"] = ((2, 3), "float32")
    assert "All missing" not in misfit(checkpoint, wanted)


# -- values


@pytest.mark.filterwarnings("error")
def test_nonfinite_values_are_warned_of(tmp_path):
    bad = np.array([np.nan, np.inf, -np.inf, 1], np.float32)
    f8 = bad.astype(ml_dtypes.float8_e5m2)
    e8 = np.array([255, 1], np.uint8).view(ml_dtypes.float8_e8m0fnu)
    big = np.array([1e38, 1.0], np.float32)
    checkpoint = opened(tmp_path, bad=bad, f8=f8, e8=e8, big=big, i=B, ok=A)
    assert checkpoint.nonfinite("bad") == "bad: 1 NaN and 2 infinite of 4 values"
    assert checkpoint.nonfinite("f8") == "f8: 1 NaN and 2 infinite of 4 values"
    assert checkpoint.nonfinite("e8") == "e8: 1 NaN of 2 values"
    assert checkpoint.nonfinite("i") == checkpoint.nonfinite("ok") == ""
    report = Report()
    checkpoint.read("ok", "float16", report)
    checkpoint.read("i", "int64", report)
    assert report.warnings == []
    checkpoint.read("bad", "float32", report)
    checkpoint.read("big", "float16", report)
    assert report.warnings == [
        "bad: 1 NaN and 2 infinite of 4 values",
        "big: 1 infinite of 2 values after the cast from float32 to float16",
    ]


@pytest.mark.parametrize("name", ["bfloat16", "float8_e4m3fn", "float8_e4m3fnuz", "float8_e8m0fnu"])
def test_every_bit_pattern_of_small_floats_is_classified(name):
    dtype = np.dtype(getattr(ml_dtypes, name))
    bits = np.arange(2 ** (8 * dtype.itemsize)).astype(f"u{dtype.itemsize}").view(dtype)
    wide = bits.astype(np.float32)
    nans, infinite = int(np.isnan(wide).sum()), int(np.isinf(wide).sum())
    assert nans > 0
    text = nonfinite("x", bits)
    assert f"{nans} NaN" in text
    assert (f"{infinite} infinite" in text) == (infinite > 0)
