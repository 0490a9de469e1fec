"""Every branch on a JAX version, and every use of JAX's semi-public modules, is here.

Supported: jax 0.9.2 to 0.11, without 0.10.2 (wrong numbers on CPU, jax issue 39103).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.core import Tracer
from jax.extend import source_info_util


def x64_enabled() -> bool:
    """Return whether 64-bit types are on where the caller stands (config or context)."""
    return bool(jax.config.read("jax_enable_x64"))


def x64_scope(on: bool = True) -> contextlib.AbstractContextManager[Any]:
    """Return a context in which 64-bit types are on (for this thread); none if not ``on``."""
    return jax.enable_x64(True) if on else contextlib.nullcontext()


def setting(name: str) -> Any:
    """Return the value of one of JAX's settings, from its configuration or context."""
    return getattr(jax.config, name)


def is_tracer(value: Any) -> bool:
    """Return whether a value is being traced, and has no numbers yet."""
    return isinstance(value, Tracer)


def subjaxprs(params: dict[str, Any]) -> list[Any]:
    """Return the jaxprs among an equation's parameters (open or closed, also in tuples)."""
    found = []
    for value in params.values():
        for item in value if isinstance(value, (tuple, list)) else (value,):
            if hasattr(item, "eqns"):
                found.append(item)
            elif hasattr(item, "jaxpr"):
                found.append(item.jaxpr)
    return found


def inner(jaxpr: Any) -> tuple[Any, Sequence[Any]]:
    """Return a jaxpr and its constants, of a closed jaxpr or (from 0.11 on) of any."""
    return getattr(jaxpr, "jaxpr", jaxpr), getattr(jaxpr, "consts", ())


def scan_counts(params: Mapping[str, Any]) -> tuple[int, int]:
    """Return how many operands of a ``scan`` are constants, and how many are carried."""
    if "ft_in" not in params:
        return params["num_consts"], params["num_carry"]
    consts, carry, _ = params["ft_in"].unpack()  # from 0.11 on
    return len(consts), len(carry)


def bind(eqn: Any, values: Sequence[Any]) -> list[Any]:
    """Evaluate an equation as it is, in its own context (mesh, names, source line)."""
    with within(eqn):
        out = eqn.primitive.bind(*values, **eqn.primitive.get_bind_params(eqn.params))
    return list(out) if eqn.primitive.multiple_results else [out]


def within(eqn: Any) -> contextlib.AbstractContextManager[Any]:
    """Return the context of an equation, for what is evaluated in its place."""
    stack = contextlib.ExitStack()
    names = source_info_util.current_name_stack() + eqn.source_info.name_stack
    stack.enter_context(source_info_util.user_context(eqn.source_info.traceback, name_stack=names))
    stack.enter_context(eqn.ctx.manager)
    return stack


def source_line(eqn: Any) -> str:
    """Return ``file:line (function)`` of the user's code that made an equation."""
    return source_info_util.summarize(eqn.source_info)


def distributed_client() -> Any:
    """Return the client of ``jax.distributed``'s key-value store; None in a single process."""
    from jax._src import distributed

    return distributed.global_state.client


def in_tpu_vm() -> bool:
    """Return whether JAX has found itself on a Cloud TPU virtual machine."""
    from jax._src import cloud_tpu_init

    return bool(cloud_tpu_init.running_in_cloud_tpu_vm)


def scope_of(eqn: Any) -> str:
    """Return the names (``jax.named_scope``, modules) that an equation was made under."""
    return str(eqn.source_info.name_stack)


def adopter(structs: Sequence[Any]) -> Callable[[Sequence[Any]], list[Any]]:
    """Return a function that makes JAX arrays of host arrays that nobody writes to any more.

    It takes their memory over where it is aligned, on the first device, and costs a third of
    ``device_put``; where this JAX has no such way, it is ``device_put``.

    Args:
      structs: shape and dtype of each array.
    """

    def plain(arrays: Sequence[Any]) -> list[Any]:
        return list(jax.device_put(list(arrays)))

    try:
        from jax._src.core import ShapedArray
        from jax._src.lib import xla_client  # pyright: ignore[reportPrivateImportUsage]

        put = xla_client.batched_device_put
        device = jax.devices()[0]
        sharding = jax.sharding.SingleDeviceSharding(device)
        avals = [ShapedArray(each.shape, each.dtype) for each in structs]

        def adopt(arrays: Sequence[Any]) -> list[Any]:
            return [
                put(aval, sharding, [array], [device], False)
                for aval, array in zip(avals, arrays, strict=True)
            ]

        trial = adopt([np.zeros(each.shape, each.dtype) for each in structs])
        if not all(isinstance(each, jax.Array) for each in trial):
            return plain
    except (ImportError, AttributeError, TypeError, RuntimeError):
        return plain  # a private function that has changed; tests/core/test_basics.py tells
    return adopt
