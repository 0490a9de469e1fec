"""Model directories that are damaged, hostile or half-written, and disks that are full."""

import copy
import errno
import gc
import hashlib
import json
import os
import shutil
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jaxinfer.core.errors import ArtefactError, JaxinferError, MissingRulesError
from jaxinfer.core.ops import OPS
from jaxinfer.io import _directory, _json, _safetensors
from jaxinfer.io.artefact import load, save

from .models import OP, graph_model, rule
from .test_artefact import X

FUZZ = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))


@pytest.fixture(autouse=True)
def _rule():
    with rule():
        yield


@pytest.fixture
def saved(tmp_path):
    save(graph_model(), tmp_path / "m")
    return tmp_path / "m"


def edit(path, change):
    """Change model.json; ``change`` gets the data and may return other data."""
    file = path / "model.json"
    data = json.loads(file.read_text())
    file.write_text(json.dumps(change(data) or data))


def set_(*keys_and_value):
    *keys, last, value = keys_and_value

    def change(data):
        for key in keys:
            data = data[key]
        data[last] = value

    return change


def fault(path) -> str:
    with pytest.raises(ArtefactError) as caught:
        load(path)
    return str(caught.value)


def test_not_a_model(tmp_path):
    assert "no such directory" in fault(tmp_path / "none")
    assert "not a jaxinfer model directory: it has no model.json" in fault(tmp_path)
    (tmp_path / "file").write_text("{}")
    assert "not a jaxinfer model directory" in fault(tmp_path / "file")
    os.mkfifo(tmp_path / "model.json")
    assert "not a jaxinfer model directory" in fault(tmp_path)  # and does not hang


def test_a_newer_schema(saved):
    edit(saved, set_("schema", 2))
    edit(saved, set_("params", "of a form to come"))
    assert "written by a newer jaxinfer (schema 2), this one reads up to 1: upgrade" in fault(saved)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"\xff", "not UTF-8"),
        (b"[1]", "not a jaxinfer model"),
        (b"{}", "'format' is not 'jaxinfer'"),
        (b'{"format": "jaxinfer"}', "'schema' must be a number"),
        (b'{"format": "jaxinfer", "schema": "1"}', "'schema' must be a number"),
        (b'{"format": "jaxinfer", "schema": true}', "'schema' must be a number"),
        (b'{"format": "jaxinfer", "schema": 0}', "'schema' must be a number"),
        (b'{"format": "jaxinfer", "schema": 1, "schema": 1}', "'schema' is given twice"),
        (b'{"format": "jaxinfer", "schema": 1}', "lacks 'sha256'"),
        (b'{"format": "jaxinfer", "schema": 1, "provenance": {"sha256": {"a": 1}}}', "lacks 'sha"),
        (b"[" * 100_000, "nested deeper than 200 levels"),
        (b'{"format":' * 100_000, "nested deeper than 200 levels"),
        (b"[" * 300 + b"]" * 300, "nested deeper than 200 levels"),
    ],
)
def test_hostile_json(saved, text, message):
    (saved / "model.json").write_bytes(text)
    assert message in fault(saved)


def test_huge_json(saved, monkeypatch):
    monkeypatch.setattr(_json.read, "__kwdefaults__", {"max_bytes": 100})
    assert "larger than 100 bytes" in fault(saved)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (set_("rewrites", {}), "rewrites: required a list"),
        (set_("rewrites", [{"kind": "magic", "args": {}}]), "unknown kind 'magic'"),
        (set_("rewrites", [5]), "rewrite 5"),
        (set_("rewrites", [{"kind": []}]), "rewrite"),
        (set_("program", "kind", "magic"), "unknown kind 'magic'"),
        (set_("program", "kind", 5), "required an object with a kind"),
        (set_("program", None), "required an object with a kind"),
        (set_("program", "graph", 5), "program: malformed"),
        (set_("program", "graph", "inputs", [["p_w", "parameter", [], None]]), "program: malf"),
        (set_("program", "graph", "nodes", [{}]), "program: malformed: KeyError"),
        (set_("program", "signature", "positional", float("inf")), "program: malformed"),
        (set_("program", "signature", "leaves", []), "do not agree"),
        (set_("program", "outputs", {"kind": "set"}), "not a structure"),
        (set_("params", []), "params: required an object"),
        (set_("params", "layer.w", ["3", "float32"]), "layer.w: ['3', 'float32']"),
        (set_("params", "layer.w", [[3, -5], "float32"]), "layer.w: [[3, -5]"),
        (set_("params", "layer.w", [[3, 5], "float31"]), "layer.w: [[3, 5], 'float31']"),
        (set_("params", "layer.w", [[3, 5], "int4"]), "layer.w: [[3, 5], 'int4']"),
        (
            set_("params", "layer.w", [[3, 7], "float32"]),
            "required float32[3, 7], got float32[3, 5]",
        ),
        (
            set_("params", "layer.w", [[3, 5], "int32"]),
            "program reads float32[3, 5], params has",
        ),
        (set_("params", "more", [[1], "int8"]), "more: required int8[1], not among the weights"),
        (set_("params", {}), "layer.w: among the weights, not in model.json"),
        (set_("structure", "*"), "its leaves are not the names in params"),
        (set_("structure", 5), "not a structure"),
        (set_("structure", {"kind": "dict", "keys": ["a"], "children": 7}), "not iterable"),
        (set_("structure", {"kind": "dict", "keys": ["a", "a"], "children": ["*", "*"]}), "leaves"),
        (
            set_(
                "structure", {"kind": "namedtuple", "name": "1", "keys": ["a"], "children": ["*"]}
            ),
            "Type names and field names must be valid identifiers",
        ),
        (set_("provenance", "sha256", {}), "file params.safetensors: has no checksum"),
        (set_("provenance", "sha256", "../x", ""), "not a path inside the model directory"),
        (set_("provenance", "sha256", "/etc/passwd", ""), "not a path inside the model"),
        (set_("provenance", "sha256", "exports/../../x", ""), "not a path inside the model"),
        (set_("provenance", "sha256", "lost.bin", ""), "file lost.bin: missing"),
    ],
)
def test_wrong_contents(saved, change, message):
    edit(saved, change)
    assert message in fault(saved)


def test_entry_points_that_are_no_program_are_refused(saved):
    for kind in ("huggingface", "torch"):
        edit(saved, set_("program", "kind", kind))
        assert f"unknown kind '{kind}'" in fault(saved)


def test_a_stablehlo_program_of_garbage(saved):
    data = b"not an export"
    (saved / "exports").mkdir()
    (saved / "exports" / "program.stablehlo").write_bytes(data)
    digest = hashlib.sha256(data).hexdigest()
    edit(saved, set_("provenance", "sha256", "exports/program.stablehlo", digest))
    edit(saved, set_("program", "kind", "stablehlo"))
    with pytest.raises(JaxinferError):
        load(saved)


def test_a_link_out_of_the_directory(saved, tmp_path):
    (tmp_path / "secret").write_bytes(b"secret")
    os.symlink(tmp_path / "secret", saved / "blob")
    digest = hashlib.sha256(b"secret").hexdigest()
    edit(saved, set_("provenance", "sha256", "blob", digest))
    assert "a link that leads out of the model directory" in fault(saved)


def test_an_operator_without_a_rule(saved):
    OPS.unregister(OP)
    with pytest.raises(MissingRulesError, match=OP):
        load(saved)
    edit(saved, set_("rewrites", 5))
    text = fault(saved)  # with another fault, both are told
    assert OP in text
    assert "rewrites: required a list" in text


def test_missing_files(saved):
    os.remove(saved / "params.safetensors")
    os.remove(saved / "constants.safetensors")
    text = fault(saved)
    assert "file params.safetensors: missing" in text
    assert "file constants.safetensors: missing" in text
    assert "no such file" not in text


@pytest.mark.parametrize("size", [0, 4, 50, -1])
def test_truncated_files(saved, size):
    for name in ("params.safetensors", "constants.safetensors"):
        data = (saved / name).read_bytes()
        (saved / name).write_bytes(data[:size])
    text = fault(saved)
    assert "file params.safetensors: damaged, or of another model (SHA-256" in text
    assert "file constants.safetensors: damaged" in text


def test_one_flipped_bit(saved):
    data = bytearray((saved / "params.safetensors").read_bytes())
    data[-1] ^= 1
    (saved / "params.safetensors").write_bytes(data)
    assert "file params.safetensors: damaged" in fault(saved)


def test_swapped_files(saved, tmp_path):
    save(graph_model(seed=1), tmp_path / "other")
    shutil.copy(tmp_path / "other" / "params.safetensors", saved / "params.safetensors")
    assert "damaged, or of another model" in fault(saved)


def test_all_faults_at_once(saved):
    os.remove(saved / "constants.safetensors")
    edit(saved, set_("rewrites", [{"kind": "magic", "args": {}}]))
    edit(saved, set_("params", "more", [[1], "int8"]))
    edit(saved, set_("params", "layer.w", [[5, 3], "float32"]))
    text = fault(saved)
    for part in ("constants.safetensors: missing", "'magic'", "more: ", "layer.w: required"):
        assert part in text


def test_a_parameter_that_the_program_does_not_know(tmp_path):
    model = graph_model()
    save(model.replace(params={"w": jnp.ones((3, 5))}), tmp_path / "m")
    text = fault(tmp_path / "m")
    assert "layer.w: the program reads float32[3, 5], not among the parameters" in text
    assert "w: not read by the program" in text


# -- writing


def full(*args, **kwargs):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def untouched(tmp_path, x=X):
    """The model that was there is there, and nothing else."""
    assert os.listdir(tmp_path) == ["m"]
    np.testing.assert_array_equal(load(tmp_path / "m")(x), graph_model()(x))


@pytest.mark.parametrize("name", ["mkdir", "rename", "fsync"])
@pytest.mark.parametrize("after", [0, 1, 2, 3])
def test_a_full_disk_at_any_step(saved, tmp_path, monkeypatch, name, after):
    """Every call of a system function fails once; if it is not called so often, all is well."""
    real, calls = getattr(os, name), [0]

    def fails_once(*args, **kwargs):
        calls[0] += 1
        return full() if calls[0] == after + 1 else real(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(os, name, fails_once)
        try:
            save(graph_model(seed=1), tmp_path / "m", overwrite=True)
        except ArtefactError as error:
            failed = str(error)
        else:
            assert calls[0] <= after
            return
    assert "No space left on device" in failed
    if "cleaning up failed" in failed:  # after the rename: the new model stands
        np.testing.assert_array_equal(load(tmp_path / "m")(X), graph_model(seed=1)(X))
        return
    assert "nothing was left behind" in failed
    assert "GB are free there" in failed
    untouched(tmp_path)


@pytest.mark.parametrize("where", ["_safetensors.write", "write_bytes"])
def test_a_full_disk_while_writing(saved, tmp_path, monkeypatch, where):
    class Full:
        def __init__(self, file):
            self.file, self.left = file, 30

        def write(self, data):
            self.left -= len(data)
            return full() if self.left < 0 else self.file.write(data)

        def __enter__(self):
            return self

        def __exit__(self, *args):
            self.file.close()

        def __getattr__(self, name):
            return getattr(self.file, name)

    def limited(path, mode):
        file = open(path, mode)  # noqa: SIM115
        return Full(file) if mode == "wb" else file

    module = _safetensors if where == "_safetensors.write" else _directory
    monkeypatch.setattr(module, "open", limited, raising=False)
    for target, overwrite in (("m", True), ("new", False)):
        with pytest.raises(ArtefactError, match=r"not written: No space left .* free there"):
            save(graph_model(seed=1), tmp_path / target, overwrite=overwrite)
    monkeypatch.undo()
    untouched(tmp_path)


def test_an_interrupt_while_writing(saved, tmp_path, monkeypatch):
    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr("jaxinfer.io.artefact.write_bytes", interrupt)
    with pytest.raises(KeyboardInterrupt):
        save(graph_model(seed=1), tmp_path / "m", overwrite=True)
    untouched(tmp_path)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.EIO, "Input/output error")])
def test_the_old_model_comes_back_if_the_new_one_cannot_take_its_place(
    saved, tmp_path, monkeypatch, error
):
    real = os.rename

    def rename(source, target):
        if str(source).endswith(".tmp"):
            raise error
        real(source, target)

    monkeypatch.setattr(os, "rename", rename)
    with pytest.raises((KeyboardInterrupt, ArtefactError)):
        save(graph_model(seed=1), tmp_path / "m", overwrite=True)
    monkeypatch.undo()
    untouched(tmp_path)


def test_a_write_that_was_killed_is_not_accepted(tmp_path, monkeypatch):
    """The directory as it is just before its last file: what a killed process leaves."""
    seen = []

    def write_bytes(path, data):
        if path.name == "model.json":
            shutil.copytree(path.parent, tmp_path / "killed")
            seen.append(sorted(os.listdir(path.parent)))
        return _directory.write_bytes(path, data)

    monkeypatch.setattr("jaxinfer.io.artefact.write_bytes", write_bytes)
    save(graph_model(), tmp_path / "m")
    assert seen == [["constants.safetensors", "params.safetensors"]]
    assert "it has no model.json" in fault(tmp_path / "killed")


LIMITED = """
import resource, signal, sys
import jax.numpy as jnp
from jaxinfer.core.errors import ArtefactError
from jaxinfer.io.artefact import save
from tests.io.models import graph_model
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
model = graph_model(d=100, f=100)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
try:
    save(model, sys.argv[1])
except ArtefactError as error:
    print(error)
"""


def test_a_real_limit_on_the_size_of_files(tmp_path):
    """The system itself refuses the write half way, as a full disk does."""
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(tmp_path / "m")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "File too large" in done.stdout, done.stderr
    assert os.listdir(tmp_path) == []


def test_a_real_full_disk(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("mounting a small file system needs more rights")
    try:
        with pytest.raises(ArtefactError, match=r"No space left on device \(0\.00 GB are free"):
            save(graph_model(d=300, f=300), disk / "m")
        assert os.listdir(disk) == []
        save(graph_model(), disk / "m")
        assert load(disk / "m").params["layer.w"].shape == (3, 5)
    finally:
        gc.collect()  # JAX lets go of what it copied from at the next collection
        subprocess.run(["umount", str(disk)], check=True)


def test_a_directory_that_may_not_be_written(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "mkdir", refuse)
    with pytest.raises(ArtefactError, match=r"not written: .*Permission denied"):
        save(graph_model(), tmp_path / "m")


# -- fuzzing


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    path = tmp_path_factory.mktemp("original") / "m"
    with rule():
        save(graph_model(), path)
    return path


@FUZZ
@given(
    places=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=3),
    cut=st.floats(0, 4),
)
def test_damaged_model_json_is_an_error_of_ours_or_harmless(original, places, cut):
    path = original.parent / "fuzzed"
    shutil.copytree(original, path, dirs_exist_ok=True)
    data = bytearray((original / "model.json").read_bytes())
    for place, value in places:
        data[int(place * len(data))] = value
    (path / "model.json").write_bytes(data[: int(cut * len(data))])
    try:
        model = load(path)
    except JaxinferError:
        return
    assert np.asarray(model.params["layer.w"]).tobytes() == (
        np.asarray(graph_model().params["layer.w"]).tobytes()
    )


def paths_in(value, here=()):
    yield here
    if isinstance(value, (dict, list)):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from paths_in(inner, (*here, key))


VALUES = st.sampled_from(
    [None, True, -1, 0, 2**70, 0.5, float("nan"), float("inf"), "", "x", "../x", [], {}, [[]]]
    + [{"ref": "x"}, {"ref": []}, {"float": "1"}, [0, None], {"kind": "graph"}, "float32", "*"]
)


@FUZZ
@given(data=st.data())
def test_any_value_anywhere_is_an_error_of_ours_or_harmless(original, data):
    path = original.parent / "fuzzed values"
    shutil.copytree(original, path, dirs_exist_ok=True)
    contents = json.loads((original / "model.json").read_text())
    for _ in range(data.draw(st.integers(1, 2))):
        *keys, last = data.draw(st.sampled_from([p for p in list(paths_in(contents)) if p]))
        inner = contents
        for key in keys:
            inner = inner[key]
        if data.draw(st.booleans()):
            inner[last] = copy.deepcopy(data.draw(VALUES))
        else:
            del inner[last]
    (path / "model.json").write_text(json.dumps(contents))
    try:
        load(path)
    except JaxinferError:
        return
