"""PyTorch's OpInfo database: every operator, its variants, and samples of its arguments."""

from __future__ import annotations

import collections
import functools
import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.coverage.common import Case, first_lines, numpy_leaves

TITLE = "op_db"
INTRO = """
PyTorch's own database of operators, `torch.testing._internal.common_methods_invocations.op_db`.
A case is an operator (with its variant) and a dtype of float32, int64 and bool that the operator
supports on CPU. It runs up to 8 of the operator's sample inputs, spread over the list (set
`JAXINFER_OP_DB_SAMPLES` for more), each as a module whose tensors are inputs and whose other
arguments are closed over, and passes if all of them pass that are not excluded:

    |a - b| <= tolerance * (1 + |a|), element by element

with a tolerance of 1e-4 for float32 (float64 and complex128 are computed in 32 bits and have it
too); the functions of matrices (`linalg` and its relatives), whose rounding is relative to the
norm, take the largest |a| of an output for |a|. Where several results are right, they are held
against what makes them so: eigenvectors and singular vectors, unique up to phases, by what they
multiply to; the place of a median or k-th value among equal ones, by the value found there.

Excluded are shapes that depend on data (torch.export gives the output an unbacked size);
operators that give torch itself other numbers under another seed, and memory that was never
written; samples that torch.export refuses; and samples in which an input or result of torch does
not fit 32 bits.
"""
TIMEOUT = 300.0
TARGET = 0.99
SAMPLES = int(os.environ.get("JAXINFER_OP_DB_SAMPLES", "8"))
DTYPES = ("float32", "int64", "bool")
TOLERANCE = 1e-4
NORMWISE = ("linalg", "matrix_exp", "svd", "cholesky", "lu", "qr", "geqrf", "pinverse")
DIM = {"kthvalue": 1, "topk": 1, "median": 0, "nanmedian": 0, "mode": 0, "sort": 0}
"""Operators that give values and any of their places along a dim, and where that is in args."""
ALL_DISTINCT = ("topk", "sort")
Status = tuple[str, str]  # of a sample: status and reason, as a case's
UNWRITTEN = ("empty", "new_empty", "empty_like", "empty_strided", "new_empty_strided")


@functools.cache
def _operators() -> dict[str, Any]:
    from torch.testing._internal.common_methods_invocations import op_db

    return {op.name + ("." + op.variant_test_name if op.variant_test_name else ""): op
            for op in op_db}  # fmt: skip


def names() -> list[str]:
    """Return the operators, ``name.variant``, that support one of the dtypes on CPU."""
    return [name for name, op in _operators().items() if _dtypes(op)]


def _dtypes(op: Any) -> list[str]:
    import torch

    supported = op.supported_dtypes("cpu")
    return [dtype for dtype in DTYPES if getattr(torch, dtype) in supported]


class _Sample:
    """One sample's call: its tensors, the function of them, and what torch gives."""

    want: Any = None

    def __init__(self, op: Any, sample: Any):
        import torch
        from torch.utils import _pytree as pytree

        leaves, self.tree = pytree.tree_flatten((sample.input, sample.args, sample.kwargs))
        self.op, self.leaves = op, leaves
        self.places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, torch.Tensor)]

    def tensors(self) -> list[Any]:
        """Return copies, which an operator may write to."""
        return [self.leaves[i].detach().clone() for i in self.places]

    def operand(self) -> np.ndarray:
        """Return the first tensor."""
        return self.leaves[self.places[0]].detach().numpy()

    def argument(self, name: str, place: int, default: Any) -> Any:
        """Return an argument by name or by its place after the operand."""
        from torch.utils import _pytree as pytree

        _, args, kwargs = pytree.tree_unflatten(self.leaves, self.tree)
        return args[place] if len(args) > place else kwargs.get(name, default)

    def __call__(self, tensors: Sequence[Any]) -> Any:
        from torch.utils import _pytree as pytree

        leaves = list(self.leaves)
        for place, tensor in zip(self.places, tensors, strict=True):
            leaves[place] = tensor
        args = pytree.tree_unflatten(leaves, self.tree)
        return self.op(args[0], *args[1], **args[2])

    def __str__(self) -> str:
        shown = [
            str(list(leaf.shape)) if i in self.places else repr(leaf)[:40]
            for i, leaf in enumerate(self.leaves)
        ]
        return f"({', '.join(shown)})"


def run(name: str) -> list[Case]:
    """Run one operator; returns a case for each dtype."""
    started = time.perf_counter()
    op = _operators()[name]
    dtypes = _dtypes(op)
    drawn = {dtype: _draw(op, dtype) for dtype in dtypes}
    status = {dtype: [_before(op, sample) for sample in drawn[dtype]] for dtype in dtypes}
    found = _convert_all(drawn, status)
    seconds = (time.perf_counter() - started) / max(1, len(dtypes))
    return [_case(name, dtype, found[dtype], seconds) for dtype in dtypes]


def _draw(op: Any, dtype: str) -> list[_Sample]:
    """Return samples spread over the operator's list of them."""
    import torch

    samples = list(op.sample_inputs("cpu", getattr(torch, dtype)))
    if len(samples) > SAMPLES:
        picked = np.unique(np.linspace(0, len(samples) - 1, SAMPLES).round().astype(int))
        samples = [samples[i] for i in picked]
    return [_Sample(op, sample) for sample in samples]


def _case(name: str, dtype: str, found: Sequence[Status], seconds: float) -> Case:
    statuses = collections.Counter(status for status, _ in found)
    counts = {"samples": len(found), "samples passed": statuses["pass"]}
    if statuses["excluded"]:
        counts["samples excluded"] = statuses["excluded"]
    for status in ("fail", "pass", "excluded"):
        reasons = [why for each, why in found if each == status]
        if reasons:
            break
    else:
        status, reasons = "excluded", ["torch fails: the operator has no sample"]
    reason = reasons[0] if status != "pass" else ""
    if status == "fail":
        reason = f"{len(reasons)} of {len(found)} samples: {reason}"
    return Case(f"{name}/{dtype}", status, reason, seconds=seconds, group=dtype, counts=counts)


def _convert_all(
    drawn: Mapping[str, Sequence[_Sample]], status: Mapping[str, Sequence[Status | None]]
) -> dict[str, list[Status]]:
    """Return what became of each sample.

    All samples are converted as one module, which shares the cost of export and compilation;
    where that does not pass, those of each dtype, and then one by one.
    """
    left = {
        dtype: [sample for sample, known in zip(drawn[dtype], status[dtype], strict=True)
                if known is None]
        for dtype in drawn
    }  # fmt: skip
    every = [sample for samples in left.values() for sample in samples]
    passed = len([samples for samples in left.values() if samples]) > 1 and _passes(every)
    found = {}
    for dtype, samples in left.items():
        if passed or (len(samples) > 1 and _passes(samples)):
            results = [("pass", "")] * len(samples)
        else:
            results = [_convert([sample]) for sample in samples]
        rest = iter(results)
        found[dtype] = [known or next(rest) for known in status[dtype]]
    return found


def _passes(samples: Sequence[_Sample]) -> bool:
    return _convert(samples)[0] == "pass"


def _before(op: Any, sample: _Sample) -> Status | None:
    """Run torch on a sample; return why it is left out, if it is."""
    try:
        sample.want = _reference(sample)
    except Exception as error:
        return "excluded", f"torch fails: {first_lines(error, 160)}"
    try:
        why = _excluded(op, sample, sample.want)
    except TypeError:  # numpy has no such dtype or layout: what becomes of it, conversion says
        why = ""
    return ("excluded", why) if why else None


def _reference(sample: _Sample) -> Any:
    import torch

    torch.manual_seed(0)
    with torch.no_grad():
        return sample(sample.tensors())


def _excluded(op: Any, sample: _Sample, want: Any) -> str:
    """Return why a sample is left out before it is converted, or ''."""
    import torch

    if op.name in UNWRITTEN or op.name == "empty_permuted":
        return "random: memory that was never written"
    tensor = lambda value: isinstance(value, torch.Tensor)
    if (
        tensor(want)
        and want.is_sparse
        and not any(x.is_sparse for x in filter(tensor, sample.leaves))
    ):
        return "data-dependent shape: the number of stored elements"
    torch.manual_seed(1)
    with torch.no_grad():
        again = sample(sample.tensors())
    for a, b in zip(numpy_leaves(want), numpy_leaves(again), strict=True):
        if a.shape != b.shape or not np.array_equal(a, b, equal_nan=a.dtype.kind in "fc"):
            return "random"
    for what, values in (("input", sample.leaves), ("result", want)):
        for leaf in numpy_leaves(values):
            if leaf.dtype in (np.int64, np.uint64) and leaf.size:
                low, high = (0, 2**32) if leaf.dtype == np.uint64 else (-(2**31), 2**31)
                if not low <= int(leaf.min()) <= int(leaf.max()) < high:
                    return f"needs x64: an {leaf.dtype} {what}"
    return ""


def _convert(samples: Sequence[_Sample]) -> Status:
    """Export, convert, run and compare samples as one module."""
    import torch

    import jaxinfer as ji

    sizes = [len(sample.places) for sample in samples]

    class Calls(torch.nn.Module):
        def forward(self, *tensors: Any) -> Any:
            outputs, first = [], 0
            for sample, size in zip(samples, sizes, strict=True):
                outputs.append(sample(tensors[first : first + size]))
                first += size
            return outputs

    flat = lambda: tuple(tensor for sample in samples for tensor in sample.tensors())
    try:
        model = ji.from_torch(Calls(), flat())
        if model.program.random:
            return _left_out(Calls(), flat()) or ("fail", "jaxinfer says that it is random")
        got = model(*flat())
    except Exception as error:
        return _left_out(Calls(), flat()) or ("fail", f"{samples[0]}: {first_lines(error)}")
    if getattr(model.program, "mutates", ()):
        got = got[0]
    for sample, out in zip(samples, got, strict=True):
        out = _with_torchs_places(sample, out)
        name = sample.op.name
        want, out = _products(name, sample.want), _products(name, out)
        if why := difference(want, out, normwise=name.startswith(NORMWISE)):
            return "fail", f"{sample}: {why}"
    return "pass", ""


def _left_out(module: Any, args: Sequence[Any]) -> Status | None:
    """Return why a module that was not converted need not be, by what torch.export gives."""
    import torch

    try:
        with torch.no_grad():
            program = torch.export.export(module, tuple(args), strict=False)
    except Exception as error:
        return "excluded", f"torch.export refuses: {_refusal(error)}"
    if _unbacked_outputs(program):
        return "excluded", "data-dependent shape"
    return ("excluded", "random") if _draws(program) else None


def _refusal(error: Exception) -> str:
    """Return the kind of a refusal of torch.export, short enough to group by."""
    text = str(error)
    if "data-dependent" in text or "GuardOnDataDependent" in type(error).__name__:
        return "a branch or size depends on values"
    return first_lines(error, 100)


def _draws(program: Any) -> bool:
    """Return whether torch says of an operator of an exported program that it draws numbers."""
    import torch

    tag = torch.Tag.nondeterministic_seeded
    return any(tag in getattr(node.target, "tags", ()) for node in program.graph.nodes)


def _unbacked_outputs(program: Any) -> bool:
    """Return whether the shape of an output of an exported program depends on data."""
    import torch
    from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols

    output = next(node for node in program.graph.nodes if node.op == "output")
    values = [node.meta.get("val") for node in output.all_input_nodes]
    return any(isinstance(v, torch.Tensor) and free_unbacked_symbols(v) for v in values)


def _products(name: str, outputs: Any) -> Any:
    """Return what factors multiply to, which no choice of signs or phases changes."""
    parts = numpy_leaves(outputs)
    adjoint = lambda x: np.conj(np.swapaxes(x, -1, -2))
    if name in ("linalg.eigh", "linalg.eig") and len(parts) == 2:
        values, vectors = parts
        symmetric = name == "linalg.eigh"
        inverse = adjoint(vectors) if symmetric else np.linalg.pinv(vectors)
        lengths = inverse @ vectors if symmetric else np.linalg.norm(vectors, axis=-2)
        return values, (vectors * values[..., None, :]) @ inverse, lengths
    if name in ("linalg.svd", "svd") and len(parts) == 3:
        u, values, right = parts
        right = adjoint(right) if name == "svd" else right
        k = values.shape[-1]
        product = (u[..., :k] * values[..., None, :]) @ right[..., :k, :]
        return adjoint(u) @ u, values, product, right @ adjoint(right)
    return outputs


def _with_torchs_places(sample: _Sample, got: Any) -> Any:
    """Return outputs with torch's places for JAX's where these have the same values.

    Which of several equal values is named, torch leaves open.
    """
    want = numpy_leaves(sample.want)
    if sample.op.name == "argsort" and want[0].ndim and not sample.argument("stable", 9, False):
        x, dim = sample.operand(), sample.argument("dim", 0, -1)
        places = numpy_leaves(got)[0].astype(np.int64)
        at = [np.take_along_axis(x, place, dim) for place in (want[0], places)]
        distinct = (np.diff(np.sort(places, dim), axis=dim) != 0).all()
        return want if distinct and np.array_equal(at[0], at[1]) else got
    if sample.op.name not in DIM or len(want) != 2 or sample.argument("stable", 9, False):
        return got
    x, dim = sample.operand(), sample.argument("dim", DIM[sample.op.name], -1)
    values, places = numpy_leaves(got)
    if x.ndim == 0 or places.shape != want[1].shape:
        return got
    full = places if places.ndim == x.ndim else np.expand_dims(places, dim)
    found = np.take_along_axis(x, full.astype(np.int64), dim).reshape(values.shape)
    distinct = (
        sample.op.name not in ALL_DISTINCT or (np.diff(np.sort(full, dim), axis=dim) != 0).all()
    )
    if distinct and np.array_equal(found, values, equal_nan=x.dtype.kind == "f"):
        return values, want[1]
    return got


def difference(want: Any, got: Any, *, normwise: bool = False) -> str:
    """Return how two outputs differ, element by element, or ''.

    Args:
      normwise: differences are relative to the largest value, as those of matrix functions are.
    """
    from jaxinfer.core import dtypes

    wanted, gotten = numpy_leaves(want), numpy_leaves(got)
    if len(wanted) != len(gotten):
        return f"torch gives {len(wanted)} outputs, JAX {len(gotten)}"
    for number, (a, b) in enumerate(zip(wanted, gotten, strict=True)):
        name = f"output {number}, {a.dtype.name}{list(a.shape)}"
        kind = dtypes.kind(a.dtype)
        if a.shape != b.shape or kind != dtypes.kind(b.dtype):
            return f"{name}: JAX gives {b.dtype.name}{list(b.shape)}"
        if not a.size:
            continue
        if kind in ("bool", "integer"):
            wrong, error = a != b, np.where(a != b, 1.0, 0.0)
        else:
            wide: Any = np.complex128 if kind == "complex" else np.float64
            x = a.astype(dtypes.canonical(a.dtype.name)).astype(wide)
            y = b.astype(wide)
            same = (x == y) | (np.isnan(x) & np.isnan(y))
            with np.errstate(all="ignore"):
                scale = np.abs(x[np.isfinite(x)]).max(initial=0) if normwise else np.abs(x)
                error = np.abs(x - y) / (1 + scale)
            wrong = ~same & ~(error <= TOLERANCE)
        if wrong.any():
            at = tuple(int(i) for i in np.unravel_index(np.argmax(wrong), a.shape))
            return (
                f"{name}: {int(wrong.sum())} of {a.size} differ; at {list(at)} torch has {a[at]}, "
                f"JAX {b[at]}"
            )
    return ""
