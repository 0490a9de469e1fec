"""Cases for factors.py."""

import numpy as np

from tests.aten.harness import case, covered_by, rand

REFLECTORS = np.tril(rand(2, 5, 3), -1) * 0.3
TAU = rand(2, 3, low=0.5, high=1.5)
PACKED = rand(2, 4, 4)
PIVOTS = np.array([[3, 2, 4, 4], [1, 4, 3, 4]], np.int32)

CASES = {
    "aten.geqrf.default": [
        *(case(rand(*shape)) for shape in ((4, 4), (5, 3), (3, 5), (2, 4, 3), (0, 3), (2, 3, 0))),
        case(rand(4, 3, dtype="complex64")),
    ],
    "aten.linalg_householder_product.default": [
        case(REFLECTORS, TAU),
        case(REFLECTORS[0], TAU[0, :2]),
        case(rand(4, 4) * 0.3, rand(3)),
        case(rand(0, 0), rand(0)),
    ],
    "aten.orgqr.default": [case(REFLECTORS, TAU)],
    "aten.ormqr.default": [
        case(REFLECTORS, TAU, rand(2, 5, 4)),
        case(REFLECTORS, TAU, rand(2, 5, 4), True, True),
        case(REFLECTORS, TAU, rand(2, 4, 5), False),
        case(REFLECTORS[0], TAU[0], rand(4, 5), False, True),
        case(rand(0, 0, 5), rand(0, 0), rand(0, 0, 5)),
        case(rand(2, 5) * 0.3, rand(2), rand(5, 2), False),
    ],
    "aten.lu_unpack.default": [
        case(PACKED, PIVOTS),
        case(PACKED[:, :, :3], PIVOTS[:, :3]),
        case(PACKED[:, :3], np.minimum(PIVOTS[:, :3], 3)),
        case(PACKED, PIVOTS, False),
        case(PACKED, PIVOTS, True, False),
    ],
    "aten.linalg_eig.default": [
        covered_by("aten/test_factors.py::test_eigenvectors_of_any_matrix")
    ],
    "aten.linalg_eigvals.default": [
        covered_by("aten/test_factors.py::test_eigenvectors_of_any_matrix")
    ],
    "aten._linalg_eigvals.default": [
        covered_by("aten/test_factors.py::test_eigenvectors_of_any_matrix")
    ],
}
