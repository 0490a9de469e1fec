"""RuleTable: a registry keyed by name, where a second registration is an error.

Rules are plain functions. A missing key is reported with near misses and with the way to
register one, never as a bare ``KeyError``.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class RuleTable(Mapping[str, T], Generic[T]):
    """A mapping from names to rules that refuses duplicates.

    >>> table = RuleTable("greeting")
    >>> @table.register("hello.default")
    ... def hello(name): return f"hello {name}"
    >>> table["hello.default"]("you")
    'hello you'
    >>> table.near("hello.defualt")
    ['hello.default']
    """

    def __init__(self, name: str):
        self.name = name
        self._rules: dict[str, T] = {}

    def register(self, *names: str, replace: bool = False) -> Callable[[Any], Any]:
        """Register the decorated object under each of ``names``.

        Args:
          names: keys, for example ``"aten.add.Tensor"``.
          replace: allow an existing rule to be replaced (a user's own rule for a known op).

        Raises:
          ValueError: a name is taken already and ``replace`` is false, or no name is given.
        """
        if not names:
            raise ValueError(f"register a {self.name} rule under at least one name")

        def add(rule: T) -> T:
            for name in names:
                if name in self._rules and not replace:
                    raise ValueError(
                        f"a {self.name} rule for {name!r} exists already "
                        f"({self._rules[name]!r}); pass replace=True to override it"
                    )
                self._rules[name] = rule
            return rule

        return add

    def unregister(self, name: str) -> None:
        """Remove the rule for ``name`` (tests and notebooks that re-run a cell)."""
        del self._rules[name]

    def near(self, name: str, n: int = 3) -> list[str]:
        """Return up to ``n`` registered names that look like ``name``."""
        stem = name.rsplit(".", 1)[0]
        overloads = [known for known in self._rules if known.rsplit(".", 1)[0] == stem]
        return (overloads or difflib.get_close_matches(name, self._rules, n=n, cutoff=0.75))[:n]

    def __getitem__(self, name: str) -> T:
        return self._rules[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._rules)

    def __len__(self) -> int:
        return len(self._rules)

    def __repr__(self) -> str:
        return f"RuleTable({self.name!r}, {len(self)} rules)"
