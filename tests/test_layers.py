"""Import directions: each layer imports only those before it, and torch has one folder.

Read from the syntax trees, so imports inside functions count as well.
"""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[1]

# The folders of jaxinfer, in the order of docs/architecture.md.
LAYERS = (
    *("core", "numerics", "rules", "nn", "io", "transforms"),
    *("sharding", "compile", "tune", "engine", "cli"),
)

# Modules of jaxinfer itself, that may import any layer but the command line.
TOP = {"__init__", "api", "_version"}

# Convenience methods that reach down, inside a function: (file, module).
EXCEPTIONS = {("jaxinfer/core/model.py", "jaxinfer.io.artefact")}  # Model.save

TORCH = ("torch", "torchvision", "transformers", "timm")
SEMI_PUBLIC = ("jax._src", "jax.extend", "jax.interpreters")


def imports(source, package):
    """Return the absolute names of all modules that a file imports.

    ``from a import b`` counts as ``a.b``: b may be a module.
    """
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")[: len(package.split(".")) + 1 - node.level]
            base = ".".join([*parts, node.module or ""] if node.level else [node.module])
            found += [f"{base.rstrip('.')}.{alias.name}" for alias in node.names]
    return found


def within(name, *modules):
    return any(name == module or name.startswith(module + ".") for module in modules)


def faults(file, source):
    """Return what a file (its path in the repository) imports against the rules."""
    parts = pathlib.PurePosixPath(file).with_suffix("").parts
    if parts[0] == "converters":
        parts = parts[1:]
    package = ".".join(parts[:-1])
    found = []
    for name in imports(source, package):
        if any(file == where and within(name, module) for where, module in EXCEPTIONS):
            continue
        reason = _fault(parts, file, name)
        if reason:
            found.append(f"{file} imports {name}: {reason}")
    return found


def _fault(parts, file, name):
    if within(name, *SEMI_PUBLIC) and file != "jaxinfer/core/_compat.py":
        return "only core/_compat.py uses JAX's semi-public modules"
    if within(name, *TORCH) and parts[:2] != ("jaxinfer_converters", "torch"):
        return "only converters/jaxinfer_converters/torch imports torch"
    if within(name, "onnx", "onnxruntime") and parts[:2] != ("jaxinfer_converters", "onnx"):
        return "only converters/jaxinfer_converters/onnx imports onnx"
    if parts[0] == "jaxinfer_converters":
        if within(name, "jaxinfer.cli"):
            return "converters do not know the command line"
        if parts[1] != "torch" and within(name, "jaxinfer_converters.torch"):
            # a front end may hand over to torch's, inside a function that reports its absence
            return None if parts[1] == "huggingface" else "the graph does not know torch"
        if parts[1] == "aten" and within(name, "jaxinfer.io"):
            return "rules know arrays, not files"
        return None
    if within(name, "jaxinfer_converters"):
        return "converters are found by entry point, never by name"
    return _layer_fault(parts[1], name)


def _layer_fault(layer, name):
    target = (name.split(".") + [""])[1]
    if not within(name, "jaxinfer") or target == "_version" or layer == "cli":
        return None
    if layer in TOP:
        return "only cli itself is the command line" if target == "cli" else None
    if layer not in LAYERS:
        return f"{layer} is not a layer of the design"
    if target not in LAYERS or LAYERS.index(target) > LAYERS.index(layer):
        return f"{layer} comes before {target or 'the public functions'}"
    return None


def files():
    for folder in ("jaxinfer", "converters"):
        yield from sorted((ROOT / folder).rglob("*.py"))


def test_import_directions():
    found = []
    for path in files():
        found += faults(path.relative_to(ROOT).as_posix(), path.read_text())
    assert not found, "\n".join(found)


def test_every_layer_was_read():
    seen = {path.relative_to(ROOT).parts[1] for path in files()}
    assert {"core", "io", "cli", "api.py", "jaxinfer_converters"} <= seen


def test_exceptions_are_needed():
    for file, module in EXCEPTIONS:
        path = ROOT / file
        assert any(within(name, module) for name in imports(path.read_text(), "jaxinfer.core"))


@pytest.mark.parametrize(
    ("file", "source", "reason"),
    [
        ("jaxinfer/core/x.py", "from jaxinfer.io import artefact", "core comes before io"),
        ("jaxinfer/core/x.py", "def f():\n import jaxinfer.cli", "core comes before cli"),
        ("jaxinfer/core/x.py", "import jaxinfer", "core comes before the public functions"),
        ("jaxinfer/io/x.py", "from jaxinfer.cli import main", "io comes before cli"),
        ("jaxinfer/io/x.py", "from ..cli import main", "io comes before cli"),
        ("jaxinfer/io/x.py", "from jaxinfer import load", "io comes before load"),
        ("jaxinfer/odd/x.py", "from jaxinfer.core import model", "odd is not a layer"),
        ("jaxinfer/api.py", "from jaxinfer import cli", "only cli itself"),
        ("jaxinfer/api.py", "import jaxinfer_converters.graph", "never by name"),
        ("jaxinfer/core/x.py", "import torch.nn", "imports torch"),
        ("converters/jaxinfer_converters/onnx_rules/x.py", "import onnx", "imports onnx"),
        ("jaxinfer/cli/x.py", "from transformers import BertModel", "imports torch"),
        ("converters/jaxinfer_converters/aten/x.py", "import torch", "imports torch"),
        ("converters/jaxinfer_converters/graph.py", "import timm", "imports torch"),
        (
            "converters/jaxinfer_converters/aten/x.py",
            "from jaxinfer_converters.torch import capture",
            "does not know torch",
        ),
        ("converters/jaxinfer_converters/torch/x.py", "import jaxinfer.cli", "command line"),
        ("converters/jaxinfer_converters/aten/x.py", "import jaxinfer.io._npz", "not files"),
        ("jaxinfer/core/x.py", "from jax import extend", "semi-public"),
        ("jaxinfer/core/x.py", "from jax._src import core", "semi-public"),
        ("jaxinfer/io/x.py", "import jax.interpreters.mlir", "semi-public"),
    ],
)
def test_the_check_finds(file, source, reason):
    (found,) = faults(file, source)
    assert found.startswith(f"{file} imports ")
    assert reason in found


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("jaxinfer/io/x.py", "from jaxinfer.core.errors import ArtefactError"),
        ("jaxinfer/io/x.py", "from . import _json"),
        ("jaxinfer/cli/x.py", "from jaxinfer.io.artefact import load"),
        ("jaxinfer/core/_compat.py", "import jax.extend.core"),
        ("jaxinfer/core/x.py", "import jax.export"),
        ("converters/jaxinfer_converters/torch/x.py", "import torch, transformers"),
        ("converters/jaxinfer_converters/torch/x.py", "from jaxinfer.io import checkpoint"),
    ],
)
def test_the_check_allows(file, source):
    assert faults(file, source) == []
