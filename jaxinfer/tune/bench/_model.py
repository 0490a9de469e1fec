"""bench_model: a model directory against its peers."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxinfer.core.errors import InputError, listing
from jaxinfer.io.artefact import load
from jaxinfer.tune.bench._inputs import draw, require_one_function
from jaxinfer.tune.bench._peers import DEFAULT, check_names, check_source, origin, peer_side
from jaxinfer.tune.bench._run import Progress, bench
from jaxinfer.tune.bench._worker import write_arrays
from jaxinfer.tune.bench.result import BenchResult
from jaxinfer.tune.bench.side import Side

OWN, TUNED = "jaxinfer", "jaxinfer-tuned"


def bench_model(
    model_dir: str | os.PathLike[str],
    against: Sequence[str] = DEFAULT,
    *,
    source: str | None = None,
    source_options: Mapping[str, Any] | None = None,
    batches: Sequence[int] = (1, 8, 32),
    sizes: Mapping[str, int] | None = None,
    data: str | os.PathLike[str] | None = None,
    repeats: int = 25,
    block: int = 5,
    threads: int | None = None,
    seed: int = 0,
    timeout_s: float = 900.0,
    tuned: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None = None,
    profile: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> BenchResult:
    """Time a model directory against its peers, all in one run, interleaved; see ``bench``.

    Sides: ``jaxinfer`` (the directory compiled by XLA without options), ``jaxinfer-tuned`` for
    each directory of ``tuned``, and the peers. All take the same arrays on the host, of the same
    number of threads. Outputs are compared with those of ``torch`` in float32, or, where that
    does not run, with those of ``jaxinfer``.

    Args:
      model_dir: the model directory.
      against: names of peers (``PEERS``). Packages that are not installed become rows that say so.
      source: where the peers' model comes from, as for ``jaxinfer convert``: a checkpoint
        directory, ``timm:NAME``, ``package.module:factory``, ``model.pt2``, ``model.onnx``. None:
        what the model directory says, where that is enough (``timm:NAME``). The module gets the
        directory's weights where they fit.
      source_options: ``weights``, ``class_name``, ``dtype``, ``seed`` of the source.
      batches: samples in a call; a model with a fixed batch runs at that.
      sizes: of the other named dimensions, ``{"sequence": 128}``.
      data: an .npz of inputs with samples along axis 0: the first are run, int8 peers are
        calibrated on the others. None: random inputs.
      repeats, block, threads, seed, timeout_s, progress: see ``bench``.
      tuned: directories that ``jaxinfer optimize`` wrote.
      profile: a folder for traces of jaxinfer's sides (TensorBoard's, and Perfetto's).

    Raises:
      InputError: unknown peers, no such source, sizes and batches that do not fit, data that do
        not fit.
      ArtefactError: no model directory.
    """
    check_names(against)
    if source:
        check_source(source)
    folder = Path(model_dir)
    model = load(folder, abstract=True)
    require_one_function(model)
    start = origin(source, model.provenance)
    own = {OWN: _own(folder), **_tuned(tuned, data)}
    drawn = draw(model, list(batches), dict(sizes or {}), data, seed)
    with tempfile.TemporaryDirectory(prefix="jaxinfer-bench-") as scratch:
        settings = {
            "model_dir": str(folder.absolute()),
            "options": {"seed": seed, **(source_options or {})},
        }
        files = _calibration(Path(scratch), drawn.calibration)
        peers = {name: peer_side(name, start, settings | files) for name in against}
        return bench(
            {**own, **peers},
            drawn.calls,
            label=str(model.provenance.get("source", "")) or folder.name,
            reference=("torch", OWN),
            repeats=repeats,
            block=block,
            threads=threads,
            seed=seed,
            timeout_s=timeout_s,
            sizes=drawn.sizes,
            notes=drawn.notes,
            profile=profile,
            profiled=tuple(own),
            progress=progress,
        )


def _own(folder: Path) -> Side:
    settings = {"model_dir": str(folder.absolute())}
    return Side("jaxinfer.tune.bench._jaxinfer:open_model", settings)


def _tuned(tuned: Any, data: Any) -> dict[str, Side]:
    """Return a side for each directory; several are told apart by their names."""
    if tuned is None:
        return {}
    given = [tuned] if isinstance(tuned, (str, os.PathLike)) else list(tuned)
    folders = [Path(each) for each in given]
    problems = [f"{f}: no model directory" for f in folders if not (f / "model.json").is_file()]
    if len({f.absolute() for f in folders}) < len(folders):
        problems.append("a directory is there twice")
    if problems:
        raise InputError(listing("bench: tuned:", problems))
    sides = {}
    for folder in folders:
        name = TUNED if len(folders) == 1 else f"{TUNED}:{folder.name}"
        if name in sides:
            name = f"{TUNED}:{folder}"
        settings = {"model_dir": str(folder.absolute())}
        settings |= {"data": os.path.abspath(data)} if data is not None else {}
        sides[name] = Side("jaxinfer.tune.bench._jaxinfer:open_tuned", settings)
    return sides


def _calibration(folder: Path, batches: Mapping[Any, Sequence[Any]]) -> dict[str, Any]:
    """Write the calibration batches to files, by batch size."""
    found: dict[str, list[str]] = {}
    for batch, calls in batches.items():
        for place, arrays in enumerate(calls):
            path = folder / f"{batch}-{place}.npz"
            write_arrays(path, arrays)
            found.setdefault(str(batch), []).append(str(path))
    return {"calibration": found}
