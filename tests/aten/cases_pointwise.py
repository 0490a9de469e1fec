"""Cases for pointwise.py and arithmetic.py."""

import itertools

import numpy as np

from tests.aten.harness import Case, case, rand

INF, NAN = float("inf"), float("nan")
EDGES = np.array([-INF, -1.5, -1.0, -0.0, 0.0, 0.5, 1.0, 2.5, INF, NAN], np.float32)
PAIRS = (EDGES[:, None], EDGES[None, :])
LADDER = np.arange(-35, 36, dtype=np.float32) / 10

# name: (low, high) of the domain; complex too
TO_FLOAT = {
    "acos": (-1, 1),
    "acosh": (1, 5),
    "asin": (-1, 1),
    "asinh": (-3, 3),
    "atan": (-3, 3),
    "atanh": (-0.9, 0.9),
    "cos": (-3, 3),
    "cosh": (-3, 3),
    "exp": (-3, 3),
    "exp2": (-3, 3),
    "expm1": (-3, 3),
    "log": (0.1, 5),
    "log10": (0.1, 5),
    "log1p": (-0.9, 5),
    "log2": (0.1, 5),
    "reciprocal": (0.1, 5),
    "rsqrt": (0.1, 5),
    "sin": (-3, 3),
    "sinc": (-3, 3),
    "sinh": (-3, 3),
    "sqrt": (0.1, 5),
    "tan": (-1, 1),
}
SMALL = np.array([-1e-6, 1e-6, 1e-3, -1e-3], np.float32)  # where naive formulas cancel


def _to_float(name: str, low: float, high: float) -> list[Case]:
    return [
        *(case(rand(2, 3, 5, dtype=d, low=low, high=high)) for d in ("float32", "complex64")),
        *(case(rand(7, dtype=d, low=low, high=high)) for d in ("bfloat16", "float16")),
        case(rand(3, 5, dtype="int64", low=1, high=2)),
        case(rand(3, 5, dtype="bool")),
        case(rand(low=low, high=high)),
        case(np.zeros((0, 3), np.float32)),
        case(EDGES),
        # two relative units: the absolute part of the default would hide a cancellation
        *([case(SMALL, rtol=1e-6, atol=0)] if low < 0 and name != "acos" else []),
    ]


CASES: dict[str, list[Case]] = {
    f"aten.{name}.default": _to_float(name, *bounds) for name, bounds in TO_FLOAT.items()
}
CASES["aten.log2.default"].append(case(2.0 ** np.arange(-20, 30, dtype=np.float32), rtol=1e-7))
for _name in ("deg2rad", "rad2deg"):
    CASES[f"aten.{_name}.default"] = [
        case(rand(2, 3, low=-180, high=180)),
        case(rand(7, dtype="bfloat16", low=-180, high=180)),
        case(rand(7, dtype="int64")),
        case(rand(7, dtype="bool")),
    ]

# Integers stay; bools where torch takes them.
for _name, _dtypes in {
    "abs": ("int64", "uint8", "complex64", "float16"),
    "neg": ("int64", "uint8", "complex64", "float16"),
    "ceil": ("int64", "float16"),
    "floor": ("int64", "float16"),
    "trunc": ("int64", "float16"),
    "round": ("int64", "float16"),
    "frac": ("float16",),
    "sign": ("int64", "uint8", "bool", "float16"),
    "sgn": ("int64", "bool", "complex64", "float16"),
    "square": ("int64", "bool", "complex64", "float16"),
    "positive": ("int64", "complex64"),
}.items():
    CASES[f"aten.{_name}.default"] = [
        case(LADDER),
        case(rand()),
        *([case(EDGES)] if _name != "frac" else [case(EDGES[1:-2])]),
        *(case(rand(3, 5, dtype=d)) for d in (*_dtypes, "bfloat16")),
    ]
CASES["aten.sgn.default"].append(case(np.zeros(3, np.complex64)))
CASES["aten.round.decimals"] = [
    case(rand(5, 7, low=-300, high=300), decimals=d) for d in (-2, 0, 1, 3)
] + [case(rand(7, dtype="float16"), decimals=1)]
CASES["aten.logit.default"] = [
    *(case(rand(2, 3, low=0.01, high=0.99), eps) for eps in (None, 0.1)),
    case(np.array([-0.5, 0.0, 1.0, 1.5, NAN], np.float32)),
    case(np.array([-0.5, 0.0, 1.0, 1.5, NAN], np.float32), 1e-3),
    case(rand(7, dtype="bfloat16", low=0.1, high=0.9)),
    case(rand(7, dtype="int64"), 0.1),
]
CASES["aten.nan_to_num.default"] = [
    case(EDGES),
    case(EDGES, 1.5, 2.5, -3.5),
    case(EDGES.astype(np.float16), 1.5),
    case(rand(3, dtype="int64")),
    case(np.array([complex(NAN, INF), complex(-INF, 1)], np.complex64), 1.0, 2.0, -2.0),
]
CASES["aten.frexp.Tensor"] = [case(LADDER), case(rand(2, 0)), case(rand(3, dtype="float16"))]

# Two operands.
MIXED = [
    (rand(2, 3, 5), rand(3, 1)),
    (rand(2, 3), rand()),
    (rand(), rand(0, 3)),
    (rand(7, dtype="bfloat16"), rand(7, dtype="bfloat16", seed=1)),
    (rand(7, dtype="bfloat16"), rand(7, seed=1)),
    (rand(7, dtype="bfloat16"), rand()),
    (rand(7, dtype="float16"), rand(7, dtype="bfloat16")),
    (rand(7, dtype="int64", low=1, high=5), rand(7)),
    (rand(7, dtype="int64", low=1, high=5), rand(7, dtype="uint8", low=1, high=5)),
]
COMPLEX = [(rand(7, dtype="complex64"), rand(7, dtype="complex64", seed=1)),
           (rand(7, dtype="complex64"), rand(7))]  # fmt: skip
BOOLS = [(rand(7, dtype="bool"), rand(7, dtype="bool", seed=1))]
INTS = [
    (rand(2, 3, 5, dtype="int64", low=-9, high=9), rand(5, dtype="int64", low=1, high=4)),
    (rand(2, 3, 5, dtype="int32", low=-9, high=9), -rand(5, dtype="int32", low=1, high=4)),
    (rand(7, dtype="uint8", low=0, high=9), rand(7, dtype="uint8", low=1, high=4)),
]
NUMBERS = [
    (rand(2, 3, 5), 2),
    (rand(2, 3), -0.3),
    (rand(7, dtype="int64"), 3),
    (rand(7, dtype="int64"), -2.5),
    (rand(), 2.5),
    (rand(97, dtype="bfloat16"), 0.1),
    (rand(97, dtype="float16"), 0.1),
    (rand(7, dtype="bool"), 2),
]


def _cases(*lists, **kwargs) -> list[Case]:
    return [case(*args, **kwargs) for args in itertools.chain(*lists)]


# One rounding on both sides; a number that is (mul) or is not (add) rounded first is off.
EXACT = {"rtol": 0, "atol": 0}
HALF_SCALARS = [case(*args, **EXACT) for args in NUMBERS if args[0].dtype.itemsize == 2]
FLAGS = [case(rand(7, dtype="bool"), True), case(rand(7, dtype="bool"), 1.5)]
COMPLEX_NUMBER = [case(rand(7), 1 + 2j)]
for _name in ("add", "sub", "rsub"):
    _no_bools = [p for p in NUMBERS if p[0].dtype != bool]
    CASES[f"aten.{_name}.Tensor"] = [
        *_cases(MIXED, COMPLEX, BOOLS if _name == "add" else [], [PAIRS]),
        *_cases([(rand(2, 3), rand(3)), (rand(7, dtype="bfloat16"), rand())], alpha=0.3),
        *_cases(INTS, alpha=2),
        # export writes numbers as a tensor operand
        *(_cases([(rand(2, 3), 2.5)]) if _name != "rsub" else []),
    ]
    CASES[f"aten.{_name}.Scalar"] = [
        *_cases(_no_bools),
        *HALF_SCALARS,
        *COMPLEX_NUMBER,
        case(rand(2, 3), 2, 3),
        case(rand(2, 3, dtype="int64"), 2, 3),
        *(FLAGS if _name == "add" else []),
    ]
CASES["aten.mul.Tensor"] = [*_cases(MIXED, COMPLEX, BOOLS, INTS, [PAIRS]), case(rand(2), 3)]
CASES["aten.mul.Scalar"] = [*_cases(NUMBERS), *HALF_SCALARS, *COMPLEX_NUMBER, *FLAGS]
for _name in ("div", "true_divide"):
    CASES[f"aten.{_name}.Tensor"] = [*_cases(MIXED, COMPLEX, BOOLS, INTS, [PAIRS])]
    CASES[f"aten.{_name}.Scalar"] = [*_cases(NUMBERS), *HALF_SCALARS, *COMPLEX_NUMBER]
# Quotients that round up to a whole number: floor(x / y) and torch's floor differ.
TENTHS = [(np.float32(np.arange(-50, 51)) / 10, np.float32(0.1) * np.ones(1, np.float32))]
DIVISION = [*INTS, *TENTHS, (rand(2, 3, 5), rand(3, 1)), (rand(7, dtype="int64"), rand(7)),
            (rand(0, 3), rand()), (rand(7, dtype="float16"), rand(7, dtype="float16", seed=1)),
            (rand(97, dtype="bfloat16"), rand(97, dtype="bfloat16", seed=1)), PAIRS]  # fmt: skip
BY_NUMBER = [(rand(2, 3, 5, dtype="int64", low=-9, high=9), 3), (rand(2, 3, 5), -0.7),
             (rand(7, dtype="int64"), -2.5), (rand(7, dtype="uint8"), 3), (rand(), 2),
             (rand(7, dtype="bfloat16", low=-9, high=9), 0.7)]  # fmt: skip
for _mode in ("floor", "trunc", None):
    CASES.setdefault("aten.div.Tensor_mode", []).extend(_cases(DIVISION, rounding_mode=_mode))
    CASES.setdefault("aten.div.Scalar_mode", []).extend(_cases(BY_NUMBER, rounding_mode=_mode))
for _name in ("floor_divide", "remainder", "fmod"):
    _tensor = "default" if _name == "floor_divide" else "Tensor"
    CASES[f"aten.{_name}.{_tensor}"] = _cases(DIVISION)
    CASES[f"aten.{_name}.Scalar"] = _cases(BY_NUMBER)
CASES["aten.remainder.Scalar_Tensor"] = [
    case(7, rand(5, dtype="int64", low=1, high=5)),
    case(-7.5, rand(5)),
    case(7, -rand(5, dtype="int64", low=1, high=5)),
]

POSITIVE = {"low": 0.1, "high": 3.0}
CASES["aten.pow.Tensor_Tensor"] = [
    case(rand(2, 3, **POSITIVE), rand(3)),
    case(EDGES[:, None], EDGES),
    case(rand(7, dtype="int64"), rand(7, dtype="int64", low=0, high=5)),
    case(np.array([-3, -1, -1, 0, 1, 2]), np.array([-1, -3, -2, 3, -5, -1])),
    case(rand(7, dtype="uint8"), rand(7, dtype="uint8", low=0, high=4)),
    case(rand(7, dtype="bfloat16", **POSITIVE), rand(7, dtype="bfloat16")),
    case(rand(7, dtype="int64", low=1, high=5), rand(7)),
    case(rand(7, dtype="complex64"), rand(7, dtype="complex64", seed=1)),
    case(rand(7), rand(7, dtype="int64")),
]
CASES["aten.pow.Tensor_Scalar"] = [
    *(case(rand(2, 3, 5, **POSITIVE), n) for n in (0, 1, 2, 3, 5, 17, -1, -2, 0.5, -0.5, 2.0, 1.7)),
    *(case(rand(7, dtype="int64"), n) for n in (0, 2, 3, 11)),
    *(case(rand(7, dtype="int64", low=1, high=5), n) for n in (-2.0, 0.5)),
    *(case(rand(7, dtype=d, **POSITIVE), n) for d in ("bfloat16", "float16") for n in (2, 3, 1.7)),
    case(rand(7, dtype="bool"), 2),
    *(case(rand(7, dtype="complex64"), n) for n in (2, 0.5, 1.5, 1j)),
    *(case(EDGES, n) for n in (0, 2, 3, -1, 0.5, 1.5)),
    case(rand(0, 2), 2),
    case(rand(**POSITIVE), 2.5),
]
CASES["aten.pow.Scalar"] = [
    case(2, rand(2, 3)),
    case(2.5, rand(3, dtype="int64")),
    case(3, rand(3, dtype="int64", low=0, high=4)),
    case(1, EDGES),
    case(2.0, rand(7, dtype="bfloat16")),
    case(0.0, EDGES),
]
CASES["aten.float_power.Tensor_Tensor"] = [
    case(rand(2, 3, **POSITIVE), rand(3)),
    case(rand(7, dtype="int64", low=1, high=4), rand(7, dtype="int64")),
    case(rand(7, dtype="complex64"), rand(7)),
]
CASES["aten.float_power.Tensor_Scalar"] = [
    case(rand(7, dtype="bfloat16", **POSITIVE), 2),
    case(rand(7, dtype="int64", low=1, high=4), -2),
]
CASES["aten.float_power.Scalar"] = [case(2, rand(7)), case(2, rand(7, dtype="int64"))]

EXTREMA = [*_cases(MIXED, INTS, [PAIRS])]
for _name in ("maximum", "minimum"):
    CASES[f"aten.{_name}.default"] = [*EXTREMA, *_cases(BOOLS)]
for _name in ("fmax", "fmin"):
    CASES[f"aten.{_name}.default"] = [*EXTREMA, *_cases(BOOLS)]
CASES["aten.atan2.default"] = [*_cases(MIXED, INTS, BOOLS, [PAIRS])]
CASES["aten.hypot.default"] = [
    case(rand(2, 3), rand(3)),
    case(rand(7, dtype="bfloat16"), rand(7, dtype="bfloat16", seed=1)),
    case(np.array([1e30, 1e-30, 0], np.float32), np.array([1e30, 1e-30, 0], np.float32)),
    case(*PAIRS),
]
CASES["aten.logaddexp.default"] = [
    case(rand(2, 3), rand(3)),
    case(rand(7, dtype="float16"), rand(7, dtype="float16", seed=1)),
    case(*PAIRS),
]
CASES["aten.logaddexp2.default"] = CASES["aten.logaddexp.default"]
CASES["aten.copysign.Tensor"] = [*_cases(INTS, BOOLS, [PAIRS]), case(rand(2, 3), rand(3))]
CASES["aten.copysign.Scalar"] = [
    case(rand(2, 3), -1.0),
    case(rand(3, dtype="int64"), -2),
    case(rand(3, dtype="bfloat16"), 2.0),
]
CASES["aten.gcd.default"] = [
    case(rand(2, 7, dtype="int64", low=-60, high=60), rand(7, dtype="int64", low=-60, high=60)),
    case(rand(7, dtype="uint8", low=0, high=60), rand(1, dtype="uint8", low=0, high=60)),
]
CASES["aten.lcm.default"] = CASES["aten.gcd.default"]
CASES["aten.nextafter.default"] = [
    case(rand(2, 3), rand(3), rtol=1e-8, atol=0),  # neighbours differ by 6e-8
    case(np.float32([0, 0, 1]), np.float32([1, -1, 1]), **EXACT),
]
CASES["aten.heaviside.default"] = [
    case(EDGES, rand(1)),
    case(rand(7, dtype="int64"), rand(7, dtype="int64", seed=1)),
    case(rand(7, dtype="bool"), rand(7, dtype="bool", seed=1)),
]
CASES["aten.ldexp.Tensor"] = [
    case(rand(2, 3), rand(3, dtype="int64")),
    case(rand(3, dtype="int64"), rand(3, dtype="int64", seed=1)),
    case(rand(3, dtype="bfloat16"), rand(3, dtype="int64")),
]

BOUNDS = [(-0.5, 0.7), (None, 0.7), (-0.5, None), (0.7, -0.5)]
CASES["aten.clamp.default"] = [
    *(case(x, *b) for x in (rand(2, 3, 5), EDGES, rand(7, dtype="bfloat16")) for b in BOUNDS),
    *(case(rand(7, dtype="int64"), *b) for b in ((-1, 2), (None, 2), (-1.5, 2), (1, None))),
    case(rand(7, dtype="uint8"), 1, 3),
    case(rand(3), NAN, 1.0),
    case(rand(0), 0),
]
CASES["aten.clamp.Tensor"] = [
    case(rand(2, 3, 5), rand(5), rand(3, 1)),
    case(rand(2, 3), None, rand()),
    case(rand(2, 3), rand(1, seed=1), None),
    case(rand(7, dtype="int64"), rand(7), rand(7, seed=1)),
    case(EDGES[:, None], EDGES),
]
CASES["aten.clamp_min.default"] = [case(EDGES, 0.5), case(rand(7, dtype="int64"), 1),
                                   case(rand(7, dtype="int64"), 0.5)]  # fmt: skip
CASES["aten.clamp_max.default"] = CASES["aten.clamp_min.default"]
CASES["aten.clamp_min.Tensor"] = [case(*PAIRS), case(rand(7, dtype="int64"), rand(7))]
CASES["aten.clamp_max.Tensor"] = CASES["aten.clamp_min.Tensor"]

CASES["aten.lerp.Scalar"] = [
    *(case(rand(2, 3, 5), rand(5), w) for w in (0.3, 0.5, 0.8, -1.5, 2)),
    *(case(rand(97, dtype=d), rand(97, dtype=d, seed=1), 0.3) for d in ("bfloat16", "float16")),
]
CASES["aten.lerp.Tensor"] = [
    case(rand(2, 3, 5), rand(5), rand(3, 1)),
    case(rand(2, 3), rand(3), rand()),
    case(*(rand(7, dtype="bfloat16", seed=s) for s in range(3))),
]
THREE = [
    (rand(2, 3, 5), rand(5), rand(3, 1, low=0.5)),
    (rand(), rand(2, 3), rand(3, low=0.5)),
    (rand(0, 3), rand(3), rand(1)),
    tuple(rand(97, dtype="bfloat16", low=0.5, seed=s) for s in range(3)),
    tuple(rand(97, dtype="float16", low=0.5, seed=s) for s in range(3)),
    tuple(rand(7, dtype="complex64", seed=s) for s in range(3)),
]
CASES["aten.addcdiv.default"] = [*_cases(THREE), *_cases(THREE, value=0.3)]
CASES["aten.addcmul.default"] = [
    *CASES["aten.addcdiv.default"],
    case(*(rand(7, dtype="int64", seed=s) for s in range(3)), value=2),
]

XLOG = [(rand(2, 3), rand(3, low=0.1)), PAIRS, (rand(7, dtype="int64"), rand(7, low=0.1)),
        (rand(7, dtype="bfloat16"), rand(7, dtype="bfloat16", low=0.1, seed=1)),
        (rand(7, dtype="int64"), rand(7, dtype="uint8", low=1, high=5))]  # fmt: skip
for _name in ("xlogy.Tensor", "special_xlog1py.default"):
    CASES[f"aten.{_name}"] = _cases(XLOG)
for _name in ("xlogy.Scalar_Other", "special_xlog1py.other_scalar"):
    CASES[f"aten.{_name}"] = [case(EDGES, 2.5), case(EDGES, 0), case(rand(3, dtype="int64"), 2)]
for _name in ("xlogy.Scalar_Self", "special_xlog1py.self_scalar"):
    CASES[f"aten.{_name}"] = [case(2.5, EDGES), case(0, EDGES), case(2, rand(3, dtype="uint8"))]
