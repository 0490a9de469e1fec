"""The OpenVINO back-end against JAX, what is refused, all at once and by name."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxinfer.compile.openvino.function import (
    OpenVINOUnsupported,
    compile_jaxpr,
    unsupported,
)
from tests.compile.openvino_check import (
    BIG,
    X,
    draw,
    traced,
)


def test_everything_that_is_refused_is_named_at_once_with_its_line():
    def fn(x, n, small, words):
        a = lax.erf_inv(x)
        b = lax.atan2(x, x)
        c = lax.rem(n, n)
        d = small + small
        e = words * 2
        f = x.astype(jnp.int8)
        g = lax.reduce_precision(x, 5, 2)
        h = lax.dot(small, small, preferred_element_type=jnp.int32)
        i = lax.pad(x, 0.0, ((0, 0, 1), (0, 0, 0)))
        j = lax.complex(x, x)
        k = n // 3
        return a, b, c, d, e, f, g, h, i, j, k

    args = draw(5, 5), BIG[0, 0], jnp.ones((5, 5), jnp.int8), jnp.ones(3, jnp.uint32)
    closed = traced(fn, *args)
    found = unsupported(closed)
    for primitive, reason in {
        "erf_inv": "no counterpart",
        "atan2": "no counterpart",
        "rem": "no counterpart",
        "add": "int8",
        "mul": "uint32",
        "convert_element_type": "out of range",
        "reduce_precision": "mantissa bits",
        "dot_general": "int8",
        "pad": "dilation",
        "complex": "complex64",
        "div": "int32",
        "input 3": "uint32",
        "output 9": "complex64",
    }.items():
        lines = [text for text in found if text.startswith(primitive)]
        assert lines, primitive
        assert any(reason in text for text in lines), (primitive, lines)
    assert sum("test_openvino_refusals.py" in text for text in found) >= 9
    with pytest.raises(OpenVINOUnsupported) as caught:
        compile_jaxpr(closed)
    assert caught.value.missing == found
    assert all(text in str(caught.value) for text in found)
    assert "backend='xla'" in str(caught.value)


@pytest.mark.parametrize(
    ("fn", "args", "reason"),
    [
        (lambda x: lax.scan(lambda c, a: (lax.erf_inv(c), a), x, jnp.ones((47, 3))), (X[0, :3, 0],),
         "erf_inv"),
        (lambda k: jax.random.bits(jax.random.wrap_key_data(k), (3,)), (jnp.zeros(2, jnp.uint32),),
         "uint32"),
        (lambda x: lax.sort((x, x), num_keys=2), (X,), "by 2 keys"),
        (lambda x: lax.argmax(x, 1, np.int16), (X,), "int16"),
        (lambda x: jnp.sort(x > 0), (X,), "bool"),
        (lambda x: lax.max(x > 0, x > 1), (X,), "of bool"),
        (lambda x: lax.lt(x > 0, x > 1), (X,), "of bool"),
        (lambda x: lax.exp(x) + lax.cummax(x, 1), (X,), "cummax"),
        (lambda x: x.prod(1), (BIG,), "of int32"),
        (lambda x: lax.population_count(x), (BIG,), "no counterpart"),
        (lambda x: lax.cond(x[0] > 0, lambda x: lax.while_loop(lambda s: s[0] < 9, lambda s: s * 2,
                                                              x), lambda x: x, x),
         (X[0, 0],), "loop of unknown length"),
        (lambda x: jax.vmap(lambda x: lax.while_loop(lambda s: s < 9, lambda s: s * 2, x))(abs(x)),
         (X[0, 0],), "for each row"),
        (lambda x: lax.reduce_window(x, 0, lax.add, (1, 2), (1, 1), "VALID"), (BIG[0],),
         "of integers"),
        (lambda x: lax.reduce_window(x, 0.0, lax.add, (1, 2), (1, 1), ((0, 0), (-1, 0))), (X[0],),
         "negative"),
        (lambda x: lax.reduce_window(x, 0.0, lax.add, (1, 2), (1, 1), "VALID", (1, 2)), (X[0],),
         "dilated operand"),
        (lambda x: lax.reduce_window(x[None], 0.0, lax.add, (2,) * 4, (1,) * 4, "SAME"), (X,),
         "over 4 axes"),
        (lambda x: lax.conv_general_dilated(x[..., None, None, None], jnp.ones((5, 5, 1, 1, 1, 1)),
                                            (1,) * 4, "SAME"), (X,), "over 4 axes"),
        (lambda x: lax.conv_general_dilated(x, jnp.ones((6, 5, 1)), (1,), "VALID",
                                            batch_group_count=3), (X,), "groups of the batch"),
        (lambda x: lax.conv_general_dilated(x, jnp.ones((2, 5, 1)), (1,), ((-9, 3),)), (X,),
         "cuts all of an axis"),
        (lambda x: lax.pad(x, 0.0, ((-9, 7, 0),)), (X[0, 0],), "cuts all of an axis"),
    ],
)  # fmt: skip
def test_refusals(fn, args, reason):
    found = unsupported(traced(fn, *args))
    assert any(reason in text for text in found), found


@pytest.mark.parametrize(
    ("fn", "shapes", "reason"),
    [
        (lambda x, i: x[i[:, 0], i[:, 1]], ((2**16, 2**15), (3, 2)), "2.31 elements"),
        (lambda x, i: x.at[i[:, 0], i[:, 1]].set(0.0), ((2**16, 2**15), (3, 2)), "2.31 elements"),
        (lambda x, i: lax.reshape(x, (6,), (1, 0)), ((2, 3), (1,)), "order of dimensions"),
        (lambda x, i: lax.scan(lambda c, a: (c + a.sum(), c), 0.0, x), ((9, 0), (1,)), None),
        (lambda x, i: lax.scan(lambda c, a: (c + i[0], a), 0, x), ((9, 0), (1,)), None),
        (lambda x, i: lax.top_k(x.astype(jnp.bfloat16), 2), ((3, 5), (1,)), "another dtype"),
        (lambda x, i: x.at[i.astype(jnp.int8)].set(0.0), ((3, 5), (1,)), "int8"),
        (lambda x, i: lax.platform_dependent(x, tpu=lambda x: x, cuda=jnp.sin), ((3,), (1,)),
         "(?s)platform_index.*without a branch for the CPU"),
    ],
)  # fmt: skip
def test_refusals_by_shape(fn, shapes, reason):
    """From shapes alone: nothing is allocated."""
    x, i = (
        jax.ShapeDtypeStruct(s, t) for s, t in zip(shapes, (jnp.float32, jnp.int32), strict=True)
    )
    found = unsupported(jax.make_jaxpr(fn)(x, i))
    if reason is None:
        assert not found
    else:
        assert re.search(reason, "\n".join(found)), found


def test_64_bit_programs_are_refused():
    with jax.enable_x64(True):
        closed = traced(lambda x, n: (x * 2, n + 1), np.ones(3), np.ones(3, np.int64))
    found = unsupported(closed)
    assert any("float64" in text and "without x64" in text for text in found)
    assert any(text.startswith("input 1: dtype int64") for text in found)


def test_sizes_have_to_be_numbers():
    (size,) = jax.export.symbolic_shape("batch")
    closed = jax.make_jaxpr(lambda x: x * 2)(jax.ShapeDtypeStruct((size, 3), jnp.float32))
    assert any("have to be numbers" in text for text in unsupported(closed))


def test_gather_by_narrow_indices_is_refused():
    found = unsupported(traced(lambda x, i: x.at[i].get(mode="clip"), X, jnp.ones(2, jnp.int8)))
    assert any("int8" in text for text in found)
