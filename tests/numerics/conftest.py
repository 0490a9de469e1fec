"""Large tables of small compilations: the fast tests have every third case, the slow ones all."""

import pytest

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
EVERY = 3


def pytest_collection_modifyitems(items):
    seen = {}
    for item in items:
        name = getattr(item, "originalname", item.name)
        if name not in THINNED or "/numerics/" not in item.path.as_posix():
            continue
        place = seen[name] = seen.get(name, -1) + 1
        if place % EVERY:
            item.add_marker(pytest.mark.slow)
