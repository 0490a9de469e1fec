"""The user's own cache of native code: ``~/.cache/jaxinfer`` or ``$JAXINFER_CACHE``.

An entry is looked up by the digest of the lowered program, the compiler's options and the key
of the process (``_key``). Code is executed from it, so the folder must belong to the user, and
nobody else may write to it; else it is refused. An entry is its own header: length and digest
are checked before anything is unpickled.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import stat
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxinfer.compile._key import environment
from jaxinfer.core.errors import ArtefactError

_MAGIC = b"jaxinfer-code-1\n"


def open_folder(cache: bool | str | os.PathLike[str]) -> Path | None:
    """Return the folder of the cache, made if it is not there; None for False.

    Raises:
      ArtefactError: it belongs to somebody else, others may write to it, or it is no directory.
    """
    if cache is False:
        return None
    if cache is True:
        home = os.environ.get("JAXINFER_CACHE") or "~/.cache/jaxinfer"
        folder = Path(os.path.expanduser(home)) / "code"
    else:
        folder = Path(cache)
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = os.lstat(folder)
    except OSError as error:
        raise ArtefactError(f"{folder}: no cache can be made there: {error.strerror}") from error
    _require_own(folder, found, stat.S_ISDIR(found.st_mode))
    return folder


def _require_own(path: Path, found: os.stat_result, right_kind: bool) -> None:
    own = not hasattr(os, "getuid") or found.st_uid == os.getuid()
    if not own or not right_kind or found.st_mode & 0o022:
        what = "does not belong to you" if not own else "others may write to it"
        what = what if right_kind else "it is a link or of another kind"
        raise ArtefactError(
            f"{path}: code is not run from this cache: {what}; remove it, or make it yours alone "
            f"(chmod 700 {path.parent if path.is_file() else path})"
        )


def key_of(lowered: Any, options: Mapping[str, Any], devices: Sequence[Any]) -> str:
    """Return the name of an entry: the digest of all that its code depends on."""
    about = json.dumps([environment(devices), sorted(options.items())], default=str)
    text = lowered.as_text()
    return hashlib.sha256(f"{about}\n{text}".encode()).hexdigest()


def read(folder: Path, key: str) -> tuple[bytes | None, str]:
    """Return the bytes of an entry, or None and what is wrong with it; empty if there is none.

    Raises:
      ArtefactError: the file is not the user's own.
    """
    path = folder / f"{key}.code"
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0))
    except FileNotFoundError:
        return None, ""
    except OSError as error:
        return None, f"the cache's entry cannot be read: {error.strerror}"
    with open(descriptor, "rb") as file:
        found = os.fstat(file.fileno())
        _require_own(path, found, stat.S_ISREG(found.st_mode))
        data = file.read()
    head, length = len(_MAGIC) + 32, len(data)
    body = data[head:]
    whole = length >= head and data.startswith(_MAGIC)
    if not whole or hashlib.sha256(body).digest() != data[len(_MAGIC) : head]:
        return None, "the cache's entry is damaged"
    return body, ""


def write(folder: Path, key: str, data: bytes | None) -> str:
    """Write an entry aside and rename it; returns why it is not kept, empty if it is."""
    if data is None:
        return "the platform does not give its code away"
    name = None
    try:
        handle, name = tempfile.mkstemp(dir=folder, suffix=".tmp")
        with open(handle, "wb") as file:
            file.write(_MAGIC + hashlib.sha256(data).digest() + data)
        os.replace(name, folder / f"{key}.code")
    except OSError as error:
        if name is not None:
            with contextlib.suppress(OSError):
                os.unlink(name)
        return str(error.strerror or error)
    return ""
