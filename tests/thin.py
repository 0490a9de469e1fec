"""Large tables of small compilations: the fast tests have some of the cases, the slow ones all."""

import pytest


def thin(items, folder, names, every):
    """Mark all but each ``every``-th case of some tests of a folder as slow."""
    seen = {}
    for item in items:
        name = getattr(item, "originalname", item.name)
        if name not in names or f"/{folder}/" not in item.path.as_posix():
            continue
        place = seen[name] = seen.get(name, -1) + 1
        if place % every:
            item.add_marker(pytest.mark.slow)
