"""The safetensors reader and writer, against the safetensors package and against bad files."""

import hashlib
import json
import os
import pickle
import re
import struct
import zipfile

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.numpy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jaxinfer.core.errors import CheckpointError, JaxinferError
from jaxinfer.io._header import CODES
from jaxinfer.io._safetensors import MAX_HEADER, SafetensorsFile, write

FUZZ = settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))


def random_bits(name, shape, seed=0):
    """Every bit pattern may come up: NaN payloads, infinities, denormals."""
    dtype = np.dtype(getattr(ml_dtypes, name, None) or name)
    rng = np.random.default_rng(seed)
    bits = rng.integers(0, 256, (*shape, dtype.itemsize), np.uint8)
    if name == "bool":
        bits &= 1
    if name == "float4_e2m1fn":
        bits &= 15
    return bits.view(dtype).reshape(shape)


def raw(header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(dtype="F32", shape=(2,), begin=0, end=8):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


def fault(tmp_path, data) -> str:
    path = tmp_path / "w.safetensors"
    path.write_bytes(data)
    with pytest.raises(CheckpointError) as caught:
        SafetensorsFile(path)
    return str(caught.value)


@pytest.mark.parametrize("name", sorted(CODES))
@pytest.mark.parametrize("shape", [(), (7, 2), (0, 3), (1, 0), (2, 3, 11)])
def test_every_dtype_round_trips_bit_for_bit(tmp_path, name, shape):
    array = random_bits(name, shape)
    if name == "float4_e2m1fn" and shape == ():
        with pytest.raises(ValueError, match="whole bytes"):
            write(tmp_path / "w.safetensors", {"a": array})
        return
    write(tmp_path / "w.safetensors", {"a": array, "b": array})
    file = SafetensorsFile(tmp_path / "w.safetensors")
    assert list(file) == ["a", "b"]
    for key in file:
        assert file.spec(key) == (shape, name)
        assert file[key].dtype == array.dtype
        assert file[key].shape == shape
        assert file[key].tobytes() == array.tobytes()


def test_safetensors_reads_what_we_write(tmp_path):
    leaves = {name: random_bits(name, (2, 4), seed) for seed, name in enumerate(sorted(CODES))}
    path = tmp_path / "w.safetensors"
    write(path, leaves, metadata={"format": "pt"})
    found = dict(safetensors.deserialize(path.read_bytes()))
    for name, array in leaves.items():
        assert found[name]["dtype"] == CODES[name]
        assert found[name]["shape"] == [2, 4]
        if name != "float4_e2m1fn":
            assert bytes(found[name]["data"]) == array.tobytes()
    bits = leaves["float4_e2m1fn"].view(np.uint8).reshape(4, 2)
    packed = np.frombuffer(bytes(found["float4_e2m1fn"]["data"]), np.uint8)
    np.testing.assert_array_equal(packed, bits[:, 0] + 16 * bits[:, 1])
    with safetensors.safe_open(path, "np") as file:
        assert file.metadata() == {"format": "pt"}
        np.testing.assert_array_equal(file.get_tensor("int64"), leaves["int64"])
    assert int.from_bytes(path.read_bytes()[:8], "little") % 8 == 0


def test_we_read_what_safetensors_writes(tmp_path):
    leaves = {
        "f": random_bits("float32", (3, 5)),
        "h": random_bits("float16", (7,)),
        "bf": random_bits("bfloat16", (3,)),
        "odd": random_bits("int8", (3,)),
        "zero": np.zeros((0, 4), np.int64),
        "scalar": np.array(2.5),
        "flags": np.array([True, False, True]),
    }
    path = tmp_path / "w.safetensors"
    safetensors.numpy.save_file(leaves, path, metadata={"a": "b"})
    file = SafetensorsFile(path)
    assert file.metadata == {"a": "b"}
    assert set(file) == set(leaves)
    for name, array in leaves.items():
        assert file.spec(name) == (array.shape, array.dtype.name)
        assert file[name].tobytes() == array.tobytes()


def test_tensors_at_odd_places_are_read(tmp_path):
    path = tmp_path / "w.safetensors"
    values = np.array([1.5, -2.0], np.float32)
    header = {"a": entry("U8", (3,), 0, 3), "b": entry("F32", (2,), 3, 11)}
    path.write_bytes(raw(header, b"abc" + values.tobytes()))
    file = SafetensorsFile(path)
    np.testing.assert_array_equal(file["b"], values)
    assert file["a"].tobytes() == b"abc"


def test_reading_is_a_view_and_read_only(tmp_path):
    path = tmp_path / "w.safetensors"
    write(path, {"a": np.arange(5000, dtype=np.float32)})
    array = SafetensorsFile(path)["a"]  # the map outlives the file object
    assert array.base is not None
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 1
    assert array[4999] == 4999


def test_released_pages_come_back(tmp_path):
    path = tmp_path / "w.safetensors"
    write(path, {"a": np.arange(10000), "b": np.arange(7), "z": np.zeros((0,), np.int8)})
    file = SafetensorsFile(path)
    for name in file:
        before = file[name].copy()
        file.release(name)
        np.testing.assert_array_equal(file[name], before)


def test_no_tensors_at_all(tmp_path):
    write(tmp_path / "w.safetensors", {})
    assert len(SafetensorsFile(tmp_path / "w.safetensors")) == 0
    assert safetensors.deserialize((tmp_path / "w.safetensors").read_bytes()) == []


def test_writing_strided_big_endian_and_jax_arrays(tmp_path):
    base = np.arange(12, dtype=np.float32).reshape(3, 4)
    path = tmp_path / "w.safetensors"
    write(path, {"t": base.T, "s": base[::2, 1:], "be": base.astype(">f4"), "j": jnp.asarray(base)})
    file = SafetensorsFile(path)
    np.testing.assert_array_equal(file["t"], base.T)
    np.testing.assert_array_equal(file["s"], base[::2, 1:])
    np.testing.assert_array_equal(file["be"], base)
    np.testing.assert_array_equal(file["j"], base)


def test_leaves_are_asked_for_one_at_a_time(tmp_path):
    alive, most = set(), 0

    class Leaf(np.ndarray):
        def __del__(self):
            alive.discard(id(self))

    def make(index):
        def leaf():
            nonlocal most
            array = np.full(1000, index, np.float32).view(Leaf)
            alive.add(id(array))
            most = max(most, len(alive))
            return array

        return leaf

    specs = {f"l{i}": ((1000,), "float32") for i in range(5)}
    write(tmp_path / "w.safetensors", {f"l{i}": make(i) for i in range(5)}, specs)
    assert most <= 2  # the one written, and the next while it replaces it
    file = SafetensorsFile(tmp_path / "w.safetensors")
    assert [float(file[f"l{i}"][0]) for i in range(5)] == [0, 1, 2, 3, 4]


def test_write_returns_the_checksum(tmp_path):
    digest = write(tmp_path / "w.safetensors", {"a": np.arange(3)})
    assert digest == hashlib.sha256((tmp_path / "w.safetensors").read_bytes()).hexdigest()


def test_write_refuses_what_the_format_lacks(tmp_path):
    bad = {"a": np.zeros(2, ml_dtypes.int4), "b": np.zeros(2, np.complex128), "c": np.zeros(2)}
    with pytest.raises(TypeError, match=r"(?s)a: int4.*b: complex128"):
        write(tmp_path / "w.safetensors", bad)
    assert not (tmp_path / "w.safetensors").exists()
    with pytest.raises(ValueError, match="__metadata__"):
        write(tmp_path / "w.safetensors", {"__metadata__": np.zeros(2)})
    with pytest.raises(ValueError, match="names of specs"):
        write(tmp_path / "w.safetensors", {"a": np.zeros(2)}, {})
    with pytest.raises(ValueError, match="a: required"):
        write(tmp_path / "w.safetensors", {"a": np.zeros(2)}, {"a": ((3,), "float64")})
    with pytest.raises(ValueError, match="whole bytes"):
        write(tmp_path / "w.safetensors", {"a": np.zeros(3, ml_dtypes.float4_e2m1fn)})


def test_not_a_file(tmp_path):
    with pytest.raises(CheckpointError, match="no such file"):
        SafetensorsFile(tmp_path / "none.safetensors")
    with pytest.raises(CheckpointError, match="is a directory"):
        SafetensorsFile(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(CheckpointError, match="no such file"):
        SafetensorsFile(tmp_path / "pipe")  # must not hang


def test_unreadable_file(tmp_path, monkeypatch):
    path = tmp_path / "w.safetensors"
    write(path, {"a": np.zeros(2)})

    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(CheckpointError, match="Permission denied"):
        SafetensorsFile(path)


GOOD = raw({"a": entry()}, b"12345678")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is empty"),
        (b"1234567", "shorter than"),
        (GOOD[:20], r"header of \d+ bytes is announced, 12 follow"),
        (GOOD[:-1], r"'a': ends at byte 8 of 7 \(truncated\?\)"),
        (struct.pack("<Q", MAX_HEADER + 1), "at most 100000000"),
        (struct.pack("<Q", 2**64 - 1) + b"{}", "at most 100000000"),
        (raw(b"{"), "not JSON"),
        (raw(b'{"a": \xff}'), "not UTF-8 at byte 6"),
        (raw(b"[]"), "a JSON list, not an object"),
        (raw(b'{"a": 1, "a": 2}'), "'a' is given twice"),
        (raw(b"[" * 100_000), "nested deeper"),
        (raw(b'{"a":' * 900 + b"1" + b"}" * 900), "nested deeper"),
        (raw(b'{"a": ' + b"9" * 5000 + b"}"), "header: Exceeds the limit"),
        (raw({"__metadata__": {"a": 1}}), "__metadata__"),
        (raw({"__metadata__": []}), "__metadata__"),
        (raw({"a": 1}), "required an object"),
        (raw({"a": {"dtype": "F32", "shape": [2]}}, b"12345678"), "required an object"),
        (raw({"a": entry("F31")}, b"12345678"), "unknown dtype 'F31'; known: BOOL"),
        (raw({"a": entry("F6_E2M3", (4,), 0, 3)}, b"123"), "unknown dtype 'F6_E2M3'"),
        (raw({"a": {**entry(), "dtype": ["F32"]}}, b"12345678"), "unknown dtype"),
        (raw({"a": entry(shape=(-2,))}, b"12345678"), "bad shape"),
        (raw({"a": entry(shape=(2.0,))}, b"12345678"), "bad shape"),
        (raw({"a": entry(shape=(True, 2))}, b"12345678"), "bad shape"),
        (raw({"a": entry(shape=["2"])}, b"12345678"), "bad shape"),
        (raw({"a": {**entry(), "shape": 2}}, b"12345678"), "bad shape"),
        (raw({"a": entry(shape=(1,) * 65)}, b"12345678"), "bad shape"),
        (raw({"a": entry(shape=(2**32, 2**32))}, b"12345678"), "too large"),
        (raw({"a": entry(shape=(0, 2**63), end=0)}), "too large"),
        (raw({"a": entry(shape=(3,))}, b"12345678"), r"F32\[3\] takes 12 bytes, data_offsets hold"),
        (raw({"a": entry("F4", (3,), 0, 1)}, b"1"), "whole bytes"),
        (raw({"a": entry(begin=8, end=0)}, b"12345678"), "bad data_offsets"),
        (raw({"a": entry(begin=-8, end=0)}, b"12345678"), "bad data_offsets"),
        (raw({"a": {**entry(), "data_offsets": [0, 8, 8]}}, b"12345678"), "bad data_offsets"),
        (raw({"a": entry(), "b": entry(begin=4, end=12)}, b"1" * 12), "'b': overlaps"),
        (raw({"a": entry(), "b": entry()}, b"1" * 8), "'b': overlaps"),
        (raw({"a": entry(), "b": entry(begin=9, end=17)}, b"1" * 17), "1 bytes before it"),
        (GOOD + b"1", "1 bytes at the end belong to no tensor"),
        (pickle.dumps({"a": 1}), "pickle"),
        (b"GGUF" + bytes(60), "GGUF"),
        (b"<!DOCTYPE html><html><body>404</body></html>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "git lfs pull"),
    ],
)
def test_bad_files(tmp_path, data, message):
    assert re.search(message, fault(tmp_path, data))


def test_a_zip_by_another_name(tmp_path):
    path = tmp_path / "w.safetensors"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({}))
    assert r".pth/.pt file" in fault(tmp_path, path.read_bytes())


def test_all_faults_at_once(tmp_path):
    header = {"a": entry("F31"), "b": entry(shape=(-1,)), "c": entry(end=80), "d": 5}
    text = fault(tmp_path, raw(header, b"12345678"))
    for name in "abcd":
        assert f"'{name}': " in text
    many = fault(tmp_path, raw({f"t{i}": 5 for i in range(1000)}))
    assert "... and 950 more" in many
    assert len(many) < 10_000


def test_a_bool_is_0_or_1(tmp_path):
    path = tmp_path / "w.safetensors"
    path.write_bytes(raw({"a": entry("BOOL", (2,), 0, 2)}, b"\x01\x02"))
    with pytest.raises(CheckpointError, match="neither 0 nor 1"):
        SafetensorsFile(path)["a"]


def a_file():
    header = {
        "__metadata__": {"format": "pt"},
        "a.weight": entry("F32", (2, 3), 0, 24),
        "a.flag": entry("BOOL", (), 24, 25),
        "b": entry("BF16", (5,), 25, 35),
        "e": entry("F8_E4M3", (0, 4), 35, 35),
    }
    return raw(header, bytes(range(24)) + b"\x01" + bytes(10))


def read_all(path):
    file = SafetensorsFile(path)
    return {name: file[name] for name in file}


@FUZZ
@given(
    flips=st.lists(st.tuples(st.integers(0, len(a_file()) - 1), st.integers(0, 255)), max_size=4),
    cut=st.integers(0, len(a_file())),
)
def test_damage_is_an_error_of_ours_or_harmless(tmp_path_factory, flips, cut):
    data = bytearray(a_file())
    for place, value in flips:
        data[place] = value
    path = tmp_path_factory.getbasetemp() / "fuzz.safetensors"
    path.write_bytes(data if cut % 3 else data[:cut])
    try:
        arrays = read_all(path)
    except JaxinferError:
        return
    assert all(array.size <= len(data) for array in arrays.values())


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=4)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=8,
)
ENTRY = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "BF16", "F4", "BOOL", "?"]) | JSON,
        "shape": st.lists(st.integers(-1, 3), max_size=3) | JSON,
        "data_offsets": st.lists(st.integers(0, 12), min_size=2, max_size=2) | JSON,
    }
)


@FUZZ
@given(header=st.dictionaries(st.sampled_from(["a", "b", "__metadata__"]), ENTRY | JSON))
def test_any_json_header_is_an_error_of_ours_or_sound(tmp_path_factory, header):
    path = tmp_path_factory.getbasetemp() / "fuzz2.safetensors"
    path.write_bytes(raw(header, bytes(12)))
    try:
        arrays = read_all(path)
    except JaxinferError:
        return
    sizes = [a.nbytes // (2 if a.dtype.name == "float4_e2m1fn" else 1) for a in arrays.values()]
    assert sum(sizes) == 12  # the data is covered without holes or overlaps
