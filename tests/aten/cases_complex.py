"""Cases for complex.py."""

from tests.aten.cases_pointwise import EDGES
from tests.aten.harness import Case, case, rand

Z = rand(2, 3, 5, dtype="complex64")
ALL = [case(Z), case(rand(dtype="complex64")), case(rand(0, 3, dtype="complex64"))]
REAL = [case(rand(2, 3)), case(rand(3, dtype="int64")), case(rand(3, dtype="bfloat16"))]

CASES: dict[str, list[Case]] = {
    "aten.real.default": [*ALL, *REAL],
    "aten.imag.default": ALL,
    "aten.view_as_real.default": ALL,
    "aten.view_as_real_copy.default": ALL,
    "aten.angle.default": [*ALL, *REAL, case(EDGES), case(rand(7, dtype="bool"))],
    "aten._neg_view.default": [*ALL, case(rand(2, 3))],
    "aten._neg_view_copy.default": [*ALL, case(rand(2, 3))],
    "aten.complex.default": [
        case(rand(2, 3), rand(3)),
        case(rand(), rand(7)),
        case(rand(0, 3), rand(3)),
    ],
    "aten.polar.default": [case(rand(2, 3, low=0), rand(3)), case(rand(), rand(7, low=-7, high=7))],
}
for _name in ("conj", "conj_physical", "_conj", "_conj_copy", "_conj_physical", "resolve_conj",
              "resolve_neg"):  # fmt: skip
    CASES[f"aten.{_name}.default"] = ALL
for _name in ("conj", "conj_physical", "resolve_conj", "resolve_neg"):
    CASES[f"aten.{_name}.default"] = [*ALL, *REAL]
for _name in ("view_as_complex", "view_as_complex_copy"):
    CASES[f"aten.{_name}.default"] = [
        case(rand(2, 3, 2)),
        case(rand(2)),
    ]
