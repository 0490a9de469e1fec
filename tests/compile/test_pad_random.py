"""Random programs: what is not refused is right, whatever the padding holds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jax import lax

from jaxinfer.compile.bucket import PaddingError
from tests.compile.padding import Case, check, padded_of

BOTH = {"b": 4, "s": 6}
REALS = ({"b": 2, "s": 5}, {"b": 3, "s": 2})


def _axis(x, k):
    return k % max(x.ndim, 1)


def _swapped(x, k):
    return jnp.swapaxes(x, _axis(x, k), _axis(x, k + 1))


def _merged(x, k):
    at = _axis(x, k)
    if at + 1 >= x.ndim:
        return x
    return x.reshape(*x.shape[:at], -1, *x.shape[at + 2 :])


def _split(x, k):
    at = _axis(x, k)
    return x.reshape(*x.shape[:at], -1, 2, *x.shape[at + 1 :]) if x.shape[at] % 2 == 0 else x


def _product(x, k):
    at = _axis(x, k)
    return (
        jnp.tensordot(x, jnp.sin(x), ((at,), (at,)))
        if x.ndim <= 2
        else jnp.einsum("...ij,...kj->...ik", x, jnp.cos(x))
    )


def _scanned(x, k):
    moved = jnp.moveaxis(x, _axis(x, k), 0)
    last, each = lax.scan(
        lambda c, a: (0.5 * c + jnp.tanh(a), c), jnp.zeros(moved.shape[1:]), moved, reverse=k % 2
    )
    return jnp.moveaxis(each, 0, _axis(x, k)) + jnp.expand_dims(last, _axis(x, k))


def _picked(x, k):
    index = jnp.array([0, -1, 1])
    return jnp.take(x, index, axis=_axis(x, k), mode=("clip", "wrap", "fill")[k % 3], fill_value=0)


def _scattered(x, k):
    flat = jnp.moveaxis(x, _axis(x, k), 0)
    index = (jnp.arange(flat.shape[0]) * 2) % 3
    return jnp.zeros((3, *flat.shape[1:])).at[index].add(flat)


def _written(x, k):
    at = [slice(None)] * x.ndim
    at[_axis(x, k)] = (slice(-1, None), slice(0, 1), slice(1, None))[k % 3]
    return x.at[tuple(at)].multiply(0.5)


def _cut(x, k):
    at = [slice(None)] * x.ndim
    at[_axis(x, k)] = (slice(-1, None), slice(1, None), slice(None, -1), slice(0, 1))[k % 4]
    return x[tuple(at)]


def _windows(x, k):
    size = [1] * x.ndim
    size[_axis(x, k)] = 3
    return lax.reduce_window(x, 0.0, lax.add, size, [1] * x.ndim, "SAME")


OPERATIONS = [
    lambda x, k: jnp.tanh(x) * 2,
    lambda x, k: x - x.mean(_axis(x, k), keepdims=True),
    lambda x, k: x + jnp.arange(x.shape[_axis(x, k)]).reshape(
        [-1 if a == _axis(x, k) else 1 for a in range(x.ndim)]) * 0.1,
    lambda x, k: jax.nn.softmax(x, _axis(x, k)),
    lambda x, k: x.max(_axis(x, k)),
    lambda x, k: x.std(_axis(x, k), keepdims=True) + x,
    lambda x, k: jnp.cumsum(x, _axis(x, k)) * 0.3,
    lambda x, k: jnp.flip(x, _axis(x, k)),
    lambda x, k: jnp.roll(x, k - 1, _axis(x, k)),
    lambda x, k: jnp.sort(x, _axis(x, k)),
    lambda x, k: jnp.take_along_axis(x, jnp.argsort(-x, _axis(x, k)), _axis(x, k)),
    lambda x, k: jnp.concatenate([x, jnp.tanh(x)], _axis(x, k)),
    lambda x, k: jnp.concatenate([jnp.ones_like(x[:1]), x], 0),
    lambda x, k: jnp.pad(x, [(k % 2, 1) if a == _axis(x, k) else (0, 0) for a in range(x.ndim)]),
    lambda x, k: jnp.where(x > 0, x, jnp.broadcast_to(x.min(), x.shape)),
    lambda x, k: x[None] if x.ndim < 4 else x,
    lambda x, k: jnp.expand_dims(x.argmax(_axis(x, k)), 0) * 0.1,
    lambda x, k: x * jnp.ones(x.size).reshape(x.shape),
    _swapped, _merged, _split, _product, _scanned, _picked, _scattered, _written, _cut, _windows,
]  # fmt: skip


def program(steps):
    def fn(p, x):
        for number, k in steps:
            if x.ndim:
                y = OPERATIONS[number](x, k)
                x = y if y.ndim <= 4 else x
        return x, jnp.square(x).sum()

    return fn


steps = st.lists(
    st.tuples(st.integers(0, len(OPERATIONS) - 1), st.integers(0, 11)), min_size=1, max_size=6
)


def run(chosen):
    """Return whether a program was accepted, having checked it."""
    case = Case(program(chosen), [("b", "s", 4)], bucket=BOTH, reals=REALS)
    for real in REALS:  # some programs are none: they cut more than there is
        shape = (real["b"], real["s"], 4)
        try:
            jax.eval_shape(case.fn, {}, jax.ShapeDtypeStruct(shape, np.float32))
        except (TypeError, ValueError, IndexError):
            return False
    try:
        padded = padded_of(case)
    except (PaddingError, TypeError, ValueError):
        return False
    reals = [r for r in REALS if all(r[n] >= low for n, low in padded.least.items())]
    if reals:
        check(case._replace(reals=reals), padded, tol=2e-5)
    return True


quiet = {"deadline": None, "suppress_health_check": list(HealthCheck)}


@given(steps)
@settings(max_examples=5, derandomize=True, **quiet)
def test_random_programs(chosen):
    run(chosen)


@pytest.mark.slow
def test_most_random_programs_are_accepted_and_right():
    """Tolerance: sums and products of up to six steps in float32."""
    rng = np.random.default_rng(0)
    accepted = 0
    for _ in range(150):
        count = rng.integers(1, 6)
        chosen = [(int(rng.integers(len(OPERATIONS))), int(rng.integers(12))) for _ in range(count)]
        accepted += run(chosen)
    assert accepted > 90
