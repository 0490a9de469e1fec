"""A model whose products can be put to a lower precision one group at a time, at run time.

    flags: f32[g]                     one for each group
    other operand of a product:       where(flag, fake_quantized(x), x)
    its result (casts):               where(flag, rounded(y), y)

One program serves all groups. The weights of a group are replaced by what the real transform
makes of them (``level_weights``), decoded: they are inputs of the program as well, so only those
of one group exist twice. What the products see is then, to float32 rounding, what they see in
the quantized model: its codes times its scales.

Where a group has a half type, its operands and results are rounded to it; elementwise arithmetic
between products stays in float32, whereas a cast model has it in the half type as well.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxinfer.core._compat import bind
from jaxinfer.core.array_types import materialize
from jaxinfer.core.dtypes import dtype_of
from jaxinfer.core.interpret import Equation, Interpreter
from jaxinfer.core.provenance import Address, Site
from jaxinfer.core.trace import Traced
from jaxinfer.numerics.formats import Format, decode, format_of
from jaxinfer.rules.qtensor import activation
from jaxinfer.transforms._quantize_plan import Decision, Settings, decide
from jaxinfer.transforms.quantize import quantize_leaf
from jaxinfer.transforms.schemes import scheme_of
from jaxinfer.tune._layers_levels import Level, settings_of

PRODUCTS = ("dot_general", "conv_general_dilated", "ragged_dot_general")
_BITS = {"bfloat16": (8, 7), "float16": (5, 10)}  # exponent, mantissa


def decisions(
    named: Mapping[str, Any], traced: Traced, paths: Sequence[str], level: Level
) -> dict[str, Decision]:
    """Return how the parameters that a level quantizes are quantized, as ``quantize`` decides.

    Args:
      named: leaves by path.
      traced: of the model.
      paths: of the parameters that are wanted.
      level: with a scheme.
    """
    wanted, settings = set(paths), settings_of(level)
    full = {**_DEFAULTS, **settings}
    chosen = {path: full if path in wanted else None for path in named}
    found = decide(named, [traced], chosen)
    return {each.path: each for each in found if each.status == "changed"}


_DEFAULTS = {
    field: getattr(Settings("W8A16"), field) for field in Settings.__dataclass_fields__
}  # those of quantize()


def level_weights(
    leaves: Mapping[str, Any], level: Level, decided: Mapping[str, Decision]
) -> dict[str, Any]:
    """Return parameters at a level, as arrays of their own dtypes.

    Args:
      leaves: the parameters to change, by path.
      level: cast first, then quantized where ``decided`` says how.
      decided: of ``decisions``.
    """
    found = {}
    for path, leaf in leaves.items():
        value = materialize(leaf)
        dtype = value.dtype
        if level.cast and jnp.issubdtype(dtype, jnp.floating):
            value = value.astype(dtype_of(level.cast))
        if path in decided:
            value = quantize_leaf(value, decided[path]).materialize()
        found[path] = value.astype(dtype)
    return found


class Switch:
    """The interpreter's rule, and which equations it has to be asked about.

    Args:
      sites: the products that can be switched, with the place of their group among the flags.
      level: that they are switched to.
      decided: how parameters are quantized.

    Attributes:
      left: sites inside ``shard_map``, whose activations are left as they are.
    """

    def __init__(
        self, sites: Mapping[Address, tuple[Site, int]], level: Level, decided: Mapping[str, Any]
    ):
        self.sites, self.level, self.decided = sites, level, decided
        self.places = {at[:end] for at in sites for end in range(len(at))}
        self.left: list[Site] = []
        self._format = format_of(_activations(level)) if _activations(level) else None

    def run(
        self, traced: Traced, flags: Any, params: Sequence[Any], inputs: Sequence[Any]
    ) -> list[Any]:
        """Evaluate a trace with flags.

        Args:
          traced: of the model.
          flags: f32[g], above 0 for on; traced or not.
          params, inputs: arrays, in the trace's order (a random key after the inputs).
        """
        interpreter = Interpreter(self._rule(flags), self._enter)
        return interpreter.run(traced.jaxpr, traced.consts, [*params, *inputs])

    def _enter(self, equation: Equation) -> bool:
        if equation.address not in self.places:
            return False
        if equation.name == "shard_map":  # flags would have to be one of its inputs
            inside = len(equation.address)
            self.left += [
                site
                for address, (site, _) in self.sites.items()
                if address[:inside] == equation.address
            ]
            return False
        return True

    def _rule(self, flags: Any) -> Callable[[Equation, Sequence[Any]], Sequence[Any] | None]:
        def rule(equation: Equation, values: Sequence[Any]) -> Sequence[Any] | None:
            if equation.address not in self.sites:
                return None
            site, group = self.sites[equation.address]
            given, on = list(values), flags[group] > 0
            quantized = self._format is not None and site.path in self.decided
            x = given[1 - site.side]
            if not jnp.issubdtype(x.dtype, jnp.floating):
                return None
            lower = self._rounded(x)
            if quantized:
                lower = _fake(lower, self._format, self._axes(equation, site), self.level.static)
            given[1 - site.side] = jnp.where(on, lower.astype(x.dtype), x)
            outs = bind(equation.eqn, given)
            return [jnp.where(on, self._rounded(out), out) for out in outs]

        return rule

    def _rounded(self, value: Any) -> Any:
        """Round to the half type; by an equation that XLA does not take for superfluous."""
        if not self.level.cast:
            return value
        exponent, mantissa = _BITS[self.level.cast]
        return lax.reduce_precision(value, exponent, mantissa)

    def _axes(self, equation: Equation, site: Site) -> tuple[int, ...]:
        """Return the axes of the other operand that share a scale, as ``rules.qtensor`` has it."""
        params, other = equation.params, 1 - site.side
        if equation.name == "dot_general":
            return tuple(params["dimension_numbers"][0][other])
        if equation.name == "conv_general_dilated":
            numbers = params["dimension_numbers"]
            return tuple(a for a in range(len(numbers.lhs_spec)) if a != numbers.lhs_spec[0])
        numbers = params["ragged_dot_dimension_numbers"]
        return tuple(numbers.dot_dimension_numbers[0][other])


def _activations(level: Level) -> str:
    return scheme_of(level.scheme).activations if level.scheme else ""


def _fake(x: Any, fmt: Format | None, axes: Sequence[int], static: bool) -> Any:
    """Return what the codes of values stand for; static: one scale, of all that passes at once."""
    assert fmt is not None
    codes, scale = activation(x, fmt, None, tuple(range(x.ndim)) if static else axes)
    if fmt.kind == "float":  # XLA would take both conversions for superfluous
        codes = lax.optimization_barrier(codes)
    return decode(codes, fmt) * scale


def switched(
    traced: Traced, sites: Mapping[Address, tuple[Site, int]], level: Level, decided: Any
) -> tuple[Switch, Callable[[Any, Sequence[Any], Sequence[Any]], list[Any]]]:
    """Return a switch and its function, jitted: flags, parameters, inputs -> outputs."""
    switch = Switch(sites, level, decided)
    return switch, jax.jit(lambda flags, params, inputs: switch.run(traced, flags, params, inputs))
