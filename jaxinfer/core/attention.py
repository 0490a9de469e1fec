"""How attention is computed while a program is traced: chosen from outside, for that trace alone.

    whole     all scores at once
    blocked   a few heads after each other, entries of the batch too
    cudnn     ``jax.nn.dot_product_attention(implementation="cudnn")``, NVIDIA GPUs alone

A rule that lowers an attention operation asks ``chosen()`` and says with ``record`` what it did.
The choice is a context variable: it reaches whatever is traced within ``attention_as``, in this
thread, and nothing else.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator
from typing import NamedTuple

MODES = ("whole", "blocked", "cudnn")


class Used(NamedTuple):
    """How one attention operation was lowered.

    Attributes:
      how: one of ``MODES``.
      why: why it is not as it was asked, or what has to be known of it.
      shape: of the scores, [..., heads, queries, keys].
    """

    how: str
    why: str = ""
    shape: tuple[int, ...] = ()


class _Choice(NamedTuple):
    mode: str
    found: list[Used]


_CHOICE: contextvars.ContextVar[_Choice | None] = contextvars.ContextVar("attention", default=None)


@contextlib.contextmanager
def attention_as(mode: str) -> Iterator[list[Used]]:
    """Have the attention operations that are traced within lowered in one way.

    Args:
      mode: one of ``MODES``, or "" for what each rule takes by itself.

    Yields:
      A list, to which each operation that is traced adds one ``Used``.

    Raises:
      ValueError: another mode.

    >>> with attention_as("whole") as found:
    ...     record(chosen())
    >>> found, chosen()
    ([Used(how='whole', why='', shape=())], '')
    """
    if mode and mode not in MODES:
        raise ValueError(f"attention: required one of {', '.join(MODES)}, got {mode!r}")
    choice = _Choice(mode, [])
    token = _CHOICE.set(choice)
    try:
        yield choice.found
    finally:
        _CHOICE.reset(token)


def chosen() -> str:
    """Return the mode that is asked for where the caller is traced; "" if none is."""
    choice = _CHOICE.get()
    return choice.mode if choice is not None else ""


def record(how: str, why: str = "", shape: tuple[int, ...] = ()) -> None:
    """Say how an attention operation was lowered; for whoever asked, if anyone did."""
    choice = _CHOICE.get()
    if choice is not None:
        choice.found.append(Used(how, why, shape))
