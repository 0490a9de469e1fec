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
    "higher_order.flex_attention": [
        covered_by(f"{FILE}::test_flex_attention"),
        covered_by(f"{FILE}::test_flex_attention_reads_buffers_and_masks_rows_wholly"),
    ],
    "higher_order.strict_mode": [
        covered_by(f"{FILE}::test_regions_marked_for_torchs_compiler_are_called")
    ],
    "higher_order.hints_wrapper": [
        covered_by(f"{FILE}::test_regions_marked_for_torchs_compiler_are_called")
    ],
    "higher_order.invoke_quant_packed": [covered_by(f"{FILE}::test_invoke_quant_packed")],
    "higher_order.out_dtype": [covered_by(f"{FILE}::test_out_dtype_sums_in_the_wider_type")],
    "higher_order.auto_functionalized_v2": [
        covered_by("torch_front/test_custom_operators.py::test_operators_that_write")
    ],
}
