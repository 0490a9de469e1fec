"""Several processes of one program on this machine: started, watched, and ended together.

Each process leads a session and process group of its own. The first that does not end with code 0
ends all: SIGTERM to their groups, SIGKILL after a grace period. A program that leaves its group
(``setsid``) is out of reach. On Linux a process also dies with the launcher, should that be killed.
"""

from __future__ import annotations

import contextlib
import os
import queue
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, BinaryIO, NamedTuple

from jaxinfer.cli._launch_child import Child, Output
from jaxinfer.cli._launch_env import Settings, environment, free_port
from jaxinfer.core.errors import InputError, JaxinferError

_JOIN = 2.0  # seconds to wait for the last output
SETTLE = 0.5  # seconds in which others fail of one that has
CAUSES = {signal.SIGKILL, signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE}
"""Signals that no other process's end brings about."""


class LaunchError(JaxinferError, RuntimeError):
    """A launched process failed, or the processes did not end in time."""


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
    output = Output(settings, out or sys.stdout.buffer, err or sys.stderr.buffer)
    children: list[Child] = []
    ended: queue.SimpleQueue[Child] = queue.SimpleQueue()
    with _handled(_interrupt, signal.SIGTERM, signal.SIGHUP):
        try:
            for index, env in enumerate(envs):
                children.append(Child(index, argv, env))
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
    child: Child | None
    also: frozenset[int] = frozenset()  # what failed with it


def _supervise(
    children: Sequence[Child], ended: queue.SimpleQueue[Child], settings: Settings
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
            return _blamed(child, ended, settings)
        first = first or time.monotonic()
    return None


def _blamed(child: Child, ended: queue.SimpleQueue[Child], settings: Settings) -> _Fault:
    """Return the fault of a process that failed, or of the one whose death made it fail.

    A process that is killed breaks the connections of the others, which may be seen to end before
    it: so what else fails within ``SETTLE`` seconds is looked at, and what was killed or crashed is
    blamed first. (SIGABRT is not: JAX ends a process so when another has left it.)
    """
    failed, until = [child], time.monotonic() + SETTLE
    while (left := until - time.monotonic()) > 0:
        with contextlib.suppress(queue.Empty):
            failed += [other for other in [ended.get(timeout=left)] if other.code]
    first = next((other for other in failed if -(other.code or 0) in CAUSES), child)
    also = {other.index for other in failed} - {first.index}
    return _Fault(_how(first, settings.processes), first, frozenset(also))


def _late(children: Sequence[Child], settings: Settings, limit: str) -> _Fault:
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


def _how(child: Child, count: int) -> str:
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
    fault: _Fault, children: Sequence[Child], killed: Sequence[int], settings: Settings
) -> str:
    lines = [f"launch: {fault.text}"]
    shown = [fault.child] if fault.child else [c for c in children if c.index in killed]
    for child in shown:
        if child.tail:
            lines.append(f"the last lines of process {child.index} on stderr:")
            lines += [f"  {line}" for line in child.tail]
    if killed or fault.also:
        lines.append(f"ended with it: {_names({*killed, *fault.also})}")
    if settings.log_dir is not None:
        lines.append(f"all output is in {settings.log_dir}")
    return "\n".join(lines)


def _end(children: Sequence[Child], grace: float) -> list[int]:
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
