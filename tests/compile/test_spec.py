"""Which sizes are compiled: names of dimensions, buckets, and everything that does not fit."""

import jax.numpy as jnp
import pytest

import jaxinfer as ji
from jaxinfer.compile._spec import resolve
from jaxinfer.core.errors import InputError
from tests.io.models import graph_model, rule


@pytest.fixture
def graph():
    """x: float32[batch, 3], batch a symbol."""
    with rule():
        yield graph_model()


def test_the_model_own_names(graph):
    spec = resolve(graph, None, {"batch": [8, 2]})
    (leaf,) = spec.leaves
    assert leaf.shape == ("batch", 3)
    assert dict(spec.buckets) == {"batch": (2, 8)}
    assert [s.shape for s in spec.structs({"batch": 8})] == [(8, 3)]
    assert list(spec.combinations()) == [{"batch": 2}, {"batch": 8}]


def test_the_user_names_for_the_model_dimensions(graph):
    spec = resolve(graph, {"x": ("rows", 3)}, {"rows": [4]})
    assert spec.leaves[0].shape == ("rows", 3)
    assert spec.model_names == {"rows": "batch"}


def test_a_fixed_size(graph):
    spec = resolve(graph, {"x": (5, 3)}, None)
    assert spec.leaves[0].shape == (5, 3)
    assert list(spec.combinations()) == [{}]


def test_combinations_of_two_dimensions():
    model = ji.from_function(lambda p, x: x * p, 1.0, (jnp.ones((2, 3)),))
    spec = resolve(model, {"x": ("b", "t")}, {"b": [1, 2], "t": [3, 5]})
    found = [tuple(sizes.values()) for sizes in spec.combinations()]
    assert found == [(1, 3), (1, 5), (2, 3), (2, 5)]


def test_which_sizes_are_exact():
    model = ji.from_function(lambda p, x: x * p, 1.0, (jnp.ones((2, 3)),))
    spec = resolve(model, {"x": ("b", 3)}, {"b": [1, 2, 4]})
    assert spec.exact({"b": 2}) == ("b",)  # 1 has a bucket of its own
    assert spec.exact({"b": 4}) == ()
    assert spec.exact({"b": 1}) == ("b",)
    assert resolve(model, {"x": ("b", 3)}, {"b": [2]}).exact({"b": 2}) == ()  # 0 and 1 as well


@pytest.mark.parametrize(
    ("inputs", "buckets", "text"),
    [
        (None, None, "batch: has no size"),
        ({"y": (1,)}, {"batch": [2]}, "inputs: y: no such array input; there are x"),
        ({"x": (2,)}, None, "required 2 sizes"),
        ({"x": (2, 4)}, None, "3 is fixed in the model, got 4"),
        ({"x": ("b", "d")}, {"b": [2], "d": [3]}, "names a size that is fixed to 3"),
        ({"x": ("b", 3)}, {"c": [2]}, "c: not a dimension of any input; dimensions: b"),
        (None, {"batch": []}, "required sizes of 1 or more, got []"),
        (None, {"batch": [2, 0]}, "required sizes of 1 or more"),
        (None, {"batch": [2, True]}, "required sizes of 1 or more"),
        (None, {"batch": [2, 2]}, "sizes that are there twice"),
        ({"x": ("a b", 3)}, {"batch": [2]}, "'a b' is no size and no name"),
        ({"x": (2.5, 3)}, {"batch": [2]}, "2.5 is no size and no name"),
    ],
)
def test_what_does_not_fit(graph, inputs, buckets, text):
    with pytest.raises(InputError) as found:
        resolve(graph, inputs, buckets)
    assert text in str(found.value)


def test_all_problems_at_once(graph):
    with pytest.raises(InputError) as found:
        resolve(graph, {"y": (1,), "x": (2, 4)}, {"batch": [0]})
    assert all(text in str(found.value) for text in ("y: no such", "got 4", "1 or more"))


def test_a_model_of_several_functions():
    from jaxinfer.core.multi import MultiProgram

    part = ji.from_function(lambda p, x: x, {}, (jnp.ones(2),)).program
    with pytest.raises(InputError, match=r"several functions \(a, b\).*components\['a'\]"):
        resolve(ji.Model(MultiProgram({"a": part, "b": part}), {}), None, None)
