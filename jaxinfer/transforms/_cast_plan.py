"""What a cast does to each parameter, and why: its dtype, the dtype of its products, the audit."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxinfer.core.array_types import is_array_type, nbytes
from jaxinfer.core.audit import Entry, merged
from jaxinfer.core.dtypes import dtype_of
from jaxinfer.core.errors import InputError, listing
from jaxinfer.core.leaves import leaves as named_leaves
from jaxinfer.core.model import Model
from jaxinfer.core.provenance import Obstacle, by_path
from jaxinfer.core.selectors import Rule, resolve
from jaxinfer.core.trace import trace
from jaxinfer.numerics.masks import Masked
from jaxinfer.transforms._cast_policy import ALIASES, Policy, dtype_problem
from jaxinfer.transforms._cast_rules import CLASSES, is_float


class Plan(NamedTuple):
    """What is done to a model.

    Attributes:
      targets: the dtype of each parameter that is cast.
      declared: the dtype that it had.
      computes: for some parameters, another dtype than the policy's for their products.
      entries: of the audit, ``after`` not yet filled in.
    """

    targets: dict[str, str]
    declared: dict[str, str]
    computes: dict[str, str]
    entries: tuple[Entry, ...]


def check_rules(rules: Sequence[Rule]) -> None:
    """Raise if the settings of a rule name no dtype.

    Raises:
      InputError: all problems at once.
    """
    problems = [
        f"rule {number} ({each.pattern!r}): {name}={value}: {problem}"
        for number, each in enumerate(rules, 1)
        for name, value in each.settings.items()
        if name in ("params", "compute") and (problem := dtype_problem(value))
    ]
    if problems:
        raise InputError(listing("cast: rules that cannot be used:", problems))


def _settings(
    model: Model, policy: Policy, rules: Sequence[Rule]
) -> dict[str, dict[str, str] | None]:
    defaults = {"params": policy.params, "compute": policy.compute}
    found = resolve(rules, named_leaves(model.params), defaults)
    return {
        path: None if one is None else {name: ALIASES[value] for name, value in one.items()}
        for path, one in found.items()
    }


def _unfit(leaf: Any, path: str, policy: Policy, mutable: Sequence[str]) -> str:
    """Say why a parameter is not to be cast; "" if it is."""
    name = str(leaf.dtype)
    if name not in ("float32", "float64"):
        return f"{name}: stays"
    if path in mutable:
        return f"{name}: the model changes it, and gives it back as it was"
    if name == "float64" and not policy.float64:
        return "float64: stays, unless the policy says float64=true"
    if is_array_type(leaf) and not isinstance(leaf, Masked) and not hasattr(leaf, "astype"):
        return f"{type(leaf).__name__}: has no astype"
    return ""


def _mutable(model: Model) -> list[str]:
    return [n for part in model.components.values() for n in getattr(part.program, "mutates", ())]


def targets_of(model: Model, policy: Policy, rules: Sequence[Rule]) -> dict[str, str]:
    """Return the dtype for each parameter that the policy and the rules would have cast.

    Raises:
      InputError: rules that cannot be used, or a policy for the outputs of a model that gives
        back new state.
    """
    settings, mutable = _settings(model, policy, rules), _mutable(model)
    if mutable and policy.output not in ("", "float32"):
        raise InputError(
            f"cast: output={policy.output}: this model gives back new state "
            f"({', '.join(mutable[:3])}), which has to keep its dtype; leave output out"
        )
    targets = {}
    for path, leaf in named_leaves(model.params).items():
        own = settings[path]
        if own is None or _unfit(leaf, path, policy, mutable):
            continue
        if dtype_of(own["params"]).itemsize < leaf.dtype.itemsize:
            targets[path] = own["params"]
    return targets


def faults_of(model: Model, targets: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Return the parameters with values that their new dtype cannot hold: how many, how large.

    Cost: the weights are read once. Abstract parameters are not.
    """
    named, found = named_leaves(model.params), {}
    for path, dtype in targets.items():
        whole = named[path]
        leaf = whole.weight if isinstance(whole, Masked) else whole
        if isinstance(leaf, Tracer) or not isinstance(leaf, (jax.Array, np.ndarray)):
            continue
        largest, overflown, zeros = _extremes(leaf, dtype)
        if int(overflown) or int(zeros):
            found[path] = {
                "dtype": dtype,
                "largest": float(largest),
                "overflow": int(overflown),
                "to_zero": int(zeros),
            }
    return found


@functools.partial(jax.jit, static_argnums=1)
def _extremes(values: Any, dtype: str) -> tuple[Any, Any, Any]:
    """Largest finite magnitude, how many overflow in a dtype, and how many become zero.

    By thresholds: XLA may leave out a cast to bfloat16 and back.
    """
    high, low = _limits(dtype)
    size = jnp.abs(values)
    finite = jnp.isfinite(size)
    largest = jnp.max(jnp.where(finite, size, 0), initial=0)
    return largest, jnp.sum(finite & (size >= high)), jnp.sum((size > 0) & (size <= low))


def _limits(dtype: str) -> tuple[float, float]:
    """Return the least magnitude that rounds to infinity, and the largest that rounds to zero.

    >>> _limits("float16") == (65520, 2**-25)
    True
    """
    info = jnp.finfo(dtype)
    half = 2.0 ** (info.maxexp - 1 - info.nmant) / 2
    return float(info.max) + half, float(info.smallest_subnormal) / 2


def plan(model: Model, policy: Policy, rules: Sequence[Rule], state: Mapping[str, Any]) -> Plan:
    """Decide for every parameter.

    Args:
      state: ``parameters`` of ``faults_of``, and ``overflow``, found on data.
    """
    named, faults = named_leaves(model.params), state["parameters"]
    targets, settings = targets_of(model, policy, rules), _settings(model, policy, rules)
    used, mutable = _uses(model), _mutable(model)
    computes: dict[str, str] = {}
    entries = []
    for path, leaf in named.items():
        own, size, before = settings[path], nbytes(leaf), str(leaf.dtype)
        status, why, source = "changed", f"{before} -> {targets.get(path)}", ""
        compute = "float32" if own is None else own["compute"]
        if used is not None and path not in used:
            status, why = "unused", ""
        elif own is None:
            status, why = "ignored", f"{before}, by a rule"
        elif reason := _unfit(leaf, path, policy, mutable):
            status, why = "unfit", reason
        elif path not in targets:
            status, why = "ignored", f"{before}, as the policy or a rule has it"
        elif path in faults and faults[path]["overflow"]:
            one = faults[path]
            status = "blocked"
            why = f"{one['overflow']} values, up to {one['largest']:.3g}, overflow {one['dtype']}"
            compute = "float32"
        elif path in faults:
            why += f"; {faults[path]['to_zero']} of {leaf.size} values become 0"
        if status != "unused" and compute != policy.compute and is_float(leaf.dtype):
            computes[path] = compute
            if used and (hidden := _hidden(used.get(path, ()), used)):
                primitive, source = hidden.primitive, hidden.source
                status, why = "blocked", f"{primitive}: products after it are not in {compute}"
        if status == "changed" and used:
            opaque = [o for o in used[path] if _is_opaque(o)]
            why += "".join(f"; {o.primitive} takes it in {before}" for o in opaque[:1])
        for record in state["overflow"]:
            if path in record["parameters"]:
                why, source = f"{why}; {overflow_text(record)}", record["source"]
        if status != "changed":
            targets.pop(path, None)
        entries.append(Entry(path, status, why, source, size, size))
    declared = {path: np.dtype(named[path].dtype).name for path in targets}
    return Plan(targets, declared, computes, merged(entries, list(named)))


def _uses(model: Model) -> dict[str, list[Obstacle]] | None:
    """Return the obstacles of each parameter that is used; None if it cannot be told."""
    if any(part.signature.open for part in model.components.values()):
        return None
    found: dict[str, list[Obstacle]] = {}
    for one in trace(model):
        for path, (_, obstacles) in by_path(one.uses).items():
            found.setdefault(path, []).extend(obstacles)
    return found


def _hidden(
    obstacles: Sequence[Obstacle], used: Mapping[str, Sequence[Obstacle]]
) -> Obstacle | None:
    """Return where a parameter is lost: carried, or joined with another in one value."""
    for one in obstacles:
        name, _, how = one.primitive.partition(" ")
        joined = {o.path for other in used.values() for o in other if o.address == one.address}
        if how or (len(joined) > 1 and CLASSES.get(name) != "product" and one.address):
            return one
    return None


def _is_opaque(obstacle: Obstacle) -> bool:
    name, _, how = obstacle.primitive.partition(" ")
    return not how and name != "output" and name not in CLASSES


def overflow_text(record: Mapping[str, Any]) -> str:
    """Return an overflow for people."""
    return (
        f"{record['primitive']} {record['what']}: up to {record['largest']:.3g} in batch "
        f"{record['batch']}, beyond float16's 65504"
    )


def require_no_overflow(found: Sequence[Mapping[str, Any]]) -> None:
    """Raise if there was any on the data.

    Raises:
      InputError: all of it, with the lines.
    """
    if found:
        lines = [f"{overflow_text(record)} {record['source']}".rstrip() for record in found]
        advice = 'Use bf16, or keep these products in float32: rule(path, compute="f32").'
        title = "cast: float16 overflows on the calibration data:"
        raise InputError(listing(title, lines, advice))
