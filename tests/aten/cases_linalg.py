"""Cases for aten/linalg.py. Factors with free signs are compared by what they multiply to."""

import numpy as np

from tests.aten.harness import Case, case, covered_by, rand

LOOSE = {"rtol": 2e-4, "atol": 2e-4}  # conditioning: the matrices have condition numbers near 10


def well(*shape, seed=0, dtype="float32"):
    """A well-conditioned matrix: random plus three times the identity."""
    return (rand(*shape, dtype=dtype, seed=seed) + 3 * np.eye(shape[-1])).astype(dtype)


def positive(*shape, dtype="float32"):
    x = well(*shape, dtype=dtype)
    return (x @ np.conj(np.swapaxes(x, -1, -2))).astype(dtype)


A = well(5, 5)
BATCH = well(2, 3, 5, 5)
COMPLEX = well(3, 3, dtype="complex64")
SINGULAR = np.array([[[1, 2], [2, 4]], [[1, 2], [3, 4]], [[0, 0], [0, 1]]], np.float32)
SPD = [positive(5, 5), positive(2, 3, 3), positive(3, 3, dtype="complex64")]
TALL, WIDE = rand(2, 7, 3), rand(2, 3, 7)
LOWER = np.tril(A)
HERMITIAN = [x + np.conj(np.swapaxes(x, -1, -2)) for x in (A, BATCH, COMPLEX)]
PIVOTS = np.array([3, 2, 3, 5, 5], np.int32)
EMPTY = rand(0, 0)

_square = [case(x, **LOOSE) for x in (A, BATCH, COMPLEX)]
_rebuilt = covered_by("aten/test_factors.py::test_factors_multiply_to_the_matrix")
_solve = [
    case(A, rand(5, 2), **LOOSE),
    case(A, rand(5), **LOOSE),
    case(BATCH, rand(2, 3, 5), **LOOSE),
    case(BATCH, rand(3, 5, 2), **LOOSE),
    case(A, rand(2, 5), left=False, **LOOSE),
    case(COMPLEX, rand(3, 2, dtype="complex64"), **LOOSE),
    case(EMPTY, rand(0, 2)),
]
_cholesky = [
    *(case(x, **LOOSE) for x in SPD),
    case(np.tril(SPD[0]), **LOOSE),  # only the triangle is read
    case(EMPTY),
]
_upper = [case(x, upper=True, **LOOSE) for x in (*SPD, np.triu(SPD[0]))]


def _ranked(x, **options):
    """A pseudo-inverse with torch's own keyword ``atol``, which ``case`` takes for itself."""
    return Case((x,), options, **LOOSE)


_power = [case(x, n, **LOOSE) for x in (A, BATCH) for n in (0, 1, 2, 5, -1, -3)]
_det = [*_square, case(SINGULAR), case(EMPTY), case(well(2, 2)), case(well(7, 7), **LOOSE)]
_pinv = [TALL, WIDE, SINGULAR, A]
_rtol = np.array(0.05, np.float32)

CASES = {
    "aten.linalg_inv.default": [*_square, case(EMPTY)],
    "aten.inverse.default": _square,
    "aten.linalg_inv_ex.default": [*_square, case(SINGULAR, compare=(1,)), case(EMPTY)],
    "aten.linalg_solve.default": _solve,
    "aten.linalg_solve_ex.default": [*_solve, case(SINGULAR, rand(3, 2, 1), compare=(1,))],
    "aten._linalg_solve_ex.default": [
        case(A, rand(5, 2), **LOOSE),
        case(BATCH, rand(2, 3, 5, 2), **LOOSE),
        case(A, rand(2, 5), left=False, compare=(0, 3), **LOOSE),
    ],
    "aten.cholesky.default": [*_cholesky, *(case(x, True, **LOOSE) for x in SPD)],
    "aten.linalg_cholesky.default": [*_cholesky, *_upper],
    "aten.linalg_cholesky_ex.default": [*_cholesky, *_upper, case(-SPD[0], compare=(1,))],
    "aten.linalg_solve_triangular.default": [
        case(A, rand(5, 2), upper=True, **LOOSE),
        case(A, rand(5, 2), upper=False, **LOOSE),
        case(A, rand(2, 5), upper=True, left=False, **LOOSE),
        case(A * 0.2, rand(5, 2), upper=True, unitriangular=True, **LOOSE),
        case(BATCH, rand(5, 2), upper=True, **LOOSE),
        case(COMPLEX, rand(3, 2, dtype="complex64"), upper=False, **LOOSE),
        case(EMPTY, rand(0, 2), upper=True),
    ],
    "aten.triangular_solve.default": [
        case(rand(5, 2), A, **LOOSE),
        case(rand(5, 2), A, False, **LOOSE),
        case(rand(5, 2), A, True, True, **LOOSE),
        case(rand(5, 2), A * 0.2, False, False, True, **LOOSE),
        case(rand(3, 5, 2), BATCH[0], **LOOSE),
    ],
    "aten.cholesky_solve.default": [
        case(rand(5, 2), LOWER, **LOOSE),
        case(rand(5, 2), LOWER.T.copy(), True, **LOOSE),
        case(rand(3, 2, dtype="complex64"), np.tril(COMPLEX), **LOOSE),
    ],
    "aten.cholesky_inverse.default": [
        case(LOWER, **LOOSE),
        case(LOWER.T.copy(), True, **LOOSE),
        case(np.tril(BATCH), **LOOSE),
    ],
    "aten.linalg_lu.default": [case(x, **LOOSE) for x in (A, BATCH, COMPLEX, TALL, WIDE)],
    "aten.linalg_lu_factor.default": [case(x, **LOOSE) for x in (A, BATCH, COMPLEX, TALL)],
    "aten.linalg_lu_factor_ex.default": [*_square, case(SINGULAR, compare=(2,))],
    "aten.linalg_lu_solve.default": [
        case(
            lu,
            np.broadcast_to(PIVOTS, lu.shape[:-1]).copy(),
            rand(*shape),
            left=left,
            adjoint=adjoint,
            **LOOSE,
        )
        for lu in (A, BATCH)
        for left, shape in ((True, (2, 3, 5, 2)), (False, (2, 3, 2, 5)))
        for adjoint in (False, True)
    ]
    + [
        case(COMPLEX, PIVOTS[:3], rand(*shape, dtype="complex64"), left=left, adjoint=True, **LOOSE)
        for left, shape in ((True, (3, 2)), (False, (2, 3)))
    ],
    "aten.linalg_qr.default": [
        *(case(x, mode, compare=()) for x in (TALL, WIDE, A) for mode in ("reduced", "complete")),
        case(TALL, "r", compare=(0,)),
        _rebuilt,
    ],
    "aten.qr.default": [_rebuilt],
    "aten.linalg_svd.default": [
        *(case(x, full, compare=(1,), **LOOSE) for x in (TALL, WIDE, A) for full in (True, False)),
        _rebuilt,
    ],
    "aten.linalg_svdvals.default": [case(x, **LOOSE) for x in (TALL, WIDE, A, COMPLEX)],
    "aten._linalg_svd.default": [
        *(case(x, compare=(1,), **LOOSE) for x in (TALL, WIDE, COMPLEX)),
        case(TALL, False, False, **LOOSE),
        _rebuilt,
    ],
    "aten.linalg_eigh.default": [
        *(case(x, compare=(0,), **LOOSE) for x in HERMITIAN),
        case(A, "L", compare=(0,), **LOOSE),
        case(A, "U", compare=(0,), **LOOSE),
        _rebuilt,
    ],
    "aten.linalg_eigvalsh.default": [
        *(case(x, **LOOSE) for x in HERMITIAN),
        case(A, "U", **LOOSE),
        case(A, "L", **LOOSE),
    ],
    "aten._linalg_eigh.default": [
        *(case(x, compare=(0,), **LOOSE) for x in HERMITIAN),
        case(HERMITIAN[0], "U", False, **LOOSE),
        _rebuilt,
    ],
    # products of up to 7 pivots of size 3: errors scale with the result, not with 1
    "aten.linalg_det.default": _det,
    # torch factors the transpose if that lies better: the LU is compared with nothing
    "aten._linalg_det.default": [case(*c.args, compare=(0,), **LOOSE) for c in _square],
    "aten.linalg_slogdet.default": _det,
    "aten.slogdet.default": _det,
    # torch factors the transpose if that lies better: the LU is compared with nothing
    "aten._linalg_slogdet.default": [case(*c.args, compare=(0, 1), **LOOSE) for c in _square],
    "aten.linalg_matrix_exp.default": [case(x / 2, **LOOSE) for x in (A, BATCH, COMPLEX)]
    + [case(EMPTY)],
    "aten.linalg_matrix_power.default": _power,
    "aten.matrix_power.default": _power,
    "aten.linalg_pinv.default": [case(x, 1e-5, **LOOSE) for x in _pinv]
    + [case(TALL, 0.5, **LOOSE), case(HERMITIAN[0], 1e-5, True, **LOOSE)],
    "aten.linalg_pinv.rcond_tensor": [case(x, _rtol, **LOOSE) for x in _pinv],
    "aten.linalg_pinv.atol_rtol_float": [
        *(case(x, **LOOSE) for x in _pinv),
        _ranked(TALL, atol=2.5),
        _ranked(TALL, rtol=0.5),
        _ranked(TALL, atol=0.1, rtol=0.5),
        case(HERMITIAN[1], hermitian=True, **LOOSE),
        case(rand(2, 0, 3)),
    ],
    "aten.linalg_pinv.atol_rtol_tensor": [
        *(case(x, **LOOSE) for x in _pinv),
        _ranked(TALL, atol=np.array([0.1, 2.5], np.float32)),
        _ranked(TALL, rtol=_rtol),
    ],
}
