"""How a process was started: alone, or as one of several. Starts and asks nothing.

    arguments        coordinator, processes, process
    environment      JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES, JAX_PROCESS_ID
                     (``jaxinfer launch`` sets them)
    Open MPI, Slurm, Cloud TPU, a Kubernetes Indexed Job: what ``jax.distributed`` detects itself

Only the environment is looked at, so a laptop or a plain pod is one process at once. What looks
like several processes but lacks a part is an error that says what was found.

Source: jax/_src/clusters, whose order this follows. Open MPI 5 says less than 4: jax issue 14576.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from typing import Any, NamedTuple

from jaxinfer.core._compat import in_tpu_vm
from jaxinfer.core.errors import InputError, MissingExtraError, listing

ADDRESS, COUNT, INDEX = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
LAUNCHED = "JAXINFER_LAUNCH"
"""Set by ``jaxinfer launch``: the descriptor on which it hears that a program came to its end."""

_SLURM = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID")


class Found(NamedTuple):
    """What to call ``jax.distributed.initialize`` with, if there are several."""

    how: str
    several: bool = False
    method: str | None = None  # JAX looks itself, in the order of ``find``
    address: str | None = None
    processes: int | None = None
    process: int | None = None


def of_arguments(address: str | None, processes: Any, process: Any) -> Found:
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
    return Found("arguments", True, "deactivate", address, processes, process)


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


def find(environ: Mapping[str, str]) -> Found:
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
    return Found("one process")


def _of_variables(environ: Mapping[str, str]) -> Found:
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
        return Found(how)
    return Found(how, True, "deactivate", environ[ADDRESS], *numbers)  # pyright: ignore[reportArgumentType]


def _open_mpi(environ: Mapping[str, str]) -> Found | None:
    if "OMPI_COMM_WORLD_SIZE" not in environ:
        return None
    if environ["OMPI_COMM_WORLD_SIZE"] == "1":
        return Found("one process of Open MPI")
    if "OMPI_MCA_orte_hnp_uri" in environ:
        return Found("ompi", True)
    if ADDRESS not in environ:
        raise InputError(
            f"initialize: found {environ['OMPI_COMM_WORLD_SIZE']} processes of Open MPI, but not "
            "OMPI_MCA_orte_hnp_uri, by which JAX finds the first one (Open MPI 5 has none): give "
            f"its address, mpirun -x {ADDRESS}=host:port ..., or use method='mpi4py'"
        )
    count, index = environ["OMPI_COMM_WORLD_SIZE"], environ.get("OMPI_COMM_WORLD_RANK", "")
    numbers = {COUNT: count, INDEX: index, ADDRESS: environ[ADDRESS]}
    return _of_variables(numbers)._replace(how="ompi")


def _slurm(environ: Mapping[str, str]) -> Found | None:
    if "SLURM_JOB_ID" not in environ:
        return None
    tasks = environ.get("SLURM_NTASKS", "1")
    if tasks == "1":
        return Found("one process of Slurm")
    missing = [name for name in _SLURM if name not in environ]
    if missing:
        raise InputError(
            f"initialize: found a Slurm job of {tasks} tasks, but not {', '.join(missing)}: this "
            "process is no task of it; start the program with srun, or, if it is to run alone, "
            "call initialize(method='none')"
        )
    return Found("slurm", True)


def _tpu(environ: Mapping[str, str]) -> Found | None:
    if not in_tpu_vm():
        return None
    if any(name in environ for name in ("TPU_PROCESS_ADDRESSES", "TPU_WORKER_HOSTNAMES")):
        return Found("gketpu", True)
    if "TPU_SKIP_MDS_QUERY" in environ:
        return Found("one process on a TPU machine (TPU_SKIP_MDS_QUERY is set)")
    return Found("gcetpu", True)


def _kubernetes(environ: Mapping[str, str]) -> Found | None:
    if "KUBERNETES_SERVICE_HOST" not in environ or "JOB_COMPLETION_INDEX" not in environ:
        return None  # a pod by itself is one process
    if importlib.util.find_spec("kubernetes") is None:
        raise MissingExtraError(
            f"initialize: found pod {environ['JOB_COMPLETION_INDEX']} of a Kubernetes Indexed Job; "
            "JAX asks Kubernetes who the others are with the package kubernetes, which is not "
            f"installed: pip install 'jax[k8s]', or set {ADDRESS}, {COUNT} and {INDEX}"
        )
    return Found("k8s", True)


def _other_mpi(environ: Mapping[str, str]) -> Found | None:
    size = environ.get("PMI_SIZE", "1")
    if size == "1":
        return None
    raise InputError(
        f"initialize: found {size} processes of an MPI that JAX does not know (PMI_SIZE): call "
        f"initialize(method='mpi4py'), or set {ADDRESS}, {COUNT} and {INDEX}"
    )
