"""What the suites of image models share: where timm and torchvision are, and one case a model.

Besides ``common.randomize``, batch-norm statistics are measured on random images and then
disturbed: with statistics that fit nothing, a deep network forgets its input, and a wrong
layer in its middle would not show in what it returns.
"""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import pathlib
import sys
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.coverage.common import Case, failed, first_lines, judge, numpy_leaves, randomize

TOLERANCE = 1e-4
VARIATION = 10 * TOLERANCE
"""By how much of its largest value an output must differ between two random inputs."""
ROUNDINGS = 4.0
"""A deep network with random weights may amplify rounding: where torch's float32 is itself more
than ``TOLERANCE`` from its float64, four times that distance is allowed, if it is less than a
tenth of what the two inputs differ by."""


def on_path() -> None:
    """Let ``import timm`` and ``import torchvision`` work, also beside a CPU build of torch.

    They may be installed, or lie in the folder ``vision`` of the environment; torchvision's
    wheel for CUDA imports once its two operators are declared.
    """
    import torch

    folder = pathlib.Path(sys.prefix) / "vision"
    if folder.is_dir() and str(folder) not in sys.path:
        sys.path.append(str(folder))
    for package in ("timm", "torchvision"):
        if importlib.util.find_spec(package) is None:
            raise SystemExit(f"this suite needs {package}: `make test` puts it in place")
    with contextlib.suppress(RuntimeError):  # they exist: this torchvision fits this torch
        for name in ("nms", "qnms"):
            torch.library.define(
                f"torchvision::{name}",
                "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
            )


def images(*shape: int, seed: int = 0) -> Any:
    """Return random images (or videos), axis 0 the batch, that differ in more than noise.

    Colour, patches of a fourth of the image, and pixels: of pure noise every image's averages
    are alike, and so is what a network pools from it.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)
    coarse = (*shape[:2], *(1 for _ in shape[2:])), (*shape[:2], *(4 for _ in shape[2:])), shape
    layers = [torch.randn(size, generator=generator) for size in coarse]
    sizes = shape[2:]
    return sum(torch.nn.functional.interpolate(layer, sizes) for layer in layers) / 3**0.5


def calibrate(module: Any, args: Sequence[Any], seed: int = 0) -> None:
    """Set every batch norm's statistics, in one forward pass, to what it sees, disturbed.

    ``running_mean = (m + 0.4 s n) / 2``, ``running_var = s^2 u`` with m the mean and s^2 the mean
    square of its input over all axes but 1, n normal, u uniform in [0.5, 1.5]. (The whole mean
    and the variance would blow up at every layer what averaging has left, rounding included.)
    Without any norm, kernels and biases are scaled until every layer gives mean square 1.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)
    norms = [m for m in module.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]

    def measure(norm: Any, inputs: tuple[Any, ...]) -> None:
        x = inputs[0].transpose(0, 1).flatten(1)
        square = x.square().mean(1).clamp(min=1e-6)
        noise = torch.randn(square.shape, generator=generator)
        norm.running_mean.copy_((x.mean(1) + 0.4 * noise * square.sqrt()) / 2)
        norm.running_var.copy_(square * (torch.rand(square.shape, generator=generator) + 0.5))

    def even_out(layer: Any, inputs: tuple[Any, ...], out: Any) -> Any:
        size = float(out.square().mean().sqrt().clamp(min=1e-6))
        for parameter in layer.parameters():
            parameter /= size
        return out / size

    hooks = [n.register_forward_pre_hook(measure) for n in norms if n.running_mean is not None]
    if not any("Norm" in type(m).__name__ for m in module.modules()):
        layers = (torch.nn.Conv2d, torch.nn.Linear)
        hooks += [
            m.register_forward_hook(even_out) for m in module.modules() if isinstance(m, layers)
        ]
    try:
        with torch.no_grad():
            module(*args)
    finally:
        for hook in hooks:
            hook.remove()


def case(name: str, module: Any, args: Sequence[Any], **fields: Any) -> Case:
    """Convert a module, run it, and hold it against torch; axis 0 of ``args`` is the batch."""
    import torch

    import jaxinfer as ji

    started = time.perf_counter()
    fields["seconds"] = 0.0
    try:
        randomize(module.eval())
        calibrate(module, args)
        with torch.no_grad():
            want = module(*args)
    except Exception as error:
        return Case(name, "excluded", f"torch fails: {first_lines(error)}", **fields)
    if fault := forgetful(want):
        return Case(name, "fail", fault, **fields)
    try:
        got = ji.from_torch(module, tuple(args))(*args)
        fields["seconds"] = round(time.perf_counter() - started, 2)
    except Exception as error:
        fields["seconds"] = round(time.perf_counter() - started, 2)
        if refusal := refused_by_torch(module, args):
            return Case(name, "excluded", f"torch.export refuses: {refusal}", **fields)
        return failed(name, error, **fields)
    found = judge(name, want, got, **fields)
    if found.status == "pass":
        return found
    own = rounding(module, args, want)
    if own > TOLERANCE / ROUNDINGS and ROUNDINGS * own * 10 <= variation(want):
        return judge(name, want, got, tolerance=ROUNDINGS * own, **fields)
    return found


def rounding(module: Any, args: Sequence[Any], want: Any) -> float:
    """Return how far torch's float32 is from its float64, relative to max(1, largest output)."""
    import torch

    try:
        with torch.no_grad():
            double = copy.deepcopy(module).double()(*(x.double() for x in args))
    except RuntimeError:  # float32 is written into the module
        return 0.0
    pairs = zip(numpy_leaves(want), numpy_leaves(double), strict=True)
    return max(float(np.abs(a - b).max() / max(1.0, np.abs(b).max())) for a, b in pairs)


def refused_by_torch(module: Any, args: Sequence[Any]) -> str:
    """Return why ``torch.export.export`` itself does not take the module, or ''."""
    import torch

    try:
        with torch.no_grad():
            torch.export.export(module, tuple(args), strict=False)
    except Exception as error:
        return first_lines(error)
    return ""


def forgetful(outputs: Any) -> str:
    """Return why a comparison of these outputs would prove little, or ''."""
    if not all(np.isfinite(leaf).all() for leaf in numpy_leaves(outputs)):
        return "torch's outputs are not finite with random weights"
    if (change := variation(outputs)) < VARIATION:
        return f"torch's outputs hardly depend on the image with random weights: {change:.2g}"
    return ""


def variation(outputs: Any) -> float:
    """Return the least of ``max|y[0] - y[1]| / max|y|`` over the outputs y of floats.

    0 and 1 are the two images of the batch; an output without a batch axis does not count.
    """
    leaves = [leaf for leaf in numpy_leaves(outputs) if leaf.dtype.kind == "f" and leaf.ndim]
    pairs = [leaf for leaf in leaves if len(leaf) == 2 and leaf.any()]
    return min((float(np.abs(y[0] - y[1]).max() / np.abs(y).max()) for y in pairs), default=0.0)
