"""GraphProgram: lowers a Graph to a pure JAX function, node by node, through the rule table.

There is no code generation and no state: tracing ``run`` calls each node's rule once. What a
rule returns is held against the shape and the kind of dtype that torch recorded for the node,
so a wrong rule fails at trace time, with the module path and source line.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

import jaxinfer_converters.aten
import jaxinfer_converters.onnx_rules  # noqa: F401  (both register rules)
from jaxinfer.core import dtypes
from jaxinfer.core.errors import JaxinferError, MissingRulesError
from jaxinfer.core.ops import OPS
from jaxinfer.core.signature import Signature
from jaxinfer.core.structure import Structure
from jaxinfer.core.symbols import evaluate
from jaxinfer_converters.graph import Aval, DType, Graph, Node, Ref, Sub
from jaxinfer_converters.layout import permutes
from jaxinfer_converters.preflight import missing_rules, random_nodes


class LoweringError(JaxinferError, ValueError):
    """A rule failed on a node, or did not give what torch recorded for it."""


@dataclasses.dataclass
class Context:
    """What a rule registered with ``context=True`` gets first."""

    graph: Graph
    sizes: Mapping[str, int]
    rng_key: Any = None
    node: Node | None = None
    index: int = 0

    def key(self) -> Any:
        """Return a random key of this node's own: ``fold_in(rng_key, position)``."""
        if self.rng_key is None:
            raise LoweringError("random numbers are needed here: pass rng_key=jax.random.key(0)")
        return jax.random.fold_in(self.rng_key, self.index)

    def call(self, sub: Sub, operands: Sequence[Any], salt: Any = None) -> list[Any]:
        """Run a subgraph on operands; returns the list of its results.

        Args:
          salt: an integer (may be traced) folded into the random key: a loop's counter.
        """
        key = None
        if self.rng_key is not None:
            key = self.key() if salt is None else jax.random.fold_in(self.key(), salt)
        values = dict(
            zip((i.name for i in self.graph.subgraphs[sub.name].inputs), operands, strict=True)
        )
        return run_graph(self.graph.subgraphs[sub.name], values, self.sizes, key)

    def counts_up(self, position: int) -> bool:
        """Whether the node's argument at ``position`` is known to be a, a + 1, a + 2, .."""
        if self.node is None or len(self.node.args) <= position:
            return False
        return self.graph.counts_up(self.node.args[position])

    def aval(self, index: int = 0) -> Aval | None:
        """Return what torch recorded for the node's result."""
        assert self.node is not None
        return self.node.avals[index] if index < len(self.node.avals) else None


def run_graph(
    graph: Graph,
    values: dict[str, Any],
    sizes: Mapping[str, int],
    rng_key: Any = None,
) -> list[Any]:
    """Evaluate a graph's nodes in order; returns its results.

    Cost: one rule call a node; values are dropped after their last use.
    """
    env = dict(values)
    last = graph.last_uses
    for index, node in enumerate(graph.nodes):
        context = Context(graph, sizes, rng_key, node, index)
        env[node.name] = _run_node(node, env, context)
        for name in last.get(node.name, ()):
            env.pop(name, None)
    return [_value(result.value, env) for result in graph.results]


def _run_node(node: Node, env: Mapping[str, Any], context: Context) -> Any:
    rule = OPS.get(node.op)
    if rule is None:
        raise MissingRulesError(f"{node.op}: no rule ({node.where()})")
    args = [_value(arg, env) for arg in node.args]
    kwargs = {key: _value(arg, env) for key, arg in node.kwargs.items()}
    scope = node.path.replace("/", ".") or "root"
    try:
        with jax.named_scope(scope):
            if getattr(rule, "wants_context", False):
                out = rule(context, *args, **kwargs)
            else:
                out = rule(*args, **kwargs)
    except JaxinferError:
        raise
    except Exception as error:
        raise LoweringError(_explain(node, args, f"{type(error).__name__}: {error}")) from error
    _check(node, args, out, context.sizes)
    return out


def _check(node: Node, args: Sequence[Any], out: Any, sizes: Mapping[str, int]) -> None:
    """Hold a rule's result against the recorded shape and kind of dtype."""
    outs = out if isinstance(out, (tuple, list)) else (out,)
    for aval, got in zip(node.avals, outs, strict=False):
        if aval is None or not hasattr(got, "shape"):
            continue
        want = tuple(evaluate(dim, sizes) for dim in aval.shape)
        same = len(want) == len(got.shape) and all(
            w is None or not isinstance(g, int) or w == g
            for w, g in zip(want, got.shape, strict=True)
        )
        if not same or dtypes.kind(got.dtype) != dtypes.kind(dtypes.dtype_of(aval.dtype)):
            got_text = f"{np.dtype(got.dtype).name}{list(got.shape)}"
            raise LoweringError(_explain(node, args, f"torch gives {aval}, the rule {got_text}"))


def _explain(node: Node, args: Sequence[Any], fault: str) -> str:
    shown = ", ".join(
        f"{jnp.result_type(a).name}{list(a.shape)}" if hasattr(a, "shape") else repr(a)[:60]
        for a in args
    )
    return f"{node.op}({shown}) failed, {node.where() or 'no source known'}: {fault}"


def _value(value: Any, env: Mapping[str, Any]) -> Any:
    if isinstance(value, Ref):
        return env[value.name]
    if isinstance(value, DType):
        return dtypes.canonical(value.name)
    if isinstance(value, (list, tuple)):
        return [_value(item, env) for item in value]
    return value


@dataclasses.dataclass(frozen=True, eq=False)
class GraphProgram:
    """A converted model: graph, signature, output structure and constants.

    Attributes:
      graph: the operators. Its parameter and buffer inputs are keys of ``params``.
      signature: the user's inputs, with symbolic sizes.
      outputs: structure of what the module returned.
      constants: arrays that are no parameters (index tables, masks), part of the function.
      x64: whether it computes in 64 bits where the graph says so (``from_torch(x64=True)``).
      fixed_outputs: leaves of the output that are not arrays (None, numbers), by position.
    """

    graph: Graph
    signature: Signature
    outputs: Structure
    constants: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    x64: bool = False
    kind: ClassVar[str] = "graph"
    fixed: ClassVar[bool] = True

    @property
    def arrays(self) -> Mapping[str, np.ndarray]:
        """The constants."""
        return self.constants

    @property
    def blobs(self) -> Mapping[str, bytes]:
        """None: a graph is JSON."""
        return {}

    @functools.cached_property
    def param_specs(self) -> Mapping[str, Aval]:
        """Shape and dtype of each entry of ``params`` that the graph reads."""
        return {
            i.target: i.aval
            for i in self.graph.inputs
            if i.kind in ("parameter", "buffer") and i.aval is not None
        }

    @functools.cached_property
    def state_kinds(self) -> Mapping[str, str]:
        """``parameter`` or ``buffer`` for each entry of ``params``."""
        return {i.target: i.kind for i in self.graph.inputs if i.kind in ("parameter", "buffer")}

    @functools.cached_property
    def stored(self) -> Mapping[str, tuple[tuple[int, ...], tuple[str, ...]]]:
        """For each entry of ``params``: the order of its axes, and the names stacked in it."""
        kinds = ("parameter", "buffer")
        return {i.target: (i.perm, i.parts) for i in self.graph.inputs if i.kind in kinds}

    @functools.cached_property
    def random_sites(self) -> str:
        """The nodes that sample, for messages; empty if none does."""
        return "; ".join(f"{node.op} {node.where()}" for node in random_nodes(self.graph)[:5])

    @property
    def random(self) -> bool:
        """Whether any node samples random numbers."""
        return bool(self.random_sites)

    @functools.cached_property
    def layout_permutes(self) -> tuple[str, ...]:
        """What the layout pass could not cancel: shape and module of each permute that is left."""
        return tuple(
            f"{permuted.avals[0]} in {permuted.path or 'the module itself'}"
            for permuted in permutes(self.graph)
        )

    @functools.cached_property
    def input_perms(self) -> Mapping[int, tuple[int, ...]]:
        """By leaf of the inputs: the order of its axes, where it is not the module's own."""
        return {int(i.target): i.perm for i in self.graph.inputs if i.kind == "input" and i.perm}

    @functools.cached_property
    def output_perms(self) -> Mapping[int, tuple[int, ...]]:
        """By array of the outputs: the order of its axes, where it is not the module's own."""
        outputs = [result for result in self.graph.results if result.kind == "output"]
        return {place: result.perm for place, result in enumerate(outputs) if result.perm}

    @property
    def mutates(self) -> tuple[str, ...]:
        """Names of the buffers and inputs that come back as new state."""
        return tuple(r.target for r in self.graph.results if r.kind != "output")

    def run(self, params: Any, leaves: Sequence[Any], rng_key: Any = None) -> list[Any]:
        """Evaluate the graph; pure. Returns outputs, then the new state, flat.

        Raises:
          InputError, InputTypeError: inputs do not fit the signature.
          KeyError: ``params`` lacks a name that the graph reads.
        """
        sizes = self.signature.bind_sizes(leaves)
        values: dict[str, Any] = {}
        for item in self.graph.inputs:
            if item.kind == "input":
                value = leaves[int(item.target)]
            elif item.kind == "constant":
                value = self.constants[item.target]
            elif item.target in params:
                value = params[item.target]
            else:
                raise KeyError(f"params lacks {item.target!r} ({item.aval})")
            values[item.name] = _entry(value, item.aval)
        return run_graph(self.graph, values, sizes, rng_key)

    def finish(self, flat: Any) -> Any:
        """Give outputs the module's own structure; ``(outputs, new_state)`` if it mutates."""
        names = self.mutates
        split = len(flat) - len(names)
        outputs = self.outputs.unflatten(iter(flat[:split]))
        return (outputs, dict(zip(names, flat[split:], strict=True))) if names else outputs

    def to_json(self) -> dict[str, Any]:
        """Return all but the constants."""
        return {
            "graph": self.graph.to_json(),
            "signature": self.signature.to_json(),
            "outputs": self.outputs.to_json(),
            **({"x64": True} if self.x64 else {}),
        }

    @classmethod
    def from_json(
        cls, data: Mapping[str, Any], arrays: Mapping[str, Any], blobs: Callable[[str], bytes]
    ) -> GraphProgram:
        """Rebuild a program from an artefact; its operators must all have rules.

        Raises:
          MissingRulesError: operators that this version (or a custom package) lacks.
          ValueError: anything malformed.
        """
        del blobs
        graph = Graph.from_json(data["graph"])
        missing_rules(graph)
        constants = {name: np.asarray(value) for name, value in arrays.items()}
        lacking = [
            i.target for i in graph.inputs if i.kind == "constant" and i.target not in constants
        ]
        if lacking:
            raise ValueError(f"constants missing from the artefact: {', '.join(lacking)}")
        signature = Signature.from_json(data["signature"])
        x64 = data.get("x64", False)
        if not isinstance(x64, bool):
            raise ValueError(f"x64: required true or false, got {str(x64)[:80]!r}")
        return cls(graph, signature, Structure.from_json(data["outputs"]), constants, x64)


def _entry(value: Any, aval: Aval | None) -> Any:
    """Bring a graph input to the integer width in which the graph computes."""
    if aval is None or not hasattr(value, "dtype"):
        return value
    want = dtypes.canonical(aval.dtype)
    value = jnp.asarray(value)
    return value.astype(want) if dtypes.kind(want) == "integer" else value
