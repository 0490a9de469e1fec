"""The fast tests have every third operator of the table of marks, the slow ones all."""

from tests.thin import thin


def pytest_collection_modifyitems(items):
    thin(items, "layout", {"test_a_mark_gives_what_the_operator_gives"}, 3)
