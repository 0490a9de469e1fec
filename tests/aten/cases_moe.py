"""Cases for aten/moe.py."""

import numpy as np

from tests.aten.harness import case, covered_by, dtype, rand

ALL = np.array([2, 5, 8], np.int32)


def _grouped(kind):
    lhs, experts = rand(8, 16, dtype=kind), rand(3, 16, 24, dtype=kind)
    rows = rand(16, 8, dtype=kind), rand(8, 24, dtype=kind)
    return [
        case(lhs, experts, ALL),
        case(lhs, experts, np.array([2, 2, 8], np.int32)),
        case(rand(3, 16, 24, dtype=kind), rand(24, 8, dtype=kind), ALL),
        case(*rows, ALL),
        case(rand(3, 8, 16, dtype=kind), experts),
    ]


_norm = [
    case(rand(2, 3, 5), rand(2, 1, 1)),
    case(rand(2, 3, 5), rand(1, 1, 5), 2),
    case(rand(2, 3), rand(1, 3), 1),
]

CASES = {
    "aten._grouped_mm.default": [
        *_grouped("bfloat16"),
        *_grouped("float32"),
        *_grouped("float16"),
        case(
            rand(8, 16, dtype="bfloat16"),
            rand(3, 16, 24, dtype="bfloat16"),
            ALL,
            None,
            dtype("bfloat16"),
        ),
    ],
    "transformers.grouped_mm_fallback.default": [covered_by("aten/test_moe.py::test_fallback")],
    "aten._weight_norm.default": [*_norm, case(rand(2, 3, 5), rand(), -1)],
    "aten._weight_norm_interface.default": _norm,
}
