"""``jaxinfer run OUT inputs.npz -o outputs.npz``: a saved model on saved arrays.

Arrays are named by input path; ``arr_0``, ``arr_1`` ... (what ``numpy.savez`` calls arrays
without a name) are taken in order. Nothing is unpickled. The .npz format has no bfloat16 or
float8: such inputs are read from float32, and such outputs written as float32, which holds
them exactly; both are said.
"""

from __future__ import annotations

import os
import uuid
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import numpy as np

from jaxinfer.cli._arrays import arguments, input_leaves, storable
from jaxinfer.core.errors import ArtefactError, InputError


@click.command("run")
@click.argument("model_dir", metavar="OUT")
@click.argument("inputs", metavar="INPUTS.npz")
@click.option("-o", "--out", required=True, metavar="OUTPUTS.npz", help="The file to write.")
@click.option("--key", type=int, metavar="N", help="Random key, for a model that samples.")
@click.option(
    "--executable",
    is_flag=True,
    help="OUT is what `jaxinfer compile` wrote: its native code is run, so trust it first.",
)
@click.option("--overwrite", is_flag=True, help="Replace OUTPUTS.npz if it exists.")
def command(
    model_dir: str, inputs: str, out: str, key: int | None, executable: bool, overwrite: bool
) -> None:
    """Run the model directory OUT on the arrays of INPUTS.npz.

    Arrays are named as `jaxinfer inspect` names the inputs, or arr_0, arr_1 ... in order.
    Outputs are named by their path; a single one is `output`.
    """
    import jax

    from jaxinfer.cli import _console
    from jaxinfer.compile.executable import Executable
    from jaxinfer.compile.store import load_executable
    from jaxinfer.io._npz import NpzFile
    from jaxinfer.io.artefact import load

    target = Path(out)
    _check_target(target, overwrite)
    archive = NpzFile(inputs)
    stages = _console.Stages()
    with stages.stage("load", f"loading {model_dir}"):
        model = load_executable(model_dir) if executable else load(model_dir)
    random = model.random if isinstance(model, Executable) else model.program.random
    if random and key is None:
        raise InputError("this model samples random numbers: pass --key N")
    notes: list[str] = []
    if key is not None and not random:
        notes.append("--key is not used: this model does not sample")
    given = arguments(model, input_leaves(model.inputs, archive, inputs, notes))
    with stages.stage("run", "running" if executable else "compiling and running"):
        rng_key = jax.random.key(key) if key is not None and random else None
        result = _named(model, model(rng_key=rng_key, **given))
        arrays = {path: np.asarray(value) for path, value in result.items()}
    for path, array in arrays.items():
        wide = storable(array.dtype)
        if wide != array.dtype:
            notes.append(f"{path}: {array.dtype.name} written as {wide.name} (exact)")
            arrays[path] = array.astype(wide)
    _write(target, arrays, overwrite)
    console = _console.out()
    for path, array in arrays.items():
        console.print(
            f"{path}: {array.dtype.name}[{', '.join(map(str, array.shape))}]", markup=False
        )
    for note in notes:
        console.print(f"note: {note}", markup=False)
    console.print(f"wrote {out}", markup=False)


def _named(model: Any, result: Any) -> dict[str, Any]:
    """Return results by path; of an executable, whose program is not known, as JAX names them."""
    import jax

    from jaxinfer.core.parity import outputs_of
    from jaxinfer.core.program import param_names

    if hasattr(model, "program"):
        return outputs_of(model, result)
    names = ["output" if name == "value" else name for name in param_names(result)]
    return dict(zip(names, jax.tree.leaves(result), strict=True))


def _check_target(target: Path, overwrite: bool) -> None:
    if not target.parent.is_dir():
        raise ArtefactError(f"{target}: the directory {target.parent} does not exist")
    if target.is_dir():
        raise ArtefactError(f"{target} is a directory; give a file to write")
    if os.path.lexists(target) and not overwrite:
        raise ArtefactError(f"{target} exists already; choose another path or pass --overwrite")


def _write(target: Path, arrays: Mapping[str, np.ndarray], overwrite: bool) -> None:
    """Write an .npz archive aside and rename it; on failure the target is as it was.

    ``numpy.savez`` takes names as keyword arguments, so an output called ``file`` breaks it.
    """
    aside = target.with_name(f".{target.name[:100]}.{uuid.uuid4().hex}.tmp")
    try:
        with open(aside, "xb") as file:
            with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
                for name, array in arrays.items():
                    with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                        np.lib.format.write_array(member, np.asanyarray(array), allow_pickle=False)
            file.flush()
            os.fsync(file.fileno())
        _check_target(target, overwrite)  # it may have been made meanwhile
        os.replace(aside, target)
    except BaseException as error:
        aside.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise ArtefactError(
                f"{target}: not written: {error.strerror or error}; nothing was left behind"
            ) from error
        raise
