"""Native code: compiled by XLA, serialized, and loaded again.

``serialize_executable`` of JAX pickles, so loading runs whatever the bytes say: it is done only
for a directory that the user names (``load_executable``), or for the user's own cache after
owner and mode were looked at (``_cache``), and after length, digest and key were checked.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax.experimental import serialize_executable

from jaxinfer.compile import _cache
from jaxinfer.compile._noise import without_false_alarm
from jaxinfer.core.errors import InputError


class Arity(tuple[int, ...]):
    """How many arrays each argument of a flat function is, and how many results it has."""

    @property
    def in_tree(self) -> Any:
        """The structure of its arguments."""
        return jax.tree.structure((tuple([0] * count for count in self[:-1]), {}))

    @property
    def out_tree(self) -> Any:
        """The structure of its results."""
        return jax.tree.structure([0] * self[-1])


def build(
    lowered: Any, options: Mapping[str, Any], devices: Sequence[Any], cache: Any
) -> tuple[Any, bytes | None, str]:
    """Compile, or take the code from the user's cache; returns it, its bytes, and the origin."""
    if cache is None:
        compiled = compile_lowered(lowered, options)
        return compiled, serialize(compiled), "compiled"
    key = _cache.key_of(lowered, options, devices)
    arity = arity_of(lowered)
    data, why = _cache.read(cache, key)
    if data is not None:
        try:
            return load(data, arity, devices), data, "cache"
        except Exception as error:  # whatever unpickling meets: it is compiled, and said
            why = f"the cache's code does not load: {type(error).__name__}"
    compiled = compile_lowered(lowered, options)
    data = serialize(compiled)
    lost = _cache.write(cache, key, data)
    origin = f"compiled again: {why}" if why else "compiled"
    return compiled, data, f"{origin}; not kept in the cache: {lost}" if lost else origin


def compile_lowered(lowered: Any, options: Mapping[str, Any]) -> Any:
    """Compile with XLA.

    Raises:
      InputError: an option that XLA does not know or take.
    """
    try:
        return lowered.compile(compiler_options=dict(options) or None)
    except Exception as error:
        text = str(error).strip().splitlines()[0][:300]
        if options and ("option" in text.lower() or "INVALID_ARGUMENT" in text):
            shown = ", ".join(f"{name}={value!r}" for name, value in options.items())
            raise InputError(f"compiler_options: XLA refuses {shown}: {text}") from error
        raise


def arity_of(lowered: Any) -> Arity:
    """Return the arity of a lowered flat function."""
    args = lowered.args_info[0]
    return Arity((*(len(arg) for arg in args), lowered.out_tree.num_leaves))


def serialize(compiled: Any) -> bytes | None:
    """Return an executable as bytes; None where the platform cannot."""
    try:
        return serialize_executable.serialize(compiled)[0]
    except (ValueError, NotImplementedError, jax.errors.JaxRuntimeError):
        return None


def load(data: bytes, arity: Arity, devices: Sequence[Any]) -> Any:
    """Return the executable of ``serialize``'s bytes. They are unpickled: trust them first."""
    with without_false_alarm():
        return serialize_executable.deserialize_and_load(
            *(data, arity.in_tree, arity.out_tree),
            backend=devices[0].client,
            execution_devices=list(devices),
        )


def digest(data: bytes) -> str:
    """Return the SHA-256 in hex."""
    return hashlib.sha256(data).hexdigest()
