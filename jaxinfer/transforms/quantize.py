"""Quantize: parameters become codes and scales, and the products with them integer products.

    init    plans (which parameter, along which axes, in the way of what) and, for static
            activations, calibrates: the only place that sees data
    update  replaces leaves by ``QTensor`` (weights alone) or ``ActQTensor`` (activations too),
            one at a time; how products are computed on them is ``jaxinfer.rules``

Scales run along the contracting axes of the products with the parameter, so one scale serves
all that a result sums: per output channel, per row of an embedding, per layer of a stack. A
``group`` cuts a contracting axis in runs. Symmetric ranges are -127 to 127 (int8), -7 to 7
(int4), -448 to 448 (e4m3); a row of zeros has scale 1 and exact zeros; values beyond a range
saturate.

Sources: ``numerics/quantize.py``, ``numerics/calibration.py``, ``schemes.py``.

What it does not do: look for better roundings or scales by data (GPTQ, AWQ, SmoothQuant), or
activations with a zero point.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxinfer.core._compat import x64_scope
from jaxinfer.core.array_types import materialize, nbytes
from jaxinfer.core.audit import Audit, Entry, merged, with_audit
from jaxinfer.core.errors import InputError, listing
from jaxinfer.core.hoist import MIN_SIZE, large
from jaxinfer.core.leaves import leaves, with_leaves
from jaxinfer.core.model import Model
from jaxinfer.core.program import FunctionProgram, x64_of
from jaxinfer.core.selectors import Rule, resolve
from jaxinfer.core.trace import Traced, trace
from jaxinfer.core.transform import TRANSFORMS, Transform, staged
from jaxinfer.numerics.act_qtensor import ActQTensor
from jaxinfer.numerics.calibration import unseen
from jaxinfer.numerics.formats import format_of
from jaxinfer.numerics.qtensor import QTensor
from jaxinfer.numerics.quantize import mse_scale, nonfinite
from jaxinfer.numerics.quantize import quantize as quantize_array
from jaxinfer.transforms._calibrate import calibrate, ranges_of
from jaxinfer.transforms._quantize_plan import Decision, Settings, decide, static_sites


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Plan:
    """The decisions of a quantization.

    Attributes:
      decisions: for every parameter, in order.
      closed_over: dtype and shape of matrices that a Python function holds itself.
    """

    decisions: tuple[Decision, ...]
    closed_over: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        return {
            "decisions": [each.to_json() for each in self.decisions],
            "closed_over": list(self.closed_over),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Plan:
        """Rebuild a plan."""
        return cls(tuple(map(Decision.from_json, data["decisions"])), tuple(data["closed_over"]))


class QuantizeState(NamedTuple):
    """What ``init`` gives: a pytree.

    Attributes:
      plan: a decision for every parameter, plain data.
      stats: calibration statistics by path, for parameters with static activations.
    """

    plan: Plan
    stats: Mapping[str, Any]


@TRANSFORMS.register("quantize")
def quantize(
    scheme: str = "W8A16",
    *,
    rules: Sequence[Rule] = (),
    group: int | None = None,
    symmetric: bool = True,
    granularity: str = "channel",
    scales: str = "absmax",
    activation: str = "dynamic",
    calibration: str = "absmax",
    dequantize: bool = False,
    strict: bool = False,
    stats: Mapping[str, Any] | None = None,
    options: Mapping[str, Any] | None = None,
) -> Transform:
    """Return the transform that quantizes what products multiply by, and embeddings.

    Args:
      scheme: ``W8A16``, ``W8A8``, ``FP8``, ``W4A16``, ``W4A8`` or ``NF4``; see ``schemes.py``.
      rules: for parameters by path (``jaxinfer.rule``); the first match decides. Settings are
        ``scheme`` to ``dequantize`` here.
      group: elements of the contracting axis that share a scale; 0: all. One that does not
        divide pads the codes; statistics are of what is there.
      symmetric: without a zero point.
      granularity: ``channel`` or ``tensor``: one scale for a whole (layer's) weight.
      scales: of weights, ``absmax`` or ``mse`` (least squared error).
      activation: ``dynamic``: scales of each token (of each image, in a convolution), taken as
        they pass; ``static``: one scale, calibrated on data.
      calibration: for static activations: ``absmax``, ``minmax``, ``percentile``, ``mse``,
        ``moving_average``.
      dequantize: quantize also what something else than a product needs as an array; it is
        decoded there at each call.
      strict: raise if a parameter that is wanted is blocked.
      stats: of ``jaxinfer.calibrate``, in place of calibrating on data.
      options: of the calibration method, for example ``{"percent": 99.9}``.

    Returns:
      A Transform of the stage ``quantize``. ``init(model, batches)`` needs batches (see
      ``Transform``) for static activations only. Peak memory: the old and the new parameters,
      and two float32 copies of one leaf.

    Raises:
      InputError: unknown names (with near misses), NaN or infinite weights or activations
        (which leaf, which batch), no or misshapen data, a model that was quantized before.

    Example:
      >>> import jax.numpy as jnp, jaxinfer as ji
      >>> params, x = {"w": jnp.arange(64.0).reshape(8, 8)}, jnp.ones((2, 8))
      >>> model = ji.from_function(lambda p, x: x @ p["w"], params, (x,))
      >>> small = quantize("W8A16")(model)
      >>> print(small.audit())
      quantize: 1 of 1 parameters changed; 256 B -> 96 B
        changed  w  W8A16: int8, scale along 0  256 B -> 96 B
    """
    defaults = {
        "scheme": scheme,
        "group": group,
        "symmetric": symmetric,
        "granularity": granularity,
        "scales": scales,
        "activation": activation,
        "calibration": calibration,
        "dequantize": dequantize,
    }
    given = tuple(rules)
    _check(defaults, given, options)

    def init(model: Model, *data: Any) -> QuantizeState:
        with x64_scope(x64_of(model.program)):
            return _init(model, data)

    def _init(model: Model, data: tuple[Any, ...]) -> QuantizeState:
        staged(model, "quantize")
        named = leaves(model.params)
        chosen = resolve(given, named, defaults)
        example = None
        if model.signature.open and len(model.components) == 1:
            example = _first(model, data)
        traces = trace(model, example)
        decisions = decide(named, traces, chosen)
        _require_finite(named, decisions)
        wanted = [d for d in decisions if d.static]
        found: Mapping[str, Any] = {}
        if wanted and stats is not None:
            found = {d.path: stats[d.path] for d in wanted if d.path in stats}
        elif wanted:
            sites = static_sites(traces, [d.path for d in wanted])
            methods = {d.path: d.settings.calibration for d in wanted}
            found = calibrate(model, *data, sites=sites, methods=methods, options=options)
        plan = Plan(
            tuple(_reached(decision, found) for decision in decisions), _closed_over(model, traces)
        )
        if strict:
            _audit(plan, named, {}).require()
        return QuantizeState(plan, found)

    def update(model: Model, state: QuantizeState) -> Model:
        with x64_scope(x64_of(model.program)):
            return _update(model, state, options)

    return Transform(init, update, "quantize")


def _closed_over(model: Model, traces: Sequence[Traced]) -> tuple[str, ...]:
    """Return the float matrices that a function holds: no parameters, so none is quantized."""
    if not isinstance(model.program, FunctionProgram):
        return ()  # the constants of a converted model are tables, and its own
    return tuple(
        f"{value.dtype}{list(value.shape)}"
        for traced in traces
        for value in large(traced.jaxpr, traced.consts, MIN_SIZE)
        if jnp.issubdtype(value.dtype, jnp.floating) and len(value.shape) > 1
    )


def _reached(decision: Decision, stats: Mapping[str, Any]) -> Decision:
    """Return the decision with dynamic activations where calibration has no range, and say so."""
    if not decision.static:
        return decision
    if decision.path in stats and not unseen(stats[decision.path]):
        return decision
    settings = dataclasses.replace(decision.settings, activation="dynamic")
    what = "no batch reaches it" if decision.path in stats else "not calibrated inside shard_map"
    why = decision.why.replace("activations, static", f"activations, dynamic ({what})")
    return dataclasses.replace(decision, static=False, settings=settings, why=why)


def _first(model: Model, data: tuple[Any, ...]) -> Sequence[Any]:
    """Return the first batch, at whose shapes a model without example inputs is traced."""
    from jaxinfer.transforms._data import batches

    if not data:
        raise InputError(
            "quantize: this model was made without example inputs: give from_function "
            "example_inputs, or the transform a batch of data"
        )
    return next(iter(batches(model, data, "quantize")))


def _check(defaults: Mapping[str, Any], rules: Sequence[Rule], options: Any) -> None:
    """Raise if any setting has a value that it cannot have; all at once."""
    problems = []
    for where, given in [("", {**defaults})] + [
        (f"rule {r.pattern!r}: ", r.settings) for r in rules
    ]:
        full = {**defaults, **given}
        if set(full) != set(defaults):
            continue  # resolve names unknown settings
        if "activation" not in given:
            full["activation"] = "dynamic"  # that of schemes without activations is idle
        try:
            Settings(**full).check(dict(options or {}))
        except InputError as error:
            problems.append(f"{where}{error}")
    if problems:
        raise InputError(problems[0] if len(problems) == 1 else listing("quantize:", problems))


def _require_finite(named: Mapping[str, Any], decisions: Sequence[Decision]) -> None:
    problems = []
    for decision in decisions:
        if decision.status == "changed":
            leaf = materialize(named[decision.path])
            if bad := _nonfinite(leaf):
                problems.append(f"{decision.path}: {bad} of {leaf.size} values are not finite")
    if problems:
        advice = "Mend them, or ignore these parameters by a rule."
        raise InputError(listing("quantize: weights that are NaN or infinite:", problems, advice))


def _nonfinite(leaf: Any) -> int:
    """Return how many values are not finite; on CPUs without compiling for each shape."""
    devices = getattr(leaf, "devices", set)()
    if all(device.platform == "cpu" for device in devices):
        return leaf.size - int(np.count_nonzero(np.isfinite(np.asarray(leaf))))
    return int(nonfinite(leaf))


def _update(model: Model, state: QuantizeState, options: Any) -> Model:
    """Replace the leaves of a plan, one at a time."""
    model = staged(model, "quantize")
    named = leaves(model.params)
    plan = state.plan
    _require_fit(plan, named)
    changes: dict[str, Any] = {}
    ranges: dict[str, Any] = {}
    for decision in plan.decisions:
        if decision.status != "changed":
            continue
        leaf = named[decision.path]
        weight = quantize_leaf(leaf, decision)
        if decision.settings.activations and not decision.alone:
            scale = None
            if decision.static:
                scale, ranges[decision.path] = _static_scale(decision, state, leaf, options)
            weight = ActQTensor(weight, scale, decision.settings.activations)
        changes[decision.path] = weight
    audit = _audit(plan, named, changes)
    provenance = with_audit(model.provenance, audit)
    if ranges:
        provenance["calibration"] = ranges
    return model.replace(params=with_leaves(model.params, changes), provenance=provenance)


def quantize_leaf(leaf: Any, decision: Decision) -> QTensor:
    """Quantize one parameter as decided."""
    array, settings = materialize(leaf), decision.settings
    fmt = settings.weights
    tiles = {decision.tiled: decision.group} if decision.group else None
    layout: dict[str, Any] = {"axes": decision.axes, "tiles": tiles}
    symmetric = settings.symmetric
    if settings.scales == "mse":
        scale, zero = mse_scale(array, fmt, **layout, symmetric=symmetric)
        return quantize_array(array, fmt, **layout, symmetric=symmetric, scale=scale,
                              zero_point=zero)  # fmt: skip
    return quantize_array(array, fmt, **layout, symmetric=symmetric)


def _static_scale(
    decision: Decision, state: QuantizeState, leaf: Any, options: Any
) -> tuple[Any, Any]:
    if decision.path not in state.stats:
        raise InputError(f"quantize: {decision.path}: the state has no statistics of its inputs")
    low, high = ranges_of(state.stats[decision.path], decision.settings, options)
    bound = format_of(decision.settings.activations).bound
    assert bound is not None
    most = jnp.maximum(jnp.abs(low), jnp.abs(high))
    scale = jnp.where(most == 0, 1, most / bound).astype(jnp.float32)
    layers = low.shape[:-1]  # of the scans that slice the parameter
    shape = (*layers, *[1] * (leaf.ndim - len(layers)))
    record = {"method": decision.settings.calibration, "low": low.ravel().tolist(),
              "high": high.ravel().tolist()}  # fmt: skip
    return scale.reshape(shape), record


def _require_fit(plan: Plan, named: Mapping[str, Any]) -> None:
    """Raise if a plan is of another model."""
    problems = []
    planned = {decision.path: decision for decision in plan.decisions}
    for path, decision in planned.items():
        if path not in named:
            problems.append(f"{path}: not among the model's parameters")
        elif tuple(named[path].shape) != decision.shape:
            problems.append(f"{path}: planned for {decision.shape}, got {tuple(named[path].shape)}")
    problems += [f"{path}: not in the plan" for path in named if path not in planned]
    if problems:
        raise InputError(listing("quantize: the plan does not fit the model:", problems))


def _audit(plan: Plan, named: Mapping[str, Any], changes: Mapping[str, Any]) -> Audit:
    entries = [
        Entry(
            *(decision.path, decision.status, decision.why, decision.source),
            before=nbytes(named[decision.path]),
            after=nbytes(changes.get(decision.path, named[decision.path])),
        )
        for decision in plan.decisions
    ]
    why = "closed over by the function; jaxinfer.hoist_constants(model) makes a parameter of it"
    held = [
        Entry(f"(constant {number}) {what}", "blocked", why)
        for number, what in enumerate(plan.closed_over)
    ]
    return Audit("quantize", (*merged(entries, list(named)), *held))
