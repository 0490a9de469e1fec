"""Several processes of one program on this machine: started, watched, and ended together.

Each process leads a session and process group of its own. The first that does not end with code 0
ends all: SIGTERM to their groups, SIGKILL after a grace period. A program that leaves its group
(``setsid``) is out of reach. On Linux a process also dies with the launcher, should that be killed.
"""

from __future__ import annotations

import collections
import contextlib
import os
import queue
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from jaxinfer.core.errors import InputError, JaxinferError
from jaxinfer.sharding._cluster import ADDRESS, COUNT, INDEX, LAUNCHED
from jaxinfer.sharding.distributed import TIMEOUTS

_TAIL = 12  # lines of stderr in the message
_LATER = 10  # seconds after --apart until JAX would end the processes, less clearly
_JOIN = 2.0  # seconds to wait for the last output
_NOISE = (b"[Gloo] Rank ", b" connected peer ranks ")  # what gloo prints on stdout
_DIE_WITH = """
import ctypes, os, sys
parent, *argv = sys.argv[1:]
ctypes.CDLL(None).prctl(1, 9)  # PR_SET_PDEATHSIG, SIGKILL
if os.getppid() != int(parent):  # it died meanwhile
    sys.exit(1)
try:
    os.execvp(argv[0], argv)
except OSError as error:
    sys.exit(f"{argv[0]}: cannot be started: {error.strerror}")
"""
_LINUX = sys.platform.startswith("linux")
_BOOT = (sys.executable, "-S", "-E", "-c", _DIE_WITH) if _LINUX else ()
"""What a process runs before it becomes the program; a fork of this one would fork its threads."""

_STACK = ("    @ ", "*** Check failure stack trace")  # of the C++ below JAX


class LaunchError(JaxinferError, RuntimeError):
    """A launched process failed, or the processes did not end in time."""


class Settings(NamedTuple):
    """How to launch.

    Attributes:
      processes: how many.
      devices: per process.
      platform: ``cpu``, or ``cuda``, whose devices are divided by CUDA_VISIBLE_DEVICES.
      log_dir: folder for ``process-0.log``, ...; None: no files.
      plain: print process 0's stdout as it is, and all other output on stderr.
      timeout: seconds for the whole run; None: no end.
      apart: seconds that the first process to end, with code 0, may be ahead of the last.
      grace: seconds between SIGTERM and SIGKILL.
    """

    processes: int
    devices: int = 1
    platform: str = "cpu"
    log_dir: Path | None = None
    plain: bool = False
    timeout: float | None = None
    apart: float = 300.0
    grace: float = 5.0


def free_port() -> int:
    """Return a port that is free on the loopback interface now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def environment(
    settings: Settings, index: int, port: int, base: Mapping[str, str]
) -> dict[str, str]:
    """Return the variables of one process.

    Raises:
      InputError: fewer CUDA devices are visible than are asked for.
    """
    address = f"127.0.0.1:{port}"
    made = dict(base)
    made |= {
        ADDRESS: address,
        "JAX_COORDINATOR_BIND_ADDRESS": address,  # else JAX listens on every interface
        COUNT: str(settings.processes),
        INDEX: str(index),
        "JAX_PLATFORMS": settings.platform,
        "PYTHONUNBUFFERED": "1",
    }
    made.setdefault("JAX_ENABLE_PREEMPTION_SERVICE", "false")  # it would ignore SIGTERM
    made.setdefault(TIMEOUTS["initialization_timeout"], "60")
    made.setdefault(TIMEOUTS["shutdown_timeout_seconds"], str(int(settings.apart) + _LATER))
    if settings.platform == "cpu":
        made |= {
            "JAX_NUM_CPU_DEVICES": str(settings.devices),
            "JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo",
        }
        flags = made.get("XLA_FLAGS", "").split()
        kept = [f for f in flags if not f.startswith("--xla_force_host_platform_device_count")]
        if flags != kept:  # JAX takes one of the two
            made["XLA_FLAGS"] = " ".join(kept)
    else:
        made["CUDA_VISIBLE_DEVICES"] = ",".join(_cuda_devices(settings, index, base))
    if any("_proxy" in name.lower() for name in base):  # gRPC would go through it
        for name in ("no_proxy", "NO_PROXY"):
            made[name] = ",".join(filter(None, (base.get(name), "127.0.0.1,localhost")))
        made["JAX_CHECK_PROXY_ENVS"] = "false"
    return made


def _cuda_devices(settings: Settings, index: int, base: Mapping[str, str]) -> list[str]:
    count = settings.processes * settings.devices
    text = base.get("CUDA_VISIBLE_DEVICES")
    visible = (
        [str(i) for i in range(count)] if text is None else list(filter(None, text.split(",")))
    )
    if len(visible) < count:
        raise InputError(
            f"launch: {settings.processes} processes of {settings.devices} devices need {count}, "
            f"CUDA_VISIBLE_DEVICES={text} has {len(visible)}"
        )
    return visible[index * settings.devices : (index + 1) * settings.devices]


class _Child:
    """One process: its output, and how it ended.

    Attributes:
      code: its exit code, or minus the signal; None while it runs.
      leaving: whether it has come to its end, where JAX waits for the other processes.
    """

    def __init__(self, index: int, argv: Sequence[str], env: Mapping[str, str]):
        self.index = index
        self.code: int | None = None
        self.leaving = False
        self._end, end = os.pipe()
        self.tail: collections.deque[str] = collections.deque(maxlen=_TAIL)
        self.threads: list[threading.Thread] = []
        try:
            self.process = subprocess.Popen(
                [*_BOOT, *([str(os.getpid())] if _BOOT else []), *argv],
                env={**env, LAUNCHED: str(end)},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
                pass_fds=(end,),
            )
        except BaseException:
            os.close(self._end)
            raise
        finally:
            os.close(end)

    def start(self, name: str, target: Callable[..., Any], *args: Any) -> None:
        thread = threading.Thread(
            target=target, args=args, name=f"{name}-{self.index}", daemon=True
        )
        self.threads.append(thread)
        thread.start()

    def watch(self, ended: queue.SimpleQueue[_Child]) -> None:
        """Wait for the end, without reaping: the number of the group must stay ours."""
        pid = self.process.pid
        if hasattr(os, "waitid"):
            found = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
            assert found is not None
            self.code = found.si_status if found.si_code == os.CLD_EXITED else -found.si_status
        else:
            self.code = self.process.wait()
        ended.put(self)

    def listen(self, ended: queue.SimpleQueue[_Child]) -> None:
        """Wait for the word of ``initialize`` that the program has come to its end."""
        with os.fdopen(self._end, "rb") as pipe:
            if pipe.read(1):
                self.leaving = True
                ended.put(self)

    def signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, number)


class _Output:
    """Whole lines from every process, to the terminal and to files."""

    def __init__(self, settings: Settings, out: BinaryIO, err: BinaryIO):
        self._settings, self._out, self._err = settings, out, err
        self._lock = threading.Lock()
        self._files: dict[int, BinaryIO] = {}
        if settings.log_dir is not None:
            settings.log_dir.mkdir(parents=True, exist_ok=True)
            for index in range(settings.processes):
                file = settings.log_dir / f"process-{index}.log"
                self._files[index] = file.open("wb")

    def copy(self, child: _Child, source: BinaryIO, is_err: bool) -> None:
        """Copy one stream, line by line, until it ends."""
        plain = self._settings.plain
        for line in iter(source.readline, b""):
            text = line.decode(errors="replace").rstrip()
            if is_err and text and not text.startswith(_STACK):
                child.tail.append(text)
            whole = line if line.endswith(b"\n") else line + b"\n"
            aside = is_err or any(part in line for part in _NOISE)
            as_is = plain and child.index == 0 and not aside
            target = self._out if as_is or not (aside or plain) else self._err
            with self._lock:
                if child.index in self._files:
                    self._files[child.index].write(line)
                    self._files[child.index].flush()
                with contextlib.suppress(BrokenPipeError):
                    target.write(line if as_is else b"[%d] " % child.index + whole)
                    target.flush()

    def close(self) -> None:
        with self._lock:
            for file in self._files.values():
                file.close()
            self._files.clear()


def launch(
    argv: Sequence[str],
    settings: Settings,
    *,
    base: Mapping[str, str] | None = None,
    out: BinaryIO | None = None,
    err: BinaryIO | None = None,
) -> None:
    """Run ``argv`` in several processes until all have ended with code 0.

    Args:
      argv: program and arguments, the same for all.
      settings: how many, and how.
      base: variables to start from; None: this process's.
      out, err: where output goes; None: stdout and stderr.

    Raises:
      InputError: the settings do not fit this machine.
      LaunchError: a process failed or the time was over: which, how, its last lines. All are
        ended then.
      KeyboardInterrupt: Ctrl-C, SIGTERM or SIGHUP; all are ended.
    """
    if os.name != "posix":
        raise InputError("launch: needs process groups, which this system lacks")
    if shutil.which(argv[0]) is None:
        raise InputError(f"launch: {argv[0]}: no such program")
    port, base = free_port(), os.environ if base is None else base
    envs = [environment(settings, index, port, base) for index in range(settings.processes)]
    output = _Output(settings, out or sys.stdout.buffer, err or sys.stderr.buffer)
    children: list[_Child] = []
    ended: queue.SimpleQueue[_Child] = queue.SimpleQueue()
    with _handled(_interrupt, signal.SIGTERM, signal.SIGHUP):
        try:
            for index, env in enumerate(envs):
                children.append(_Child(index, argv, env))
            for child in children:
                child.start("out", output.copy, child, child.process.stdout, False)
                child.start("err", output.copy, child, child.process.stderr, True)
                child.start("end", child.listen, ended)
                child.start("wait", child.watch, ended)
            fault = _supervise(children, ended, settings)
        finally:
            killed = _end(children, settings.grace)
            output.close()
    if fault:
        raise LaunchError(_message(fault, children, killed, settings))


class _Fault(NamedTuple):
    text: str
    child: _Child | None


def _supervise(
    children: Sequence[_Child], ended: queue.SimpleQueue[_Child], settings: Settings
) -> _Fault | None:
    """Wait until all have ended well; returns what went wrong first."""
    started, first = time.monotonic(), None
    running = {child.index for child in children}
    while running:
        limits = {"timeout": None if settings.timeout is None else started + settings.timeout}
        if any(child.code is None and not child.leaving for child in children):
            limits["apart"] = None if first is None else first + settings.apart
        due = {name: limit for name, limit in limits.items() if limit is not None}
        try:
            wait = max(0.0, min(due.values()) - time.monotonic()) if due else None
            child = ended.get(timeout=wait)
        except queue.Empty:
            return _late(children, settings, min(due, key=lambda name: due[name]))
        if child.code is not None:
            running.discard(child.index)
        if child.code:
            return _Fault(_how(child, settings.processes), child)
        first = first or time.monotonic()
    return None


def _late(children: Sequence[_Child], settings: Settings, limit: str) -> _Fault:
    left = {child.index for child in children if child.code is None and not child.leaving}
    if limit == "timeout":
        left = left or {child.index for child in children if child.code is None}
        return _Fault(
            f"the time is over: {_names(left)} still ran after {settings.timeout:g} s", None
        )
    done = {child.index for child in children} - left
    return _Fault(
        f"{_names(done)} came to the end, and {_names(left)} still ran {settings.apart:g} s later, "
        "perhaps waiting in a collective that takes all (--apart sets how long they may)",
        None,
    )


def _names(indices: set[int]) -> str:
    word = "process" if len(indices) == 1 else "processes"
    return f"{word} {', '.join(map(str, sorted(indices)))}"


def _how(child: _Child, count: int) -> str:
    assert child.code is not None
    who = f"process {child.index} of {count}"
    if child.code > 0:
        return f"{who} ended with code {child.code}"
    name = signal.Signals(-child.code).name if -child.code in set(signal.Signals) else "a signal"
    hints = {
        "SIGKILL": "; somebody killed it, or the system had no memory left",
        "SIGABRT": "; it ended itself: its last lines say why",
    }
    return f"{who} was ended by {name} ({-child.code}){hints.get(name, '')}"


def _message(
    fault: _Fault, children: Sequence[_Child], killed: Sequence[int], settings: Settings
) -> str:
    lines = [f"launch: {fault.text}"]
    shown = [fault.child] if fault.child else [c for c in children if c.index in killed]
    for child in shown:
        if child.tail:
            lines.append(f"the last lines of process {child.index} on stderr:")
            lines += [f"  {line}" for line in child.tail]
    if killed:
        lines.append(f"ended with it: {_names(set(killed))}")
    if settings.log_dir is not None:
        lines.append(f"all output is in {settings.log_dir}")
    return "\n".join(lines)


def _end(children: Sequence[_Child], grace: float) -> list[int]:
    """End what still runs, with whatever it has started; returns the processes that were ended."""
    hurry = threading.Event()
    with _handled(lambda *_: hurry.set(), signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        running = [child for child in children if child.code is None]
        for child in running:
            child.signal(signal.SIGTERM)
        deadline = time.monotonic() + grace
        while any(child.code is None for child in running) and time.monotonic() < deadline:
            if hurry.wait(0.01):  # a second Ctrl-C
                break
        for child in children:  # also what a process that has ended left behind
            child.signal(signal.SIGKILL)
        for child in children:
            for thread in reversed(child.threads):  # the one that waits for the end comes first
                thread.join(_JOIN)
            child.process.wait()
            for stream in (child.process.stdout, child.process.stderr):
                if stream is not None and not any(thread.is_alive() for thread in child.threads):
                    stream.close()
        return [child.index for child in running]


def _interrupt(number: int, _: Any) -> None:
    raise KeyboardInterrupt(f"signal {number}")


@contextlib.contextmanager
def _handled(handler: Callable[[int, Any], Any], *numbers: int) -> Iterator[None]:
    """Have signals call ``handler`` for a while, where Python lets them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
