"""Masks from choices: scores, patterns, and how a sparsity is divided. Arrays to arrays."""

from __future__ import annotations

import difflib
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxinfer.core.errors import InputError, listing
from jaxinfer.core.leaves import leaves
from jaxinfer.numerics import masks as numerics
from jaxinfer.transforms._prune_plan import Choice, pattern_of

Array = jax.Array


def user_scores(scores: Any, choices: Mapping[str, Choice], shapes: Mapping[str, Any]) -> Any:
    """Return the user's scores by path, those that are needed.

    Raises:
      InputError: none given, missing paths (with near misses), other shapes; all at once.
    """
    needed = [path for path, choice in choices.items() if choice.method == "scores"]
    if not needed:
        return {}
    if scores is None:
        raise InputError(
            "prune: method 'scores' requires scores=, a pytree of the parameters' structure or a "
            "dict by path"
        )
    named = leaves(scores)
    problems, found = [], {}
    for path in needed:
        if path not in named:
            near = difflib.get_close_matches(path, named, n=2)
            problems.append(f"{path}: no scores" + (f"; near: {', '.join(near)}" if near else ""))
        elif tuple(named[path].shape) != tuple(shapes[path]):
            problems.append(
                f"{path}: scores of shape {tuple(named[path].shape)}, "
                f"required {tuple(shapes[path])}"
            )
        else:
            found[path] = jnp.asarray(named[path])
    if problems:
        raise InputError(listing("prune: scores that do not fit:", problems))
    return found


def scores_of(path: str, choice: Choice, weight: Array, key: Array | None, given: Any) -> Array:
    """Return the scores of one parameter; random ones depend on the key and on its path."""
    if choice.method == "scores":
        return given[path]
    if choice.method == "random":
        assert key is not None
        own = jax.random.fold_in(key, zlib.crc32(path.encode()))
        return numerics.random(own, weight.shape)
    return numerics.magnitude(weight)


def masks_of(
    choices: Mapping[str, Choice],
    scores: Mapping[str, Array],
    sparsities: Mapping[str, Any],
    scope: str,
) -> dict[str, Array]:
    """Return the mask of each parameter.

    Args:
      choices: by path.
      scores: by path.
      sparsities: by path (numbers or traced scalars); those of n:m do not matter.
      scope: ``local``: each parameter has its sparsity. ``global``: those that were asked the
        same sparsity reach it together.
    """
    if scope == "global":
        found: dict[str, Array] = {}
        for group in alike(choices):
            own = {path: scores[path] for path in group}
            found |= numerics.global_masks(own, sparsities[group[0]])
        return {path: found[path] for path in choices}
    return {
        path: _mask(path, choice, scores[path], sparsities[path])
        for path, choice in choices.items()
    }


def _mask(path: str, choice: Choice, scores: Array, sparsity: Any) -> Array:
    pattern = pattern_of(choice.pattern)
    if pattern.kind == "nm":
        n, m = pattern.sizes
        return numerics.nm(scores, n, m, choice.axes[0], path=path)
    if pattern.kind == "block":
        return numerics.block(scores, sparsity, pattern.sizes, path=path)
    if pattern.kind == "channel":
        return numerics.channel(scores, sparsity, choice.axes, path=path)
    return numerics.unstructured(scores, sparsity, path=path)


def divided(
    choices: Mapping[str, Choice], shapes: Mapping[str, Sequence[int]], distribution: str
) -> dict[str, float]:
    """Return the sparsity of each parameter: those that were asked the same share it."""
    found = {path: choice.sparsity for path, choice in choices.items()}
    if distribution == "erk":
        free = {path: c for path, c in choices.items() if pattern_of(c.pattern).kind != "nm"}
        for group in alike(free):
            own = {path: shapes[path] for path in group}
            found |= numerics.allocate(own, choices[group[0]].sparsity, distribution)
    return found


def alike(choices: Mapping[str, Choice]) -> list[list[str]]:
    """Return the paths in groups of one method, pattern and sparsity."""
    groups: dict[Any, list[str]] = {}
    for path, choice in choices.items():
        kind = (choice.method, choice.pattern, choice.sparsity)
        groups.setdefault(kind, []).append(path)
    return list(groups.values())
