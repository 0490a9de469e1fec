"""Sizes and assertions: Python integers in the graph (``sym_size``, ``operator.add``).

Sizes are static in JAX, so these rules compute with plain integers while tracing. Assertions
on sizes are checked then; assertions on values cannot be, and do nothing (docs/limits).
"""

from __future__ import annotations

import math
import operator
from typing import Any

from jaxinfer_converters.aten._common import Array, is_array, rule

for _name in ("add", "sub", "mul", "floordiv", "truediv", "mod", "neg", "pow",
              "eq", "ne", "lt", "le", "gt", "ge", "and_", "or_", "not_"):  # fmt: skip
    rule(f"operator.{_name}")(getattr(operator, _name))


@rule("operator.getitem")
def getitem(values: Any, index: int) -> Any:
    """values[index]: one result of an operator with several."""
    return values[index]
