"""The OpenVINO back-end: a jaxpr compiled by OpenVINO for the CPU, in float32 or int8.

    jaxpr -> OpenVINO model (``graph``) -> [NNCF: int8 on calibration data] -> compiled

float32 is float32: OpenVINO would by itself compute in bfloat16 where the processor can, so the
precision is always set, and ``report()`` says which types the compiled layers have. Shapes are
fixed; weights are constants. Nothing is sent to anyone: OpenVINO and NNCF are imported without
their telemetry.

What it does not do: other devices than the CPU, 64-bit types, random numbers, sharding. A program
that holds any such is refused as a whole (``OpenVINOUnsupported``), never computed in part.
"""

from __future__ import annotations

import json
import os
import queue
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import jaxinfer.compile.openvino.flow
import jaxinfer.compile.openvino.linear
import jaxinfer.compile.openvino.products
import jaxinfer.compile.openvino.rules  # noqa: F401  (the four register rules)
from jaxinfer.compile.openvino.graph import OpenVINOUnsupported as OpenVINOUnsupported
from jaxinfer.compile.openvino.loading import load_openvino
from jaxinfer.compile.openvino.model import Built, Input, build, held_as
from jaxinfer.compile.openvino.model import unsupported as unsupported
from jaxinfer.compile.openvino.quantization import Quantization as Quantization
from jaxinfer.compile.openvino.quantization import quantized
from jaxinfer.compile.openvino.request import Request
from jaxinfer.core import dtypes
from jaxinfer.core.errors import (
    ArtefactError,
    InputError,
    InputTypeError,
    MissingExtraError,
    listing,
)

DEFAULTS: Mapping[str, Any] = {
    "INFERENCE_PRECISION_HINT": "f32",  # else bfloat16 on processors that have it
    "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,  # else activations of compressed weights in int8
    "PERFORMANCE_HINT": "LATENCY",
}
FILES = ("model.xml", "model.bin")
META = "openvino.json"
CONSTANTS = "constants.npz"
SCHEMA = 1


def available() -> str:
    """Return why OpenVINO cannot be used here; empty if it can."""
    try:
        load_openvino()
    except MissingExtraError as error:
        return str(error)
    return ""


def compile_jaxpr(
    closed_jaxpr: Any,
    *,
    constants: Sequence[tuple[str, Any]] = (),
    threads: int | None = None,
    options: Mapping[str, Any] | None = None,
    quantize: Quantization | Iterable[Sequence[Any]] | None = None,
) -> OpenVINOFunction:
    """Compile a closed jaxpr by OpenVINO for the CPU.

    Args:
      closed_jaxpr: of ``jax.make_jaxpr``, its sizes numbers; what it closes over (weights)
        becomes constant.
      constants: what the first inputs of the jaxpr are fixed to, each with the path of the
        parameter that it is; products with them bear these names.
      threads: of a call; None: as many as the machine has cores.
      options: OpenVINO properties by name, for example ``{"PERFORMANCE_HINT": "THROUGHPUT"}``.
      quantize: calibration batches (lists of the inputs of a call), or a ``Quantization``: the
        model is quantized to int8 by NNCF.

    Returns:
      A function of the inputs. Cost: a second copy of the weights while it compiles.

    Raises:
      OpenVINOUnsupported: equations that it cannot take, all of them; ``missing`` lists them.
      MissingExtraError: OpenVINO is not installed; or NNCF is not, and ``quantize`` is given.
      InputError: unknown options; calibration batches that do not fit.
    """
    made = build(closed_jaxpr, constants)
    facts: dict[str, Any] = {**made.facts, "int8": None}
    if quantize is not None:
        given = quantize if isinstance(quantize, Quantization) else Quantization(quantize)
        made, facts["int8"] = quantized(made, given)
    return OpenVINOFunction(made, threads, options, facts)


class OpenVINOFunction:
    """A compiled program: arrays in by position, numpy arrays out.

    May be called from several threads at once: each call has a request of its own.
    """

    def __init__(
        self,
        built: Built,
        threads: int | None = None,
        options: Mapping[str, Any] | None = None,
        facts: Mapping[str, Any] | None = None,
    ):
        self._built = built
        self._facts = dict(facts if facts is not None else built.facts)
        self._requests: queue.SimpleQueue[Request] = queue.SimpleQueue()
        self._openvino = load_openvino()
        self._options = _checked(self._openvino, threads, options)
        # inputs that need no conversion, and outputs that are not OpenVINO's as they are
        self._expected = [
            (shape, dtypes.dtype_of(dtype), dtype == "float32") for shape, dtype in built.in_avals
        ]
        self._narrow = any(held_as(dtype) != dtypes.dtype_of(dtype) for _, dtype in built.in_avals)
        self._others = [
            index
            for index, (place, (_, dtype)) in enumerate(
                zip(built.outputs, built.out_avals, strict=True)
            )
            if type(place) is not int or held_as(dtype) != dtypes.dtype_of(dtype)
        ]
        self._compiled: Any = None
        started = time.perf_counter()
        if built.model is not None:
            core = self._openvino.Core()
            try:
                self._compiled = core.compile_model(built.model, "CPU", self._options)
            except RuntimeError as error:
                raise InputError(f"OpenVINO does not compile this program: {error}") from error
        self._seconds = time.perf_counter() - started

    @property
    def in_avals(self) -> tuple[tuple[tuple[int, ...], str], ...]:
        """Shape and dtype of each input."""
        return self._built.in_avals

    @property
    def out_avals(self) -> tuple[tuple[tuple[int, ...], str], ...]:
        """Shape and dtype of each output."""
        return self._built.out_avals

    def __call__(self, arrays: Sequence[Any]) -> list[np.ndarray]:
        """Compute the outputs for the inputs, in order.

        Large contiguous arrays are read where they are, small ones copied; outputs are new arrays.

        Raises:
          InputError, InputTypeError: inputs that do not fit; all at once.
        """
        given = self._given(arrays)
        outs: list[Any] = [None] * len(self._built.outputs)
        if self._compiled is not None:
            request = self._request()
            request.run(given, outs)
            self._requests.put(request)
        for index in self._others:
            place = self._built.outputs[index]
            if isinstance(place, Input):
                outs[index] = np.array(arrays[place.index])
            else:
                dtype = dtypes.dtype_of(self._built.out_avals[index][1])
                outs[index] = (
                    np.array(place) if isinstance(place, np.ndarray) else outs[index].astype(dtype)
                )
        return outs

    def _request(self) -> Request:
        try:
            return self._requests.get_nowait()
        except queue.Empty:
            return Request(self._openvino, self._compiled, self._built)

    def _given(self, arrays: Sequence[Any]) -> Sequence[np.ndarray]:
        """Return the inputs as contiguous arrays without NaN; what is common costs little."""
        if self._narrow or len(arrays) != len(self._expected):
            return self._fitting(arrays)
        given = []
        for value, (shape, dtype, floating) in zip(arrays, self._expected, strict=True):
            array = np.asarray(value)
            if array.shape != shape or array.dtype != dtype or not array.flags.c_contiguous:
                return self._fitting(arrays)
            if floating and array.size:
                largest = np.maximum.reduce(array, axis=None)
                if largest != largest:  # NaN is the largest of all
                    return self._fitting(arrays)
            given.append(array)
        return given

    def _fitting(self, arrays: Sequence[Any]) -> list[np.ndarray]:
        avals = self._built.in_avals
        if len(arrays) != len(avals):
            raise InputError(f"required {len(avals)} inputs, got {len(arrays)}")
        found, shapes, types = [], [], []
        for index, (value, (shape, dtype)) in enumerate(zip(arrays, avals, strict=True)):
            array = np.asarray(value)
            if array.shape != shape:
                shapes.append(f"input {index}: required shape {shape}, got {array.shape}")
            if str(array.dtype) != dtype:
                types.append(f"input {index}: required {dtype}, got {array.dtype}")
            found.append(_widened(array))
            if found[-1].dtype.kind == "f" and np.isnan(found[-1]).any():
                shapes.append(
                    f"input {index}: has NaN, which OpenVINO does not keep (its exp of NaN is "
                    "inf); take it out first, or compile with backend='xla'"
                )
        if shapes or types:
            raise (InputError if shapes else InputTypeError)(
                listing("inputs that do not fit:", [*shapes, *types])
            )
        return found

    def report(self) -> dict[str, Any]:
        """Return what was compiled, as plain data.

        Returns:
          ``compile_s``, ``weight_bytes``, ``versions``, ``options`` (as OpenVINO has them),
          ``precision`` (what float32 layers run in), ``layers`` (how many run in each type),
          ``folded`` (equations evaluated beforehand, by primitive), ``computed_in_float32``
          (equations of narrower floats), ``int8`` (how it was quantized; with the names of the
          products with parameters that are ``int8`` and ``float32``), ``fallback``: always
          empty, since a program is taken whole or refused.
        """
        options = dict(self._options)
        layers: Counter[str] = Counter()
        if self._compiled is not None:
            for name in options:
                options[name] = _plain(self._compiled.get_property(name))
            for node in self._compiled.get_runtime_model().get_ops():
                kind = node.get_rt_info()["layerType"].astype(str)
                if kind not in ("Const", "Input", "Output"):
                    layers[node.get_rt_info()["runtimePrecision"].astype(str)] += 1
        return {
            "backend": "openvino",
            "compile_s": round(self._seconds, 4),
            "weight_bytes": sum(
                node.get_byte_size()
                for node in ([] if self._built.model is None else self._built.model.get_ops())
                if node.get_type_name() == "Constant"
            ),
            "versions": _versions(),
            "options": options,
            "precision": options["INFERENCE_PRECISION_HINT"],
            "layers": dict(layers),
            "fallback": [],
            **self._facts,
        }

    def save(self, folder: str | os.PathLike[str]) -> list[str]:
        """Write OpenVINO's own files, uncompressed, and what ``load`` needs, into a folder.

        Returns:
          The names of the files: the caller keeps their digests.

        Raises:
          ArtefactError: they cannot be written.
        """
        folder, names = Path(folder), []
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if self._built.model is not None:
                paths = [str(folder / name) for name in FILES]
                self._openvino.serialize(self._built.model, *paths)
                names += FILES
            outputs = self._built.outputs
            fixed: dict[str, Any] = {
                str(i): np.frombuffer(value.tobytes(), np.uint8)
                for i, value in enumerate(outputs)
                if isinstance(value, np.ndarray)
            }
            if fixed:
                np.savez(folder / CONSTANTS, **fixed)  # pyright: ignore[reportArgumentType]
                names.append(CONSTANTS)
            data = {
                "schema": SCHEMA,
                "inputs": list(self._built.inputs),
                "outputs": [_place_json(out) for out in outputs],
                "in_avals": [[list(shape), dtype] for shape, dtype in self._built.in_avals],
                "out_avals": [[list(shape), dtype] for shape, dtype in self._built.out_avals],
                "options": {name: _plain(value) for name, value in self._options.items()},
                "facts": self._facts,
                "versions": _versions(),
            }
            (folder / META).write_text(json.dumps(data, indent=1))
        except (OSError, RuntimeError) as error:
            raise ArtefactError(f"{folder}: not written: {error}") from error
        return [*names, META]

    @classmethod
    def load(
        cls,
        folder: str | os.PathLike[str],
        *,
        threads: int | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> OpenVINOFunction:
        """Read what ``save`` has written, and compile it again; no tracing, no calibration.

        Args:
          folder: whose files the caller has found undamaged by their digests.
          threads: of a call; None: as when it was saved.
          options: in place of those that were saved, by name.

        Raises:
          ArtefactError: files that are missing, damaged, or of a newer version.
          MissingExtraError: OpenVINO is not installed.
        """
        openvino, folder = load_openvino(), Path(folder)
        try:
            data = json.loads((folder / META).read_text())
            if data["schema"] != SCHEMA:
                raise ValueError(f"schema {data['schema']!r}, this version reads {SCHEMA}")
            in_avals, out_avals = (
                tuple((tuple(map(int, shape)), str(dtype)) for shape, dtype in data[name])
                for name in ("in_avals", "out_avals")
            )
            fixed: Mapping[str, Any] = {}
            if None in data["outputs"]:
                with np.load(folder / CONSTANTS, allow_pickle=False) as file:
                    fixed = {name: file[name] for name in file.files}
            outputs = tuple(
                _constant_of(fixed[str(i)], *aval)
                if out is None
                else (Input(int(out["input"])) if isinstance(out, dict) else int(out))
                for i, (out, aval) in enumerate(zip(data["outputs"], out_avals, strict=True))
            )
            model = None
            if any(type(out) is int for out in outputs):
                model = openvino.Core().read_model(*(str(folder / name) for name in FILES))
            inputs, facts, saved = tuple(data["inputs"]), data["facts"], data["options"]
            _same_avals(model, inputs, outputs, in_avals, out_avals)
        except (OSError, ValueError, LookupError, TypeError, RuntimeError) as error:
            raise ArtefactError(f"{folder}: not a program saved for OpenVINO: {error}") from error
        made = Built(model, inputs, outputs, in_avals, out_avals, facts)
        return cls(made, threads, {**saved, **(options or {})}, facts)


def _widened(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array, held_as(str(array.dtype)) if array.size else None).reshape(
        array.shape
    )


def _place_json(place: Any) -> Any:
    if isinstance(place, np.ndarray):
        return None
    return {"input": place.index} if isinstance(place, Input) else place


def _constant_of(data: np.ndarray, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    return np.frombuffer(data.tobytes(), dtypes.dtype_of(dtype)).reshape(shape)


def _same_avals(
    model: Any,
    inputs: Sequence[int],
    outputs: Sequence[Any],
    in_avals: Sequence[Any],
    out_avals: Sequence[Any],
) -> None:
    """Raise ValueError unless OpenVINO's model has the inputs and outputs that are recorded."""
    held = [out for out in outputs if type(out) is int]
    same = [(out.index, i) for i, out in enumerate(outputs) if isinstance(out, Input)]
    if any(not 0 <= n < len(in_avals) or in_avals[n] != out_avals[i] for n, i in same):
        raise ValueError("an output that is no input")
    counts = (len(inputs), len(held))
    got = (0, 0) if model is None else (len(model.inputs), len(model.outputs))
    if counts != got:
        raise ValueError(f"required {counts[0]} inputs and {counts[1]} outputs, got {got}")
    if sorted(held) != list(range(len(held))) or any(not 0 <= i < len(in_avals) for i in inputs):
        raise ValueError("inputs or outputs that are not there")
    if model is None:
        return
    pairs = [(model.inputs[place], in_avals[index]) for place, index in enumerate(inputs)]
    where = [i for i, out in enumerate(outputs) if type(out) is int]
    pairs += [(model.outputs[outputs[i]], out_avals[i]) for i in where]
    for port, (shape, dtype) in pairs:
        kind = port.element_type.to_dtype()
        if tuple(port.shape) != shape or np.dtype(kind) != held_as(dtype):
            raise ValueError(f"required {dtype}{list(shape)}, got {port}")


def _checked(openvino: Any, threads: int | None, options: Mapping[str, Any] | None) -> Any:
    """Return the options as OpenVINO takes them.

    Raises:
      InputError: unknown names, and a number of threads below 1; all at once.
    """
    given = dict(options or {})
    problems = []
    if threads is not None:
        if type(threads) is not int or threads < 1:
            problems.append(f"threads: required a number from 1 on, got {threads!r}")
        given["INFERENCE_NUM_THREADS"] = threads
    core = openvino.Core()
    supported = core.get_property("CPU", "SUPPORTED_PROPERTIES")
    known = [n for n in supported if str(getattr(n, "is_mutable", lambda: True)()) == "True"]
    for name in given:
        if name not in supported:
            problems.append(f"{name}: OpenVINO's CPU plugin has no such option")
    if problems:
        advice = f"known: {', '.join(sorted(map(str, known)))}"
        raise InputError(listing("options for OpenVINO:", problems, advice))
    return {**DEFAULTS, **given}


def _plain(value: Any) -> Any:
    if isinstance(value, (bool, int, float, str)) or value is None:
        return value
    name = getattr(value, "name", None)
    return name if isinstance(name, str) else str(getattr(value, "get_type_name", value.__str__)())


def _versions() -> dict[str, str]:
    import importlib.metadata

    found = {}
    for name in ("openvino", "nncf", "jax", "numpy"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
