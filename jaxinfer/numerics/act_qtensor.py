"""ActQTensor: a quantized weight whose products quantize the other operand as well (W8A8).

    x q:      sx = max|x| / bound over what one result sums (dynamic), or given (static)
    product:  y = (sx * sw) * sum_k code(x / sx)_k * code(w)_k, summed in int32 or float32

Source: B. Jacob et al., Quantization and Training of Neural Networks for Efficient
Integer-Arithmetic-Only Inference, 2018, https://arxiv.org/abs/1712.05877; scales of each token:
Z. Yao et al., ZeroQuant, 2022, https://arxiv.org/abs/2206.01861.

What it does not do: activations with a zero point; where it is needed as an array it is the
weight alone.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from jaxinfer.core.array_types import ARRAY_TYPES, ArrayType
from jaxinfer.core.errors import InputError, listing
from jaxinfer.numerics.formats import FORMATS
from jaxinfer.numerics.qtensor import QTensor


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("weight", "scale"),
    meta_fields=("activation",),
)
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class ActQTensor(ArrayType):
    """A weight, and how the values that it multiplies are quantized.

    Attributes:
      weight: the quantized weight.
      scale: None: of each token, from the values themselves. Else static: f32 of the weight's
        rank, 1 along every axis but those of stacked layers.
      activation: number format of the values.
    """

    kind: ClassVar[str] = "ActQTensor"
    META: ClassVar[tuple[str, ...]] = ("activation",)
    weight: QTensor
    scale: Any
    activation: str

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the weight."""
        return self.weight.shape

    @property
    def dtype(self) -> Any:
        """Dtype that the weight stands for."""
        return self.weight.dtype

    def materialize(self) -> Any:
        """Return the weight as an array."""
        return self.weight.materialize()

    def validate(self, path: str) -> None:
        """Raise if the parts do not fit each other.

        Raises:
          InputError: all problems at once.
        """
        self.weight.validate(f"{path}.weight")
        problems = []
        if self.activation not in FORMATS or not FORMATS[self.activation].arithmetic:
            problems.append(f"activation: required a format with arithmetic, {self.activation!r}")
        if self.scale is not None:
            sizes = zip(self.scale.shape, self.shape, strict=False)
            fits = self.scale.ndim == self.ndim and all(s in (1, n) for s, n in sizes)
            if not fits or not jnp.issubdtype(self.scale.dtype, jnp.floating):
                problems.append(
                    f"scale: required floats of rank {self.ndim}, sizes of {self.shape} or 1, "
                    f"got {self.scale.dtype} {self.scale.shape}"
                )
        if problems:
            raise InputError(listing(f"{path}: the parts do not fit each other:", problems))

    def follow(
        self, weight: QTensor | None, scale: Callable[[Any], Any] = lambda s: s
    ) -> ActQTensor | None:
        """Return this with a rearranged weight, and its scale rearranged alike."""
        if weight is None:
            return None
        kept = None if self.scale is None else scale(self.scale)
        return dataclasses.replace(self, weight=weight, scale=kept)

    def __repr__(self) -> str:
        mode = "dynamic" if self.scale is None else "static"
        return f"ActQTensor({self.weight!r}, {mode} {self.activation})"


ARRAY_TYPES.register("ActQTensor")(ActQTensor)
