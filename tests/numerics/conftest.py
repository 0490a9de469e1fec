"""Large tables of small compilations: the fast tests have every sixth case, the slow ones all."""

from tests.thin import thin

THINNED = {
    "test_a_leading_axis_comes_and_goes",
    "test_absmax",
    "test_batch_norm_into_a_convolution",
    "test_concatenate",
    "test_laws",
    "test_materialize",
    "test_minmax",
    "test_mse_is_near_the_best_clip_of_the_values",
    "test_percentile_within_a_bin",
    "test_reshape",
    "test_slice",
    "test_small_shapes_and_zeros",
    "test_statistics_are_float32",
    "test_storage_and_inverse",
}
EVERY = 6


def pytest_collection_modifyitems(items):
    thin(items, "numerics", THINNED, EVERY)
