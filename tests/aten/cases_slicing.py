"""Cases for aten/slicing.py."""

import numpy as np

from tests.aten.harness import case, covered_by, rand

X = rand(2, 7, 3)
INTS = rand(2, 7, 3, dtype="int64")
EMPTY = rand(0, 3)
SCALAR = rand()
END = 2**63 - 1

SLICE = [
    case(X, 1, 1, 5),
    case(X, 1, 0, END),
    case(X, -2, -3, END),
    case(X, 1, None, None, 3),
    case(X, 1, 1, -1, 2),
    case(X, 1, 5, 2),
    case(X, 1, -100, 100),
    case(X, 2, 3, END),
    case(INTS, 0, 1, 2),
    case(X),
    case(EMPTY, 0, 0, 1),
    case(rand(5, dtype="bool"), 0, -END, 3),
]
SELECT = [case(X, 1, 3), case(X, -1, -3), case(INTS, 0, 1), case(rand(5), 0, -1)]
NARROW = [case(X, 1, 2, 3), case(X, -1, 0, 0), case(X, 1, -3, 2), case(INTS, 0, 1, 1)]
SPLIT = [
    case(X, 3, 1),
    case(X, 7, 1),
    case(X, 10, -2),
    case(INTS, 1, 0),
    case(X, 2, -1),
    case(EMPTY, 2),
    case(EMPTY, 0),
]
SIZES = [case(X, [3, 4], 1), case(X, [1, 0, 2], -1), case(X, [2]), case(EMPTY, [0, 0])]
CHUNK = [case(X, 3, 1), case(X, 4, 1), case(X, 5, -1), case(INTS, 1), case(EMPTY, 3)]
UNBIND = [case(X), case(X, 1), case(INTS, -1), case(EMPTY), case(rand(3))]
SRC = rand(2, 2, 3, seed=1)
TRIANGLE = [
    case(rand(3, 5)),
    case(rand(5, 3), 1),
    case(rand(5, 3), -2),
    case(X, -100),
    case(INTS, 2**62),
    case(rand(3, 3, dtype="bool")),
    case(EMPTY),
    case(np.full((2, 2), np.nan, np.float32)),
]

CASES = {
    **dict.fromkeys(["aten.slice.Tensor", "aten.slice_copy.Tensor"], SLICE),
    **dict.fromkeys(["aten.select.int", "aten.select_copy.int"], SELECT),
    **dict.fromkeys(["aten.narrow.default", "aten.narrow_copy.default"], NARROW),
    "aten.narrow.Tensor": [
        case(X, 1, np.array(2), 3), case(X, -1, np.array(0), 0), case(INTS, 0, np.array(1), 1)],
    **dict.fromkeys(
        ["aten.split_with_sizes.default", "aten.split_with_sizes_copy.default",
         "aten.unsafe_split_with_sizes.default", "aten.split.sizes"], SIZES),
    **dict.fromkeys(
        ["aten.split.Tensor", "aten.split_copy.Tensor", "aten.unsafe_split.Tensor"], SPLIT),
    **dict.fromkeys(["aten.chunk.default", "aten.unsafe_chunk.default"], CHUNK),
    "aten.tensor_split.sections": [case(X, 3, 1), case(X, 5, -1), case(X, 1), case(EMPTY, 2)],
    "aten.tensor_split.indices": [
        case(X, [2, 5], 1), case(X, [3, 1, 9], 1), case(X, [-2], -2), case(X, []),
        case(EMPTY, [1])],
    "aten.tensor_split.tensor_indices_or_sections": [
        covered_by("aten/test_data_dependent.py::test_operators_of_data_dependent_shape_are_refused")],
    **dict.fromkeys(["aten.unbind.int", "aten.unbind_copy.int"], UNBIND),
    "aten.flip.default": [
        case(X, [1]), case(X, [0, -1]), case(X, []), case(INTS, [0, 1, 2]), case(SCALAR, [0]),
        case(EMPTY, [0])],
    "aten.roll.default": [
        case(X, [2], [1]), case(X, [-9, 1], [1, 2]), case(X, [4]), case(INTS, [1, 2], [-2, -2]),
        case(EMPTY, [1], [0]), case(SCALAR, [3])],
    "aten.rot90.default": [
        case(rand(3, 5)), case(rand(3, 5), 2), case(rand(3, 5), -1), case(X, 3, [2, 0]),
        case(rand(3, 5), 4), case(EMPTY)],
    "aten.tril.default": TRIANGLE,
    "aten.triu.default": TRIANGLE,
    "aten.slice_scatter.default": [
        case(X, SRC, 1, 2, 4), case(X, SRC, -2, 5, END), case(X, SRC, 1, 0, 7, 6),
        case(X, SRC, 1, -7, -1, 3), case(X, X + 1, 1), case(X, rand(2, 0, 3), 1, 5, 2),
        case(INTS, rand(1, 7, 3, dtype="int64"), 0, 1, END),
        case(rand(5, dtype="bfloat16"), rand(2, dtype="bfloat16"), 0, 1, 3)],
    "aten.select_scatter.default": [
        case(X, rand(2, 3), 1, 4), case(X, rand(7, 3), 0, -1), case(rand(5), rand(), 0, -5),
        case(INTS, rand(2, 7, dtype="int64"), -1, 1)],
    "aten.diagonal_scatter.default": [
        case(rand(3, 5), rand(3)), case(rand(3, 5), rand(2), -1), case(rand(5, 3), rand(1), 2),
        case(X, rand(7, 1), 1, -1, 0), case(rand(3, 5, dtype="int64"), rand(2, dtype="int64"), 3)],
    "aten.as_strided_scatter.default": [
        case(rand(5, 7), rand(2, 3), [2, 3], [7, 2], 3), case(rand(5, 7), rand(5), [5], [8]),
        case(rand(5, 7), rand(0), [0], [1], 2)],
}  # fmt: skip
