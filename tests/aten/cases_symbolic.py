"""Cases for symbolic.py; that false assertions raise is in test_symbolic.py."""

import numpy as np

from tests.aten.harness import Case, case, dtype, rand

X = rand(2, 3, 5)
PAIRS = [case(a, b) for a, b in ((7, 3), (-7, 3), (7, -2), (0, 5))]


def none(outputs) -> None:
    assert outputs == [None]


def true(outputs) -> None:
    assert bool(outputs[0]) is True


CASES: dict[str, list[Case]] = {
    f"operator.{name}": PAIRS
    for name in [
        "add",
        "sub",
        "mul",
        "floordiv",
        "truediv",
        "mod",
        "eq",
        "ne",
        "lt",
        "le",
        "gt",
        "ge",
        "and_",
        "or_",
        "xor",
    ]
}
CASES |= {f"operator.{name}": [case(3), case(-2)] for name in ("neg", "pos", "abs")}
CASES["operator.add"] = [*PAIRS, case(1.5, 2), case(np.float32([1, 2]), 2)]
CASES["operator.pow"] = [case(2, 5), case(2.0, -1), case(3, 0)]
CASES["operator.not_"] = [case(True), case(False), case(3)]
CASES["operator.lshift"] = CASES["operator.rshift"] = [case(5, 2), case(5, 0)]
CASES["operator.getitem"] = [case([rand(2), rand(3)], 1), case([4, 5], 0)]
for _name in ("floor", "ceil", "trunc"):
    CASES[f"math.{_name}"] = [case(2.5), case(-2.5), case(3.0)]
for _name in ("sqrt", "cos", "cosh", "sin", "sinh", "tan", "tanh", "asin", "acos", "atan", "log2"):
    CASES[f"math.{_name}"] = CASES[f"torch._sym_{_name}"] = [case(0.3), case(1)]
CASES["torch.sym_max"] = CASES["torch.sym_min"] = [*PAIRS, case(2, 2.5)]
CASES["torch.sym_not"] = [case(True), case(False)]
CASES["torch.sym_float"] = [case(3)]
CASES["torch.sym_int"] = [case(3.0), case(2.7)]
CASES["torch.sym_ite"] = [case(True, 2, 3), case(False, 2, 3)]
CASES["aten.sym_size.int"] = CASES["aten.sym_stride.int"] = [
    *(case(X, dim) for dim in (0, 1, 2, -1, -3)),
]
CASES["aten.sym_numel.default"] = [case(X), case(rand()), case(rand(0, 3))]
CASES["aten.sym_storage_offset.default"] = [case(X)]
CASES["aten.sym_is_contiguous.default"] = [case(X)]
for _name in ("item", "_local_scalar_dense"):
    CASES[f"aten.{_name}.default"] = [
        case(rand()),
        case(rand(1, dtype="int64")),
        case(rand(1, 1, dtype="bool")),
    ]
CASES["aten._assert_scalar.default"] = [case(True, "text", check=none),
                                        case(np.array(False), "text", check=none)]  # fmt: skip
CASES["aten._linalg_check_errors.default"] = [
    case(np.zeros(2, np.int32), "linalg.inv", is_matrix=False, check=none)
]
CASES["aten._assert_async.default"] = [case(np.array(False), check=none)]
CASES["aten._assert_async.msg"] = [case(np.array(False), "text", check=none)]
CASES["aten._functional_assert_async.msg"] = [case(np.array(True), "text", rand())]
CASES["aten._functional_assert_scalar.default"] = [case(True, "text", rand())]
CASES["aten._make_dep_token.default"] = [case(check=lambda outputs: true([outputs[0].shape == ()]))]
CASES["aten._assert_tensor_metadata.default"] = [
    case(X, [2, 3, 5], None, dtype("float32"), check=none),
    case(rand(3, dtype="int64"), [3], [1], dtype("int64"), check=none),
]
for _name in ("sym_constrain_range", "sym_constrain_range_for_size"):
    CASES[f"aten.{_name}.default"] = [
        case(3, min=2, max=5, check=none),
        case(3, check=none),
        case(np.array(1), min=2, check=none),
    ]
