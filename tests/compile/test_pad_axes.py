"""Factors of axes: what they say is real is what is real, after merging and splitting."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxinfer.compile.padding.axes import (
    Factor,
    Refusal,
    canonical,
    join,
    prefix,
    reshape,
    show,
    whole,
)
from jaxinfer.compile.padding.run import real_part
from jaxinfer.compile.padding.sizes import Length

REAL = {"b": 2, "s": 3}
B, S = Factor(4, Length(1, ("b",))), Factor(6, Length(1, ("s",)))


class Run:
    sizes = REAL


def real_box(state):
    """Return which places are real, by the masks that the state gives."""
    shape = [int(np.prod([f.size for f in axis], dtype=int)) for axis in state]
    out = np.ones(shape, bool)
    for axis, factors in enumerate(state):
        if any(f.length for f in factors):
            out = out & np.asarray(real_part(Run, shape, axis, factors))
    return out


factors = st.sampled_from([B, S, Factor(2), Factor(3), Factor(1)])
states = st.lists(st.lists(factors, max_size=3).map(canonical), min_size=1, max_size=3)


@given(states, st.data())
@settings(max_examples=25, deadline=None)
def test_reshape_keeps_what_is_real(state, data):
    """Against numpy: the places that are real, moved by the reshape itself."""
    sizes = [f.size for axis in state for f in axis]
    cuts = sorted(data.draw(st.sets(st.integers(0, len(sizes)))) | {0, len(sizes)})
    shape = [int(np.prod(sizes[a:b], dtype=int)) for a, b in itertools.pairwise(cuts)]
    try:
        out = reshape(tuple(state), shape)
    except Refusal:
        return
    np.testing.assert_array_equal(real_box(out), real_box(tuple(state)).reshape(shape))
    back = reshape(out, [int(np.prod([f.size for f in a], dtype=int)) for a in state])
    assert back == tuple(state)


def test_reshapes_that_are_done_and_refused():
    assert reshape(((B,), (S,)), [24]) == ((B, S),)
    assert reshape(((B, S),), [4, 6]) == ((B,), (S,))
    assert reshape(((B,), whole(6)), [24]) == ((Factor(24, Length(6, ("b",))),),)
    assert reshape(((Factor(24, Length(6, ("b",))),),), [4, 2, 3]) == ((B,), whole(2), whole(3))
    with pytest.raises(Refusal, match="it splits an axis of which b of 4 are real into runs of 2"):
        reshape(((B,),), [2, 2])
    with pytest.raises(Refusal, match="it cuts across an axis with padding"):
        reshape(((S,), (B,)), [8, 3])
    for shape in ([2], [48]):
        with pytest.raises(Refusal, match="do not fit"):
            reshape((whole(4),), shape)


def test_joins():
    uniform = Factor(24, Length(1, ("b", "s")), uniform=True)
    assert join((B, S), (uniform,)) == join((uniform,), (B, S)) == (B, S)
    same = Factor(4, Length(1, ("b",)), uniform=True)
    assert join((B,), (same,)) == (B,)
    assert join((same,), (same,)) == (same,)
    with pytest.raises(Refusal, match="in different places"):
        join((B, S), (S, B))
    with pytest.raises(Refusal):
        join((B,), whole(4))


def test_words():
    assert show((B, S)) == "(b of 4) x (s of 6)"
    assert show(()) == "1"
    assert prefix((B,)) == Length(1, ("b",))
    assert prefix((B, S)) is None
