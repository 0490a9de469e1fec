"""Reports as files: .html, .json or .md, by the name; there whole or not at all."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxinfer.core.errors import ArtefactError, InputError
from jaxinfer.tune.report import _figure, page, terminal
from jaxinfer.tune.report._json import dumps
from jaxinfer.tune.results import Results

SUFFIXES = (".html", ".json", ".md")


def check_target(path: str | os.PathLike[str]) -> Path:
    """Return the path if a report can be written there: ask before a search, not after.

    Raises:
      InputError: another suffix than .html, .json and .md.
      ArtefactError: no such folder, or a folder of that name.
      MissingExtraError: .html without matplotlib.
    """
    target = Path(path)
    if target.suffix not in SUFFIXES:
        raise InputError(
            f"report {target}: required a name that ends in {', '.join(SUFFIXES)}, got "
            f"{target.suffix or 'no suffix'!r}"
        )
    if target.is_dir() or not target.absolute().parent.is_dir():
        why = "is a folder" if target.is_dir() else "is in a folder that does not exist"
        raise ArtefactError(f"report {target}: {why}")
    if target.suffix == ".html":
        _figure.require_matplotlib()
    return target


def write_report(
    results: Results,
    path: str | os.PathLike[str],
    recipe_json: str | Mapping[str, Any] | None = None,
) -> Path:
    """Write a report, over one that is there.

    Args:
      results: of a search.
      path: the name says the kind: ``.html`` a page with pictures, ``.json`` all of the results
        (``Results.from_json`` reads it), ``.md`` the tables as text.
      recipe_json: for the page, to copy from it.

    Returns:
      The path.

    Raises:
      InputError: another suffix.
      ArtefactError: it cannot be written; nothing half-written stays.
      MissingExtraError: .html without matplotlib.
    """
    target = check_target(path)
    if target.suffix == ".html":
        text = page.html(results, recipe_json)
    elif target.suffix == ".json":
        text = dumps(results.to_json()) + "\n"
    else:
        text = f"```\n{terminal.text(results)}\n```\n"
    aside = target.with_name(f".{target.name[:100]}.{uuid.uuid4().hex}.tmp")
    try:
        with open(aside, "w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, target)
    except BaseException as error:  # also KeyboardInterrupt: nothing half-written may stay
        with contextlib.suppress(OSError):
            aside.unlink()
        if isinstance(error, OSError):
            raise ArtefactError(
                f"report {target}: not written: {error.strerror or error}"
            ) from error
        raise
    return target
