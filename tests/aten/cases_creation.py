"""Cases for creation.py."""

import numpy as np

from tests.aten.harness import Case, case, dtype, rand

INF = float("inf")
X = rand(2, 3, 5)
INT = rand(2, 3, dtype="int64")
SIZES = ([2, 3], [], [0, 5], [1])
TYPES = ("int64", "bool", "float16", "bfloat16", "complex64", "uint8", "float64")


def shaped(shape: tuple[int, ...], name: str):
    """A check for uninitialized tensors: shape and dtype only."""

    def check(outputs) -> None:
        (out,) = outputs
        assert (out.shape, out.dtype.name) == (shape, name)

    return check


CASES: dict[str, list[Case]] = {}
for _name in ("alias", "alias_copy", "clone", "contiguous", "detach", "detach_copy", "lift",
              "lift_fresh", "lift_fresh_copy"):  # fmt: skip
    CASES[f"aten.{_name}.default"] = [case(X), case(INT), case(rand()), case(rand(0, 3))]

for _name in ("zeros", "ones"):
    CASES[f"aten.{_name}.default"] = [
        *(case(size) for size in SIZES),
        *(case([2, 3], dtype=dtype(t)) for t in TYPES),
    ]
    CASES[f"aten.{_name}_like.default"] = [
        *(case(x) for x in (X, INT, rand(), rand(0, 3, dtype="bfloat16"))),
        *(case(X, dtype=dtype(t)) for t in TYPES),
    ]
    CASES[f"aten.new_{_name}.default"] = [
        *(case(INT, size) for size in SIZES),
        *(case(X, [2], dtype=dtype(t)) for t in TYPES),
    ]
NUMBERS = (2, 2.5, True, -INF)
CASES["aten.full.default"] = [
    *(case(size, n) for size in SIZES for n in (*NUMBERS, 1 + 2j)),
    *(case([2, 3], 2, dtype=dtype(t)) for t in TYPES),
    case([2], 2.7, dtype=dtype("int64")),
]
CASES["aten.full_like.default"] = [
    *(case(X, n) for n in NUMBERS),
    *(case(INT, n) for n in (2, 2.5, True)),
    *(case(X, 2, dtype=dtype(t)) for t in TYPES),
]
CASES["aten.new_full.default"] = [
    *(case(INT, size, 2) for size in SIZES),
    *(case(X, [2, 3], 2, dtype=dtype(t)) for t in TYPES),
]
CASES["aten.scalar_tensor.default"] = [
    *(case(n) for n in NUMBERS),
    *(case(3, dtype=dtype(t)) for t in TYPES),
]
CASES["aten.fill.Scalar"] = [case(X, 2), case(INT, 2.5), case(X, -INF), case(rand(0), 1)]
CASES["aten.fill.Tensor"] = [case(X, rand()), case(INT, rand()), case(X, rand(dtype="int64"))]
CASES["aten.copy.default"] = [
    case(X, rand(3, 1)),
    case(INT, rand(3, low=-9, high=9)),
    case(rand(7, dtype="bool"), np.float32([0, 1, -0.5, np.nan, np.inf, -0.0, 2])),
    case(rand(3, dtype="bfloat16"), rand(3)),
    case(X, rand(), False),
]
CASES["aten._to_copy.default"] = [
    case(X),
    *(case(rand(7, low=0, high=9), dtype=dtype(t)) for t in TYPES),
    *(case(rand(7, dtype="int64"), dtype=dtype(t)) for t in TYPES),
    *(case(rand(7, dtype="bool"), dtype=dtype(t)) for t in TYPES),
    case(rand(7, low=-9, high=9), dtype=dtype("int32")),
    case(rand(7, dtype="bfloat16"), dtype=dtype("float16")),
]
POSITIVE = rand(7, low=0, high=9)
CASES["aten.to.dtype"] = [case(x, dtype(t)) for x in (POSITIVE, INT) for t in TYPES]
CASES["aten.to.dtype_layout"] = [case(X), *(case(POSITIVE, dtype=dtype(t)) for t in TYPES)]
CASES["aten.to.device"] = [case(POSITIVE, "cpu", dtype(t)) for t in TYPES]
CASES["aten.to.other"] = [case(X, INT), case(INT, rand(dtype="bfloat16"))]
CASES["aten.type_as.default"] = [case(X, INT), case(INT, rand(dtype="bfloat16"))]

CASES["aten.empty.memory_format"] = [
    case([2, 3], check=shaped((2, 3), "float32")),
    case([], dtype=dtype("int64"), check=shaped((), "int32")),
]
CASES["aten.empty_like.default"] = [
    case(INT, check=shaped((2, 3), "int32")),
    case(INT, dtype=dtype("bfloat16"), check=shaped((2, 3), "bfloat16")),
]
CASES["aten.new_empty.default"] = [
    case(INT, [5], check=shaped((5,), "int32")),
    case(INT, [], dtype=dtype("bool"), check=shaped((), "bool")),
]
CASES["aten.empty_strided.default"] = [
    case([2, 3], [1, 2], check=shaped((2, 3), "float32")),
    case([2], [1], dtype=dtype("float16"), check=shaped((2,), "float16")),
]
CASES["aten.empty_permuted.default"] = [case([2, 3], [1, 0], check=shaped((2, 3), "float32"))]
CASES["aten.new_empty_strided.default"] = [
    case(INT, [2, 5], [1, 2], check=shaped((2, 5), "int32")),
]

CASES["aten.arange.default"] = [
    *(case(end) for end in (7, 0, 2.5, 7.0)),
    *(case(7, dtype=dtype(t)) for t in ("float32", "float16", "int32", "uint8", "bfloat16")),
]
CASES["aten.arange.start"] = [
    case(2, 7),
    case(-3, 2.5),
    case(5, 5),
    case(-3, 4, dtype=dtype("float32")),
    case(0.5, 4.5, dtype=dtype("int64")),
]
CASES["aten.arange.start_step"] = [
    case(2, 17, 3),
    case(17, 2, -4),
    case(0, 1, 0.1, rtol=2e-7),
    case(1.0, -1.0, -0.3),
    case(-1, 1, 0.25, dtype=dtype("bfloat16")),
    case(0, 64, 2, dtype=dtype("float32")),
    case(3, 3, 2),
]
ENDS = {
    "default": (False, False),
    "Tensor_Tensor": (True, True),
    "Tensor_Scalar": (True, False),
    "Scalar_Tensor": (False, True),
}
for _name, _tensor in ENDS.items():

    def _ends(start, end, tensor=_tensor):
        kinds = zip((start, end), tensor, strict=True)
        return [np.array(x, np.asarray(x).dtype) if t else x for x, t in kinds]

    CASES[f"aten.linspace.{_name}"] = [
        *(case(*_ends(-1.5, 2.5), n) for n in (0, 1, 2, 7, 100)),
        case(*_ends(3, 10), 5),
        case(*_ends(3, 11), 5, dtype=dtype("int64")),
        case(*_ends(1.0, -1.0), 6, dtype=dtype("bfloat16")),
        case(*_ends(4.3, -1.7), 7, dtype=dtype("int64")),  # ends are truncated first
    ]
    CASES[f"aten.logspace.{_name}"] = [
        *(case(*_ends(-1.5, 2.5), n) for n in (0, 1, 2, 7)),
        case(*_ends(0, 4), 5, 2.0),
        case(*_ends(0.0, 4.0), 5, 2.0, dtype=dtype("float16")),
        case(*_ends(1.7, 4.2), 5, 2.0, dtype=dtype("int64")),
    ]
CASES["aten.linspace.default"] += [
    case(0, 1, 97, rtol=2e-7),
    case(0.0, 10.0, 4, dtype=dtype("int64")),
]
CASES["aten.eye.default"] = [case(3), case(0), case(2, dtype=dtype("bool"))]
CASES["aten.eye.m"] = [case(3, 5), case(3, 2, dtype=dtype("int64")), case(0, 2)]
for _name in ("tril_indices", "triu_indices"):
    CASES[f"aten.{_name}.default"] = [
        *(case(3, 5, offset) for offset in (-1, 0, 2)),
        case(5, 3),
        case(0, 3),
        case(3, 3, 1, dtype=dtype("int32")),
    ]

LENGTHS = (0, 1, 2, 7, 10)
for _name in ("bartlett", "blackman", "hamming", "hann", "kaiser"):
    CASES[f"aten.{_name}_window.default"] = [
        *(case(n) for n in LENGTHS),
        case(7, dtype=dtype("float16")),
    ]
    CASES[f"aten.{_name}_window.periodic"] = [
        case(n, flag) for n in LENGTHS for flag in (True, False)
    ]
CASES["aten.hamming_window.periodic_alpha"] = [case(7, True, 0.6), case(7, False, 0.6)]
CASES["aten.hamming_window.periodic_alpha_beta"] = [case(7, False, 0.6, 0.3)]
CASES["aten.kaiser_window.beta"] = [case(7, True, 5.0), case(7, False, 9.0)]
