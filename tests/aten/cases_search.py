"""Cases for aten/search.py."""

import numpy as np

from tests.aten.harness import case, covered_by, rand

nan, inf = np.nan, np.inf
EDGES = np.array([-1.0, 0.0, 0.0, 0.5, 2.0], np.float32)
VALUES = np.array([[-2.0, -1.0, 0.0], [0.25, 2.0, nan], [inf, -inf, 0.5]], np.float32)
MANY = np.sort(rand(131))  # above the size up to which all edges are compared
MANY[40:50] = MANY[40]
ROWS = np.sort(rand(2, 5), axis=-1)
LONG_ROWS = np.sort(rand(2, 67), axis=-1)
INTS = np.array([-3, 0, 0, 4])
SIDES = [
    {"right": right, "out_int32": narrow} for right in (False, True) for narrow in (False, True)
]

TENSORS = [
    (EDGES, VALUES),
    (MANY, rand(3, 7)),
    (MANY, MANY[35:55]),
    (INTS, np.array([-4, -3, 0, 1, 4, 5])),
    (EDGES, np.array(0.0, np.float32)),
    (rand(0), rand(3)),
    (EDGES, rand(0, 3)),
    (np.array([1.0, nan], np.float32), np.array([nan, 2.0], np.float32)),
]
BATCHED = [(ROWS, rand(2, 3)), (LONG_ROWS, rand(2, 3)), (LONG_ROWS, LONG_ROWS[:, 5:9])]
SAMPLE = rand(7, 5)
WEIGHT = rand(7, 5, seed=1)

POINTS = rand(2, 17, 2)
BOX = np.array([-1.5, -0.2, 0.5, 1.7], np.float32)
CASES = {
    "aten.bincount.default": [covered_by(
        "aten/test_data_dependent.py::test_operators_of_data_dependent_shape_are_refused")],
    "aten.searchsorted.Tensor": [
        *(case(edges, v, **kind) for edges, v in (*TENSORS, *BATCHED) for kind in SIDES),
        case(EDGES, VALUES, side="right"), case(EDGES, VALUES, side="left"),
        case(EDGES[[3, 1, 0, 4, 2]], VALUES, sorter=np.array([2, 1, 4, 0, 3]))],
    "aten.searchsorted.Scalar": [
        *(case(EDGES, 0.5, **kind) for kind in SIDES), case(EDGES, 0, right=True),
        case(INTS, 1, side="right")],
    "aten.bucketize.Tensor": [case(v, edges, **kind) for edges, v in TENSORS for kind in SIDES],
    "aten.bucketize.Scalar": [case(0.5, EDGES, **kind) for kind in SIDES],
    "aten.histc.default": [
        case(SAMPLE, 4), case(SAMPLE, 7, -1, 1.5), case(np.array([1, 2, 3, 3, 0], np.float32), 4),
        case(np.ones(3, np.float32), 3), case(rand(0), 3), case(SAMPLE, 5, 1, 1),
        case(rand(7, dtype="bfloat16"), 3, -2, 2)],
    "aten.histogram.bins_tensor": [
        case(SAMPLE, np.array([-1.0, 0.0, 0.5, 2.0], np.float32)),
        case(SAMPLE, np.array([-1.0, 0.0, 0.5], np.float32), weight=WEIGHT, density=True),
        case(np.array([-1.0, 0.0, 2.0, 2.0], np.float32), np.array([-1.0, 0, 2], np.float32))],
    "aten.histogram.bin_ct": [
        case(SAMPLE, 4), case(SAMPLE, 5, range=[-1.0, 1.5]), case(np.ones(3, np.float32), 3),
        case(SAMPLE, 3, weight=WEIGHT), case(SAMPLE, 3, density=True), case(rand(0), 2)],
    "aten._histogramdd_bin_edges.default": [
        case(POINTS, [3, 2]), case(POINTS, [4, 3], range=[-1.0, 1.5, 0.0, 1.0])],
    "aten._histogramdd_from_bin_tensors.default": [
        case(POINTS, [BOX, BOX[:-1]]), case(POINTS, [BOX, BOX], density=True),
        case(POINTS, [BOX, BOX], weight=rand(2, 17, low=0.1, high=1.0))],
    "aten._histogramdd_from_bin_cts.default": [
        case(POINTS, [3, 2]), case(POINTS, [4, 3], range=[-1.0, 1.5, 0.0, 1.0]),
        case(POINTS, [2, 2], weight=rand(2, 17, low=0.1, high=1.0), density=True)],
}  # fmt: skip
