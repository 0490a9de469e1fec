"""Which parameters are quantized, along which axes, and what is in the way of the others."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxinfer.core.array_types import is_array_type, nbytes
from jaxinfer.core.errors import InputError
from jaxinfer.core.provenance import Obstacle, Site, by_path
from jaxinfer.core.trace import Traced
from jaxinfer.numerics.calibration import observer
from jaxinfer.numerics.formats import format_of
from jaxinfer.numerics.packing import best_axis
from jaxinfer.transforms._collect import PRODUCTS
from jaxinfer.transforms.schemes import Scheme, scheme_of


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a rule, or the defaults, say of a parameter; see ``quantize``."""

    scheme: str
    group: int | None = None
    symmetric: bool = True
    granularity: str = "channel"
    scales: str = "absmax"
    activation: str = "dynamic"
    calibration: str = "absmax"
    dequantize: bool = False

    @property
    def named(self) -> Scheme:
        """The scheme."""
        return scheme_of(self.scheme)

    @property
    def weights(self) -> str:
        """Format of the weights."""
        return self.named.weights if self.symmetric else self.named.asymmetric

    @property
    def activations(self) -> str:
        """Format of the activations; "" if they stay."""
        return self.named.activations

    @property
    def grouped(self) -> int:
        """The group, 0 for none."""
        return self.named.group if self.group is None else self.group

    def check(self, options: Mapping[str, Any]) -> None:
        """Raise if a value is none that the setting can have.

        Raises:
          InputError: which, and what it can be.
        """
        scheme = self.named
        group = self.group
        if group is not None and (type(group) is not int or group < 0):
            raise InputError(f"group: required a whole number of at least 0, got {group!r}")
        for name in ("symmetric", "dequantize"):
            if type(getattr(self, name)) is not bool:
                raise InputError(f"{name}: required true or false, got {getattr(self, name)!r}")
        if not self.symmetric and not scheme.asymmetric:
            raise InputError(f"scheme {self.scheme}: {scheme.weights} has no zero point; "
                             "required symmetric=True")  # fmt: skip
        known = {
            "granularity": ("channel", "tensor"),
            "scales": ("absmax", "mse"),
            "activation": ("dynamic", "static"),
        }
        for name, values in known.items():
            value = getattr(self, name)
            if value not in values:
                near = difflib.get_close_matches(str(value), values, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                raise InputError(
                    f"{name}: required one of {', '.join(values)}, got {value!r}{hint}"
                )
        if self.granularity == "tensor" and self.grouped:
            raise InputError(
                f"granularity 'tensor' and a group of {self.grouped}: required one of them; "
                "group=0 takes the scheme's groups away"
            )
        if self.activation == "static" and not scheme.activations:
            raise InputError(
                f"activation 'static': {self.scheme} leaves activations as they are; "
                "required W8A8, W4A8 or FP8"
            )
        observer(self.calibration, **options)


@dataclasses.dataclass(frozen=True)
class Decision:
    """What is done with one parameter.

    Attributes:
      path, shape: of the parameter.
      status: as in an audit.
      why: what it becomes, or what is in the way.
      source: line of the user's code, where one is to blame.
      settings: its settings, where it is changed.
      axes: that share scales.
      tiled, group: the axis that is cut in groups, and their size (0: none is).
      static: whether its products' other operands are calibrated.
      alone: whether there is no product whose other operand could be quantized (embeddings).
    """

    path: str
    shape: tuple[int, ...]
    status: str
    why: str
    source: str = ""
    settings: Settings = Settings("W8A16")
    axes: tuple[int, ...] = ()
    tiled: int = 0
    group: int = 0
    static: bool = False
    alone: bool = False

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Decision:
        """Rebuild a decision."""
        given = dict(data)
        given["settings"] = Settings(**given["settings"])
        given["shape"], given["axes"] = tuple(given["shape"]), tuple(given["axes"])
        return cls(**given)


def decide(
    named: Mapping[str, Any],
    traces: Sequence[Traced],
    chosen: Mapping[str, Mapping[str, Any] | None],
) -> list[Decision]:
    """Return a decision for every parameter, in order.

    Args:
      named: leaves by path.
      traces: of all the model's functions.
      chosen: settings by path, None for one that a rule leaves as it is.
    """
    found: dict[str, tuple[list[Site], list[Obstacle]]] = {}
    for traced in traces:
        for path, (sites, obstacles) in by_path(traced.uses).items():
            known = found.setdefault(path, ([], []))
            known[0].extend(sites)
            known[1].extend(obstacles)
    return [
        _decide(path, leaf, *found.get(path, ([], [])), chosen[path])
        for path, leaf in named.items()
    ]


def _decide(
    path: str,
    leaf: Any,
    sites: Sequence[Site],
    obstacles: Sequence[Obstacle],
    chosen: Mapping[str, Any] | None,
) -> Decision:
    make = functools.partial(Decision, path, tuple(leaf.shape))
    if chosen is None:
        return make("ignored", "by a rule")
    if not jnp.issubdtype(leaf.dtype, jnp.floating):
        return make("unfit", f"{np.dtype(leaf.dtype).name}, not a float")
    if np.dtype(leaf.dtype).itemsize == 1:
        return make("unfit", f"{np.dtype(leaf.dtype).name} already")
    if is_array_type(leaf) and hasattr(leaf, "qvalue"):
        return make("unfit", "quantized already")
    if not sites and not obstacles:
        return make("unused", "the function does not read it")
    if math.prod(leaf.shape) == 0:
        return make("unfit", "no elements")
    settings = Settings(**chosen)
    # what another platform computes as a product is decoded where this one does not
    hard = [o for o in obstacles if not (o.alternative and sites)]
    if hard and not (settings.dequantize and leaf.ndim > 1):
        first = hard[0]
        where = ", ".join(sorted({o.primitive for o in hard}))
        if not sites and leaf.ndim < 2:
            return make("unfit", f"a vector, used by {where}", first.source)
        return make("blocked", f"needed as an array by {where}", first.source)
    axes, notes = _axes(leaf.ndim, sites)
    settings, kind = _for_uses(settings, sites)
    if settings.granularity == "tensor":
        seen = {axis for site in sites for axis in site.seen}
        axes = tuple(sorted(seen or range(leaf.ndim)))
    tiled, group = _group(leaf.shape, axes, settings, sites, notes)
    alone = not any(site.primitive in PRODUCTS for site in sites)
    static = settings.activation == "static" and bool(settings.activations) and not alone
    if obstacles:
        notes.append("decoded for " + ", ".join(sorted({o.primitive for o in obstacles})))
    what = settings.weights if settings.symmetric else f"{settings.weights} with zero points"
    along = f"scale along {', '.join(map(str, axes))}" if axes else "a scale for each element"
    parts = [f"{settings.scheme}: {what}", along]
    parts += [f"groups of {group}"] if group else []
    if settings.activations and not alone:
        parts.append(f"{settings.activations} activations, {settings.activation}")
    parts += [kind] if kind else []
    decision = make(
        "changed", ", ".join([*parts, *notes]), settings=settings, axes=axes, tiled=tiled,
        group=group, static=static, alone=alone,
    )  # fmt: skip
    after = _bytes_after(leaf, decision)
    if after >= nbytes(leaf):
        return make("unfit", f"would take {after} bytes, now {nbytes(leaf)}")
    return decision


def _axes(rank: int, sites: Sequence[Site]) -> tuple[tuple[int, ...], list[str]]:
    """Return the axes that share a scale: those that all products sum over."""
    indexed = {axis for site in sites for axis in site.indexed}
    products = [site for site in sites if site.primitive in PRODUCTS]
    if not products:
        seen = {axis for site in sites for axis in site.seen} or set(range(rank))
        return tuple(sorted(seen - indexed)), []
    common = set(products[0].contracting)
    for site in products[1:]:
        common &= set(site.contracting)
    notes = []
    if not common - indexed:
        common = set(products[0].contracting)
        others = [s.source for s in products if not set(s.contracting) >= common]
        if others:
            notes.append(f"decoded for the product of {others[0]}, which sums other axes")
    return tuple(sorted(common - indexed)), notes


def _for_uses(settings: Settings, sites: Sequence[Site]) -> tuple[Settings, str]:
    """Return the settings, by the name of the weights alone where there is no product."""
    if any(site.primitive in PRODUCTS for site in sites):
        return settings, ""
    alone = {"W8A8": "W8A16", "W4A8": "W4A16"}.get(settings.scheme, settings.scheme)
    kept = dataclasses.replace(settings, scheme=alone, activation="dynamic", group=settings.grouped)
    return kept, "gathered"


def _group(
    shape: Sequence[int],
    axes: Sequence[int],
    settings: Settings,
    sites: Sequence[Site],
    notes: list[str],
) -> tuple[int, int]:
    size = settings.grouped
    if not size:
        return 0, 0
    long = [axis for axis in axes if shape[axis] > 1]
    if len(long) != 1:
        if long:
            notes.append(f"no groups: {len(long)} contracting axes")
        return 0, 0
    (axis,) = long
    if size >= shape[axis]:
        return 0, 0
    if shape[axis] % size:
        padded = -(-shape[axis] // size) * size
        notes.append(f"axis {axis} padded from {shape[axis]} to {padded}")
    return axis, size


def _bytes_after(leaf: Any, decision: Decision) -> int:
    """Return the bytes of the codes and scales; from shapes alone."""
    fmt = format_of(decision.settings.weights)
    groups, sizes = [], []
    for axis, size in enumerate(leaf.shape):
        run = size if axis in decision.axes else 1
        if decision.group and axis == decision.tiled:
            run = decision.group
        groups.append(-(-size // run))
        sizes.append(groups[-1] * run)
    codes = math.prod(sizes)
    if fmt.bits == 4:
        axis = best_axis(sizes, groups)
        if axis is not None:
            codes = codes // sizes[axis] * -(-sizes[axis] // 2)
    scales = math.prod(groups) * max(4, np.dtype(leaf.dtype).itemsize)
    return codes + scales + (0 if decision.settings.symmetric else math.prod(groups))


def static_sites(traces: Sequence[Traced], paths: Sequence[str]) -> list[list[Site]]:
    """Return, for each function, the sites of some parameters."""
    wanted = set(paths)
    return [[s for s in traced.uses.sites if s.path in wanted] for traced in traces]
