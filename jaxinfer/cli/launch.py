"""``jaxinfer launch``: the same program in several processes on this machine."""

from __future__ import annotations

from pathlib import Path

import click


@click.command("launch", context_settings={"ignore_unknown_options": True})
@click.argument("program", nargs=-1, required=True, type=click.UNPROCESSED)
@click.option(
    "--processes", "-n", type=click.IntRange(1, 4096), required=True, help="How many processes."
)
@click.option(
    "--devices-per-process",
    "devices",
    type=click.IntRange(1, 4096),
    default=1,
    show_default=True,
    help="How many devices each has.",
)
@click.option(
    "--platform",
    type=click.Choice(["cpu", "cuda"]),
    default="cpu",
    show_default=True,
    help="cpu: gloo on the loopback interface; cuda: CUDA_VISIBLE_DEVICES is divided.",
)
@click.option(
    "--log-dir", type=click.Path(file_okay=False, path_type=Path), help="Write logs there."
)
@click.option(
    "--plain", is_flag=True, help="Print process 0's stdout as it is, the rest on stderr."
)
@click.option(
    "--timeout", type=click.FloatRange(0, min_open=True), help="End all after so many seconds."
)
@click.option(
    "--apart",
    type=click.FloatRange(0, min_open=True),
    default=300,
    show_default=True,
    help="Seconds that the others may run on after the first has come to its end.",
)
@click.option(
    "--grace",
    type=click.FloatRange(0),
    default=5,
    show_default=True,
    help="Seconds between asking processes to end and killing them.",
)
def command(
    program: tuple[str, ...],
    processes: int,
    devices: int,
    platform: str,
    log_dir: Path | None,
    plain: bool,
    timeout: float | None,
    apart: float,
    grace: float,
) -> None:
    """Run PROGRAM (after --) in several processes that form one JAX program.

    The program calls jaxinfer.initialize() first. Lines are prefixed with the number of their
    process. The first process that fails ends the others: exit code 1, and the message says which.

    Example: jaxinfer launch --processes 2 --devices-per-process 4 -- python program.py
    """
    from jaxinfer.cli._launch import launch
    from jaxinfer.cli._launch_env import Settings

    settings = Settings(processes, devices, platform, log_dir, plain, timeout, apart, grace)
    launch(program, settings)
