"""The layout pass on whole graphs: the same values, as few permutes as there should be."""

import dataclasses
import random

import jax
import numpy as np
import pytest

from jaxinfer_converters.graph import Aval, Graph, Input, Node, Ref, Result
from jaxinfer_converters.layout import channels_last, permutes
from jaxinfer_converters.layout.cut import FIRST, LAST, Edge, minimum_cut
from jaxinfer_converters.program import run_graph
from tests.aten.harness import rand

F32 = "float32"


class Builder:
    """Builds a graph node by node; shapes come from the rules."""

    def __init__(self, **inputs):
        self.arrays = {name: np.asarray(value) for name, value in inputs.items()}
        self.inputs = [
            Input(n, "input", str(i), Aval(x.shape, F32))
            for i, (n, x) in enumerate(self.arrays.items())
        ]
        self.nodes = []
        self.shapes = {name: x.shape for name, x in self.arrays.items()}

    def param(self, value):
        name = f"p{len(self.arrays)}"
        self.arrays[name] = value
        self.inputs.append(Input(name, "parameter", f"layer.{name}", Aval(value.shape, F32)))
        self.shapes[name] = value.shape
        return Ref(name)

    def call(self, op, *args, **kwargs):
        name = f"n{len(self.nodes)}"
        node = Node(name, f"aten.{op}", args, kwargs)
        bare = Graph(tuple(self.inputs), (*self.nodes, node), (Result("output", Ref(name)),))
        out = jax.eval_shape(lambda values: run_graph(bare, values, {})[0], self.arrays)
        if isinstance(out, (list, tuple)):
            avals = tuple(Aval(x.shape, F32) for x in out)
            self.nodes.append(dataclasses.replace(node, avals=avals))
            return [self.take(name, i, avals[i]) for i in range(len(avals))]
        self.nodes.append(dataclasses.replace(node, avals=(Aval(out.shape, F32),)))
        self.shapes[name] = out.shape
        return Ref(name)

    def take(self, name, index, aval):
        made = f"n{len(self.nodes)}"
        self.nodes.append(Node(made, "operator.getitem", (Ref(name), index), {}, (aval,)))
        self.shapes[made] = aval.shape
        return Ref(made)

    def conv(self, x, outputs, kernel=3, **kwargs):
        groups = kwargs.get("groups", 1)
        inputs, seed = self.shapes[x.name][1] // groups, len(self.nodes)
        weight = rand(outputs, inputs, kernel, kernel, seed=seed)
        args = [kwargs.get("stride", 1), kwargs.get("padding", kernel // 2), 1, groups]
        bias = self.param(rand(outputs, seed=seed))
        return self.call("conv2d.default", x, self.param(weight / weight.size**0.5), bias, *args)

    def graph(self, *results):
        return Graph(
            tuple(self.inputs), tuple(self.nodes), tuple(Result("output", r) for r in results)
        )


def run(graph, arrays):
    """Evaluate, with parameters stored as the graph's inputs say."""
    values = {
        item.name: arrays[item.name].transpose(item.perm) if item.perm else arrays[item.name]
        for item in graph.inputs
    }
    return jax.jit(
        lambda v: run_graph(graph, v, {}), compiler_options={"xla_backend_optimization_level": 0}
    )(values)


def check(builder, *results, moved=None):
    """Hold the pass against the graph as it was; returns the new graph."""
    before = builder.graph(*results)
    after = channels_last(before)
    assert Graph.from_json(after.to_json()).to_json() == after.to_json()
    for want, got in zip(run(before, builder.arrays), run(after, builder.arrays), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4 * np.abs(want).max())
    if moved is not None:
        assert [node.avals[0].shape for node in permutes(after)] == moved
    return after


def test_residual_blocks_with_squeeze_and_excitation_need_one_permute():
    b = Builder(x=rand(2, 3, 9, 11))
    x = b.conv(Ref("x"), 8, stride=2)
    for _ in range(2):
        y = b.call("relu.default", b.conv(x, 8))
        gate = b.conv(b.call("mean.dim", y, [2, 3], True), 8, kernel=1)
        y = b.call("mul.Tensor", y, b.call("sigmoid.default", gate))
        x = b.call("add.Tensor", x, y)
    pooled = b.call("adaptive_avg_pool2d.default", x, [1, 1])
    after = check(b, b.call("flatten.using_ints", pooled, 1), moved=[(2, 9, 11, 3)])
    assert all(i.perm == (2, 3, 1, 0) for i in after.inputs if i.aval and len(i.aval.shape) == 4
               and i.kind == "parameter")  # fmt: skip


def test_a_models_own_permutes_are_free():
    """ConvNeXt: depthwise convolution, NHWC for norm and linear layers, and back."""
    b = Builder(x=rand(2, 3, 9, 11))
    x = b.conv(Ref("x"), 6)
    y = b.call("permute.default", b.conv(x, 6, groups=6), [0, 2, 3, 1])
    y = b.call("layer_norm.default", y, [6])
    y = b.call("linear.default", y, b.param(rand(6, 6)))
    y = b.call("mul.Tensor", y, b.param(rand(6)))
    x = b.call("add.Tensor", x, b.call("permute.default", y, [0, 3, 1, 2]))
    after = check(b, b.call("mean.dim", x, [-2, -1]), moved=[(2, 9, 11, 3)])
    assert sum(node.op == "aten.permute.default" for node in after.nodes) == 1


def test_patch_embedding_is_a_reshape():
    b = Builder(x=rand(2, 3, 8, 12))
    y = b.conv(Ref("x"), 10, kernel=4, stride=4, padding=0)
    y = b.call("flatten.using_ints", y, 2)
    y = b.call("transpose.int", y, 1, 2)
    after = check(b, b.call("layer_norm.default", y, [10]), moved=[(2, 8, 12, 3)])
    assert not any("transpose" in node.op for node in after.nodes)


def test_an_image_that_leaves_is_given_back_as_torch_has_it():
    b = Builder(x=rand(2, 3, 9, 11))
    x = b.conv(Ref("x"), 8)
    check(b, x, moved=[(2, 9, 11, 3), (2, 8, 9, 11)])


def test_operands_of_lower_rank_are_lifted():
    b = Builder(x=rand(2, 3, 5, 7))
    x = b.conv(Ref("x"), 6)
    x = b.call("add.Tensor", x, b.param(rand(6, 1, 1)))
    x = b.call("mul.Tensor", b.param(rand(7)), x)
    x = b.call("sub.Tensor", x, b.param(rand(5, 7)))
    x = b.call("add.Tensor", x, b.param(rand(1, 6, 5, 7)))
    after = check(b, b.call("mean.dim", b.conv(x, 4), [2, 3]))
    image = next(i for i in after.inputs if i.aval and i.aval.shape == (1, 5, 7, 6))
    assert image.perm == (0, 2, 3, 1)  # stored so, not permuted on every call


def test_channel_shuffle_and_splits():
    b = Builder(x=rand(2, 3, 5, 7))
    x = b.conv(Ref("x"), 8)
    left, right = b.call("chunk.default", x, 2, 1)
    x = b.call("cat.default", [left, b.conv(right, 4)], 1)
    x = b.call("view.default", x, [2, 2, 4, 5, 7])
    x = b.call("transpose.int", x, 1, 2)
    x = b.call("view.default", x, [2, 8, 5, 7])
    check(b, b.call("mean.dim", b.conv(x, 4), [2, 3]), moved=[(2, 5, 7, 3)])


def test_the_interface_may_be_channels_last():
    b = Builder(x=rand(2, 3, 5, 7))
    before = b.graph(b.conv(Ref("x"), 4))
    after = channels_last(before, nhwc=True)
    assert not list(permutes(after))
    assert after.inputs[0].aval == Aval((2, 5, 7, 3), F32)
    (want,) = run(before, b.arrays)
    assert after.inputs[0].perm == after.results[0].perm == (0, 2, 3, 1)
    (got,) = run(after, b.arrays)  # which orders the inputs as the graph says
    np.testing.assert_allclose(np.moveaxis(got, -1, 1), want, rtol=1e-5, atol=1e-5)


def test_tied_and_mutated_tensors_are_stored_as_they_are():
    b = Builder(x=rand(2, 3, 5, 7))
    y = b.conv(Ref("x"), 4)
    graph = b.graph(y)
    kernel = next(i for i in graph.inputs if i.kind == "parameter" and len(i.aval.shape) == 4)
    for after in (
        channels_last(graph, tied=[kernel.target]),
        channels_last(
            dataclasses.replace(graph, results=(*graph.results, Result("buffer", y, kernel.target)))
        ),
    ):
        same = next(i for i in after.inputs if i.target == kernel.target)
        assert same == kernel
        assert any(node.args[0] == Ref(kernel.name) for node in permutes(after))


def test_graphs_without_convolutions_are_left_alone():
    b = Builder(x=rand(2, 3, 5, 7))
    graph = b.graph(b.call("max_pool2d.default", Ref("x"), 2))
    assert channels_last(graph) == graph


def step(b, pick, values):
    """Append one random operator on random images; ``values`` are the images so far."""
    x = pick.choice(values)
    n, c, h, w = b.shapes[x.name]
    alike = [v for v in values if b.shapes[v.name] == (n, c, h, w)]
    choices = {
        "conv": lambda: b.conv(x, pick.choice([2, 4, 6])),
        "depthwise": lambda: b.conv(x, c, groups=c),
        "pool": lambda: b.call("max_pool2d.default", x, 2, 1) if min(h, w) > 1 else x,
        "up": lambda: b.call("upsample_nearest2d.vec", x, [h + 1, w + 2], None),
        "relu": lambda: b.call("relu.default", x),
        "add": lambda: b.call("add.Tensor", x, pick.choice(alike)),
        "bias": lambda: b.call("add.Tensor", x, b.param(rand(c, 1, 1))),
        "row": lambda: b.call("mul.Tensor", x, b.param(rand(w))),
        "cat": lambda: b.call("cat.default", [x, pick.choice(alike)], pick.choice([1, -1, 2])),
        "softmax": lambda: b.call("softmax.int", x, pick.choice([1, 2, -1])),
        "flip": lambda: b.call("flip.default", x, [pick.choice([1, 2, 3])]),
        "pad": lambda: b.call("constant_pad_nd.default", x, [1, 0, 0, 2]),
        "slice": lambda: b.call("slice.Tensor", x, pick.choice([1, 2, 3]), 0, 2),
        "gate": lambda: b.call("mul.Tensor", x, b.call("mean.dim", x, [2, 3], True)),
        "nhwc": lambda: nhwc(b, x, c),
        "rows": lambda: b.call("view.default", b.call("flatten.using_ints", x, 2), [n, c, h, w]),
        "swap": lambda: b.call("transpose.int", x, 2, 3),
        "matmul": lambda: b.call("matmul.default", x, b.param(rand(w, 3))),
        "cumsum": lambda: b.call("cumsum.default", x, 1),
    }
    return choices[pick.choice(sorted(choices))]()


def nhwc(b, x, c):
    y = b.call("layer_norm.default", b.call("permute.default", x, [0, 2, 3, 1]), [c])
    return b.call("permute.default", y, [0, 3, 1, 2])


@pytest.mark.parametrize("seed", range(12))
def test_random_graphs_give_the_same(seed):
    pick = random.Random(seed)
    b = Builder(x=rand(2, 4, 5, 6, seed=seed))
    values = [b.conv(Ref("x"), 4), Ref("x")]
    for _ in range(9):
        y = step(b, pick, values[-4:])
        if np.prod(b.shapes[y.name]) < 5000:
            values.append(y)
    check(b, *values[-3:])


def brute_force(edges, names):
    """The least cost over all choices, the slow obvious way."""

    def cost(choice):
        side = {FIRST: False, LAST: True, **choice}
        total = 0
        for edge in edges:
            users = {side[u] for u in edge.users} - {side[edge.producer]}
            total += edge.cost * len(users)
        return total

    choices = [
        dict(zip(names, (bool(n >> i & 1) for i in range(len(names))), strict=True))
        for n in range(2 ** len(names))
    ]
    return cost, min(map(cost, choices))


@pytest.mark.parametrize("seed", range(20))
def test_the_cut_is_the_cheapest(seed):
    pick = random.Random(seed)
    names = [f"v{i}" for i in range(6)]
    ends = [*names, FIRST, LAST]
    edges = [
        Edge(pick.choice(ends[:-1]), pick.choices(ends, k=pick.randint(1, 3)), pick.randint(0, 9))
        for _ in range(12)
    ]
    chosen = minimum_cut(edges)
    cost, least = brute_force(edges, names)
    assert cost({name: chosen.get(name, False) for name in names}) == least
