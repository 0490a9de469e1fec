"""One launched process, and the output of all."""

from __future__ import annotations

import collections
import contextlib
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, BinaryIO

from jaxinfer.cli._launch_env import Settings
from jaxinfer.sharding._cluster import LAUNCHED

_TAIL = 12  # lines of stderr in the message
_NOISE = (b"[Gloo] Rank ", b" connected peer ranks ")  # what gloo prints on stdout
_STACK = ("    @ ", "*** Check failure stack trace")  # of the C++ below JAX
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


class Child:
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

    def watch(self, ended: queue.SimpleQueue[Child]) -> None:
        """Wait for the end, without reaping: the number of the group must stay ours."""
        pid = self.process.pid
        if hasattr(os, "waitid"):
            found = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
            assert found is not None
            self.code = found.si_status if found.si_code == os.CLD_EXITED else -found.si_status
        else:
            self.code = self.process.wait()
        ended.put(self)

    def listen(self, ended: queue.SimpleQueue[Child]) -> None:
        """Wait for the word of ``initialize`` that the program has come to its end."""
        with os.fdopen(self._end, "rb") as pipe:
            if pipe.read(1):
                self.leaving = True
                ended.put(self)

    def signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, number)


class Output:
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

    def copy(self, child: Child, source: BinaryIO, is_err: bool) -> None:
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
