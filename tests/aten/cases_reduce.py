"""Cases for aten/reduce.py."""

import numpy as np

from tests.aten.harness import case, dtype, rand

F = rand(2, 3, 5)
NAN = F.copy()
NAN[1, 2, 3] = NAN[0, 0, 0] = np.nan
TIES = np.round(rand(7, 3, seed=1))
INT = rand(2, 3, 5, dtype="int64")
I32 = rand(3, 5, dtype="int32")
U8 = rand(3, 5, dtype="uint8")
BOOL = rand(2, 3, 5, dtype="bool")
BF16 = rand(3, 101, dtype="bfloat16")
F16 = rand(3, 101, dtype="float16")
COMPLEX = rand(2, 3, 5, dtype="complex64")
EMPTY = rand(2, 0, 5)
SCALAR = rand()
ONE = rand(1, 3)

_plain = [F, BF16, F16, SCALAR, ONE]
_dims = [
    case(F, [0]),
    case(F, [-1], True),
    case(F, [0, -1]),
    case(F, [2, 0, 1], True),
    case(F, []),
    case(F, None, True),
    case(BF16, [1]),
    case(F16, [-1], True),
    case(SCALAR, [0]),
    case(SCALAR, [-1], True),
    case(NAN, [1]),
]
_integer = [case(x) for x in (INT, I32, U8, BOOL)]
_dim = [
    case(F, 0),
    case(F, -1, True),
    case(TIES, 0),
    case(NAN, 1),
    case(INT, 2),
    case(BF16, -1),
    case(SCALAR, 0),
    case(SCALAR, -1, True),
    case(ONE, 0),
]
_extreme_all = [case(x) for x in (F, NAN, INT, U8, BOOL, BF16, SCALAR, ONE)]
_extreme_dims = [
    *(case(x, [1]) for x in (F, NAN, INT, BOOL, COMPLEX.real)),
    case(F),
    case(F, [0, -1], True),
    case(SCALAR, [0]),
    case(EMPTY, [0]),
    case(BF16, [-1]),
]
_arg = [
    *(case(x) for x in (F, NAN, TIES, INT, BF16, SCALAR)),
    *(case(x, None, True) for x in (F, SCALAR)),
    *(case(x, 0) for x in (F, NAN, TIES, INT, SCALAR)),
    case(F, -2, True),
]
_truth = [case(x) for x in (BOOL, U8, I32, F, NAN, COMPLEX, EMPTY, SCALAR)]
_truth_dim = [
    *(case(x, 1) for x in (BOOL, U8, I32, F, NAN, EMPTY)),
    case(BOOL, -1, True),
    case(SCALAR, 0),
]
_truth_dims = [
    *(case(x, [1]) for x in (BOOL, U8, I32, EMPTY)),
    case(BOOL, [0, -1], True),
    case(BOOL),
    case(BOOL, []),
    case(F, []),
    case(BOOL, None, True),
    case(SCALAR, [0]),
]
_spread = [case(x) for x in (F, BF16, F16, COMPLEX, ONE)] + [case(F, False), case(NAN, True)]
_spread_dim = [
    case(F, [1]),
    case(F, [0, -1], False),
    case(F, [-1], True, True),
    case(BF16, [1], False),
    case(F, None, False),
    case(EMPTY, [1]),
]
_spread_correction = [
    case(F),
    case(F, [1]),
    case(F, [0, 2], correction=0),
    case(F, [-1], correction=2, keepdim=True),
    case(F, [1], correction=1.5),
    case(F, [1], correction=7),
    case(ONE, [0]),
    case(BF16, [1], correction=0),
    case(COMPLEX, [1]),
    case(COMPLEX, [1], keepdim=True),
    case(EMPTY, [1]),
    case(F + 1000, [2]),  # two passes: no cancellation
]
_norms = [2, 1, 0, 3, 0.5, -1, float("inf"), float("-inf")]
_norm_dim = [
    *(case(F, p, [1]) for p in _norms),
    *(case(F, p, [0, -1], True) for p in (2, 3)),
    case(BF16, 2, [1]),
    case(COMPLEX, 2, [1]),
    case(np.zeros((2, 3), np.float32), 2, [1]),
    case(EMPTY, 2, [1]),
]

_bools = [case(x) for x in (BOOL, BOOL[:0], BOOL | True, BOOL & False, BOOL[0, 0, 0, ...])]

CASES = {
    "aten._is_all_true.default": _bools,
    "aten.hash_tensor.default": [
        *(case(x) for x in (BOOL, U8)),
        *(case(np.abs(INT), dims) for dims in ([], [1], [0, -1])),
        case(U8, [0], keepdim=True),
    ],
    "aten._is_any_true.default": _bools,
    "aten.sum.default": [case(x) for x in (*_plain, COMPLEX, EMPTY)]
    + _integer
    + [case(INT, dtype=dtype("float32")), case(BF16, dtype=dtype("float32"))]
    + [case(I32, dtype=dtype("int32")), case(F, dtype=dtype("int64"))],
    "aten.sum.dim_IntList": [
        *_dims,
        *(case(x, [1]) for x in (INT, I32, U8, BOOL, COMPLEX, EMPTY)),
        case(BF16, [1], dtype=dtype("float32")),
        case(I32, [1], True, dtype=dtype("float16")),
    ],
    "aten.nansum.default": [
        *(case(x) for x in (NAN, F, INT, BF16)),
        case(NAN, [1]),
        case(NAN, [0, 2], True),
        case(NAN, [0], dtype=dtype("float64")),
    ],
    "aten.mean.default": [case(x) for x in (*_plain, COMPLEX, EMPTY)]
    + [case(INT, dtype=dtype("float32"))],
    "aten.mean.dim": [
        *_dims,
        case(EMPTY, [1]),
        case(COMPLEX, [1]),
        case(INT, [1], dtype=dtype("float32")),
        case(BF16, [1], dtype=dtype("float32")),
    ],
    "aten.prod.default": [case(x) for x in (F, SCALAR, ONE, COMPLEX, EMPTY)]
    + [case(rand(2, 3, dtype="int64")), case(BOOL), case(F[0], dtype=dtype("float64"))],
    "aten.prod.dim_int": [
        case(F, 0),
        case(F, -1, True),
        case(rand(2, 3, dtype="int32"), 1),
        case(rand(3, 5, dtype="bfloat16"), 1),
        case(EMPTY, 1),
        case(SCALAR, 0),
        case(BOOL, 1, dtype=dtype("float32")),
    ],
    "aten.amax.default": _extreme_dims,
    "aten.amin.default": _extreme_dims,
    "aten.aminmax.default": [
        *(case(x) for x in (F, NAN, INT, SCALAR)),
        *(case(x, dim=1) for x in (F, NAN, INT)),
        case(F, dim=-1, keepdim=True),
        case(SCALAR, dim=0),
    ],
    "aten.max.default": _extreme_all,
    "aten.min.default": _extreme_all,
    "aten.max.dim": [*_dim, case(rand(3, 5, dtype="bool"), 1)],
    "aten.min.dim": [*_dim, case(rand(3, 5, dtype="bool"), 1)],
    "aten.max.other": [case(F, NAN), case(F, rand(3, 1)), case(INT, F), case(I32, U8)],
    "aten.min.other": [case(F, NAN), case(F, rand(3, 1)), case(INT, F), case(I32, U8)],
    "aten.argmax.default": _arg,
    "aten.argmin.default": _arg,
    "aten.logsumexp.default": [
        case(F, [1]),
        case(F, [0, -1], True),
        case(F * 100, [0]),
        case(INT, [1]),
        case(BF16, [1]),
        case(SCALAR, [0]),
        case(np.full((2, 3), -np.inf, np.float32), [1]),
        case(np.full((2, 3), np.inf, np.float32), [1]),
        case(EMPTY, [1]),
    ],
    "aten.linalg_vector_norm.default": [
        *_norm_dim,
        *(case(F, p) for p in _norms),
        case(F),
        case(SCALAR, 2, [0]),
        case(BF16, 2, dtype=dtype("float32")),
        case(F, 1, [1], True, dtype=dtype("float64")),
        case(COMPLEX, 2, dtype=dtype("complex64")),
        case(COMPLEX, 0, [1]),
    ],
    "aten.norm.Scalar": [case(F), case(F, 1), case(BF16, 3), case(F, float("inf")), case(COMPLEX)],
    "aten.norm.ScalarOpt_dim": [*_norm_dim, case(F, None, [1])],
    "aten.norm.ScalarOpt_dtype": [case(F, None, dtype=dtype("float64"))]
    + [case(BF16, 2, dtype=dtype("float32"))],
    "aten.norm.ScalarOpt_dim_dtype": [
        case(BF16, 2, [1], True, dtype=dtype("float32")),
        case(F, None, [0], False, dtype=dtype("float32")),
    ],
    "aten.dist.default": [case(F, rand(3, 1), p) for p in _norms] + [case(F, F)],
    "aten.count_nonzero.default": [case(x) for x in (INT, BOOL, F, COMPLEX, EMPTY, SCALAR)]
    + [case(INT, 1), case(INT, -1)],
    "aten.count_nonzero.dim_IntList": [case(INT, [1]), case(INT, [0, -1]), case(INT, [])],
    **{f"aten.{name}.default": _truth for name in ("any", "all")},
    **{f"aten.{name}.dim": _truth_dim for name in ("any", "all")},
    **{f"aten.{name}.dims": _truth_dims for name in ("any", "all")},
}
for _name in ("var", "std", "var_mean", "std_mean"):
    CASES[f"aten.{_name}.default"] = _spread
    CASES[f"aten.{_name}.dim"] = _spread_dim
    CASES[f"aten.{_name}.correction"] = _spread_correction
