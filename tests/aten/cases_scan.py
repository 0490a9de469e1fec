"""Cases for aten/scan.py."""

import numpy as np

from tests.aten.harness import case, dtype, rand

F = rand(2, 3, 5)
INT = rand(3, 5, dtype="int32")
BOOL = rand(3, 5, dtype="bool")
BF16 = rand(3, 41, dtype="bfloat16")
NAN = rand(2, 7).copy()
NAN[0, 2] = NAN[0, 5] = NAN[1, 0] = np.nan
TIES = np.round(rand(11, 3))
_floats = [
    case(F, 0),
    case(F, -1),
    case(rand(2, 0, 5), 1),
    case(rand(), 0),
    case(rand(), -1),
    case(rand(1, 3), 0),
    case(NAN, 1),
    case(rand(3, 7, dtype="float16"), 1),
]
_sums = [
    *_floats,
    case(INT, 1),
    case(BOOL, 0),
    case(rand(3, 4, dtype="complex64"), 1),
    case(INT, 1, dtype=dtype("float32")),
    case(F, 1, dtype=dtype("float64")),
    case(INT, 0, dtype=dtype("int32")),
]
_extremes = [*_floats, case(TIES, 0), case(INT, 1), case(BOOL, 1), case(BF16, 1)]

CASES = {
    "aten.cumsum.default": [*_sums, case(BF16, 1)],
    "aten.cumprod.default": _sums,
    "aten.cummax.default": _extremes,
    "aten.cummin.default": _extremes,
    "aten.logcumsumexp.default": [*_floats, case(np.full((2, 3), -np.inf, np.float32), 1)],
    "aten.diff.default": [
        case(F),
        case(F, 2, 1),
        case(F, 1, 0),
        case(F, 0),
        case(F, 4, 0),
        case(INT, 1, -1, rand(3, 2, dtype="int32")),
        case(F, 1, 1, None, rand(2, 1, 5)),
        case(F, 2, 1, rand(2, 1, 5), rand(2, 3, 5)),
        case(BOOL, 2),
        case(rand(2, 0)),
        case(rand(7, dtype="bfloat16")),
    ],
}
