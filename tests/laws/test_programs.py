"""Every program of the table is what its row says."""

import functools
import inspect
import os
import re
import subprocess
import sys

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

from jaxinfer.core._compat import inner
from jaxinfer.core.program import param_names
from tests.laws._follow import follow
from tests.laws._program import blocked, dot, f32, normal, program
from tests.laws.programs import FAMILIES, PROGRAMS
from tests.laws.programs_control import sharded_over

BATCHES = (2, 5)
each = pytest.mark.parametrize("name", PROGRAMS)


@pytest.fixture(scope="module", autouse=True)
def quick_to_compile():
    """Hundreds of small programs: what they compute is tried here, not how fast."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@functools.cache
def params_of(name):
    return PROGRAMS[name].params()


@functools.cache
def plain(name, batch):
    """Run a program as it stands; returns the flat outputs in float64."""
    row = PROGRAMS[name]
    return wide(row.fn(params_of(name), *row.inputs(batch)))


@functools.cache
def jitted(name):
    return jax.jit(PROGRAMS[name].fn)


def wide(tree):
    return [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(tree)]


def assert_near(got, want, tol):
    """Compare flat outputs; ``tol`` is relative to the largest value of each."""
    assert len(got) == len(want)
    for g, w in zip(got, want, strict=True):
        assert g.shape == w.shape
        np.testing.assert_allclose(g, w, rtol=0, atol=tol * np.abs(w).max(initial=1e-3))


def is_half(name):
    """Whether a program computes in float16 (a bf16 weight is converted before its product)."""
    return any(leaf.dtype == jnp.float16 for leaf in jax.tree.leaves(params_of(name)))


def tolerance(name):
    """Rounding of sums in another order: sqrt(terms) ulp of the type, of at most 72 terms.

    Several such sums follow each other, and tanh does not amplify: 64 ulp is ample.
    """
    return 64 * float(jnp.finfo(jnp.float16 if is_half(name) else jnp.float32).eps)


@pytest.mark.parametrize("batch", BATCHES)
@each
def test_jit_changes_nothing(name, batch):
    row = PROGRAMS[name]
    want = plain(name, batch)
    assert all(np.isfinite(leaf).all() and leaf.any() for leaf in want)
    assert_near(wide(jitted(name)(params_of(name), *row.inputs(batch))), want, tolerance(name))


@each
def test_weights_cover_the_parameters(name):
    row = PROGRAMS[name]
    assert sorted(row.weights) == sorted(param_names(params_of(name)))
    assert all(row.verdict(path) in ("site", "blocked", "unused") for path in row.weights)


@each
def test_weights_are_used_as_declared(name):
    """Follow each element of each parameter; axes of size 1 cannot be seen, so they are free."""
    row = PROGRAMS[name]
    params = params_of(name)
    fn = sharded_over(1) if name == "sharded" else row.fn
    found, out = follow(fn, params, row.inputs(2))
    assert_near(wide(out), plain(name, 2), tolerance(name))
    shapes = dict(zip(param_names(params), (a.shape for a in jax.tree.leaves(params)), strict=True))
    for path, uses in row.weights.items():
        size = shapes[path]
        seen = {
            use.__class__(use.primitive, use.site, tuple(a for a in use.contracting if size[a] > 1))
            for use in uses
        }
        assert found[path] == seen, path
        assert len(seen) == len(uses), f"{path}: uses are declared once"


@pytest.mark.parametrize("name", [name for name, row in PROGRAMS.items() if row.symbolic])
def test_a_symbolic_batch_exports(name):
    row = PROGRAMS[name]
    params = params_of(name)
    assert any("b" in spec for spec in row.symbolic)
    specs = jax.export.symbolic_args_specs(row.inputs(2), row.symbolic)
    fn = jax.jit(sharded_over(1)) if name == "sharded" else jitted(name)  # called on one device
    exported = jax.export.export(fn)(params, *specs)
    out = exported.call(params, *row.inputs(5))
    assert_near(wide(out), plain(name, 5), tolerance(name))


def has_slope(row):
    """Whether there is a derivative by the first input; nothing is computed."""
    first, *_ = jax.eval_shape(functools.partial(row.inputs, 1))
    return row.slope is not None and jnp.issubdtype(first.dtype, jnp.floating)


@pytest.mark.parametrize("name", [name for name, row in PROGRAMS.items() if has_slope(row)])
def test_derivative_by_the_inputs(name):
    """Compare with central differences: the rows' functions are smooth, values of order 1.

    A step of 2^-6 leaves 2^-12 of the third derivative and 2^6 ulp of rounding: 1 % is ample.
    """
    row = PROGRAMS[name]
    params, (point, *rest) = params_of(name), row.inputs(2)
    generator = np.random.default_rng(9)
    weights = [generator.standard_normal(leaf.shape) for leaf in plain(name, 2)]
    direction = generator.standard_normal(point.shape).astype(np.float32)
    direction /= np.sqrt((direction**2).sum())

    def total(x):
        leaves = jax.tree.leaves(row.fn(params, x, *rest))
        return sum(
            (jnp.asarray(w, y.dtype) * y).sum() for w, y in zip(weights, leaves, strict=True)
        )

    def total_in_float64(x):
        leaves = wide(jitted(name)(params, x, *rest))
        return sum(np.vdot(w, y) for w, y in zip(weights, leaves, strict=True))

    gradient = np.asarray(jax.jit(jax.grad(total))(point), np.float64)
    step = 2.0**-6
    ahead, behind = (total_in_float64(point + s * direction) for s in (step, -step))
    assert row.slope is not None
    want = row.slope * (ahead - behind) / (2 * step)
    scale = np.sqrt((gradient**2).sum())
    assert scale > 0
    assert abs(np.vdot(gradient, direction) - want) < (0.3 if is_half(name) else 1e-2) * scale


@pytest.mark.parametrize("name", [row.name for row in PROGRAMS.values() if row.slope is None])
def test_rows_without_a_reverse_derivative_have_none(name):
    params, (x, *rest) = params_of(name), PROGRAMS[name].inputs(2)
    with pytest.raises(ValueError, match=r"Reverse-mode differentiation|do not support JVP"):
        jax.grad(lambda *args: jitted(name)(*args).sum(), 1)(params, x, *rest)


@each
def test_constants_are_closed_over(name):
    """No other row holds an array of two axes that is not a parameter."""
    row = PROGRAMS[name]

    def constants(closed):
        jaxpr, consts = inner(closed)
        own = [tuple(c.shape) for c in consts]
        own += [np.shape(v.val) for e in jaxpr.eqns for v in e.invars if hasattr(v, "val")]
        bodies = (e.params[k] for e in jaxpr.eqns for k in ("jaxpr",) if k in e.params)
        return own + [shape for body in bodies for shape in constants(body)]

    found = constants(jax.make_jaxpr(row.fn)(params_of(name), *row.inputs(2)))
    assert sorted(s for s in found if len(s) > 1) == sorted(row.constants)


@each
def test_notes_say_why(name):
    note = PROGRAMS[name].note
    cited = re.match(r"(Pitfall (\d+)|Section 6\.[13]): ", note)
    assert cited, note
    assert not cited[2] or 1 <= int(cited[2]) <= 22


def test_parameters_follow_the_seed():
    row = PROGRAMS["matmul"]
    same, other = row.params(0)["w"], row.params(1)["w"]
    assert (same == row.params()["w"]).all()
    assert not (same == other).any()
    assert not (row.inputs(2)[0] == row.inputs(2, 1)[0]).any()


def test_every_family_is_in_the_table():
    modules = {inspect.getmodule(row.fn) for row in PROGRAMS.values()}
    assert modules == set(FAMILIES)


def test_a_name_is_taken_once():
    def matmul(params, x):
        return x @ params["w"]

    with pytest.raises(ValueError, match="'matmul' exists already"):
        program({"w": (7, 11)}, (f32("b, 7"),), {"w": dot(0)})(matmul)
    assert PROGRAMS["matmul"].fn is not matmul


WRONG = {
    "turned": (lambda p, x: x @ p["w"].T, dot(0)),
    "by value": (lambda p, x: x @ jnp.tanh(p["w"]).T, dot(1)),
    "joined": (lambda p, x: x @ jnp.concatenate([p["w"], p["w"]]).T, dot(1)),
    "reshaped": (lambda p, x: x @ p["w"].reshape(7, 11), dot(0)),
    "unused": (lambda p, x: x, dot(0)),
    "a product as well": (lambda p, x: x @ p["w"].T, blocked("add")),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_declaration_is_seen(case):
    fn, declared = WRONG[case]
    found, _ = follow(fn, normal(0, {"w": (11, 7)}), (jnp.ones((2, 7)),))
    assert found["w"] != {declared}


SHARDS = """
import jax, numpy as np
from tests.laws.programs import PROGRAMS
from tests.laws.programs_control import sharded_over
assert len(jax.devices()) == 8
row = PROGRAMS["sharded"]
params, (x,) = row.params(), row.inputs(5)
w, v = (np.asarray(params[name], np.float64) for name in "wv")
want = np.tanh(np.asarray(x, np.float64) @ w) @ v
for fn in (row.fn, *map(sharded_over, (1, 2, 4, 8))):
    got = jax.jit(fn)(params, x)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5)
text = str(jax.make_jaxpr(row.fn)(params, x))
assert "f32[7,2]" in text and "f32[2,11]" in text, text  # eighths of 16 columns, of 16 rows
"""


def test_shards_on_eight_devices():
    """In a process of its own: the number of devices is fixed once JAX has started."""
    env = os.environ | {"JAX_NUM_CPU_DEVICES": "8", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", SHARDS], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
