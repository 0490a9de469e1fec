"""Several processes, one program: who we are, from the launcher, the cluster or the arguments.

``initialize()`` comes first in a program, before a device is used. In one process it does nothing;
in several it starts ``jax.distributed``, and ``jax.devices()`` are then those of all processes.
Where it looks, in this order:

    arguments        coordinator, processes, process
    environment      JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES, JAX_PROCESS_ID
                     (``jaxinfer launch`` sets them)
    Open MPI, Slurm, Cloud TPU, a Kubernetes Indexed Job: what ``jax.distributed`` detects itself

Only the environment is looked at to decide, so a laptop or a plain pod is one process at once. What
looks like several processes but lacks a part is an error that says what was found.

A process that ends by an exception leaves without JAX's shutdown barrier, in which it would wait
for the others while they wait for it.

Source: https://docs.jax.dev/en/latest/multi_process.html and jax/_src/clusters. It starts no
process, restarts none, and does not look for other machines.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib.util
import os
import sys
import threading
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax

from jaxinfer.core._compat import in_tpu_vm
from jaxinfer.core.errors import InputError, MissingExtraError, listing

ADDRESS, COUNT, INDEX = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
LAUNCHED = "JAXINFER_LAUNCH"
"""Set by ``jaxinfer launch``: the descriptor on which it hears that a program came to its end."""

TIMEOUTS = {
    "initialization_timeout": "JAXINFER_INITIALIZATION_TIMEOUT",
    "heartbeat_timeout_seconds": "JAXINFER_HEARTBEAT_TIMEOUT",
    "shutdown_timeout_seconds": "JAXINFER_SHUTDOWN_TIMEOUT",
}
"""Arguments of ``jax.distributed.initialize``, and the variables that set their defaults."""

_SLURM = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID")
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


class _Found(NamedTuple):
    """What to call ``jax.distributed.initialize`` with, if there are several."""

    how: str
    several: bool = False
    method: str | None = None  # JAX looks itself, in the order of ``find``
    address: str | None = None
    processes: int | None = None
    process: int | None = None


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
        found = _Found("one process, as asked")
    elif any(value is not None for value in given):
        found = _of_arguments(coordinator, processes, process)
    elif method is not None:
        found = _Found(method, True, method)
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


def _of_arguments(address: str | None, processes: Any, process: Any) -> _Found:
    given = {"coordinator": address, "processes": processes, "process": process}
    missing = [name for name, value in given.items() if value is None]
    if missing:
        raise InputError(
            f"initialize: {', '.join(missing)} must be given too: coordinator, processes and "
            "process go together"
        )
    faults = _unfit(address, processes, process)
    if faults:
        raise InputError(listing("initialize: the arguments do not fit:", faults))
    return _Found("arguments", True, "deactivate", address, processes, process)


def _unfit(address: Any, processes: Any, process: Any) -> list[str]:
    faults = []
    port = str(address).rpartition(":")[2]
    if ":" not in str(address) or not port.isdecimal() or not 0 < int(port) < 65536:
        faults.append(f"coordinator: required host:port, got {address!r}")
    if type(processes) is not int or processes < 1:
        faults.append(f"processes: required 1 or more, got {processes!r}")
    elif type(process) is not int or not 0 <= process < processes:
        faults.append(f"process: required 0 to {processes - 1}, got {process!r}")
    return faults


def find(environ: Mapping[str, str]) -> _Found:
    """Return how the environment says this process was started; starts and asks nothing.

    Raises:
      InputError: it says that there are several processes, but not all that is needed.
      MissingExtraError: a Kubernetes job without the ``kubernetes`` package.
    """
    if COUNT in environ or INDEX in environ:
        return _of_variables(environ)
    for look in (_open_mpi, _slurm, _tpu, _kubernetes, _other_mpi):
        found = look(environ)
        if found is not None:
            return found
    if ADDRESS in environ:
        raise InputError(
            f"initialize: {ADDRESS}={environ[ADDRESS]} is set, but neither {COUNT} and {INDEX} nor "
            "a cluster's own variables say which process this is: set them, unset it, or call "
            "initialize(method='none')"
        )
    return _Found("one process")


def _of_variables(environ: Mapping[str, str]) -> _Found:
    missing = [name for name in (ADDRESS, COUNT, INDEX) if not environ.get(name)]
    got = ", ".join(f"{n}={environ[n]}" for n in (ADDRESS, COUNT, INDEX) if environ.get(n))
    if missing:
        raise InputError(f"initialize: found {got}, but not {', '.join(missing)}: set all three")
    numbers = [int(v) if v.isdecimal() else v for v in (environ[COUNT], environ[INDEX])]
    faults = _unfit(environ[ADDRESS], *numbers)
    if faults:
        raise InputError(listing(f"initialize: found {got}, which do not fit:", faults))
    how = "jaxinfer launch" if LAUNCHED in environ else "environment"
    if numbers[0] == 1:
        return _Found(how)
    return _Found(how, True, "deactivate", environ[ADDRESS], *numbers)  # pyright: ignore[reportArgumentType]


def _open_mpi(environ: Mapping[str, str]) -> _Found | None:
    if "OMPI_COMM_WORLD_SIZE" not in environ:
        return None
    if environ["OMPI_COMM_WORLD_SIZE"] == "1":
        return _Found("one process of Open MPI")
    if "OMPI_MCA_orte_hnp_uri" in environ:
        return _Found("ompi", True)
    if ADDRESS not in environ:
        raise InputError(
            f"initialize: found {environ['OMPI_COMM_WORLD_SIZE']} processes of Open MPI, but not "
            "OMPI_MCA_orte_hnp_uri, by which JAX finds the first one (Open MPI 5 has none): give "
            f"its address, mpirun -x {ADDRESS}=host:port ..., or use method='mpi4py'"
        )
    count, index = environ["OMPI_COMM_WORLD_SIZE"], environ.get("OMPI_COMM_WORLD_RANK", "")
    numbers = {COUNT: count, INDEX: index, ADDRESS: environ[ADDRESS]}
    return _of_variables(numbers)._replace(how="ompi")


def _slurm(environ: Mapping[str, str]) -> _Found | None:
    if "SLURM_JOB_ID" not in environ:
        return None
    tasks = environ.get("SLURM_NTASKS", "1")
    if tasks == "1":
        return _Found("one process of Slurm")
    missing = [name for name in _SLURM if name not in environ]
    if missing:
        raise InputError(
            f"initialize: found a Slurm job of {tasks} tasks, but not {', '.join(missing)}: this "
            "process is no task of it; start the program with srun, or, if it is to run alone, "
            "call initialize(method='none')"
        )
    return _Found("slurm", True)


def _tpu(environ: Mapping[str, str]) -> _Found | None:
    if not in_tpu_vm():
        return None
    if any(name in environ for name in ("TPU_PROCESS_ADDRESSES", "TPU_WORKER_HOSTNAMES")):
        return _Found("gketpu", True)
    if "TPU_SKIP_MDS_QUERY" in environ:
        return _Found("one process on a TPU machine (TPU_SKIP_MDS_QUERY is set)")
    return _Found("gcetpu", True)


def _kubernetes(environ: Mapping[str, str]) -> _Found | None:
    if "KUBERNETES_SERVICE_HOST" not in environ or "JOB_COMPLETION_INDEX" not in environ:
        return None  # a pod by itself is one process
    if importlib.util.find_spec("kubernetes") is None:
        raise MissingExtraError(
            f"initialize: found pod {environ['JOB_COMPLETION_INDEX']} of a Kubernetes Indexed Job; "
            "JAX asks Kubernetes who the others are with the package kubernetes, which is not "
            f"installed: pip install 'jax[k8s]', or set {ADDRESS}, {COUNT} and {INDEX}"
        )
    return _Found("k8s", True)


def _other_mpi(environ: Mapping[str, str]) -> _Found | None:
    size = environ.get("PMI_SIZE", "1")
    if size == "1":
        return None
    raise InputError(
        f"initialize: found {size} processes of an MPI that JAX does not know (PMI_SIZE): call "
        f"initialize(method='mpi4py'), or set {ADDRESS}, {COUNT} and {INDEX}"
    )


def _timeouts(*given: int | None) -> dict[str, int]:
    """Return the three timeouts: as given, else from the environment, else the defaults."""
    found: dict[str, int] = {}
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


def _start(found: _Found, timeouts: Mapping[str, int]) -> None:
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


def _text(found: _Found) -> str:
    if found.process is None:
        return f"{found.how} (its own variables)"
    return f"{found.how}: process {found.process} of {found.processes} at {found.address}"


@contextlib.contextmanager
def _announced(found: _Found, seconds: float) -> Iterator[None]:
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
