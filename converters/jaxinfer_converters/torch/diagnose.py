"""Why torch.export refused: which line fixed a size, which lines depend on values.

While it exports, torch reports each decision about a symbolic size to the logger of
``torch.fx.experimental.symbolic_shapes``. In non-strict mode the user's own frames are on the
stack at that moment, so a handler of that logger can say which line each decision comes from.
A failed export is run once more for it; a successful one pays nothing.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import logging
import pathlib
import re
import sys
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch._functorch.config
from torch.export import ExportedProgram
from torch.fx import Node as FxNode

from jaxinfer_converters.aten._data_dependent import cure

BRANCH_CURE = "for a Python branch, torch.where on both results, or torch.cond"
NUMBER_CURE = (
    "keep the number a tensor (x.max(), not int(x.max()) or .item()); a size must be a Python "
    "number of its own, given before the call"
)
_SHAPES = "torch.fx.experimental.symbolic_shapes"
_LOGGERS = (_SHAPES, "torch._subclasses.fake_tensor")
_PACKAGE = str(pathlib.Path(__file__).parents[1])
_TORCH = str(pathlib.Path(torch.__file__).parent)


@dataclasses.dataclass
class _Decision:
    """A record of the logger: its text before formatting, its arguments, the user's line."""

    what: str
    args: tuple[str, ...]
    line: str


class _Listener(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.decisions: list[_Decision] = []

    def emit(self, record: logging.LogRecord) -> None:
        args = record.args if isinstance(record.args, tuple) else ()
        found = _Decision(str(record.msg), tuple(str(arg) for arg in args), _user_line())
        self.decisions.append(found)


def _user_line() -> str:
    """Return the user's innermost line below the export that is running."""
    frames = traceback.extract_stack()
    ours = [n for n, frame in enumerate(frames) if frame.filename.startswith(_PACKAGE)]
    start = max((n for n in ours if frames[n].name not in ("emit", "_user_line")), default=-1) + 1
    outside = [frame for frame in frames[start:] if not _is_foreign(frame.filename)]
    return line_text(outside[-1]) if outside else ""


def _is_foreign(file: str) -> bool:
    return is_internal(file) or file == logging.__file__


def line_text(frame: traceback.FrameSummary) -> str:
    """Return ``file:line: code``."""
    return f"{short_file(frame.filename)}:{frame.lineno}: {frame.line or ''}".rstrip(": ")


def _listen(again: Callable[[], Any]) -> tuple[list[_Decision], Any]:
    """Export again with the logger heard; returns its decisions, and the program if any."""
    logger, listener = logging.getLogger(_SHAPES), _Listener()
    level, propagate, handlers = logger.level, logger.propagate, list(logger.handlers)
    result = None
    with contextlib.suppress(Exception), contextlib.redirect_stderr(io.StringIO()):
        logger.handlers, logger.propagate = [listener], False
        logger.setLevel(logging.INFO)
        result = again()
    logger.handlers, logger.propagate = handlers, propagate
    logger.setLevel(level)
    return listener.decisions, result


def fixed_sizes(again: Callable[[], Any]) -> list[str]:
    """Return each dynamic size that the module fixes or limits: the constraint and its line.

    >>> fixed_sizes(lambda: None)
    []
    """
    decisions, _ = _listen(again)
    sources: dict[str, str] = {}
    found: dict[str, None] = {}
    for item in decisions:
        what, args = item.what, [*item.args, "", "", ""]
        if what.startswith("create_symbol"):
            sources[args[0]] = _axis(args[2])
        elif what.startswith("set_replacement") and args[1].isdigit():
            found[f"{sources.get(args[0], args[0])} must be {args[1]}: {item.line}"] = None
        elif "[guard added]" in what and args[0] == "eval" and item.line:
            constraint = _named(args[1], sources)
            if not constraint.startswith("Ne("):  # torch's own: sizes 0 and 1 are untested
                found.setdefault(f"required {constraint}: {item.line}")
    return _without_repeats(list(found))


def _axis(source: str) -> str:
    """Turn ``L['x'].size()[0]`` into ``axis 0 of x``."""
    match = re.fullmatch(r"L\['(\w+)'\](.*)\.size\(\)\[(\d+)\]", source)
    return f"axis {match[3]} of {match[1]}{match[2]}" if match else source


def _named(expression: str, sources: dict[str, str]) -> str:
    return re.sub(r"\bs\d+\b", lambda m: f"({sources.get(m[0], m[0])})", expression)


def _without_repeats(problems: list[str]) -> list[str]:
    """Keep the first constraint of a line, and all that fix a size (they come to a number)."""
    kept: list[str] = []
    numbers = {text.split(": ", 1)[1] for text in problems if " must be " in text}
    lines: set[str] = set()
    for text in problems:
        line = text.split(": ", 1)[1]
        if " must be " not in text:
            if line in numbers or line in lines:
                continue
            lines.add(line)
        kept.append(text)
    return kept


def data_dependence(again: Callable[[], ExportedProgram]) -> list[str]:
    """Return every line whose shape, branch or number depends on values, with a cure.

    Torch stops at the first such line; with real values beside the symbolic ones it goes on.
    What comes after a line that fails for another reason is not seen.
    """
    with _real_values():
        decisions, program = _listen(again)
    found: dict[tuple[str, str], str] = {}
    nodes = [] if program is None else list(program.graph.nodes)
    for node in nodes:
        op, line = str(node.target), source_line(node)
        if line and _new_sizes(node):
            found[line, op] = f"{line} ({op}): {cure(op)}"
    for item in decisions:
        if not item.what.startswith("propagate_real_tensors") or not item.line:
            continue
        is_number = re.fullmatch(r"z?u[a-z]*\d+", item.args[0]) is not None
        if not any(line == item.line for line, _ in found):
            found[item.line, ""] = f"{item.line}: {NUMBER_CURE if is_number else BRANCH_CURE}"
    return [text for _, text in sorted(found.items(), key=lambda item: _place(item[0][0]))]


def _place(line: str) -> tuple[str, int]:
    """Return file and number of a ``file:line: code``."""
    file, number, *_ = [*line.split(":"), "0"]
    return file, int(number) if number.isdigit() else 0


@contextlib.contextmanager
def _real_values() -> Iterator[None]:
    """Let fake tensors carry values while exporting, as ``torch.export.draft_export`` does."""
    with torch._functorch.config.patch(fake_tensor_propagate_real_tensors=True):
        yield


def _new_sizes(node: FxNode) -> set[str]:
    """Return the unbacked symbols that a node's result has and none of its inputs."""
    made = unbacked(node.meta.get("val"))
    for source in node.all_input_nodes:
        made -= unbacked(source.meta.get("val"))
    return made


def unbacked(value: Any) -> set[str]:
    """Return the unbacked symbols (known only from data) in the shapes of a node's tensors.

    A number read from a tensor (``x.max().item()``) that never becomes a size is no problem.
    """
    found: set[str] = set()
    for item in value if isinstance(value, (tuple, list)) else (value,):
        for size in item.shape if isinstance(item, torch.Tensor) else ():
            if isinstance(size, torch.SymInt):
                found |= set(re.findall(r"\bu\d+\b", str(size.node.expr)))
    return found


def source_line(node: FxNode) -> str:
    """Return ``file:line: code`` of the user's line that a node comes from, as far as known."""
    trace = node.meta.get("stack_trace") or ""
    frames = re.findall(r'File "([^"]+)", line (\d+), in [^\n]*\n?\s*([^\n]*)', trace)
    outside = [f for f in frames if "/torch/" not in f[0].replace("\\", "/")]
    if not frames:
        return ""
    file, line, code = (outside or frames)[-1]
    return f"{short_file(file)}:{line}: {code.strip()[:120]}".rstrip(": ")


def caused_by(error: BaseException) -> str:
    """Return the user's innermost line: the last frame of the error that is not torch's."""
    chain: BaseException | None = error
    while chain is not None:
        frames = [
            f for f in traceback.extract_tb(chain.__traceback__) if not is_internal(f.filename)
        ]
        if frames:
            return f" at {line_text(frames[-1])}"
        chain = chain.__cause__ or chain.__context__
    return ""


def is_internal(file: str) -> bool:
    """Return whether a file is torch's or this package's."""
    return file.startswith((_PACKAGE, _TORCH)) or file.startswith("<")


def short_file(file: str) -> str:
    """Shorten a path to what follows site-packages, or to its last two parts."""
    file = file.replace("\\", "/")
    for mark in ("/site-packages/", "/dist-packages/"):
        if mark in file:
            return file.split(mark)[-1]
    return "/".join(file.split("/")[-2:])


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep torch.export from printing graphs and tracebacks before an error that we explain.

    What is written to stderr meanwhile is kept, and comes out if there is no error.
    """
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    levels, written = [logger.level for logger in loggers], io.StringIO()
    for logger in loggers:
        logger.setLevel(logging.CRITICAL + 1)
    try:
        with contextlib.redirect_stderr(written):
            yield
        sys.stderr.write(written.getvalue())
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
