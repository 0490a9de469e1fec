"""Every mark against the operator in torch's own order; the table is closed.

Each case of tests/aten is tried with the channels at every place and in both orders of
storage: where the mark takes the call, the rewritten one must give the same values.
"""

import collections
import itertools

import jax
import numpy as np
import pytest

from jaxinfer_converters.graph import Aval, Graph, Input, Node, Ref, Result
from jaxinfer_converters.layout.axes import CHANNELS, Track, order
from jaxinfer_converters.layout.marks import Unfit
from jaxinfer_converters.layout.plan import Plan, Reader
from jaxinfer_converters.layout.rewrite import Writer
from jaxinfer_converters.layout.table import MARKS
from jaxinfer_converters.program import run_graph
from tests.aten import harness
from tests.aten.harness import case, rand
from tests.layout.cases import extra

CASES = harness.all_cases()
TRACKS = (CHANNELS, Track(2), Track(3), Track(1, 2), Track(2, 2))
RANDOM = ("aten.empty_like.default",)  # uninitialized: shapes only


def graph_of(op, one):
    """A graph of one node that calls the operator, and its arrays by input name."""
    arrays = {}

    def ref(value):
        if isinstance(value, np.ndarray):
            name = f"x{len(arrays)}"
            arrays[name] = harness.dtypes.narrow(value, op)
            return Ref(name)
        return [ref(v) for v in value] if isinstance(value, (list, tuple)) else value

    args = tuple(ref(arg) for arg in one.args)
    kwargs = {key: ref(value) for key, value in one.kwargs.items()}
    inputs = tuple(
        Input(name, "input", str(i), Aval(x.shape, x.dtype.name))
        for i, (name, x) in enumerate(arrays.items())
    )
    bare = Graph(inputs, (Node("y", op, args, kwargs),), (Result("output", Ref("y")),))
    key = jax.random.key(0)
    outs = jax.eval_shape(lambda values: run_graph(bare, values, {}, key)[0], arrays)
    listed = isinstance(outs, (list, tuple))
    avals = tuple(Aval(out.shape, out.dtype.name) for out in (outs if listed else [outs]))
    nodes = [Node("y", op, args, kwargs, avals)]
    results = [Result("output", Ref("y"))]
    if listed:
        nodes += [
            Node(f"y{i}", "operator.getitem", (Ref("y"), i), {}, (aval,))
            for i, aval in enumerate(avals)
        ]
        results = [Result("output", Ref(f"y{i}")) for i in range(len(avals))]
    return Graph(inputs, tuple(nodes), tuple(results)), arrays


def rewritten(graph, track, last):
    """The graph with its one call in the order asked for, or None where the mark refuses."""
    reader = Reader(graph)
    node = graph.nodes[0]
    found = reader.call(node)
    if found is None:
        return None
    mark, call = found
    if not call.tensors():
        return None
    try:
        carriers = mark.carriers(call)
        rank = call.rank(carriers[0])
        if track.start + track.width > rank:
            return None
        tracks = dict.fromkeys(carriers, track)
        give = mark.forward(call, track)
        plan = Plan(graph, {"y": found}, tracks, {"y": last}, (), reader.lists)
        tracks |= {k: t for k, t in zip(plan.keys(node), give, strict=False) if t is not None}
        if order(track, rank, last) == tuple(range(rank)):
            return None  # stored as torch has it
        return Writer(plan, {item.name for item in graph.inputs}).write()
    except Unfit:
        return None


def cases_of(op):
    cases = [one for one in CASES[op] if not one.covered_by]
    return extra(op, cases) + cases


def compile_quickly(fn):
    """Jit without LLVM's optimizations: the graphs are tiny and many."""
    return jax.jit(fn, compiler_options={"xla_backend_optimization_level": 0})


@pytest.mark.parametrize("op", sorted(MARKS))
def test_a_mark_gives_what_the_operator_gives(op):
    pairs, seen = [], collections.Counter()
    for one in cases_of(op):
        graph, arrays = graph_of(op, one)
        for track, last in itertools.product(TRACKS, (True, False)):
            if seen[track, last] >= (6 if track == CHANNELS else 1):
                continue
            made = rewritten(graph, track, last)
            if made is not None:
                seen[track, last] += 1
                pairs.append((one, graph, made, arrays))
    assert pairs, f"{op}: no case of tests/aten fits its mark; add one to tests/layout/cases.py"

    @compile_quickly
    def run(values):
        key = jax.random.key(0)
        return [
            (run_graph(graph, given, {}, key), run_graph(made, given, {}, key))
            for (_, graph, made, _), given in zip(pairs, values, strict=True)
        ]

    outs = run([arrays for *_, arrays in pairs])
    for (one, _, made, _), (want, got) in zip(pairs, outs, strict=True):
        for w, g in zip(want, got, strict=True):
            assert (w.shape, w.dtype) == (g.shape, g.dtype), (op, made)
            if op in RANDOM:
                continue
            rtol, atol = harness.TOLERANCE.get(w.dtype.name, (0, 0))
            wide = np.complex128 if w.dtype.kind == "c" else np.float64
            np.testing.assert_allclose(
                np.asarray(g).astype(wide),
                np.asarray(w).astype(wide),
                rtol=rtol,
                atol=one.atol or atol,
                err_msg=f"{op} {[str(node) for node in made.nodes]}",
            )


def test_the_comparison_can_fail():
    """A mark that renumbers nothing is found out."""
    from jaxinfer_converters.layout.marks import Like

    graph, arrays = graph_of("aten.softmax.int", case(rand(2, 3, 5, 7), 1))
    good = rewritten(graph, CHANNELS, True)
    old, MARKS["aten.softmax.int"] = MARKS["aten.softmax.int"], Like()
    try:
        bad = rewritten(graph, CHANNELS, True)
    finally:
        MARKS["aten.softmax.int"] = old
    (want,), (right,), (wrong,) = (run_graph(g, dict(arrays), {}) for g in (graph, good, bad))
    np.testing.assert_allclose(right, want, rtol=1e-6)
    assert np.abs(np.asarray(wrong) - want).max() > 0.1
