"""What is pruned, and how: patterns as words, settings checked, a choice for each parameter.

A choice follows from where the parameter goes (``core.provenance``) and from the rules; nothing
is guessed by shape or by name.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp

from jaxinfer.core.array_types import is_array_type, nbytes
from jaxinfer.core.audit import Entry
from jaxinfer.core.errors import InputError, listing
from jaxinfer.core.leaves import leaves
from jaxinfer.core.model import Model
from jaxinfer.core.provenance import Obstacle, Site, by_path
from jaxinfer.core.selectors import Rule, resolve
from jaxinfer.core.trace import trace
from jaxinfer.numerics.masks import DISTRIBUTIONS

METHODS = ("magnitude", "random", "scores")
SCOPES = ("local", "global")
PATTERNS = ("unstructured", "2:4", "block:4x4", "channel")
"""Examples of patterns: ``n:m`` and ``block:AxB...`` take any sizes."""

DEFAULT = 0.5
"""The sparsity of what has none of its own."""


@dataclasses.dataclass(frozen=True)
class Pattern:
    """A pattern: its kind, and its sizes (n and m, or those of a block)."""

    kind: str
    sizes: tuple[int, ...] = ()

    @property
    def sparsity(self) -> float | None:
        """What the pattern determines, None if it is free."""
        return 1 - self.sizes[0] / self.sizes[1] if self.kind == "nm" else None


def pattern_of(word: Any) -> Pattern:
    """Read a pattern.

    Raises:
      ValueError: it is none; with near misses.

    >>> pattern_of("2:4"), pattern_of("block:16x1").sizes
    (Pattern(kind='nm', sizes=(2, 4)), (16, 1))
    """
    text = str(word)
    if text in ("unstructured", "channel"):
        return Pattern(text)
    if match := re.fullmatch(r"(\d+):(\d+)", text):
        n, m = map(int, match.groups())
        if 1 <= n <= m:
            return Pattern("nm", (n, m))
        raise ValueError(f"pattern {text!r}: required 1 <= n <= m: n of each m are kept")
    if match := re.fullmatch(r"block:(\d+(?:x\d+)*)", text):
        sizes = tuple(map(int, match[1].split("x")))
        if min(sizes) >= 1:
            return Pattern("block", sizes)
        raise ValueError(f"pattern {text!r}: required sizes of at least 1")
    raise ValueError(f"pattern: {_unknown(word, PATTERNS)}")


@dataclasses.dataclass(frozen=True)
class Options:
    """What ``prune`` was asked, checked."""

    defaults: Mapping[str, Any]
    rules: tuple[Rule, ...]
    scope: str
    distribution: str


@dataclasses.dataclass(frozen=True)
class Choice:
    """How one parameter is pruned.

    Attributes:
      method, pattern, sparsity: as asked; of n:m the sparsity is 1 - n / m.
      axes: of the parameter: the one along which groups of n:m lie, or the output channels.
    """

    method: str
    pattern: str
    sparsity: float
    axes: tuple[int, ...] = ()


def options(
    method: str,
    sparsity: float | None,
    pattern: str,
    scope: str,
    distribution: str,
    rules: Sequence[Rule],
) -> Options:
    """Check what can be checked without a model; all problems at once.

    Raises:
      InputError: unknown words (with near misses), sparsities out of range, combinations that
        contradict each other.
    """
    defaults = {
        "method": method,
        "sparsity": sparsity,
        "pattern": pattern,
        "axis": None,
        "anywhere": False,
    }
    problems = _problems("prune", defaults)
    if scope not in SCOPES:
        problems.append(f"prune: scope: {_unknown(scope, SCOPES)}")
    if distribution not in DISTRIBUTIONS:
        problems.append(f"prune: distribution: {_unknown(distribution, DISTRIBUTIONS)}")
    if scope == "global" and distribution == "erk":
        problems.append(
            "prune: scope='global' has one threshold for all parameters, which leaves no use for "
            "distribution='erk'; leave one of them out"
        )
    ready = []
    for number, each in enumerate(rules, 1):
        own = dict(each.settings)
        if "pattern" in own and not each.ignore:
            own.setdefault("sparsity", _inherited(sparsity, own["pattern"]))
        ready.append(dataclasses.replace(each, settings=own))
        known = {name: value for name, value in own.items() if name in defaults}
        what = f"rule {number} ({each.pattern!r})"
        problems += _problems(what, {**defaults, **known}) if known else []
    if scope == "global":
        words = [pattern, *(each.settings.get("pattern", pattern) for each in ready)]
        other = sorted({str(word) for word in words} - {"unstructured"})
        if other:
            problems.append(
                f"prune: scope='global' is for pattern 'unstructured', got {', '.join(other)}; "
                "a pattern has its sparsity in each parameter"
            )
    if problems:
        raise InputError(listing("pruning as asked cannot be done:", problems))
    return Options(defaults, tuple(ready), scope, distribution)


def _inherited(sparsity: float | None, word: Any) -> float | None:
    """Return the sparsity of a rule that changes the pattern and says none itself."""
    try:
        return None if pattern_of(word).sparsity is not None else sparsity
    except ValueError:
        return None  # reported with the rule


def _problems(what: str, settings: Mapping[str, Any]) -> list[str]:
    found = []
    if settings["method"] not in METHODS:
        found.append(f"{what}: method: {_unknown(settings['method'], METHODS)}")
    sparsity, axis = settings["sparsity"], settings["axis"]
    if sparsity is not None and not (_is_number(sparsity) and 0 <= sparsity < 1):
        found.append(f"{what}: sparsity: required a number in [0, 1), got {sparsity!r}")
        sparsity = None
    if axis is not None and (not isinstance(axis, int) or isinstance(axis, bool)):
        found.append(f"{what}: axis: required an integer, got {axis!r}")
    try:
        pattern = pattern_of(settings["pattern"])
    except ValueError as error:
        return [*found, f"{what}: {error}"]
    own = pattern.sparsity
    if own is not None and sparsity is not None and abs(own - sparsity) > 1e-6:
        n, m = pattern.sizes
        found.append(
            f"{what}: pattern {n}:{m} is a sparsity of {own:g}, got sparsity={sparsity:g}; "
            "leave sparsity out"
        )
    return found


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _unknown(got: Any, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(str(got), known, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"required one of {', '.join(known)}, got {got!r}{hint}"


def plan(model: Model, asked: Options) -> tuple[dict[str, Choice], list[Entry]]:
    """Return a choice for each parameter that is pruned, and an entry for each other one.

    Raises:
      InputError: rules that decide nothing, an axis that a parameter does not have.
    """
    named = leaves(model.params)
    settings = resolve(asked.rules, named, asked.defaults)
    sites, obstacles = _uses(model)
    kinds = getattr(model.program, "state_kinds", {})
    choices: dict[str, Choice] = {}
    entries, problems = [], []
    for path, leaf in named.items():
        found = _decide(
            leaf, settings[path], sites.get(path, []), obstacles.get(path, []), kinds.get(path)
        )
        if isinstance(found, Choice):
            axes = [axis for axis in found.axes if not -leaf.ndim <= axis < leaf.ndim]
            if axes:
                problems.append(f"{path}: axis={axes[0]}, required one of its {leaf.ndim} axes")
            axes = tuple(axis % leaf.ndim for axis in found.axes) if not axes else ()
            choices[path] = dataclasses.replace(found, axes=axes)
            continue
        status, why, source = found
        size = nbytes(leaf)
        entries.append(Entry(path, status, why, source, size, size))
    if problems:
        raise InputError(listing("pruning as asked cannot be done:", problems))
    return choices, entries


def _uses(model: Model) -> tuple[dict[str, list[Site]], dict[str, list[Obstacle]]]:
    """Return sites and obstacles by path, of all functions of a model together."""
    sites: dict[str, list[Site]] = {}
    obstacles: dict[str, list[Obstacle]] = {}
    for traced in trace(model):
        for path, (own_sites, own_obstacles) in by_path(traced.uses).items():
            sites.setdefault(path, []).extend(own_sites)
            obstacles.setdefault(path, []).extend(own_obstacles)
    return sites, obstacles


def _decide(
    leaf: Any,
    settings: Mapping[str, Any] | None,
    sites: Sequence[Site],
    obstacles: Sequence[Obstacle],
    kind: str | None,
) -> Choice | tuple[str, str, str]:
    """Return how a parameter is pruned, or (status, why, source line) why it is not."""
    if settings is None:
        return "ignored", "by a rule", ""
    if is_array_type(leaf):
        return "unfit", f"a {type(leaf).__name__}: prune before what made it", ""
    if not jnp.issubdtype(leaf.dtype, jnp.floating) or not leaf.size:
        return "unfit", f"{leaf.dtype}{list(leaf.shape)}", ""
    if not sites and not obstacles:
        return "unused", "the function does not read it", ""
    products = [site for site in sites if site.primitive != "gather"]
    if not settings["anywhere"] and (reason := _reason(leaf, products, obstacles, kind)):
        return reason
    pattern = pattern_of(settings["pattern"])
    axes = _axes(pattern, leaf, products, settings["axis"])
    if isinstance(axes, str):
        return ("blocked" if products else "unfit"), axes, products[0].source if products else ""
    own = settings["sparsity"]
    sparsity = pattern.sparsity if pattern.sparsity is not None else DEFAULT if own is None else own
    return Choice(settings["method"], str(settings["pattern"]), float(sparsity), axes)


def _reason(
    leaf: Any, products: Sequence[Site], obstacles: Sequence[Obstacle], kind: str | None
) -> tuple[str, str, str] | None:
    """Return why a parameter is not pruned unless a rule says ``anywhere=True``."""
    advice = "; a rule with anywhere=True prunes it"
    if obstacles and (products or leaf.ndim > 1):
        first = obstacles[0]
        return "blocked", f"used as it is by {first.primitive}{advice}", first.source
    if obstacles:
        return "unfit", f"a vector used by {obstacles[0].primitive}: a bias or scale{advice}", ""
    if not products:
        return "unfit", f"an embedding: only rows of it are taken{advice}", ""
    return ("unfit", f"a buffer{advice}", "") if kind == "buffer" else None


def _axes(
    pattern: Pattern, leaf: Any, products: Sequence[Site], axis: int | None
) -> tuple[int, ...] | str:
    """Return the axes that a pattern needs of a parameter, or why it has none."""
    if pattern.kind == "block" and len(pattern.sizes) > leaf.ndim:
        return f"it has {leaf.ndim} axes, a block {len(pattern.sizes)}"
    if pattern.kind in ("unstructured", "block"):
        return ()
    if axis is not None:
        return (axis,)
    advice = "; give a rule axis="
    if not products:
        return f"no product says along which axis a {pattern.kind} pattern runs{advice}"
    if pattern.kind == "channel":
        used = {a for site in products for a in (*site.contracting, *site.indexed)}
        free = tuple(a for a in range(leaf.ndim) if a not in used)
        return free or f"its products sum over every axis: it has no output channels{advice}"
    shared = set.intersection(*(set(site.contracting) for site in products))
    if not shared:
        each = ", ".join(sorted({f"{list(site.contracting)}" for site in products}))
        return f"its products sum over different axes, {each}{advice}"
    m, shape = pattern.sizes[1], leaf.shape
    return (max(shared, key=lambda a: (shape[a] % m == 0, shape[a], a)),)
