"""The structure of results as JSON and back."""

import collections
import json

import pytest

from jaxinfer.compile._results import describe, rebuild
from jaxinfer.core.structure import Output

Pair = collections.namedtuple("Pair", "first second")


@pytest.mark.parametrize(
    "make",
    [
        lambda flat: flat[0],
        lambda flat: tuple(flat),
        lambda flat: [flat[0], {"b": flat[1], "a": (flat[2], None)}],
        lambda flat: Pair(flat[0], [flat[1], flat[2]]),
        lambda flat: Output("Out", ("x", "y"), (flat[0], (flat[1], flat[2]))),
        lambda flat: {"text": "as it is", "n": 3, "x": flat[0], "on": True, "half": 0.5},
        lambda flat: (),
    ],
)
def test_structures_come_back(make):
    count = 3
    text = json.dumps(describe(make, count))
    data, used = json.loads(text), text.count('"*"')
    flat = [f"array {i}" for i in range(used)]
    got, want = rebuild(data, flat), make([*flat, *[None] * (count - used)])
    assert str(got) == str(want)
    assert type(got).__name__ == type(want).__name__


def test_what_is_no_structure():
    with pytest.raises(ValueError, match="2 results for a structure of fewer"):
        rebuild("*", [1, 2])
    for wrong in ({"kind": "class", "items": []}, {"kind": "tuple", "items": ["*", "*"]}, 3j, {}):
        with pytest.raises(ValueError, match="not a structure"):
            rebuild(wrong, [1])
    with pytest.raises(ValueError, match="not a structure"):
        rebuild({"kind": "dict", "keys": [], "items": ["*"]}, [1])
