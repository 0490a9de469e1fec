"""A guard against compiling by accident: code within it raises where JAX would compile.

JAX reports each lowering through ``jax.monitoring``; the guard listens there and raises before
XLA is asked. It sees every thread: a guard that is entered in one thread catches what another
compiles meanwhile.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

import jax

from jaxinfer.core.errors import JaxinferError

LOWERED = "/jax/core/compile/jaxpr_to_mlir_module_duration"
COMPILED = "/jax/core/compile/backend_compile_duration"

_lock = threading.Lock()
_guards = 0
_listening = False
compiled = 0
"""How many programs this process has compiled since the first use of a guard or a count."""


class CompileError(JaxinferError, RuntimeError):
    """A program would be compiled where that is forbidden."""


@contextlib.contextmanager
def no_compile() -> Iterator[None]:
    """Raise CompileError if anything is compiled within.

    >>> import jax.numpy as jnp, jax
    >>> double = jax.jit(lambda x: x * 2)
    >>> x = double(jnp.ones(3))
    >>> with no_compile():
    ...     x = double(x)
    >>> with no_compile():
    ...     double(jnp.ones(5))
    Traceback (most recent call last):
    jaxinfer.compile.guard.CompileError: a program would be compiled within no_compile()...
    """
    global _guards
    listen()
    with _lock:
        _guards += 1
    try:
        yield
    finally:
        with _lock:
            _guards -= 1


def listen() -> None:
    """Start to count compilations; once for the process."""
    global _listening
    with _lock:
        if not _listening:
            jax.monitoring.register_event_duration_secs_listener(_event)
            _listening = True


def _event(event: str, duration_secs: float, **_: str | int) -> None:
    global compiled
    del duration_secs
    if event == COMPILED:
        compiled += 1
    if event == LOWERED and _guards:
        raise CompileError(
            "a program would be compiled within no_compile(): an input of a shape, dtype or "
            "structure that was not there before, or a JAX operation outside the executable"
        )
