"""What a candidate asks of each parameter, and combinations that cannot be made."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from jaxinfer.core.errors import InputError, listing
from jaxinfer.core.leaves import leaves
from jaxinfer.core.model import Model
from jaxinfer.core.selectors import Rule, rule
from jaxinfer.tune.candidate import CASTS, QUANTIZED, Candidate
from jaxinfer.tune.groups import Group, group_of

INT8 = "int8"
"""The level that OpenVINO's own quantization after training makes."""

_OPENVINO = ("f32", *CASTS, "W8A16", "W4A16", INT8)
"""Levels that OpenVINO takes: products of integers and of float8 it would not run as such."""


def parts_of(level: str) -> tuple[str, str]:
    """Return the cast and the quantization of a level; "" for none.

    >>> parts_of("bf16+W8A16"), parts_of("f32"), parts_of("W8A8-static")
    (('bf16', 'W8A16'), ('', ''), ('', 'W8A8-static'))
    """
    names = level.split("+")
    cast = next((name for name in names if name in CASTS), "")
    return cast, next((name for name in names if name in QUANTIZED), "")


def hinted(candidate: Candidate) -> bool:
    """Whether OpenVINO is to compute in bfloat16 of its own, from the float32 graph.

    A cast graph it computes in float32 (2026.4 on a CPU with AVX512_BF16).
    """
    return candidate.backend == "openvino" and candidate.precision == "bf16"


def require_possible(candidate: Candidate, groups: Sequence[Group], calibration: Any) -> None:
    """Raise InputError for what no model can be made of, all problems at once.

    Args:
      candidate: an arrangement.
      groups: of the model.
      calibration: a Dataset or None.
    """
    problems = []
    try:
        candidate.check()
    except ValueError as error:
        raise InputError(str(error)) from error
    levels, openvino = candidate.levels, candidate.backend == "openvino"
    if INT8 in levels and not openvino:
        problems.append("precision int8: OpenVINO's own; backend must be openvino")
    if INT8 in levels and candidate.precision != INT8:
        problems.append(f"precision int8 of a group alone: all are {candidate.precision}")
    if candidate.precision == INT8 and set(levels) - {INT8, "f32"}:
        others = ", ".join(sorted(set(levels) - {INT8, "f32"}))
        problems.append(f"precision int8 with groups in {others}: f32 is the only other level")
    if openvino:
        wrong = [level for level in levels if level not in _OPENVINO and not _both_fit(level)]
        if wrong:
            problems.append(f"backend openvino: does not run {', '.join(wrong)}")
        if hinted(candidate) and candidate.groups:
            problems.append("backend openvino: bf16 is of the whole model, not of groups")
        if candidate.mesh:
            problems.append(f"backend openvino: one device, got mesh {candidate.mesh!r}")
        if candidate.donate:
            problems.append("backend openvino: donates no memory")
        if candidate.attention == "cudnn":
            problems.append("backend openvino: attention cudnn is of NVIDIA GPUs")
    if candidate.calibrated and (calibration is None or not calibration.size):
        needs = ", ".join(x for x in levels if x.endswith("-static") or x == INT8)
        problems.append(f"precision {needs}: needs calibration data, there are none")
    known = {group.name for group in groups}
    if unknown := [name for name, _ in candidate.groups if name not in known]:
        have = ", ".join(sorted(known)) or "none"
        problems.append(f"groups: no such group: {', '.join(unknown)}; there are {have}")
    if problems:
        raise InputError(listing(f"{candidate.label}: cannot be made:", problems))


def _both_fit(level: str) -> bool:
    cast, quantized = parts_of(level)
    return bool(cast) and quantized in _OPENVINO


def levels_of(model: Model, candidate: Candidate, groups: Sequence[Group]) -> dict[str, str]:
    """Return the level of every parameter: of its group, else that of all."""
    own = dict(candidate.groups)
    if not own:
        return dict.fromkeys(leaves(model.params), candidate.precision)
    return {
        path: own.get(_group(path, groups) or "", candidate.precision)
        for path in leaves(model.params)
    }


def _group(path: str, groups: Sequence[Group]) -> str | None:
    """Return the group of a parameter; of a joined bias that of the module around it."""
    found = group_of(path, groups)
    names = path.split(".")
    place = next((i for i, name in enumerate(names) if "&" in name), 0)
    if found is not None or not place:
        return found
    return group_of(".".join([*names[:place], "joined"]), groups)


def cast_settings(levels: Mapping[str, str], base: str) -> tuple[str, list[Rule]] | None:
    """Return policy and rules of ``ji.cast``; None if nothing is cast.

    Args:
      levels: by path.
      base: the level of all.
    """
    casts = {path: parts_of(level)[0] or "f32" for path, level in levels.items()}
    policy = parts_of(base)[0] or "f32"
    if policy == "f32" and set(casts.values()) <= {"f32"}:
        return None
    rules = [
        rule(pattern(paths), params=name, compute=name)
        for name, paths in _by_value(casts).items()
        if name != policy
    ]
    return f"params={policy},compute={policy}", rules


def quantize_settings(levels: Mapping[str, str], base: str) -> tuple[str, str, list[Rule]] | None:
    """Return scheme, activation and rules of ``ji.quantize``; None if nothing is quantized."""
    wanted = {path: parts_of(level)[1] for path, level in levels.items()}
    default = parts_of(base)[1]
    used = [name for name in dict.fromkeys(wanted.values()) if name]
    if not used:
        return None
    first = default or used[0]
    rules = []
    for name, paths in _by_value(wanted).items():
        if name == first:
            continue
        if not name:
            rules.append(rule(pattern(paths), ignore=True))
        else:
            scheme, activation = _scheme(name)
            rules.append(rule(pattern(paths), scheme=scheme, activation=activation))
    return (*_scheme(first), rules)


def _scheme(name: str) -> tuple[str, str]:
    static = name.endswith("-static")
    return name.removesuffix("-static"), "static" if static else "dynamic"


def pattern(paths: Sequence[str]) -> str:
    r"""Return a pattern that matches some paths and no other.

    >>> pattern(["a.w", "q&k.w"])
    'a\\.w|q\\&k\\.w'
    """
    return "|".join(map(re.escape, paths))


def _by_value(found: Mapping[str, str]) -> dict[str, list[str]]:
    turned: dict[str, list[str]] = {}
    for path, value in found.items():
        turned.setdefault(value, []).append(path)
    return turned
