"""Cases for aten/sort.py."""

import numpy as np

from tests.aten.harness import case, covered_by, rand

REFUSED = [
    covered_by("aten/test_data_dependent.py::test_operators_of_data_dependent_shape_are_refused")
]
X = rand(2, 7, 3)
TIES = rand(3, 11, dtype="int64", low=0, high=4)
inf, nan = np.inf, np.nan
ODD = np.array([3.0, nan, -inf, 1.0, -nan, inf, 0.0, -0.0], np.float32)
EMPTY = rand(0, 3)
SCALAR = rand()
INPUTS = [X, TIES, ODD, ODD.astype(np.float16), EMPTY, SCALAR, rand(5, dtype="bool"),
          rand(2, 11, dtype="bfloat16"), rand(5, dtype="uint8"), rand(5, 1)]  # fmt: skip
DIMS = [(X, 1), (X, 0), (TIES, -2), (EMPTY, 0)]


def stable(**kwargs):
    return [
        *(case(x, descending=down, **kwargs) for x in INPUTS for down in (False, True)),
        *(case(x, dim=dim, descending=True, **kwargs) for x, dim in DIMS),
    ]


# torch's own order of equal elements is open without stable: distinct elements only
DISTINCT = [X, SCALAR, EMPTY, rand(5, dtype="bfloat16")]
UNSTABLE = [
    case(X), case(X, 1, True), case(X, 0), case(SCALAR), case(EMPTY, -1, True),
    case(np.array([3.0, nan, -inf, 1.0, inf], np.float32), 0, True)]  # fmt: skip
WIDE = rand(3, 101)
SPECIAL = np.array([[3.0, nan, -inf, 1.0, inf], [nan, 2.0, inf, -1.0, 0.0]], np.float32)
# the integers 0..10 in some order
SHUFFLED = np.argsort(rand(2, 11), axis=-1)


def values_only(*args, **kwargs):
    """Of equal elements torch may name any index."""
    return case(*args, compare=(0,), **kwargs)


MEDIAN = [
    case(X, 1), case(X, -1, True), case(rand(3, 4), 1), case(SCALAR, 0), case(SHUFFLED, 1),
    case(SPECIAL, 1), case(SPECIAL[0], 0, True), values_only(TIES, 1), case(rand(0, 3), 1),
    case(rand(5, dtype="bfloat16"), 0)]  # fmt: skip
MEDIAN_ALL = [case(X), case(rand(3, 4)), case(SPECIAL), case(SCALAR), case(rand(0)), case(TIES),
              case(rand(4, dtype="float16"))]  # fmt: skip


def unordered(x, k, dim):
    """With sorted=False the k largest come in any order: compare as sets."""

    def check(outputs):
        values, index = outputs
        np.testing.assert_array_equal(np.take_along_axis(x, index, dim), values)
        size = x.shape[dim]
        want = np.take(np.sort(x, axis=dim), range(size - k, size), axis=dim)
        np.testing.assert_array_equal(np.sort(values, axis=dim), want)

    return case(x, k, dim, True, False, check=check)


CASES = {
    **dict.fromkeys(
        ["aten._unique.default", "aten._unique2.default", "aten.unique_dim.default",
         "aten.unique_consecutive.default", "aten.unique_dim_consecutive.default"], REFUSED),
    "aten.sort.default": UNSTABLE,
    "aten.sort.stable": [*stable(stable=True), case(X, stable=None)],
    "aten.argsort.default": UNSTABLE,
    "aten.argsort.stable": stable(stable=True),
    "aten.msort.default": [case(X), case(TIES), case(ODD), case(SCALAR), case(EMPTY)],
    "aten.topk.default": [
        *(case(X, 2, dim, largest) for dim in (-1, 0, 1) for largest in (True, False)),
        *(case(SPECIAL, 4, -1, largest) for largest in (True, False)),
        *(case(SPECIAL.astype(np.float16), 4, -1, largest) for largest in (True, False)),
        *(case(SHUFFLED.astype(kind), 3, 1, largest)
          for kind in (np.int64, np.int8, np.uint8) for largest in (True, False)),
        case(WIDE, 100), case(WIDE, 0), case(SCALAR, 1), values_only(TIES, 5),
        values_only(rand(2, 11, dtype="bfloat16"), 3),
        unordered(WIDE, 7, 1), case(rand(0, 3), 2),
        case(np.array([-(2**31), 2**31 - 1, 0]), 2, -1, False)],
    "aten.kthvalue.default": [
        case(X, 2), case(X, 7, 1, True), case(SHUFFLED, 5, -1), case(SPECIAL, 4),
        values_only(TIES, 3, 0), case(SCALAR, 1), case(rand(0, 3), 1),
        case(rand(5, dtype="bfloat16"), 1)],
    **dict.fromkeys(["aten.median.dim", "aten.nanmedian.dim"], MEDIAN),
    **dict.fromkeys(["aten.median.default", "aten.nanmedian.default"], MEDIAN_ALL),
    "aten.mode.default": [
        case(TIES), case(TIES, 0, True), case(X, 1), case(SCALAR), case(rand(7, dtype="bool")),
        case(np.array([[2.0, 1, 2, 1, 3], [5, 5, nan, nan, nan]], np.float32)), case(rand(5, 1))],
}  # fmt: skip
