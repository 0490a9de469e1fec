"""What a converted model must keep of torch's meaning: dtypes, ties, state, structure, views."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch import nn

import jaxinfer as ji
from tests.conftest import assert_parity, randomize


def convert(module, *args, dynamic=None, **kwargs):
    return ji.from_torch(module.eval(), args, kwargs or None, dynamic)


class Lambda(nn.Module):
    def __init__(self, fn):
        super().__init__()
        self.fn = fn

    def forward(self, *args, **kwargs):
        return self.fn(*args, **kwargs)


def test_params_are_keyed_by_the_state_dict():
    module = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 2))
    model = convert(randomize(module), torch.randn(4, 3))
    unread = {"1.num_batches_tracked"}
    assert set(model.params) == set(module.state_dict()) - unread
    assert model.provenance["unread_buffers"] == sorted(unread)
    for name, value in ji.to_state_dict(model).items():
        np.testing.assert_array_equal(value, module.state_dict()[name].numpy())
    assert_parity(model, module, (torch.randn(4, 3),))


@pytest.mark.parametrize("features", [3, 64, 100])
def test_params_are_a_copy(features):
    module = nn.Linear(features, 64)
    model = convert(module, torch.randn(2, features))
    before = np.array(model.params["weight"])
    with torch.no_grad():
        module.weight.zero_()
    np.testing.assert_array_equal(model.params["weight"], before)


def test_apply_is_pure_and_traces_under_every_transform():
    module = randomize(nn.Sequential(nn.Linear(3, 5), nn.GELU(), nn.Linear(5, 2)))
    model = convert(module, torch.randn(4, 3), dynamic=({0: "batch"},))
    x = jnp.asarray(np.random.default_rng(0).standard_normal((7, 3)), jnp.float32)
    y = model.apply(model.params, x)
    np.testing.assert_allclose(jax.jit(model.apply)(model.params, x), y, rtol=1e-5, atol=1e-6)
    assert jax.eval_shape(model.apply, model.params, x).shape == (7, 2)
    stacked = jax.vmap(model.apply, in_axes=(None, 0))(model.params, x[:, None])
    np.testing.assert_allclose(stacked[:, 0], y, rtol=1e-5, atol=1e-6)
    grads = jax.grad(lambda p: model.apply(p, x).sum())(model.params)
    inputs = torch.from_numpy(np.array(x))
    module(inputs).sum().backward()
    for name, parameter in module.named_parameters():
        got = ji.to_state_dict(model, grads)[name]
        np.testing.assert_allclose(got, parameter.grad.numpy(), rtol=1e-4, atol=1e-5)


def test_tied_weights_stay_one_parameter():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(11, 7)
            self.head = nn.Linear(7, 11, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, ids):
            return self.head(self.embed(ids))

    module = Tied()
    ids = torch.randint(0, 11, (2, 5))
    model = convert(module, ids)
    assert list(model.params) == ["embed.weight"]
    assert model.provenance["tied"] == {"head.weight": "embed.weight"}
    assert_parity(model, module, (ids,))


@dataclasses.dataclass
class Pair:
    first: torch.Tensor
    second: torch.Tensor


class Point(NamedTuple):
    x: torch.Tensor
    y: torch.Tensor


torch.export.register_dataclass(Pair)


@pytest.mark.parametrize(
    ("build", "check"),
    [
        (lambda a: (a, [a + 1]), lambda o: isinstance(o, tuple) and isinstance(o[1], list)),
        (lambda a: {"z": a, "b": {"c": a}}, lambda o: list(o) == ["z", "b"] and "c" in o["b"]),
        (lambda a: Pair(a, a + 1), lambda o: o.second.shape == o.first.shape and len(o) == 2),
        (lambda a: Point(a, a + 1), lambda o: o.y.shape == o.x.shape and o._fields == ("x", "y")),
        (lambda a: torch.sort(a), lambda o: o.values.shape == (3,)),
        (lambda a: torch.topk(a, 2), lambda o: o.values.shape == o.indices.shape == (2,)),
        (lambda a: (a, None, 3), lambda o: o[1] is None and o[2] == 3),
    ],
    ids=["tuple-list", "dict", "dataclass", "namedtuple", "sort", "topk", "fixed-values"],
)
def test_outputs_keep_the_modules_structure(build, check):
    model = convert(Lambda(build), torch.randn(3))
    assert check(model(torch.randn(3)))
    assert check(model.apply(model.params, jnp.ones(3)))


def test_nested_inputs_by_position_and_by_name():
    class Nested(nn.Module):
        def forward(self, batch, scale, *, shift=None):
            out = batch["ids"] * scale[0] + scale[1]
            return out if shift is None else out + shift

    x = torch.randn(3, 5)
    args = ({"ids": x}, (x + 1, x + 2))
    model = convert(Nested(), *args, shift=x)
    want = Nested()(*args, shift=x).numpy()
    np.testing.assert_allclose(model(*args, shift=x), want, rtol=1e-6)
    np.testing.assert_allclose(model(batch=args[0], scale=args[1], shift=x), want, rtol=1e-6)
    assert [leaf.path for leaf in model.inputs] == ["batch.ids", "scale.0", "scale.1", "shift"]


class Counter(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("total", torch.zeros(3))

    def forward(self, x):
        self.total.add_(x)
        return self.total * 2


def test_one_tensor_passed_twice_is_two_inputs():
    class Difference(torch.nn.Module):
        def forward(self, a, b, more):
            return a - 2 * b + 4 * more["c"]

    x = torch.zeros(3)
    model = ji.from_torch(Difference(), (x, x), {"more": {"c": x}})
    one, two, three = np.ones(3, "f4"), np.full(3, 2, "f4"), np.full(3, 3, "f4")
    np.testing.assert_array_equal(model(one, two, more={"c": three}), np.full(3, 9))


def test_mutated_buffers_come_back_as_new_state():
    model = convert(Counter(), torch.ones(3))
    x = jnp.arange(3.0)
    out, state = model(x)
    np.testing.assert_array_equal(out, [0, 2, 4])
    out, state = model.apply({**model.params, **state}, x)
    np.testing.assert_array_equal(state["total"], [0, 2, 4])
    np.testing.assert_array_equal(model.params["total"], np.zeros(3))


def test_mutated_inputs_come_back_as_new_state():
    model = convert(Lambda(lambda x: x.mul_(2).sum()), torch.ones(3))
    out, state = model(np.arange(3, dtype=np.float32))
    assert float(out) == 6
    (value,) = state.values()
    np.testing.assert_array_equal(value, [0, 2, 4])


def test_batch_norm_in_training_returns_its_statistics():
    module = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3))
    model = ji.from_torch(module.train(), (torch.randn(4, 2, 5, 5),))
    x = torch.randn(4, 2, 5, 5)
    out, state = model(x)
    np.testing.assert_allclose(out, module(x).detach(), rtol=1e-4, atol=1e-5)
    for name in ("1.running_mean", "1.running_var", "1.num_batches_tracked"):
        np.testing.assert_allclose(state[name], module.state_dict()[name], rtol=1e-5, atol=1e-6)


def test_instance_norm_in_training_returns_its_statistics():
    module = nn.InstanceNorm2d(3, affine=True, track_running_stats=True).train()
    x = torch.randn(4, 3, 5, 7)
    model = ji.from_torch(module, (x,))
    out, state = model(x)
    np.testing.assert_allclose(out, module(x).detach(), rtol=1e-4, atol=1e-5)
    for name in ("running_mean", "running_var"):
        np.testing.assert_allclose(state[name], module.state_dict()[name], rtol=1e-5, atol=1e-6)


def test_float64_models_say_that_they_are_narrowed():
    x = torch.randn(3, dtype=torch.float64)
    model = convert(Lambda(lambda x: x * 2), x)
    np.testing.assert_allclose(model(x), x * 2, rtol=1e-6)
    assert model(x).dtype == jnp.float32
    assert model.provenance["narrowed"] == [
        "1 values of float64 are computed in float32 (x64 is off)"
    ]
    with pytest.raises(ji.JaxinferError, match="got float16"):
        model(np.zeros(3, np.float16))


def test_inputs_of_dataclasses_and_plain_values():
    pair = Pair(torch.randn(3), torch.randn(3))
    fn = lambda pair, mode, n=None: pair.first - pair.second if mode == "minus" else None
    module = Lambda(lambda pair, mode, n=None: fn(pair, mode, n))
    assert_parity(convert(module, pair, "minus"), module, (pair, "minus"))


def test_views_and_in_place_operations():
    def fn(x):
        y = x.clone()
        y[:, 1:3].add_(1)
        y.transpose(0, 1)[0] = 7
        y.view(-1)[2:4].zero_()
        return y.t()

    model = convert(Lambda(fn), torch.randn(4, 5))
    assert_parity(model, Lambda(fn), (torch.randn(4, 5),))


def test_dropout_is_off_in_eval_and_takes_a_key_in_training():
    module = nn.Sequential(nn.Linear(3, 1000), nn.Dropout(0.25))
    x = torch.randn(2, 3)
    assert_parity(convert(module, x), module, (x,))
    model = ji.from_torch(module.train(), (x,))
    with pytest.raises(ji.JaxinferError, match=r"rng_key.*dropout"):
        model(x)
    first = np.asarray(model(x, rng_key=jax.random.key(0)))
    np.testing.assert_array_equal(first, model(x, rng_key=jax.random.key(0)))
    assert (first != np.asarray(model(x, rng_key=jax.random.key(1)))).any()
    kept = first != 0
    assert 0.7 < kept.mean() < 0.8
    linear = module[0](x).detach().numpy()
    np.testing.assert_allclose(first[kept], linear[kept] / 0.75, rtol=1e-4, atol=1e-5)


def test_promotion_and_integer_division():
    def fn(i, f, h):
        return i / 2, i // 3, i % 3, i * 2.5, h * f[0, 0], h + 1, i + True, (i > 2) + i, f * i

    args = (
        torch.arange(-4, 5),
        torch.randn(3, 3),
        torch.randn(3).half(),
    )
    model = convert(Lambda(lambda i, f, h: fn(i, f[:, :1], h)[:8]), *args)
    module = Lambda(lambda i, f, h: fn(i, f[:, :1], h)[:8])
    for want, got in zip(module(*args), model(*args), strict=True):
        name = str(want.dtype).removeprefix("torch.").replace("int64", "int32")
        assert got.dtype.name == name
        np.testing.assert_allclose(np.asarray(got, np.float64), want.double(), rtol=1e-3)


def test_int64_values_that_would_wrap_are_errors():
    model = convert(Lambda(lambda i: i * 2), torch.arange(3))
    assert model(np.arange(3)).dtype == jnp.int32
    with pytest.raises(OverflowError, match=r"i?.*4294967296 does not fit int32"):
        model(np.array([1, 2**32, 3]))
    with pytest.raises(OverflowError, match="does not fit"):
        model(torch.tensor([1, 2, -(2**40)]))
    module = Lambda(lambda i: i)
    module.register_buffer("big", torch.tensor([2**40]))
    module.fn = lambda i: i + module.big
    with pytest.raises(ji.JaxinferError, match=r"big.*1099511627776"):
        convert(module, torch.arange(3))
    with pytest.raises((ji.JaxinferError, OverflowError), match="1099511627776"):
        convert(Lambda(lambda i: i + 2**40), torch.arange(3))


def test_x64_computes_in_64_bits():
    module = Lambda(lambda i, f: (i * 2**20 * 2**20, f * 3))
    args = (torch.arange(3), torch.randn(3, dtype=torch.float64))
    with jax.enable_x64(True):
        model = convert(module, *args)
        out = model(*args)
        assert out[0].dtype == jnp.int64
        assert out[1].dtype == jnp.float64
        np.testing.assert_array_equal(out[0], module(*args)[0])
        np.testing.assert_array_equal(out[1], module(*args)[1])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_modules_are_as_accurate_as_torch(dtype):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(64, 128), nn.LayerNorm(128), nn.GELU(), nn.Linear(128, 16))
    module.append(nn.Softmax(-1))
    exact = module.double()
    x = torch.randn(8, 64)
    want = exact(x.double()).detach().numpy()
    half = module.to(dtype)
    torch_error = np.abs(half(x.to(dtype)).detach().double().numpy() - want).max()
    model = convert(half, x.to(dtype))
    out = model(x.to(dtype))
    assert out.dtype.name == str(dtype).removeprefix("torch.")
    assert np.abs(np.asarray(out, np.float64) - want).max() <= 1.5 * torch_error


def test_complex_and_fft():
    def fn(x):
        spectrum = torch.fft.rfft(x)
        turned = torch.view_as_complex(torch.stack([x[..., :4], x[..., 4:]], -1))
        return torch.fft.irfft(spectrum * 2, n=8), spectrum.abs(), torch.view_as_real(turned * 1j)

    assert_parity(convert(Lambda(fn), torch.randn(3, 8)), Lambda(fn), (torch.randn(3, 8),))


def test_a_number_read_from_a_tensor():
    def fn(x, ids):
        return x * x.max().item() + ids.sum().item()

    args = (torch.randn(5), torch.arange(4))
    assert_parity(convert(Lambda(fn), *args), Lambda(fn), args)


def test_constants_and_non_persistent_buffers():
    class Rotary(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("inv", 1 / 10 ** torch.arange(3.0), persistent=False)
            self.register_buffer("table", torch.randn(600, 600), persistent=False)
            self.weight = nn.Parameter(torch.randn(3))

        def forward(self, x):
            return x * self.inv * self.weight + torch.tensor([1.0, 2.0, 3.0]) + self.table[0, :3]

    model = convert(Rotary(), torch.randn(3))
    # small tensors outside the state_dict belong to the function; larger ones are not baked in
    assert set(model.params) == {"weight", "table"}
    assert "inv" in model.program.arrays


def test_random_operators_take_a_key():
    class Noise(nn.Module):
        def forward(self, x):
            return x + torch.randn_like(x)

    model = convert(Noise(), torch.zeros(1000))
    with pytest.raises(ji.JaxinferError, match="rng_key"):
        model(np.zeros(1000, np.float32))
    out = np.asarray(model(np.zeros(1000, np.float32), rng_key=jax.random.key(3)))
    assert abs(out.mean()) < 0.15
    assert 0.9 < out.std() < 1.1


def test_random_numbers_that_nothing_reads_take_no_key():
    def fn(x):
        torch.randn(3)
        return x + 4

    assert_parity(convert(Lambda(fn), torch.randn(5)), Lambda(fn), (torch.randn(5),))


def test_custom_operator_through_register():
    @torch.library.custom_op("jaxinfer_tests::scale", mutates_args=())
    def scale(x: torch.Tensor, factor: float) -> torch.Tensor:
        return x * factor

    @scale.register_fake
    def _(x, factor):
        return torch.empty_like(x)

    module = Lambda(lambda x: scale(x, 3.0) + 1)
    with pytest.raises(NotImplementedError, match=r"jaxinfer_tests\.scale\.default: 1 times"):
        convert(module, torch.randn(4))

    @ji.register("jaxinfer_tests.scale.default")
    def rule(x, factor):
        return x * factor

    try:
        assert_parity(convert(module, torch.randn(4)), module, (torch.randn(4),))
    finally:
        from jaxinfer.core.ops import OPS

        OPS.unregister("jaxinfer_tests.scale.default")


def test_exported_program_is_taken_as_it_is():
    module = randomize(nn.Linear(3, 2))
    batch = torch.export.Dim("batch")
    program = torch.export.export(module, (torch.randn(4, 3),), dynamic_shapes=({0: batch},))
    model = ji.from_torch(program)
    assert model.inputs[0].shape == ("batch", 3)
    assert_parity(model, module, (torch.randn(9, 3),))
    with pytest.raises(ji.JaxinferError, match="pass it alone"):
        ji.from_torch(program, (torch.randn(4, 3),))


def test_module_path_and_source_line_survive():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Sequential(nn.Linear(3, 3), nn.GELU())

        def forward(self, x):
            return self.inner(x) + torch.sigmoid(x)

    model = convert(Block(), torch.randn(2, 3))
    nodes = {node.op: node for node in model.program.graph.nodes}
    assert nodes["aten.linear.default"].path == "inner.0"
    assert "test_semantics.py" in nodes["aten.sigmoid.default"].source
    assert "torch.sigmoid(x)" in nodes["aten.sigmoid.default"].source


def test_to_nnx_nests_trains_and_keeps_buffers():
    import optax
    from flax import nnx

    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 1)
    )
    model = convert(randomize(module), torch.randn(8, 1, 4, 4), dynamic=({0: "batch"},))
    converted = model.to_nnx()
    x = jnp.asarray(np.random.default_rng(0).standard_normal((32, 1, 4, 4)), jnp.float32)
    np.testing.assert_allclose(converted(x), model(x), rtol=1e-5, atol=1e-6)
    params = nnx.to_pure_dict(nnx.state(converted, nnx.Param))
    assert set(params) == {"0", "1", "4"}
    assert set(params["1"]) == {"weight", "bias"}  # the running statistics are no Param
    target = x.sum((1, 2, 3))[:, None]
    optimizer = nnx.Optimizer(converted, optax.adam(1e-2), wrt=nnx.Param)

    @nnx.jit
    def step(module, optimizer):
        loss, grads = nnx.value_and_grad(lambda m: jnp.mean((m(x) - target) ** 2))(module)
        optimizer.update(module, grads)
        return loss

    losses = [float(step(converted, optimizer)) for _ in range(60)]
    assert losses[-1] < 0.5 * losses[0]
    graphdef, state = nnx.split(converted)
    np.testing.assert_allclose(nnx.merge(graphdef, state)(x), converted(x), rtol=1e-5, atol=1e-6)


def test_to_nnx_updates_changed_buffers():
    counter = convert(Counter(), torch.ones(3)).to_nnx()
    counter(jnp.ones(3))
    np.testing.assert_array_equal(counter(jnp.ones(3)), [4, 4, 4])
    np.testing.assert_array_equal(counter.total[...], [2, 2, 2])


def test_the_ends_of_int64_in_a_constant_stand_for_infinity():
    class Largest(nn.Module):
        def forward(self, x, mask):
            return torch.where(mask, x, torch.tensor(torch.iinfo(torch.int64).min)).amax(0)

    x = torch.tensor([[3, -5], [7, 2]])
    mask = torch.tensor([[True, True], [False, True]])
    model = ji.from_torch(Largest(), (x, mask))
    np.testing.assert_array_equal(model(x, mask), [3, 2])
    assert ["stand for the ends of int32" in note for note in model.provenance["narrowed"]] == [
        True
    ]
