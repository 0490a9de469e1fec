"""Rules that choose parameters by their path: the first that matches a path decides it.

    rules = [
        rule(r"lm_head\\..*", ignore=True),
        rule(r".*\\.(query|key)\\.weight", scheme="W4A16", group=64),
        rule(r".*"),
    ]

A pattern is a regular expression (Python's ``re``) for the whole path. A rule that decides no
path is an error, because it is a mistake in the pattern or in the order: nothing is skipped in
silence. Paths that no rule matches get the defaults.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxinfer.core.errors import InputError, listing


@dataclasses.dataclass(frozen=True)
class Rule:
    """What to do with the parameters whose path a pattern matches.

    Attributes:
      pattern: a regular expression for the whole path.
      settings: what differs from the defaults.
      ignore: leave these parameters as they are.
    """

    pattern: str
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    ignore: bool = False


def rule(pattern: str, /, *, ignore: bool = False, **settings: Any) -> Rule:
    """Return a rule. A setting may be called ``pattern`` as well: that of the path has no name.

    >>> rule(r".*weight", scheme="W8A16").settings
    {'scheme': 'W8A16'}
    """
    return Rule(pattern, settings, ignore)


def resolve(
    rules: Sequence[Rule], paths: Iterable[str], defaults: Mapping[str, Any]
) -> dict[str, Mapping[str, Any] | None]:
    """Return the settings of every path; None for one that a rule leaves as it is.

    Raises:
      InputError: patterns that are no regular expressions, settings that have no default
        (with near misses), rules that decide no path; all at once.

    >>> found = resolve([rule("a.*", ignore=True)], ["a.w", "b.w"], {"scheme": "W8A16"})
    >>> found
    {'a.w': None, 'b.w': {'scheme': 'W8A16'}}
    """
    paths, problems, compiled = list(paths), [], []
    for number, each in enumerate(rules, 1):
        what = f"rule {number} ({each.pattern!r})"
        try:
            compiled.append(re.compile(each.pattern))
        except re.error as error:
            problems.append(f"{what}: no regular expression: {error}")
            continue
        for name in each.settings:
            if name not in defaults:
                near = difflib.get_close_matches(name, defaults, n=3) or sorted(defaults)
                problems.append(f"{what}: unknown setting {name!r}; known: {', '.join(near)}")
        if each.ignore and each.settings:
            problems.append(f"{what}: ignore leaves no use for {', '.join(each.settings)}")
    if problems:
        raise InputError(listing("rules that cannot be used:", problems))
    found: dict[str, Mapping[str, Any] | None] = {}
    deciding: dict[int, int] = {}
    for path in paths:
        place = next((i for i, one in enumerate(compiled) if one.fullmatch(path)), None)
        if place is None:
            found[path] = dict(defaults)
            continue
        deciding[place] = deciding.get(place, 0) + 1
        chosen = rules[place]
        found[path] = None if chosen.ignore else {**defaults, **chosen.settings}
    for place, each in enumerate(rules):
        if place not in deciding:
            problems.append(_idle(place, each, compiled, paths))
    if problems:
        advice = "The first rule that matches a path decides it; a pattern is for the whole path."
        raise InputError(listing("rules that decide no parameter:", problems, advice))
    return found


def _idle(place: int, each: Rule, compiled: Sequence[re.Pattern[str]], paths: Sequence[str]) -> str:
    """Say why a rule decides nothing."""
    what = f"rule {place + 1} ({each.pattern!r})"
    taken = [path for path in paths if compiled[place].fullmatch(path)]
    if taken:
        earlier = next(i for i, one in enumerate(compiled) if one.fullmatch(taken[0]))
        return f"{what}: {taken[0]!r} and all others it matches are decided by rule {earlier + 1}"
    within = [path for path in paths if compiled[place].search(path)]
    if within:
        return f"{what}: it is found within {within[0]!r}, but is not the whole path"
    near = difflib.get_close_matches(each.pattern, paths, n=2, cutoff=0.5)
    return f"{what}: matches no path" + (f"; near: {', '.join(map(repr, near))}" if near else "")


def read_rules(path: str | Path) -> list[Rule]:
    """Read rules from a TOML file of ``[[rule]]`` tables with a ``path`` each.

        [[rule]]
        path = 'lm_head\\..*'
        ignore = true

        [[rule]]
        path = '.*\\.weight'
        scheme = "W4A16"
        group = 64

    Raises:
      InputError: no such file, no TOML, or tables of another form; all at once.
    """
    try:
        data = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InputError(f"rules: {path}: {error}") from error
    tables, problems, found = data.get("rule"), [], []
    others = sorted(set(data) - {"rule"})
    if others or not isinstance(tables, list) or not tables:
        got = f", got {', '.join(others)}" if others else ""
        raise InputError(f"rules: {path}: required tables [[rule]] and nothing else{got}")
    for number, table in enumerate(tables, 1):
        pattern, ignore = table.pop("path", None), table.pop("ignore", False)
        if not isinstance(pattern, str) or not isinstance(ignore, bool):
            problems.append(
                f"rule {number}: required path = 'a regular expression' and, if given, "
                f"ignore = true or false, got path {pattern!r}, ignore {ignore!r}"
            )
            continue
        found.append(Rule(pattern, table, ignore))
    if problems:
        raise InputError(listing(f"rules: {path}:", problems))
    return found
