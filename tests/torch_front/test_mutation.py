"""Modules that change their buffers and inputs, over several calls, against torch."""

import copy

import jax
import numpy as np
import pytest
import torch
from torch import nn

import jaxinfer as ji
from jaxinfer_converters.program import GraphProgram


class Counter(nn.Module):
    """A counter read as an index, and a total."""

    count: torch.Tensor
    total: torch.Tensor

    def __init__(self):
        super().__init__()
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        self.register_buffer("total", torch.zeros(3))

    def forward(self, x):
        self.count += 1
        self.total += x.sum(0)
        return self.total / self.count


class Ring(nn.Module):
    """A ring buffer: one row is written at a position that is data."""

    rows: torch.Tensor
    at: torch.Tensor

    def __init__(self):
        super().__init__()
        self.register_buffer("rows", torch.zeros(4, 3))
        self.register_buffer("at", torch.zeros(1, dtype=torch.int64))

    def forward(self, x):
        self.rows.index_copy_(0, self.at, x[:1])
        self.at.copy_((self.at + 1) % 4)
        return self.rows.mean(0)


class Cache(nn.Module):
    """Keys and values written into slices of one buffer; views of it are read."""

    cache: torch.Tensor
    length: torch.Tensor

    def __init__(self):
        super().__init__()
        self.register_buffer("cache", torch.zeros(2, 5, 6, 3))
        self.register_buffer("length", torch.zeros((), dtype=torch.int64))
        self.key, self.value = nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, x):
        keys, values = self.cache[0], self.cache[1]
        place = self.length + torch.arange(1)
        keys[:, place] = self.key(x)
        values.index_put_((torch.arange(5)[:, None], place[None]), self.value(x))
        self.length.add_(1)
        return torch.nn.functional.scaled_dot_product_attention(x, keys, values)


class Shifted(nn.Module):
    """A convolution's state: the buffer is shifted along by views of itself."""

    state: torch.Tensor

    def __init__(self):
        super().__init__()
        self.register_buffer("state", torch.zeros(2, 3, 4))
        self.weight = nn.Parameter(torch.randn(3, 4))

    def forward(self, x):
        self.state[..., :-1] = self.state[..., 1:].clone()
        self.state[..., -1] = x
        return (self.state * self.weight).sum(-1)


class Several(nn.Module):
    """Lists and dicts of buffers, and one with two names."""

    level0: torch.Tensor
    level1: torch.Tensor
    level2: torch.Tensor

    def __init__(self):
        super().__init__()
        for index in range(3):
            self.register_buffer(f"level{index}", torch.zeros(3))
        self.inner = nn.ModuleDict({"a": Counter(), "b": Counter()})

    def forward(self, x):
        levels = [self.level0, self.level1, self.level2]
        for weight, level in enumerate(levels):
            level.mul_(0.5).add_(x.mean(0) * weight)
        first, second = self.inner["a"](x), self.inner["b"](x * 2)
        return torch.stack(levels), first + second


class Views(nn.Module):
    """Writes through transposed, strided, diagonal and reshaped views."""

    grid: torch.Tensor

    def __init__(self):
        super().__init__()
        self.register_buffer("grid", torch.arange(16.0).reshape(4, 4))

    def forward(self, x):
        self.grid.t()[0].add_(x[0].sum())
        self.grid[::2, 1::2].mul_(2)
        self.grid.diagonal().fill_(1)
        self.grid.view(-1)[3:7].sub_(x.mean())
        self.grid.view(2, 8)[1, :3] = x[0]
        torch.relu_(self.grid[1])
        return self.grid @ self.grid


class Masked(nn.Module):
    """Assignments where a mask says so, and replaced buffers."""

    best: torch.Tensor
    seen: torch.Tensor

    def __init__(self):
        super().__init__()
        self.register_buffer("best", torch.full((5, 3), -float("inf")))
        self.register_buffer("seen", torch.zeros(5, 3, dtype=torch.bool))

    def forward(self, x):
        better = x > self.best
        self.best.copy_(torch.where(better, x, self.best))
        self.seen = self.seen | better  # a new tensor under the buffer's name
        self.best[self.best > 1.5] = 1.0
        return self.best.sum(), self.seen.sum()


class Teacher(nn.Module):
    """A moving average of parameters, kept without gradients."""

    teacher: torch.Tensor

    def __init__(self):
        super().__init__()
        self.student = nn.Linear(3, 3)
        self.register_buffer("teacher", torch.zeros(3, 3))

    def forward(self, x):
        with torch.no_grad():
            self.teacher.lerp_(self.student.weight, 0.25)
        return self.student(x) - x @ self.teacher.t()


def x_of(call, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(call))


MODULES = {
    "counter": (Counter, (5, 3)),
    "ring": (Ring, (5, 3)),
    "cache": (Cache, (5, 1, 3)),
    "shifted": (Shifted, (2, 3)),
    "several": (Several, (5, 3)),
    "views": (Views, (5, 3)),
    "masked": (Masked, (5, 3)),
    "teacher": (Teacher, (5, 3)),
}


@pytest.mark.parametrize("name", MODULES)
def test_state_over_several_calls(name):
    build, shape = MODULES[name]
    torch.manual_seed(0)
    module = build().eval()
    model = ji.from_torch(copy.deepcopy(module), (x_of(0, *shape),))
    step = jax.jit(model.apply)
    params, changed = model.params, set()
    for call in range(5):
        x = x_of(call, *shape)
        with torch.no_grad():
            want = module(x)
        got, state = step(params, x.numpy())
        params = {**params, **state}
        changed |= set(state)
        flat = [(y,) if not isinstance(y, tuple) else y for y in (want, got)]
        for w, g in zip(*flat, strict=True):
            np.testing.assert_allclose(g, w, rtol=1e-5, atol=1e-5)
        for buffer, value in module.named_buffers():
            np.testing.assert_allclose(params[buffer], value, rtol=1e-5, atol=1e-5)
    assert changed == {buffer for buffer, _ in module.named_buffers()}


def test_state_is_scanned():
    """Calls in a ``lax.scan``, with the state as carry."""
    torch.manual_seed(0)
    module = Cache().eval()
    model = ji.from_torch(copy.deepcopy(module), (x_of(0, 5, 1, 3),))
    xs = torch.stack([x_of(call, 5, 1, 3) for call in range(6)])
    assert isinstance(model.program, GraphProgram)
    buffers = {name: model.params[name] for name in model.program.mutates}

    def step(state, x):
        out, state = model.apply({**model.params, **state}, x)
        return state, out

    state, outs = jax.lax.scan(step, buffers, xs.numpy())
    with torch.no_grad():
        want = torch.stack([module(x) for x in xs])
    np.testing.assert_allclose(outs, want, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(state["cache"], dict(module.named_buffers())["cache"], atol=1e-6)


def test_inputs_changed_through_views_come_back():
    class Writes(nn.Module):
        def forward(self, batch, extra):
            batch["x"][:, 1:].mul_(3)
            extra[0].t()[1] = batch["x"].sum(0)[:2]
            return batch["x"].sum()

    args = lambda: ({"x": x_of(0, 5, 3)}, [x_of(1, 2, 4)])
    model = ji.from_torch(Writes(), args())
    mine = args()
    want = Writes()(*mine)
    got, state = model(*args())
    np.testing.assert_allclose(got, want, rtol=1e-6)
    assert set(state) == {"batch.x", "extra.0"}
    np.testing.assert_allclose(state["batch.x"], mine[0]["x"], rtol=1e-6)
    np.testing.assert_allclose(state["extra.0"], mine[1][0], rtol=1e-6)
