"""Operators whose output shape depends on data are refused with a sentence that helps."""

import jax
import numpy as np
import pytest

from jaxinfer.core.ops import OPS
from jaxinfer_converters.graph import Aval, Graph, Node
from jaxinfer_converters.program import Context
from tests.aten.harness import rand

X = rand(3, 5)
MASK = rand(3, 5, dtype="bool")
IDS = np.array([0, 2, 2])

REFUSED = {
    "aten.nonzero.default": (X,),
    "aten.masked_select.default": (X, MASK),
    "aten._unique.default": (X,),
    "aten._unique2.default": (X,),
    "aten.unique_dim.default": (X, 0),
    "aten.unique_consecutive.default": (X,),
    "aten.unique_dim_consecutive.default": (X, 0),
    "aten.bincount.default": (IDS,),
    "aten.tensor_split.tensor_indices_or_sections": (X, IDS),
    "aten.index.Tensor": (X, [MASK]),
    "aten._unsafe_index.Tensor": (X, [None, MASK[0]]),
    "aten.repeat_interleave.Tensor": (IDS,),
    "aten.repeat_interleave.self_Tensor": (X, IDS, 0),
    "aten.one_hot.default": (IDS,),
}


def _filled(leaves, tree, traced):
    arrays = iter(traced)
    return jax.tree.unflatten(
        tree, [next(arrays) if isinstance(leaf, np.ndarray) else leaf for leaf in leaves]
    )


@pytest.mark.parametrize("op", sorted(REFUSED))
def test_operators_of_data_dependent_shape_are_refused(op):
    leaves, tree = jax.tree.flatten(REFUSED[op], is_leaf=lambda x: x is None)
    arrays = [leaf for leaf in leaves if isinstance(leaf, np.ndarray)]
    context = (Context(Graph((), (), ()), {}),) if hasattr(OPS[op], "wants_context") else ()
    with pytest.raises(NotImplementedError, match=r"depends on the data.*static shapes; [a-z]"):
        jax.jit(lambda *traced: OPS[op](*context, *_filled(leaves, tree, traced)))(*arrays)


def test_a_slice_with_a_computed_end_is_refused():
    with pytest.raises(NotImplementedError, match=r"computed end.*torch\.narrow"):
        jax.jit(lambda x, n: OPS["aten.slice.Tensor"](x, 0, 0, n))(X, 2)


def test_an_empty_operand_gives_the_empty_result():
    node = Node("out", "aten.nonzero.default", (), {}, (Aval((0, 2), "int64"),))
    context = Context(Graph((), (), ()), {}, node=node)
    out = OPS["aten.nonzero.default"](context, X[:0])
    assert (out.shape, out.dtype) == ((0, 2), np.int32)


def test_select_and_narrow_take_a_computed_start():
    select = jax.jit(lambda x, i: OPS["aten.select.int"](x, 0, i))
    np.testing.assert_array_equal(select(X, 2), X[2])
    np.testing.assert_array_equal(select(X, -1), X[-1])
    narrow = jax.jit(lambda x, i: OPS["aten.narrow.default"](x, 1, i, 2))
    np.testing.assert_array_equal(narrow(X, 3), X[:, 3:])


def test_bytes_of_64_bit_types_are_refused_while_those_are_off():
    def context(name):
        node = Node("out", "aten.view.dtype", (), {}, (Aval((3, 5), name),))
        return Context(Graph((), (), ()), {}, node=node)

    view = OPS["aten.view.dtype"]
    assert view(context("int32"), X, np.dtype("int32")).dtype == np.int32
    with pytest.raises(NotImplementedError, match="bytes of int64 do not exist"):
        view(context("int64"), X, np.dtype("int32"))
