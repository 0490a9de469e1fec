"""``jaxinfer inspect OUT``: what a model holds, takes, gives and costs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

_DEPTH = 3
_OPERATORS = 20


def _sizes(ctx: click.Context, param: click.Parameter, values: Sequence[str]) -> dict[str, int]:
    del ctx
    sizes: dict[str, int] = {}
    for text in values:
        name, _, number = text.partition("=")
        if not name.isidentifier() or not number.isdigit():
            raise click.BadParameter(
                f"{text!r} is not NAME=NUMBER, for example batch=8", param=param
            )
        sizes[name] = int(number)
    return sizes


@click.command("inspect")
@click.argument("model_dir", metavar="OUT")
@click.option(
    "--size",
    "sizes",
    multiple=True,
    callback=_sizes,
    metavar="NAME=N",
    help="Value of a symbolic size for FLOPs and bytes, for example batch=8; may be repeated. "
    "Default: the smallest that the model takes, from 1 up.",
)
@click.option(
    "--depth",
    type=click.IntRange(0),
    default=_DEPTH,
    show_default=True,
    help="Levels of the parameter tree to show; 0 shows all.",
)
@click.option("--component", help="Which function of a model that has several (prefill, decode).")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, and nothing else.")
def command(
    model_dir: str, sizes: dict[str, int], depth: int, component: str | None, as_json: bool
) -> None:
    """Show the parameters, operators, FLOPs, bytes, inputs and outputs of the model OUT.

    A multiply-add counts as 2 FLOPs; exp, tanh and the like are counted apart.
    """
    from jaxinfer.cli import _console, _describe
    from jaxinfer.io.artefact import load

    parts = load(model_dir).components
    if component is None and len(parts) == 1:
        component = next(iter(parts))
    if component is None or component not in parts:
        raise click.BadParameter(
            f"required one of {', '.join(parts)}, got {component or 'none'}",
            param_hint="--component",
        )
    model = parts[component]
    unknown = [name for name in sizes if name not in model.signature.symbols]
    if unknown:
        known = ", ".join(model.signature.symbols) or "none"
        raise click.BadParameter(
            f"no such size: {', '.join(unknown)} (this model has: {known})", param_hint="--size"
        )
    costs = _describe.costs(model, _describe.chosen_sizes(model, sizes))
    leaves = _describe.parameters(model)
    described = {
        "model": model_dir,
        "kind": model.program.kind,
        "inputs": [spec.to_json() for spec in model.inputs],
        "sizes": {name: list(bounds) for name, bounds in model.signature.symbols.items()},
        "outputs": _describe.output_texts(model, costs.outputs),
        "samples": bool(model.program.random),
        "changes": list(getattr(model.program, "mutates", ())),
        "layout_permutes": list(getattr(model.program, "layout_permutes", ())),
        "parameters": {
            "leaves": len(leaves),
            "values": sum(leaf.size for leaf in leaves),
            "bytes": sum(leaf.nbytes for leaf in leaves),
            "constant_bytes": _describe.constant_bytes(model),
        },
        "operators": _describe.operators(model),
        "cost": {"at": dict(costs.sizes), **costs.cost.to_json()},
        "rewrites": [
            {"kind": rewrite.kind, "args": rewrite.to_json()} for rewrite in model.rewrites
        ],
        "stages": _describe.stages(model),
        "provenance": dict(model.provenance),
    }
    if as_json:
        _console.echo_json(described | {"leaves": [leaf.to_json() for leaf in leaves]})
        return
    console = _console.out()
    console.print(_tree(leaves, model_dir, depth))
    console.print()
    console.print(_console.table(_rows(model, described, costs)))
    if described["operators"]:
        console.print()
        shown = list(described["operators"].items())
        console.print(_console.table(shown[:_OPERATORS], ("operator", "calls")))
        if len(shown) > _OPERATORS:
            console.print(f"and {len(shown) - _OPERATORS} more kinds (--json lists all)")


def _rows(model: Any, described: dict[str, Any], costs: Any) -> list[tuple[str, str]]:
    from jaxinfer.cli import _console, _describe

    leaves, cost = described["parameters"], costs.cost
    at = ", ".join(f"{name}={size}" for name, size in costs.sizes.items())
    rows = [("input", str(spec)) for spec in model.inputs]
    rows += [("output", text) for text in described["outputs"]]
    if ranges := _describe.symbol_ranges(model):
        rows.append(("sizes", "; ".join(ranges)))
    rows += [
        ("samples", "yes: pass a random key" if described["samples"] else "no"),
        ("changes", ", ".join(described["changes"]) or "nothing"),
        *_layout_rows(described["layout_permutes"]),
        *_describe.scan_rows(described["provenance"].get("scan_layers")),
        (
            "parameters",
            f"{_console.in_units(leaves['values'])} values in {leaves['leaves']} leaves, "
            f"{_console.in_bytes(leaves['bytes'])}; constants "
            f"{_console.in_bytes(leaves['constant_bytes'])}",
        ),
        (
            "cost" + (f" at {at}" if at else ""),
            f"{_console.in_units(cost.flops, 'FLOPs')} (a multiply-add is 2), "
            f"{_console.in_units(cost.transcendentals)} transcendentals",
        ),
    ]
    dearest = list(cost.by_primitive.items())[:4]
    rows += [("", f"{name}: {_console.in_units(n, 'FLOPs')}") for name, n in dearest]
    rows += [("note", note) for note in cost.notes()]
    rows += [("rewrite", text) for text in _describe.rewrites(model)]
    if described["stages"]:
        rows.append(("transforms", ", ".join(described["stages"])))
    return rows + _provenance_rows(described["provenance"], described["stages"])


def _layout_rows(left: Sequence[str]) -> list[tuple[str, str]]:
    """Say how many permutes between layouts are left, and where."""
    if not left:
        return []
    shown = [("layout permutes", f"{len(left)}: {left[0]}"), *(("", text) for text in left[1:4])]
    return shown + ([("", f"and {len(left) - 4} more (--json lists all)")] if len(left) > 4 else [])


def _provenance_rows(provenance: dict[str, Any], stages: Sequence[str]) -> list[tuple[str, str]]:
    rows = []
    for key in ("source", "versions", "saved_with", "exported"):
        value = provenance.get(key)
        if isinstance(value, dict):
            value = ", ".join(f"{name} {version}" for name, version in value.items())
        if value:
            rows.append((key.replace("_", " "), str(value)))
    if "parity" in provenance:
        since = f" (when converted, before {', '.join(stages)})" if stages else ""
        rows.append(("parity", _parity_text(provenance["parity"]) + since))
    notes = provenance.get("notes")
    rows += [("note", str(note)) for note in notes] if isinstance(notes, (list, tuple)) else []
    for key in ("tied", "cast", "unread_buffers"):
        if isinstance(provenance.get(key), (dict, list, tuple)) and provenance[key]:
            rows.append((key.replace("_", " "), f"{len(provenance[key])} (--json lists them)"))
    return rows


def _parity_text(parity: Any) -> str:
    if not isinstance(parity, dict):
        return "not checked when converted (--no-verify)"
    if not parity.get("compared", True):
        return "shapes and dtypes only: the model samples"
    absolute, relative = (_number(parity.get(key)) for key in ("max_abs", "max_rel"))
    return f"{absolute} absolute, {relative} relative"


def _number(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, (int, float)) else str(value)


def _tree(leaves: Sequence[Any], title: str, depth: int) -> Any:
    """Return the parameters nested by dots; below ``depth`` levels they are summed up."""
    from rich.tree import Tree

    from jaxinfer.cli._console import plain

    root: dict[str, Any] = {}
    for leaf in leaves:
        node = root
        *parents, last = leaf.name.split(".")
        for part in parents:
            node = node.setdefault(f"{part}.", {})  # a leaf may bear the name of a branch
        node[last] = leaf

    def grow(tree: Any, node: dict[str, Any], level: int) -> None:
        for name, child in node.items():
            if not isinstance(child, dict):
                shape = ", ".join(map(str, child.shape))
                tree.add(plain(f"{name}  {child.dtype}[{shape}]"))
                continue
            branch = tree.add(plain(f"{name[:-1]}  {_total(child)}"))
            if not depth or level < depth:
                grow(branch, child, level + 1)

    tree = Tree(plain(f"{title}  {_total(root)}"))
    grow(tree, root, 1)
    return tree


def _total(node: dict[str, Any]) -> str:
    from jaxinfer.cli import _console

    count = nbytes = 0
    stack: list[Any] = [node]
    while stack:
        item = stack.pop()
        if isinstance(item, dict):
            stack += item.values()
        else:
            count, nbytes = count + 1, nbytes + item.nbytes
    return f"({count} leaves, {_console.in_bytes(nbytes)})"
