"""Cases for compare.py."""

import numpy as np

from tests.aten.cases_pointwise import EDGES, PAIRS
from tests.aten.harness import Case, case, rand

SAME = rand(7, dtype="int64")
OPERANDS = [
    (rand(2, 3, 5), rand(3, 1)),
    (SAME, SAME[::-1].copy()),
    (rand(7, dtype="int64"), rand(7)),
    (rand(7, dtype="bool"), rand(7, dtype="bool", seed=1)),
    (rand(7, dtype="uint8"), rand()),
    (rand(0, 3), rand(3)),
    PAIRS,
    (rand(7, dtype="bfloat16"), rand(7)),
]
# A number is rounded to the tensor's dtype before it is compared.
TENTH = np.array([0.1, 0.1001, 0.25], np.float16)
NUMBERS = [(rand(2, 3, 5), 0.5), (SAME, 2), (SAME, 1.5), (rand(7, dtype="bool"), True),
           (EDGES, 1), (rand(), 0), (TENTH, 0.1), (rand(7, dtype="uint8"), 3)]  # fmt: skip


def _cases(pairs) -> list[Case]:
    return [case(*pair) for pair in pairs]


CASES: dict[str, list[Case]] = {}
for _name in ("eq", "ne", "lt", "le", "gt", "ge"):
    CASES[f"aten.{_name}.Tensor"] = _cases(OPERANDS)
    CASES[f"aten.{_name}.Scalar"] = _cases(NUMBERS)
for _name in ("eq", "ne"):
    _z = rand(7, dtype="complex64")
    CASES[f"aten.{_name}.Tensor"].append(case(_z, np.where(np.arange(7) > 3, _z, 0)))
for _name in ("logical_and", "logical_or", "logical_xor"):
    CASES[f"aten.{_name}.default"] = _cases(OPERANDS)
CASES["aten.logical_not.default"] = [
    case(EDGES),
    *(case(rand(7, dtype=d)) for d in ("bool", "int64", "bfloat16", "complex64")),
]

INTS = [
    (rand(2, 3, 5, dtype="int64"), rand(5, dtype="int64")),
    (rand(7, dtype="bool"), rand(7, dtype="bool", seed=1)),
    (rand(7, dtype="bool"), rand(7, dtype="int64")),
    (rand(7, dtype="uint8"), rand(7, dtype="int8")),
]
for _name in ("bitwise_and", "bitwise_or", "bitwise_xor"):
    CASES[f"aten.{_name}.Tensor"] = _cases(INTS)
    CASES[f"aten.{_name}.Scalar"] = [
        case(rand(2, 3, dtype="int64"), 3),
        case(rand(7, dtype="bool"), True),
        case(rand(7, dtype="uint8"), 5),
        case(rand(7, dtype="bool"), 6),
    ]
    CASES[f"aten.{_name}.Scalar_Tensor"] = [
        case(3, rand(2, 3, dtype="int64")),
        case(True, rand(7, dtype="bool")),
    ]
    for _form in ("Tensor", "Scalar"):
        _sign = f"__{_name.removeprefix('bitwise_')}__"
        CASES[f"aten.{_sign}.{_form}"] = CASES[f"aten.{_name}.{_form}"]
CASES["aten.bitwise_not.default"] = [
    case(rand(2, 3, dtype=d)) for d in ("bool", "int64", "uint8", "int8")
]

SHIFTS = np.array([0, 1, 5, 31, -1])
# int32: torch shifts int64 by 32 places and more, which JAX without 64-bit types cannot hold
NUMBER = np.array([[-7], [0], [1], [9]], np.int32)
for _name in ("bitwise_left_shift", "bitwise_right_shift", "__lshift__", "__rshift__"):
    CASES[f"aten.{_name}.Tensor"] = [
        case(NUMBER, SHIFTS.astype(np.int32)),
        case(NUMBER.astype(np.int8), np.array([0, 3, 7, 8, 100], np.int8)),
        case(NUMBER.astype(np.uint8), np.array([0, 3, 7, 8, 100], np.uint8)),
        case(rand(2, 3, dtype="int64"), rand(3, dtype="int64", low=0, high=4)),
    ]
    _scalar = "Scalar" if _name.startswith("_") else "Tensor_Scalar"
    CASES[f"aten.{_name}.{_scalar}"] = [case(NUMBER, 2), case(rand(7, dtype="uint8"), 1)]
    if not _name.startswith("_"):
        CASES[f"aten.{_name}.Scalar_Tensor"] = [case(9, np.array([0, 1, 3]))]

_COMPLEX_EDGES = np.array([complex("nan"), complex(1, float("inf")), 1j], np.complex64)
for _name in ("isnan", "isinf", "isfinite", "isposinf", "isneginf", "signbit"):
    CASES[f"aten.{_name}.default"] = [
        case(EDGES),
        case(EDGES.astype(np.float16)),
        case(rand(2, 3, dtype="bfloat16")),
        case(rand(7, dtype="int64")),
        case(rand(7, dtype="bool")),
        case(rand(0)),
        *([case(_COMPLEX_EDGES)] if _name in ("isnan", "isinf", "isfinite") else []),
    ]

_X = rand(7)
CASES["aten.isclose.default"] = [
    case(_X, _X + np.float32([0, 1e-6, 1e-5, 1e-4, 1e-3, 1, -1e-7])),
    case(_X, _X * np.float32(1.01), 0.02, 0.0),
    case(*PAIRS),
    case(*PAIRS, equal_nan=True),
    case(SAME, SAME[::-1].copy()),
    case(SAME, SAME[::-1].copy(), 0.0, 1.0),
    case(rand(7, dtype="bool"), rand(7, dtype="bool", seed=1)),
    case(rand(7, dtype="complex64"), rand(7, dtype="complex64")),
]

_COND = rand(2, 3, 5, dtype="bool")
CASES["aten.where.self"] = [
    case(_COND, rand(3, 1), rand(5)),
    case(_COND, rand(3, 1, dtype="int64"), rand()),
    case(_COND, rand(5, dtype="bfloat16"), rand()),
    case(_COND, rand(5, dtype="bfloat16"), rand(5)),
    case(rand(1, dtype="bool"), rand(0), rand(1)),
    case(rand(dtype="bool"), rand(2, 3), rand(3, dtype="complex64")),
]
CASES["aten.where.Scalar"] = [case(_COND, 1, 0), case(_COND, 1.0, 0), case(_COND, True, False)]
CASES["aten.where.ScalarSelf"] = [case(_COND, 1, rand(5)), case(_COND, 1.5, SAME[:5]),
                                  case(_COND, 1.5, rand(5, dtype="bfloat16"))]  # fmt: skip
CASES["aten.where.ScalarOther"] = [case(_COND, rand(5), 1), case(_COND, SAME[:5], -float("inf")),
                                   case(_COND, SAME[:5], 7)]  # fmt: skip
