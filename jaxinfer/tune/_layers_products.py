"""Every matrix product and convolution of a model at some shapes: how often, of what, and FLOPs.

A walk over a trace that keeps, beside the products, where the values come from: whether a value
depends on the inputs, which value it is a rearrangement of, and whether it is a product's result
that only linear equations have touched. A product in a scan counts once for each trip.
"""

from __future__ import annotations

import dataclasses
import math
import weakref
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxinfer.core import dtypes
from jaxinfer.core._bodies import bodies
from jaxinfer.core._compat import bind, x64_scope
from jaxinfer.core.errors import InputError
from jaxinfer.core.flops import count
from jaxinfer.core.model import Model
from jaxinfer.core.program import x64_of
from jaxinfer.core.provenance import LAYOUT, Address, Site
from jaxinfer.core.trace import Traced, trace

PRODUCTS = ("dot_general", "conv_general_dilated", "ragged_dot_general", "ragged_dot")
_LINEAR = ("add", "sub", "mul", "div", "neg", "add_any")


@dataclasses.dataclass(frozen=True, eq=False)
class Product:
    """One equation that multiplies.

    Attributes:
      eqn, address: the equation and where it is.
      times: how often it runs in a call: the trips of the scans around it.
      flops: of all these times; 0 in a branch that this platform does not take.
      site: the parameter that it multiplies by; None: of activations, or of other values.
      certain: whether it surely runs in every call: not in a branch by data, nor in a while loop,
        its result is needed, and no product before it multiplies the same.
      counted: whether ``flops`` is in a model's sum: of branches by data only the dearest is.
      fixed: whether it depends on parameters alone.
      chained: whether folding may make one product of it and a neighbour.
      source: what its other operand is a rearrangement of: equal for products of one value.
    """

    eqn: Any
    address: Address
    times: int
    flops: int
    site: Site | None
    certain: bool
    counted: bool
    fixed: bool
    chained: bool
    source: Any

    @property
    def path(self) -> str | None:
        """Path of the parameter."""
        return None if self.site is None else self.site.path


class Products(NamedTuple):
    """The products of a model's one function, in program order.

    Attributes:
      traced: its trace.
      sites: everything that multiplies by a parameter or takes rows of it.
      all: every product, those of activations too.
    """

    traced: Traced
    sites: tuple[Site, ...]
    all: tuple[Product, ...]


_KNOWN: weakref.WeakKeyDictionary[Model, dict[Any, Products]] = weakref.WeakKeyDictionary()


def products_of(model: Model, arrays: Any) -> Products:
    """Return the products of a model at the shapes of one call.

    Args:
      model: of one component.
      arrays: the call's inputs, see ``example_of``.

    Raises:
      InputError: a model of several components, or inputs that do not fit.

    Cost: one abstract trace, kept for as long as the model is there.
    """
    if len(model.components) != 1:
        raise InputError(
            f"required a model of one function, got {', '.join(model.components)}; "
            "take one of model.components"
        )
    example = example_of(model, arrays)
    key = tuple((v.shape, str(v.dtype)) if hasattr(v, "dtype") else repr(v) for v in example)
    known = _KNOWN.setdefault(model, {})
    if key not in known:
        (traced,) = trace(model, example)
        sites = traced.uses.sites
        walker = _Walker({site.address: site for site in sites})
        inputs = traced.jaxpr.invars
        values = [_Value(dynamic=i >= len(traced.paths)) for i in range(len(inputs))]
        with x64_scope(x64_of(model.program)):
            found, _ = walker.walk(traced.jaxpr, values, (), 1, True)
        chained = walker.chained
        known[key] = Products(
            traced,
            sites,
            tuple(dataclasses.replace(p, chained=p.address in chained) for p in found),
        )
    return known[key]


def example_of(model: Model, arrays: Any) -> list[Any]:
    """Return the leaves of one call's inputs: shapes and dtypes, and the fixed values.

    Args:
      model: the model.
      arrays: arrays or ``ShapeDtypeStruct``s in the order of the model's array inputs, or a dict
        of these (or of bare shapes) by input path, or something with such ``arrays`` (a call of
        a data set), or with ``calls`` (a data set: its first call).

    Raises:
      InputError: another number of arrays than the model takes, or names that it does not have.
    """
    if hasattr(arrays, "calls"):
        arrays = arrays.calls[0]
    arrays = getattr(arrays, "arrays", arrays)
    with x64_scope(x64_of(model.program)):
        if model.signature.open:
            return [_struct(value) for value in arrays]
        specs = [spec for spec in model.inputs if spec.is_array]
        if isinstance(arrays, Mapping):
            missing = [spec.path for spec in specs if spec.path not in arrays]
            if missing or len(arrays) != len(specs):
                raise InputError(
                    f"required the inputs {', '.join(spec.path for spec in specs)}, "
                    f"got {', '.join(map(str, arrays))}"
                )
            arrays = [_named(arrays[spec.path], spec.dtype) for spec in specs]
        given = [_struct(value) for value in arrays]
        if len(given) != len(specs):
            raise InputError(f"required {len(specs)} arrays, got {len(given)}")
        filled = iter(given)
        return [next(filled) if spec.is_array else spec.value for spec in model.inputs]


def _named(value: Any, dtype: str) -> Any:
    if hasattr(value, "dtype"):
        return value
    return jax.ShapeDtypeStruct(tuple(value), dtypes.canonical(dtype))


def _struct(value: Any) -> jax.ShapeDtypeStruct:
    value = value if hasattr(value, "dtype") else jnp.asarray(value)
    if jnp.issubdtype(value.dtype, jax.dtypes.extended):
        return jax.ShapeDtypeStruct(value.shape, value.dtype)
    return jax.ShapeDtypeStruct(value.shape, dtypes.canonical(np.dtype(value.dtype).name))


class _Value:
    """What is known of a value; as an object it stands for itself and its rearrangements."""

    def __init__(self, dynamic: bool, linear: Address | None = None):
        self.dynamic = dynamic
        self.linear = linear  # the product that it is a linear function of


class _Walker:
    def __init__(self, sites: Mapping[Address, Site]):
        self.sites = sites
        self.chained: set[Address] = set()
        self.seen: set[Any] = set()
        self.kept: list[_Value] = []  # so that no other value gets the id of one that was seen

    def walk(
        self, jaxpr: Any, values: Sequence[_Value], address: Address, times: int, certain: bool
    ) -> tuple[list[Product], list[_Value]]:
        """Return the products of a jaxpr, and what its results are."""
        env: dict[Any, _Value] = dict(zip(jaxpr.invars, values, strict=True))
        still = _Value(dynamic=False)

        def read(var: Any) -> _Value:
            return still if hasattr(var, "val") else env.get(var, still)

        found: list[Product] = []
        needed = _needed(jaxpr)
        for index, eqn in enumerate(jaxpr.eqns):
            sure = certain and index in needed
            given = [read(var) for var in eqn.invars]
            at = (*address, index)
            if inside := bodies(eqn):
                own, outs = self._enter(eqn, inside, given, at, times, sure)
                found += own
            else:
                outs = [self._result(eqn, given, at)] * len(eqn.outvars)
                if eqn.primitive.name in PRODUCTS:
                    found.append(self._product(eqn, given, at, times, sure))
            env |= zip(eqn.outvars, outs, strict=True)
        return found, [read(var) for var in jaxpr.outvars]

    def _product(
        self, eqn: Any, given: Sequence[_Value], address: Address, times: int, certain: bool
    ) -> Product:
        site = self.sites.get(address)
        other = given[0 if site is None else 1 - site.side]
        if site is not None and other.linear is not None:
            self.chained |= {address, other.linear}
        shapes = [var.aval.shape for var in eqn.invars]
        same = (str(eqn.params), str(shapes), tuple(map(id, given)))
        certain = certain and same not in self.seen
        if certain:
            self.seen.add(same)
            self.kept += given
        return Product(
            *(eqn, address, times, times * flops_of(eqn), site, certain, True),
            fixed=not any(value.dynamic for value in given),
            chained=False,
            source=other,
        )

    def _result(self, eqn: Any, given: Sequence[_Value], address: Address) -> _Value:
        name = eqn.primitive.name
        dynamic = [value for value in given if value.dynamic]
        if name in LAYOUT and given:
            return given[0]
        if name == "dot_general" and address in self.sites:
            return _Value(bool(dynamic), linear=address)
        if name in _LINEAR and len(dynamic) == 1:
            return _Value(True, dynamic[0].linear)
        return _Value(bool(dynamic))

    def _enter(
        self,
        eqn: Any,
        inside: Sequence[Any],
        given: Sequence[_Value],
        address: Address,
        times: int,
        certain: bool,
    ) -> tuple[list[Product], list[_Value]]:
        name, params = eqn.primitive.name, eqn.params
        certain = certain and (name not in ("while", "cond") or by_platform(eqn))
        if name == "scan":
            times *= params["length"]
        elif name == "shard_map":
            times *= params["mesh"].size
        dynamic = any(value.dynamic for value in given)
        branches: list[list[Product]] = []
        outs = [_Value(dynamic) for _ in eqn.outvars]
        for number, body in enumerate(inside):
            values = [
                _Value(dynamic)
                if operand is None
                else _Value(given[operand].dynamic)
                if sliced
                else given[operand]
                for operand, sliced in zip(body.operands, body.sliced, strict=True)
            ]
            own, results = self.walk(body.jaxpr, values, (*address, number), times, certain)
            branches.append(own)
            if len(inside) == 1:
                for value, place in zip(results, body.results, strict=True):
                    if place is not None:
                        outs[place] = value
        if name == "cond":
            branches = _chosen(eqn, branches)
        return [product for own in branches for product in own], outs


def _needed(jaxpr: Any) -> set[int]:
    """Return the equations whose results are read, directly or not, or that have effects."""
    wanted = {var for var in jaxpr.outvars if not hasattr(var, "val")}
    found: set[int] = set()
    for index in range(len(jaxpr.eqns) - 1, -1, -1):
        eqn = jaxpr.eqns[index]
        if eqn.effects or any(var in wanted for var in eqn.outvars):
            found.add(index)
            wanted.update(var for var in eqn.invars if not hasattr(var, "val"))
    return found


def by_platform(eqn: Any) -> bool:
    """Return whether an equation's branches are chosen by platform, not by data."""
    return eqn.params.get("branches_platforms") is not None


def _chosen(eqn: Any, branches: list[list[Product]]) -> list[list[Product]]:
    """Return the branches with the FLOPs of those that are not taken, or not dearest, left out."""
    if by_platform(eqn):
        taken = _taken(eqn.params["branches_platforms"])
        return [
            own if number == taken else [dataclasses.replace(p, flops=0) for p in own]
            for number, own in enumerate(branches)
        ]
    costs = [sum(p.flops for p in own if p.counted) for own in branches]
    dearest = costs.index(max(costs))
    return [
        own if number == dearest else [dataclasses.replace(p, counted=False) for p in own]
        for number, own in enumerate(branches)
    ]


def _taken(platforms: Sequence[Sequence[str] | None]) -> int:
    """Return which branch by platform the default device takes."""
    here = jax.default_backend()
    names = {here, *(("cuda", "rocm") if here == "gpu" else ())}
    for number, each in enumerate(platforms):
        if each is None or names & set(each):
            return number
    return 0


def flops_of(eqn: Any) -> int:
    """Return the FLOPs of one product, run once, as ``core.flops`` counts them."""
    if eqn.primitive.name == "dot_general":
        (lhs, _), (out,) = eqn.invars, eqn.outvars
        (contracting, _), _ = eqn.params["dimension_numbers"]
        if not jnp.issubdtype(out.aval.dtype, np.complexfloating):
            sums = math.prod(lhs.aval.shape[axis] for axis in contracting)
            return 2 * math.prod(out.aval.shape) * sums
    avals = [jax.ShapeDtypeStruct(var.aval.shape, var.aval.dtype) for var in eqn.invars]
    return count(lambda *values: bind(eqn, values), *avals).flops
