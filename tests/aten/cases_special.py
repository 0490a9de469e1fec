"""Cases for special.py."""

import numpy as np

from tests.aten.cases_pointwise import EDGES
from tests.aten.harness import Case, case, rand

HALVES = ("bfloat16", "float16")


def _cases(low, high, *, halves=HALVES, ints=True, **kwargs) -> list[Case]:
    return [
        case(rand(2, 3, 5, low=low, high=high), **kwargs),
        case(rand(low=low, high=high), **kwargs),
        case(rand(0, 3), **kwargs),
        *(case(rand(7, dtype=d, low=low, high=high)) for d in halves),
        *([case(rand(7, dtype="int64", low=1, high=5), **kwargs)] if ints else []),
    ]


NO_HALF: tuple[str, ...] = ()
CASES: dict[str, list[Case]] = {
    "aten.erf.default": [*_cases(-3, 3), case(EDGES), case(rand(7, dtype="bool"))],
    "aten.erfc.default": [
        *_cases(-3, 3),
        case(EDGES),
        # a tail as small as 1e-20 must be relative
        case(rand(97, low=3, high=6), rtol=1e-4, atol=0),
    ],
    "aten.erfinv.default": [
        *_cases(-0.99, 0.99, ints=False),
        case(np.array([-1, -0.9999, 0, 0.9999, 1, 1.5, np.nan], np.float32)),
    ],
    "aten.lgamma.default": [*_cases(0.1, 5), case(rand(97, low=-4.9, high=30)), case(EDGES)],
    # near its poles digamma changes by 1e4 times the rounding of x
    "aten.digamma.default": [
        *_cases(0.1, 5),
        case(EDGES),
        case(rand(97, low=-3.9, high=3.9), rtol=1e-3),
    ],
    "aten.polygamma.default": [
        *(case(n, rand(2, 3, 5, low=0.2, high=5)) for n in (0, 1, 2, 3)),
        *(case(n, rand(97, low=-3.8, high=0.4), rtol=1e-3) for n in (1, 2, 3)),  # as digamma
        *(case(n, np.array([-2, -1, 0.0, 0.5, 1], np.float32)) for n in (2, 3)),
        case(1, rand(7, dtype="int64", low=1, high=5)),
        case(2, rand(7, dtype="bfloat16", low=0.5, high=5)),
    ],
    "aten.mvlgamma.default": [
        *(case(rand(2, 3, low=2, high=9), p) for p in (1, 2, 3)),
        case(rand(7, dtype="int64", low=3, high=9), 3),
    ],
    "aten.i0.default": [*_cases(-5, 5), case(rand(97, low=-30, high=30))],
    "aten.special_i0e.default": [*_cases(-5, 5), case(rand(97, low=-50, high=50))],
    "aten.special_i1.default": [*_cases(-5, 5, halves=NO_HALF), case(rand(97, low=-30, high=30))],
    "aten.special_i1e.default": [*_cases(-5, 5, halves=NO_HALF), case(rand(97, low=-50, high=50))],
    "aten.special_entr.default": [*_cases(0, 3), case(EDGES)],
    "aten.special_ndtr.default": [*_cases(-5, 5), case(EDGES)],
    "aten.special_log_ndtr.default": [
        *_cases(-5, 5, halves=NO_HALF),
        case(EDGES),
        case(rand(97, low=-30, high=9)),
    ],
    "aten.special_ndtri.default": [
        *_cases(0.01, 0.99, halves=NO_HALF, ints=False),
        case(np.array([-0.5, 0, 1e-6, 0.5, 1, 1.5, np.nan], np.float32)),
    ],
    "aten.special_erfcx.default": [
        *_cases(-2, 5, halves=NO_HALF),
        case(EDGES),
        case(rand(97, low=-5, high=20)),
        case(np.array([4.99, 5, 5.01, 100, 1e15, 1e30], np.float32), atol=0),
    ],
    "aten.special_zeta.default": [
        case(rand(2, 3, low=1.5, high=5), rand(3, low=0.5, high=4)),
        case(rand(7, dtype="int64", low=2, high=5), rand(7, low=0.5, high=4)),
        case(np.arange(-1, 5)[:, None], np.arange(-3, 3)),
        case(np.arange(2.0, 5, dtype=np.float32)[:, None], rand(13, low=-3.9, high=0), rtol=1e-4),
        case(np.array([2.5, 0.5, -1], np.float32), np.array([-0.5, -0.5, 0.5], np.float32)),
    ],
    "aten.special_zeta.other_scalar": [case(rand(2, 3, low=1.5, high=5), 2)],
    "aten.special_zeta.self_scalar": [case(3, rand(2, 3, low=0.5, high=5))],
}
for _name in ("igamma", "igammac"):
    CASES[f"aten.{_name}.default"] = [
        case(rand(2, 3, low=0.1, high=5), rand(3, low=0.1, high=5)),
        case(rand(97, low=0.1, high=5), rand(97, low=0.1, high=5, seed=1)),
        case(rand(7, dtype="bfloat16", low=0.1, high=5), rand(7, dtype="bfloat16", low=0.1)),
    ]
