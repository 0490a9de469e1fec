"""What is known of an ONNX model before its data."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import onnx

from jaxinfer.core.errors import ConversionError
from jaxinfer_converters.onnx.call import Call
from jaxinfer_converters.onnx.read import File


class DynamicValueError(ConversionError):
    """A shape, axis or count that is to be static depends on the data.

    Attributes:
      inputs: the graph's inputs that it comes from.
    """

    def __init__(self, message: str, inputs: Sequence[str]):
        super().__init__(message)
        self.inputs = tuple(inputs)


@dataclasses.dataclass(frozen=True)
class Info:
    """What is said of a value: dtype name, and shape as far as known (None: rank unknown)."""

    dtype: str | None
    shape: tuple[int | str | None, ...] | None = None

    @property
    def rank(self) -> int | None:
        """The number of axes, if known."""
        return None if self.shape is None else len(self.shape)


@dataclasses.dataclass
class Model:
    """What all builders of a model share.

    Attributes:
      opsets: version by domain.
      infos: what shape inference says of each value.
      weights: tensors by name that are not small constants.
      user: names of the graph's own inputs.
    """

    file: File
    opsets: Mapping[str, int]
    infos: Mapping[str, Info]
    weights: dict[str, onnx.TensorProto] = dataclasses.field(default_factory=dict)
    user: set[str] = dataclasses.field(default_factory=set)
    producers: dict[str, Call] = dataclasses.field(default_factory=dict)
