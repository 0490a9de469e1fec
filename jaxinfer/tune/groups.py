"""Groups of layers: the parameters that products multiply by, by block of the network.

A group is what a search gives one precision. The parameters are followed through the function
(``core/provenance.py``), never guessed by shape; the blocks are read from their paths. Products
of one value (query, key, value) stay together, since folding makes one product of them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp

from jaxinfer.core.errors import InputError
from jaxinfer.core.leaves import leaves
from jaxinfer.core.model import Model
from jaxinfer.tune._layers_products import Products, products_of

Parts = tuple[str, ...]


class Group(NamedTuple):
    """Parameters that have one precision.

    Attributes:
      name: what their paths begin with; ``first..last`` of neighbours that are joined.
      paths: of the parameters, in order of use.
      flops: of all products with them in one call, a multiply-add being 2.
    """

    name: str
    paths: tuple[str, ...]
    flops: int


def find_groups(model: Model, arrays: Any, most: int = 24) -> list[Group]:
    """Return the parameters that products use, grouped by block, in order of first use.

    Blocks are as fine as ``most`` allows: a path is cut after as many names as give at most that
    many groups, everywhere alike, so that equal layers are grouped alike. Where that leaves less
    than half of them, or most FLOPs in one group, neighbours of the next finer cut are joined
    instead, as many everywhere.

    Args:
      model: of one component; parameters of any structure, array types among them.
      arrays: the inputs of one call (arrays or shapes), a call of a data set, or a data set.
      most: how many groups there may be.

    Returns:
      Groups of float parameters that a matrix product, a convolution or a gather uses. FLOPs
      are those at the call's shapes: scans in full, of branches by data the dearest, a while
      loop once; a parameter that is only gathered has none. Cost: one abstract trace.

    Raises:
      InputError: a model of several components, inputs that do not fit, ``most`` below 1.

    Example:
      >>> import jax.numpy as jnp, jaxinfer as ji
      >>> from jaxinfer.tune.groups import find_groups
      >>> params = {"a": {"w": jnp.ones((4, 8))}, "b": {"w": jnp.ones((8, 2)), "bias": jnp.ones(2)}}
      >>> fn = lambda p, x: jnp.tanh(x @ p["a"]["w"]) @ p["b"]["w"] + p["b"]["bias"]
      >>> model = ji.from_function(fn, params, (jnp.ones((3, 4)),))
      >>> find_groups(model, [jnp.ones((3, 4))])
      [Group(name='a', paths=('a.w',), flops=192), Group(name='b', paths=('b.w',), flops=96)]
    """
    if type(most) is not int or most < 1:
        raise InputError(f"find_groups: most: required a whole number from 1 on, got {most!r}")
    found = products_of(model, arrays)
    named = leaves(model.params)
    used = [
        path
        for path in dict.fromkeys(site.path for site in found.sites)
        if jnp.issubdtype(named[path].dtype, jnp.floating)
    ]
    flops = dict.fromkeys(used, 0)
    for product in found.all:
        if product.path in flops and product.counted:
            flops[product.path] += product.flops
    units = _units(used, found)
    return [
        Group(name, tuple(paths), sum(flops[path] for path in paths))
        for name, paths in _cut(units, most, flops)
    ]


def _units(used: Sequence[str], found: Products) -> dict[Parts, list[str]]:
    """Return what stays together, by name: parameters of one module's products of one value."""
    together: dict[Any, list[str]] = {}
    of: dict[str, Any] = {}
    for product in found.all:
        path = product.path
        if path is None or product.eqn.primitive.name != "dot_general" or path in of:
            continue
        key = (id(product.source), tuple(path.split("."))[:-2])
        of[path] = key
        together.setdefault(key, []).append(path)
    modules: dict[Parts, int] = {}
    for path in used:
        module = tuple(path.split("."))[:-1]
        modules[module] = modules.get(module, 0) + 1
    units: dict[Parts, list[str]] = {}
    named: dict[Any, Parts] = {}
    for path in used:
        key = of.get(path, path)
        if key not in named:
            members = [m for m in together.get(key, [path]) if m in used]
            named[key] = _name(members, modules)
        units.setdefault(named[key], []).append(path)
    return units


def _name(members: Sequence[str], modules: Mapping[Parts, int]) -> Parts:
    """Return the module of one parameter (its path if the module has several), of more what
    their paths begin with; where that is nothing, a name as ``fold`` would make it."""
    parts = [tuple(path.split(".")) for path in members]
    if len(parts) == 1:
        (path,) = parts
        return path[:-1] if len(path) > 1 and modules[path[:-1]] == 1 else path
    common = []
    for names in zip(*parts, strict=False):
        if len(set(names)) > 1:
            break
        common.append(names[0])
    if common:
        return tuple(common)
    return ("&".join(members) if len(members) < 4 else f"{members[0]}&{len(members) - 1}_others",)


def _cut(
    units: Mapping[Parts, list[str]], most: int, flops: Mapping[str, int]
) -> list[tuple[str, list[str]]]:
    """Return at most so many groups: name and paths."""
    levels: list[dict[Parts, list[str]]] = []
    for depth in range(max(map(len, units), default=0) + 1):
        level: dict[Parts, list[str]] = {}
        for name, paths in units.items():
            level.setdefault(name[:depth], []).extend(paths)
        levels.append(level)
    fits = [depth for depth, level in enumerate(levels) if len(level) <= most]
    depth = fits[-1] if fits else 0
    chosen = levels[depth]
    largest = max((sum(map(flops.__getitem__, paths)) for paths in chosen.values()), default=0)
    coarse = 2 * len(chosen) <= most or 2 * largest > sum(flops.values())
    if depth + 1 < len(levels) and coarse:
        joined = _neighbours(levels[depth + 1], depth, most)
        if len(chosen) < len(joined) <= most or not fits:
            return joined
    return [(".".join(name) or "all", paths) for name, paths in chosen.items()]


def _neighbours(
    level: Mapping[Parts, list[str]], depth: int, most: int
) -> list[tuple[str, list[str]]]:
    """Join neighbours that begin alike, everywhere as many."""
    families: dict[Parts, list[Parts]] = {}
    for name in level:
        families.setdefault(name[:depth], []).append(name)
    sizes = [len(names) for names in families.values()]
    size = next((n for n in range(1, max(sizes)) if _pieces(sizes, n) <= most), max(sizes))
    found = []
    for names in families.values():
        for start in range(0, len(names), size):
            run = names[start : start + size]
            title = ".".join(run[0])
            if len(run) > 1:
                title += f"..{'.'.join(run[-1][depth:])}"
            found.append((title, [path for name in run for path in level[name]]))
    return found


def _pieces(sizes: Sequence[int], size: int) -> int:
    return sum(math.ceil(n / size) for n in sizes)


def group_of(path: str, groups: Sequence[Group]) -> str | None:
    """Return the group that a parameter belongs to, or None where that is not sure.

    A parameter of a group belongs to it. One that folding has made (``query&key.weight``,
    ``w.folded``) belongs to the group that holds all its parts. Any other (a bias, a norm)
    belongs to the only group with parameters in the innermost module around it that has any.

    Args:
      path: of a parameter of the model, folded or not.
      groups: of ``find_groups`` for the model before folding.

    >>> groups = [Group("a", ("a.q.weight", "a.k.weight"), 1), Group("b", ("b.w",), 1)]
    >>> [group_of(p, groups) for p in ("a.q&k.weight", "a.q.bias", "b.w.folded", "c.bias")]
    ['a', 'a', 'b', None]
    """
    of = {each: group.name for group in groups for each in group.paths}
    whole = path
    while whole not in of and whole.endswith(".folded"):
        whole = whole.removesuffix(".folded")
    if whole in of:
        return of[whole]
    if "&" in whole:
        parts = _parts(whole, of)
        names = {of[part] for part in parts}
        return names.pop() if len(names) == 1 else None
    names = whole.split(".")
    for end in range(len(names) - 1, 0, -1):
        prefix = ".".join(names[:end]) + "."
        inside = {name for each, name in of.items() if each.startswith(prefix)}
        if inside:
            return inside.pop() if len(inside) == 1 else None
    return None


def _parts(path: str, of: Mapping[str, str]) -> list[str]:
    """Return the parameters that a joined name (``fold``'s) was made of; none if it is unclear."""
    first, *middle, last = path.split("&")
    head, tail = first.split("."), last.split(".")
    for start in range(len(head)):
        for end in range(len(tail), 0, -1):
            before, after = head[:start], tail[end:]
            names = [head[start:], *(each.split(".") for each in middle), tail[:end]]
            made = [".".join([*before, *name, *after]) for name in names]
            made = [each.removesuffix(".folded") if each not in of else each for each in made]
            if all(each in of for each in made):
                return made
    return []
