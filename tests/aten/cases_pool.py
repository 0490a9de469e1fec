"""Cases for pool.py."""

import numpy as np

from tests.aten.harness import case, rand

SHAPES = {1: (13,), 2: (13, 8), 3: (7, 8, 6)}
KERNELS = {1: [3], 2: [3, 2], 3: [2, 3, 2]}
DTYPES = ("bfloat16", "float16", "int32", "uint8", "int64")


def _nans(*shape):
    x = rand(*shape)
    x[rand(*shape, seed=1) > 1.2] = np.nan
    x[..., 0] = -np.inf
    return x


def _max(nd, integers=True):
    size, kernel = SHAPES[nd], KERNELS[nd]
    x = rand(2, 3, *size)
    return [
        case(x, kernel),
        case(x, [2], [1]),
        case(x, kernel, [2] * nd, [1] * nd),
        case(x, [3], [2], [1], [2]),
        case(x, [3] * nd, [2] * nd, [1] * nd, [1] * nd, True),
        case(x, [2], [3], [1], [1], True),
        case(x, [3], [2], [1], [3], True),
        case(x[0], kernel),
        case(x[:0], kernel),
        case(_nans(2, 3, *size), [3], [1], [1]),
        case(np.full((1, 2, *size), -np.inf, np.float32), [3], [2], [1], [2], True),
        # Equal values: the first in row order wins.
        case(rand(2, 3, *size, low=0, high=2, dtype="int32").astype("float32"), [3], [2], [1]),
        *(
            case(rand(2, 3, *size, dtype=d), [3], [2], [1], [1], True)
            for d in DTYPES
            if integers or "int" not in d
        ),
    ]


def _avg(nd, more):
    size, kernel = SHAPES[nd], KERNELS[nd]
    x = rand(2, 3, *size)
    cases = [
        case(x, kernel),
        case(x, [2], [1]),
        case(x, kernel, [2] * nd, [1] * nd),
        case(x, [3], [2], [1], True),
        case(x, [3], [2], [1], True, False),
        case(x, [2], [3], [1], True, False),
        case(x, [4], [3], [2], True, True),
        case(x[0], [3], [2], [1], False, False),
        case(x[:0], kernel),
        case(rand(2, 3, *size, dtype="int64"), [3], [2], [1]),
    ]
    if nd < 3:  # torch has no avg_pool3d of half types on a CPU
        cases += [case(rand(2, 3, *size, dtype=d), [3], [2], [1]) for d in ("bfloat16", "float16")]
    if more:
        cases += [case(x, [3], [2], [1], True, False, 7), case(x, [3], [2], [1], True, True, -2)]
    return cases


def _adaptive(nd, dtypes=("bfloat16", "float16")):
    size = SHAPES[nd]
    x = rand(2, 3, *size)
    outs = ([1] * nd, [5] * nd, [17] * nd, list(size), [2, 4, 3][:nd])
    return [
        *(case(x, out) for out in outs),
        case(rand(2, 3, *(8, 6, 4)[:nd]), [2] * nd),
        case(x[0], [5] * nd),
        case(x[:0], [5] * nd),
        case(_nans(2, 3, *size), [4] * nd),
        *(case(rand(2, 3, *size, dtype=d), [4] * nd) for d in dtypes),
    ]


def _fractional(nd):
    size = SHAPES[nd]
    samples = rand(2, 3, nd, low=0.0, high=1.0)
    return [
        case(rand(2, 3, *size), [2] * nd, [5, 4, 3][:nd], samples),
        case(rand(2, 3, *size), [3, 2, 2][:nd], [3, 1, 2][:nd], samples),
        case(rand(3, *size), [2] * nd, [4, 3, 2][:nd], samples[:1]),
    ]


UNPOOL_PLACES = np.array([[[[0, 5], [17, 3]], [[19, 8], [1, 11]]]], np.int64)

CASES = {
    **{f"aten.max_pool{nd}d.default": _max(nd, nd > 1) for nd in (1, 2, 3)},
    **{f"aten.max_pool{nd}d_with_indices.default": _max(nd) for nd in (1, 2, 3)},
    **{f"aten.avg_pool{nd}d.default": _avg(nd, nd > 1) for nd in (1, 2, 3)},
    **{f"aten.adaptive_avg_pool{nd}d.default": _adaptive(nd) for nd in (1, 2, 3)},
    **{f"aten._adaptive_avg_pool{nd}d.default": _adaptive(nd) for nd in (2, 3)},
    **{f"aten.adaptive_max_pool{nd}d.default": _adaptive(nd) for nd in (1, 2, 3)},
    **{f"aten.fractional_max_pool{nd}d.default": _fractional(nd) for nd in (2, 3)},
    "aten.max_unpool2d.default": [
        case(rand(1, 2, 2, 2), UNPOOL_PLACES, [4, 5]),
        case(rand(2, 2, 2), UNPOOL_PLACES[0], [5, 4]),
        case(rand(1, 2, 2, 2, dtype="bfloat16"), UNPOOL_PLACES, [4, 5]),
    ],
    "aten.max_unpool3d.default": [
        case(rand(2, 1, 2, 2), UNPOOL_PLACES[0][:, None], [1, 5, 4], [1, 2, 2], [0, 0, 0]),
    ],
}
