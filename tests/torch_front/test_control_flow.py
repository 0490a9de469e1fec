"""torch.cond, while_loop, scan and map, end to end, against torch."""

import jax
import numpy as np
import pytest
import torch
from torch._higher_order_ops.map import map as torch_map
from torch._higher_order_ops.scan import scan as torch_scan
from torch._higher_order_ops.while_loop import while_loop as torch_while_loop
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

import jaxinfer as ji
from jaxinfer_converters.program import GraphProgram


class Cond(torch.nn.Module):
    """A branch on a value; one branch uses parameters, both give two results."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(3, 3)

    def forward(self, x):
        return torch.cond(
            x.sum() > 0,
            lambda x: (self.layer(x), x.argmax(1)),
            lambda x: (x - 1, x.argmin(1)),
            (x,),
        )


class NestedCond(torch.nn.Module):
    def forward(self, x):
        def positive(x):
            return torch.cond(x.max() > 1, lambda x: x * 2, lambda x: x * 3, (x,))

        return torch.cond(x.sum() > 0, positive, lambda x: x.cos(), (x,))


class WhileLoop(torch.nn.Module):
    """Steps until a norm is reached: how many is data."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(3, 3)

    def forward(self, x):
        def go(step, x):
            return (step < 20) & (x.norm() < 50)

        def body(step, x):
            return step + 1, x * 1.5 + self.layer(x)

        return torch_while_loop(go, body, (torch.tensor(0), x))


class Scan(torch.nn.Module):
    def __init__(self, reverse=False, dim=0):
        super().__init__()
        self.layer = torch.nn.Linear(3, 3)
        self.reverse, self.dim = reverse, dim

    def forward(self, x):
        def step(state, row):
            new = torch.tanh(self.layer(row) + state)
            return new, new * row

        start = torch.zeros(3)
        return torch_scan(step, start, x, dim=self.dim, reverse=self.reverse)


class Map(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(3, 3)

    def forward(self, x, y):
        return torch_map(lambda row, y: self.layer(row) + y, x, y)


class RandomScan(torch.nn.Module):
    def forward(self, x):
        def step(state, row):
            noise = torch.nn.functional.dropout(torch.ones_like(row), 0.5, training=True)
            return state + noise.sum(), noise

        return torch_scan(step, torch.zeros(()), x)[1]


def assert_same(module, *inputs):
    """Convert at the first inputs; compare at all of them."""
    torch.manual_seed(0)
    module = module.eval()
    model = ji.from_torch(module, inputs[0])
    for args in inputs:
        with torch.no_grad():
            want = module(*args)
        got = model(*args)
        want, got = ((y,) if not isinstance(y, (tuple, list)) else y for y in (want, got))
        assert len(want) == len(got)
        for w, g in zip(want, got, strict=True):
            np.testing.assert_allclose(np.asarray(g), w.numpy(), rtol=1e-5, atol=1e-5)
    return model


def _x(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_cond_takes_the_branch_of_the_value():
    up, down = _x(0, 5, 3).abs(), -_x(0, 5, 3).abs()
    model = assert_same(Cond(), (up,), (down,))
    first, second = (np.asarray(model(x)[0]) for x in (up, down))
    assert np.abs(first - second).max() > 0.1


def test_cond_differentiates_and_batches():
    model = assert_same(Cond(), (_x(0, 5, 3),))
    gradient = jax.grad(lambda p, x: model.apply(p, x)[0].sum())(model.params, np.ones((5, 3), "f"))
    np.testing.assert_allclose(gradient["layer.bias"], [5, 5, 5], rtol=1e-6)
    many = np.stack([np.ones((5, 3), "f"), -np.ones((5, 3), "f")])
    out = jax.vmap(lambda x: model.apply(model.params, x)[0])(many)
    np.testing.assert_allclose(out[1], many[1] - 1)


def test_nested_cond():
    inputs = [(x,) for x in (torch.ones(3) * 2, torch.ones(3) / 2, -torch.ones(3))]
    assert_same(NestedCond(), *inputs)


def test_while_loop_runs_as_long_as_the_values_say():
    model = assert_same(WhileLoop(), (_x(0, 5, 3),), (_x(1, 5, 3) * 20,))
    steps = [int(model(x)[0]) for x in (_x(0, 5, 3), _x(1, 5, 3) * 20)]
    assert steps[0] > steps[1]


@pytest.mark.parametrize(("reverse", "dim"), [(False, 0), (True, 0), (False, 1)])
def test_scan(reverse, dim):
    shape = (7, 3) if dim == 0 else (3, 7)
    assert_same(Scan(reverse, dim), (_x(0, *shape),), (_x(1, *shape),))


def test_map():
    assert_same(Map(), (_x(0, 7, 3), _x(1, 3)))


def test_random_numbers_differ_from_step_to_step():
    model = ji.from_torch(RandomScan(), (torch.ones(11, 13),))
    x = np.ones((11, 13), np.float32)
    noise = np.asarray(model.apply(model.params, x, rng_key=jax.random.key(0)))
    assert set(np.unique(noise)) == {0, 2}
    assert len(np.unique(noise, axis=0)) > 5
    again = np.asarray(model.apply(model.params, x, rng_key=jax.random.key(0)))
    np.testing.assert_array_equal(noise, again)


class Call(torch.nn.Module):
    def __init__(self, fn):
        super().__init__()
        self.fn = fn

    def forward(self, *args):
        return self.fn(*args)


def causal(b, h, q, k):
    return q >= k


def alibi(score, b, h, q, k):
    return score - (q - k) * 2.0 ** -(h + 1)


@pytest.mark.parametrize("heads", [4, 2], ids=["as many heads", "grouped"])
def test_flex_attention(heads):
    mask = create_block_mask(causal, B=None, H=None, Q_LEN=96, KV_LEN=128, device="cpu")
    q, k, v = _x(0, 2, 4, 96, 16), _x(1, 2, heads, 128, 16), _x(2, 2, heads, 128, 8)
    call = lambda q, k, v: flex_attention(
        q, k, v, score_mod=alibi, block_mask=mask, enable_gqa=True, return_lse=True
    )
    model = assert_same(Call(call), (q, k, v))
    assert [n.op for n in graph(model).nodes].count("higher_order.flex_attention") == 1


def test_flex_attention_reads_buffers_and_masks_rows_wholly():
    bias = _x(3, 4)
    documents = torch.tensor([0] * 40 + [1] * 24)

    def fn(q, k, v, bias, documents):
        def score(score, b, h, q, k):
            return score * (b + 1) + bias[h]

        def visible(b, h, q, k):
            return (documents[q] == documents[k]) & (q > k)

        mask = create_block_mask(visible, None, None, 64, 64, device="cpu")
        return flex_attention(q, k, v, score_mod=score, block_mask=mask)

    args = (*(_x(i, 2, 4, 64, 16) for i in range(3)), bias, documents)
    model = assert_same(Call(fn), args)
    out = np.asarray(model(*args))
    assert not out[:, :, 0].any()  # the first query of each document sees nothing
    assert not out[:, :, 40].any()
    assert out[:, :, 1].any()
    arrays = [np.asarray(x) for x in args]
    total = jax.jit(lambda q: model.apply(model.params, q, *arrays[1:]).sum())
    step = np.asarray(_x(4, *args[0].shape)) * 1e-2
    along = (total(arrays[0] + step) - total(arrays[0] - step)) / 2
    # torch has no backward of it on CPU; a difference of steps is good to three digits
    np.testing.assert_allclose((jax.grad(total)(arrays[0]) * step).sum(), along, rtol=1e-2)


def test_vmap_and_associative_scan_are_ordinary_operators():
    from torch._higher_order_ops.associative_scan import associative_scan

    assert_same(Call(lambda x: torch.vmap(lambda y: (y**2).sum() - y)(x)), (_x(0, 5, 3),))
    add = lambda x: associative_scan(torch.add, x, dim=0, combine_mode="generic")
    assert_same(Call(add), (_x(0, 7, 3),))


def test_functional_call():
    layer = torch.nn.Linear(3, 3)

    class Doubled(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = layer

        def forward(self, x):
            weights = {"weight": self.layer.weight * 2, "bias": self.layer.bias}
            return torch.func.functional_call(self.layer, weights, (x,))

    assert_same(Doubled(), (_x(0, 5, 3),))


@pytest.mark.filterwarnings("ignore:`torch.jit.script`:DeprecationWarning")  # of jvp
@pytest.mark.parametrize(
    "fn",
    [
        lambda x: torch.func.grad(lambda y: (y**3).sum())(x) + x,
        lambda x: torch.func.grad(lambda y: (y @ y.t()).sum())(x),
        lambda x: torch.func.jvp(torch.sin, (x,), (x,))[1],
    ],
)
def test_derivatives_inside_a_forward_are_refused(fn):
    with pytest.raises(ji.JaxinferError, match=r"torch\.func\.grad.*jax\.grad"):
        ji.from_torch(Call(fn), (_x(0, 5, 3),))


def test_regions_marked_for_torchs_compiler_are_called():
    strict = torch.ops.higher_order.strict_mode
    hints = torch.ops.higher_order.hints_wrapper
    assert_same(Call(lambda x: strict(lambda y: (y.sin(),), (x,))), (_x(0, 5, 3),))
    fn = lambda x: hints(lambda y: y.sin(), (x,), {}, hints={"tile": 1})
    assert_same(Call(fn), (_x(0, 5, 3),))


def test_invoke_quant_packed():
    from torch._higher_order_ops import invoke_quant_packed

    assert_same(Call(lambda x: invoke_quant_packed(lambda y: (y.sin(),), x)[0]), (_x(0, 5, 3),))


def test_out_dtype_sums_in_the_wider_type():
    def fn(x):
        x = (x * 20).clamp(-127, 127).to(torch.int8)
        return torch.ops.higher_order.out_dtype(torch.ops.aten.mm.default, torch.int32, x, x.t())

    model = assert_same(Call(fn), (_x(0, 5, 64),))
    assert np.abs(np.asarray(model(_x(0, 5, 64)))).max() > 2**13


def graph(model):
    assert isinstance(model.program, GraphProgram)
    return model.program.graph
