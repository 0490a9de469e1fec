"""A directory that is there whole or not at all: written aside, synced, renamed.

``replacing`` yields a hidden sibling directory (``.name.<random>.tmp``) and renames it to the
target when the block ends well; otherwise it is removed and the target is as it was. A process
killed while it replaces a target leaves the old one as ``.name.<random>.old`` at worst.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

from jaxinfer.core.errors import ArtefactError

_CHUNK = 1 << 20
_ATTEMPTS = 10
_TAKEN = (errno.ENOTEMPTY, errno.EEXIST)


@contextlib.contextmanager
def replacing(
    path: str | os.PathLike[str], overwrite: bool, is_ours: Callable[[Path], bool]
) -> Iterator[Path]:
    """Yield a directory to write to, which becomes ``path`` at the end.

    Args:
      path: the directory to make; a link is followed.
      overwrite: replace a directory that is there, if it is empty or ``is_ours`` says so.
      is_ours: whether a directory is of the kind that may be replaced.

    Raises:
      ArtefactError: ``path`` is taken, or the disk is full or read-only, and the like.
    """
    target = Path(os.path.realpath(path))
    aside = target.with_name(f".{target.name[:100]}.{uuid.uuid4().hex}.tmp")
    try:
        check_target(target, overwrite, is_ours)
        os.mkdir(aside)
        yield aside
        for folder, _, _ in os.walk(aside):
            sync(folder)
        _swap(aside, target, overwrite)
    except BaseException as error:  # also KeyboardInterrupt: nothing half-written may stay
        shutil.rmtree(aside, ignore_errors=True)
        if isinstance(error, OSError):
            raise ArtefactError(_explain(target, error)) from error
        raise


def check_target(target: Path, overwrite: bool, is_ours: Callable[[Path], bool]) -> None:
    """Raise ArtefactError if ``replacing`` would refuse the target."""
    if not target.parent.is_dir():
        raise ArtefactError(
            f"{target}: the directory {target.parent} does not exist; make it first"
        )
    if not target.name:
        raise ArtefactError(f"{target} cannot be replaced")
    if not os.path.lexists(target):
        return
    if not overwrite:
        raise ArtefactError(
            f"{target} exists already; choose another path or overwrite it "
            "(overwrite=True, --overwrite)"
        )
    if not target.is_dir() or (any(target.iterdir()) and not is_ours(target)):
        raise ArtefactError(
            f"{target} exists and is no model directory, so it is not overwritten; remove it first"
        )


def _swap(aside: Path, target: Path, overwrite: bool) -> None:
    """Rename ``aside`` to ``target``; what was there is moved away, and back on failure."""
    old = aside.with_suffix(".old")
    for attempt in range(_ATTEMPTS):
        try:
            if overwrite:
                with contextlib.suppress(FileNotFoundError):
                    os.rename(target, old)
            os.rename(aside, target)
            break
        except BaseException as error:  # also KeyboardInterrupt: the old one must survive
            if os.path.lexists(old):
                if os.path.lexists(target):  # another process has put its own there meanwhile
                    shutil.rmtree(old)
                else:
                    os.rename(old, target)
            taken = isinstance(error, OSError) and error.errno in _TAKEN
            if not (taken and overwrite and attempt + 1 < _ATTEMPTS):
                raise
    try:
        sync(target.parent)
        if os.path.lexists(old):
            shutil.rmtree(old)
    except OSError as error:
        raise ArtefactError(f"{target} is written; cleaning up failed: {error}") from error


def _explain(target: Path, error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        with contextlib.suppress(OSError):
            free = shutil.disk_usage(target.parent).free
            return (
                f"{target}: not written: {error.strerror} ({free / 1e9:.2f} GB are free there); "
                "nothing was left behind"
            )
    if error.errno in _TAKEN:
        return f"{target} was made by another process meanwhile; choose another path"
    return f"{target}: not written: {error}; nothing was left behind"


def sync(folder: str | os.PathLike[str]) -> None:
    """Have a directory's entries on the disk, where the system can."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_bytes(path: Path, data: bytes) -> str:
    """Write and sync a file; returns its SHA-256 in hex."""
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return hashlib.sha256(data).hexdigest()


def sha256(path: Path, advance: Callable[[int], None] | None = None) -> str:
    """Return the SHA-256 of a file in hex, read piece by piece; ``advance`` gets their bytes."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            if advance is not None:
                advance(len(chunk))
    return digest.hexdigest()
