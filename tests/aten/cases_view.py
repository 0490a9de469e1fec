"""Cases for aten/view.py."""

import numpy as np

from tests.aten.harness import case, dtype, rand

X = rand(2, 3, 5)
EMPTY = rand(0, 3)
SCALAR = rand()

VIEW = [
    case(X, [6, 5]),
    case(X, [-1]),
    case(X, [3, -1, 2]),
    case(EMPTY, [3, 0]),
    case(SCALAR, [1, 1]),
    case(rand(1, dtype="int64"), []),
    case(rand(4, 3, dtype="bfloat16"), [2, 6]),
    case(rand(4, 3, dtype="bool"), [12]),
]
PERMUTE = [case(X, [2, 0, 1]), case(X, [-1, 0, -2]), case(SCALAR, []), case(EMPTY, [1, 0])]
TRANSPOSE = [case(X, 0, -1), case(X, -2, 1), case(SCALAR, 0, -1), case(EMPTY, 0, 1)]
T = [case(rand(2, 3)), case(rand(3)), case(SCALAR)]
EXPAND = [
    case(rand(3, 1), [2, 3, 5]),
    case(rand(3, 1), [-1, 5]),
    case(rand(1, dtype="bool"), [7]),
    case(SCALAR, [2, 3]),
    case(rand(3, 1), [3, 0]),
]
UNSQUEEZE = [case(X, 0), case(X, -1), case(X, 3), case(X, -4), case(SCALAR, 0)]
ONES = rand(1, 3, 1, 5)
SQUEEZE = [case(ONES), case(X), case(rand(1, 1)), case(SCALAR)]
SQUEEZE_DIM = [case(ONES, 0), case(ONES, -2), case(ONES, 1), case(SCALAR, -1)]
SQUEEZE_DIMS = [case(ONES, [0, -2]), case(ONES, [0, 1]), case(ONES, []), case(SCALAR, [0])]
AS_STRIDED = [
    case(rand(5, 7), [5, 7], [7, 1]),
    case(rand(5, 7), [7, 5], [1, 7]),
    case(rand(5, 7), [2, 3], [3, 1], 4),
    case(rand(5, 7), [3, 2, 5], [5, 0, 1], 2),
    case(rand(5, 7), [1, 5, 1], [90, 7, 3], 1),
    case(rand(35), [11, 3], [2, 1], 1),  # overlapping windows
    case(rand(5, 7), [5], [8], 0),
    case(rand(5, 7), [0, 3], [1, 1]),
    case(rand(5, 7), [], [], 3),
]
UNFOLD = [
    case(rand(2, 11, 3), 1, 4, 2),
    case(rand(2, 11, 3), -2, 3, 3),
    case(rand(7, dtype="int64"), 0, 3, 1),
    case(rand(7), 0, 7, 5),
    case(rand(0, 5), 1, 2, 1),
    case(SCALAR, 0, 1, 1),
]
DIAGONAL = [
    case(rand(3, 5)),
    case(rand(3, 5), 2),
    case(rand(3, 5), -2),
    case(rand(3, 5), 7),
    case(rand(3, 5), -3),
    case(rand(2, 3, 5), 1, -1, 0),
    case(rand(2, 3, 5, 7, dtype="int64"), -1, 1, 3),
    case(EMPTY),
]
BYTES = [
    case(rand(3, 4), dtype("int32")),
    case(rand(3, 4), dtype("int16")),
    case(rand(3, 4), dtype("uint8")),
    case(rand(3, 4, dtype="int16"), dtype("float32")),
    case(rand(3, 4, dtype="bfloat16"), dtype("int16")),
    case(rand(3, 4, dtype="bool"), dtype("uint8")),
    case(np.arange(4, dtype=np.uint8) % 2, dtype("bool")),
    case(rand(3, 4, dtype="complex64"), dtype("float32")),
    case(rand(3, 4), dtype("complex64")),
    case(rand(3, 4), dtype("float32")),
    case(SCALAR, dtype("int32")),
]
MOVE_INT = [case(X, 0, -1), case(X, -1, 0), case(SCALAR, 0, 0)]
MOVE_LIST = [case(X, [0, 1], [-1, 0]), case(X, [], [])]
ALIAS = [case(X, [6, 5], [5, 1]), case(X, [3, 10], [10, 1])]
VIEW_AS = [case(X, rand(5, 6)), case(SCALAR, rand(1)), case(EMPTY, rand(7, 0))]

CASES = {
    **dict.fromkeys(
        ["aten.view.default", "aten.view_copy.default", "aten._unsafe_view.default",
         "aten.reshape.default", "aten._reshape_copy.default"], VIEW),
    **dict.fromkeys(["aten._reshape_alias.default", "aten._reshape_alias_copy.default"], ALIAS),
    **dict.fromkeys(["aten.view_as.default", "aten.reshape_as.default"], VIEW_AS),
    "aten.flatten.using_ints": [
        case(X), case(X, 1), case(X, 0, 1), case(X, -2, -1), case(X, 1, 1), case(SCALAR),
        case(EMPTY), case(EMPTY, 1)],
    "aten.unflatten.int": [
        case(rand(2, 15), 1, [3, 5]), case(rand(15, 2), -2, [-1, 5]), case(rand(0, 3), 0, [0, 7])],
    **dict.fromkeys(["aten.view.dtype", "aten.view_copy.dtype"], BYTES),
    **dict.fromkeys(["aten.permute.default", "aten.permute_copy.default"], PERMUTE),
    **dict.fromkeys(
        ["aten.transpose.int", "aten.transpose_copy.int", "aten.swapaxes.default",
         "aten.swapdims.default"], TRANSPOSE),
    **dict.fromkeys(["aten.t.default", "aten.t_copy.default"], T),
    "aten.numpy_T.default": [case(rand(2, 3)), case(EMPTY)],
    "aten.mT.default": [case(X), case(rand(3, 2, dtype="int64"))],
    **dict.fromkeys(["aten.movedim.int", "aten.moveaxis.int"], MOVE_INT),
    **dict.fromkeys(["aten.movedim.intlist", "aten.moveaxis.intlist"], MOVE_LIST),
    "aten.expand.default": [*EXPAND, case(rand(1), [3], implicit=True)],
    "aten.expand_copy.default": EXPAND,
    "aten.broadcast_to.default": EXPAND,
    "aten.expand_as.default": [case(rand(3, 1), rand(2, 3, 5)), case(SCALAR, EMPTY)],
    "aten.broadcast_tensors.default": [
        case([rand(3, 1), rand(2, 1, 5, dtype="int64")]), case([X]), case([SCALAR, EMPTY])],
    **dict.fromkeys(["aten.unsqueeze.default", "aten.unsqueeze_copy.default"], UNSQUEEZE),
    **dict.fromkeys(["aten.squeeze.default", "aten.squeeze_copy.default"], SQUEEZE),
    **dict.fromkeys(["aten.squeeze.dim", "aten.squeeze_copy.dim"], SQUEEZE_DIM),
    **dict.fromkeys(["aten.squeeze.dims", "aten.squeeze_copy.dims"], SQUEEZE_DIMS),
    **dict.fromkeys(["aten.as_strided.default", "aten.as_strided_copy.default"], AS_STRIDED),
    **dict.fromkeys(["aten.unfold.default", "aten.unfold_copy.default"], UNFOLD),
    **dict.fromkeys(["aten.diagonal.default", "aten.diagonal_copy.default"], DIAGONAL),
    "aten.diag_embed.default": [
        case(rand(3)), case(rand(2, 3), 1), case(rand(2, 3), -2), case(rand(2, 3), 0, 0, 2),
        case(rand(2, 3), 1, -1, 0), case(rand(2, 0)), case(rand(3, dtype="bool"), 1),
        case(np.array([np.nan, np.inf], np.float32), 1)],
    "aten.diagflat.default": [
        case(rand(3)), case(rand(2, 3), 1), case(SCALAR, -1), case(rand(2, dtype="int64"), -2)],
    "aten.resize.default": [case(rand(2, 3), [3, 2]), case(rand(2, 3), [2, 2]), case(rand(3), [0])],
}  # fmt: skip
