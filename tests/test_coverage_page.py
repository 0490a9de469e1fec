"""docs/coverage.md is what the results generate, and the results meet the targets."""

import json

import pytest

from benchmarks.coverage import report
from benchmarks.coverage.common import Case

# Shares of the cases that are not excluded; the numbers are the project's own promise.
TARGETS = {"op_db": 0.99, "module_db": 0.98, "transformers": 0.97, "onnx": 0.90}


def test_page_is_generated_from_the_results():
    assert report.PAGE.read_text() == report.render(), "run: python -m benchmarks.coverage --report"


@pytest.mark.parametrize("suite", sorted(TARGETS))
def test_results_meet_the_target(suite):
    path = report.RESULTS / f"{suite}.json"
    if not path.exists():
        pytest.skip(f"{suite} has not been run")
    data = json.loads(path.read_text())
    assert data["target"] == TARGETS[suite]
    assert report.rate(data["cases"]) >= TARGETS[suite]


def test_rate_leaves_exclusions_out_and_counts_failures():
    cases = [{"status": "pass"}] * 3 + [{"status": "fail"}] + [{"status": "excluded"}] * 5
    assert report.rate(cases) == 0.75


def test_an_exclusion_needs_a_reason_of_the_vocabulary():
    Case("a", "excluded", "data-dependent shape")
    with pytest.raises(ValueError, match="too hard"):
        Case("a", "excluded", "too hard")
