"""The fast tests have every second pair of program and row, the slow ones all."""

from tests.thin import thin


def pytest_collection_modifyitems(items):
    thin(items, "laws", {"test_abstract_laws"}, 2)
