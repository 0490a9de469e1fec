"""The user's own cache of code: found again, and refused where somebody else could write to it."""

import os

import pytest

from jaxinfer.compile import _cache
from jaxinfer.compile.build import compile
from jaxinfer.core.errors import ArtefactError
from tests.compile import models


def origins(cache, **kwargs):
    return [bucket.origin for bucket in compile(models.mlp_model(), cache=cache, **kwargs).report()]


def test_code_is_found_again(tmp_path):
    assert origins(tmp_path / "own") == ["compiled"]
    assert origins(tmp_path / "own") == ["cache"]
    options = {"compiler_options": {"xla_cpu_enable_fast_math": False}}
    assert origins(tmp_path / "own", **options) == ["compiled"]
    assert (tmp_path / "own").stat().st_mode & 0o777 == 0o700


def test_code_from_the_cache_is_compared_with_the_reference(tmp_path):
    compile(models.mlp_model(), cache=tmp_path)
    check = compile(models.mlp_model(), cache=tmp_path).report()[0].check
    assert check["because"] == ["cache"]
    assert check["error"] < 1e-5


def test_damaged_entries_are_compiled_again(tmp_path):
    compile(models.mlp_model(), cache=tmp_path)
    (entry,) = tmp_path.glob("*.code")
    good = entry.read_bytes()
    for data in (good[:-1], good[:20], b"", b"x" * 100, good[:-1] + b"!"):
        entry.write_bytes(data)
        assert origins(tmp_path) == ["compiled again: the cache's entry is damaged"]
        assert origins(tmp_path) == ["cache"]


def test_an_entry_that_does_not_load_is_compiled_again_and_said(tmp_path):
    compile(models.mlp_model(), cache=tmp_path)
    (entry,) = tmp_path.glob("*.code")
    _cache.write(tmp_path, entry.stem, b"no pickle")
    assert origins(tmp_path)[0].startswith("compiled again: the cache's code does not load")
    assert origins(tmp_path) == ["cache"]


def test_folders_that_are_not_the_users_own(tmp_path):
    if os.name != "posix":
        pytest.skip("modes are of POSIX")
    tmp_path.chmod(0o777)
    with pytest.raises(ArtefactError, match="others may write to it"):
        compile(models.mlp_model(), cache=tmp_path)
    tmp_path.chmod(0o700)
    link = tmp_path / "link"
    link.symlink_to(tmp_path)
    with pytest.raises(ArtefactError, match="it is a link"):
        compile(models.mlp_model(), cache=link)
    compile(models.mlp_model(), cache=tmp_path)
    (entry,) = tmp_path.glob("*.code")
    entry.chmod(0o666)
    with pytest.raises(ArtefactError, match="others may write to it"):
        compile(models.mlp_model(), cache=tmp_path)


def test_somebody_else_s_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "getuid", lambda: tmp_path.stat().st_uid + 1)
    with pytest.raises(ArtefactError, match="does not belong to you"):
        compile(models.mlp_model(), cache=tmp_path)


def test_where_no_folder_can_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtefactError, match="no cache can be made there"):
        compile(models.mlp_model(), cache=tmp_path / "file" / "below")


def test_the_default_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXINFER_CACHE", str(tmp_path / "here"))
    assert origins(True) == ["compiled"]
    assert origins(True) == ["cache"]
    assert list((tmp_path / "here" / "code").glob("*.code"))


def test_a_full_disk_loses_only_the_entry(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    assert origins(tmp_path) == ["compiled; not kept in the cache: No space left on device"]
    assert list(tmp_path.iterdir()) == []
