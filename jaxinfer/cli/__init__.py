"""The ``jaxinfer`` command. Each command is a file here, imported when it is called.

Exit codes: 0 done, 1 failed, 2 wrong usage. A problem that jaxinfer or the system explains is
one message on stderr without a traceback; anything else says that it is a bug. ``--debug``
lets every exception through.
"""

from __future__ import annotations

import errno
import importlib
from typing import Any

import click

from jaxinfer._version import __version__
from jaxinfer.core.errors import JaxinferError

_COMMANDS = {
    "convert": "Convert a PyTorch model, prove parity, and write a model directory.",
    "inspect": "Show what a model holds, takes, gives and costs.",
    "verify": "Compare a model directory with its source on random inputs.",
    "run": "Run a model on the arrays of an .npz file.",
    "cast": "Compute in other dtypes, with what needs float32 kept in it.",
    "fold": "Fold batch norms and scales into the kernels before them.",
    "prune": "Mask weights to zero, unstructured or N:M.",
    "quantize": "Quantize weights, and activations if asked to.",
    "compile": "Compile ahead of time, for every bucket, into an executable directory.",
    "shard": "Show how a model is split over a mesh, and why.",
    "export": "Write a model as StableHLO, for other platforms.",
    "optimize": "Find the fastest arrangement that is accurate enough.",
    "bench": "Time a model against its peers, in turn, on the same inputs.",
    "launch": "Run a program in several processes on this machine.",
    "audit": "Show what each transform did to every parameter.",
    "doctor": "Check versions, devices and numerics of this installation.",
}


class _Group(click.Group):
    """Loads a command's module when it is called, and turns exceptions into messages."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        return importlib.import_module(f"jaxinfer.cli.{cmd_name}").command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(_COMMANDS.items()))

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except (Exception, KeyboardInterrupt) as error:
            if ctx.params.get("debug") or _is_broken_pipe(error):
                raise
            click.echo(f"error: {_message(error)}", err=True)
            ctx.exit(1)


def _is_broken_pipe(error: BaseException) -> bool:
    return isinstance(error, OSError) and error.errno == errno.EPIPE


def _message(error: BaseException) -> str:
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.filename}: {error.strerror}"
    if isinstance(error, (JaxinferError, OverflowError, OSError)):
        return str(error)
    if isinstance(error, MemoryError):
        return f"out of memory: {error}"
    first = (str(error).strip().splitlines() or [""])[0][:300]
    return (
        f"{type(error).__name__}: {first}\n"
        "This was not expected: it is a bug in jaxinfer, or in the model's own code. "
        "`jaxinfer --debug ...` shows the traceback; report it with the command."
    )


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="jaxinfer")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def main(debug: bool) -> None:
    """From a PyTorch model to a fast pure JAX function."""
    del debug  # read by the group
