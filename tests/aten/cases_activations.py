"""Cases for activations.py."""

import numpy as np

from tests.aten.cases_pointwise import EDGES
from tests.aten.harness import Case, case, rand

WIDE = np.concatenate([np.linspace(-30, 30, 61), [-100, 100, -0.0]]).astype(np.float32)
INPUTS = [
    rand(2, 3, 5, low=-5, high=5),
    rand(low=-5, high=5),
    rand(0, 3),
    rand(97, dtype="bfloat16", low=-5, high=5),
    rand(97, dtype="float16", low=-5, high=5),
    WIDE,
    EDGES,
]
INT = rand(7, dtype="int64", low=-9, high=9)


def _cases(*numbers, inputs=INPUTS, **kwargs) -> list[Case]:
    return [case(x, *numbers, **kwargs) for x in inputs]


CASES: dict[str, list[Case]] = {
    f"aten.{name}.default": _cases()
    for name in [
        "celu",
        "elu",
        "hardshrink",
        "hardsigmoid",
        "hardswish",
        "hardtanh",
        "leaky_relu",
        "log_sigmoid",
        "log_sigmoid_forward",
        "mish",
        "relu",
        "relu6",
        "selu",
        "sigmoid",
        "silu",
        "softplus",
        "softshrink",
        "tanh",
    ]
}
for _name in ("relu", "sigmoid", "tanh", "relu6", "hardtanh"):
    CASES[f"aten.{_name}.default"].append(case(INT))
for _name in ("sigmoid", "tanh", "silu"):
    CASES[f"aten.{_name}.default"].append(case(rand(7, dtype="complex64")))
for _name in ("sigmoid", "tanh"):
    CASES[f"aten.{_name}.default"].append(case(rand(7, dtype="bool")))
# Without inf: there torch's vector loop gives NaN, its scalar loop inf.
_FINITE = [*INPUTS[:-1], EDGES[np.isfinite(EDGES)], EDGES[-1:]]
CASES["aten.gelu.default"] = [
    *_cases(inputs=_FINITE),
    *_cases(inputs=_FINITE, approximate="tanh"),
    case(INPUTS[0], approximate="none"),
]
CASES["aten.elu.default"] += [*_cases(0.7, 1.3, 2), case(INPUTS[0], 2)]
CASES["aten.celu.default"] += _cases(0.7)
CASES["aten.leaky_relu.default"] += _cases(0.2)
CASES["aten.hardtanh.default"] += [*_cases(-2.5, 0.5), case(INT, -2, 3)]
CASES["aten.hardshrink.default"] += _cases(1.5)
CASES["aten.softshrink.default"] += _cases(1.5)
CASES["aten.softplus.default"] += [*_cases(2.5), *_cases(0.5, 3.0), *_cases(2, 0)]
CASES["aten.threshold.default"] = [*_cases(0.5, -7.0), *_cases(0, 0), case(INT, 2, 5)]
CASES["aten.glu.default"] = [
    case(rand(3, 5, 14)),
    case(rand(3, 10, 7), 1),
    case(rand(4, 5), -2),
    case(rand(0, 4)),
    case(rand(3, 14, dtype="bfloat16")),
]
CASES["aten._prelu_kernel.default"] = [
    case(rand(2, 3, 5), rand(1, 3, 1)),
    case(rand(7, dtype="bfloat16"), rand(1, dtype="bfloat16")),
    case(EDGES, rand(1)),
]
CASES["aten.prelu.default"] = [
    case(rand(2, 3, 5), rand(3)),
    case(rand(2, 3, 5), rand(1)),
    case(rand(2, 3, 5, 7), rand(3)),
    case(rand(2, 3), rand(3)),
    case(rand(7), rand(1)),
    case(rand(), rand(1)),
    case(rand(0, 3), rand(3)),
    case(rand(2, 3, dtype="float16"), rand(3, dtype="float16")),
]
