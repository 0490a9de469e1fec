"""Cases for segment.py."""

import numpy as np

from tests.aten.harness import case, rand

X = rand(7, 3)
NAN = X.copy()
NAN[2, 1] = np.nan
LENGTHS = np.array([2, 0, 4, 1])
OFFSETS = np.array([0, 2, 2, 6, 7])
ROWS = np.array([[2, 0, 3], [1, 4, 0]])

CASES = {
    "aten.segment_reduce.default": [
        *(case(X, how, lengths=LENGTHS) for how in ("sum", "mean", "prod", "max", "min")),
        *(case(X, how, lengths=LENGTHS, initial=3) for how in ("sum", "mean", "prod", "max")),
        *(case(NAN, how, lengths=LENGTHS) for how in ("sum", "mean", "prod", "max", "min")),
        *(case(X, how, offsets=OFFSETS) for how in ("sum", "mean", "min")),
        *(case(rand(2, 5, 3), how, lengths=ROWS, axis=1) for how in ("sum", "mean", "max")),
        case(rand(5, dtype="bfloat16"), "sum", lengths=np.array([4, 1])),
        case(rand(5), "sum", lengths=np.array([2, 1]), unsafe=True),
    ],
}
