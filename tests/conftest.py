"""Fixtures: torch and timm where they are installed, and weights that hide nothing.

The CPU counts as eight devices, for meshes; a computation on one of them runs as fast as before.
"""

import importlib.util
import pathlib
import sys
from collections.abc import Mapping

import jax
import numpy as np
import pytest

jax.config.update("jax_num_cpu_devices", 8)  # before the first use of a device

HAS_TORCH = importlib.util.find_spec("torch") is not None
collect_ignore = [] if HAS_TORCH else ["torch_front", "slow"]


def define_torchvision_operators():
    """Let a torchvision wheel built for CUDA import beside the CPU build of torch."""
    import torch

    for schema in (
        "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
        "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    ):
        try:
            torch.library.define(
                f"torchvision::{schema.split('(')[0]}", "(" + schema.split("(", 1)[1]
            )
        except RuntimeError:
            return  # they exist: this torchvision fits


@pytest.fixture(scope="session")
def timm():
    """timm, from the folder beside the environment where `make test` puts it, or installed."""
    folder = pathlib.Path(sys.prefix) / "vision"
    if folder.is_dir() and str(folder) not in sys.path:
        sys.path.append(str(folder))
    pytest.importorskip("torch")
    if importlib.util.find_spec("timm") is None:
        pytest.skip("timm is not installed")
    define_torchvision_operators()
    import timm

    return timm


def randomize(module, seed=0):
    """Give every parameter and batch-norm statistic random values, and return the module.

    Zero-initialized heads and unit statistics would let a wrong conversion pass.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in (*module.named_parameters(), *module.named_buffers()):
            if not tensor.is_floating_point() or tensor.is_meta:
                continue
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 1.5, generator=generator)
            elif name.endswith("running_mean"):
                tensor.normal_(0, 0.2, generator=generator)
            elif isinstance(tensor, torch.nn.Parameter) and tensor.ndim < 2:
                tensor.add_(torch.randn(tensor.shape, generator=generator) * 0.1)
            elif isinstance(tensor, torch.nn.Parameter) and not tensor.any():
                tensor.normal_(0, 0.05, generator=generator)
    return module


def in_order(value):
    """Flatten nested outputs in their own order (JAX would sort the keys of a dict)."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, (tuple, list)):
        return [leaf for item in value for leaf in in_order(item)]
    return [] if value is None else [value]


def assert_parity(model, module, args=(), kwargs=None, tol=1e-4):
    """Assert that the model gives what the module gives, leaf by leaf; returns the largest error.

    ``tol`` is relative to the largest value of each output: float32 sums of thousands of terms,
    added in another order, differ by about 1e-6 to 1e-5 of it.
    """
    import torch
    from torch.utils import _pytree as pytree

    kwargs = kwargs or {}
    with torch.no_grad():
        want = [x for x in pytree.tree_leaves(module(*args, **kwargs)) if x is not None]
    got = in_order(model(*args, **kwargs))
    assert len(want) == len(got)
    worst = 0.0
    for w, g in zip(want, got, strict=True):
        w = w.detach().to(torch.complex128 if w.is_complex() else torch.float64).numpy()
        g = np.asarray(g).astype(w.dtype)
        assert w.shape == g.shape
        scale = float(np.abs(w).max(initial=0)) or 1.0
        np.testing.assert_allclose(g, w, rtol=0, atol=tol * scale)
        worst = max(worst, float(np.abs(g - w).max(initial=0)) / scale)
    return worst
