"""ONNX front end: ``.onnx`` files and ``ModelProto`` objects to a Graph.

The only folder that imports onnx, and it does so when a model is converted, not before.
"""

from __future__ import annotations

from typing import Any

from jaxinfer.core.errors import MissingExtraError
from jaxinfer.core.frontend import Options, Source


class OnnxFrontEnd:
    """Files that end in ``.onnx``."""

    name = "onnx"
    forms = ("model.onnx                     an ONNX model, its external data beside it",)

    def accepts(self, source: str) -> bool:
        """Return whether the source is named as an ONNX file."""
        return source.lower().endswith(".onnx")

    def open(self, source: str, options: Options) -> Source:
        """Open a model; see ``jaxinfer.core.frontend.Source``."""
        self._need()
        from jaxinfer_converters.onnx.sources import open_file

        return open_file(source, options)

    def convert(self, *args: Any, **kwargs: Any) -> Any:
        """Convert a model; see ``jaxinfer.from_onnx``."""
        self._need()
        from jaxinfer_converters.onnx.convert import from_onnx

        return from_onnx(*args, **kwargs)

    def _need(self) -> None:
        try:
            import onnx  # noqa: F401  (only whether it is there)
        except ModuleNotFoundError as error:
            if error.name != "onnx":
                raise
            raise MissingExtraError(
                "converting ONNX models needs onnx, which is not installed: "
                "pip install 'jaxinfer[onnx]'. A model that was converted and saved loads without "
                "it: jaxinfer.load(path)"
            ) from error


FRONT_END = OnnxFrontEnd()
