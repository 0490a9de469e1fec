"""Norms in bfloat16 against float64: at most twice the error that torch itself makes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxinfer_converters.aten  # noqa: F401
from jaxinfer.core.ops import OPS
from tests.aten.harness import case, rand, rule_outputs, to_torch

torch = pytest.importorskip("torch")

SHAPE = (4, 32, 16, 24)  # large offsets and few bits: where a computation in bfloat16 is off
X = (rand(*SHAPE) * 2 + 8).astype(jnp.bfloat16)
W, B = rand(32, seed=1).astype(jnp.bfloat16), rand(32, seed=2).astype(jnp.bfloat16)
ROW, MEAN = rand(24, seed=3).astype(jnp.bfloat16), np.full(32, 8, jnp.bfloat16)
VAR = rand(32, low=0.5, high=2.0).astype(jnp.bfloat16)

CALLS = {
    "aten.layer_norm.default": (X, [24], ROW, ROW, 1e-5),
    "aten.native_layer_norm.default": (X, [16, 24], None, None, 1e-5),
    "aten.rms_norm.default": (X, [24], ROW, 1e-6),
    "aten._fused_rms_norm.default": (X, [16, 24], None, 1e-6),
    "aten.group_norm.default": (X, 8, W, B, 1e-5),
    "aten.instance_norm.default": (X, W, B, None, None, True, 0.1, 1e-5, True),
    "aten.batch_norm.default": (X, W, B, MEAN, VAR, False, 0.1, 1e-5, True),
    "aten._native_batch_norm_legit.no_stats": (X, W, B, True, 0.1, 1e-5),
}


def _errors(op, args, outputs):
    """Largest absolute error of ``outputs`` and of torch, against torch in float64."""
    _, name, overload = op.split(".")
    call = getattr(getattr(torch.ops.aten, name), overload)
    first = lambda out: out[0] if isinstance(out, tuple) else out
    args = to_torch(args)
    wide = [a.double() if isinstance(a, torch.Tensor) else a for a in args]
    exact = first(call(*wide)).numpy()
    theirs = first(call(*args)).double().numpy()
    return np.abs(outputs - exact).max(), np.abs(theirs - exact).max()


@pytest.mark.parametrize("op", CALLS)
def test_bfloat16_norm_is_as_accurate_as_torch(op):
    ours = rule_outputs(op, case(*CALLS[op]))[0][0].astype(np.float64)
    mine, theirs = _errors(op, CALLS[op], ours)
    assert mine <= 2 * theirs, f"{op}: error {mine:.2g}, torch {theirs:.2g}"


def test_a_norm_computed_in_bfloat16_would_fail():
    x = jnp.asarray(X)
    mean = x.mean(-1, keepdims=True)
    var = jnp.square(x - mean).mean(-1, keepdims=True)
    out = (x - mean) * jax.lax.rsqrt(var + 1e-5) * ROW + ROW
    mine, theirs = _errors("aten.layer_norm.default", CALLS["aten.layer_norm.default"], out)
    assert mine > 2 * theirs


def test_training_with_running_statistics_is_refused():
    for op in ("batch_norm", "native_batch_norm", "_native_batch_norm_legit", "instance_norm"):
        more = (True,) if op in ("batch_norm", "instance_norm") else ()
        with pytest.raises(NotImplementedError, match="running statistics in place"):
            OPS[f"aten.{op}.default"](X, W, B, MEAN, VAR, True, 0.1, 1e-5, *more)
