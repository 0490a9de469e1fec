"""OpenVINO and NNCF are imported when they are needed, and without their telemetry."""

from __future__ import annotations

import contextlib
import importlib
import sys
import warnings
from collections.abc import Iterator
from typing import Any

from jaxinfer.core.errors import MissingExtraError


@contextlib.contextmanager
def without_telemetry() -> Iterator[None]:
    """Import without OpenVINO's telemetry, which would report the import to its makers."""
    name = "openvino_telemetry"
    absent = name not in sys.modules
    if absent:
        sys.modules[name] = None  # pyright: ignore[reportArgumentType]  (import fails: none is sent)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        if absent:
            del sys.modules[name]


def load_openvino(name: str = "openvino") -> Any:
    """Import OpenVINO, or NNCF, without telemetry.

    Raises:
      MissingExtraError: it is not installed.
    """
    extra = {"nncf": "openvino-int8"}.get(name, "openvino")
    try:
        with without_telemetry():
            found = importlib.import_module(name)
            if name == "openvino":
                importlib.import_module("openvino.opset15")
            return found
    except ImportError as error:
        raise MissingExtraError(
            f"{name} is not installed, or does not import ({error}): "
            f"pip install 'jaxinfer[{extra}]'"
        ) from error
