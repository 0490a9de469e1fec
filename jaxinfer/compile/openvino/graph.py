"""A jaxpr as an OpenVINO model: one rule for each primitive, constants computed beforehand.

    jaxpr -> [constants folded, calls inlined] -> openvino.Model in float32, int32 and bool

OpenVINO 2026.4 has a JAX front end of its own, but it takes neither ``gather`` nor ``log``,
``min`` or ``pad``, and gives ``select_n`` a wrong shape; so the graph is built here, from
OpenVINO's public operator set, by rules that are each tested against JAX.

* An equation of constants only is evaluated now, by JAX, and becomes a constant. An array of size
  zero is a constant too.
* bfloat16 and float16 are computed in float32: more exact than was asked, and counted.
* What has no exact counterpart is refused with the reason and the source line, all at once:
  64-bit types and uint32 (the CPU plugin computes them in 32 signed bits), arithmetic in 8 and 16
  bits (it does not wrap around), complex numbers, random bits.
* Values are kept in the order of axes in which they were made (``Value.perm``), and unbroadcast,
  until an equation needs them otherwise: a channels-last network has no transposes between its
  convolutions, which OpenVINO runs channels-first.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxinfer.compile.openvino.loading import load_openvino
from jaxinfer.compile.openvino.names import Names
from jaxinfer.core._bodies import bodies
from jaxinfer.core._compat import bind, source_line
from jaxinfer.core.errors import JaxinferError, listing

WIDE = ("float64", "int64", "uint64", "uint32")
NARROW = ("int8", "uint8", "int16", "uint16")
FLOATS = ("float32", "bfloat16", "float16")
TAKEN = (*FLOATS, *NARROW, "int32", "bool")


def writable(array: np.ndarray) -> np.ndarray:
    """Return the same memory as an array that numpy lets others write to.

    OpenVINO shares memory only of such; it reads inputs and constants, and never writes them.
    The caller keeps ``array`` alive.
    """
    if array.flags.writeable or array.nbytes == 0:
        return array
    memory: Any = (ctypes.c_char * array.nbytes).from_address(array.ctypes.data)
    return np.frombuffer(memory, array.dtype).reshape(array.shape)


class OpenVINOUnsupported(JaxinferError, NotImplementedError):
    """A program holds what OpenVINO cannot compute as JAX does.

    Attributes:
      missing: one text for each kind of equation: primitive, source line, reason.
    """

    def __init__(self, missing: Sequence[str]):
        self.missing = list(missing)
        super().__init__(
            listing(
                "OpenVINO cannot take this program:",
                self.missing,
                "Compile it with backend='xla', or change the lines named.",
            )
        )


class Refused(Exception):
    """A rule declines an equation; the text says why."""


class Value(NamedTuple):
    """A value of the graph.

    Attributes:
      out: OpenVINO's output. Its axis i is axis ``perm[i]`` of the value; an axis may have
        size 1 where the value repeats along it.
      shape: of the value.
      perm: None if the axes are in the value's own order.
    """

    out: Any
    shape: tuple[int, ...]
    perm: tuple[int, ...] | None = None


Operand = Any
"""A ``Value``, or a numpy array: a constant."""

Rule = Callable[["Graph", Any, Sequence[Operand]], "Operand | list[Operand]"]
RULES: dict[str, Rule] = {}
"""Rules by primitive."""

MOVES: set[str] = set()
"""Primitives that only move values: they take any dtype that OpenVINO stores."""


def rule(*names: str, moves: bool = False) -> Callable[[Rule], Rule]:
    """Register a rule for primitives."""

    def register(fn: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, fn))
        if moves:
            MOVES.update(names)
        return fn

    return register


def is_const(value: Operand) -> bool:
    """Return whether an operand is a constant."""
    return not isinstance(value, Value)


def float_dtype(dtype: Any) -> bool:
    """Return whether a dtype is a float that is computed in float32."""
    return str(np.dtype(dtype)) in FLOATS


class Graph:
    """Builds operators; collects what is refused, and what was folded.

    Attributes:
      op: OpenVINO's operator set.
      refused: texts with how often each came up.
      folded: primitives that were evaluated beforehand, with how often.
      narrow_floats: primitives whose bfloat16 or float16 is computed in float32.
      held: the arrays whose memory constants share.
      names: parameters of constants, and products by name.
      products: matrix products by their operands: ``weight``, or ``activation`` (attention).
    """

    def __init__(self, parent: Graph | None = None):
        self.op: Any = load_openvino().opset15
        self.parent = parent
        self.refused: Counter[str] = Counter() if parent is None else parent.refused
        self.folded: Counter[str] = Counter() if parent is None else parent.folded
        self.narrow_floats: Counter[str] = Counter() if parent is None else parent.narrow_floats
        self.products: Counter[str] = Counter() if parent is None else parent.products
        self.held: list[np.ndarray] = [] if parent is None else parent.held
        self.names = Names() if parent is None else parent.names
        self.parameters: list[Any] = []
        self._made: dict[Any, Any] = {}

    # Values.

    def constant(self, array: Any) -> Any:
        """Return OpenVINO's output of a constant; floats in float32."""
        array = np.asarray(array)
        key = (id(array), array.shape, array.strides)
        if array.size > 64 and key in self._made:
            return self._made[key][1]
        kept = array
        if float_dtype(array.dtype):
            array = array.astype(np.float32, copy=False)
        array = np.ascontiguousarray(array).reshape(array.shape)
        if array.size <= 64:
            return self.op.constant(array).output(0)
        out = self.op.constant(writable(array), shared_memory=True).output(0)
        self.held.append(array)
        self._made[key] = (kept, out)
        return out

    def transposed(self, matrix: Any) -> Any:
        """Return OpenVINO's output of the transpose of a constant, made once."""
        key = ("transposed", id(matrix))
        if key not in self._made:
            self._made[key] = (matrix, self.constant(np.ascontiguousarray(matrix.T)))
        return self._made[key][1]

    def ints(self, values: Any) -> Any:
        """Return a constant of int32: axes, sizes, indices."""
        return self.op.constant(np.asarray(values, np.int32)).output(0)

    def parameter(self, shape: Sequence[int], dtype: Any) -> Value:
        """Return a new input of the graph."""
        name = "float32" if float_dtype(dtype) else np.dtype(dtype).name
        made = self.op.parameter(list(shape), np.bool_ if name == "bool" else np.dtype(name))
        self.parameters.append(made)
        return Value(made.output(0), tuple(shape))

    def lazy(self, value: Operand, perm: tuple[int, ...] | None = None, rank: int = -1) -> Any:
        """Return an output in the order ``perm``, with size 1 where the value only repeats."""
        if is_const(value):
            array = np.asarray(value)
            if perm is not None and array.ndim == len(perm):
                array = array.transpose(perm)
            if array.size and 0 in array.strides:  # a repeated axis holds one value
                array = array[
                    tuple(slice(0, 1) if stride == 0 else slice(None) for stride in array.strides)
                ]
            return self.constant(array)
        if len(value.shape) != (len(perm) if perm is not None else rank) and not value.shape:
            return value.out
        return self._ordered(value, perm)

    def _ordered(self, value: Value, perm: tuple[int, ...] | None) -> Any:
        if value.perm == perm or len(value.shape) < 2:
            return value.out
        held = value.perm or tuple(range(len(value.shape)))
        want = perm or tuple(range(len(value.shape)))
        order = [held.index(axis) for axis in want]
        if order == sorted(order):
            return value.out
        key = ("transpose", value.out.get_node().get_name(), value.out.get_index(), tuple(order))
        if key not in self._made:
            self._made[key] = self.op.transpose(value.out, self.ints(order)).output(0)
        return self._made[key]

    def full(self, value: Operand, perm: tuple[int, ...] | None = None) -> Any:
        """Return an output in the order ``perm`` with every axis in its size."""
        if is_const(value):
            array = np.asarray(value)
            return self.constant(array if perm is None else array.transpose(perm))
        out = self._ordered(value, perm)
        want = value.shape if perm is None else tuple(value.shape[axis] for axis in perm)
        if tuple(out.shape) == want:
            return out
        key = ("broadcast", out.get_node().get_name(), out.get_index(), want)
        if key not in self._made:
            self._made[key] = self.op.broadcast(out, self.ints(want)).output(0)
        return self._made[key]

    def select(self, which: Any, yes: Any, no: Any) -> Any:
        """Return ``yes`` where ``which``, else ``no``; int32 by its bits.

        OpenVINO's own Select computes int32 in float32 where it is fused with a comparison.
        """
        op = self.op
        if yes.get_element_type() != op.constant(np.int32(0)).get_element_type():
            return op.select(which, yes, no)
        ones = op.negative(op.convert(which, "i32"))  # 0, or all bits
        return op.bitwise_or(op.bitwise_and(yes, ones), op.bitwise_and(no, op.bitwise_not(ones)))

    def elementwise(self, fn: Callable[..., Any], values: Sequence[Operand]) -> Value:
        """Apply a function of outputs to operands of one shape (or scalars)."""
        shape = max((np.shape(v) if is_const(v) else v.shape for v in values), key=len)
        perms = [v.perm for v in values if not is_const(v) and v.shape and v.perm is not None]
        perm = perms[0] if perms else None
        outs = [self.lazy(value, perm, len(shape)) for value in values]
        made = fn(*outs)
        out = made if hasattr(made, "get_node") else made.output(0)
        return Value(out, tuple(shape), perm)

    # Equations.

    def run(self, jaxpr: Any, consts: Sequence[Any], args: Sequence[Operand]) -> list[Operand]:
        """Build a jaxpr on operands; what is refused is replaced by an input, and recorded."""
        env: dict[Any, Operand] = dict(zip(jaxpr.invars, args, strict=True))
        env |= zip(jaxpr.constvars, map(host, consts), strict=True)

        def read(var: Any) -> Operand:
            return host(var.val) if hasattr(var, "val") else env[var]

        for eqn in jaxpr.eqns:
            values = [read(var) for var in eqn.invars]
            env |= zip(eqn.outvars, self._equation(eqn, values), strict=True)
        return [read(var) for var in jaxpr.outvars]

    def _equation(self, eqn: Any, values: Sequence[Operand]) -> Sequence[Operand]:
        name = eqn.primitive.name
        avals = [var.aval for var in eqn.outvars]
        if all(map(is_const, values)) and not getattr(eqn, "effects", None):
            try:
                return self._fold(eqn, values)
            except Exception as error:  # whatever JAX raises for it on the CPU
                lines = str(error).strip().splitlines() or [""]
                return self._refuse(eqn, f"{type(error).__name__}: {lines[0][:200]}")
        if all(_empty(aval) for aval in avals):
            return [np.zeros(aval.shape, aval.dtype) for aval in avals]
        if name in INLINED:
            (body,) = bodies(eqn)
            return self.run(body.jaxpr, body.consts, values)
        try:
            check_dtypes(eqn)
            found = RULES.get(name)
            if found is None:
                raise Refused("has no counterpart here")
            made = found(self, eqn, values)
        except Refused as refusal:
            return self._refuse(eqn, refusal)
        if any(str(aval.dtype) in ("bfloat16", "float16") for aval in avals):
            self.narrow_floats[name] += 1
        return made if isinstance(made, list) else [made]

    def _refuse(self, eqn: Any, reason: Any) -> list[Operand]:
        where = f" at {line}" if (line := source_line(eqn)) else ""
        self.refused[f"{eqn.primitive.name}{where}: {reason}"] += 1
        return [self._stand_in(var.aval) for var in eqn.outvars]

    def _fold(self, eqn: Any, values: Sequence[Any]) -> Sequence[Any]:
        self.folded[eqn.primitive.name] += 1
        paths = self.names.of(*values)
        return [self.names.mark(out, paths) for out in self._folded(eqn, values)]

    def _folded(self, eqn: Any, values: Sequence[Any]) -> Sequence[Any]:
        params = eqn.params
        if eqn.primitive.name == "broadcast_in_dim" and len(values) == 1:
            shape, where = params["shape"], params["broadcast_dimensions"]
            (array,) = map(np.asarray, values)
            sizes = [1] * len(shape)
            for axis, at in enumerate(where):
                sizes[at] = array.shape[axis]
            return [np.broadcast_to(array.reshape(sizes), shape)]
        if eqn.primitive.name == "transpose":
            return [np.asarray(values[0]).transpose(params["permutation"])]
        with on_cpu():
            return [host(out) for out in bind(eqn, list(values))]

    def _stand_in(self, aval: Any) -> Operand:
        if not hasattr(aval, "shape") or _empty(aval) or str(aval.dtype) not in TAKEN:
            shape = getattr(aval, "shape", ())
            return Value(self.op.parameter(list(shape), np.float32).output(0), tuple(shape))
        return self.parameter(aval.shape, aval.dtype)


def check_dtypes(eqn: Any) -> None:
    """Raise Refused if an equation's dtypes are not computed by OpenVINO as JAX does."""
    found = {str(getattr(var.aval, "dtype", "")) for var in (*eqn.invars, *eqn.outvars)}
    if wide := sorted(found.intersection(WIDE)):
        raise Refused(
            f"{', '.join(wide)}: OpenVINO's CPU plugin computes in 32 signed bits; make the model "
            "without x64, and without unsigned 32-bit arithmetic"
        )
    if other := sorted(found - set(TAKEN)):
        raise Refused(f"dtype {', '.join(other)} is not taken")
    narrow = sorted(found.intersection(NARROW))
    if narrow and eqn.primitive.name not in MOVES:
        raise Refused(
            f"{', '.join(narrow)}: OpenVINO does not compute 8- and 16-bit integers as JAX does; "
            "give the float model, and quantize= to compile_jaxpr"
        )


def host(value: Any) -> Any:
    """Return a constant as a numpy array (of a JAX array on the CPU: the same memory)."""
    if isinstance(value, np.ndarray):
        return value
    if hasattr(value, "dtype") and jnp.issubdtype(value.dtype, jax.dtypes.extended):
        return value
    if isinstance(value, (bool, int, float)):
        return np.asarray(value, jax.dtypes.canonicalize_dtype(np.asarray(value).dtype))
    return np.asarray(value)


def on_cpu() -> contextlib.AbstractContextManager[Any]:
    """Return a context in which JAX computes on its CPU, where it has one."""
    try:
        return jax.default_device(jax.local_devices(backend="cpu")[0])
    except RuntimeError:
        return contextlib.nullcontext()


def _empty(aval: Any) -> bool:
    return 0 in getattr(aval, "shape", ())


INLINED = {
    "jit",
    "closed_call",
    "core_call",
    "custom_jvp_call",
    "custom_vjp_call",
    "remat2",
    "checkpoint",
}
