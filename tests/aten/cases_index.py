"""Cases for aten/index.py."""

import numpy as np

from tests.aten.harness import case, covered_by, rand

X = rand(5, 7, 3)
REFUSED = [
    covered_by("aten/test_data_dependent.py::test_operators_of_data_dependent_shape_are_refused")
]


def i(*values):
    return np.array(values if len(values) != 1 else values[0])


PAIR = np.array([[0, -1, 2], [3, 1, -5]])
INDEX = [
    case(X, [i(0, -1, 4)]),
    case(X, [None, i(6, -7)]),
    case(X, [None, None, PAIR % 3]),
    case(X, [i(0, 1), i(2, -1)]),  # adjacent: in place
    case(X, [None, i(2, -1), i(0, 1)]),
    case(X, [i(0, 1), None, i(2, -1)]),  # not adjacent: in front
    case(X, [PAIR, None, i(0, 1, 2)]),
    case(X, [i(3), i(1, 2), None]),
    case(X, [i(3), None, i(-1)]),
    case(X, [None, i(3)]),
    case(X, [np.arange(5)[:, None], np.arange(7)]),
    case(X, [i(0, 1).astype(np.int32)]),
    case(X, [np.zeros((0,), np.int64)]),
    case(rand(0, 3), [np.zeros((2, 0), np.int64)]),
    case(rand(4, dtype="bool"), [i(-1, 0)]),
    case(rand(4, dtype="bfloat16"), [i(-1, 0)]),
]
MASK = rand(5, 7, dtype="bool")
FIVE = np.array([True, False, True, True, False])
SEVEN = np.array([True, True, False, True, False, False, False])
PUT = [
    case(X, [i(0, -1)], rand(2, 7, 3)),
    case(X, [None, i(6, -5)], rand(3)),
    case(X, [i(0, 1), None, i(2, -1)], rand(2, 7)),
    case(X, [i(0, 1), None, i(2, -1)], rand()),
    case(X, [PAIR, None, i(0, 1, 2)], rand(2, 3, 1)),
    case(X, [i(1, 1, 2)], rand(3, 7, 3), True),
    case(X, [None, i(0, 0, -7)], rand(), True),
    case(X, [np.zeros((0,), np.int64)], rand(0, 7, 3)),
    case(rand(4, dtype="bfloat16"), [i(0, 0, 0, 1)], rand(4, dtype="bfloat16"), True),
    case(rand(4, dtype="bool"), [i(0, 0, 1)], np.array([True, False, False]), True),
    case(rand(4, dtype="int64"), [np.array([-1])], rand(1, dtype="int64")),
    # masks
    case(X, [rand(5, 7, 3, dtype="bool")], rand()),
    case(X, [MASK], rand(1)),
    case(X, [MASK], rand(1, 3)),
    case(X, [MASK], rand(int(MASK.sum()), 3)),
    case(X, [MASK], rand(int(MASK.sum()), 1), True),
    case(X, [None, rand(7, dtype="bool")], rand()),
    case(X, [None, rand(7, 3, dtype="bool")], rand(5, 1), True),
    case(X, [None, rand(7, 3, dtype="bool")], rand(1, int(rand(7, 3, dtype="bool").sum()))),
    case(X, [None, None, np.array([True, False, True])], rand(7, 2)),
    case(rand(4, dtype="bool"), [rand(4, dtype="bool", seed=1)], np.array(True), True),
    # masks beside other indices
    case(X, [MASK, i([2])], rand()),
    case(X, [MASK, i([-1])], rand(int(MASK.sum())), True),
    case(X, [MASK, np.arange(int(MASK.sum())) % 3], rand(int(MASK.sum()))),
    case(X, [FIVE, None, np.arange(int(FIVE.sum())) % 3], rand(int(FIVE.sum()), 7)),
    case(X, [FIVE, None, i([0])], rand(7)),
    case(X, [FIVE, i([[0], [1]])], rand(2, int(FIVE.sum()), 3)),
    case(X, [FIVE, SEVEN], rand(3), True),
]
GATHER = [
    case(X, 1, rand(5, 2, 3, dtype="int64", low=0, high=7)),
    case(X, -3, rand(4, 7, 1, dtype="int64", low=0, high=5)),
    case(X, 2, rand(1, 1, 11, dtype="int64", low=0, high=3)),
    case(X, 0, rand(0, 7, 3, dtype="int64")),
    case(rand(), 0, np.array(0)),
    case(rand(), -1, np.zeros(2, np.int64)),
    case(rand(5), 0, np.array(3)),
    case(rand(5, dtype="bool"), 0, i(3, 3), sparse_grad=True),
]
FILL = [
    (X, rand(5, 7, 3, dtype="bool")),
    (X, rand(7, 1, dtype="bool")),
    (rand(3), rand(2, 3, dtype="bool")),
    (rand(), np.array(True)),
    (rand(3, dtype="bfloat16"), rand(3, dtype="bool")),
    (rand(3, dtype="int64"), rand(3, dtype="bool")),
    (rand(0, 3), rand(3, dtype="bool")),
]
LARGE = np.array([[-3, 20], [3, -21]])

CASES = {
    **dict.fromkeys(["aten.masked_select.default", "aten.nonzero.default"], REFUSED),
    **dict.fromkeys(["aten.index.Tensor", "aten._unsafe_index.Tensor"], INDEX),
    "aten._unsafe_masked_index.default": [
        case(X, rand(2, 3, 1, dtype="bool"), [i([[0, 4, 9], [-2, 1, 2]]), i(0, 1, 9)], 1.5),
        case(X[:, 0, 0], rand(2, dtype="bool"), [i(-1, 5)], 0)],
    "aten.index_put.default": PUT,
    "aten._unsafe_index_put.default": PUT,
    "aten.index_select.default": [
        case(X, 1, i(6, 0, 0)), case(X, -1, np.array(2)), case(X, 0, np.zeros(0, np.int32)),
        case(rand(), 0, i([0])), case(rand(4, dtype="bool"), 0, i(1, 3))],
    "aten.gather.default": GATHER,
    "aten.take.default": [
        case(X, LARGE), case(X, np.array(-1)), case(rand(), i([0, -1])),
        case(X, np.zeros(0, np.int64)), case(rand(4, dtype="int64"), i(3, 3))],
    "aten.take_along_dim.default": [
        case(X, rand(5, 2, 3, dtype="int64", low=0, high=7), 1),
        case(X, rand(1, 7, 1, dtype="int64", low=0, high=3), -1),
        case(rand(1, 7, 3), rand(5, 2, 1, dtype="int64", low=0, high=7), 1),
        case(X, i(0, 50, 104)), case(X, rand(2, 2, dtype="int64", low=0, high=9)),
        case(X, rand(5, 7, 3, dtype="int64", low=-7, high=7), 1)],
    "aten.masked_fill.Scalar": [
        *(case(x, mask, value) for x, mask in FILL for value in (0, 3)),
        case(X, rand(5, 7, 3, dtype="bool"), float("-inf")),
        case(rand(3, dtype="bfloat16"), rand(3, dtype="bool"), -1e9),
        case(rand(3, dtype="bool"), rand(3, dtype="bool", seed=1), True)],
    "aten.masked_fill.Tensor": [
        *(case(x, mask, np.array(3)) for x, mask in FILL),
        case(X, rand(5, 7, 3, dtype="bool"), np.array(-2.5, np.float32))],
    "aten.masked_scatter.default": [
        case(X, rand(5, 7, 3, dtype="bool"), rand(105)),
        case(X, rand(3, dtype="bool"), rand(40, 3)),
        case(rand(3), rand(2, 3, dtype="bool"), rand(7)),
        case(X, np.zeros((5, 7, 3), bool), rand(0)),
        case(rand(4, dtype="int64"), rand(4, dtype="bool"), rand(4, dtype="int64", seed=1))],
    "aten.nonzero_static.default": [
        case(rand(3, 5, dtype="bool"), size=4), case(rand(3, 5, dtype="bool"), size=20),
        case(rand(5, dtype="int64"), size=7, fill_value=9), case(rand(), size=2),
        case(rand(0, 3), size=2)],
}  # fmt: skip
