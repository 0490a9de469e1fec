"""Several processes, one program: who we are, from the launcher, the cluster or the arguments.

``initialize()`` comes first in a program, before a device is used. In one process it does nothing;
in several it starts ``jax.distributed``, and ``jax.devices()`` are then those of all processes.
How it learns that: ``_cluster``.

A process that ends by an exception leaves without JAX's shutdown barrier, in which it would wait
for the others while they wait for it.

Source: https://docs.jax.dev/en/latest/multi_process.html. It starts no
process, restarts none, and does not look for other machines.
"""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import json
import os
import sys
import threading
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax

from jaxinfer.core.errors import InputError, listing
from jaxinfer.sharding._cluster import LAUNCHED, Found, find, of_arguments
from jaxinfer.sharding.mesh import _exchange as exchange

TIMEOUTS = {
    "initialization_timeout": "JAXINFER_INITIALIZATION_TIMEOUT",
    "heartbeat_timeout_seconds": "JAXINFER_HEARTBEAT_TIMEOUT",
    "shutdown_timeout_seconds": "JAXINFER_SHUTDOWN_TIMEOUT",
}
"""Arguments of ``jax.distributed.initialize``, and the variables that set their defaults."""

_DEFAULTS = {
    "initialization_timeout": 300,
    "heartbeat_timeout_seconds": 100,
    "shutdown_timeout_seconds": 300,
}


class Processes(NamedTuple):
    """Who we are.

    Attributes:
      process: the number of this process, from 0.
      processes: how many there are.
      local_devices: how many devices this process has.
      devices: how many all have together.
      how: how that was found: ``one process``, ``jaxinfer launch``, ``slurm``, ...
    """

    process: int
    processes: int
    local_devices: int
    devices: int
    how: str


_state: dict[str, Any] = {"how": None, "failed": False}


def initialize(
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
    *,
    method: str | None = None,
    timeout: int | None = None,
    heartbeat: int | None = None,
    shutdown: int | None = None,
) -> Processes:
    """Join the other processes, if there are any.

    All processes must call it, before anything uses a device. A second call changes nothing.

    Args:
      coordinator: ``host:port`` of process 0, which all can reach.
      processes: how many there are.
      process: the number of this one, from 0.
      method: how to find the three, if they are not given: None as the module says; ``"none"``:
        one process, whatever is found; or a name that ``jax.distributed`` takes as its
        ``cluster_detection_method`` (``"mpi4py"`` for any MPI).
      timeout: seconds to wait for the others to come (300).
      heartbeat: seconds of silence after which a process counts as dead (100).
      shutdown: seconds to wait at the end for the others (300).

    Returns:
      Who we are. Cost: creates the devices, and in several processes waits for all of them.

    Raises:
      InputError: incomplete or contradictory settings, with what was found; or a device was
        used before, or ``jax.distributed`` could not start.
      MissingExtraError: a Kubernetes job without the ``kubernetes`` package.

    Example:
      >>> import jaxinfer as ji
      >>> ji.initialize(method="none").processes
      1
    """
    given = (coordinator, processes, process)
    if jax.distributed.is_initialized():
        return _who(_state["how"] or "jax.distributed, initialized before")
    if method == "none":
        if any(value is not None for value in given):
            raise InputError("initialize: method='none' is one process: give no other argument")
        found = Found("one process, as asked")
    elif any(value is not None for value in given):
        found = of_arguments(coordinator, processes, process)
    elif method is not None:
        found = Found(method, True, method)
    else:
        found = find(os.environ)
    if found.several:
        _start(found, _timeouts(timeout, heartbeat, shutdown))
    _state["how"] = found.how
    return _who(found.how)


def _who(how: str) -> Processes:
    return Processes(
        jax.process_index(), jax.process_count(), jax.local_device_count(), jax.device_count(), how
    )


def check_same(what: str, data: Any, *, timeout: int = 60) -> None:
    """Raise if processes do not have the same data, such as the plan by which they will compute.

    Every process must call it, as often as the others. Compared through the key-value store of
    ``jax.distributed``, without a computation, so a difference cannot hang it.

    Args:
      what: its name, for the message.
      data: anything that JSON can hold, such as ``plan.to_json()``.
      timeout: seconds to wait for the others.

    Raises:
      InputError: which processes differ from this one, or did not come.

    Example:
      >>> check_same("plan", {"axes": {"model": 8}})  # one process agrees with itself
    """
    if jax.process_count() == 1:
        return
    text = json.dumps(data, sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()
    every = exchange(f"{what}: {digest}", timeout)
    rank = jax.process_index()
    problems = [
        f"process {process}: did not come within {timeout} s"
        if other is None
        else f"process {process}: has {other[:200]}, process {rank} {what}: {digest}"
        for process, other in enumerate(every)
        if other != f"{what}: {digest}"
    ]
    if problems:
        raise InputError(
            listing(
                f"{what}: differs between processes (seen by process {rank}):",
                problems,
                "Every process must make the same from the same model, mesh, sizes and memory.",
            )
        )


def _timeouts(*given: int | None) -> dict[str, Any]:
    """Return the three timeouts: as given, else from the environment, else the defaults."""
    found: dict[str, Any] = {}
    faults = []
    for (name, variable), value in zip(TIMEOUTS.items(), given, strict=True):
        text = str(os.environ.get(variable, _DEFAULTS[name]) if value is None else value)
        if text.isdecimal() and int(text) > 0:
            found[name] = int(text)
        else:
            source = variable if value is None else name.removesuffix("_seconds")
            faults.append(f"{source}: required whole seconds from 1, got {text!r}")
    if faults:
        raise InputError(listing("initialize: timeouts that do not fit:", faults))
    return found


def _start(found: Found, timeouts: Mapping[str, Any]) -> None:
    """Start ``jax.distributed``, and say in time what it waits for."""
    try:
        with _announced(found, timeouts["initialization_timeout"]):
            jax.distributed.initialize(
                found.address,
                found.processes,
                found.process,
                cluster_detection_method=found.method,
                **timeouts,
            )
    except Exception as error:
        raise InputError(
            f"initialize: found {_text(found)}, and jax.distributed could not start: "
            f"{type(error).__name__}: {error}"
        ) from error
    _leave_on_exceptions()


def _text(found: Found) -> str:
    if found.process is None:
        return f"{found.how} (its own variables)"
    return f"{found.how}: process {found.process} of {found.processes} at {found.address}"


@contextlib.contextmanager
def _announced(found: Found, seconds: float) -> Iterator[None]:
    """Write to stderr what is waited for, when the time is over: JAX then aborts the process."""
    what = "the other processes did not come" if found.process == 0 else "process 0 did not answer"
    text = f"jaxinfer: initialize: {_text(found)}: {what} within {seconds:g} s; JAX ends this one\n"

    def tell() -> None:
        sys.stderr.write(text)
        sys.stderr.flush()

    timer = threading.Timer(seconds, tell)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _leave_on_exceptions() -> None:
    """Have an exception that nobody catches end this process without the shutdown barrier."""
    before = sys.excepthook

    def hook(kind: Any, error: Any, trace: Any) -> None:
        before(kind, error, trace)
        _state["failed"] = True

    sys.excepthook = hook
    atexit.register(_leave)  # runs before JAX's own, which was registered when it was imported


def _leave() -> None:
    if _state["failed"]:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):
                stream.flush()
        os._exit(1)
    descriptor = os.environ.get(LAUNCHED, "")
    if descriptor.isdecimal():
        with contextlib.suppress(OSError):
            os.write(int(descriptor), b".")
