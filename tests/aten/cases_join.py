"""Cases for aten/join.py."""

import numpy as np

from tests.aten.harness import case, rand

X = rand(2, 3, 5)
SCALAR = rand()
EMPTY = rand(0)

CAT = [
    case([X, rand(2, 7, 5)], 1),
    case([X, X], -1),
    case([rand(3), rand(2, dtype="int64"), rand(1, dtype="bool")]),
    case([rand(3, dtype="bfloat16"), rand(2, dtype="float16")]),
    case([EMPTY, X, rand(1, 3, 5)]),
    case([EMPTY, EMPTY]),
    case([rand(0, 3), rand(2, 3)]),
    case([rand(3, dtype="bool")]),
    case([rand(0, dtype="float32"), rand(2, 3, dtype="int64")]),
]
REPEAT = [
    case(X, [2, 1, 3]),
    case(rand(3, 2), [2, 1, 2, 3]),
    case(SCALAR, [3]),
    case(SCALAR, []),
    case(rand(3, dtype="int64"), [0]),
    case(rand(0, 2, dtype="bool"), [2, 2]),
    case(rand(2, 3, 2, 5), [2, 1, 2, 2]),
]
COUNTS = np.array([2, 0, 3])
SHUFFLE = [case(rand(2, 6, 5), 3), case(rand(1, 4, 3, 2), 2), case(rand(0, 4, 3), 2)]
RANGES = [rand(2), rand(3), rand(5)]

CASES = {
    **dict.fromkeys(["aten.cat.default", "aten.concat.default", "aten.concatenate.default"], CAT),
    "aten.stack.default": [
        case([X, X + 1]), case([X, X], -1), case([X, X], 1), case([SCALAR, SCALAR]),
        case([rand(3), rand(3, dtype="int64")], 1), case([rand(0, 2)], -3)],
    "aten.repeat.default": REPEAT,
    "aten.tile.default": [*REPEAT, case(X, [2]), case(X, [3, 1])],
    "aten.repeat_interleave.self_int": [
        case(X, 2, 1), case(X, 3, -1), case(X, 2), case(X, 0, 0), case(SCALAR, 3),
        case(rand(3, dtype="int64"), 2, 0, output_size=6), case(rand(0, 2), 2, 0)],
    "aten.repeat_interleave.self_Tensor": [
        case(X, COUNTS, 1, output_size=5), case(rand(3, dtype="int64"), COUNTS, output_size=5),
        case(X, np.array([2]), -1, output_size=10), case(X, COUNTS * 0, 1, output_size=0)],
    "aten.repeat_interleave.Tensor": [
        case(COUNTS, output_size=5), case(COUNTS.astype(np.int32), output_size=5),
        case(np.zeros(2, np.int64), output_size=0)],
    "aten.pixel_shuffle.default": [
        case(rand(2, 12, 3, 5), 2), case(rand(9, 2, 3), 3), case(rand(2, 3, 8, 1, 2), 2),
        case(rand(0, 4, 2, 2), 2), case(rand(4, 2, 2, dtype="int64"), 2)],
    "aten.pixel_unshuffle.default": [
        case(rand(2, 3, 4, 6), 2), case(rand(1, 6, 3), 3), case(rand(2, 3, 2, 2, 4), 2)],
    **dict.fromkeys(["aten.channel_shuffle.default", "aten.native_channel_shuffle.default"],
                    SHUFFLE),
    "aten.meshgrid.default": [case(RANGES), case([rand(3)]), case([rand(3), SCALAR])],
    "aten.meshgrid.indexing": [
        case(RANGES, indexing="ij"), case(RANGES, indexing="xy"), case([rand(3)], indexing="xy"),
        case([rand(2, dtype="int64"), rand(3, dtype="int64")], indexing="xy")],
    "aten.block_diag.default": [
        case([rand(2, 3), rand(3), SCALAR]), case([rand(2, 2), rand(2, 1, dtype="int64")]),
        case([rand(0, 3), rand(2, 0), rand(1, 1)])],
    "aten.cartesian_prod.default": [case(RANGES), case([rand(3)]), case([rand(3), rand(0)])],
}  # fmt: skip
