"""Errors that carry every problem at once, with the leaf path and what to do.

The classes are the built-in kinds (``ValueError`` for values and shapes, ``TypeError`` for
kinds, ``NotImplementedError`` for missing rules), so ``except ValueError`` keeps working;
the subclasses exist so that the command line can tell a user's problem from a bug.
"""

from __future__ import annotations

from collections.abc import Sequence


class JaxinferError(Exception):
    """Base of every error that jaxinfer raises on purpose."""


class InputError(JaxinferError, ValueError):
    """An input at call time does not fit the model (count, structure, shape, value)."""


class InputTypeError(JaxinferError, TypeError):
    """An input at call time has the wrong kind or dtype."""


class ConversionError(JaxinferError, ValueError):
    """A model cannot be converted as it is; the message says which line and what to do."""


class MissingRulesError(JaxinferError, NotImplementedError):
    """Operators without a lowering rule, all of them at once."""


class CheckpointError(JaxinferError, ValueError):
    """A weight file is missing, damaged, hostile, or does not fit the model."""


class ArtefactError(JaxinferError, ValueError):
    """A model directory is damaged, or of a newer schema, or in the way."""


class ParityError(JaxinferError, ValueError):
    """The converted model does not give the original's numbers within the tolerance."""


class MissingExtraError(JaxinferError, ImportError):
    """An optional package is not installed; the message names the extra."""


def listing(title: str, problems: Sequence[str], advice: str = "") -> str:
    """Join all problems found under one title, one a line, with advice at the end.

    >>> print(listing("2 weights do not fit:", ["a: missing", "b: extra"], "Check the file."))
    2 weights do not fit:
      a: missing
      b: extra
    Check the file.
    """
    lines = [title, *(f"  {problem}" for problem in problems)]
    return "\n".join([*lines, advice] if advice else lines)
