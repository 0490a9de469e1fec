"""Every transform on every program: it stays a pure function, and one near to the original.

Abstract laws (shapes, the audit, one trace for two calls) hold for all rows on all programs;
those that compile run for a few rows on each program here, and for all under ``slow``.
"""

import functools
import inspect
import os
import subprocess
import sys

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

import jaxinfer as ji
from jaxinfer.core.array_types import ARRAY_TYPES, RULES, is_array_type, materialize, nbytes
from jaxinfer.core.errors import ArtefactError, InputError
from jaxinfer.core.leaves import leaves, map_leaves
from jaxinfer.core.transform import STAGES, TRANSFORMS, chain, identity
from jaxinfer.transforms import _prune_plan as prune_plan
from jaxinfer.transforms.schemes import SCHEMES
from tests.laws.programs import PROGRAMS
from tests.laws.test_programs import (
    assert_near,
    has_slope,
    params_of,
    plain,
    quick_to_compile,  # noqa: F401  (used by itself)
    tolerance,
    wide,
)
from tests.laws.transforms import TRANSFORM_ROWS
from tests.rules.test_masked import LAYOUTS, PRODUCT
from tests.rules.test_masked import VALUES as COMPRESSED_VALUES
from tests.rules.test_qtensor import LAYOUTS as QUANTIZED
from tests.rules.test_qtensor import MOVED

BATCHES = (2, 5)

# What follows is made once for all laws of a process.


@functools.cache
def inputs_of(name, batch, seed=0):
    return PROGRAMS[name].inputs(batch, seed)


@functools.cache
def model_of(name):
    return ji.from_function(PROGRAMS[name].fn, params_of(name), inputs_of(name, 2))


def data_of(row, name):
    """Return the batches that the laws run on: beyond what was seen, static scales saturate."""
    batches = [inputs_of(name, 2), inputs_of(name, 2, 1), inputs_of(name, 5)]
    return (batches,) if row.data else ()


@functools.cache
def state_of(name, kind):
    row = TRANSFORM_ROWS[kind]
    return row.make().init(model_of(name), *data_of(row, name))


@functools.cache
def made(name, kind):
    return TRANSFORM_ROWS[kind].make().update(model_of(name), state_of(name, kind))


@functools.cache
def model_with_ones(name):
    """Return the pruned model with masks that keep all, for laws that ask for no values."""
    asked = prune_plan.options("magnitude", None, "unstructured", "local", "uniform", ())
    choices, _ = prune_plan.plan(model_of(name), asked)
    old = leaves(params_of(name))
    masks = {path: np.ones(old[path].shape, bool) for path in choices}
    return TRANSFORM_ROWS["prune"].make().update(model_of(name), masks)


class Counted:
    """A jitted ``apply``, and how often it was traced."""

    def __init__(self, model):
        self.traces = 0

        def apply(*args):
            self.traces += 1
            return model.apply(*args)

        self.fn = jax.jit(apply)


@functools.cache
def counted(name, kind):
    return Counted(made(name, kind))


def run(name, kind, inputs):
    return counted(name, kind).fn(made(name, kind).params, *inputs)


def structs(tree):
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)


# Abstract laws: nothing is compiled but what makes the parameters.


def shapes_are_those_of_the_function(name, kind, model):
    for batch in BATCHES:
        inputs = structs(inputs_of(name, batch))
        want = jax.eval_shape(PROGRAMS[name].fn, params_of(name), *inputs)
        assert jax.eval_shape(model.apply, model.params, *inputs) == want


def the_audit_has_every_parameter(name, kind, model):
    before = model_of(name)
    for audit in model.audit():
        assert len({entry.path for entry in audit}) == len(audit.entries)
    names = TRANSFORM_ROWS[kind].names
    assert [a.transform for a in model.audit() if a.transform != "finalize"] == list(names)
    assert model.provenance.get("stages", []) == list(names)
    if len(names) != 1:
        return
    audit, new, old = model.audit()[names[0]], leaves(model.params), leaves(before.params)
    constants = [entry for entry in audit if entry.path not in old]
    if names == ("arrange",):  # has rows for equations that are about no parameter
        assert all(entry.path.startswith("(") for entry in constants)
        constants = []
    assert [entry.path for entry in audit][: len(old)] == list(old)
    assert all(entry.path.startswith("(constant ") for entry in constants)
    assert len(constants) in (0, len(PROGRAMS[name].constants))
    for entry in audit.entries[: len(old)]:
        assert entry.before == nbytes(old[entry.path])
        if entry.path not in new:
            assert names == ("fold",)
            assert entry.status in ("changed", "unused")
            continue
        if len(model.audit()) == 1 and names != ("fold",):
            assert entry.after == nbytes(new[entry.path])
        if entry.status != "changed":
            assert new[entry.path] is old[entry.path]


def the_audit_says_what_the_row_of_the_program_says(name, kind, model):
    program, row = PROGRAMS[name], TRANSFORM_ROWS[kind]
    if row.names not in (("cast",), ("prune",), ("quantize",)):
        return
    old = leaves(params_of(name))
    for entry in model.audit()[row.names[0]]:
        if entry.path not in old:
            continue
        verdict, leaf = program.verdict(entry.path), old[entry.path]
        uses = program.weights[entry.path]
        if verdict == "unused":
            assert entry.status == "unused"
        elif row.names == ("cast",):
            fits = leaf.dtype == jnp.float32 and kind != "cast f32"
            assert entry.status == "changed" if fits else entry.status in ("unfit", "ignored")
        elif verdict == "blocked":
            assert entry.status in ("blocked", "unfit")
            assert any(use.primitive in entry.why for use in uses) or leaf.dtype.kind == "i"
        elif row.names == ("prune",):
            products = [use for use in uses if use.primitive != "gather"]
            if not products:
                assert entry.status == "unfit"
            elif kind in ("prune", "prune random"):
                assert entry.status == "changed"
            else:  # a pattern needs an axis, which not every weight has
                assert entry.status in ("changed", "blocked")
        else:
            assert entry.status == "changed" or "would take" in entry.why


def scales_run_along_what_the_products_sum(name, kind, model):
    row = TRANSFORM_ROWS[kind]
    if row.names != ("quantize",):
        return
    for path, leaf in leaves(model.params).items():
        if not is_array_type(leaf):
            continue
        q = getattr(leaf, "weight", leaf)
        products = [u for u in PROGRAMS[name].weights[path] if u.primitive != "gather"]
        if not products:
            continue
        common = set.intersection(*(set(use.contracting) for use in products))
        choices = [common] if common else [set(use.contracting) for use in products]
        shared = {axis for axis, size in enumerate(q.scale.shape) if size != q.stored[axis]}
        whole = {axis for axis, size in enumerate(q.shape) if size > 1}
        assert any(shared == axes & whole for axes in choices), (shared, choices)


def two_calls_are_one_trace(name, kind, model):
    """Values decide no structure: codes, scales and masks of other values give one trace."""
    program = PROGRAMS[name]
    watch = Counted(model)
    first = watch.fn.trace(model.params, *inputs_of(name, 2)).jaxpr
    other = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), model.params)
    second = watch.fn.trace(other, *program.inputs(2, 7)).jaxpr
    assert first is second
    assert watch.traces == 1


ABSTRACT = (
    shapes_are_those_of_the_function,
    the_audit_has_every_parameter,
    the_audit_says_what_the_row_of_the_program_says,
    scales_run_along_what_the_products_sum,
    two_calls_are_one_trace,
)

# Laws that run something.


@functools.cache
def reference(name, kind):
    """Return the parameters of the original function that the row promises to be near to."""
    if TRANSFORM_ROWS[kind].of == "original":
        return params_of(name)
    old, new = leaves(params_of(name)), leaves(made(name, kind).params)
    return map_leaves(
        lambda path, leaf: materialize(new[path]).astype(old[path].dtype), params_of(name)
    )


@functools.cache
def want(name, kind, batch):
    if TRANSFORM_ROWS[kind].of == "original":
        return plain(name, batch)
    return wide(PROGRAMS[name].fn(reference(name, kind), *inputs_of(name, batch)))


def slack(name, kind):
    """A product on codes does not round what they stand for to bf16, as ``materialize`` does."""
    given = {leaf.dtype.name for leaf in jax.tree.leaves(params_of(name))}
    codes = TRANSFORM_ROWS[kind].scheme and "bfloat16" in given
    return max(tolerance(name), TRANSFORM_ROWS[kind].noise, 2.0**-8 if codes else 0)


def it_is_near_the_function(name, kind):
    assert_near(wide(run(name, kind, inputs_of(name, 2))), want(name, kind, 2), slack(name, kind))


def it_is_near_at_another_batch(name, kind):
    assert_near(wide(run(name, kind, inputs_of(name, 5))), want(name, kind, 5), slack(name, kind))


def jit_changes_nothing(name, kind):
    model, inputs = made(name, kind), inputs_of(name, 2)
    eager = wide(model.apply(model.params, *inputs))
    assert_near(wide(run(name, kind, inputs)), eager, slack(name, kind))


def a_call_is_traced_once(name, kind):
    watch = counted(name, kind)
    jax.block_until_ready([run(name, kind, inputs_of(name, 2, seed)) for seed in (0, 1)])
    before = watch.traces
    jax.block_until_ready([run(name, kind, inputs_of(name, 2, seed)) for seed in (1, 2)])
    assert watch.traces == before


def vmap_maps(name, kind):
    if name in NO_VMAP:
        return
    model = made(name, kind)
    each = [inputs_of(name, 2, seed) for seed in (0, 1)]
    stacked = jax.tree.map(lambda *leaf: jnp.stack(leaf), *each)
    axes = (None, *[0] * len(stacked))
    got = wide(jax.jit(jax.vmap(model.apply, axes))(model.params, *stacked))
    one = [wide(run(name, kind, inputs)) for inputs in each]
    assert_near(got, [np.stack(leaf) for leaf in zip(*one, strict=True)], slack(name, kind))


NO_VMAP = {"effects", "ragged_dot"}
"""JAX refuses them as they are: an order of effects under vmap, rows grouped for each entry."""


def the_derivative_is_that_of_the_function(name, kind):
    program, row, model = PROGRAMS[name], TRANSFORM_ROWS[kind], made(name, kind)
    if not has_slope(program) or not row.slope:
        return
    x, *rest = inputs_of(name, 2)
    generator = np.random.default_rng(5)
    weights = [generator.standard_normal(leaf.shape) for leaf in plain(name, 2)]

    def slope_of(fn, params):
        def total(x):
            out = jax.tree.leaves(fn(params, x, *rest))
            pairs = zip(weights, out, strict=True)
            return sum(
                (jnp.asarray(w, jnp.float32) * y.astype(jnp.float32)).sum() for w, y in pairs
            )

        return np.asarray(jax.jit(jax.grad(total))(x), np.float64)

    expected = slope_of(program.fn, reference(name, kind))
    if row.slope == "forward" and program.slope != 1:
        expected = expected / program.slope
    assert np.abs(expected).max() > 0
    assert_near([slope_of(model.apply, model.params)], [expected], 4 * slack(name, kind))


def a_symbolic_batch_exports(name, kind):
    program, model = PROGRAMS[name], made(name, kind)
    if not program.symbolic:
        return it_is_near_at_another_batch(name, kind)
    specs = jax.export.symbolic_args_specs(inputs_of(name, 2), program.symbolic)
    exported = jax.export.export(jax.jit(model.apply))(model.params, *specs)
    if exported.nr_devices > 1:  # jax 0.10.1 dies of calling it at a size that it was not traced at
        return it_is_near_at_another_batch(name, kind)
    got = wide(exported.call(model.params, *inputs_of(name, 5)))
    return assert_near(got, want(name, kind, 5), slack(name, kind))


def saved_and_loaded_it_is_equal_to_the_bit(name, kind, folder):
    model = made(name, kind)
    folded = "fold" in TRANSFORM_ROWS[kind].names and type(model.params) is dict
    if name in NO_SAVE and not (folded and "tree of dicts" in NO_SAVE[name]):
        with pytest.raises(ArtefactError, match=NO_SAVE[name]):
            model.save(folder / "model")
        return
    model.save(folder / "model")
    back = ji.load(folder / "model")
    old, new = leaves(model.params), leaves(back.params)
    assert list(old) == list(new)
    for path in old:
        assert type(old[path]) is type(new[path]) or not is_array_type(old[path])
        assert_same(old[path], new[path])
    assert back.audit() == model.audit()
    inputs = inputs_of(name, 2)
    before, after = run(name, kind, inputs), back(*inputs)
    if name == "sharded" and "cast" in kind:  # XLA keeps float32 between some steps, or does not
        assert_near(wide(after), wide(before), slack(name, kind))
    else:
        assert_same(before, after)


NO_SAVE = {
    "opaque_callback": "cannot be exported",
    "effects": "cannot be exported",
    "dataclass_module": "not a tree of dicts, lists and tuples only",
    "nnx_state": "not a tree of dicts, lists and tuples only",
}
"""Programs that ``save`` refuses, and what it says."""


def assert_same(one, other):
    """Equal to the bit."""
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def init_and_update_are_pure(name, kind):
    """The same state gives the same model to the bit, and so does another ``init``."""
    row, model = TRANSFORM_ROWS[kind], model_of(name)
    again = row.make()
    second = again.update(model, state_of(name, kind))
    whole = again(model, *data_of(row, name))
    for other in (second, whole):
        assert_same(made(name, kind).params, other.params)
        assert other.audit() == made(name, kind).audit()
    assert jax.tree.leaves(model.params) == [] or model.params is params_of(name)


def applied_twice(name, kind):
    row, model = TRANSFORM_ROWS[kind], made(name, kind)
    if row.again == "same":
        assert row.make()(model, *data_of(row, name)) is model
        return
    with pytest.raises(InputError, match=r"has been through it already|the legal order is"):
        row.make()(model, *data_of(row, name))


PARTS = (
    (
        it_is_near_the_function,
        jit_changes_nothing,
        a_call_is_traced_once,
        init_and_update_are_pure,
        applied_twice,
    ),
    (vmap_maps, a_symbolic_batch_exports),
    (the_derivative_is_that_of_the_function, saved_and_loaded_it_is_equal_to_the_bit),
)
"""The fast tests try one of these on each program, the slow ones all."""


def all_pairs():
    return [(name, kind) for name in PROGRAMS for kind in TRANSFORM_ROWS]


def some_pairs():
    """Return each program with one row and one part of the laws, so that all come round."""
    kinds = list(TRANSFORM_ROWS)
    count = len(kinds)
    return [
        (name, kinds[place % count], (place % count + place // count) % len(PARTS))
        for place, name in enumerate(PROGRAMS)
    ]


MAIN = ("cast bf16", "fold", "prune", "quantize W8A16", "quantize W8A8")
"""Rows that the abstract laws try on every program in the fast tests: each way to the leaves."""


def check(laws, name, kind, folder=None, model=None):
    """Try laws on one program and one row, and raise all that fail."""
    given = {"folder": folder, "model": model if model is not None else made(name, kind)}
    failed = []
    for law in laws:
        own = [given[word] for word in inspect.signature(law).parameters if word in given]
        try:
            law(name, kind, *own)
        except Exception as error:
            failed.append(f"{law.__name__}: {type(error).__name__}: {error}")
    assert not failed, "\n".join(failed)


@pytest.mark.parametrize("kind", MAIN)
@pytest.mark.parametrize("name", PROGRAMS)
def test_abstract_laws(name, kind):
    check(ABSTRACT, name, kind, model=model_with_ones(name) if kind == "prune" else None)


@pytest.mark.parametrize(("name", "kind", "part"), some_pairs())
def test_laws(name, kind, part, tmp_path):
    check((*ABSTRACT, *PARTS[part]), name, kind, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "kind"), all_pairs())
def test_all_laws_on_all_programs(name, kind, tmp_path):
    laws = (*ABSTRACT, *PARTS[0], it_is_near_at_another_batch, *PARTS[1], *PARTS[2])
    check(laws, name, kind, tmp_path)


QUANTIZED_CASES = {*QUANTIZED, *MOVED, "sharding_constraint"}
MASKED_CASES = {*LAYOUTS, *MOVED, "concatenate", "sharding_constraint", "reshard"}
COMPRESSED_CASES = {*COMPRESSED_VALUES, *PRODUCT}

# Composition.


def test_identity_and_chain():
    model = model_of("nested")
    first, second, third = (
        TRANSFORM_ROWS[n].make() for n in ("cast bf16", "prune", "quantize W8A16")
    )
    assert identity()(model) is model
    assert chain()(model) is model
    step = first(model)
    assert_same(chain(first, second)(model).params, second(step).params)
    left, right = chain(chain(first, second), third), chain(first, chain(second, third))
    assert_same(left(model).params, right(model).params)
    assert left(model).audit() == right(model).audit() == third(second(step)).audit()
    assert left(model).rewrites == right(model).rewrites
    assert_same(left.update(model, left.init(model)).params, left(model).params)
    for same in (chain(identity(), third), chain(third, identity())):
        assert_same(same(model).params, third(model).params)


def test_every_illegal_order_is_refused_and_names_the_legal_one():
    by_stage = {row.make().stage: row for row in TRANSFORM_ROWS.values() if len(row.names) == 1}
    stages = [stage for stage in STAGES if stage in by_stage]
    assert len(stages) >= 4
    for place, late in enumerate(stages):
        for early in stages[: place + 1]:
            if (early, late) == ("cast", "fold") or (late == "arrange" != early):
                chain(by_stage[late].make(), by_stage[early].make())  # either may come first
                continue
            one, two = by_stage[late].make(), by_stage[early].make()
            word = "already" if early == late else f"the legal order is {', '.join(STAGES)}"
            with pytest.raises(InputError, match=word):
                chain(one, two)
            with pytest.raises(InputError, match=word):
                chain(one, identity(), chain(two))


# The tables are closed.


def test_every_transform_scheme_and_array_type_has_a_row():
    rows = TRANSFORM_ROWS.values()
    assert set(TRANSFORMS) == {name for row in rows for name in row.names}
    assert set(SCHEMES) == {row.scheme for row in rows} - {""}
    assert set(ARRAY_TYPES) == frozenset().union(*(row.kinds for row in rows))


def test_every_row_and_all_parts_come_round():
    pairs = some_pairs()
    assert {name for name, _, _ in pairs} == set(PROGRAMS)
    assert {(kind, part) for _, kind, part in pairs} == {
        (kind, part) for kind in TRANSFORM_ROWS for part in range(len(PARTS))
    }


@pytest.mark.parametrize("kind", TRANSFORM_ROWS)
def test_a_row_makes_the_array_types_that_it_says(kind):
    model = made("tied" if "compressed" not in kind else "scan_stacked", kind)
    found = {type(leaf).__name__ for leaf in leaves(model.params).values() if is_array_type(leaf)}
    row = TRANSFORM_ROWS[kind]
    assert found <= row.kinds
    assert bool(found) == bool(row.kinds)


def test_every_rule_is_taken(monkeypatch):
    """By some program, or by a case of its own in ``tests/rules``."""
    taken = set()

    def counting(key, rule):
        def run(equation, values):
            out = rule(equation, values)
            if out is not None:
                taken.add(key)
            return out

        return run

    wrapped = {key: counting(key, rule) for key, rule in RULES.items()}
    monkeypatch.setattr(RULES, "_rules", wrapped)
    for name in PROGRAMS:
        for kind in ("prune", "quantize W8A16", "quantize W8A8"):
            model = model_with_ones(name) if kind == "prune" else made(name, kind)
            fresh = functools.partial(model.apply)  # one that no trace is kept of
            jax.eval_shape(fresh, model.params, *inputs_of(name, 2))
    direct = {
        *(f"{kind}.{name}" for kind in ("QTensor", "ActQTensor") for name in QUANTIZED_CASES),
        *(f"Masked.{name}" for name in MASKED_CASES),
        *(f"Compressed.{name}" for name in COMPRESSED_CASES),
    }
    assert set(RULES) <= taken | direct
    kinds = {key.split(".")[0] for key in RULES}
    products = {"dot_general", "conv_general_dilated", "ragged_dot_general", "gather"}
    assert {f"{kind}.{name}" for kind in kinds - {"Compressed"} for name in products} <= taken


# Several devices.

SHARDS = """
import jax, numpy as np
import tests.laws.test_transforms as laws
from jax.sharding import NamedSharding, PartitionSpec
from jaxinfer.core.array_types import is_array_type
from jaxinfer.core.interpret import part_specs
from jaxinfer.core.leaves import map_leaves

jax.config.update("jax_disable_most_optimizations", True)
assert len(jax.devices()) == 8
mesh = jax.make_mesh((2, 4), ("a", "b"), axis_types=(jax.sharding.AxisType.Auto,) * 2)

def spec_of(leaf):
    for names, size in ((("a", "b"), 8), ("b", 4), ("a", 2)):
        for axis in reversed(range(leaf.ndim)):
            if leaf.shape[axis] % size == 0:
                yield PartitionSpec(*[names if i == axis else None for i in range(leaf.ndim)])
    yield PartitionSpec()

def place(path, leaf):
    put = lambda x, spec: jax.device_put(x, NamedSharding(mesh, spec))
    for spec in spec_of(leaf):
        specs = part_specs(leaf, spec, mesh) if is_array_type(leaf) else spec
        if specs is not None:
            split.append(any(spec))
            return jax.tree.map(put, leaf, specs) if is_array_type(leaf) else put(leaf, specs)

for name, kind in laws.SHARDED:
    split = []
    model = laws.made(name, kind)
    params = map_leaves(place, model.params)
    assert any(split), name
    want = laws.wide(laws.run(name, kind, laws.inputs_of(name, 5)))
    got = laws.wide(jax.jit(model.apply)(params, *laws.inputs_of(name, 5)))
    laws.assert_near(got, want, laws.slack(name, kind))
"""

SHARDED = [
    ("sharded", "quantize W8A16"),
    ("sharded", "quantize W8A8"),
    ("qkv_before", "quantize W4A16"),
    ("qkv_split", "prune"),
    ("qkv_before", "cast bf16"),
    ("conv_nhwc", "quantize W8A8"),
    ("conv_depthwise", "prune 2:4"),
    ("linen_conv", "quantize FP8"),
    ("scan_nested", "quantize NF4"),
    ("conv_transposed", "fold"),
    ("conv_grouped_nchw", "quantize W8A16"),
    ("qkv_split", "cast, fold, prune, quantize"),
]


@pytest.mark.slow
def test_parameters_on_eight_devices():
    """In a process of its own: the number of devices is fixed once JAX has started."""
    env = os.environ | {"JAX_NUM_CPU_DEVICES": "8", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", SHARDS], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
