"""Signature: what a program takes. Binds a call's arguments to leaves and checks them.

All problems of a call (count, structure, rank, size, dtype) are collected and raised once,
each with the input's path, what is required and what was got.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxinfer.core import dtypes
from jaxinfer.core.errors import InputError, InputTypeError, listing
from jaxinfer.core.structure import Structure
from jaxinfer.core.symbols import Dim, bound_text, evaluate, is_name, solve


@dataclasses.dataclass(frozen=True)
class LeafSpec:
    """One leaf of the inputs: an array (shape, dtype), or a fixed Python value."""

    path: str
    shape: tuple[Dim, ...] = ()
    dtype: str = ""
    value: Any = None

    @property
    def is_array(self) -> bool:
        """Whether an array is passed here (else the value is fixed at conversion)."""
        return bool(self.dtype)

    def __str__(self) -> str:
        if not self.is_array:
            return f"{self.path}: fixed to {self.value!r}"
        return f"{self.path}: {self.dtype}[{', '.join(map(str, self.shape))}]"

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object."""
        if self.is_array:
            return {"path": self.path, "shape": list(self.shape), "dtype": self.dtype}
        return {"path": self.path, "value": self.value}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> LeafSpec:
        """Rebuild a leaf; raises ValueError on an unknown dtype or a bad shape."""
        if "dtype" not in data:
            return cls(str(data["path"]), value=data.get("value"))
        dtypes.dtype_of(data["dtype"])
        shape = tuple(data["shape"])
        if not all(isinstance(dim, str) or (isinstance(dim, int) and dim >= 0) for dim in shape):
            raise ValueError(f"{data['path']}: bad shape {shape}")
        return cls(str(data["path"]), shape, data["dtype"])


@dataclasses.dataclass(frozen=True)
class Signature:
    """The arguments of a program in order, their leaves, and the ranges of symbolic sizes.

    Attributes:
      names: names of the top-level arguments; the first ``positional`` were passed by
        position when the model was converted. Any may be passed either way.
      structures: one structure for each top-level argument.
      leaves: the leaves of all arguments, in order.
      symbols: range of each symbolic size, ``(low, high)``; high None is unbounded.
      open: nothing is known of the arguments (a function without example inputs): any number
        of positional ones, pytrees, goes through as it is.
    """

    names: tuple[str, ...]
    positional: int
    structures: tuple[Structure, ...]
    leaves: tuple[LeafSpec, ...]
    symbols: Mapping[str, tuple[int, int | None]] = dataclasses.field(default_factory=dict)
    open: bool = False

    def flatten(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Any]:
        """Bind a call to the leaves, in order.

        Raises:
          InputError: unknown, missing or doubled arguments, or another structure.
        """
        problems: list[str] = []
        if self.open:
            if kwargs:
                raise InputError("this model was made without example inputs: pass by position")
            return list(args)
        given = dict(zip(self.names, args, strict=False))
        if len(args) > len(self.names):
            problems.append(f"required at most {len(self.names)} inputs, got {len(args)}")
        for name, value in kwargs.items():
            if name in given:
                problems.append(f"{name}: given by position and by name")
            elif name not in self.names:
                problems.append(f"{name}: no such input")
            given[name] = value
        values: list[Any] = []
        start = 0
        for name, structure in zip(self.names, self.structures, strict=True):
            count = len(structure.paths())
            fixed = self.leaves[start : start + count]
            start += count
            if name in given:
                values += structure.flatten(given[name], name, problems)
            elif all(not leaf.is_array for leaf in fixed):
                values += [leaf.value for leaf in fixed]
            else:
                problems.append(f"{name}: missing ({', '.join(map(str, fixed))})")
        if problems:
            raise InputError(self._message(problems))
        return values

    def bind_sizes(self, values: Sequence[Any], *, strict: bool = False) -> dict[str, int]:
        """Check shapes and dtypes of bound leaves; return the value of each symbolic size.

        Args:
          values: one array or fixed value for each leaf, as ``flatten`` returns them.
          strict: require the exact float dtype (a call), not only its kind (``apply`` under
            a transform, where parameters and inputs may be bfloat16).

        Raises:
          InputError: a shape, size or fixed value does not fit.
          InputTypeError: only dtypes do not fit.
        """
        problems: list[str] = []
        wrong_types: list[str] = []
        sizes: dict[str, int] = {}
        origin: dict[str, str] = {}
        arrays = [(s, v) for s, v in zip(self.leaves, values, strict=True) if s.is_array]
        for spec, value in zip(self.leaves, values, strict=True):
            if not spec.is_array and not _same(value, spec.value):
                problems.append(
                    f"{spec.path}: fixed to {spec.value!r} at conversion, got {value!r}; "
                    "convert again with the value you want"
                )
        fits: list[tuple[LeafSpec, Any]] = []
        for spec, value in arrays:
            if not hasattr(value, "shape") or not hasattr(value, "dtype"):
                wrong_types.append(f"{spec}: got {type(value).__name__}, not an array")
                continue
            if len(value.shape) != len(spec.shape):
                problems.append(f"{spec}: got rank {len(value.shape)}, shape {_text(value.shape)}")
                continue
            fits.append((spec, value))
            if wrong := _dtype_problem(spec, value, strict):
                wrong_types.append(wrong)
            for dim, got in zip(spec.shape, value.shape, strict=True):
                if is_name(dim) and dim not in sizes:
                    sizes[str(dim)] = got
                    origin[str(dim)] = spec.path
        for spec, value in fits:
            for dim, got in zip(spec.shape, value.shape, strict=True):
                if isinstance(got, int) and not is_name(dim):
                    for name, size in solve(dim, got, sizes).items():
                        sizes[name], origin[name] = size, spec.path
        for spec, value in fits:
            for axis, (dim, got) in enumerate(zip(spec.shape, value.shape, strict=True)):
                want = evaluate(dim, sizes)
                if want is not None and isinstance(got, int) and want != got:
                    of = "" if isinstance(dim, int) else f" ({dim})"
                    of = f" ({dim} = {sizes[dim]} from {origin[dim]})" if dim in sizes else of
                    problems.append(
                        f"{spec}: axis {axis} must be {dim if isinstance(dim, int) else want}{of}, "
                        f"got shape {_text(value.shape)}"
                    )
        for name, (low, high) in self.symbols.items():
            got = sizes.get(name)
            if isinstance(got, int) and (got < low or (high is not None and got > high)):
                problems.append(
                    f"{origin[name]}: {name} = {got} is outside the sizes that were converted "
                    f"({bound_text(name, low, high)})"
                )
        if problems:
            raise InputError(self._message(problems + wrong_types))
        if wrong_types:
            raise InputTypeError(self._message(wrong_types))
        return sizes

    def _message(self, problems: Sequence[str]) -> str:
        wants = "The model takes: " + ("; ".join(map(str, self.leaves)) or "no inputs")
        return listing("the inputs do not fit the model:", problems, wants)

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object."""
        return {
            "names": list(self.names),
            "positional": self.positional,
            "structures": [structure.to_json() for structure in self.structures],
            "leaves": [leaf.to_json() for leaf in self.leaves],
            "symbols": {name: list(bounds) for name, bounds in self.symbols.items()},
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Signature:
        """Rebuild a signature.

        Raises:
          ValueError, KeyError, TypeError: the data is not what ``to_json`` writes.
        """
        structures = tuple(Structure.from_json(item) for item in data["structures"])
        leaves = tuple(LeafSpec.from_json(item) for item in data["leaves"])
        count = sum(len(structure.paths()) for structure in structures)
        if len(structures) != len(data["names"]) or count != len(leaves):
            raise ValueError("signature: names, structures and leaves do not agree")
        return cls(
            tuple(data["names"]),
            int(data["positional"]),
            structures,
            leaves,
            {name: (int(low), high) for name, (low, high) in data["symbols"].items()},
        )


def _same(a: Any, b: Any) -> bool:
    return type(a) is type(b) and (a == b or a != a)


def _text(shape: Sequence[Any]) -> str:
    return f"[{', '.join(map(str, shape))}]"


def _dtype_problem(spec: LeafSpec, value: Any, strict: bool) -> str:
    want, got = dtypes.canonical(spec.dtype), np.dtype(value.dtype)
    if dtypes.kind(want) != dtypes.kind(got):
        return f"{spec}: got {got.name}"
    accepted = (want.name, spec.dtype)  # float64 for float64: narrowed as the model is
    if strict and dtypes.kind(want) != "integer" and got.name not in accepted:
        return f"{spec}: got {got.name}; cast it first, for example x.astype({want.name!r})"
    return ""
