"""Pre-flight: every operator without a rule, found before any weight is touched."""

from __future__ import annotations

from jaxinfer.core.errors import MissingRulesError, listing
from jaxinfer.core.ops import OPS
from jaxinfer_converters.graph import Graph, Node

HOW_TO_REGISTER = (
    "Register a rule for each before converting:\n"
    "  @jaxinfer.register({name!r})\n"
    "  def rule(*args, **kwargs): ...   # JAX arrays in, JAX arrays out"
)


def missing_rules(graph: Graph) -> None:
    """Raise if any node has no rule.

    Raises:
      MissingRulesError: all missing operators with their counts, the first module path and
        source line of each, near misses, and how to register a rule.
    """
    first: dict[str, Node] = {}
    counts: dict[str, int] = {}
    for node in graph.walk():
        for op in (node.op, *_called(node)):
            if op not in OPS:
                first.setdefault(op, node)
                counts[op] = counts.get(op, 0) + 1
    if not first:
        return
    problems = []
    for op, node in sorted(first.items(), key=lambda item: -counts[item[0]]):
        near = OPS.near(op)
        hint = f"; rules exist for {', '.join(near)}" if near else ""
        problems.append(
            f"{op}: {counts[op]} times, first {node.where() or 'at ' + node.name}{hint}"
        )
    title = f"{len(first)} operators of this model have no rule:"
    raise MissingRulesError(
        listing(title, problems, HOW_TO_REGISTER.format(name=next(iter(first))))
    )


def _called(node: Node) -> tuple[str, ...]:
    """Return the operator that a higher-order operator calls, if its first argument names one."""
    takes_op = node.op in ("higher_order.auto_functionalized_v2", "higher_order.out_dtype")
    return (str(node.args[0]),) if takes_op else ()


def random_nodes(graph: Graph) -> list[Node]:
    """Return the nodes that sample: their rule says so through ``samples(*args, **kwargs)``."""
    found = []
    for node in graph.walk():
        samples = getattr(OPS.get(node.op), "samples", None)
        if samples is not None and samples(*node.args, **node.kwargs):
            found.append(node)
    return found
