"""docs/accuracy.md is what the results generate, and the results meet the targets."""

import json

import pytest

from benchmarks import accuracy_page as page
from benchmarks import transform_cost

# The project's own promises: mean cosines of embeddings, seconds, and an exponent.
COSINES = {"W8A16": 0.9995, "W8A8 dynamic": 0.995}
PLANNING_SECONDS = 2.0
EXPONENT = 1.2
PROGRAMS = 20


def results(name):
    return json.loads((page.RESULTS / f"{name}.json").read_text())["results"]


def test_page_is_generated_from_the_results():
    assert page.PAGE.read_text() == page.render(), "run: python benchmarks/accuracy_page.py"


def test_page_names_no_place_of_a_machine():
    text = page.render()
    for place in ("/tmp", "/work", "/home", "/root", "site-packages", "://"):
        assert place not in text, place


@pytest.mark.parametrize("scheme", sorted(COSINES))
def test_embeddings_meet_the_target(scheme):
    found = results("accuracy")["schemes"][scheme]
    assert found["target"] == COSINES[scheme]
    assert found["mean_cosine"] >= COSINES[scheme]


def test_jaxinfer_leaves_no_program_silently_float():
    rows = results("qwix_table")["rows"]
    assert len(rows) >= PROGRAMS
    told = {"quantized", "quantized or blocked, said", "blocked, said"}
    assert {row["jaxinfer"]["verdict"] for row in rows.values()} <= told


def test_every_program_has_been_run_by_both():
    programs = pytest.importorskip("benchmarks.qwix_programs")
    assert list(results("qwix_table")["rows"]) == list(programs.ROWS)


def test_planning_is_near_linear_and_quick():
    found = results("transform_cost")
    assert found["exponents"]["plan"] <= EXPONENT
    assert found["bert"]["plan"]["processor"] <= PLANNING_SECONDS


def test_an_int8_model_has_no_floating_weight_among_its_arguments():
    found = results("transform_cost")["bytes"]
    assert found["W8A16"]["quantized_weights"] > 0
    assert found["W8A16"]["float_arguments_of_their_shape"] == 0
    assert found["W8A16"]["arguments"] < 0.3 * found["float32"]["arguments"]


HLO = """HloModule m

%fused (p: s8[3,5]) -> f32[3,5] {
  %p = s8[3,5]{1,0} parameter(0)
  ROOT %c = f32[3,5]{1,0} convert(%p)
}

ENTRY %main (a: s8[3,5], b: f32[7,5], x: f32[2,3]) -> f32[2,5] {
  %a = s8[3,5]{1,0} parameter(0)
  %b = f32[7,5]{1,0} parameter(1)
  %x = f32[2,3]{1,0} parameter(2)
  %w = f32[3,5]{1,0} fusion(%a), kind=kLoop, calls=%fused
  ROOT %y = f32[2,5]{1,0} dot(%x, %w), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}
"""


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ([(3, 5)], (0, 1)),
        ([(5, 3)], (0, 1)),
        ([(7, 5)], (1, 0)),
        ([(3, 5)] * 2, (0, 1)),
        ([], (0, 0)),
    ],
)
def test_copies_counts_floating_arguments_and_results_outside_of_fusions(weights, expected):
    assert transform_cost.copies(HLO, weights) == expected


def test_copies_ignores_what_stays_within_a_fusion():
    inside = HLO.replace("%w = f32[3,5]", "%w = f32[2,5]")
    assert transform_cost.copies(inside, [(3, 5)]) == (0, 0)


def test_verdicts_are_counted_and_an_exception_is_better_than_silence():
    ways = dict(zip(page.WAYS, ("silently float", "crash", "quantized"), strict=True))
    row = {
        "qwix": {way: {"verdict": verdict} for way, verdict in ways.items()},
        "jaxinfer": {"verdict": "blocked, said"},
    }
    tallies = page.counts({"a": row})
    assert tallies["qwix, best of the three"] == {"quantized": 1}
    assert tallies["qwix, float first"] == {"silently float": 1}
    assert tallies["jaxinfer"] == {"blocked, said": 1}
    row["qwix"]["without jit"] = {"verdict": "silently float"}
    assert page.counts({"a": row})["qwix, best of the three"] == {"crash": 1}
