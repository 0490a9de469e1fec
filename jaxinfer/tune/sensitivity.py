"""How much the outputs suffer if one group of layers alone has a lower precision.

    divergence = max over float outputs of  ||y_group - y||_2 / ||y||_2      over the data set

in float64 on the host; y are the outputs of the model as it is. One program is compiled (for each
shape of a call): its parameters and one flag for each group are inputs (``_switch.py``). What a
group is switched to is what ``cast`` and ``quantize`` would make of it: weights decided, scaled
and rounded by the same functions, activations with scales of each token (``W8A8``, ``FP8``).

Approximations: static scales (``W8A8-static``) are those of each call, not of calibration data;
OpenVINO's ``int8`` (NNCF) is taken as ``W8A8-static``; with half types, arithmetic between
products stays in float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxinfer.core._compat import x64_scope
from jaxinfer.core.array_types import materialize
from jaxinfer.core.errors import InputError
from jaxinfer.core.leaves import leaves
from jaxinfer.core.model import Model
from jaxinfer.core.program import x64_of
from jaxinfer.core.trace import trace
from jaxinfer.tune._layers_levels import read_level
from jaxinfer.tune._layers_products import example_of
from jaxinfer.tune._switch import PRODUCTS, decisions, level_weights, switched
from jaxinfer.tune.data import Dataset, run_all
from jaxinfer.tune.groups import Group

Progress = Callable[[str, int, int], None]
"""Called before each group: its name, its place from 0, and how many there are."""

Flat = Callable[[list[np.ndarray]], Sequence[Any]]


def sensitivities(
    model: Model,
    dataset: Dataset,
    groups: Sequence[Group],
    level: str,
    progress: Progress | None = None,
) -> dict[str, float]:
    """Return the divergence of the outputs with each group alone at a level.

    Args:
      model: of one component, in float32.
      dataset: calls to run it on; every group runs all of them.
      groups: of ``find_groups``.
      level: of ``candidate.LEVELS``.
      progress: is called before each group.

    Returns:
      {name of the group: divergence}: 0 where the level changes nothing (parameters that cannot be
      quantized), infinity where the outputs are not finite. Models without float outputs: the
      share of values that differ.

    Raises:
      InputError: unknown levels, no calls, a model of several components.

    Cost: one compilation for each shape of a call, ``len(groups) + 1`` runs of the data set, and
    quantizing each weight once. Memory: the outputs of the data set twice, and the weights of the
    largest group once more (float32, decoded).
    """
    made = read_level(level)
    if not dataset.calls:
        raise InputError("sensitivities: the data set holds no call")
    if len(model.components) != 1:
        raise InputError(
            f"sensitivities: required a model of one function, got {', '.join(model.components)}"
        )
    with x64_scope(x64_of(model.program)):
        named = leaves(model.params)
        paths = [path for group in groups for path in group.paths]
        (first,) = trace(model, example_of(model, dataset.calls[0]))
        decided = decisions(named, first, paths, made) if made.scheme else {}
        runs = _Runs(model, groups, made, decided)
        off = np.zeros(len(groups), np.float32)
        want = run_all(runs.with_flags(off, {}), dataset)
        found: dict[str, float] = {}
        for place, group in enumerate(groups):
            if progress is not None:
                progress(group.name, place, len(groups))
            own = {path: named[path] for path in group.paths}
            if made.scheme and not made.cast:
                own = {path: leaf for path, leaf in own.items() if path in decided}
            if level == "f32" or not own:
                found[group.name] = 0.0
                continue
            flags = off.copy()
            flags[place] = 1
            weights = level_weights(own, made, decided)
            got = run_all(runs.with_flags(flags, weights), dataset)
            found[group.name] = divergence(got, want)
            del weights, got
    return found


class _Runs:
    """The switched function of a model, compiled for each shape of a call that comes."""

    def __init__(self, model: Model, groups: Sequence[Group], level: Any, decided: Any):
        self.model, self.level, self.decided = model, level, decided
        self.places = {path: n for n, group in enumerate(groups) for path in group.paths}
        self.arrays = {path: materialize(leaf) for path, leaf in leaves(model.params).items()}
        self.made: dict[Any, Any] = {}

    def with_flags(self, flags: np.ndarray, weights: dict[str, Any]) -> Flat:
        """Return a function of a call's arrays, with some groups switched on."""
        params = [weights.get(path, leaf) for path, leaf in self.arrays.items()]

        def flat(arrays: list[np.ndarray]) -> Sequence[Any]:
            given = [jnp.asarray(value) for value in arrays]
            key = [jax.random.key(0)] if self.model.program.random else []
            return self._function(given)(jnp.asarray(flags), params, [*given, *key])

        return flat

    def _function(self, arrays: Sequence[Any]) -> Callable[..., list[Any]]:
        key = tuple((value.shape, value.dtype.name) for value in arrays)
        if key not in self.made:
            (traced,) = trace(self.model, example_of(self.model, arrays))
            sites = {
                site.address: (site, self.places[site.path])
                for site in traced.uses.sites
                if site.path in self.places and site.primitive in PRODUCTS
            }
            _, self.made[key] = switched(traced, sites, self.level, self.decided)
        return self.made[key]


def divergence(got: Sequence[Sequence[Any]], want: Sequence[Sequence[Any]]) -> float:
    """Return the largest relative L2 error of any float output over all calls.

    Args:
      got, want: results of each call, in the same order.

    >>> divergence([[np.array([3.0, 4.5])]], [[np.array([3.0, 4.0])]])
    0.1
    """
    errors, others = [], []
    for outputs in zip(*([list(zip(*pair, strict=True)) for pair in zip(got, want, strict=True)]),
                       strict=True):  # fmt: skip
        floats = jnp.issubdtype(outputs[0][1].dtype, jnp.inexact)
        (errors if floats else others).append(outputs)
    if not errors:
        wrong = sum(int(np.sum(g != w)) for each in others for g, w in each)
        return wrong / max(1, sum(w.size for each in others for _, w in each))
    return max(map(_relative, errors))


def _relative(pairs: Sequence[tuple[Any, Any]]) -> float:
    off = size = 0.0
    for got, want in pairs:
        kind = np.complex128 if np.iscomplexobj(want) else np.float64
        g, w = np.asarray(got).astype(kind), np.asarray(want).astype(kind)
        finite = np.isfinite(w) & np.isfinite(g)
        if not np.array_equal(g[~finite], w[~finite], equal_nan=True):
            return math.inf
        off += float(np.sum(np.abs(g[finite] - w[finite]) ** 2))
        size += float(np.sum(np.abs(w[finite]) ** 2))
    return math.sqrt(off / size) if size else math.sqrt(off)
