"""Counts against arithmetic done by hand, and against loops that count every product."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxinfer.core.flops import Cost, count


def struct(*shape, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(shape, dtype)


def test_matrix_product_is_two_flops_a_multiply_add():
    cost = count(lambda a, b: a @ b, struct(3, 5), struct(5, 7))
    assert cost.flops == 2 * 3 * 5 * 7
    assert dict(cost.by_primitive) == {"dot_general": 210}


def test_batched_product_counts_each_batch():
    cost = count(lambda a, b: jnp.einsum("bij,bkj->bik", a, b), struct(2, 3, 5), struct(2, 7, 5))
    assert cost.flops == 2 * 2 * 3 * 7 * 5


def test_complex_multiply_add_is_eight():
    c64 = jnp.complex64
    cost = count(lambda a, b: a @ b, struct(3, 5, dtype=c64), struct(5, 7, dtype=c64))
    assert cost.flops == 8 * 3 * 5 * 7
    assert count(lambda a, b: a * b + a, struct(4, dtype=c64), struct(4, dtype=c64)).flops == 32


def slow_convolution_products(size, taps, stride, low, high, lhs_dilation, rhs_dilation):
    """Every (output, tap) pair of one axis; those on inserted zeros or beyond are dropped."""
    dilated = (size - 1) * lhs_dilation + 1
    reach = (taps - 1) * rhs_dilation + 1
    outputs = (dilated + low + high - reach) // stride + 1
    pairs = 0
    for o, t in itertools.product(range(outputs), range(taps)):
        at = o * stride + t * rhs_dilation - low
        if lhs_dilation == 1 or at in range(0, dilated, lhs_dilation):
            pairs += 1
    return pairs


@pytest.mark.parametrize(
    ("groups", "stride", "pads", "lhs_dilation", "rhs_dilation"),
    [
        (1, (1, 1), ((1, 1), (1, 1)), (1, 1), (1, 1)),
        (3, (2, 1), ((0, 0), (2, 1)), (1, 1), (1, 2)),
        (1, (1, 1), ((2, 2), (2, 2)), (2, 3), (1, 1)),
        (3, (1, 1), ((1, 2), (0, 1)), (2, 2), (2, 1)),
    ],
)
def test_convolution(groups, stride, pads, lhs_dilation, rhs_dilation):
    x, w = struct(2, 6, 11, 7), struct(9, 6 // groups, 3, 2)

    def conv(x, w):
        return lax.conv_general_dilated(
            x,
            w,
            stride,
            pads,
            lhs_dilation=lhs_dilation,
            rhs_dilation=rhs_dilation,
            feature_group_count=groups,
        )

    pairs = math.prod(
        slow_convolution_products(11 if i == 0 else 7, (3, 2)[i], stride[i], *pads[i], ld, rd)
        for i, (ld, rd) in enumerate(zip(lhs_dilation, rhs_dilation, strict=True))
    )
    assert count(conv, x, w).flops == 2 * 2 * 9 * (6 // groups) * pairs


def test_full_transposed_convolution_is_input_times_taps():
    """torch counts conv_transpose so: every input value meets every tap once."""
    x, w = struct(1, 4, 5), struct(6, 4, 3)
    conv = lambda x, w: lax.conv_general_dilated(x, w, (1,), ((2, 2),), lhs_dilation=(2,))
    assert count(conv, x, w).flops == 2 * 5 * 3 * 4 * 6


def test_ragged_dot_is_one_dot_however_many_groups():
    sizes = struct(3, dtype=jnp.int32)
    cost = count(lax.ragged_dot, struct(11, 5), struct(3, 5, 7), sizes)
    assert cost.by_primitive == {cost_name(cost): 2 * 11 * 5 * 7}


def cost_name(cost: Cost) -> str:
    (name,) = cost.by_primitive
    assert "ragged" in name
    return name


def test_elementwise_and_transcendental_are_apart():
    cost = count(lambda x: jnp.exp(x) * x + lax.rsqrt(x), struct(3, 5))
    assert (cost.flops, cost.transcendentals) == (2 * 15, 2 * 15)


def test_powers_count_their_products():
    assert count(lambda x: lax.integer_pow(x, 2), struct(7)).flops == 7
    assert count(lambda x: lax.integer_pow(x, 7), struct(7)).flops == 4 * 7  # 2 squarings, 2 more
    assert count(lambda x: lax.integer_pow(x, -2), struct(7)).flops == 2 * 7


def test_reductions():
    assert count(lambda x: jnp.sum(x, 1), struct(3, 5)).flops == 3 * 4
    assert count(lambda x: jnp.argmax(x), struct(3, 5)).flops >= 14
    assert count(lambda x: lax.cumsum(x, 1), struct(3, 5)).flops == 3 * 4
    pool = lambda x: lax.reduce_window(x, -jnp.inf, lax.max, (2, 3), (1, 1), "VALID")
    assert count(pool, struct(5, 7)).flops == 4 * 5 * (2 * 3 - 1)


def test_layout_is_free():
    cost = count(lambda x: jnp.pad(x.T.reshape(-1)[::2], 3).astype(jnp.bfloat16), struct(4, 6))
    assert (cost.flops, cost.transcendentals, dict(cost.uncounted)) == (0, 0, {})


def test_fft_is_5_n_log_n():
    assert count(jnp.fft.fft, struct(3, 8, dtype=jnp.complex64)).flops == 3 * 5 * 8 * 3
    assert count(jnp.fft.rfft, struct(3, 8)).flops == 3 * 5 * 8 * 3 // 2


def test_scan_counts_every_trip():
    def run(w, xs):
        return lax.scan(lambda c, x: (jnp.tanh(c @ w + x), None), jnp.zeros(5), xs)[0]

    cost = count(run, struct(5, 5), struct(11, 5))
    assert cost.by_primitive["dot_general"] == 11 * 2 * 25
    assert cost.transcendentals == 11 * 5
    assert cost.unknown_loops == 0


def test_while_is_counted_once_and_flagged():
    cost = count(lambda x: lax.while_loop(lambda v: v[0] < 9, lambda v: v * 2, x), struct(5))
    assert (cost.flops, cost.unknown_loops) == (5 + 1, 1)
    assert "loops with unknown trip count: 1" in cost.notes()[0]


def test_cond_takes_the_dearest_branch():
    def run(p, x):
        return lax.cond(p, lambda v: v + 1, lambda v: v @ v, x)

    for flip in (False, True):
        fn = (lambda p, x: run(~p, x)) if flip else run
        cost = count(fn, struct(dtype=jnp.bool_), struct(5, 5))
        assert cost.by_primitive["dot_general"] == 250
        assert cost.by_primitive.get("add", 0) == 0


@pytest.mark.parametrize(
    "wrap",
    [
        jax.jit,
        jax.checkpoint,
        lambda f: jax.jit(jax.jit(f)),
        lambda f: jax.custom_jvp(f),
        lambda f: jax.custom_vjp(f),
    ],
)
def test_calls_are_followed(wrap):
    fn = lambda x: x @ x
    wrapped = wrap(fn)
    if isinstance(wrapped, jax.custom_jvp):
        wrapped.defjvps(lambda t, ans, x: t)
    if isinstance(wrapped, jax.custom_vjp):
        wrapped.defvjp(lambda x: (fn(x), x), lambda x, g: (g,))
    cost = count(lambda x: wrapped(x) + wrapped(x), struct(5, 5))
    assert cost.flops == 2 * 250 + 25
    assert not cost.uncounted


def test_shard_map_counts_all_devices():
    auto = (jax.sharding.AxisType.Auto,)
    mesh = jax.sharding.AbstractMesh((4,), ("i",), axis_types=auto)
    spec = jax.sharding.PartitionSpec("i")
    share = jax.shard_map(lambda x: x @ x.T, mesh=mesh, in_specs=spec, out_specs=spec)
    assert count(share, struct(8, 3)).flops == 4 * 2 * 2 * 2 * 3


def test_bytes():
    table = np.ones((3, 7), np.float32)
    fn = lambda p, x: (p["w"].astype(jnp.float32) @ x + table).astype(jnp.bfloat16)
    cost = count(fn, {"w": struct(3, 5, dtype=jnp.bfloat16)}, struct(5, 7))
    assert (cost.bytes_in, cost.bytes_out) == (2 * 15 + 4 * 35, 2 * 21)
    assert cost.bytes_constants == 4 * 21


def test_constants_under_jit_are_found_and_counted_once():
    table = jnp.ones((3, 7))
    inner = jax.jit(lambda x: x + table)
    assert count(lambda x: inner(x) * inner(x), struct(3, 7)).bytes_constants == 4 * 21


def test_what_has_no_rule_is_named():
    cost = count(lambda x: jnp.sort(x) + 1, struct(5))
    assert cost.flops == 5
    assert cost.uncounted == {"sort": 1}
    assert "sort" in cost.notes()[0]


def test_uncounted_and_constants_scale_with_scan():
    cost = count(lambda xs: lax.map(jnp.sort, xs), struct(7, 5))
    assert cost.uncounted == {"sort": 7}


def test_takes_jaxprs_and_sizes_0_and_1():
    closed = jax.make_jaxpr(lambda a, b: a @ b)(jnp.ones((1, 1)), jnp.ones((1, 1)))
    assert count(closed).flops == count(closed.jaxpr).flops == 2
    assert count(lambda x: jnp.sum(jnp.exp(x)), struct(0)).flops == 0


def test_json():
    assert count(lambda x: x + 1, struct(5)).to_json()["by_primitive"] == {"add": 5}
