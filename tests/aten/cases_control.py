"""Control flow needs subgraphs: it is tested end to end."""

from tests.aten.harness import covered_by

FILE = "torch_front/test_control_flow.py"

CASES = {
    "higher_order.cond": [
        covered_by(f"{FILE}::test_cond_takes_the_branch_of_the_value"),
        covered_by(f"{FILE}::test_nested_cond"),
    ],
    "higher_order.while_loop": [
        covered_by(f"{FILE}::test_while_loop_runs_as_long_as_the_values_say")
    ],
    "higher_order.scan": [covered_by(f"{FILE}::test_scan")],
    "higher_order.map_impl": [covered_by(f"{FILE}::test_map")],
}
