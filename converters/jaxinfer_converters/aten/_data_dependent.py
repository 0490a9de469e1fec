"""Operators whose result's shape depends on values: refused, with what to write instead.

A JAX function has static shapes, so ``nonzero`` and friends have no lowering. Their rules are
registered all the same, so that the error names the reason and not a missing rule.
"""

from __future__ import annotations

from typing import Any, NoReturn

from jaxinfer_converters.aten._common import rule


def refuse(what: str, instead: str) -> NoReturn:
    """Raise ``NotImplementedError``: the shape of ``what`` depends on data; do ``instead``."""
    raise NotImplementedError(
        f"the output shape of {what} depends on the data, and JAX needs static shapes; {instead}"
    )


def data_dependent(*names: str, instead: str) -> None:
    """Register rules that refuse operators whose output shape depends on data."""
    for name in names:

        def refusing(*args: Any, _name: str = name, **kwargs: Any) -> NoReturn:
            refuse(_name, instead)

        rule(name)(refusing)
