"""How a rule is tested: against torch's own operator where torch is installed, else against
the outputs that torch gave when they were recorded (tests/aten/golden/*.npz).

A case holds an operator's arguments: numpy arrays stand for tensors, ``dtype("int64")`` for
dtypes. The rule runs under jit with the arrays traced, so a rule that needs values fails.
Record again after changing cases: ``python -m tests.aten.record``.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import pathlib
import pkgutil
import zlib
from typing import Any

import jax
import ml_dtypes
import numpy as np

from jaxinfer.core import dtypes
from jaxinfer.core.ops import OPS
from jaxinfer_converters.graph import DType, Graph
from jaxinfer_converters.program import Context

GOLDEN = pathlib.Path(__file__).parent / "golden"

dtype = DType


@dataclasses.dataclass(frozen=True)
class Case:
    """One call of an operator.

    Attributes:
      args, kwargs: the operator's arguments.
      rtol, atol: None takes the dtype's default (``TOLERANCE``); say beside it why not.
      check: for random operators: ``check(outputs)`` asserts on what the rule drew.
      compare: which outputs to compare (None: all).
      covered_by: node id of the test that covers the operator instead.
    """

    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = dataclasses.field(default_factory=dict)
    rtol: float | None = None
    atol: float | None = None
    check: Any = None
    compare: tuple[int, ...] | None = None
    covered_by: str = ""


def case(*args, rtol=None, atol=None, check=None, compare=None, **kwargs) -> Case:
    return Case(args, kwargs, rtol, atol, check, compare)


def covered_by(test: str) -> Case:
    """The operator is tested by another test, named ``file.py::function``."""
    return Case(covered_by=test)


def rand(*shape: int, dtype: str = "float32", low: float = -2.0, high: float = 2.0, seed: int = 0):
    """Uniform random numbers, reproducible for a (shape, seed); integers are inclusive of low."""
    rng = np.random.default_rng([zlib.crc32(repr(shape).encode()), seed])
    target = dtypes.dtype_of(dtype)
    if dtype == "bool":
        return np.asarray(rng.random(shape) > 0.5)
    if dtypes.kind(target) == "integer":
        low_int, high_int = (low, high) if (low, high) != (-2.0, 2.0) else (-5, 6)
        if dtype.startswith("u"):
            low_int = max(low_int, 0)
        return np.asarray(rng.integers(int(low_int), int(high_int), shape), target)
    if dtypes.kind(target) == "complex":
        return np.asarray(
            rng.uniform(low, high, shape) + 1j * rng.uniform(low, high, shape), target
        )
    return np.asarray(rng.uniform(low, high, shape), target)


# (rtol, atol): a few units in the last place of float32, about one of the half types.
TOLERANCE = {
    "float32": (2e-5, 2e-5),
    "complex64": (2e-5, 2e-5),
    "float64": (2e-5, 2e-5),  # computed in float32: x64 is off
    "complex128": (2e-5, 2e-5),
    "bfloat16": (1.6e-2, 1.6e-2),
    "float16": (2e-3, 2e-3),
}


def all_cases() -> dict[str, list[Case]]:
    """Merge the CASES of every cases_*.py; a doubled operator is an error."""
    merged: dict[str, list[Case]] = {}
    package = importlib.import_module("tests.aten")
    for info in pkgutil.iter_modules(package.__path__):
        if info.name.startswith("cases_"):
            module = importlib.import_module(f"tests.aten.{info.name}")
            for op, cases in module.CASES.items():
                assert op not in merged, f"{op} has cases in two files"
                merged[op] = cases
    return merged


def to_torch(value: Any) -> Any:
    import torch

    if isinstance(value, np.ndarray):
        if value.dtype == ml_dtypes.bfloat16:
            return torch.from_numpy(value.view(np.int16).copy()).view(torch.bfloat16)
        return torch.from_numpy(value.copy())
    if isinstance(value, DType):
        return getattr(torch, value.name)
    if isinstance(value, (list, tuple)):
        return type(value)(to_torch(item) for item in value)
    return value


def torch_outputs(op: str, case: Case) -> list[np.ndarray]:
    """Call torch's operator; returns its tensors, flat, as numpy."""
    import torch

    from jaxinfer.core.arrays import from_torch_tensor

    namespace, name, *overload = op.split(".")
    if namespace in ("operator", "math", "torch"):  # Python functions on sizes
        fn = getattr(importlib.import_module(namespace), name)
    else:
        if namespace == "torch_nn":  # defined when first used
            importlib.import_module("torch.nn.modules.linear_cross_entropy")
        fn = getattr(getattr(getattr(torch.ops, namespace), name), *overload)
    with torch.no_grad():
        out = fn(*map(to_torch, case.args), **{k: to_torch(v) for k, v in case.kwargs.items()})
    flat = out if isinstance(out, (tuple, list)) else [out]
    return [
        np.asarray(from_torch_tensor(item)) if isinstance(item, torch.Tensor) else np.asarray(item)
        for item in flat
    ]


def rule_outputs(op: str, *cases: Case) -> list[list[np.ndarray]]:
    """Call the rule on each case, all under one jit (one compilation), arrays traced.

    Returns the rule's arrays for each case, flat, as numpy.
    """
    rule = OPS[op]
    flat = [
        jax.tree.flatten((c.args, c.kwargs), is_leaf=lambda x: x is None or isinstance(x, DType))
        for c in cases
    ]

    def run(arrays):
        outputs = []
        for (leaves, tree), given in zip(flat, arrays, strict=True):
            filled = iter(given)
            values = [
                next(filled)
                if isinstance(leaf, np.ndarray)
                else dtypes.canonical(leaf.name)
                if isinstance(leaf, DType)
                else leaf
                for leaf in leaves
            ]
            args, kwargs = jax.tree.unflatten(tree, values)
            if getattr(rule, "wants_context", False):
                args = (Context(Graph((), (), ()), {}, jax.random.key(0)), *args)
            out = rule(*args, **kwargs)
            outputs.append(list(out) if isinstance(out, (tuple, list)) else [out])
        return outputs

    traced = [
        [dtypes.narrow(leaf, op) for leaf in leaves if isinstance(leaf, np.ndarray)]
        for leaves, _ in flat
    ]
    return jax.tree.map(np.asarray, jax.jit(run)(traced))


def compare(op: str, case: Case, want: list[np.ndarray], got: list[np.ndarray]) -> None:
    """Assert equal shapes, dtypes (as JAX narrows them) and values."""
    assert len(want) == len(got), f"{op}: torch gives {len(want)} outputs, the rule {len(got)}"
    for index, (w, g) in enumerate(zip(want, got, strict=True)):
        if case.compare is not None and index not in case.compare:
            continue
        assert w.shape == g.shape, f"{op}[{index}]: torch gives {w.shape}, the rule {g.shape}"
        target = dtypes.canonical(w.dtype.name)
        assert target == g.dtype, f"{op}[{index}]: torch gives {w.dtype}, the rule {g.dtype}"
        rtol, atol = TOLERANCE.get(w.dtype.name, (0, 0))
        wide = np.complex128 if w.dtype.kind == "c" else np.float64
        np.testing.assert_allclose(
            g.astype(wide),
            w.astype(wide),
            rtol=rtol if case.rtol is None else case.rtol,
            atol=atol if case.atol is None else case.atol,
            err_msg=f"{op}[{index}] args={[getattr(a, 'shape', a) for a in case.args]}",
        )


def compare_recorded(op: str, case: Case, want: list[np.ndarray], got: list[np.ndarray]) -> None:
    """Assert that the recording is of this case: as torch gives it, to the case's tolerance."""
    hint = f"{op}: the recording is of another case or torch: python -m tests.aten.record"
    assert [(w.shape, w.dtype) for w in want] == [(g.shape, g.dtype) for g in got], hint
    narrowed = [dtypes.narrow(g, op) for g in got]
    compare(f"{op} (recorded)", case, want, narrowed)


@functools.cache
def golden() -> dict[str, np.ndarray]:
    """Return the recorded arrays by ``operator/case/output``."""
    with np.load(GOLDEN / "all.npz") as file:
        return dict(file)


def read_golden(op: str, index: int) -> list[np.ndarray]:
    """Return the recorded outputs of a case."""
    arrays, outputs = golden(), []
    while (key := f"{op}/{index}/{len(outputs)}") in arrays or f"{key}/bfloat16" in arrays:
        if key in arrays:
            outputs.append(arrays[key])
        else:
            outputs.append(arrays[f"{key}/bfloat16"].view(ml_dtypes.bfloat16))
    recorded = outputs or f"{op}/{index}/none" in arrays
    assert recorded, f"{op} case {index} was not recorded: python -m tests.aten.record"
    return outputs


def write_golden() -> int:
    """Record what torch gives for every case; returns the number of arrays."""
    arrays: dict[str, np.ndarray] = {}
    for op, cases in all_cases().items():
        for index, case in enumerate(cases):
            if case.covered_by or case.check is not None:
                continue
            outputs = torch_outputs(op, case)
            if not outputs:
                arrays[f"{op}/{index}/none"] = np.zeros(0)
            for number, out in enumerate(outputs):
                key = f"{op}/{index}/{number}"
                if out.dtype == ml_dtypes.bfloat16:
                    arrays[f"{key}/bfloat16"] = out.view(np.uint16)
                else:
                    arrays[key] = out
    GOLDEN.mkdir(exist_ok=True)
    np.savez_compressed(GOLDEN / "all.npz", **arrays)
    return len(arrays)
