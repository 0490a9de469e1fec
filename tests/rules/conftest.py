"""The fast tests have every second case of the large tables, the slow ones all."""

from tests.thin import thin

THINNED = {
    "test_conv_general_dilated",
    "test_dot_general",
    "test_dot_general_in_bfloat16",
    "test_dot_general_of_quantized_activations",
    "test_gather",
    "test_ragged_dot",
}


def pytest_collection_modifyitems(items):
    thin(items, "rules", THINNED, 2)
