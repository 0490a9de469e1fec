"""What each primitive computes in under a cast policy: the interpreter's rule.

The function is traced as it was before the cast, and evaluated on values whose *actual* dtype
may be narrower than the *declared* one of the trace:

    product      operands rounded to the compute dtype, summed in float32, rounded once to the
                 compute dtype; ``precision`` is reset, since it says how float32 is multiplied
                 (``_sums_in_float32`` says which are summed in float32 by XLA's own choice)
    elementwise  in the widest actual dtype of its float operands, at least the compute dtype
    move         in the widest actual dtype: nothing is rounded
    island       in the declared dtype, and gives it (softmax, norms, sums, exp, log, powers)

A primitive in no class (sorts, scatters, random bits, calls out of JAX) is an island. What is
declared in half precision, as an integer or as complex is left alone, and so is float64 unless
the policy asks for it.

Scalars follow: a literal that the narrow dtype holds exactly takes part in it; one that it
rounds (``0.1``, ``1 / sqrt(d)``) is applied in the declared dtype and the result rounded; one
that it cannot hold (the mask value -3.4e38, which bfloat16 rounds to -inf; an epsilon of 1e-12
in float16) keeps the result in the declared dtype. ``x * x`` is an island, as ``square`` is.

Loops carry, and branches return, the declared dtypes. Custom derivatives are inlined.
Source: the lists of torch's autocast (https://docs.pytorch.org/docs/stable/amp.html) and the
policies of jmp (https://github.com/google-deepmind/jmp); no code is taken.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxinfer.core.array_types import materialize
from jaxinfer.core.dtypes import dtype_of
from jaxinfer.core.interpret import Equation
from jaxinfer.core.provenance import Address
from jaxinfer.core.table import RuleTable

CLASSES: RuleTable[str] = RuleTable("cast class")
"""Class by primitive; what is not here is an island."""

_MEMBERS = {
    "product": "dot_general conv_general_dilated ragged_dot_general",
    "elementwise": (
        "add add_any sub mul div rem max min neg abs sign floor ceil round clamp tanh logistic "
        "eq ne lt le gt ge is_finite"
    ),
    "move": (
        "transpose reshape squeeze broadcast_in_dim slice dynamic_slice dynamic_update_slice "
        "concatenate pad rev gather split copy select_n stop_gradient reduce_window_max "
        "sharding_constraint reshard pvary pcast all_gather all_to_all ppermute"
    ),
    "island": (
        "exp exp2 expm1 log log1p erf erfc erf_inv sqrt rsqrt cbrt pow integer_pow square sin cos "
        "tan reduce_sum reduce_prod reduce_max reduce_min reduce_window_sum cumsum cumprod "
        "cumlogsumexp cummax cummin lgamma digamma"
    ),
}
for _name, _members in _MEMBERS.items():
    CLASSES.register(*_members.split())(_name)

_SPREADS = ("broadcast_in_dim", "reshape", "convert_element_type")


class Narrow(NamedTuple):
    """Where an equation rounds to float16: which operands, and whether its results."""

    operands: tuple[int, ...]
    results: bool


class Caster:
    """The interpreter's rule for one trace.

    Args:
      compute: name of the dtype of products.
      at: names of other dtypes for the products at some addresses.
      first: how many equations at the front only bring parameters to their declared dtypes:
        they are skipped.
      float64: whether what is declared float64 is cast as well.

    Attributes:
      narrowed: the equations that round to float16.
    """

    def __init__(
        self, compute: str, at: Mapping[Address, str], first: int = 0, float64: bool = False
    ):
        self.compute, self.at, self.first = dtype_of(compute), at, first
        self.wide = ("float32", "float64") if float64 else ("float32",)
        self.narrowed: dict[Address, Narrow] = {}
        self._constants: dict[Any, np.ndarray] = {}  # variables that spread one scalar

    def __call__(self, equation: Equation, values: Sequence[Any]) -> Sequence[Any] | None:
        """Evaluate an equation; None: as it stands."""
        eqn, address = equation.eqn, equation.address
        if is_first(address, self.first):
            return [values[0]]
        constants = self._constants_of(eqn, values)
        self._spread(eqn, constants)
        narrow = any(self._is_narrow(*pair) for pair in zip(eqn.invars, values, strict=True))
        if not narrow and CLASSES.get(equation.name) != "product":
            return None
        values = list(map(materialize, values))
        outs = self._choose(equation, values, constants)
        if outs is None:
            restored = _in_dtypes(eqn.invars, values, None)
            same = all(a is b for a, b in zip(values, restored, strict=True))
            return None if same else evaluate(eqn, restored)
        return outs

    def _choose(
        self, equation: Equation, values: list[Any], constants: Mapping[int, np.ndarray]
    ) -> list[Any] | None:
        eqn, name = equation.eqn, equation.name
        if name == "convert_element_type":
            (before,), (after,) = eqn.invars, eqn.outvars
            return values if before.aval.dtype == after.aval.dtype else None
        kind = CLASSES.get(name, "island")
        if kind == "product":
            return self._product(equation, values)
        if kind == "island" or (name == "mul" and eqn.invars[0] is eqn.invars[1]):
            return None
        outs = self._follow(eqn, values, constants, kind == "elementwise")
        if outs is not None and kind == "elementwise" and _any_float16(outs):
            self.narrowed[equation.address] = Narrow((), True)
        return outs

    def _product(self, equation: Equation, values: list[Any]) -> list[Any] | None:
        eqn = equation.eqn
        declared = [var.aval.dtype for var in eqn.invars[:2]]
        compute = dtype_of(self.at[equation.address]) if equation.address in self.at else None
        compute = self.compute if compute is None else compute
        widest = max(d.itemsize for d in declared)
        if not all(map(is_float, declared)) or not any(d.name in self.wide for d in declared):
            return None
        if compute.itemsize >= widest:
            return None
        if compute == jnp.float16:
            cast = tuple(i for i in (0, 1) if values[i].dtype != compute)
            self.narrowed[equation.address] = Narrow(cast, True)
        operands = [*(_to(value, compute) for value in values[:2]), *values[2:]]
        summed = np.dtype("float32") if _sums_in_float32(eqn, compute) else compute
        (out,) = evaluate(eqn, operands, precision=None, preferred_element_type=summed)
        result = eqn.outvars[0].aval.dtype
        return [_to(out, compute if result.name in self.wide else result)]

    def _follow(
        self, eqn: Any, values: list[Any], constants: Mapping[int, np.ndarray], arithmetic: bool
    ) -> list[Any] | None:
        """Evaluate in the widest actual dtype; None where that is the declared one."""
        floats = [i for i, var in enumerate(eqn.invars) if is_float(var.aval.dtype)]
        declared = eqn.invars[floats[0]].aval.dtype
        actual = [values[i].dtype for i in floats if i not in constants]
        if not actual or declared.name not in self.wide:
            return None
        dtype = functools.reduce(jnp.promote_types, actual, *((self.compute,) * arithmetic))
        if dtype.itemsize >= declared.itemsize:
            return None
        fits = [_fit(scalar, dtype) for scalar in constants.values()]
        if "no" in fits:
            return None
        if "rounded" not in fits:
            return evaluate(eqn, _in_dtypes(eqn.invars, values, dtype))
        outs = evaluate(eqn, _in_dtypes(eqn.invars, values, None))
        return [_to(out, dtype) if is_float(out.dtype) else out for out in outs]

    def _is_narrow(self, var: Any, value: Any) -> bool:
        declared = var.aval.dtype
        return is_float(declared) and getattr(value, "dtype", declared) != declared

    def _constants_of(self, eqn: Any, values: Sequence[Any]) -> dict[int, np.ndarray]:
        """Return the float operands that are one scalar, known while tracing."""
        found = {}
        for index, (var, value) in enumerate(zip(eqn.invars, values, strict=True)):
            if not is_float(var.aval.dtype):
                continue
            if not isinstance(value, jax.Array) and np.ndim(value) == 0:
                found[index] = np.asarray(value, var.aval.dtype)
            elif not hasattr(var, "val") and var in self._constants:
                found[index] = self._constants[var]
        return found

    def _spread(self, eqn: Any, constants: Mapping[int, np.ndarray]) -> None:
        for var in eqn.outvars:  # a body may be evaluated again, on other values
            self._constants.pop(var, None)
        (out, *_) = (*eqn.outvars, None)
        spreads = eqn.primitive.name in _SPREADS and 0 in constants
        if spreads and out is not None and is_float(out.aval.dtype):
            self._constants[out] = constants[0].astype(out.aval.dtype)


def _sums_in_float32(eqn: Any, compute: Any) -> bool:
    """Return whether a product is to give float32, to be rounded by an equation of its own.

    The others give the compute dtype at once; XLA sums them in float32 as well (measured on
    CPU: bit for bit the same, bfloat16 and float16, of 1536 and 4096 terms). They are

    * convolutions: the derivative of one that gives another dtype than its operands' is refused
      by jax before 0.10;
    * bf16 x bf16 = f32 with batch axes, the left operand contracted over other axes than its
      last: XLA on CPU has no kernel for some (jax 0.10.1, measured: 4 layouts of 36,
      "Unsupported element type for DotThunk"). ``vmap`` adds batch axes.
    """
    if eqn.primitive.name == "conv_general_dilated":
        return False
    if eqn.primitive.name != "dot_general" or compute != jnp.bfloat16:
        return True
    (contracting, _), (batch, _) = eqn.params["dimension_numbers"]
    rank = len(eqn.invars[0].aval.shape)
    return not batch and tuple(contracting) == tuple(range(rank - len(contracting), rank))


def is_first(address: Address, first: int) -> bool:
    """Return whether an equation is one of those at the front of the trace."""
    return len(address) == 1 and address[0] < first


def is_float(dtype: Any) -> bool:
    """Return whether a dtype is a real floating type (not a random key's)."""
    return jnp.issubdtype(dtype, jnp.floating)


def evaluate(eqn: Any, values: Sequence[Any], **changes: Any) -> list[Any]:
    """Evaluate an equation within its context, with some of its parameters changed."""
    params = eqn.primitive.get_bind_params({**eqn.params, **changes})
    out = eqn.primitive.bind(*values, **params)
    return list(out) if eqn.primitive.multiple_results else [out]


def _to(value: Any, dtype: Any) -> Any:
    if not isinstance(value, jax.Array):  # a literal: rounded here, not by an equation
        return np.asarray(value).astype(dtype)
    return value if value.dtype == dtype else lax.convert_element_type(value, dtype)


def _in_dtypes(variables: Sequence[Any], values: Sequence[Any], dtype: Any) -> list[Any]:
    """Return values with the floats in a dtype; by default in those of their variables."""
    return [
        _to(value, var.aval.dtype if dtype is None else dtype)
        if is_float(var.aval.dtype)
        else value
        for var, value in zip(variables, values, strict=True)
    ]


def _any_float16(values: Sequence[Any]) -> bool:
    return any(value.dtype == jnp.float16 for value in values)


def _fit(scalar: np.ndarray, dtype: Any) -> str:
    """Say how a dtype holds a scalar: ``exact``, ``rounded`` or, if it cannot, ``no``."""
    with np.errstate(all="ignore"):
        back = scalar.astype(dtype).astype(scalar.dtype)
    if back == scalar or np.isnan(scalar):
        return "exact"
    return "rounded" if np.isfinite(back) and back != 0 else "no"
