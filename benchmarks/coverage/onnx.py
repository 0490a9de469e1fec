"""ONNX's own backend tests: one operator each, and the models that need no download."""

from __future__ import annotations

import functools
import pathlib
import time
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np

from benchmarks.coverage.common import Case, failed

TITLE = "onnx.backend.test"
INTRO = """
The cases of `onnx.backend.test`: `node`, one operator each with its recorded outputs (those whose
name ends in `_expanded` are the specification's own decompositions); `simple`, small models;
`light`, nine image classifiers with weights of one value. A file is converted by
`jaxinfer.from_onnx`. Many node cases pass a shape, an axis or a count as an input; JAX compiles for
fixed shapes, so such inputs, which `from_onnx` names in its error, are fixed to the case's values
(`fixed=`); the rest are arguments. Excluded are tensors of strings, results whose shape depends on
values (also image files as bytes), random results, and bits of 64-bit numbers.
"""
TIMEOUT = 120.0
TARGET = 0.9
DATA_DEPENDENT = ("the shape of its result depends on the data", "onnx.ImageDecoder")
LIGHT_TOLERANCE = 1e-3  # of onnx's own runner, for outputs of its Python reference


@functools.cache
def _cases() -> dict[str, Any]:
    """Return everything but the light models by ``kind/name``."""
    from onnx.backend.test.case.node import collect_testcases
    from onnx.backend.test.loader import load_model_tests

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        node = collect_testcases(None)
    found = {f"node/{case.name}": case for case in node}
    return found | {f"simple/{case.name}": case for case in load_model_tests(kind="simple")}


def _light() -> dict[str, pathlib.Path]:
    import onnx.backend.test

    (folder,) = onnx.backend.test.__path__
    return {f"light/{p.stem}": p for p in sorted(pathlib.Path(folder).glob("data/light/*.onnx"))}


def names() -> list[str]:
    """Return ``kind/name`` of every case."""
    return [*_cases(), *_light()]


def run(name: str) -> list[Case]:
    """Convert a case and hold it against its recorded outputs."""
    kind, started = name.split("/")[0], time.perf_counter()
    try:
        case = _light_case(name) if kind == "light" else _case(name)
    except Exception as error:
        case = _refused(name, error)
    seconds = time.perf_counter() - started
    return [Case(name, case.status, case.reason, case.error, seconds, kind)]


def _refused(name: str, error: Exception) -> Case:
    text = str(error)
    if "strings" in text:
        return Case(name, "excluded", "strings")
    if any(part in text for part in DATA_DEPENDENT):
        return Case(name, "excluded", "data-dependent shape")
    if "with 64-bit types off" in text:
        return Case(name, "excluded", f"needs x64: {text.splitlines()[0][:120]}")
    return failed(name, error)


def _case(name: str) -> Case:
    import onnx

    case = _cases()[name]
    if case.model_dir is None:
        return _agree(name, case.model, case.data_sets, case.rtol)
    folder = pathlib.Path(case.model_dir)
    data = []
    for part in sorted(folder.glob("test_data_set_*")):
        inputs = [_file(p) for p in sorted(part.glob("input_*.pb"), key=_number)]
        data.append((inputs, [_file(p) for p in sorted(part.glob("output_*.pb"), key=_number)]))
    return _agree(name, onnx.load(folder / "model.onnx"), data, case.rtol)


def _number(path: pathlib.Path) -> int:
    return int(path.stem.split("_")[-1])


def _file(path: pathlib.Path) -> Any:
    """Read one value of a test's data: a tensor, or a sequence."""
    import onnx
    from google.protobuf.message import DecodeError

    for kind in (onnx.TensorProto, onnx.SequenceProto):
        value = kind()
        try:
            value.ParseFromString(path.read_bytes())
            return _value(value)
        except DecodeError:
            continue
    raise ValueError(f"{path.name}: neither a tensor nor a sequence")


def _value(value: Any) -> Any:
    import onnx
    from onnx import numpy_helper

    if isinstance(value, onnx.TensorProto):
        return numpy_helper.to_array(value)
    if isinstance(value, onnx.SequenceProto):
        return numpy_helper.to_list(value)
    if isinstance(value, onnx.OptionalProto):
        return numpy_helper.to_optional(value)
    return value


def _shape(value: Any) -> Any:
    if value is None:
        return None
    return [np.shape(x) for x in value] if isinstance(value, list) else np.shape(value)


def convert(model: Any, values: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Convert a model, fixing the inputs that its shapes depend on; returns it and those."""
    import jaxinfer as ji
    from jaxinfer_converters.onnx.known import DynamicValueError

    fixed: dict[str, Any] = {}
    while True:
        shapes = {name: _shape(v) for name, v in values.items() if name not in fixed}
        try:
            return ji.from_onnx(model, inputs=shapes, fixed=fixed), fixed
        except DynamicValueError as error:
            more = {name: values[name] for name in error.inputs if name not in fixed}
            if not more:
                raise
            fixed |= more


def _agree(name: str, model: Any, data: Any, rtol: float) -> Case:
    worst = Case(name, "fail", "the case has no data")
    for inputs, outputs in data:
        values = dict(zip((i.name for i in model.graph.input), map(_value, inputs), strict=False))
        converted, fixed = convert(model, values)
        if converted.program.random:
            return Case(name, "excluded", "random")
        got = converted(*(value for key, value in values.items() if key not in fixed))
        worst = _compared(name, converted, [_value(out) for out in outputs], got, rtol)
        if worst.status != "pass":
            return worst
    return worst


def _compared(name: str, model: Any, want: list[Any], got: Any, rtol: float) -> Case:
    """Return the case of comparing outputs, with the test's own relative tolerance."""
    from jaxinfer.core import parity

    flat = [x for out in want for x in (out if isinstance(out, list) else [out]) if x is not None]
    given = list(parity.outputs_of(model, got).values())
    worst = 0.0
    for array, out in zip(flat, parity.compare(flat, given), strict=True):
        allowed = max(out.tolerance, rtol if out.tolerance else 0.0)
        if out.problem or out.mismatches or out.max_abs > allowed * out.scale:
            return Case(name, "fail", f"{np.asarray(array).dtype.name}: output {out}")
        worst = max(worst, out.max_abs / (allowed * out.scale) if allowed else 0.0)
    return Case(name, "pass", error=worst)


def _light_case(name: str) -> Case:
    """Run a light model on the input that onnx's own runner makes for it."""
    import onnx

    path = _light()[name]
    graph = onnx.load(path).graph
    stored = {tensor.name for tensor in graph.initializer}
    (item,) = (item for item in graph.input if item.name not in stored)
    shape = [dim.dim_value for dim in item.type.tensor_type.shape.dim]
    count = int(np.prod(shape))
    x = (np.arange(count).reshape(shape) / count).astype(np.float32)
    model, _ = convert(path, {item.name: x})
    want = _file(path.with_name(f"{path.stem}_output_0.pb"))
    return _compared(name, model, [want], model(x), LIGHT_TOLERANCE)
