"""FrontEnd: how the command line finds and converts a source it knows only by name.

Front ends are loaded from the entry-point group ``jaxinfer.converters``. One whose packages
are missing is skipped, and named in the error if no other takes the source.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from jaxinfer.core.errors import ConversionError, JaxinferError, MissingExtraError, listing
from jaxinfer.core.model import Model
from jaxinfer.core.program import GROUP

Progress = Callable[[str, int, int], None]


@dataclasses.dataclass(frozen=True)
class Options:
    """What a user may say of a source.

    Attributes:
      weights: a weight file that replaces the source's own weights.
      inputs: example inputs as text, ``"float32[batch=2,3,224,224]"`` or
        ``"ids=int64[batch=2,seq=8]"``; a named size is dynamic.
      dynamic: ``"auto"`` (batch and sequence sizes where the model allows) or ``"none"``.
      class_name: the class to build from a checkpoint, if not the one it names.
      dtype: float dtype to build the module in (None: as the source says).
      x64: compute in 64 bits wherever the source does.
      seed: of example inputs, and of random weights where there are none.
      layout: of images, ``"NCHW"``, ``"NHWC"`` or ``"keep"``; see ``from_torch``.
      scan_layers: run repeated blocks in one scan; see ``from_torch``.
    """

    weights: str | None = None
    inputs: tuple[str, ...] = ()
    dynamic: str = "auto"
    class_name: str | None = None
    dtype: str | None = None
    x64: bool = False
    seed: int = 0
    layout: str = "NCHW"
    scan_layers: bool = False


@dataclasses.dataclass(frozen=True)
class Source:
    """An opened source.

    Attributes:
      label: what it is, for people: ``"BertModel from minilm/"``.
      convert: ``convert(progress) -> Model``; ``progress(leaf name, done, total)``.
      examples: ``examples(seed) -> (args, kwargs)`` of numpy arrays that the model accepts.
      reference: ``reference(args, kwargs, state) -> flat list of numpy outputs`` by the
        original framework, then the new values of the buffers and inputs named in ``state``.
      notes: lines the user should know (random weights, a fallback taken).
    """

    label: str
    convert: Callable[[Progress | None], Model]
    examples: Callable[[int], tuple[tuple[Any, ...], dict[str, Any]]]
    reference: Callable[[Sequence[Any], Mapping[str, Any], Sequence[str]], list[np.ndarray]]
    notes: tuple[str, ...] = ()


class FrontEnd(Protocol):
    """What an entry point of the group provides, unless it is a program kind."""

    name: str
    forms: tuple[str, ...]

    def accepts(self, source: str) -> bool:
        """Return whether this front end takes ``source`` (cheap: reads no weights)."""
        ...

    def open(self, source: str, options: Options) -> Source:
        """Open a source that ``accepts`` took."""
        ...


def open_source(source: str, options: Options) -> Source:
    """Open a source with the first front end that accepts it.

    Raises:
      MissingExtraError: a front end that might take it lacks a package.
      ConversionError: none takes it; all accepted forms are listed.
    """
    forms: list[str] = []
    missing: list[str] = []
    for entry in sorted(importlib.metadata.entry_points(group=GROUP), key=lambda e: e.name):
        try:
            front_end = entry.load()
        except JaxinferError:
            raise
        except ImportError as error:
            missing.append(f"{entry.name}: {error} (pip install 'jaxinfer[{entry.name}]')")
            continue
        if not hasattr(front_end, "accepts"):
            continue  # a program kind
        if front_end.accepts(source):
            return front_end.open(source, options)
        forms += front_end.forms
    if missing:
        raise MissingExtraError(
            listing(f"cannot open {source!r}; front ends that are not usable here:", missing)
        )
    raise ConversionError(listing(f"cannot open {source!r}; SRC is one of:", forms))
