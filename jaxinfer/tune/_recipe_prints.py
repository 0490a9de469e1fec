"""Fingerprints: whether a model is the one that a recipe was made for.

The program and the weights have a digest each. That of a converted model is of its graph as it is
written in ``model.json`` (without the source lines, which are the user's machine's own), the same
under every version of JAX; that of a Python function is of its jaxpr, which another version of JAX
may write otherwise, so its version stands beside it. The names, shapes and dtypes of inputs and
parameters are a third: they say what differs.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxinfer.core.leaves import leaves
from jaxinfer.core.model import Model
from jaxinfer.core.parts import split
from jaxinfer.core.program import FunctionProgram
from jaxinfer.core.trace import trace

_ADDRESS = re.compile(r"0x[0-9a-f]+")


class Prints(NamedTuple):
    """What a model is known by.

    Attributes:
      program: digest of what it computes, rewrites included.
      weights: digest of its parameters and of the arrays that its program holds.
      of: what ``program`` was read from: ``graph``, or ``jaxpr, jax 0.10.1``.
      inputs: name, shape and dtype of every input, in words.
      params: shape and dtype of every parameter, in words, by path.
    """

    program: str
    weights: str
    of: str
    inputs: tuple[str, ...]
    params: Mapping[str, str]


def prints_of(model: Model) -> Prints:
    """Return what a model is known by. Cost: one abstract trace of a function, one pass over the
    weights (on the host)."""
    named = leaves(model.params)
    held: Iterable[tuple[str, Any]] = model.program.arrays.items()
    if isinstance(model.program, FunctionProgram):
        text, consts = _jaxpr(model)
        held, of = ((str(number), each) for number, each in enumerate(consts)), "jaxpr, jax "
        of += jax.__version__
    else:
        rewrites = [{"kind": each.kind, "args": each.to_json()} for each in model.rewrites]
        data = {"kind": model.program.kind, **model.program.to_json(), "rewrites": rewrites}
        text, of = json.dumps(_unsourced(data), sort_keys=True, default=str), model.program.kind
    digest = hashlib.sha256(text.encode())
    for name, blob in sorted(model.program.blobs.items()):
        digest.update(name.encode() + hashlib.sha256(blob).digest())
    arrays, types = split(named)
    weights = hashlib.sha256(json.dumps(types, sort_keys=True, default=str).encode())
    for name, array in (*arrays.items(), *held):
        _add(weights, name, array)
    return Prints(
        digest.hexdigest()[:32],
        weights.hexdigest()[:32],
        of,
        tuple(map(str, model.inputs)),
        {path: f"{leaf.dtype}{list(leaf.shape)}" for path, leaf in named.items()},
    )


def _jaxpr(model: Model) -> tuple[str, list[Any]]:
    """Return the text of a function's jaxpr, without addresses, and the arrays that it holds."""
    if model.signature.open:
        return "open", []
    texts, consts = [], []
    for traced in trace(model):
        texts.append(_ADDRESS.sub("0x", str(traced.jaxpr)))
        consts += list(traced.consts)
    return "\n".join(texts), consts


def _unsourced(data: Any) -> Any:
    """Return plain data without the lines of source that nodes of a graph come from."""
    if isinstance(data, Mapping):
        return {
            name: _unsourced(value)
            for name, value in data.items()
            if not (name == "source" and isinstance(value, str))
        }
    return list(map(_unsourced, data)) if isinstance(data, (list, tuple)) else data


def _add(digest: Any, name: str, array: Any) -> None:
    if jax.numpy.issubdtype(array.dtype, jax.dtypes.prng_key):
        array = jax.random.key_data(array)
    host = np.ascontiguousarray(array)
    digest.update(f"{name}|{host.dtype}|{host.shape}|".encode())
    digest.update(host.reshape(-1).view(np.uint8))


def differences(want: Prints, got: Prints, most: int = 10) -> list[str]:
    """Return what of a model is not as it was: inputs and parameters by name, else the program."""
    found = []
    if want.inputs != got.inputs:
        found.append(f"inputs: required {'; '.join(want.inputs)}, got {'; '.join(got.inputs)}")
    missing = [path for path in want.params if path not in got.params]
    extra = [path for path in got.params if path not in want.params]
    found += [f"{path}: required {want.params[path]}, there is none" for path in missing[:most]]
    found += [f"{path}: not among the parameters of the recipe's model" for path in extra[:most]]
    other = [p for p in want.params if p in got.params and want.params[p] != got.params[p]]
    found += [f"{p}: required {want.params[p]}, got {got.params[p]}" for p in other[:most]]
    left = sum(max(0, len(each) - most) for each in (missing, extra, other))
    if left:
        found.append(f"and {left} more parameters")
    if not found and want.of == got.of and want.program != got.program:
        found.append(
            f"program: inputs and parameters are alike, but it computes something else "
            f"({want.of}: {want.program[:12]}, got {got.program[:12]})"
        )
    if not found and want.of.split(",")[0] != got.of.split(",")[0]:
        found.append(f"program: required one of kind {want.of}, got {got.of}")
    return found
