"""The peers by name: which packages they need, and what they can be run on.

Their code is in the converters (``<front end>/peers.py``), because it imports torch and onnx. It is
found as front ends are: through the entry-point group ``jaxinfer.converters``.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import importlib.metadata
import importlib.util
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxinfer.core.errors import InputError, listing
from jaxinfer.core.program import GROUP
from jaxinfer.tune.bench.side import Adapter, Side

_TORCH = ("torch", "torch-compile", "torch-compile-max-autotune")
PEERS = (
    *_TORCH,
    *(f"{name}-{half}" for half in ("bf16", "fp16") for name in _TORCH),
    *("onnxruntime", "onnxruntime-int8", "openvino", "openvino-int8"),
)
"""Every peer that ``bench_model`` knows."""

DEFAULT = ("torch", "torch-compile", "torch-compile-max-autotune", "onnxruntime", "openvino")


class Origin(NamedTuple):
    """What the peers start from.

    Attributes:
      source: as for ``jaxinfer convert``; "" if it is not known.
      why: why it is not known.
    """

    source: str
    why: str = ""

    @property
    def is_onnx(self) -> bool:
        """Whether it is an ONNX file, not a torch module."""
        return self.source.lower().endswith(".onnx")


def origin(source: str | None, provenance: Mapping[str, Any]) -> Origin:
    """Return the source given, or what the provenance of a model directory says, if it is enough.

    Only ``timm:NAME`` is taken from the provenance. A checkpoint's place is not in it; and code
    (``package.module:factory``) is imported only where the user names it, never because a file
    does.
    """
    if source:
        return Origin(source)
    said = str(provenance.get("source", ""))
    if re.fullmatch(r"timm:[\w.]+", said):
        return Origin(said)
    known = f"the model directory says only {said!r}" if said else "the model directory names none"
    return Origin("", f"needs the original model: give its source (--source SRC); {known}")


def check_source(source: str) -> None:
    """Raise InputError for a source that names a file or directory which is not there."""
    named = source.startswith("timm:") or re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*", source)
    if not named and not Path(source).exists():
        raise InputError(
            f"source {source!r}: no such file or directory; it is as for jaxinfer convert: a "
            "checkpoint directory, timm:NAME, package.module:factory, model.pt2, model.onnx"
        )


def check_names(names: Sequence[str]) -> None:
    """Raise InputError for names that are no peers, with near misses; and for one given twice."""
    problems = []
    for name in dict.fromkeys(names):
        if name not in PEERS:
            near = difflib.get_close_matches(name, PEERS, n=3, cutoff=0.5)
            hint = f"; near: {', '.join(near)}" if near else ""
            problems.append(f"{name!r}{hint}")
        elif list(names).count(name) > 1:
            problems.append(f"{name!r} is there twice")
    if problems:
        raise InputError(listing("no such peer:", problems, f"Peers: {', '.join(PEERS)}."))


def peer_side(name: str, start: Origin, settings: Mapping[str, Any]) -> Side:
    """Return the side of a peer; ``missing`` or ``skipped`` says why it cannot run."""
    precision = name.rpartition("-")[2]
    side = Side(
        "jaxinfer.tune.bench._peers:open_peer",
        {**settings, "peer": name, "source": start.source},
        peer=True,
        precision=precision if precision in ("bf16", "fp16", "int8") else "f32",
    )
    if absent := _absent(name, start):
        text = f"needs {', '.join(absent)}: pip install 'jaxinfer[bench]'"
        return dataclasses.replace(side, missing=text)
    if not start.source:
        return dataclasses.replace(side, skipped=start.why)
    if start.is_onnx and name.startswith("torch"):
        return dataclasses.replace(
            side, skipped="runs torch modules, and the source is an ONNX file"
        )
    return side


def _with(side: Side, **changes: Any) -> Side:
    import dataclasses

    return dataclasses.replace(side, **changes)


def _absent(name: str, start: Origin) -> list[str]:
    """Return the packages that a peer needs and that are not installed."""
    needed = [] if start.is_onnx else ["torch"]
    if name.startswith("onnxruntime"):
        needed += ["onnxruntime", "onnx", *([] if start.is_onnx else ["onnxscript"])]
    if name.startswith("openvino"):
        needed += ["openvino", *(["onnx"] if start.is_onnx else [])]
    if name == "openvino-int8":
        needed.append("nncf")
    if start.source.startswith("timm:"):
        needed.append("timm")
    elif start.source and Path(start.source).is_dir():
        needed.append("transformers")
    return [package for package in needed if importlib.util.find_spec(package) is None]


def open_peer(settings: Mapping[str, Any]) -> Adapter:
    """Open a peer, in its own process.

    Raises:
      InputError: no front end of that kind is installed.
    """
    kind = "onnx" if str(settings["source"]).lower().endswith(".onnx") else "torch"
    for entry in importlib.metadata.entry_points(group=GROUP, name=kind):
        return importlib.import_module(f"{entry.module}.peers").open_peer(settings)
    raise InputError(f"no front end {kind!r} is installed (entry-point group {GROUP})")
