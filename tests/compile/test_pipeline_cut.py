"""The cut is the best one there is, by trying all; costs and live bytes are those of the jaxpr."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxinfer as ji
from jaxinfer.compile.stages import build as build
from jaxinfer.compile.stages import trace as trace
from jaxinfer.compile.stages.cut import crossing, cut, measure, plan_splits, stage_costs
from jaxinfer.compile.stages.inputs import resolve


def brute(costs, across, stages, slack):
    """Least bytes among all cuts within the slack, then the least maximum."""
    ways = list(itertools.combinations(range(1, len(costs)), stages - 1))
    tops = {way: max(stage_costs(costs, way)) for way in ways}
    limit = int(min(tops.values()) * (1 + slack))
    return min((sum(across[at] for at in way), top) for way, top in tops.items() if top <= limit)


@pytest.mark.parametrize("slack", [0.0, 0.05, 0.5])
def test_no_cut_is_better(slack):
    rng = np.random.default_rng(0)
    for trial in range(60):
        count = int(rng.integers(1, 10))
        stages = int(rng.integers(1, count + 1))
        costs = rng.integers(0 if trial % 3 else 1, 12, count).tolist()
        across = rng.integers(0, 5, count).tolist()
        found = cut(costs, across, stages, slack)
        assert len(found) == stages - 1
        assert sorted(set(found)) == found
        assert all(0 < at < count for at in found)
        got = sum(across[at] for at in found), max(stage_costs(costs, found))
        assert got == brute(costs, across, stages, slack)


def test_the_slack_saves_bytes():
    costs, across = [10, 10, 1, 19], [0, 900, 1, 5]
    assert cut(costs, across, 2, slack=0) == [2]
    assert cut([11, 9, 2, 18], [0, 5, 900, 1], 2, slack=0) == [2]
    assert cut([11, 9, 2, 18], [0, 5, 900, 1], 2, slack=0.1) == [3]


def test_large_costs_are_exact():
    costs = [2**55 + 1, 2**55, 2**55, 2**55 + 1]
    assert stage_costs(costs, cut(costs, [0, 0, 0, 0], 2, slack=0)) == [2**56 + 1, 2**56 + 1]


def program_of(fn, params, shape, microbatch=2, inputs=None):
    model = ji.from_function(fn, params, tuple(jnp.ones(s) for s in shape))
    given = resolve(model, inputs or [("batch", *s[1:]) for s in shape], None)
    return trace.flatten(trace.trace(model, given, microbatch))


def names(program):
    return [eqn.primitive.name for eqn in program.eqns]


def test_costs_and_live_bytes_of_a_chain():
    def fn(p, x):
        skip = x @ p["a"]  # f32[2, 5]: 2 * 2 * 3 * 5 FLOPs
        y = jnp.sin(skip)  # 10 transcendentals
        y = y @ p["b"]  # f32[2, 7]
        z = y.T.T[:, ::-1] @ p["c"]  # layout costs the values that it writes
        return z + skip

    params = {"a": jnp.ones((3, 5)), "b": jnp.ones((5, 7)), "c": jnp.ones((7, 5))}
    program = program_of(fn, params, [(2, 3)])
    measured = measure(program)
    assert names(program) == [*("dot_general", "sin", "dot_general", "transpose", "transpose")] + [
        *("rev", "dot_general", "add")
    ]
    assert measured.costs == [60, 10, 140, 14, 14, 14, 140, 10]
    assert measured.flops == [60, 0, 140, 0, 0, 0, 140, 10]
    skip, y, wide = 40, 40, 56
    assert crossing(program, measured.order)[1:] == [
        *(skip, skip + y, skip + wide, skip + wide, skip + wide, skip + wide, skip + 40),
        *[0],
    ]


def test_calls_are_inlined_and_unused_equations_left_out():
    @jax.custom_jvp
    def twice(x):
        return 2 * x

    twice.defjvp(lambda primals, tangents: (twice(*primals), 2 * tangents[0]))

    def fn(p, x):
        unused = jnp.cos(x @ p["w"])
        x = jax.jit(lambda x: jax.nn.relu(x) + 1)(x)
        x = jax.checkpoint(lambda x: twice(x) @ p["w"])(x)
        del unused
        return x

    program = program_of(fn, {"w": jnp.ones((3, 3))}, [(2, 3)])
    assert names(program) == ["max", "add", "mul", "dot_general"]


def test_what_inputs_alone_make_is_recomputed_where_it_is_needed():
    """The bias of a mask is f32[b, 40, 40]; the mask itself, 40 times smaller, is sent."""

    def fn(p, mask, x):
        bias = jnp.where(mask > 0, 0.0, -1e9)[:, None, :] + jnp.zeros((40, 40))
        for w in p.values():
            x = jax.nn.softmax(x @ x.mT + bias, -1) @ x @ w
        return x

    params = {str(i): jnp.ones((300, 300)) for i in range(4)}
    program = program_of(fn, params, [(2, 40), (2, 40, 300)])
    measured = measure(program)
    assert measured.shared
    assert sum(measured.costs[i] for i in measured.shared) <= 1e-3 * sum(measured.costs)
    positions = cut(
        [measured.costs[i] for i in measured.order], crossing(program, measured.order), 4
    )
    plans = build.plan_stages(program, measured, positions)
    assert [plan.inputs for plan in plans] == [(0, 1) if i == 0 else (0,) for i in range(4)]
    assert all(len(plan.received) == 1 for plan in plans[1:])
    assert all(set(plan.eqns) & measured.shared for plan in plans)


def test_a_prepared_parameter_stays_with_its_use():
    """A transposed weight at the head of the function is not carried to its use at the end."""

    def fn(p, x):
        last, unused = p["last"].T, p["last"] * 2
        del unused
        for i in range(3):
            x = jnp.tanh(x @ p[str(i)])
        return x @ last

    params = {str(i): jnp.ones((5, 5)) for i in range(3)} | {"last": jnp.ones((40, 5))}
    program = program_of(fn, params, [(2, 5)])
    assert names(program)[0] == "transpose"
    measured = measure(program)
    ordered = [program.eqns[i].primitive.name for i in measured.order]
    assert ordered[-2:] == ["transpose", "dot_general"]
    assert sorted(measured.order) == list(range(len(program.eqns)))
    assert max(crossing(program, measured.order)[: len(ordered) - 1]) == 2 * 5 * 4


def test_every_reading_follows_its_making():
    """Orders of random functions of parameters and inputs are topological."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        plan = rng.integers(0, 1 << 20, (12, 3)).tolist()

        def fn(p, x, plan=plan):
            values = [p["a"], p["b"], x]
            for kind, i, j in plan:
                a, b = values[i % len(values)], values[j % len(values)]
                values.append([jnp.add, jnp.multiply, lambda a, b: jnp.sin(a) @ b][kind % 3](a, b))
            return x + values[-1] + values[-2]

        program = program_of(fn, {"a": jnp.ones((3, 3)), "b": jnp.ones((3, 3))}, [(3, 3)], 3)
        measured = measure(program)
        assert sorted([*measured.order, *measured.shared]) == list(range(len(program.eqns)))
        known = {*program.params, *program.inputs, *program.consts}
        known |= {v for i in measured.shared for v in program.eqns[i].outvars}
        for index in measured.order:
            eqn = program.eqns[index]
            assert all(hasattr(var, "val") or var in known for var in eqn.invars)
            known |= set(eqn.outvars)


def scan_program(length, extra):
    def fn(p, x):
        x = jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, p["layers"])[0]
        for i in range(extra):
            x = x @ p["more"][i]
        return x

    params = {"layers": jnp.ones((length, 5, 5)), "more": jnp.ones((max(extra, 1), 5, 5))}
    return fn, params


@pytest.mark.parametrize(
    ("length", "extra", "stages", "pieces"),
    [
        (12, 0, 4, [3, 3, 3, 3]),
        (7, 0, 3, [[2, 2, 3], [2, 3, 2], [3, 2, 2], [3, 3, 1], [1, 3, 3], [3, 1, 3]]),
        (6, 6, 2, None),  # a cut after it is as good
        (9, 3, 2, [6, 3]),
        (2, 0, 5, [1, 1]),
    ],
)
def test_scans_are_split_evenly(length, extra, stages, pieces):
    fn, params = scan_program(length, extra)
    program = program_of(fn, params, [(2, 5)])
    splits = plan_splits(program, measure(program), stages)
    if pieces is None:
        assert splits == {}
        return
    ((_, found),) = splits.items()
    assert sum(found) == length
    assert found == pieces or found in pieces


def test_slices_of_parameters_become_parameters():
    fn, params = scan_program(6, 0)
    params["layers"] = jnp.arange(150.0).reshape(6, 5, 5)
    model = ji.from_function(fn, params, (jnp.ones((2, 5)),))
    traced = trace.trace(model, resolve(model, [("batch", 5)], None), 2)
    plain = trace.flatten(traced)
    (address,) = plain.scans.values()
    program = trace.flatten(traced, {address: [2, 4]})
    assert names(program) == ["scan", "scan"]
    assert [eqn.params["length"] for eqn in program.eqns] == [2, 4]
    sources = [program.params[eqn.invars[-1]] for eqn in program.eqns]
    assert [source.name for source in sources] == ["layers[0:2]", "layers[2:6]"]
    np.testing.assert_array_equal(sources[1].value, np.asarray(params["layers"])[2:])
