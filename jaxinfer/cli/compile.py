"""``jaxinfer compile OUT -o EXE --buckets batch=1,4,16``: native code for every bucket, saved.

The directory EXE holds native code of this machine: ``ji.load_executable("EXE")`` runs it without
tracing or compiling, and ``jaxinfer run EXE IN.npz -o OUT.npz --executable`` does so from here.
"""

from __future__ import annotations

from typing import Any

import click


@click.command("compile")
@click.argument("model_dir", metavar="OUT")
@click.option("-o", "--out", required=True, metavar="EXE", help="The directory to make.")
@click.option(
    "--input",
    "inputs",
    multiple=True,
    metavar="NAME=SIZE,...",
    help="Shape of an input: numbers, and names of dimensions (x=batch,128).",
)
@click.option(
    "--buckets",
    multiple=True,
    metavar="DIM=SIZE,...",
    help="Sizes to compile a dimension for; inputs are padded to the next one.",
)
@click.option("--mesh", metavar="AXIS=N,...", help="Shard over a mesh, such as data=2,model=4.")
@click.option("--sharding", default="auto", show_default=True, help="How, on the mesh.")
@click.option("--donate", multiple=True, metavar="NAME", help="Input whose memory results take.")
@click.option("--backend", default="xla", show_default=True, help="xla or openvino.")
@click.option("--fallback", metavar="xla", help="Where the back-end cannot take the model.")
@click.option("--option", "options", multiple=True, metavar="NAME=VALUE", help="Compiler option.")
@click.option("--cache/--no-cache", default=False, help="Keep code in the user's own cache.")
@click.option("--no-check", is_flag=True, help="Do not compare with the reference.")
@click.option("--overwrite", is_flag=True, help="Replace an executable that exists.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def command(model_dir: str, out: str, as_json: bool, **given: Any) -> None:
    """Compile the model directory OUT into the executable EXE.

    Every combination of buckets is compiled ahead of time, checked and run once.
    """
    from jaxinfer.cli import _console, _sizes

    shapes, buckets = _sizes.shapes(given["inputs"]), _sizes.buckets(given["buckets"])
    options = _sizes.options(given["options"])
    from pathlib import Path

    from jaxinfer.compile.store import INDEX
    from jaxinfer.io._directory import check_target
    from jaxinfer.io.artefact import load

    check_target(
        Path(out).absolute(), given["overwrite"], lambda folder: (folder / INDEX).is_file()
    )
    if given["mesh"]:
        _devices_for(given["mesh"])
    from jaxinfer.compile.build import compile

    stages = _console.Stages()
    with stages.stage("load", f"loading {model_dir}"):
        model = load(model_dir)
    with stages.stage("compile", "compiling", "buckets") as progress:
        exe = compile(
            model,
            shapes or None,
            buckets=buckets or None,
            mesh=given["mesh"],
            sharding=given["sharding"],
            donate=given["donate"],
            backend=given["backend"],
            fallback=given["fallback"],
            compiler_options=options or None,
            check=False if given["no_check"] else "auto",
            cache=given["cache"],
            progress=lambda done, total, name, _: progress(name, done, total),
        )
    with stages.stage("write", f"writing {out}"):
        exe.save(out, overwrite=given["overwrite"])
    report = exe.report()
    if as_json:
        _console.echo_json({**report.to_json(), "out": out, "seconds": stages.seconds})
        return
    console = _console.out()
    header, *rows = report.rows()
    console.print(_console.table(rows, header))
    times = ", ".join(f"{stage} {value:.1f} s" for stage, value in stages.seconds.items())
    for line in (*report.notes, *(f"{b.name}: {n}" for b in report for n in b.notes), times):
        console.print(line, markup=False)
    console.print(f"wrote {out}", markup=False)


def _devices_for(mesh: str) -> None:
    """Count the CPU as as many devices as a mesh has, before the first use of a device."""
    import math

    import jax

    from jaxinfer.core._compat import setting

    sizes = [part.partition("=")[2] for part in mesh.split(",")]
    if all(size.strip().isdecimal() for size in sizes) and setting("jax_num_cpu_devices") < 2:
        jax.config.update("jax_num_cpu_devices", max(1, math.prod(map(int, sizes))))
