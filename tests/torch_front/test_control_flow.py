"""torch.cond, while_loop, scan and map, end to end, against torch."""

import jax
import numpy as np
import pytest
import torch
from torch._higher_order_ops.map import map as torch_map
from torch._higher_order_ops.scan import scan as torch_scan
from torch._higher_order_ops.while_loop import while_loop as torch_while_loop

import jaxinfer as ji


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
