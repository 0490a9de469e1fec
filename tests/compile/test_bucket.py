"""bucket(): calls of any size, and what is refused."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxinfer as ji
from jaxinfer.compile.bucket import Masking, Size, bucket
from jaxinfer.core.errors import InputError
from jaxinfer.core.signature import LeafSpec


def fn(p, x, mask=None):
    weight = jax.nn.softmax(x @ p["w"], 1)
    return {"mean": (weight[..., None] * x).sum(1), "all": x - x.mean((0, 1))}


@pytest.fixture
def model():
    return ji.from_function(fn, {"w": jnp.arange(4.0)}, (jnp.ones((2, 3, 4)),))


BUCKETS = {"batch": [1, 4], "seq": [2, 8]}
DIMS = {"x": ("batch", "seq", 4)}


def test_any_size(model):
    bucketed = bucket(model, BUCKETS, DIMS, fill=np.nan)
    rng = np.random.default_rng(0)
    for b, s in ((1, 1), (3, 5), (4, 8)):
        x = rng.normal(size=(b, s, 4)).astype("float32")
        want = model(x)
        for got in (bucketed(x), jax.jit(bucketed.apply)(model.params, x)):
            for name in want:
                np.testing.assert_allclose(got[name], want[name], atol=2e-6)
    assert len(bucketed._jitted) == 2  # (1, 2) and (4, 8): compiled once each


def test_a_bucket_is_compiled_once(model):
    bucketed, traced = bucket(model, BUCKETS, DIMS), []
    padded = bucketed.padded({"batch": 4, "seq": 8})
    run = padded.run
    kept = padded._replace(run=lambda *args: (traced.append(1), run(*args))[1])
    bucketed._cache = {((("batch", 4), ("seq", 8)), ("float32",)): kept}
    for b, s in ((3, 5), (4, 7), (2, 8), (3, 3)):
        bucketed(jnp.ones((b, s, 4)))
    assert len(traced) == 1


def test_audit(model):
    bucketed = bucket(model, {"batch": [1], "seq": [2, 8]}, DIMS)
    audit = bucketed.audit()
    assert list(audit) == ["batch=1, seq=2", "batch=1, seq=8"]
    assert all(isinstance(item, Masking) for items in audit.values() for item in items)
    assert {item.primitive for item in bucketed.masked} >= {"reduce_max", "reduce_sum", "number"}


def test_empty_sizes(model):
    doubled = ji.from_function(lambda p, x: x * 2, {}, (jnp.ones((2, 3)),))
    bucketed = bucket(doubled, {"n": [4]}, {"x": ("n", 3)})
    assert bucketed(jnp.ones((0, 3))).shape == (0, 3)
    assert bucketed.bucket_of({"n": 0}) == {"n": 0}


def test_sizes_that_do_not_fit(model):
    bucketed = bucket(model, BUCKETS, DIMS)
    with pytest.raises(InputError) as error:
        bucketed(jnp.ones((5, 9, 4)))
    assert "batch = 5 is above the largest bucket, 4" in str(error.value)
    assert "seq = 9 is above the largest bucket, 8" in str(error.value)
    with pytest.raises(InputError, match=r"input 0: required \[batch, seq, 4\], got \[2, 3, 5\]"):
        bucketed(jnp.ones((2, 3, 5)))
    with pytest.raises(InputError, match=r"input 0: required \[batch, seq, 4\], got \[2, 3\]"):
        bucketed(jnp.ones((2, 3)))
    pair = ji.from_function(lambda p, x, y: x + y, {}, (jnp.ones(2), jnp.ones(2)))
    with pytest.raises(InputError, match=r"input 1: required \[n\], got \[2\] \(n = 3\)"):
        bucket(pair, {"n": [4]}, [("n",), ("n",)])(jnp.ones(3), jnp.ones(2))
    free = bucket(ji.from_function(lambda p, x: x, {}, None), {"n": [4]}, [("n",)])
    with pytest.raises(InputError, match="required 1 input arrays, got 2"):
        free(jnp.ones(2), jnp.ones(2))


def test_sizes_below_what_the_function_takes(model):
    first = ji.from_function(lambda p, x: x[:3].sum(), {}, (jnp.ones(5),))
    bucketed = bucket(first, {"n": [8]}, {"x": ("n",)})
    assert bucketed(jnp.ones(4)) == 3
    with pytest.raises(InputError, match="n = 2, required 3; it takes a fixed part"):
        bucketed(jnp.ones(2))


def test_bad_buckets(model):
    bad = {"batch": [4, 1], "seq": [], "a": [2, 2], "b": [0, 1], "c": [1.5]}
    with pytest.raises(InputError) as error:
        bucket(model, bad, {"x": ("batch", "seq", "other"), "y": (1,)})
    for part in (
        "batch: required ascending sizes, got [4, 1]; write [1, 4]",
        "seq: required at least one bucket, got none",
        "a: bucket 2 is there more than once",
        "b: required positive integers, got 0",
        "c: required positive integers, got 1.5",
        "y: no such input; there are x",
        "other: a dimension without buckets",
        "a: no input has a dimension of that name",
    ):
        assert part in str(error.value)
    with pytest.raises(InputError, match="required buckets for at least one symbol, got none"):
        bucket(model, {}, DIMS)
    with pytest.raises(InputError, match="x: required 3 dims, got 1"):
        bucket(model, {"n": [4]}, {"x": ("n",)})
    with pytest.raises(InputError, match="required the dims of 1 inputs, got 2"):
        bucket(model, {"n": [4]}, [("n", 3, 4), ("n",)])


def test_dims_that_are_expressions():
    made = ji.from_function(lambda p, x, y: x.mean() + y.max(), {}, (jnp.ones(7), jnp.ones(3)))
    bucketed = bucket(made, {"n": [8]}, [("2*n + 1",), ("n",)], fill=np.nan)
    x, y = jnp.arange(11.0), jnp.arange(5.0)
    assert bucketed(x, y) == made(x, y) == 9


def test_sizes_of_results(model):
    padded = bucket(model, BUCKETS, DIMS).padded({"batch": 4, "seq": 8})
    assert padded.outputs == ((Size("batch"), Size("seq"), None), (Size("batch"), None))
    assert Size("seq", 2, 1).at({"seq": 5}) == 11


def test_empty_sizes_below_the_range():
    made = ji.from_function(lambda p, x: x.mean(1), {}, (jnp.ones((2, 5)),))
    signature = dataclasses.replace(
        made.signature,
        leaves=(LeafSpec("x", (2, "n"), "float32"),),
        symbols={"n": (3, 16)},
    )
    made = made.replace(program=dataclasses.replace(made.program, signature=signature))
    bucketed = bucket(made, {"n": [8]}, fill=np.nan)
    with pytest.raises(InputError, match="n = 0: the model takes sizes from"):
        bucketed(jnp.ones((2, 0)))
    np.testing.assert_allclose(bucketed(jnp.ones((2, 5))), 1)
