"""Dense and recurrent weights are stored as they are multiplied, if nothing else reads them."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxinfer.core.ops import OPS
from jaxinfer_converters.graph import Ref
from jaxinfer_converters.layout import channels_last
from tests.aten.harness import rand
from tests.layout.test_pass import Builder, check


def stored(graph):
    """The orders of the parameters that are not stored as they were."""
    return {item.name: item.perm for item in graph.inputs if item.perm}


def linear(builder, x, outputs, bias=True):
    inputs = builder.shapes[x.name][-1]
    weight = builder.param(rand(outputs, inputs))
    extra = [builder.param(rand(outputs))] if bias else []
    return builder.call("linear.default", x, weight, *extra), weight


def test_a_dense_weight_is_stored_in_by_out():
    builder = Builder(x=rand(2, 3, 8))
    y, weight = linear(builder, Ref("x"), 6)
    graph = check(builder, y)
    assert stored(graph) == {weight.name: (1, 0)}
    (item,) = [i for i in graph.inputs if i.name == weight.name]
    assert item.aval.shape == (8, 6)
    assert item.source_aval().shape == (6, 8)


def test_one_weight_of_two_layers():
    builder = Builder(x=rand(2, 8), y=rand(3, 8))
    one, weight = linear(builder, Ref("x"), 6)
    two = builder.call("linear.default", Ref("y"), weight)
    assert stored(check(builder, one, two)) == {weight.name: (1, 0)}


def test_a_weight_that_is_an_embedding_too_stays():
    builder = Builder(x=rand(2, 8))
    y, weight = linear(builder, Ref("x"), 6)
    rows = builder.call("select.int", weight, 0, 2)
    assert not stored(check(builder, y, rows))


def test_a_weight_that_is_a_result_stays():
    builder = Builder(x=rand(2, 8))
    y, weight = linear(builder, Ref("x"), 6)
    assert not stored(check(builder, y, weight))


def test_a_weight_that_is_computed_or_a_vector_stays():
    builder = Builder(x=rand(2, 8))
    weight, vector = builder.param(rand(6, 8)), builder.param(rand(8))
    doubled = builder.call("mul.Scalar", weight, 2.0)
    y = builder.call("linear.default", Ref("x"), doubled)
    z = builder.call("linear.default", Ref("x"), vector)
    assert not stored(check(builder, y, z))


@pytest.mark.parametrize(
    "transpose", [("t.default",), ("permute.default", [-1, 0]), ("transpose.int", -2, 1)]
)
def test_a_linear_that_torch_has_decomposed(transpose):
    """A model in training mode may be, and has to share its parameters with one that is not."""
    op, *dims = transpose
    builder = Builder(x=rand(2, 8))
    weight = builder.param(rand(6, 8))
    across = builder.call(op, weight, *dims)
    y = builder.call("mm.default", Ref("x"), across)
    graph = check(builder, y)
    assert stored(graph) == {weight.name: (1, 0)}
    assert graph.nodes[0].op == "aten.alias.default"


def test_three_axes_are_no_transposed_weight():
    builder = Builder(x=rand(2, 6, 8))
    weight = builder.param(rand(2, 6, 8))
    across = builder.call("transpose.int", weight, 1, 2)
    assert not stored(check(builder, builder.call("matmul.default", Ref("x"), across)))


def test_tied_names_stay():
    builder = Builder(x=rand(2, 8))
    y, weight = linear(builder, Ref("x"), 6)
    graph = builder.graph(y)
    assert not stored(channels_last(graph, tied={f"layer.{weight.name}"}))
    assert stored(channels_last(graph))


def test_the_users_own_rule_gets_torchs_order(monkeypatch):
    def own(x, weight, bias=None):
        return x @ weight.T + bias

    monkeypatch.setitem(OPS._rules, "aten.linear.default", own)
    builder = Builder(x=rand(2, 8))
    y, _ = linear(builder, Ref("x"), 6)
    assert not stored(check(builder, y))


@pytest.mark.parametrize("kind", ["lstm", "gru", "rnn_tanh"])
@pytest.mark.parametrize("biases", [True, False])
def test_recurrent_weights_go_together(kind, biases):
    gates, hidden = {"lstm": 4, "gru": 3, "rnn_tanh": 1}[kind], 5
    builder = Builder(x=rand(4, 2, 3), h=rand(1, 2, hidden), c=rand(1, 2, hidden))
    shapes = [(gates * hidden, 3), (gates * hidden, hidden)]
    shapes += [(gates * hidden,)] * 2 if biases else []
    params = [builder.param(rand(*shape, seed=i)) for i, shape in enumerate(shapes)]
    state = [Ref("h"), Ref("c")] if kind == "lstm" else Ref("h")
    rest = (params, biases, 1, 0.0, False, False, False)
    y, *_ = builder.call(f"{kind}.input", Ref("x"), state, *rest)
    assert stored(check(builder, y)) == {p.name: (1, 0) for p in params[:2]}
    other = builder.call("sum.default", params[0])  # one of them is read: both stay
    assert not stored(check(builder, y, other))


def test_a_cell():
    builder = Builder(x=rand(2, 3), h=rand(2, 5))
    params = [builder.param(rand(*shape)) for shape in ((15, 3), (15, 5), (15,), (15,))]
    y = builder.call("gru_cell.default", Ref("x"), Ref("h"), *params)
    assert stored(check(builder, y)) == {p.name: (1, 0) for p in params[:2]}


def test_parameters_have_their_checkpoints_names():
    torch = pytest.importorskip("torch")
    import jaxinfer as ji

    module, x = torch.nn.Linear(4, 3), torch.randn(2, 4)
    model = ji.from_torch(module, (x,))
    assert model.params["weight"].shape == (4, 3)
    np.testing.assert_array_equal(model.params["weight"], module.weight.detach().numpy().T)
    kept = ji.from_torch(module, (x,), layout="keep")
    assert kept.params["weight"].shape == (3, 4)
    got = model(jnp.asarray(x.numpy()))
    np.testing.assert_allclose(got, kept(jnp.asarray(x.numpy())), rtol=1e-6, atol=1e-6)
