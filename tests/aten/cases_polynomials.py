"""Cases for polynomials.py."""

import numpy as np

from tests.aten.harness import Case, case, rand

ORDERS = np.arange(-2, 12)[:, None].astype(np.int64)
ENDS = np.array([-1, -0.0, 0, 0.5, 1, 3], np.float32)
NAMES = (
    *(f"{shift}chebyshev_polynomial_{k}" for shift in ("", "shifted_") for k in "tuvw"),
    *("hermite_polynomial_h", "hermite_polynomial_he"),
    *("laguerre_polynomial_l", "legendre_polynomial_p"),
)
# Values grow like x^n (Hermite's to 1e10 here), and so do their roundings.
LOOSE = {"rtol": 1e-4, "atol": 1e-4}
CASES: dict[str, list[Case]] = {}
for _name in NAMES:
    CASES[f"aten.special_{_name}.default"] = [
        case(rand(13, low=-0.99, high=0.99), ORDERS, **LOOSE),
        case(rand(7, low=-3, high=3), ORDERS[:8], **LOOSE),
        case(ENDS, ORDERS, **LOOSE),
        case(rand(5, low=-0.9, high=0.9), np.full(5, 40), rtol=1e-3, atol=1e-3),  # conditioning
        case(rand(3, 4), rand(3, 4, low=0, high=5), **LOOSE),  # orders are truncated
        case(np.array([2.0, -2.0], np.float32), np.array([-1, 0])),
        case(rand(7, dtype="int64"), rand(7, dtype="int64", low=0, high=4), **LOOSE),
        case(rand(0, 3), rand(3)),
    ]
    CASES[f"aten.special_{_name}.x_scalar"] = [case(0.3, ORDERS, **LOOSE), case(2, ORDERS[:5])]
    CASES[f"aten.special_{_name}.n_scalar"] = [case(rand(7, low=-2, high=2), 4, **LOOSE)]
for _name in ("hermite_polynomial_h", "hermite_polynomial_he"):  # 1e30 at n = 40
    CASES[f"aten.special_{_name}.default"][3] = case(rand(5), np.full(5, 12), rtol=1e-3, atol=1)
    CASES[f"aten.special_{_name}.default"].append(case(rand(3), np.full(3, 129)))
