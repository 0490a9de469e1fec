"""``partition``: a ShardingPlan for any model, from rules, a strategy, or by trying strategies.

    "auto"            every sensible strategy for the mesh is laid out, compiled at the real
                      sizes (shapes only, no weights) and scored (``_score``); the best is kept,
                      all are in ``plan.candidates``
    "data+tensor"     one strategy, or several: data, tensor, fsdp, expert, sequence (``_auto``)
    "logical"         tables of logical axes for known families (``_families``)
    [(regex, spec)]   rules (``rules``)
    a ShardingPlan    its parameters' specs; the inputs' specs for this function

Which mesh axes a strategy uses is read from their names (``rules.ROLES``: ``data``, ``model``,
``fsdp``, ``expert``, ``seq`` and usual other names). Axes with other names go, in order, to the
strategies of the call that have none by name; ``auto`` tries each.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any

from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxinfer.core.array_types import nbytes
from jaxinfer.core.errors import InputError, listing
from jaxinfer.core.model import Model
from jaxinfer.sharding import _auto, _score, _specs
from jaxinfer.sharding._auto_read import Reading, read
from jaxinfer.sharding._families import family_rules
from jaxinfer.sharding._pins import pinned
from jaxinfer.sharding.mesh import make_mesh
from jaxinfer.sharding.plan import Row, ShardingPlan, rows_of, text
from jaxinfer.sharding.rules import LOGICAL, apply_rules, axes_for, role_of, rules_of

CANDIDATES = 8
"""How many candidates ``auto`` compiles at most: the one that splits the inputs alone, which
communicates least, then those with the fewest bytes per device."""

_OUTSIDE = ("data", "sequence")

Roles = dict[str, tuple[str, ...]]


def partition(
    model: Model,
    mesh: Mapping[str, int] | str | Mesh,
    sharding: Any = "auto",
    *,
    sizes: Mapping[str, int] | None = None,
    inputs: Sequence[Any] | None = None,
    compile: bool = True,
    logical: Mapping[str, Any] | None = None,
    memory: int | None = None,
) -> ShardingPlan:
    """Return a plan for a model on a mesh.

    Args:
      model: any model; its leaves may be arrays, array types, or shapes.
      mesh: sizes by axis name, text (``"data=2,model=4"``), or a mesh.
      sharding: ``"auto"``, strategies joined by ``+``, ``"logical"``, rules, or a plan.
      sizes: symbolic sizes at which candidates are compared; by default as many rows as
        devices, and 128 of anything else.
      inputs: instead, the array inputs as arrays or shapes.
      compile: whether ``auto`` compiles its candidates; without, bytes alone decide. A plan
        that is asked for by name is not compiled.
      logical: logical axes, added to ``rules.LOGICAL``: a mesh axis, a strategy or None.
      memory: bytes of memory of a device; by default what it says.

    Returns:
      The plan. ``plan.rows`` says why each leaf lies as it does.

    Raises:
      InputError: a mesh that cannot be made, unknown strategies, a strategy without a mesh
        axis, rules that conflict or do not fit; all problems at once.

    Example:
      >>> import jax.numpy as jnp, jaxinfer as ji
      >>> model = ji.from_function(lambda p, x: x @ p, jnp.eye(4), (jnp.ones((2, 4)),))
      >>> partition(model, {"model": 1}, "tensor").strategy
      'tensor'

    Cost: one abstract trace; ``auto`` one compilation for each of at most 8 candidates.
    """
    mesh = make_mesh(mesh)
    reading = read(model, mesh, sizes, inputs)
    table = {**LOGICAL, **(logical or {})}
    if isinstance(sharding, ShardingPlan):
        return _again(reading, mesh, sharding)
    if not isinstance(sharding, str):
        return _by_rules(reading, mesh, rules_of(sharding), table, "rules")
    if sharding == "logical":
        return _by_rules(reading, mesh, family_rules(reading), table, "logical")
    if sharding == "auto":
        available = _score.available_bytes(mesh) if memory is None else memory
        return _search(model, reading, mesh, compile, available)
    roles = _roles_of(sharding, mesh)
    return _plan(reading, mesh, _auto.lay_out(reading, mesh, roles), sharding)


def score(
    model: Model, plan: ShardingPlan, *, sizes: Any = None, inputs: Any = None
) -> _score.Score:
    """Compile a model under a plan (shapes only), and return its numbers.

    Args:
      model: the model; no weights are needed.
      plan: of ``partition``.
      sizes, inputs: as in ``partition``.
    """
    reading = read(model, plan.mesh, sizes, inputs)
    layout = _auto.lay_out(reading, plan.mesh, {})
    layout.gathered, layout.closed = dict(plan.gathered), list(plan.closed)
    _set_inputs(layout, plan.inputs)
    available = _score.available_bytes(plan.mesh)
    return _measured(model, reading, plan.mesh, plan.params, layout, plan.strategy, True, available)


# Rules and plans.


def _by_rules(
    reading: Reading, mesh: Mesh, rules: Any, logical: Mapping[str, Any], name: str
) -> ShardingPlan:
    named = {
        f"inputs.{path}": array
        for path, array in zip(reading.names[0], reading.arrays(0), strict=True)
    }
    applied = apply_rules(reading.leaves, rules, mesh, logical=logical, inputs=named)
    layout = _auto.lay_out(reading, mesh, _input_roles("", mesh))
    _auto.follow(layout, applied.specs)
    own = [applied.specs.get(path) for path in named]
    if any(spec is not None for spec in own):
        _set_inputs(layout, [spec or PartitionSpec() for spec in own])
        layout.notes.clear()
        layout.input_why = {
            (0, i): [applied.why[p]] for i, p in enumerate(named) if p in applied.why
        }
    specs = {path: applied.specs.get(path, PartitionSpec()) for path in reading.leaves}
    why = {path: applied.why.get(path, "whole: no rule matches") for path in reading.leaves}
    return _finish(reading, mesh, specs, why, layout, name, (*applied.notes, *layout.notes))


def _again(reading: Reading, mesh: Mesh, plan: ShardingPlan) -> ShardingPlan:
    """Return a plan for another function of the same parameters, or other sizes."""
    problems = [
        fault
        for path, leaf in reading.leaves.items()
        for fault in _specs.faults(path, leaf, plan.params.get(path, PartitionSpec()), mesh)
    ]
    if problems:
        raise InputError(listing("the plan does not fit the parameters:", problems))
    layout = _auto.lay_out(reading, mesh, _input_roles(plan.strategy, mesh))
    layout.gathered, layout.closed = dict(plan.gathered), list(plan.closed)
    ranks = [len(entry) for entry in layout.inputs[0]]
    if len(ranks) == len(plan.inputs) and all(
        len(spec) <= rank for spec, rank in zip(plan.inputs, ranks, strict=True)
    ):
        _set_inputs(layout, plan.inputs)
        layout.notes.clear()
    else:
        _auto.follow(layout, plan.params)
    why = {row.path: row.why for row in plan.rows}
    notes = tuple(dict.fromkeys((*plan.notes, *layout.notes)))
    made = _finish(reading, mesh, dict(plan.params), why, layout, plan.strategy, notes)
    return dataclasses.replace(made, candidates=plan.candidates)


def _input_roles(strategy: str, mesh: Mesh) -> Roles:
    """Return over which mesh axes a strategy, or else their names, split the inputs."""
    given = re.split(r"[+(]", strategy)[0] in _auto.STRATEGIES
    roles = _roles_of(strategy, mesh) if given else {}
    found = {role: roles.get(role, () if given else axes_for(mesh, role)) for role in _OUTSIDE}
    return {role: axes for role, axes in found.items() if axes}


def _set_inputs(layout: _auto.Layout, specs: Sequence[PartitionSpec]) -> None:
    for entry, spec in zip(layout.inputs[0], specs, strict=True):
        for axis, names in enumerate(spec):
            entry[axis] = _specs.axes_of(names)
        for axis in range(len(spec), len(entry)):
            entry[axis] = ()


def _plan(reading: Reading, mesh: Mesh, layout: _auto.Layout, strategy: str) -> ShardingPlan:
    return _finish(reading, mesh, layout.specs, layout.why, layout, strategy, tuple(layout.notes))


def _finish(
    reading: Reading,
    mesh: Mesh,
    specs: Mapping[str, PartitionSpec],
    why: Mapping[str, str],
    layout: _auto.Layout,
    strategy: str,
    notes: Sequence[str],
) -> ShardingPlan:
    _require_no_windows(reading, specs)
    rows = rows_of(reading.leaves, specs, why, mesh)
    single = len(reading.components) == 1
    for number, component in enumerate(reading.components):
        prefix = "inputs." if single else f"inputs.{component}."
        for index, array in enumerate(reading.arrays(number)):
            spec = _specs.trimmed(layout.inputs[number][index])
            name = f"{prefix}{reading.names[number][index]}"
            because = "; ".join(layout.input_why.get((number, index), ["whole"]))
            rows.append(_input_row(name, array, spec, mesh, because))
    inputs = layout.input_specs(0) if single else ()
    pins = (dict(layout.gathered), tuple(layout.closed))
    return ShardingPlan(mesh, dict(specs), inputs, tuple(rows), strategy, (), tuple(notes), *pins)


def _require_no_windows(reading: Reading, specs: Mapping[str, PartitionSpec]) -> None:
    problems = []
    for path, spec in specs.items():
        windows = reading.windows(path)
        split = [axis for axis, names in enumerate(spec) if names and axis in windows]
        problems += [
            f"{path}: axis {axis} of {reading.leaves[path].shape[axis]}, spec {text(spec)}"
            for axis in split
        ]
    if problems:
        raise InputError(
            listing(
                "the window of a convolution cannot be split, XLA computes other numbers then:",
                problems,
                "Split its channels instead.",
            )
        )


def _input_row(name: str, array: Any, spec: PartitionSpec, mesh: Mesh, why: str) -> Row:
    (row,) = rows_of({name: array}, {name: spec}, {name: why}, mesh)
    return row


# Strategies by name.


def _roles_of(text: str, mesh: Mesh) -> Roles:
    """Return the mesh axes of strategies: ``data+tensor``, or with axes, ``data(x)+tensor(y)``."""
    given = re.findall(r"([^+()]+)(?:\(([^()]*)\))?(?:\+|$)", text.replace(" ", ""))
    unknown = [name for name, _ in given if name not in _auto.STRATEGIES]
    if unknown or not given:
        known = ", ".join(("auto", "logical", *_auto.STRATEGIES))
        raise InputError(f"sharding {text!r}: no strategy {unknown}; known: {known}, joined by '+'")
    axes = ", ".join(f"{name}={size}" for name, size in mesh.shape.items())
    roles: Roles = {name: axes_for(mesh, name) for name, _ in given}
    roles |= {name: tuple(own.split(",")) for name, own in given if own}
    wrong = [axis for own in roles.values() for axis in own if axis not in mesh.shape]
    if wrong:
        raise InputError(f"sharding {text!r}: no mesh axis {', '.join(wrong)}; the mesh has {axes}")
    taken = {axis for own in roles.values() for axis in own}
    free = [axis for axis in mesh.axis_names if not role_of(axis) and axis not in taken]
    for name in roles:
        if not roles[name] and free:
            roles[name] = (free.pop(0),)
    if "fsdp" in roles and not roles["fsdp"]:
        roles["fsdp"] = axes_for(mesh, "data")
    if "expert" in roles and not roles["expert"]:
        roles["expert"] = axes_for(mesh, "tensor")
    missing = [name for name in roles if not roles[name]]
    if missing:
        wanted = {"tensor": "model", "sequence": "seq"}
        raise InputError(
            f"sharding {text!r}: no mesh axis for {', '.join(missing)}; the mesh has {axes}. "
            f"Name one {' and one '.join(repr(wanted.get(name, name)) for name in missing)}"
        )
    if "fsdp" in roles:  # the batch goes over the same devices, or they would repeat each other
        roles["data"] = tuple(dict.fromkeys([*roles.get("data", ()), *roles["fsdp"]]))
    return roles


# Automatic.


def templates(reading: Reading, mesh: Mesh) -> list[tuple[str, Roles]]:
    """Return the strategies that make sense on a mesh, by name."""
    experts = any("experts" in d.kinds and d.params for d in reading.dimensions.values())
    expert, sequence = ["expert"] if experts else [], ["sequence"] if reading.sequence else []
    own = {
        "data": ["data", "fsdp"],
        "tensor": ["tensor", *expert],
        "fsdp": ["fsdp"],
        "expert": expert or ["data"],
        "sequence": sequence or ["data"],
        "": ["data", "fsdp", "tensor", *expert, *sequence],
    }
    choices = [own[role_of(n)] if mesh.shape[n] > 1 else [""] for n in mesh.axis_names]
    unnamed = [i for i, name in enumerate(mesh.axis_names) if not role_of(name)]
    found = []
    for choice in itertools.product(*choices):
        order = [_auto.STRATEGIES.index(choice[i]) for i in unnamed if choice[i]]
        if order == sorted(order) and any(choice):  # the other orders are the same layouts
            found.append(_named(mesh, choice))
    return [(name, _roles_of(name, mesh)) for name in found]


def _named(mesh: Mesh, choice: Sequence[str]) -> str:
    """Return the text that gives these roles: axes are named where their names do not say it."""
    axes: dict[str, list[str]] = {}
    for axis, strategy in zip(mesh.axis_names, choice, strict=True):
        if strategy:
            axes.setdefault(strategy, []).append(axis)
    names = []
    for strategy in sorted(axes, key=_auto.STRATEGIES.index):
        own = axes[strategy]
        plain = tuple(own) == axes_for(mesh, strategy)
        names.append(strategy if plain else f"{strategy}({','.join(own)})")
    return "+".join(names)


def _search(
    model: Model, reading: Reading, mesh: Mesh, compile: bool, available: int
) -> ShardingPlan:
    laid: dict[str, tuple[_auto.Layout, ShardingPlan]] = {}
    refused: list[_score.Score] = []
    same: dict[Any, str] = {}
    for name, roles in templates(reading, mesh):
        layout = _auto.lay_out(reading, mesh, roles)
        plan = _plan(reading, mesh, layout, name)
        key = (tuple(plan.params.items()), tuple(map(str, layout.inputs)))
        if key in same:
            refused.append(_score.Score(name, problem=f"the same specs as {same[key]}"))
            continue
        same[key] = name
        if mesh.size > 1 and not layout.splits:
            reason = "; ".join(layout.notes) or "it splits nothing of this model"
            refused.append(_score.Score(name, problem=reason))
            continue
        laid[name] = (layout, plan)
    if not laid:
        layout = _auto.lay_out(reading, mesh, {})
        laid["one device"] = (layout, _plan(reading, mesh, layout, "one device"))
    inputs_alone = {n for n, roles in templates(reading, mesh) if set(roles) == {"data"}}
    cheap = sorted(
        (
            _measured(model, reading, mesh, plan.params, layout, name, False, available)
            for name, (layout, plan) in laid.items()
        ),
        key=lambda each: (each.strategy not in inputs_alone, each.key),
    )
    scores = cheap
    if compile:
        scores = [
            _measured(
                model,
                reading,
                mesh,
                laid[each.strategy][1].params,
                laid[each.strategy][0],
                each.strategy,
                True,
                available,
            )
            for each in cheap[:CANDIDATES]
        ]
        refused += [
            dataclasses.replace(each, problem=f"not compiled: {CANDIDATES} others need fewer bytes")
            for each in cheap[CANDIDATES:]
        ]
    scores = sorted(scores, key=lambda each: each.key)
    if scores[0].problem:
        raise InputError(
            listing("no candidate compiles:", [f"{s.strategy}: {s.problem}" for s in scores])
        )
    _, plan = laid[scores[0].strategy]
    return dataclasses.replace(
        plan, candidates=(*scores, *sorted(refused, key=lambda s: s.strategy))
    )


def _measured(
    model: Model,
    reading: Reading,
    mesh: Mesh,
    params: Mapping[str, PartitionSpec],
    layout: _auto.Layout,
    name: str,
    compile: bool,
    available: int,
) -> _score.Score:
    own = sum(
        _specs.bytes_per_device(path, leaf, params.get(path, PartitionSpec()), mesh)
        for path, leaf in reading.leaves.items()
    )
    shardings = {
        part: NamedSharding(mesh, spec)
        for path, leaf in reading.leaves.items()
        for part, spec in _specs.part_specs(path, leaf, params.get(path, PartitionSpec())).items()
    }
    given, programs = 0, []
    for number, component in enumerate(reading.components):
        specs = layout.input_specs(number)
        arrays = reading.arrays(number)
        given += sum(
            nbytes(array) // _specs.spread(spec, mesh)
            for array, spec in zip(arrays, specs, strict=True)
        )
        if compile:
            placed = [NamedSharding(mesh, spec) for spec in specs]
            try:
                part = model.components[component]
                run = pinned(part._run(), mesh, params, specs, layout.gathered, layout.closed)
                programs.append(
                    _score.compiled(part, reading.given[number], shardings, placed, run)
                )
            except Exception as error:  # whatever XLA says: the candidate is out, and why is kept
                text = str(error).strip().splitlines()
                problem = f"does not compile: {type(error).__name__}: {(text or [''])[0][:200]}"
                return _score.Score(name, own, own + given, problem=problem, available=available)
    return _score.score(name, programs, own, given, available)
