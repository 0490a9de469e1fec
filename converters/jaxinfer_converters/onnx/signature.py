"""The arguments of an ONNX model: shapes, symbolic sizes, sequences, what is fixed."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import onnx

from jaxinfer.core.errors import ConversionError, listing
from jaxinfer.core.signature import LeafSpec, Signature
from jaxinfer.core.structure import LEAF, Structure
from jaxinfer.core.symbols import Dim, evaluate
from jaxinfer_converters.onnx.read import dtype_name


@dataclasses.dataclass(frozen=True)
class Argument:
    """One input: its leaves, and whether they are one tensor, a sequence, or nothing."""

    name: str
    kind: str
    leaves: tuple[LeafSpec, ...]

    @property
    def structure(self) -> Structure:
        """The structure of the argument."""
        if self.kind == "sequence":
            return Structure("list", (LEAF,) * len(self.leaves))
        return LEAF


def arguments(
    graph: onnx.GraphProto, given: Mapping[str, Any], *, dynamic: bool = True
) -> tuple[list[Argument], dict[str, tuple[int, int | None]]]:
    """Return the arguments, and the range of each symbolic size.

    Args:
      graph: its inputs are the arguments (initializers are not among them).
      given: shapes by input name that replace the declared ones: integers and names; for a
        sequence a list of shapes; None for an optional that is left out.
      dynamic: keep symbolic sizes; else each is 1 unless given.

    Raises:
      ConversionError: inputs without a shape, and names that the model does not have; all.
    """
    problems: list[str] = []
    symbols: dict[str, tuple[int, int | None]] = {}
    made = []
    known = {item.name for item in graph.input}
    problems += [
        f"{name}: no such input; the model has {', '.join(sorted(known)) or 'none'}"
        for name in given
        if name not in known
    ]
    for item in graph.input:
        try:
            made.append(_argument(item, given, symbols, dynamic))
        except ConversionError as error:
            problems.append(str(error))
    if problems:
        raise ConversionError(
            listing(
                "the inputs of the model are not all clear:",
                problems,
                "Give shapes: inputs={'x': ('batch', 3, 224, 224)}, or on the command line "
                "--input 'x=float32[batch=2,3,224,224]' (names are dynamic sizes)",
            )
        )
    return made, symbols


def signature(made: Sequence[Argument], symbols: Mapping[str, Any]) -> Signature:
    """Return the signature of arguments in order."""
    return Signature(
        tuple(argument.name for argument in made),
        len(made),
        tuple(argument.structure for argument in made),
        tuple(leaf for argument in made for leaf in argument.leaves),
        dict(symbols),
    )


def _argument(
    item: onnx.ValueInfoProto,
    given: Mapping[str, Any],
    symbols: dict[str, tuple[int, int | None]],
    dynamic: bool,
) -> Argument:
    kind, name = item.type, item.name
    optional = kind.HasField("optional_type")
    if optional:
        kind = kind.optional_type.elem_type
    if optional and name in given and given[name] is None:
        return Argument(name, "none", (LeafSpec(name, value=None),))
    if kind.HasField("sequence_type"):
        inner = kind.sequence_type.elem_type
        if not inner.HasField("tensor_type"):
            raise ConversionError(f"{name}: a sequence of something other than tensors")
        if name not in given:
            raise ConversionError(
                f"{name}: a sequence, whose length is to be known: give the shape of each tensor, "
                f"inputs={{{name!r}: [(2, 3), (2, 3)]}}"
            )
        dtype = dtype_name(inner.tensor_type.elem_type, name)
        leaves = [
            LeafSpec(f"{name}.{i}", _shape(f"{name}.{i}", shape, symbols, dynamic), dtype)
            for i, shape in enumerate(given[name])
        ]
        return Argument(name, "sequence", tuple(leaves))
    if not kind.HasField("tensor_type"):
        which = kind.WhichOneof("value")
        raise ConversionError(f"{name}: an input of kind {which}; tensors and sequences are taken")
    dtype = dtype_name(kind.tensor_type.elem_type, name)
    if name in given:
        shape = given[name]
        if kind.tensor_type.HasField("shape"):
            _check_given(name, shape, kind.tensor_type.shape)
    elif kind.tensor_type.HasField("shape"):
        shape = [
            dim.dim_param or f"{_identifier(name)}_{axis}"
            if not dim.HasField("dim_value") or dim.dim_value < 0
            else dim.dim_value
            for axis, dim in enumerate(kind.tensor_type.shape.dim)
        ]
    else:
        raise ConversionError(f"{name}: {dtype}, but the model does not say its shape")
    return Argument(name, "tensor", (LeafSpec(name, _shape(name, shape, symbols, dynamic), dtype),))


def _check_given(name: str, given: Any, declared: onnx.TensorShapeProto) -> None:
    sizes = getattr(given, "shape", given)
    if len(sizes) != len(declared.dim):
        raise ConversionError(
            f"{name}: given a shape of {len(sizes)} axes, the model has {len(declared.dim)}"
        )
    for axis, (size, dim) in enumerate(zip(sizes, declared.dim, strict=True)):
        if dim.HasField("dim_value") and dim.dim_value >= 0 and size != dim.dim_value:
            raise ConversionError(
                f"{name}: given {size} for axis {axis}, the model has {dim.dim_value}"
            )


def _shape(
    name: str, shape: Any, symbols: dict[str, tuple[int, int | None]], dynamic: bool
) -> tuple[Dim, ...]:
    """Return a shape of integers, names and expressions of them; other text becomes a name."""
    out: list[Dim] = []
    for axis, dim in enumerate(getattr(shape, "shape", shape)):
        if isinstance(dim, str):
            if not dynamic:
                out.append(1)
                continue
            if not dim.isidentifier() and evaluate(dim, dict.fromkeys(symbols, 4)) is None:
                dim = f"{_identifier(name)}_{axis}"
            if dim.isidentifier():
                symbols.setdefault(dim, (0, None))
            out.append(dim)
        else:
            out.append(int(dim))
    return tuple(out)


def _identifier(name: str) -> str:
    text = "".join(c if c.isalnum() else "_" for c in name)
    return text if text.isidentifier() else f"x_{text}"
