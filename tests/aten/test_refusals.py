"""What JAX cannot do is refused with a sentence that says what to do instead."""

import numpy as np
import pytest

import jaxinfer_converters.aten  # noqa: F401
from jaxinfer.core.ops import OPS


@pytest.mark.parametrize("name", ["lstm", "gru", "rnn_tanh", "rnn_relu"])
def test_packed_sequences(name):
    x, sizes = np.ones((5, 3), np.float32), np.array([3, 2])
    with pytest.raises(NotImplementedError, match="pass the padded tensor"):
        OPS[f"aten.{name}.data"](x, sizes, [], [], True, 1, 0.0, False, False)


def test_grouped_product_with_a_bias():
    x = np.ones((4, 3), np.float32)
    with pytest.raises(NotImplementedError, match="bias"):
        OPS["aten._grouped_mm.default"](x, np.ones((2, 3, 5)), np.array([2, 4]), np.ones((2, 5)))
