"""The parameters of a folded model: of those of the unfolded one, one group after the other."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxinfer.core._compat import bind
from jaxinfer.numerics.folding import compose, concatenate, scale_outputs
from jaxinfer.transforms._fold_flat import Flat, Step, evaluate
from jaxinfer.transforms._fold_match import Found, Matched, Place
from jaxinfer.transforms._fold_sites import Labels, Op, Site

Read = Mapping[int, Any]
Array = Any


class Job(NamedTuple):
    """What makes some of the new parameters.

    Attributes:
      names: of the parameters.
      targets: values of the unfolded function, of its parameters alone.
      fn: those values -> parameters by name.
    """

    names: tuple[str, ...]
    targets: tuple[int, ...]
    fn: Callable[[Read], dict[str, Array]]


def jobs(found: Found, matched: Matched) -> list[Job]:
    """Return the computations of all new and changed parameters."""
    kernels = {
        matched.cores.get(member.kernel)
        for place in matched.places
        for member in place.group.members
    }
    plain = {name: core for name, core in matched.cores.items() if core not in kernels}
    made = []
    if plain:  # together: one may be computed of another
        made.append(
            Job(
                tuple(plain),
                tuple(plain.values()),
                lambda read: {name: read[core] for name, core in plain.items()},
            )
        )
    makers = {"affine": _affine, "merge": _merge, "compose": _compose}
    for place in matched.places:
        targets = [site.source for site in place.sites]
        targets += [op.operand for ops in place.ops for op in ops if op.operand is not None]
        maker = makers[place.group.kind]
        biases = (place.group.bias, *(member.bias for member in place.group.members))
        made.append(
            Job(
                (place.group.name, *(bias for bias in biases if bias is not None)),
                tuple(dict.fromkeys(targets)),
                lambda read, maker=maker, place=place: maker(found, place, read),
            )
        )
    return made


def specs(found: Found, work: Sequence[Job]) -> dict[str, jax.ShapeDtypeStruct]:
    """Return shape and dtype of the new parameters that jobs make; nothing is computed."""
    made: dict[str, jax.ShapeDtypeStruct] = {}
    avals = {
        path: jax.ShapeDtypeStruct(found.flat.shape(value), found.flat.avals[value].dtype)
        for path, value in found.inputs.items()
    }
    for job in work:
        if not all(name in avals for name in job.names):  # others keep shape and dtype
            made |= jax.eval_shape(_runner(found, job), _inputs(found, job, avals))
    return made


def run(found: Found, job: Job, params: Mapping[str, Array]) -> dict[str, Array]:
    """Compute what a job makes, jitted."""
    return jax.jit(_runner(found, job))(_inputs(found, job, params))


def _inputs(found: Found, job: Job, params: Mapping[str, Any]) -> dict[str, Any]:
    mask = 0
    for value in job.targets:
        mask |= found.values.of[value].paths
    return {path: params[path] for path in found.values.names(mask)}


def _runner(found: Found, job: Job) -> Callable[[dict[str, Any]], dict[str, Array]]:
    steps = _behind(found.flat, job.targets)

    def fn(params: dict[str, Any]) -> dict[str, Array]:
        given = {found.inputs[path]: value for path, value in params.items()}
        reads = {value for step in steps for value in step.inputs} | set(job.targets)
        given |= {value: found.flat.known[value] for value in reads & set(found.flat.known)}
        values = evaluate(steps, given, job.targets)
        return job.fn(dict(zip(job.targets, map(jnp.asarray, values), strict=True)))

    return fn


def _behind(flat: Flat, targets: Sequence[int]) -> list[Step]:
    """Return the steps that make some values, in order."""
    indices: set[int] = set()
    waiting = list(targets)
    while waiting:
        index = flat.producer.get(waiting.pop())
        if index is not None and index not in indices:
            indices.add(index)
            waiting += flat.nodes[index].inputs
    nodes = [flat.nodes[index] for index in sorted(indices)]
    return [Step(node, node.inputs, node.outputs) for node in nodes]


def _affine(found: Found, place: Place, read: Read) -> dict[str, Array]:
    (member,), (site,), (ops,) = place.group.members, place.sites, place.ops
    kernel, shift = _scaled(found, site, ops, read)
    leaves = {member.kernel: _as_stored(found, site, kernel)}
    if member.bias is not None:
        leaves[member.bias] = _bias(found, member.bias, ops[-1].output, shift)
    return leaves


def _merge(found: Found, place: Place, read: Read) -> dict[str, Array]:
    group = place.group
    kernels, shifts, leaves = [], [], {}
    for member, site, ops in zip(group.members, place.sites, place.ops, strict=True):
        kernel, shift = _scaled(found, site, ops, read)
        kernels.append(kernel)
        shifts.append(shift)
        if member.bias is not None:
            leaves[member.bias] = _bias(found, member.bias, ops[-1].output, shift)
    none = [None] * len(kernels)
    leaves[group.name] = concatenate(kernels, none, axis=group.axis, path=group.name)[0]
    if group.bias is not None:
        site = place.sites[0]
        axis = site.outputs.index(group.axis)
        output = found.flat.nodes[site.node].outputs[0]
        leaves[group.bias] = _bias(found, group.bias, output, jnp.concatenate(shifts, axis))
    return leaves


def _compose(found: Found, place: Place, read: Read) -> dict[str, Array]:
    group = place.group
    kernel, bias = _dense(found, place, 0, read)
    for number in range(1, len(group.members)):
        second, second_bias = _dense(found, place, number, read)
        kernel, bias = compose(kernel, second, bias, second_bias, path=group.name)
    leaves = {group.name: kernel}
    if group.bias is not None:
        ops, site = place.ops[-1], place.sites[-1]
        output = ops[-1].output if ops else found.flat.nodes[site.node].outputs[0]
        leaves[group.bias] = _bias(found, group.bias, output, bias)
    return leaves


def _dense(found: Found, place: Place, number: int, read: Read) -> tuple[Array, Array | None]:
    """Return a kernel [inputs, outputs] and a bias [outputs]."""
    site = place.sites[number]
    kernel, shift = _scaled(found, site, place.ops[number], read)
    return kernel if site.outputs == (1,) else kernel.T, shift


def _scaled(found: Found, site: Site, ops: Sequence[Op], read: Read) -> tuple[Array, Array | None]:
    """Return a kernel as its product reads it, scaled, in its own dtype, and what is added."""
    kernel = read[site.source]
    for index in site.steps:
        node = found.flat.nodes[index]
        if node.name != "convert_element_type":  # it is scaled before it is rounded
            (kernel,) = bind(node.eqn, [kernel])
    scale, shift = _vectors(site, ops, kernel, read)
    if scale is not None:
        kernel, _ = scale_outputs(kernel, None, scale, layout=site.layout)
    return kernel, shift


def _vectors(
    site: Site, ops: Sequence[Op], kernel: Array, read: Read
) -> tuple[Array | None, Array | None]:
    """Return a and b of y a + b, over the output axes of the kernel, ascending; None: 1, 0."""
    sizes = tuple(kernel.shape[axis] for axis in site.outputs)
    wide = jnp.promote_types(kernel.dtype, jnp.float32)
    scale: Array | None = None
    shift: Array | None = None
    for op in ops:
        value = None if op.operand is None else _vector(read[op.operand], op.labels, sizes, wide)
        if op.kind in ("mul", "div", "neg"):
            if op.kind == "div":
                assert value is not None
                shift = None if shift is None else shift / value
                scale = (1 if scale is None else scale) / value
            else:
                value = jnp.full(sizes, -1, wide) if value is None else value
                shift = None if shift is None else shift * value
                scale = value if scale is None else scale * value
        else:
            assert value is not None
            if op.kind == "rsub":
                scale = jnp.full(sizes, -1, wide) if scale is None else -scale
                shift = value if shift is None else value - shift
            else:
                value = -value if op.kind == "sub" else value
                shift = value if shift is None else shift + value
    return scale, shift


def _vector(value: Array, labels: Labels, sizes: tuple[int, ...], dtype: Any) -> Array:
    """Return one number for each output of a kernel, of a value that varies along them only."""
    value = value.astype(dtype)
    if value.ndim:
        held = [label for label in labels if label is not None]
        value = value[tuple(0 if label is None else slice(None) for label in labels)]
        value = value.transpose([held.index(label) for label in sorted(held)])
    return jnp.broadcast_to(value, sizes)


def _bias(found: Found, name: str, output: int, shift: Array | None) -> Array:
    """Return a bias in the dtype of the one whose path it has, else of what it is added to."""
    assert shift is not None
    return shift.astype(found.flat.avals[found.inputs.get(name, output)].dtype)


def _as_stored(found: Found, site: Site, kernel: Array) -> Array:
    """Undo the rearrangements between a parameter and its product."""
    for index in reversed(site.steps):
        node = found.flat.nodes[index]
        if node.name == "transpose":
            kernel = kernel.transpose(np.argsort(node.eqn.params["permutation"]))
        elif node.name == "rev":
            kernel = jnp.flip(kernel, node.eqn.params["dimensions"])
        else:
            kernel = kernel.reshape(found.flat.shape(node.inputs[0]))
    return kernel
