"""What every suite shares: cases, comparison, weights that hide nothing.

A suite is a module of this package with

    TITLE, INTRO: str               # heading and text of its part of docs/coverage.md
    TIMEOUT: float                  # seconds for one name
    TARGET: float | None = None     # share of passes that the project holds itself to
    names() -> list[str]            # every unit of work; cheap
    run(name) -> list[Case]         # in a worker process; a miss is a Case, not an exception

A case passes, fails, or is excluded; what may be excluded is ``EXCLUSIONS``. Two outputs agree
when shapes and kinds of dtype are equal, NaN meets NaN and infinity the same infinity, and

    |a - b| <= tolerance * max(1, max|a|)

(``jaxinfer.core.parity``); integers and bools are equal.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

STATUSES = ("pass", "fail", "excluded")
EXCLUSIONS = (
    "data-dependent shape",  # the shape of a result depends on values
    "random",  # results are drawn, or memory that was never written
    "torch.export refuses",  # followed by ": " and torch's reason
    "torch fails",  # torch itself does not run the case
    "strings",  # tensors of text, which JAX has not
    "needs x64",  # followed by ": " and the value that does not fit 32 bits
    "not a model",  # what is not meant to be run (followed by ": " and why)
)


@dataclasses.dataclass(frozen=True)
class Case:
    """What became of one case.

    Attributes:
      name: unique in its suite.
      status: ``pass``, ``fail`` or ``excluded``.
      reason: why it failed, or one of ``EXCLUSIONS``, followed by ``: detail`` if there is any.
      error: the largest error of the outputs, relative to what is allowed (1 is the limit).
      seconds: convert and run.
      group: a part of the suite whose percentage is shown by itself (a dtype, a family).
      counts: what is counted within the case (``{"samples": 8, "passed": 7}``).
    """

    name: str
    status: str
    reason: str = ""
    error: float | None = None
    seconds: float = 0.0
    group: str = ""
    counts: Mapping[str, int] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.status not in STATUSES:
            raise ValueError(f"{self.name}: status {self.status!r} is none of {STATUSES}")
        if self.status == "excluded" and not is_exclusion(self.reason):
            raise ValueError(f"{self.name}: {self.reason!r} starts with none of {EXCLUSIONS}")


def is_exclusion(reason: str) -> bool:
    """Return whether a reason is one for which a case may be left out.

    >>> is_exclusion("torch.export refuses: .item()"), is_exclusion("too hard")
    (True, False)
    """
    return reason.split(": ")[0] in EXCLUSIONS


def numpy_leaves(value: Any) -> list[np.ndarray]:
    """Flatten outputs (torch's or JAX's) in their own order, as numpy; Nones are left out.

    Python numbers count as arrays: a module may return them.
    """
    import torch

    if value is None:
        return []
    if isinstance(value, torch.Tensor):
        from jaxinfer.core.arrays import from_torch_tensor

        return [np.asarray(from_torch_tensor(value.detach()))]
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, (tuple, list)):
        return [leaf for item in value for leaf in numpy_leaves(item)]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return numpy_leaves([getattr(value, field.name) for field in dataclasses.fields(value)])
    if isinstance(value, str):
        return []
    return [np.asarray(value)]


def largest_error(want: Any, got: Any, tolerance: float | None = None) -> tuple[float, str]:
    """Compare outputs leaf by leaf.

    Args:
      want, got: nested outputs of torch and of JAX.
      tolerance: for floats, in place of ``jaxinfer.core.parity.tolerance_for``.

    Returns:
      The largest error relative to what is allowed (1 is the limit, infinite where shapes,
      dtypes, NaNs or infinities differ), and what is wrong, or ''.
    """
    from jaxinfer.core import parity

    wanted, gotten = numpy_leaves(want), numpy_leaves(got)
    if len(wanted) != len(gotten):
        return float("inf"), f"torch gives {len(wanted)} outputs, JAX {len(gotten)}"
    worst, text = 0.0, ""
    for out in parity.compare(wanted, gotten, tolerance=tolerance):
        if out.problem or out.mismatches:
            error = float("inf")
        elif out.tolerance:
            error = out.max_abs / (out.tolerance * out.scale)
        else:
            error = float("inf") if out.max_abs else 0.0
        if error > worst or (not out.ok and not text):
            worst, text = max(error, worst), "" if out.ok else f"output {out}"
    return worst, text


def judge(name: str, want: Any, got: Any, *, tolerance: float | None = None, **fields: Any) -> Case:
    """Return the case of comparing two outputs; ``fields`` are those of ``Case``."""
    error, text = largest_error(want, got, tolerance)
    finite = error if np.isfinite(error) else None
    return Case(name, "fail" if text else "pass", text, finite, **fields)


def failed(name: str, error: BaseException, **fields: Any) -> Case:
    """Return the case of an exception."""
    return Case(name, "fail", first_lines(error), **fields)


def first_lines(error: BaseException, limit: int = 300) -> str:
    """Return ``Kind: text`` of an exception on one line, without paths of this machine."""
    text = " ".join(line.strip() for line in str(error).splitlines() if line.strip())
    text = re.sub(r"/\S*/(site-packages|dist-packages|lib/python[\d.]+)/", "", text)
    text = re.sub(r"\b0x[0-9a-f]{6,}\b", "0x…", text)
    text = re.sub(r"(?<![\w.])/(?:[\w.+-]+/)+", "…/", text)
    text = f"{type(error).__name__}: {text}"
    return text if len(text) <= limit else text[: limit - 1] + "…"


def randomize(module: Any, seed: int = 0) -> Any:
    """Give every float parameter and running statistic random values, and return the module.

    Zero-initialized heads, unit statistics and layer scales of 1e-6 would let a wrong
    conversion pass. Matrices are scaled by 1 / sqrt(fan in), so that deep models stay finite;
    scales of norms lie about 1, biases about 0, variances in [0.5, 1.5].
    """
    import torch

    generator = torch.Generator().manual_seed(seed)

    def normal(tensor: Any, std: float, mean: float = 0.0) -> Any:
        values = torch.randn(tensor.shape, generator=generator) * std + mean
        return tensor.copy_(values.to(tensor.dtype))

    buffers = [(name, tensor, False) for name, tensor in module.named_buffers()]
    parameters = [(name, tensor, True) for name, tensor in module.named_parameters()]
    with torch.no_grad():
        for name, tensor, trained in (*parameters, *buffers):
            if not tensor.is_floating_point() or tensor.is_meta or not tensor.numel():
                continue
            leaf = name.split(".")[-1]
            if leaf.endswith("running_var"):
                values = torch.rand(tensor.shape, generator=generator) + 0.5
                tensor.copy_(values.to(tensor.dtype))
            elif leaf.endswith("running_mean"):
                normal(tensor, 0.2)
            elif not trained:
                continue  # tables (positions, masks, frequencies) are not learned
            elif tensor.ndim >= 2:
                fan_in = max(1, tensor[0].numel())
                normal(tensor, min(1.0, (1.0 / fan_in) ** 0.5))
            else:
                normal(tensor, 0.1, 1.0 if "weight" in leaf or "gamma" in leaf else 0.0)
    return module


def trivial(outputs: Any) -> str:
    """Return why comparing these outputs of torch would prove nothing, or ''.

    Outputs that are all constant, or hold no finite number, agree with too much.
    """
    leaves = [x for x in numpy_leaves(outputs) if x.size]
    if not leaves:
        return "no output has an element"
    floats = [x for x in leaves if x.dtype.kind not in "biu"]
    for leaf in floats or leaves:
        finite = leaf.astype(np.complex128)
        finite = finite[np.isfinite(finite)]
        if finite.size == 1 or np.any(finite[1:] != finite[:1]):
            return ""
    return "every output is constant or not finite"


def short(items: Sequence[str], most: int = 5) -> str:
    """Join the first items, and say how many more there are."""
    more = f" and {len(items) - most} more" if len(items) > most else ""
    return ", ".join(items[:most]) + more
