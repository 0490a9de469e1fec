"""Programs on which every transform is tried.

Each is a pure function with parameters, inputs at any batch size, and what a weight-only
quantizer has to say of every parameter: it is a site (and over which of its own axes the
product sums), it is blocked (and by which primitive), or nothing uses it. Sizes are unequal,
and most of them prime, so that no guess by shape can be right, except where equal sizes are
the point. ``test_programs.py`` proves the rows; the laws are elsewhere.

Equinox is not installed: ``dataclass_module`` stands for it.
"""

from collections.abc import Mapping

from tests.laws import (
    programs_control,
    programs_convolutions,
    programs_models,
    programs_products,
)
from tests.laws._program import TABLE, Program, Use

FAMILIES = (programs_products, programs_convolutions, programs_control, programs_models)

PROGRAMS: Mapping[str, Program] = TABLE

__all__ = ["FAMILIES", "PROGRAMS", "Program", "Use"]
