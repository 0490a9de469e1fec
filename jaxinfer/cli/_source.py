"""The options that say what a source is, shared by ``convert`` and ``verify``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from jaxinfer.core.frontend import Options, Source, open_source
from jaxinfer.core.parity import OutputError, Report

_OPTIONS = (
    click.option(
        "--weights",
        metavar="FILE",
        help="Weights to use instead of the source's own (.safetensors, .pth).",
    ),
    click.option(
        "--input",
        "inputs",
        multiple=True,
        metavar="SPEC",
        help="An example input, once for each: 'float32[batch=2,3,224,224]', "
        "'ids=int64[batch=2,seq=8]<30522' (integers below 30522). A named size is dynamic.",
    ),
    click.option(
        "--dynamic",
        type=click.Choice(["auto", "none"]),
        default="auto",
        show_default=True,
        help="Keep batch and sequence sizes dynamic where the model allows, or fix every size.",
    ),
    click.option(
        "--x64",
        is_flag=True,
        help="Compute in 64 bits wherever SRC does (int64, float64), also when loaded again.",
    ),
    click.option("--class", "class_name", metavar="NAME", help="Class to build from a checkpoint."),
    click.option("--dtype", metavar="DTYPE", help="Float dtype to build the module in."),
    click.option(
        "--seed",
        type=click.IntRange(0),
        default=0,
        show_default=True,
        help="Seed of the random inputs, and of random weights where there are none.",
    ),
    click.option(
        "--tolerance",
        type=click.FloatRange(0),
        help="Largest absolute error allowed, as a fraction of max(1, largest output). Default by "
        "dtype: float32 1e-4, float16 8e-3, bfloat16 6e-2; integers are exact.",
    ),
)


def source_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of a source to a command."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def opened(source: str, given: dict[str, Any]) -> Source:
    """Open a source with the command's options (``tolerance`` is not one of them)."""
    names = ("weights", "inputs", "dynamic", "class_name", "dtype", "x64", "seed")
    also = [name for name in ("layout", "scan_layers") if name in given]
    return open_source(source, Options(**{name: given[name] for name in (*names, *also)}))


def seeds_of(seed: int) -> tuple[int, int]:
    """Return the seeds of the inputs on which parity is proved."""
    return (seed, seed + 1)


ERROR_HEADER = ("output", "type", "abs error", "rel error", "allowed", "")


def error_rows(report: Report) -> list[tuple[str, ...]]:
    """Return one row for each output: path, type, errors, what was allowed, verdict."""
    return [
        (
            output.path,
            f"{output.dtype}[{', '.join(map(str, output.shape))}]",
            *_errors(output),
            "ok" if output.ok else output.problem or "TOO LARGE",
        )
        for output in report.outputs
    ]


def _errors(output: OutputError) -> tuple[str, str, str]:
    if not output.compared:
        return ("-", "-", "-")
    allowed = output.tolerance * output.scale
    return (f"{output.max_abs:.3g}", f"{output.max_rel:.3g}", f"{allowed:.3g}")
