"""The batch axis and all other sizes, from what the user declares and the model says."""

import jax.numpy as jnp
import pytest

import jaxinfer as ji
from jaxinfer.compile.stages.choose import result_axes
from jaxinfer.compile.stages.inputs import check_microbatch, resolve
from jaxinfer.core.errors import InputError
from jaxinfer.core.signature import LeafSpec, Signature
from jaxinfer.core.structure import LEAF


class Fixed:
    """As much of a converted program as the inputs need."""

    fixed = True
    random = False

    def __init__(self, **leaves):
        specs = tuple(LeafSpec(name, shape, "float32") for name, shape in leaves.items())
        symbols = {"batch": (2, 9), "seq": (1, 100)}
        self.signature = Signature(
            tuple(leaves), len(leaves), (LEAF,) * len(leaves), specs, symbols
        )


def model_of(**leaves):
    plain = ji.from_function(lambda p, x: x, {}, (jnp.ones(2),))
    return plain.replace(program=Fixed(**leaves))


def shapes(inputs, size):
    return [struct.shape for struct in inputs.structs(size)]


def test_a_size_that_one_input_fixes_holds_for_all():
    model = model_of(ids=("batch", "seq"), mask=("batch", "seq"), wide=("batch", "2*seq + 1"))
    for declared in ({"ids": ("batch", 7)}, {"wide": ("batch", 15)}, {"mask": ("b", 7)}):
        inputs = resolve(model, declared, None)
        assert shapes(inputs, 3) == [(3, 7), (3, 7), (3, 15)]
        assert inputs.axes == (0, 0, 0)
        assert inputs.bounds == (2, 9)


def test_the_batch_may_be_any_axis_and_any_name():
    model = ji.from_function(lambda p, x, y: x, {}, (jnp.ones((2, 3)), jnp.ones((3, 4))))
    inputs = resolve(model, {"x0": (5, "rows")}, None)
    assert shapes(inputs, 2) == [(5, 2), (3, 4)]
    assert inputs.axes == (1, None)
    assert inputs.symbol == "rows"
    given = resolve(model, [("n", 3), jnp.ones((1, 2))], "n")
    assert shapes(given, 4) == [(4, 3), (1, 2)]


def test_what_the_signature_says_is_the_default():
    inputs = resolve(model_of(x=("batch", 4), y=(3,)), None, None)
    assert shapes(inputs, 5) == [(5, 4), (3,)]


CASES = [
    ({"x": (2, 3)}, None, {"z": ("batch",)}, "z: no such input\n.*the model takes: x: float32"),
    ({"x": (2, 3)}, None, [("batch", 3)] * 2, r"required 1 shapes \(x\), got 2"),
    ({"x": ("batch", 3)}, None, {"x": ("batch",)}, r"x: float32\[batch, 3\]: declared with rank 1"),
    ({"x": ("batch", 3)}, None, {"x": ("batch", 4)}, "axis 1 is fixed to 3, got 4"),
    ({"x": ("batch", 3)}, None, {"x": ("batch", -1)}, "sizes are numbers and names, got -1"),
    ({"x": ("batch", 3)}, None, {"x": ("2*b", 3)}, r"sizes are numbers and names, got '2\*b'"),
    ({"x": (2, 3)}, None, None, r"no input has a symbolic size.*inputs=\{'x': \('batch', 3\)\}"),
    ({"x": ("a", "b")}, None, None, r"several sizes are symbolic \(symbolic: a, b\)"),
    ({"x": ("batch", 3)}, "rows", None, "no size is called 'rows'"),
    ({"x": ("batch", "seq")}, None, None, r"axis 1 is seq; required a number\n.*\('batch', 128\)"),
    ({"x": ("batch", "2*batch")}, None, None, r"axis 1 is 2\*batch; .* or batch itself"),
    ({"x": ("batch", "batch")}, None, None, r"batch is on more than one axis of \[batch, batch\]"),
    ({"x": ("batch", "seq"), "y": ("seq",)}, None, {"x": ("batch", 3), "y": (4,)}, "seq is 3 by"),
    ({"x": ("batch", "seq"), "y": ("seq",)}, None, {"x": ("n", "s"), "y": ("t",)}, "s and t"),
    ({"x": ("2*batch",)}, None, {"x": ("n",)}, r"axis 0 is 2\*batch, got n"),
]  # fmt: skip


@pytest.mark.parametrize(("leaves", "batch", "declared", "message"), CASES)
def test_what_does_not_fit(leaves, batch, declared, message):
    with pytest.raises(InputError, match=message):
        resolve(model_of(**leaves), declared, batch)


def test_a_model_without_arrays():
    with pytest.raises(InputError, match="a model without array inputs has no batch"):
        resolve(ji.from_function(lambda p: p["w"], {"w": jnp.ones(2)}, ()), None, None)


def test_a_batch_that_has_one_size():
    model = ji.from_function(lambda p, x: x, {}, (jnp.ones((2, 3)),))
    inputs = resolve(model, [("batch", 3)], None)
    assert result_axes(model, inputs, 2) == [0]
    assert result_axes(model, inputs._replace(bounds=(1, 2)), 2) == [0]  # compared with 1
    with pytest.raises(InputError, match="batch is always 2: nothing to cut"):
        result_axes(model, inputs._replace(bounds=(2, 2)), 2)


def test_a_model_without_example_inputs():
    with pytest.raises(InputError, match="without example inputs"):
        resolve(ji.from_function(lambda p, x: x, {}), None, None)


def test_micro_batches_within_the_models_bounds():
    inputs = resolve(model_of(x=("batch", 3)), None, None)
    check_microbatch(inputs, 2)
    check_microbatch(inputs, 9)
    for size in (1, 10):
        with pytest.raises(InputError, match=r"outside the sizes that the model takes \(2"):
            check_microbatch(inputs, size)
    for size in (0, -1, 1.5, True):
        with pytest.raises(InputError, match="integer of 1 or more"):
            check_microbatch(inputs, size)
