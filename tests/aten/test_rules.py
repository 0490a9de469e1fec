"""Every rule against torch; the table is closed: a rule without a case fails here."""

import importlib.util
import pathlib

import numpy as np
import pytest

import jaxinfer_converters.aten  # noqa: F401
from jaxinfer.core.ops import OPS
from tests.aten import harness

CASES = harness.all_cases()
HAS_TORCH = importlib.util.find_spec("torch") is not None
BUILT_IN = [
    name
    for name, rule in OPS.items()
    if rule.__module__.startswith("jaxinfer_converters.")
    and not rule.__module__.startswith("jaxinfer_converters.onnx_rules.")  # tests/onnx_front
]


LONG = {
    *("aten.grid_sampler_2d.default", "aten.grid_sampler_3d.default"),
    *("aten.max_pool1d_with_indices.default", "aten.max_pool2d_with_indices.default"),
    *("aten.max_pool3d_with_indices.default", "aten.adaptive_max_pool2d.default"),
    *("aten.adaptive_max_pool3d.default", "aten.segment_reduce.default"),
    *("aten._upsample_lanczos2d_aa.default", "aten._upsample_bicubic2d_aa.default"),
}
"""Operators whose cases take seconds: the slow tests have them."""


@pytest.mark.parametrize(
    "op", [pytest.param(op, marks=pytest.mark.slow) if op in LONG else op for op in sorted(CASES)]
)
def test_rule_gives_what_torch_gives(op):
    assert op in OPS, f"{op} has cases but no rule; near: {OPS.near(op)}"
    numbered = [(i, case) for i, case in enumerate(CASES[op]) if not case.covered_by]
    outputs = harness.rule_outputs(op, *(case for _, case in numbered))
    for (index, case), got in zip(numbered, outputs, strict=True):
        if case.check is not None:
            case.check(got)
            continue
        want = harness.read_golden(op, index)
        if HAS_TORCH:
            recorded, want = want, harness.torch_outputs(op, case)
            harness.compare_recorded(op, case, want, recorded)
        harness.compare(op, case, want, got)


def test_every_rule_has_a_case():
    missing = sorted(set(BUILT_IN) - set(CASES))
    assert not missing, f"{len(missing)} rules without a case in tests/aten/cases_*.py: {missing}"


def test_covered_by_names_tests_that_exist():
    root = pathlib.Path(__file__).parents[1]
    for op, cases in CASES.items():
        for case in cases:
            if case.covered_by:
                file, function = case.covered_by.split("::")
                text = (root / file).read_text()
                assert f"def {function}(" in text, f"{op}: no test {case.covered_by}"


def test_comparison_can_fail():
    case = harness.case(np.ones(3, np.float32))
    wrong = [np.full(3, 1.1, np.float32)]
    with pytest.raises(AssertionError):
        harness.compare("op", case, [np.ones(3, np.float32)], wrong)
    with pytest.raises(AssertionError, match="torch gives float16"):
        harness.compare("op", case, [np.ones(3, np.float16)], [np.ones(3, np.float32)])
