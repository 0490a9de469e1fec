"""The custom operator of transformers, against the slow obvious loop."""

import jax
import numpy as np
import pytest

import jaxinfer_converters.aten  # noqa: F401
from jaxinfer.core.ops import OPS
from tests.aten.harness import rand


@pytest.mark.parametrize("kind", ["float32", "bfloat16"])
@pytest.mark.parametrize("offs", [[2, 5, 7], [0, 7, 7], [2, 2, 5]])
def test_fallback(kind, offs):
    rows, experts = rand(7, 3, dtype=kind), rand(3, 3, 5, dtype=kind)
    got = jax.jit(OPS["transformers.grouped_mm_fallback.default"])(rows, experts, np.array(offs))
    assert got.dtype == rows.dtype
    want = np.zeros((7, 5), np.float32)  # rows after the last offset: zero
    start = 0
    for expert, end in enumerate(offs):
        want[start:end] = rows[start:end].astype(np.float32) @ experts[expert].astype(np.float32)
        start = end
    tolerance = 1e-2 if kind == "bfloat16" else 1e-5  # one rounding; a few units of float32
    np.testing.assert_allclose(np.asarray(got, np.float32), want, rtol=tolerance, atol=tolerance)
