"""Calibration: the ranges of what parameters are multiplied by, over batches of data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax

from jaxinfer.core.errors import InputError, listing
from jaxinfer.core.leaves import leaves
from jaxinfer.core.model import Model
from jaxinfer.core.provenance import Site
from jaxinfer.core.trace import trace
from jaxinfer.numerics.calibration import merge, observer, problems
from jaxinfer.transforms._collect import PRODUCTS, collect
from jaxinfer.transforms._data import batches


def calibrate(
    model: Model,
    *data: Any,
    sites: Sequence[Sequence[Site]] | None = None,
    methods: Mapping[str, str] | str = "absmax",
    options: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return statistics of what each parameter is multiplied by.

    A pure function of parameters and a batch, jitted once for each shape of a batch; the
    statistics of batches are merged in their order.

    Args:
      model: of one component.
      data: one iterable of batches (see ``Transform``).
      sites: for each function the products to observe; None: all.
      methods: the observer's name, or one for each path.
      options: of the method.

    Returns:
      {path: statistics}; for a parameter that a scan slices, with the layers first. Products
      that no batch reaches have empty statistics, those inside ``shard_map`` none.

    Raises:
      InputError: no batches, a batch that does not fit, values that are not finite (which
        parameter, which batch).

    Example:
      >>> import jax.numpy as jnp, jaxinfer as ji
      >>> model = ji.from_function(lambda p, x: x @ p["w"], {"w": jnp.eye(2)}, (jnp.ones((1, 2)),))
      >>> float(calibrate(model, [jnp.array([[1.0, -3.0]])])["w"].low[0])
      -3.0
    """
    if len(model.components) != 1:
        raise InputError(
            "calibrate: a model of several components "
            f"({', '.join(model.components)}) is not calibrated; use dynamic activations"
        )
    params = list(leaves(model.params).values())
    compiled: dict[Any, Any] = {}
    total: dict[str, Any] = {}
    faults: list[str] = []
    for number, batch in enumerate(batches(model, data, "calibrate")):
        arrays = [value for value in batch if hasattr(value, "dtype")]
        key = tuple((value.shape, value.dtype.name) for value in arrays)
        if key not in compiled:
            compiled[key] = _statistics(model, batch, sites, methods, options)
        seen = compiled[key](params, arrays)
        for path, stats in seen.items():
            faults += problems(stats, f"{path}, input, batch {number}", empty=False)
            # a batch of other shapes may take another way, past some products
            total[path] = merge(total[path], stats) if path in total else stats
    if faults:
        raise InputError(listing("calibrate: activations:", faults[:20]))
    return total


def _statistics(
    model: Model,
    batch: Sequence[Any],
    sites: Sequence[Sequence[Site]] | None,
    methods: Mapping[str, str] | str,
    options: Mapping[str, Any] | None,
) -> Any:
    """Return the jitted function from parameters and inputs to statistics."""
    if model.program.random:
        raise InputError("calibrate: a model that samples is not calibrated; use dynamic scales")
    (traced,) = trace(model, batch)
    paths = None if sites is None else {site.path for each in sites for site in each}
    wanted = [
        site
        for site in traced.uses.sites
        if site.primitive in PRODUCTS and (paths is None or site.path in paths)
    ]
    name = lambda path: methods if isinstance(methods, str) else methods[path]
    functions = []
    for method in sorted({name(site.path) for site in wanted}):
        own = [site for site in wanted if name(site.path) == method]
        functions.append(collect(traced, own, observer(method, **(options or {}))))

    def every(params: Sequence[Any], arrays: Sequence[Any]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for fn in functions:
            found |= fn(params, arrays)
        return found

    return jax.jit(every)


def ranges_of(stats: Any, settings: Any, options: Mapping[str, Any] | None) -> tuple[Any, Any]:
    """Return (low, high) of statistics, f32 of their shape.

    Raises:
      InputError: statistics of another method than the settings'.
    """
    given = dict(options or {})
    if settings.calibration == "mse":
        given.setdefault("levels", 255)
    try:
        return observer(settings.calibration, **given).bounds(stats)
    except AttributeError as error:
        raise InputError(
            f"quantize: statistics of {type(stats).__name__} are not those of the method "
            f"{settings.calibration!r}; calibrate with methods={settings.calibration!r}"
        ) from error
