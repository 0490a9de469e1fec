"""A false alarm of XLA on CPUs, kept off the screen; everything else on stderr passes.

When XLA:CPU loads native code it compares the features that LLVM compiled with to those of the
processor, and complains of ``prefer-no-gather`` and ``prefer-no-scatter``, which are preferences
of the code generator and no instructions: four kilobytes for each executable, on the very machine
that compiled it. What the processor can do is in the key of the code (``_key``), so a real
difference is found before. Source: openxla/xla, cpu_aot_loader.cc.

The file descriptor is redirected for the time of loading; what other threads write to stderr
meanwhile is written when it ends.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
import tempfile
import threading
from collections.abc import Iterator

_ALARM = re.compile(r"cpu_aot_loader\.cc.*Target machine feature \+prefer-no-(gather|scatter) is")
_lock = threading.Lock()


@contextlib.contextmanager
def without_false_alarm() -> Iterator[None]:
    """Hold back what is written to stderr, and write all but the false alarm afterwards."""
    with _lock, contextlib.ExitStack() as stack:
        try:
            sys.stderr.flush()
            kept = os.dup(2)
            stack.callback(os.close, kept)
            file = stack.enter_context(tempfile.TemporaryFile())
            os.dup2(file.fileno(), 2)
        except (OSError, ValueError, AttributeError):  # no stderr to speak of
            yield
            return
        try:
            yield
        finally:
            os.dup2(kept, 2)
            file.seek(0)
            for line in file.read().splitlines(keepends=True):
                if not _ALARM.search(line.decode(errors="replace")):
                    os.write(2, line)
