"""The rewrite of a fold: a function evaluated with what its plan holds put in place.

The function is traced at the shapes of the unfolded parameters, analysed as it was when the plan
was made, and evaluated: what the plan computed is read, merged products are one product and its
slices, equations that were folded pass their operand on. What nothing needs then is left out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import lax

from jaxinfer.core._compat import bind
from jaxinfer.core.errors import ArtefactError, InputError, InputTypeError, listing
from jaxinfer.core.rewrites import REWRITES
from jaxinfer.numerics.folding import split
from jaxinfer.transforms._fold_flat import Node, Step, evaluate, needed
from jaxinfer.transforms._fold_match import Found, Matched, Place, analyse, match
from jaxinfer.transforms._fold_plan import Plan, Spec, misfit
from jaxinfer.transforms._fold_sites import Labels, Op, Site


@dataclasses.dataclass
class Steps:
    """A function with a plan put in place.

    Attributes:
      steps: what is left to evaluate, in order.
      leaves: the value that each parameter is, by name: those before the fold, and new ones.
      outputs: of the function.
    """

    steps: list[Step]
    leaves: dict[str, int]
    outputs: list[int]

    @property
    def reads(self) -> set[int]:
        """Values that the steps and the results need."""
        return {value for step in self.steps for value in step.inputs} | set(self.outputs)


class _Builder:
    def __init__(self, found: Found):
        self.found, self.flat = found, found.flat
        self.leaves = dict(found.inputs)
        self.alias: dict[int, int] = {}
        self.replaced: dict[int, Step | None] = {}
        self.count = len(self.flat.avals)

    def leaf(self, name: str) -> int:
        """Return the value of a parameter by its name; a new one is numbered."""
        if name not in self.leaves:
            self.leaves[name] = self.count
            self.count += 1
        return self.leaves[name]

    def chain(self, ops: Sequence[Op], bias: str | None, site: Site) -> None:
        """Let equations pass their operand on; the last adds the bias."""
        for op in ops:
            self.replaced[op.node] = None
            self.alias[op.output] = op.passed
        if bias is not None:
            last = ops[-1]
            del self.alias[last.output]
            inputs = (last.passed, self.leaf(bias))
            add = _adder(last.labels, site.outputs)
            self.replaced[last.node] = Step(
                self.flat.nodes[last.node], inputs, (last.output,), lambda y, b: [add(y, b)]
            )

    def affine(self, place: Place) -> None:
        """Read a scaled kernel, and add a bias."""
        (member,), (site,), (ops,) = place.group.members, place.sites, place.ops
        self.chain(ops, member.bias, site)

    def merge(self, place: Place) -> None:
        """Evaluate one product where the first was, and cut it."""
        group, members = place.group, place.sites
        nodes = [self.flat.nodes[site.node] for site in members]
        first = min(site.node for site in members)
        lead = self.flat.nodes[first]
        site = members[0]
        kernels = [
            self.flat.avals[node.inputs[each.side]]
            for node, each in zip(nodes, members, strict=True)
        ]
        sizes = tuple(kernel.shape[group.axis] for kernel in kernels)
        where = site.labels.index(group.axis)
        add = None if group.bias is None else _adder(site.labels, site.outputs)

        def product(x: Any, kernel: Any, *bias: Any) -> Sequence[Any]:
            kernel = _as(kernel, kernels[0].dtype)
            y = bind(lead.eqn, [x, kernel] if site.side else [kernel, x])[0]
            if add is not None:
                y = add(y, *bias)
            return split(y, sizes, axis=where)

        inputs = [lead.inputs[1 - site.side], self.leaf(group.name)]
        inputs += [] if group.bias is None else [self.leaf(group.bias)]
        outputs = tuple(node.outputs[0] for node in nodes)
        for each, ops, member in zip(members, place.ops, group.members, strict=True):
            self.replaced[each.node] = None
            self.chain(ops, member.bias, each)
        self.replaced[first] = Step(lead, tuple(inputs), outputs, product)

    def compose(self, place: Place) -> None:
        """Evaluate one product where the last was, of what the first one read."""
        group = place.group
        first, last = place.sites[0], place.sites[-1]
        node = self.flat.nodes[last.node]
        data = self.flat.nodes[first.node].inputs[0]
        inside = group.bias is not None and not place.ops[-1]
        add = _adder((*[None] * (len(last.labels) - 1), 1), (1,)) if inside else None
        kernel_dtype = self.flat.avals[node.inputs[1]].dtype
        options = {k: node.eqn.params[k] for k in ("precision", "preferred_element_type")}

        def product(x: Any, kernel: Any, *bias: Any) -> Sequence[Any]:
            numbers = (((x.ndim - 1,), (0,)), ((), ()))
            x, kernel = _as(x, kernel_dtype), _as(kernel, kernel_dtype)
            y = lax.dot_general(x, kernel, numbers, **options)
            return [y if add is None else add(y, *bias)]

        inputs = [data, self.leaf(group.name)]
        if group.bias is not None:
            bias = self.leaf(group.bias)
            if add is not None:
                inputs.append(bias)
        for site, ops in zip(place.sites, place.ops, strict=True):
            self.replaced[site.node] = None
            self.chain(ops, group.bias if site is last and ops else None, site)
        self.replaced[last.node] = Step(node, tuple(inputs), node.outputs, product)

    def build(self, matched: Matched) -> Steps:
        """Return the steps that are needed."""
        for name, core in matched.cores.items():
            self.alias[core] = self.leaf(name)
        for place in matched.places:
            {"affine": self.affine, "merge": self.merge, "compose": self.compose}[place.group.kind](
                place
            )
        steps = []
        for index, node in enumerate(self.flat.nodes):
            step = self.replaced.get(index, Step(node, node.inputs, node.outputs))
            if step is not None:
                steps.append(step._replace(inputs=tuple(map(self.resolve, step.inputs))))
        outputs = list(map(self.resolve, self.flat.outputs))
        made = set(matched.cores.values())
        steps = [step for step in steps if not made.intersection(step.outputs)]
        return Steps(needed(steps, outputs), self.leaves, outputs)

    def resolve(self, value: int) -> int:
        """Return what stands in place of a value."""
        while value in self.alias:
            value = self.alias[value]
        return value


def build(found: Found, matched: Matched) -> Steps:
    """Return the steps of a trace with the entries of a plan put in place."""
    return _Builder(found).build(matched)


def _as(value: Any, dtype: Any) -> Any:
    return value if value.dtype == dtype else lax.convert_element_type(value, dtype)


def _adder(labels: Labels, outputs: Sequence[int]) -> Callable[[Any, Any], Any]:
    """Return y, bias -> y + bias, the axes of the bias being outputs of the kernel, ascending."""

    def add(y: Any, bias: Any) -> Any:
        held = [label for label in labels if label is not None]
        order = [sorted(outputs).index(label) for label in held]
        where = tuple(axis for axis, label in enumerate(labels) if label is not None)
        bias = _as(bias, y.dtype).transpose(order)
        return lax.add(y, lax.broadcast_in_dim(bias, y.shape, where))

    return add


@REWRITES.register("fold")
@dataclasses.dataclass(frozen=True)
class FoldRewrite:
    """Evaluates a function with a plan of ``fold``.

    Attributes:
      plan: what became of the parameters.
      tree: the structure that the function takes its parameters in; None for a flat dict by
        path. A structure is not data: such a model is saved as StableHLO.
    """

    plan: Plan
    tree: Any = None
    kind: ClassVar[str] = "fold"

    def to_json(self) -> dict[str, Any]:
        """Return the plan as plain data.

        Raises:
          ArtefactError: the function takes its parameters in a structure of its own.
        """
        if self.tree is not None:
            raise ArtefactError(
                "fold: the unfolded function takes its parameters in a structure that is no flat "
                "dict, which cannot be written as data"
            )
        return {"plan": self.plan.to_json()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> FoldRewrite:
        """Rebuild the rewrite.

        Raises:
          ValueError, KeyError, TypeError: malformed.
        """
        return cls(Plan.from_json(data["plan"]))

    def param_specs(self, old: Mapping[str, Any]) -> dict[str, jax.ShapeDtypeStruct]:
        """Return shape and dtype of the parameters after the fold.

        Args:
          old: those before it: values with ``shape`` and ``dtype``. Names and shapes must be
            those of the plan; dtypes are the plan's own (a cast may come before a fold).

        Raises:
          InputError: they are not those that the plan was made for; all at once.
        """
        problems = []
        for path in sorted({*old, *self.plan.params}):
            wanted = self.plan.params.get(path)
            if wanted is None:
                problems.append(f"{path}: the plan knows no such parameter")
            elif path not in old:
                problems.append(f"{path}: the function has no such parameter")
            elif tuple(old[path].shape) != wanted[0]:
                problems.append(f"{path}: required {wanted[0]}, got {tuple(old[path].shape)}")
        if problems:
            raise misfit(problems)
        return {path: _struct(spec) for path, spec in self.plan.leaves.items()}

    def apply(self, run: Callable[..., Any]) -> Callable[..., Any]:
        """Return ``run(params, leaves, rng_key)`` on the folded parameters."""

        def folded(params: Any, leaves: Any, rng_key: Any = None) -> Any:
            _check(self.plan, params)
            flat, tree = jax.tree.flatten(leaves)
            arrays = [value for value in flat if hasattr(value, "dtype")]
            structs = {path: _struct(spec) for path, spec in self.plan.params.items()}

            def fn(values: Sequence[Any], arrays: Any, key: Any) -> Any:
                filled = iter(arrays)
                given = [next(filled) if hasattr(value, "dtype") else value for value in flat]
                own = dict(zip(structs, values, strict=True))
                old = own if self.tree is None else self.tree.unflatten(values)
                return run(old, tree.unflatten(given), key)

            trace = jax.make_jaxpr(fn, return_shape=True)
            closed, shapes = trace(list(structs.values()), arrays, rng_key)
            found = analyse(closed.jaxpr, closed.consts, list(structs), self.plan.frozen)
            matched = match(found, self.plan)
            if matched.problems:
                raise misfit(list(matched.problems.values()))
            steps = build(found, matched)
            given = dict(found.flat.known)
            rest = found.flat.inputs[len(structs) :]
            given |= zip(rest, jax.tree.leaves((arrays, rng_key)), strict=True)
            given |= {
                steps.leaves[name]: value for name, value in params.items() if name in steps.leaves
            }
            reads = steps.reads
            gone = [path for path in self.plan.removed if steps.leaves[path] in reads]
            if gone:
                raise misfit([f"{path}: it is read, but the plan removed it" for path in gone])
            outs = evaluate(steps.steps, given, steps.outputs)
            return jax.tree.unflatten(jax.tree.structure(shapes), outs)

        return folded


def _struct(spec: Spec) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(spec[0], jnp.dtype(spec[1]))


def _check(plan: Plan, params: Any) -> None:
    """Raise if parameters are not those of a plan."""
    if not isinstance(params, Mapping):
        raise InputTypeError(
            f"fold: required the parameters by path, a flat dict, got {type(params).__name__}"
        )
    problems = []
    for path, (shape, dtype) in plan.leaves.items():
        leaf = params.get(path)
        if leaf is None:
            problems.append(f"{path}: required {dtype}{list(shape)}, missing")
        elif tuple(leaf.shape) != shape or leaf.dtype != jnp.dtype(dtype):
            got = f"{leaf.dtype}{list(leaf.shape)}"
            problems.append(f"{path}: required {dtype}{list(shape)}, got {got}")
    if problems:
        raise InputError(listing("fold: parameters that do not fit the folded model:", problems))


__all__ = ["FoldRewrite", "Node", "Steps", "build"]
