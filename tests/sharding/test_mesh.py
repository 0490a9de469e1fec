"""Meshes: made from sizes and texts, and refused."""

import jax
import pytest
from jax.sharding import AxisType, Mesh

from jaxinfer.core.errors import InputError
from jaxinfer.sharding import check_mesh, make_mesh
from jaxinfer.sharding import mesh as module
from jaxinfer.sharding.mesh import fingerprint


@pytest.mark.parametrize("spec", [{"data": 2, "model": 4}, "data=2,model=4", " data = 2 , model=4"])
def test_sizes_by_name(spec):
    made = make_mesh(spec)
    assert dict(made.shape) == {"data": 2, "model": 4}
    assert made.axis_names == ("data", "model")
    assert set(made.axis_types) == {AxisType.Auto}
    assert sorted(device.id for device in made.devices.flat) == list(range(8))


def test_fewer_devices_than_there_are():
    assert make_mesh({"x": 3}).devices.size == 3
    chosen = jax.devices()[4:6]
    assert list(make_mesh("x=2", chosen).devices.flat) == chosen


def test_a_mesh_as_it_is():
    mesh = jax.make_mesh((2, 2), ("a", "b"), axis_types=(AxisType.Auto,) * 2)
    assert make_mesh(mesh) is mesh


def test_explicit_axes_become_auto():
    mesh = jax.make_mesh((2, 4), ("a", "b"), axis_types=(AxisType.Explicit,) * 2)
    made = make_mesh(mesh)
    assert set(made.axis_types) == {AxisType.Auto}
    assert (made.devices == mesh.devices).all()


@pytest.mark.parametrize(
    ("spec", "texts"),
    [
        ({"data": 16}, ["needs 16 devices, there are 8 (cpu)", "jax_num_cpu_devices', 16"]),
        ({"data": 3, "model": 3}, ["data=3 x model=3 needs 9 devices"]),
        ({}, ["no axes"]),
        ("", ["no axes"]),
        ({"data": 0}, ["axis 'data': required a size of 1 or more, got 0"]),
        ({"data": -2}, ["got -2"]),
        ({"data": 2.5}, ["got 2.5"]),
        ({"data": True}, ["got True"]),
        ("data", ["axis 'data': required a size", "got None"]),
        ("data=x", ["got 'x'"]),
        ("data=2,data=4", ["axis 'data': is there 2 times"]),
        ({"": 2}, ["axis '': required a name"]),
        ({"a b": 2, "c": 0}, ["axis 'a b': required a name", "axis 'c': required a size"]),
    ],
)
def test_refused(spec, texts):
    with pytest.raises(InputError) as caught:
        make_mesh(spec)
    for text in texts:
        assert text in str(caught.value)


def test_a_mesh_has_its_own_devices():
    with pytest.raises(InputError, match="a mesh has its own"):
        make_mesh(make_mesh("x=2"), jax.devices())


def test_a_mesh_without_axes():
    import numpy as np

    with pytest.raises(InputError, match="has no axes"):
        make_mesh(Mesh(np.array(jax.devices()[0]), ()))


def test_fingerprint_knows_sizes_and_order():
    devices = jax.devices()
    one = fingerprint(make_mesh("a=2,b=2", devices[:4]))
    assert one == fingerprint(make_mesh({"a": 2, "b": 2}, devices[:4]))
    assert one != fingerprint(make_mesh("a=4", devices[:4]))
    assert one != fingerprint(make_mesh("a=2,b=2", devices[4:]))


def test_one_process_agrees_with_itself():
    check_mesh(make_mesh("x=8"))


@pytest.fixture
def three(monkeypatch):
    """Three processes, of which this is number 1; the texts of the others are what they gave."""
    monkeypatch.setattr(jax, "process_count", lambda: 3)
    monkeypatch.setattr(jax, "process_index", lambda: 1)

    def others(first, last):
        monkeypatch.setattr(module, "_exchange", lambda text, timeout: [first, text, last])

    return others


def text_of(mesh):
    import json

    return json.dumps(module.describe(mesh), sort_keys=True)


def test_who_differs_is_said(three):
    mesh = make_mesh("x=8")
    three(text_of(make_mesh("x=4")), text_of(mesh))
    with pytest.raises(InputError) as caught:
        check_mesh(mesh)
    assert "process 0: axes {'x': 4}, process 1 has {'x': 8}" in str(caught.value)
    assert "process 2" not in str(caught.value)


def test_another_order_of_devices(three):
    mesh = make_mesh("x=2", jax.devices()[:2])
    three(text_of(mesh), text_of(make_mesh("x=2", jax.devices()[1::-1])))
    with pytest.raises(InputError, match=r"process 2: devices \[1, 0\], process 1 has \[0, 1\]"):
        check_mesh(mesh)


def test_a_process_that_does_not_come(three):
    mesh = make_mesh("x=8")
    three(text_of(mesh), None)
    with pytest.raises(InputError, match="process 2: did not come within 5 s"):
        check_mesh(mesh, timeout=5)


def test_a_process_without_a_device(three):
    mesh = make_mesh("x=8")  # all of process 0
    three(text_of(mesh), text_of(mesh))
    with pytest.raises(InputError, match=r"processes \[1, 2\] have no device in it"):
        check_mesh(mesh)
