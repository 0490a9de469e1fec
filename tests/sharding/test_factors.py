"""Axes as products of factors."""

import pytest

from jaxinfer.sharding._auto_factors import Factor, axis, expand, lead, regroup, unify


def sizes(one):
    return [factor.size for factor in expand(one)]


def test_equal_sizes_are_one_class():
    a, b, c = axis(7), axis(7), axis(7)
    assert unify(a, b)
    assert unify(b, c)
    assert lead(a) is lead(c)
    assert lead(axis(7)) is not lead(a)


def test_a_reshape_splits_an_axis_and_another_joins_it():
    (b, d) = axis(5), axis(12)
    heads = regroup([b, d], (5, 3, 4))
    assert [sizes(one) for one in heads] == [[5], [3], [4]]
    assert sizes(d) == [3, 4]
    back = regroup(heads, (5, 12))
    assert lead(back[1]) is lead(heads[1])
    assert lead(back[0]) is lead(b)
    flat = regroup(heads, (60,))
    assert sizes(flat[0]) == [5, 3, 4]


def test_splits_reach_every_equal_axis():
    a, b = axis(24), axis(24)
    assert unify(a, b)
    regroup([b], (2, 12))
    regroup([a], (2, 4, 3))
    assert sizes(a) == sizes(b) == [2, 4, 3]
    assert lead(a) is lead(b)


def test_factors_that_cross():
    a, b = (Factor(4), Factor(6)), (Factor(8), Factor(3))
    assert unify(a, b)
    assert sizes(a) == sizes(b) == [4, 2, 3]
    assert [x is y for x, y in zip(expand(a), expand(b), strict=True)] == [True] * 3


@pytest.mark.parametrize(("one", "other"), [((4, 3), (3, 4)), ((6,), (4,)), ((0,), (5,))])
def test_what_does_not_fit_is_not_one(one, other):
    assert not unify([Factor(n) for n in one], [Factor(n) for n in other])


def test_an_axis_off_the_boundary_is_new():
    a, b = axis(6), axis(4)
    found = regroup([a, b], (8, 3))
    assert [sizes(one) for one in found] == [[8], [3]]
    assert lead(found[0]) not in (lead(a), lead(b))


def test_sizes_0_and_1():
    assert lead(axis(1)) is None
    assert [sizes(one) for one in regroup([axis(5)], (1, 5, 1))] == [[], [5], []]
    assert [sizes(one) for one in regroup([axis(0), axis(5)], (5, 0))] == [[5], [0]]
    assert unify(axis(1), ())
