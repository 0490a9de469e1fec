"""Where parameters go: every site and every obstacle of small functions, and of what is hard."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxinfer.core.provenance import by_path, parameter, uses
from tests.core.flow_programs import FLOWS


def uses_of(fn, params, *args):
    names, leaves = zip(*sorted(params.items()), strict=True)
    jaxpr = jax.make_jaxpr(fn)(params, *args).jaxpr
    origins = [parameter(n, np.ndim(v)) for n, v in zip(names, leaves, strict=True)]
    return uses(jaxpr, [*origins, *[None] * (len(jaxpr.invars) - len(origins))])


@pytest.mark.parametrize("name", FLOWS)
def test_every_use_is_found(name):
    flow = FLOWS[name]
    found = uses_of(flow.fn, flow.params, flow.x)
    got = [(s.path, s.primitive, s.side, s.contracting, s.indexed) for s in found.sites]
    assert got == list(flow.sites)
    assert [(o.path, o.primitive) for o in found.obstacles] == list(flow.blocked)
    for path, (sites, _) in by_path(found).items():
        assert [s.ordinal for s in sites] == list(range(len(sites))), path
    assert len({s.address for s in found.sites}) == len(found.sites)
    lines = [x.source for x in (*found.sites, *found.obstacles) if x.source]
    assert all("flow_programs.py" in line for line in lines)


def test_a_shape_with_symbols():
    from jax import export

    (b,) = export.symbolic_shape("b")
    x = jax.ShapeDtypeStruct((b, 5), jnp.float32)
    found = uses_of(lambda p, x: x @ p["w"].reshape(5, 7), {"w": np.ones((35,), "f4")}, x)
    assert [s.contracting for s in found.sites] == [(0,)]


@pytest.mark.parametrize(
    ("before", "after", "axes"),
    [
        ((6, 5), (2, 3, 5), ((0,), (0,), (1,))),
        ((2, 3, 5), (6, 5), ((0, 1), (2,))),
        ((2, 3, 5), (1, 6, 5, 1), ((), (0, 1), (2,), ())),
        ((4, 6), (8, 3), ((0, 1), (0, 1))),
        ((1, 5), (5,), ((1,),)),
        ((5,), (1, 5, 1), ((), (0,), ())),
        ((6,), (6,), ((0,),)),
        ((1, 1), (), ()),
    ],
)
def test_axes_of_a_reshape(before, after, axes):
    found = []

    def fn(p):
        return p["w"].reshape(after)

    jaxpr = jax.make_jaxpr(fn)({"w": np.ones(before, "f4")}).jaxpr
    from jaxinfer.core.provenance import LAYOUT

    for eqn in jaxpr.eqns:
        found = LAYOUT[eqn.primitive.name](eqn, parameter("w", len(before)).axes)
    if jaxpr.eqns:
        assert [tuple(sorted(a)) for a in found] == [tuple(a) for a in axes]


def test_a_thousand_uses():
    """Each is a site with an ordinal and an address of its own."""

    def deep(p, x):
        for _ in range(1000):
            x = x @ p["w"]
        return x

    found = uses_of(deep, {"w": np.ones((3, 3), "f4")}, np.ones((2, 3), "f4"))
    assert [s.ordinal for s in found.sites] == list(range(1000))
    assert len({s.address for s in found.sites}) == 1000
