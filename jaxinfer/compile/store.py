"""Saved executables: a directory with native code, parameters, and StableHLO to compile again.

    executable.json       format, key of the native code (``_key``), signature, buckets, shardings,
                          reports; length and SHA-256 of every other file
    bucket-000.bin        native code (``_native.serialize``): a pickle, so load only what you trust
    bucket-000.openvino/  OpenVINO's own files, in place of both; they are compiled on load
    bucket-000.stablehlo  the same function as StableHLO (``jax.export``), where it can be exported
    params.safetensors    the parameters, once for all buckets

Loading checks length, digest and key of everything before anything is deserialized. Code of
another jaxlib, device or processor, or damaged code, is compiled again from the StableHLO, with a
warning and in the report; with ``strict=True`` it is an error.
"""

from __future__ import annotations

import json
import os
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.export
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxinfer.compile import _native, _results
from jaxinfer.compile._entry import Entry
from jaxinfer.compile._key import differences, environment
from jaxinfer.compile._report import BucketReport
from jaxinfer.compile.build import Placement
from jaxinfer.compile.executable import Executable, Frame
from jaxinfer.core._compat import x64_scope
from jaxinfer.core.arrays import owned
from jaxinfer.core.errors import ArtefactError, CheckpointError, listing
from jaxinfer.core.signature import LeafSpec, Signature
from jaxinfer.io import _json
from jaxinfer.io._directory import replacing, sha256, write_bytes
from jaxinfer.io.artefact import write_leaves
from jaxinfer.io.checkpoint import open_checkpoint, plain_name
from jaxinfer.sharding.plan import put

FORMAT, SCHEMA, INDEX = "jaxinfer-executable", 1, "executable.json"
META = "openvino.json"


class StaleExecutableWarning(UserWarning):
    """Native code could not be used as it is, and was compiled again."""


def save(executable: Executable, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
    """Write an executable to a directory, all of it or nothing; see ``Executable.save``."""
    with replacing(path, overwrite, lambda folder: (folder / INDEX).is_file()) as folder:
        _write(executable, folder)


def _write(executable: Executable, folder: Path) -> None:
    frame, entries = executable._frame, executable._entries
    if len({device.process_index for device in frame.devices}) > 1:
        raise ArtefactError(
            "an executable over several processes is not saved: each process has its own code; "
            "keep cache=True instead, and every process its own cache"
        )
    files: dict[str, Any] = {}
    described, lacking, bare = [], [], []
    for number, entry in enumerate(entries):
        code, name = entry.payload, f"bucket-{number:03}"
        if entry.report.backend == "openvino":
            for part in entry.code.function.save(folder / f"{name}.openvino"):
                path = folder / f"{name}.openvino" / part
                about = {"length": path.stat().st_size, "sha256": sha256(path)}
                files[f"{name}.openvino/{part}"] = about
            described.append({**_describe(entry), "file": name, "export": "none: OpenVINO"})
            continue
        if code is None:
            lacking.append(f"{entry.report.name}: the platform does not give its code away")
            continue
        files[f"{name}.bin"] = _file(folder / f"{name}.bin", code)
        export, why = _export(executable, number)
        if export is not None:
            files[f"{name}.stablehlo"] = _file(folder / f"{name}.stablehlo", export)
        else:
            bare.append(f"{entry.report.name}: {why}")
        described.append({**_describe(entry), "file": name, "export": why or "stablehlo"})
    if lacking:
        raise ArtefactError(listing("this executable cannot be saved:", lacking))
    params = dict(zip(frame.names, frame.params, strict=True))
    if bare:
        title = "saved without StableHLO, so another jaxlib or device cannot compile it again:"
        warnings.warn(listing(title, bare), UserWarning, stacklevel=4)
    digests = write_leaves(params, folder) if params else {}
    for name, digest in digests.items():
        files[name] = {"length": (folder / name).stat().st_size, "sha256": digest}
    data = {
        "format": FORMAT,
        "schema": SCHEMA,
        "key": environment(frame.devices if frame.plan else None),
        "signature": frame.signature.to_json(),
        "leaves": [leaf.to_json() for leaf in frame.leaves],
        "buckets": {name: list(sizes) for name, sizes in frame.buckets.items()},
        "low": dict(frame.low),
        "names": list(frame.names),
        "donated": list(frame.donated),
        "key_impl": frame.key_impl,
        "x64": frame.x64,
        "results": _results.describe(frame.finish, len(entries[0].outputs)),
        "mesh": _mesh_json(frame.plan),
        "info": {**frame.info, "notes": list(frame.info.get("notes", ()))},
        "entries": described,
        "files": files,
    }
    try:
        text = json.dumps(data, separators=(",", ":"), allow_nan=True).encode()
    except (TypeError, ValueError) as error:
        raise ArtefactError(f"the executable cannot be written as JSON: {error}") from error
    write_bytes(folder / INDEX, text)  # last: without it nothing is loaded


def _file(path: Path, data: bytes) -> dict[str, Any]:
    return {"length": len(data), "sha256": write_bytes(path, data)}


def _describe(entry: Entry) -> dict[str, Any]:
    return {
        "sizes": dict(entry.sizes),
        "shapes": [list(shape) for shape in entry.shapes],
        "shardings": [_spec_json(sharding.spec) for sharding in entry.shardings],
        "needs": list(entry.needs),
        "least": dict(entry.least),
        "outputs": [[axis and list(axis) for axis in axes] for axes in entry.outputs],
        "report": entry.report.to_json(),
    }


def _export(executable: Executable, number: int) -> tuple[bytes | None, str]:
    """Return the StableHLO of a bucket, or why there is none."""
    source = executable._source
    if isinstance(source, Mapping):  # it was loaded: what was there is kept
        return source.get(number), "" if number in source else "there was none"
    from jaxinfer.compile.aot import exported

    try:
        return exported(source.flat, source.jobs[number], source.settings), ""
    except Exception as error:  # whatever stands in the way of an export is said, not fatal
        return None, f"none: {type(error).__name__}: {str(error).splitlines()[0][:200]}"


def _mesh_json(plan: Any) -> dict[str, Any] | None:
    if plan is None:
        return None
    return {
        "axes": dict(plan.mesh.shape),
        "devices": [device.id for device in plan.mesh.devices.flat],
        "params": {name: _spec_json(sharding.spec) for name, sharding in plan.params.items()},
        "inputs": [_spec_json(spec) for spec in plan.inputs],
        "strategy": plan.strategy,
    }


def _spec_json(spec: Any) -> list[Any]:
    return [list(names) if isinstance(names, tuple) else names for names in spec]


def _spec(data: Sequence[Any]) -> PartitionSpec:
    return PartitionSpec(*(tuple(n) if isinstance(n, list) else n for n in data))


def load_executable(path: str | os.PathLike[str], *, strict: bool = False) -> Executable:
    """Read an executable that ``Executable.save`` has written; nothing is traced or compiled.

    Native code runs what its author wrote: load only directories that you trust.

    Args:
      path: the directory.
      strict: code that does not fit this process, or is damaged, is an error; else it is
        compiled again, with a StaleExecutableWarning.

    Raises:
      ArtefactError: no such directory, not an executable, of a newer schema, damaged; or stale,
        with ``strict`` or without StableHLO to compile. All faults at once.
    """
    folder = Path(path)
    data = _read_index(folder)
    try:
        return _load(folder, data, strict)
    except (KeyError, TypeError, IndexError, AttributeError, ValueError) as error:
        if isinstance(error, ArtefactError):
            raise
        raise ArtefactError(
            f"{folder / INDEX}: malformed: {type(error).__name__}: {str(error)[:200]}"
        ) from error


def _read_index(folder: Path) -> dict[str, Any]:
    index = folder / INDEX
    if not index.is_file():
        raise ArtefactError(
            f"{folder} is no saved executable: there is no {INDEX}; exe.save(path) writes one"
        )
    try:
        data = _json.read(index)
    except (OSError, ValueError) as error:
        raise ArtefactError(f"{index}: {error}") from error
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise ArtefactError(f"{index}: not the index of a saved executable")
    if data.get("schema") != SCHEMA:
        raise ArtefactError(
            f"{index}: schema {str(data.get('schema'))[:40]!r}, this version reads {SCHEMA}; "
            "upgrade jaxinfer, or compile the model again"
        )
    return data


def _load(folder: Path, data: Mapping[str, Any], strict: bool) -> Executable:
    damaged = _damaged(folder, data["files"])
    code = {f"{entry['file']}.bin" for entry in data["entries"] if not _is_openvino(entry)}
    parts = {f"{e['file']}.openvino/{META}" for e in data["entries"] if _is_openvino(e)}
    unlisted = sorted((code | parts) - set(data["files"]))
    if unlisted:
        raise ArtefactError(
            _json.report(f"{folder / INDEX}: no length and digest of:", [repr(n) for n in unlisted])
        )
    fatal = [fault for name, fault in damaged.items() if name not in code or strict]
    if fatal:
        raise ArtefactError(_json.report(f"{folder} is damaged:", fatal))
    devices, plan = _devices(data)
    here = environment(devices if plan else None)
    stale = differences(data["key"], here)
    if stale and strict:
        raise ArtefactError(
            _json.report(f"{folder} was compiled for another environment (strict=True):", stale)
        )
    params = _read_params(folder, data["names"], plan, devices[0])
    counts = (len(params), *_counts(data), 1 if data["key_impl"] else 0)
    entries, exports, said = [], {}, []
    for number, described in enumerate(data["entries"]):
        name = described["file"]
        export = folder / f"{name}.stablehlo"
        if export.name in data["files"]:
            exports[number] = export.read_bytes()
        why = damaged.get(f"{name}.bin") or "; ".join(stale)
        arity = _native.Arity(
            (*counts[:3], len(described["needs"]), counts[3], len(described["outputs"]))
        )
        code_bytes, started = None, time.perf_counter()
        if _is_openvino(described):
            made = _load_openvino(folder / f"{name}.openvino")
            entries.append(_entry(described, plan, made, None, "", started))
            continue
        with x64_scope(bool(data["x64"])):
            if not why:
                code_bytes = (folder / f"{name}.bin").read_bytes()
                try:
                    made = _native.load(code_bytes, arity, devices)
                except Exception as error:  # whatever the unpickler meets
                    why = f"the code does not load: {type(error).__name__}: {str(error)[:200]}"
                    if strict:
                        raise ArtefactError(f"{folder / name}.bin: {why}") from error
            if why:
                said.append(f"{name}: {why}")
                mesh = plan.mesh if plan else None
                made, code_bytes = _again(folder, described, exports.get(number), why, mesh)
        entries.append(_entry(described, plan, made, code_bytes, why, started))
    if said:
        warnings.warn(
            listing(f"{folder}: compiled again:", said), StaleExecutableWarning, stacklevel=3
        )
    return Executable(_frame(data, params, devices, plan), entries, exports)


def _is_openvino(described: Mapping[str, Any]) -> bool:
    return described["report"]["backend"] == "openvino"


def _load_openvino(folder: Path) -> Any:
    from jaxinfer.compile.openvino.backend import Call
    from jaxinfer.compile.openvino.function import OpenVINOFunction

    return Call(OpenVINOFunction.load(folder))


def _damaged(folder: Path, files: Mapping[str, Any]) -> dict[str, str]:
    """Return what is wrong with the files, by name; lengths first, then digests."""
    found = {}
    for name, about in files.items():
        path = folder / name
        if not _inside(name):
            found[name] = f"{name[:80]!r}: not a file name"
        elif not path.is_file():
            found[name] = f"{name}: missing"
        elif path.stat().st_size != about["length"]:
            size = path.stat().st_size
            found[name] = f"{name}: required {about['length']} bytes, got {size}"
        elif sha256(path) != about["sha256"]:
            found[name] = f"{name}: other bytes than were written (SHA-256)"
    return found


def _inside(name: str) -> bool:
    """Return whether a name is that of a file of the directory, or of a folder in it."""
    parts = name.split("/")
    return len(parts) <= 2 and all(map(plain_name, parts))


def _devices(data: Mapping[str, Any]) -> tuple[tuple[Any, ...], Any]:
    mesh = data["mesh"]
    if mesh is None:
        return (jax.devices()[0],), None
    by_id = {device.id: device for device in jax.devices()}
    missing = [number for number in mesh["devices"] if number not in by_id]
    if missing:
        count, cpu = len(mesh["devices"]), data["key"]["platform"] == "cpu"
        also = f", or count its CPU as {count} devices (JAX_NUM_CPU_DEVICES={count})" if cpu else ""
        raise ArtefactError(
            f"this executable runs on {count} devices (mesh {mesh['axes']}), "
            f"here are {len(by_id)}; compile the model for this machine{also}"
        )
    devices = [by_id[number] for number in mesh["devices"]]
    shape = tuple(mesh["axes"].values())
    made = Mesh(np.array(devices, dtype=object).reshape(shape), tuple(mesh["axes"]))
    params = {name: NamedSharding(made, _spec(spec)) for name, spec in mesh["params"].items()}
    inputs = tuple(_spec(spec) for spec in mesh["inputs"])
    return tuple(devices), Placement(made, params, inputs, str(mesh["strategy"]))


def _read_params(folder: Path, names: Sequence[str], plan: Any, device: Any) -> list[Any]:
    if not names:
        return []
    try:
        checkpoint = open_checkpoint(folder)
        missing = [name for name in names if name not in checkpoint]
        if missing:
            raise ArtefactError(_json.report(f"{folder}: parameters that are missing:", missing))
        made = []
        for name in names:
            array = checkpoint[name]
            if plan is not None:
                made.append(put(array, plan.params[name]))
            elif device.platform == "cpu":
                made.append(owned(array))
            else:
                made.append(jax.device_put(array, device))
        return made
    except CheckpointError as error:
        raise ArtefactError(str(error)) from error


def _counts(data: Mapping[str, Any]) -> tuple[int, int]:
    donated = len(data["donated"])
    return len(data["leaves"]) - donated, donated


def _again(
    folder: Path, described: Mapping[str, Any], export: bytes | None, why: str, mesh: Any
) -> tuple[Any, bytes | None]:
    """Compile a bucket from its StableHLO."""
    name = described["file"]
    if export is None:
        raise ArtefactError(
            f"{folder}: {name}: {why}; and there is no StableHLO to compile it from "
            f"({described['export']}): compile the model again with ji.compile"
        )
    from jaxinfer.compile.aot import compile_export

    try:
        compiled = compile_export(export, mesh)
    except Exception as error:
        raise ArtefactError(
            f"{folder}: {name}: {why}; its StableHLO does not compile here: "
            f"{type(error).__name__}: {str(error)[:300]}; compile the model again"
        ) from error
    return compiled, _native.serialize(compiled)


def _entry(
    described: Mapping[str, Any], plan: Any, code: Any, payload: Any, why: str, started: float
) -> Entry:
    taken = time.perf_counter() - started
    report = {
        **described["report"],
        "lower_s": 0.0,
        "compile_s": taken if why else 0.0,
        "origin": f"compiled again: {why}" if why else "loaded",
    }
    shardings = ()
    if plan is not None:
        shardings = tuple(NamedSharding(plan.mesh, _spec(spec)) for spec in described["shardings"])
    return Entry(
        dict(described["sizes"]),
        tuple(tuple(shape) for shape in described["shapes"]),
        shardings,
        tuple(described["needs"]),
        tuple(
            tuple(axis and (str(axis[0]), int(axis[1]), int(axis[2])) for axis in axes)
            for axes in described["outputs"]
        ),
        code,
        BucketReport.from_json(report),
        payload,
        {str(name): int(size) for name, size in described["least"].items()},
    )


def _frame(data: Mapping[str, Any], params: list[Any], devices: Any, plan: Any) -> Frame:
    results = data["results"]
    return Frame(
        Signature.from_json(data["signature"]),
        tuple(LeafSpec.from_json(leaf) for leaf in data["leaves"]),
        {name: tuple(sizes) for name, sizes in data["buckets"].items()},
        {name: int(size) for name, size in data["low"].items()},
        tuple(data["names"]),
        params,
        lambda outs: _results.rebuild(results, outs),
        tuple(data["donated"]),
        devices,
        plan,
        str(data["key_impl"]),
        bool(data["x64"]),
        dict(data["info"]),
    )
