"""Cases for upsample.py. Sizes and scales that do not divide, grow, shrink and stay."""

import numpy as np

from tests.aten.harness import case, rand

SHAPES = {1: (7,), 2: (7, 11), 3: (5, 7, 4)}
SIZES = ([14, 22, 8], [3, 5, 2], [13, 8, 9], [7, 11, 4], [1, 1, 1], [21, 1, 5])
FACTORS = ([2.0, 2.0, 2.0], [1.7, 0.6, 2.3], [0.35, 3.1, 1.0])
HALF = ("bfloat16", "float16")


def _nearest(nd, vec, dtypes):
    x = rand(2, 3, *SHAPES[nd])
    if vec:
        return [
            case(x, SIZES[2][:nd], None),
            *(case(x, None, factors[:nd]) for factors in FACTORS),
        ]
    return [
        *(case(x, size[:nd]) for size in SIZES),
        case(x[:0], SIZES[0][:nd]),
        # The scale counts, not the ratio of the sizes.
        case(x, SIZES[2][:nd], *(1.9, 0.7, 2.1)[:nd]),
        case(x, SIZES[0][:nd], *(2.0,) * nd),
        *(case(rand(2, 3, *SHAPES[nd], dtype=d), SIZES[2][:nd]) for d in dtypes),
    ]


def _smooth(nd, vec, dtypes=HALF, sizes=SIZES):
    # bfloat16: torch rounds between the axes, an ulp (2^-8) of values up to 3.
    x = rand(2, 3, *SHAPES[nd])
    cases = []
    for align in (False, True):
        if vec:
            cases += [
                case(x, SIZES[2][:nd], align, None),
                *(case(x, None, align, factors[:nd]) for factors in FACTORS),
            ]
            continue
        cases += [
            *(case(x, size[:nd], align) for size in sizes),
            case(x[:0], SIZES[0][:nd], align),
            case(x, SIZES[2][:nd], align, *(1.9, 0.7, 2.1)[:nd]),
            case(x, SIZES[3][:nd], align, *(1.1, 1.05, 1.2)[:nd]),
            *(case(rand(2, 3, *SHAPES[nd], dtype=d), SIZES[2][:nd], align) for d in dtypes),
        ]
    return cases


def _bytes():
    """uint8: torch weights in 16 bits and rounds between the axes, so 1 off now and then."""
    x = rand(2, 3, 7, 11, dtype="uint8", low=0, high=256)
    return [case(x, [14, 9], False, atol=1), case(x, [3, 23], False, atol=1)]


def _far():
    """Shrinking much, an infinite value: where it is outside of a window it must not be seen."""
    x = rand(1, 2, 61, 47)
    x[0, 1, 60, 46] = np.inf
    x[0, 0, 28, 21] = np.inf
    return [case(x, [5, 7], False), case(x, [61, 9], False), case(x, [70, 50], False)]


CASES = {}
for nd in (1, 2, 3):
    # uint8 is a case where torch has it in the same layout for every dimension.
    CASES[f"aten.upsample_nearest{nd}d.default"] = _nearest(nd, False, (*HALF, "uint8"))
    CASES[f"aten.upsample_nearest{nd}d.vec"] = _nearest(nd, True, ())
    CASES[f"aten._upsample_nearest_exact{nd}d.default"] = _nearest(nd, False, (*HALF, "uint8"))
    CASES[f"aten._upsample_nearest_exact{nd}d.vec"] = _nearest(nd, True, ())
for nd, name in ((1, "linear1d"), (2, "bilinear2d"), (2, "bicubic2d"), (3, "trilinear3d")):
    CASES[f"aten.upsample_{name}.default"] = _smooth(nd, False)
    CASES[f"aten.upsample_{name}.vec"] = _smooth(nd, True)
for name in ("bilinear", "bicubic"):
    CASES[f"aten.upsample_{name}2d.default"] += _bytes()
for name in ("bilinear", "bicubic", "lanczos"):
    # torch has no half types here on a CPU, and (2.13) repeats the first row where the output
    # is one column wide and higher than one: no case of that.
    CASES[f"aten._upsample_{name}2d_aa.default"] = [
        *_smooth(2, False, (), SIZES[:-1]),
        *_far(),
        *_bytes(),
    ]
    CASES[f"aten._upsample_{name}2d_aa.vec"] = _smooth(2, True)
