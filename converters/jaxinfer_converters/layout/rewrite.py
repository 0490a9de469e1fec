"""A plan, carried out: the graph over stored values, with a permute wherever orders meet.

Kernels of convolutions, and parameters that are used like images, are stored in their new
order at conversion (``Input.perm``); they keep the checkpoint's name.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from jaxinfer.core.signature import Signature
from jaxinfer_converters.graph import Aval, Graph, Input, Node, Ref, Result, refs
from jaxinfer_converters.layout.axes import Order, between, moves
from jaxinfer_converters.layout.dense import transposed_weights
from jaxinfer_converters.layout.marks import Call, Convolution, Mark
from jaxinfer_converters.layout.plan import Plan, plan, value_key

SOURCE = "layout"
"""What the pass's own permutes have as their source line."""


def channels_last(graph: Graph, *, tied: Collection[str] = (), nhwc: bool = False) -> Graph:
    """Return the graph with its convolutions channels-last, at the fewest bytes permuted.

    Args:
      tied: checkpoint names of tensors with several names: they are stored as they are.
      nhwc: images among the inputs and outputs (4 axes, channels at 1) are channels-last
        too; the shapes of the graph's inputs say which.
    """
    subgraphs = {name: channels_last(sub) for name, sub in graph.subgraphs.items()}
    graph = dataclasses.replace(graph, subgraphs=subgraphs)
    changed = {name for r in graph.results if r.kind != "output" for name in refs(r.value)}
    changed |= {result.target for result in graph.results if result.kind != "output"}
    fixed = {
        item.name
        for item in graph.inputs
        if item.aval is None or {item.target, item.name} & changed or {*item.sources} & {*tied}
    }
    found = plan(graph, fixed=fixed, nhwc=nhwc)
    graph = graph if found is None else Writer(found, fixed).write()
    return transposed_weights(graph, fixed)


def retaken(signature: Signature, graph: Graph) -> Signature:
    """Return a signature with the shapes that the graph's inputs have now."""
    leaves = list(signature.leaves)
    for item in graph.inputs:
        if item.kind == "input" and item.aval is not None:
            place = int(item.target)
            leaves[place] = dataclasses.replace(leaves[place], shape=item.aval.shape)
    return dataclasses.replace(signature, leaves=tuple(leaves))


def permutes(graph: Graph) -> Iterator[Node]:
    """Yield the permutes that the pass has put in and that move data, also of subgraphs."""
    for node in graph.walk():
        if node.source == SOURCE and node.op == "aten.permute.default":
            (aval,) = node.avals
            dims = node.args[1]
            assert aval is not None
            if moves([dims.index(axis) for axis in range(len(dims))], aval.shape):
                yield node


class Writer:
    """Writes the graph of a plan, node by node."""

    def __init__(self, found: Plan, fixed: Collection[str]):
        self.plan, self.graph = found, found.graph
        self.fixed = fixed
        self.nodes = {node.name: node for node in self.graph.nodes}
        self.names = {item.name for item in (*self.graph.inputs, *self.graph.nodes)}
        self.out: list[Node] = []
        self.stored: dict[str, Order] = {}  # how a reference is stored
        self.avals: dict[str, Aval] = {}  # the shape and dtype of a reference, in torch's order
        self.alias: dict[str, str] = {}
        self.made: dict[tuple[str, Order], str] = {}

    def write(self) -> Graph:
        """Return the new graph."""
        kernels = self._kernels()
        inputs = tuple(self._input(item, kernels.get(item.name)) for item in self.graph.inputs)
        for node in self.graph.nodes:
            self._node(node)
        results = []
        for result in self.graph.results:
            image = isinstance(result.value, Ref) and result.value.name in self.plan.images
            results.append(self._result(result, image))
        graph = Graph(inputs, tuple(self.out), tuple(results), self.graph.subgraphs)
        graph.verify()
        return graph

    def _kernels(self) -> Mapping[str, Order]:
        """Return the order of each input that is nothing but a kernel, and may be stored so."""
        uses: dict[str, set[Order | None]] = {}
        for node in self.graph.nodes:
            found = self.plan.calls.get(node.name)
            kernel = None
            if found and isinstance(found[0], Convolution):
                kernel = found[0].kernel(found[1])
            for ref in refs((node.args, node.kwargs)):
                is_kernel = kernel is not None and kernel[0] == ref
                uses.setdefault(ref, set()).add(kernel[1] if kernel and is_kernel else None)
        for result in self.graph.results:
            for ref in refs(result.value):
                uses.setdefault(ref, set()).add(None)
        found = {}
        for item in self.graph.inputs:
            orders = uses.get(item.name, set())
            if item.kind != "input" and item.name not in self.fixed and len(orders) == 1:
                (perm,) = orders
                if perm is not None:
                    found[item.name] = perm
        return found

    def _input(self, item: Input, kernel: Order | None) -> Input:
        if item.aval is None:
            return item
        perm = plain = tuple(range(len(item.aval.shape)))
        if kernel is not None:
            perm = kernel
        elif item.name in self.plan.images or (
            item.name not in self.fixed and item.kind != "input"
        ):
            last = item.name in self.plan.images or self.plan.last.get(item.name)
            if last is not None:
                perm = self.plan.order(item.name, len(plain), last)
        self.stored[item.name], self.avals[item.name] = perm, item.aval
        if perm == plain:
            return item
        aval = _permuted(item.aval, perm)
        return dataclasses.replace(item, aval=aval, perm=perm)

    def _node(self, node: Node) -> None:
        found = self.plan.calls.get(node.name)
        if node.op == "operator.getitem" and isinstance(node.args[0], Ref):
            key = value_key(node.name, self.nodes)
            self._emit(node, [self.stored.get(key)], [node.name])
        elif found is None:
            self._emit(self._with_refs(node, {}), [], [node.name])
        else:
            self._laid_out(node, *found)

    def _laid_out(self, node: Node, mark: Mark, call: Call) -> None:
        """Write a call whose values are stored in the order that was chosen."""
        carriers = mark.carriers(call)
        if mark.reads:
            renamed = Ref(self.alias.get(carriers[0], carriers[0]))
            made = mark.rewrite(call, self.stored[carriers[0]], ())
            self.out.append(dataclasses.replace(made, args=(renamed, *made.args[1:])))
            return
        last = self.plan.last.get(node.name, True)
        key = lambda ref: value_key(ref, self.nodes)
        have = self.plan.order(key(carriers[0]), call.rank(carriers[0]), last)
        keys = self.plan.keys(node)
        ranks = [len(shape) for shape in call.results[0]]
        give = [self.plan.order(k, rank, last) for k, rank in zip(keys, ranks, strict=True)]
        made = mark.rewrite(call, have, give)
        names = {ref: self.get(ref, have, node) for ref in carriers}
        if isinstance(mark, Convolution):
            weight, perm = mark.kernel(call)
            names[weight] = self.get(weight, perm, node)
        elif mark.broadcasts and have != tuple(range(len(have))):
            for ref in call.tensors():
                if ref not in carriers and any(size != 1 for size in call.shapes[0][ref]):
                    names[ref] = self._lifted(ref, have, node)
        made = self._with_refs(made, names)
        if _does_nothing(made):
            self.alias[node.name] = next(refs(made.args))
            self.stored[node.name] = give[0]
            assert node.avals[0] is not None
            self.avals[node.name] = node.avals[0]
            return
        self._emit(made, give, keys)

    def _emit(self, node: Node, give: list[Order | None] | list[Order], keys: list[str]) -> None:
        """Append a node; ``give`` tells how its values are stored (nothing: as in torch)."""
        avals = []
        for index, aval in enumerate(node.avals):
            perm = give[index] if index < len(give) else None
            key = keys[index] if index < len(keys) else f"{node.name}:{index}"
            if aval is None:
                avals.append(None)
                continue
            self.stored[key] = perm or tuple(range(len(aval.shape)))
            self.avals[key] = aval
            avals.append(_permuted(aval, self.stored[key]))
        self.out.append(dataclasses.replace(node, avals=tuple(avals)))

    def _with_refs(self, node: Node, names: Mapping[str, str]) -> Node:
        """Point a node to stored values; those not in ``names`` in torch's order."""

        def point(value: Any) -> Any:
            if isinstance(value, Ref):
                return Ref(names.get(value.name) or self.get(value.name, None, node))
            if isinstance(value, (list, tuple)):
                return type(value)(point(item) for item in value)
            return value

        kwargs = {key: point(value) for key, value in node.kwargs.items()}
        return dataclasses.replace(node, args=point(tuple(node.args)), kwargs=kwargs)

    def get(self, ref: str, want: Order | None, node: Node | None) -> str:
        """Return the name of a value in the order wanted (None: torch's)."""
        if ref not in self.stored:
            return self.alias.get(ref, ref)
        have, aval = self.stored[ref], self.avals[ref]
        want = tuple(range(len(have))) if want is None else want
        if have == want:
            return self.alias.get(ref, ref)
        if (ref, want) not in self.made:
            path = node.path if node else ""
            self.made[ref, want] = self._permute(
                self.alias.get(ref, ref), between(have, want), _permuted(aval, want), path
            )
        return self.made[ref, want]

    def _permute(self, name: str, dims: Order, aval: Aval, path: str) -> str:
        fresh = self._fresh(f"{name}_stored")
        self.out.append(
            Node(fresh, "aten.permute.default", (Ref(name), list(dims)), {}, (aval,), path, SOURCE)
        )
        return fresh

    def _lifted(self, ref: str, have: Order, node: Node) -> str:
        """Give an operand of lower rank the result's rank and order."""
        name, aval = self.get(ref, None, node), self.avals[ref]
        for _ in range(len(have) - len(aval.shape)):
            aval = Aval((1, *aval.shape), aval.dtype)
            fresh = self._fresh(f"{ref}_lifted")
            self.out.append(
                Node(
                    fresh, "aten.unsqueeze.default", (Ref(name), 0), {}, (aval,), node.path, SOURCE
                )
            )
            name = fresh
        return self._permute(name, have, _permuted(aval, have), node.path)

    def _fresh(self, name: str) -> str:
        fresh, count = name, 1
        while fresh in self.names:
            fresh, count = f"{name}_{count}", count + 1
        self.names.add(fresh)
        return fresh

    def _result(self, result: Result, image: bool) -> Result:
        if not isinstance(result.value, Ref):
            return result
        ref = result.value.name
        if not image:
            return dataclasses.replace(result, value=Ref(self.get(ref, None, None)))
        want = self.plan.order(value_key(ref, self.nodes), len(self.stored[ref]), True)
        return dataclasses.replace(result, value=Ref(self.get(ref, want, None)), perm=want)


def _does_nothing(node: Node) -> bool:
    return node.op == "aten.permute.default" and list(node.args[1]) == sorted(node.args[1])


def _permuted(aval: Aval, perm: Order) -> Aval:
    return Aval(tuple(aval.shape[axis] for axis in perm), aval.dtype)
