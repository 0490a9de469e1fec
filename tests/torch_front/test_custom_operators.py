"""Custom operators: several outputs, lists, arguments that are written to, gradients."""

import jax
import numpy as np
import pytest
import torch

import jaxinfer as ji
from jaxinfer.core.ops import OPS
from jaxinfer_converters.program import GraphProgram

SPACE = "jaxinfer_custom_tests"


@torch.library.custom_op(f"{SPACE}::shift", mutates_args={"x"})
def shift(x: torch.Tensor, by: float) -> None:
    x.add_(by)


@torch.library.custom_op(f"{SPACE}::take", mutates_args={"pool"})
def take(pool: torch.Tensor, amount: float, *, scale: float = 1.0) -> torch.Tensor:
    before = pool.sum()
    pool.sub_(amount * scale)
    return before


@take.register_fake
def _(pool, amount, *, scale=1.0):
    return pool.new_empty(())


@torch.library.custom_op(f"{SPACE}::shift_all", mutates_args={"xs"})
def shift_all(xs: list[torch.Tensor], by: torch.Tensor) -> None:
    for x in xs:
        x.add_(by)


@torch.library.custom_op(f"{SPACE}::extent", mutates_args=())
def extent(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return x.amin(), x.amax()


@extent.register_fake
def _(x):
    return x.new_empty(()), x.new_empty(())


@pytest.fixture
def rules():
    """Rules of the operators above, for one test."""
    known = {
        f"{SPACE}.shift.default": lambda x, by: x + by,
        f"{SPACE}.take.default": lambda pool, amount, *, scale=1.0: (
            pool.sum(),
            pool - amount * scale,
        ),
        f"{SPACE}.shift_all.default": lambda xs, by: ([x + by for x in xs],),
        f"{SPACE}.extent.default": lambda x: (x.min(), x.max()),
    }
    for name, fn in known.items():
        ji.register(name)(fn)
    yield known
    for name in known:
        OPS.unregister(name)


class Call(torch.nn.Module):
    def __init__(self, fn):
        super().__init__()
        self.fn = fn
        self.register_buffer("pool", torch.arange(12.0).reshape(3, 4))

    def forward(self, *args):
        return self.fn(self, *args)


def all_of_it(m, x):
    y = x * 1
    shift(y, 2.0)
    return y


def a_row(m, x):
    y = x * 1
    taken = take(y[1], 2.0, scale=3.0)
    return y, taken


def a_slice(m, x):
    y = x * 1
    shift(y[:, 1:3], 2.0)
    shift(y.t()[0], 1.0)
    return y


def a_list(m, x):
    y, z = x * 1, x * 2
    shift_all([y, z[0]], x.sum())
    return y, z


def a_buffer(m, x):
    return take(m.pool, 0.5) + x, m.pool * 1


def an_input(m, x):
    shift(x, 1.0)
    return x * 2


@pytest.mark.parametrize(
    "fn", [all_of_it, a_row, a_slice, a_list, a_buffer, an_input], ids=lambda fn: fn.__name__
)
def test_operators_that_write(fn, rules):
    x = torch.randn(3, 4)
    model = ji.from_torch(Call(fn), (x.clone(),))
    assert isinstance(model.program, GraphProgram)
    module, mine, params = Call(fn), x.clone(), model.params
    given = x.numpy().copy()
    for _ in range(3):
        want = module(mine)
        got = model.apply(params, given)
        if model.program.mutates:
            got, state = got
            params = {**params, **{name: state[name] for name in state if name in params}}
            given = next((state[name] for name in state if name not in params), given)
        for w, g in zip(*(y if isinstance(y, tuple) else (y,) for y in (want, got)), strict=True):
            np.testing.assert_allclose(g, w, rtol=1e-5, atol=1e-5)
    if "pool" in params:
        np.testing.assert_allclose(params["pool"], dict(module.named_buffers())["pool"], rtol=1e-6)


def test_a_rule_that_forgets_the_new_value_is_told():
    name = f"{SPACE}.take.default"
    ji.register(name)(lambda pool, amount, *, scale=1.0: pool.sum())
    try:
        with pytest.raises(ji.JaxinferError, match=r"returns 1 values, required 2.*pool"):
            ji.from_torch(Call(a_row), (torch.randn(3, 4),))
    finally:
        OPS.unregister(name)


def test_missing_rules_name_the_operator_that_writes():
    with pytest.raises(NotImplementedError, match=rf"{SPACE}\.shift\.default: 2 times"):
        ji.from_torch(Call(a_slice), (torch.randn(3, 4),))


def test_several_outputs(rules):
    x = torch.randn(3, 4)
    model = ji.from_torch(Call(lambda m, x: extent(x)), (x,))
    np.testing.assert_allclose(model(x), [x.min(), x.max()])


def test_a_rule_with_its_own_gradient():
    """A custom autograd.Function's backward is carried by a rule with a custom_vjp."""
    name = f"{SPACE}.straight.default"

    @torch.library.custom_op(f"{SPACE}::straight", mutates_args=())
    def straight(x: torch.Tensor) -> torch.Tensor:
        return x.round()

    straight.register_fake(torch.empty_like)
    straight.register_autograd(lambda context, gradient: gradient)

    @jax.custom_vjp
    def rounded(x):
        return jax.numpy.round(x)

    rounded.defvjp(lambda x: (rounded(x), None), lambda _, gradient: (gradient,))
    ji.register(name)(rounded)
    try:
        x = torch.randn(3, 4)
        model = ji.from_torch(Call(lambda m, x: straight(x * 2) ** 2), (x,))
        leaf = x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad((straight(leaf * 2) ** 2).sum(), leaf)
        got = jax.grad(lambda x: model.apply(model.params, x).sum())(x.numpy())
        np.testing.assert_allclose(got, gradient, rtol=1e-6)
        assert np.abs(got).max() > 0
    finally:
        OPS.unregister(name)
