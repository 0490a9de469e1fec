"""``initialize``: what it finds and refuses; the same results in one process and in two."""

import importlib.util
import io
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxinfer.cli._launch import LaunchError, launch
from jaxinfer.cli._launch_env import Settings
from jaxinfer.core.errors import InputError, MissingExtraError
from jaxinfer.core.model import Model
from jaxinfer.core.program import FunctionProgram, signature_of
from jaxinfer.io.artefact import save
from jaxinfer.sharding import _cluster, distributed
from jaxinfer.sharding._cluster import Found, find
from jaxinfer.sharding.distributed import initialize

from .programs import same

OWN = {
    "JAX_COORDINATOR_ADDRESS": "h:1",
    "JAX_NUM_PROCESSES": "3",
    "JAX_PROCESS_ID": "2",
}
SLURM = {
    "SLURM_JOB_ID": "7",
    "SLURM_STEP_NODELIST": "node[1-2]",
    "SLURM_NTASKS": "4",
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "1",
}
OPEN_MPI = {"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "3"}
KUBERNETES = {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}


@pytest.fixture
def started(monkeypatch):
    """What ``jax.distributed.initialize`` is called with, in place of calling it."""
    calls = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *a, **k: calls.append((a, k)))
    monkeypatch.setattr(distributed, "_leave_on_exceptions", lambda: None)
    monkeypatch.setattr(distributed, "_state", {"how": None, "failed": False})
    for name in (*OWN, *SLURM, *OPEN_MPI, *KUBERNETES, "JAXINFER_LAUNCH", "PMI_SIZE"):
        monkeypatch.delenv(name, raising=False)
    return calls


def test_one_process(started):
    who = initialize()
    assert who == (0, 1, 8, 8, "one process")
    assert initialize(method="none").how == "one process, as asked"
    assert started == []


@pytest.mark.parametrize(
    ("environ", "how"),
    [
        ({}, "one process"),
        ({"OMPI_COMM_WORLD_SIZE": "1"}, "one process of Open MPI"),
        ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "1"}, "one process of Slurm"),
        ({"SLURM_JOB_ID": "7"}, "one process of Slurm"),
        (KUBERNETES, "one process"),
        ({"PMI_SIZE": "1"}, "one process"),
        (OWN | {"JAX_NUM_PROCESSES": "1", "JAX_PROCESS_ID": "0"}, "environment"),
    ],
)
def test_what_is_one_process(environ, how):
    assert find(environ) == (how, False, None, None, None, None)


@pytest.mark.parametrize(
    ("environ", "found"),
    [
        (OWN, ("environment", True, "deactivate", "h:1", 3, 2)),
        (OWN | SLURM, ("environment", True, "deactivate", "h:1", 3, 2)),
        (OWN | {"JAXINFER_LAUNCH": "5"}, ("jaxinfer launch", True, "deactivate", "h:1", 3, 2)),
        (SLURM, ("slurm", True, None, None, None, None)),
        (OPEN_MPI | {"OMPI_MCA_orte_hnp_uri": "x"}, ("ompi", True, None, None, None, None)),
        (
            OPEN_MPI | {"JAX_COORDINATOR_ADDRESS": "h:1"},
            ("ompi", True, "deactivate", "h:1", 4, 3),
        ),
    ],
)
def test_what_is_several(environ, found):
    assert find(environ) == found


@pytest.mark.parametrize(
    ("environ", "text"),
    [
        (
            {"JAX_NUM_PROCESSES": "2"},
            "found JAX_NUM_PROCESSES=2, but not JAX_COORDINATOR_ADDRESS, JAX_PROCESS_ID",
        ),
        (
            {"JAX_COORDINATOR_ADDRESS": "h", "JAX_NUM_PROCESSES": "x", "JAX_PROCESS_ID": "0"},
            "coordinator: required host:port, got 'h'\n  processes: required 1 or more, got 'x'",
        ),
        (OWN | {"JAX_PROCESS_ID": "3"}, "process: required 0 to 2, got 3"),
        ({"JAX_COORDINATOR_ADDRESS": "h:1"}, "JAX_COORDINATOR_ADDRESS=h:1 is set, but neither"),
        (
            {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4", "SLURM_PROCID": "0"},
            "found a Slurm job of 4 tasks, but not SLURM_STEP_NODELIST, SLURM_LOCALID",
        ),
        (OPEN_MPI, "found 4 processes of Open MPI, but not OMPI_MCA_orte_hnp_uri"),
        ({"PMI_SIZE": "4"}, "found 4 processes of an MPI that JAX does not know"),
    ],
)
def test_what_is_incomplete(environ, text):
    with pytest.raises(InputError) as error:
        find(environ)
    assert text in str(error.value)


def test_kubernetes(monkeypatch):
    pod = KUBERNETES | {"JOB_COMPLETION_INDEX": "1"}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"pip install 'jax\[k8s\]'"):
        find(pod)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    assert find(pod) == ("k8s", True, None, None, None, None)


def test_tpu(monkeypatch):
    monkeypatch.setattr(_cluster, "in_tpu_vm", lambda: True)
    assert find({"TPU_WORKER_HOSTNAMES": "a,b"})[:3] == ("gketpu", True, None)
    assert find({})[:3] == ("gcetpu", True, None)
    assert not find({"TPU_SKIP_MDS_QUERY": "1"}).several


def test_arguments(started, monkeypatch):
    who = initialize("h:1", 4, 2, timeout=9, heartbeat=8, shutdown=7)
    assert who.how == "arguments"
    times = {
        "initialization_timeout": 9,
        "heartbeat_timeout_seconds": 8,
        "shutdown_timeout_seconds": 7,
    }
    assert started == [(("h:1", 4, 2), {"cluster_detection_method": "deactivate", **times})]
    started.clear()
    monkeypatch.setenv("JAXINFER_SHUTDOWN_TIMEOUT", "11")
    initialize(method="mpi4py")
    want = {
        "initialization_timeout": 300,
        "heartbeat_timeout_seconds": 100,
        "shutdown_timeout_seconds": 11,
    }
    assert started == [((None, None, None), {"cluster_detection_method": "mpi4py", **want})]


def test_the_environment_is_used(started, monkeypatch):
    for name, value in OWN.items():
        monkeypatch.setenv(name, value)
    assert initialize().how == "environment"
    assert started[0][0] == ("h:1", 3, 2)
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
    assert initialize("other:1", 2, 0).how == "environment"  # the second call
    assert len(started) == 1


@pytest.mark.parametrize(
    ("args", "options", "text"),
    [
        (("h:1",), {}, "processes, process must be given too"),
        (("h:0", 0, 0), {}, "coordinator: required host:port, got 'h:0'\n  processes: required 1"),
        (("h:1", 2, 2), {}, "process: required 0 to 1, got 2"),
        (("h:1", 2, 1), {"method": "none"}, "method='none' is one process"),
        (("h:1", 2, 1), {"timeout": 0, "shutdown": -1}, "initialization_timeout: required whole"),
    ],
)
def test_bad_arguments(started, args, options, text):
    with pytest.raises(InputError) as error:
        initialize(*args, **options)
    assert text in str(error.value)
    assert started == []


def test_jax_cannot_start():
    """The real call: devices are in use here."""
    jax.devices()
    with pytest.raises(InputError, match=r"arguments: process 1 of 2 at 127\.0\.0\.1:1, and jax"):
        initialize("127.0.0.1:1", 2, 1)


def test_a_wait_that_is_over_is_announced(monkeypatch, capsys):
    """JAX aborts the process then, so what it waited for is said before."""
    done = distributed.threading.Event()

    class Timer:
        def __init__(self, seconds, tell):
            assert seconds == 5
            self.tell = tell

        def start(self):
            self.tell()

        def cancel(self):
            done.set()

    monkeypatch.setattr(distributed.threading, "Timer", Timer)
    for process, text in ((0, "the other processes did not come"), (1, "process 0 did not answer")):
        with distributed._announced(Found("x", True, None, "h:1", 2, process), 5):
            pass
        err = capsys.readouterr().err
        assert f"x: process {process} of 2 at h:1: {text} within 5 s" in err
    assert done.is_set()


def test_leaving(monkeypatch):
    """After an exception: at once, with code 1. Else the launcher is told of the end."""
    hooks, seen = [], []
    monkeypatch.setattr(distributed, "_state", {"how": None, "failed": False})
    monkeypatch.setattr(distributed.atexit, "register", hooks.append)
    monkeypatch.setattr(sys, "excepthook", lambda *a: seen.append(a))
    monkeypatch.setattr(distributed.os, "_exit", lambda code: seen.append(code))
    monkeypatch.setattr(distributed.os, "write", lambda *a: seen.append(a))
    monkeypatch.setenv("JAXINFER_LAUNCH", "77")
    distributed._leave_on_exceptions()
    (leave,) = hooks
    leave()
    assert seen == [(77, b".")]
    seen.clear()
    sys.excepthook(ValueError, ValueError("x"), None)
    leave()
    assert seen[0][0] is ValueError
    assert seen[1] == 1


def test_the_same_everywhere(monkeypatch):
    distributed.check_same("plan", {})  # one process
    monkeypatch.setattr(jax, "process_count", lambda: 3)
    monkeypatch.setattr(distributed, "exchange", lambda text, timeout: [text, text, text])
    distributed.check_same("plan", {"a": 1})
    monkeypatch.setattr(distributed, "exchange", lambda text, timeout: [text, "plan: 1", None])
    with pytest.raises(InputError) as error:
        distributed.check_same("plan", {"a": 1}, timeout=7)
    title, first, second, _ = str(error.value).splitlines()
    assert title == "plan: differs between processes (seen by process 0):"
    assert first.startswith("  process 1: has plan: 1, process 0 plan: ")
    assert second == "  process 2: did not come within 7 s"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    params, ids = same.values()
    program = FunctionProgram(same.forward, signature_of((jnp.asarray(ids),)))
    path = tmp_path_factory.mktemp("same") / "model"
    save(Model(program, params), path)
    return path


def run(*args, **options):
    out, err = io.BytesIO(), io.BytesIO()
    argv = [sys.executable, same.__file__, *map(str, args)]
    try:
        launch(argv, Settings(2, 4, timeout=120, **options), out=out, err=err)
    finally:
        run.out, run.err = out.getvalue().decode(), err.getvalue().decode()


def test_two_processes_give_what_one_gives(folder, tmp_path):
    """Weights read into shards by each, a batch over both, sums across them; meshes that differ."""
    one = same.main(folder)
    run(folder, tmp_path / "two.npy")
    two = np.load(tmp_path / "two.npy")
    params, ids = same.values()
    plain = np.asarray(same.forward({n: jnp.asarray(p) for n, p in params.items()}, ids))
    scale = np.abs(plain).max()
    # each element is a sum of 32 products in four parts: 32 roundings of 6e-8 at most, a few here
    np.testing.assert_allclose(one, plain, rtol=0, atol=2e-6 * scale)
    np.testing.assert_allclose(two, one, rtol=0, atol=2e-6 * scale)
    lines = run.out.splitlines()
    for process in range(2):
        who = f"Processes(process={process}, processes=2, local_devices=4, devices=8, how='')"
        assert f"[{process}] {who} jaxinfer launch" in lines
        (refused,) = [line for line in lines if line.startswith(f"[{process}] refused: ")]
        assert f"process {1 - process}: axes" in refused
        (refused,) = [line for line in lines if line.startswith(f"[{process}] no plan: ")]
        assert f"process {1 - process}: has plan: " in refused


def test_a_process_that_is_killed_ends_the_other(folder, tmp_path):
    with pytest.raises(LaunchError) as error:
        run(folder, tmp_path / "two.npy", "kill", grace=1)
    assert "process 1 of 2 was ended by SIGKILL (9)" in str(error.value)
    assert "ended with it: process 0" in str(error.value)
    assert not (tmp_path / "two.npy").exists()
