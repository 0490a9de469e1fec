"""The provenance of parameters is what every row of the table of programs says."""

import jax
import jax.numpy as jnp
import pytest

from jaxinfer.core.program import param_names
from jaxinfer.core.provenance import by_path, parameter, uses
from tests.laws.programs import PROGRAMS, Use


def found_in(row):
    """Return the different uses of every parameter, as provenance finds them."""
    params = row.params()
    names, leaves = param_names(params), jax.tree.leaves(params)
    jaxpr = jax.make_jaxpr(row.fn)(params, *row.inputs(2)).jaxpr
    rest = [None] * (len(jaxpr.invars) - len(leaves))
    origins = [parameter(n, jnp.ndim(x)) for n, x in zip(names, leaves, strict=True)]
    found = by_path(uses(jaxpr, [*origins, *rest]))
    return {
        name: {
            *(Use(s.primitive, True, s.contracting) for s in found.get(name, ([], []))[0]),
            *(Use(o.primitive.split()[0], False) for o in found.get(name, ([], []))[1]),
        }
        for name in names
    }


@pytest.mark.parametrize("name", PROGRAMS)
def test_uses(name):
    row = PROGRAMS[name]
    assert found_in(row) == {path: set(uses) for path, uses in row.weights.items()}
