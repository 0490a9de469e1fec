"""Bounds: how fast a call cannot be beaten to be on a device, without compiling anything.

    compute   sum over products of FLOPs / (margin * peak of the dtype that they compute in)
    memory    (weights at their width + inputs - what the caches hold) / (margin * bandwidth)
    bound     the larger of the two, divided by the number of devices

A bound discards candidates, so it must be safe: the peaks are the highest rates that any product
of that dtype reached in the micro-benchmark (convolutions may be faster than their FLOPs: cuDNN
has Winograd's algorithm), and the margin is for what other shapes and clocks have hidden: 1.3,
and as many times that as the machine had more to do than cores when it was measured. What may
not run in a call is left out: branches, loops by data, what no result needs, what is computed
twice, elementwise arithmetic, rows of gathered tables, products that folding may compute once or
join, attention by a kernel that skips what is masked.

Source of the model: S. Williams, A. Waterman, D. Patterson, Roofline, 2009,
https://doi.org/10.1145/1498765.1498785.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxinfer.core.leaves import leaves
from jaxinfer.core.model import Model
from jaxinfer.tune._layers_levels import Level, group_by_path, level_of, read_level
from jaxinfer.tune._layers_products import Product, Products, example_of, products_of
from jaxinfer.tune.candidate import Candidate
from jaxinfer.tune.device import DeviceProfile
from jaxinfer.tune.groups import Group

MARGIN = 1.3
"""How much faster than what was measured a device may be."""


def margin(device: DeviceProfile) -> float:
    """Return by how much the measured rates may be too low: more, if the machine was busy."""
    return MARGIN * max(1.0, (device.load or 0.0) / device.cores)


def bound_ms(
    model: Model,
    candidate: Candidate,
    groups: Sequence[Group],
    arrays: Any,
    device: DeviceProfile,
) -> float | None:
    """Return milliseconds that no call of a candidate can be below on a device.

    Args:
      model: the model before any of the candidate's transforms.
      candidate: what is asked about; its batch is that of ``arrays``.
      groups: of the model.
      arrays: the inputs of one call at the candidate's batch, or their shapes.
      device: its micro-benchmark.

    Returns:
      The bound; None where no rate was measured for a dtype that the candidate computes in (or
      for OpenVINO).

    Raises:
      InputError: levels that there are not, inputs that do not fit.
    """
    compute = _compute(model, candidate, groups, arrays, device)
    if compute is None:
        return None
    memory = 0.0
    if device.bandwidth:
        moved = _bytes(model, candidate, groups, arrays) - device.cache_bytes
        memory = max(0.0, moved) / (margin(device) * device.bandwidth)
    return 1e3 * max(compute, memory) / _devices(candidate.mesh)


def rate_ratio(level: str, device: DeviceProfile) -> float | None:
    """Return how much faster than in float32 products at a level can be on a device.

    The best rates of each kind of product (matrix product, convolution, matrix-vector product)
    are compared, and the largest ratio is taken, so a level far below 1 saves no time in products:
    it is for leaving levels out. Weights alone (``W8A16``) have the ratio of decoding and
    multiplying, at one shape, and (int8) that of a matrix-vector product.

    Args:
      level: of ``candidate.LEVELS``.
      device: the micro-benchmark.

    Returns:
      1 for float32; None for what was not measured, or is not supported. On a busy machine it
      may be off by much in either direction (``device.load``).

    Raises:
      InputError: there is no such level.
    """
    made = read_level(level)
    if level == "f32":
        return 1.0
    if level == "int8":
        fast, slow = device.openvino.get("int8"), max(device.matmul.values(), default=0.0)
        slow = device.matmul.get("float32", slow)
        return fast / slow if fast and slow else None
    found = []
    if made.scheme:
        found += _ratios(device, "levels", made.scheme, "matmul")
        raw = made.compute if made.compute != made.base else ""
        if raw:
            found += _ratios(device, "matmul", raw) + _ratios(device, "convolution", raw)
        elif made.scheme == "W8A16":
            found += _ratios(device, "matvec", "int8")
        if found and made.cast and not raw:
            return _times(max(found), rate_ratio(_short(made.cast), device))
    else:
        for kind in ("matmul", "convolution", "matvec"):
            found += _ratios(device, kind, made.cast)
    return max(found) if found else None


def _short(dtype: str) -> str:
    return {"bfloat16": "bf16", "float16": "f16"}[dtype]


def _times(ratio: float, other: float | None) -> float | None:
    return None if other is None else ratio * max(1.0, other)


def _ratios(device: DeviceProfile, kind: str, name: str, against: str = "") -> list[float]:
    """Return the best rate of one kind relative to the best of float32; none if not measured.

    The best of several shapes: at a single shape one disturbed measurement would decide.
    """
    found = device.rates.get(kind, {}).get(name, {})
    plain = device.rates.get(against or kind, {}).get("float32", {})
    if against:
        found, plain = (
            {k: each[k] for k in found.keys() & plain.keys()} for each in (found, plain)
        )
    return [max(found.values()) / max(plain.values())] if found and plain else []


def _compute(
    model: Model, candidate: Candidate, groups: Sequence[Group], arrays: Any, device: DeviceProfile
) -> float | None:
    """Return the seconds that the products take at least; None if a rate is not known."""
    found = products_of(model, arrays)
    of = group_by_path(groups)
    flops: dict[str, int] = {}
    for product in sure(found, candidate):
        group = of.get(product.path or "")
        level = read_level(level_of(candidate, group))
        if group is None and candidate.backend == "xla":  # NNCF quantizes such as well
            level = level._replace(scheme="")
        dtype = compute_dtype(product, level)
        flops[dtype] = flops.get(dtype, 0) + product.flops
    seconds = 0.0
    for dtype, count in flops.items():
        rate = peak_of(dtype, candidate, device)
        if rate is None:
            return None
        seconds += count / (margin(device) * rate)
    return seconds


def sure(found: Products, candidate: Candidate) -> list[Product]:
    """Return the products that every call runs, whatever folding does."""
    return [
        product
        for product in found.all
        if product.certain
        and product.flops
        and not (candidate.fold and (product.fixed or product.chained))
        and not (candidate.attention == "cudnn" and product.site is None)  # it skips what is masked
    ]


def compute_dtype(product: Product, level: Level) -> str:
    """Return the name of the dtype that a product computes in; of complex products that of
    float32, since they are made of such."""
    declared = [np.dtype(var.aval.dtype) for var in product.eqn.invars[:2]]
    if any(dtype.itemsize < 4 or dtype.kind in "iub" for dtype in declared):
        return max(declared, key=lambda dtype: dtype.itemsize).name  # as the function has it
    if level.compute == "float32" and not _highest(product):
        return "float32_default"
    return level.compute


def _highest(product: Product) -> bool:
    """Return whether a product asks for all of float32, as converted models do."""
    precision = product.eqn.params.get("precision")
    each = precision if isinstance(precision, tuple) else (precision,)
    return all(getattr(one, "name", str(one)) == "HIGHEST" for one in each)


def peak_of(dtype: str, candidate: Candidate, device: DeviceProfile) -> float | None:
    """Return the highest FLOP/s that was measured for a dtype on the candidate's back-end."""
    if candidate.backend == "openvino":
        return device.openvino.get(dtype.removesuffix("_default"))
    if dtype == "float32_default":
        both = [device.peak("float32_default"), device.peak("float32")]
        return max((rate for rate in both if rate), default=None)
    return device.peak(dtype)


def _bytes(model: Model, candidate: Candidate, groups: Sequence[Group], arrays: Any) -> float:
    """Return the bytes of what every call reads whole: weights of sure products, and inputs."""
    of = group_by_path(groups)
    paths = {p.path for p in sure(products_of(model, arrays), candidate) if p.path}
    named = leaves(model.params)
    total = 0.0
    for path in paths:
        width = np.dtype(named[path].dtype).itemsize * 8
        if path in of:
            width = min(width, read_level(level_of(candidate, of[path])).bits)
        total += named[path].size * width / 8
    given = [value for value in example_of(model, arrays) if hasattr(value, "dtype")]
    return total + sum(math.prod(v.shape) * np.dtype(v.dtype).itemsize for v in given)


def _devices(mesh: str) -> int:
    """Return how many devices ``"data=2,model=4"`` has; 1 for none."""
    sizes = [part.partition("=")[2] for part in mesh.split(",") if part]
    return math.prod(int(size) for size in sizes if size.strip().isdigit()) or 1
