"""Cases for bessel.py."""

import numpy as np

from tests.aten.harness import Case, case, rand

EDGES = np.array([-np.inf, -1.0, -0.0, 0.0, 1e-6, 2, 5, 5.0001, 80, np.inf, np.nan], np.float32)


def _cases(low, high, edges=EDGES) -> list[Case]:
    return [
        case(rand(2, 3, 5, low=low, high=high)),
        case(rand(97, low=low, high=high)),
        case(rand(97, low=low / 10, high=high / 10)),
        case(rand(low=low, high=high)),
        case(rand(0, 3)),
        case(rand(7, dtype="int64", low=1, high=9)),
        case(rand(7, dtype="bool")),
        case(edges),
    ]


FINITE = EDGES[np.isfinite(EDGES)]
CASES: dict[str, list[Case]] = {
    # torch's J at infinity is the NaN of a cosine, as here
    "aten.special_bessel_j0.default": _cases(-30, 30),
    "aten.special_bessel_j1.default": _cases(-30, 30),
    "aten.special_bessel_y0.default": _cases(0.01, 30),
    "aten.special_bessel_y1.default": _cases(0.1, 30),
    "aten.special_modified_bessel_i0.default": _cases(-9, 9, FINITE[:-1]),
    "aten.special_modified_bessel_i1.default": _cases(-9, 9, FINITE[:-1]),
    "aten.special_modified_bessel_k0.default": _cases(0.01, 9),
    "aten.special_modified_bessel_k1.default": _cases(0.1, 9),
    "aten.special_scaled_modified_bessel_k0.default": _cases(0.01, 30),
    "aten.special_scaled_modified_bessel_k1.default": _cases(0.1, 30),
    "aten.special_airy_ai.default": _cases(-9, 9),
    "aten.special_spherical_bessel_j0.default": _cases(-30, 30),
}
