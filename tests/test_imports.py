"""`import jaxinfer` is light: no torch, no Flax, no terminal library, no device.

Time is measured in benchmarks/; here the set of imported modules is what is held fast.
"""

import json
import os
import subprocess
import sys

import click
import pytest

import jaxinfer as ji
from jaxinfer.cli import main

# Third-party packages that `import jaxinfer` may add to those of `import jax`.
ALLOWED = {"jaxinfer"}


def python(*words, **environment):
    """Run a fresh interpreter; returns (exit status, output, errors)."""
    done = subprocess.run(
        [sys.executable, *map(str, words)],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
    )
    return done.returncode, done.stdout, done.stderr


def packages_added(statement):
    """Return the packages outside the standard library that a statement adds to jax's."""
    code = (
        "import json, sys, jax, jax.export\n"
        "before = {name.partition('.')[0] for name in sys.modules}\n"
        f"{statement}\n"
        "after = {name.partition('.')[0] for name in sys.modules}\n"
        "print(json.dumps(sorted(after - before - sys.stdlib_module_names)))\n"
    )
    status, output, errors = python("-c", code)
    assert status == 0, errors
    return {name for name in json.loads(output) if not name.startswith("_")}


def test_import_adds_no_other_package():
    assert packages_added("import jaxinfer") <= ALLOWED


def test_the_check_sees_an_import():
    assert {"jaxinfer", "click"} <= packages_added("import jaxinfer.cli")


def test_no_private_part_is_loaded_early():
    code = "import sys, jaxinfer; print([m for m in sys.modules if m.startswith('jaxinfer')])"
    _, output, _ = python("-c", code)
    assert "'jaxinfer.api'" in output
    for late in ("jaxinfer.cli", "jaxinfer.io", "jaxinfer.core.flax", "jaxinfer_converters"):
        assert f"'{late}" not in output


def test_import_touches_no_device():
    """Of a platform that does not exist, the first use raises; the import does not."""
    status, _, errors = python("-c", "import jaxinfer", JAX_PLATFORMS="nowhere")
    assert status == 0, errors
    status, _, errors = python("-c", "import jaxinfer, jax; jax.devices()", JAX_PLATFORMS="nowhere")
    assert status == 1
    assert "nowhere" in errors


def test_the_command_line_imports_no_torch_before_it_converts():
    commands = ", ".join(f"jaxinfer.cli.{name}" for name in main.list_commands(click.Context(main)))
    assert not {"torch", "transformers", "flax", "rich"} & packages_added(f"import {commands}")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Conv1d(3, 4, 2), torch.nn.GELU(), torch.nn.Linear(6, 1))
    path = tmp_path_factory.mktemp("saved") / "model"
    ji.from_torch(module.eval(), (torch.ones(2, 3, 7),), dynamic_shapes="batch").save(path)
    with torch.no_grad():
        return path, module(torch.ones(1, 3, 7)).sum().item()


def test_a_saved_model_runs_where_torch_cannot_be_imported(saved):
    path, want = saved
    code = (
        "import sys\n"
        "for name in ('torch', 'transformers', 'timm', 'flax'): sys.modules[name] = None\n"
        "import numpy as np, jaxinfer as ji\n"
        "print(float(ji.load(sys.argv[1])(np.ones((1, 3, 7), np.float32)).sum()))\n"
    )
    status, output, errors = python("-c", code, path)
    assert status == 0, errors
    assert float(output) == pytest.approx(want, abs=1e-5)  # a sum of 24 values of order 1


def test_converting_without_torch_names_the_extra():
    code = (
        "import sys; sys.modules['torch'] = None\nimport jaxinfer as ji\nji.from_torch(None, ())\n"
    )
    status, _, errors = python("-c", code)
    assert status == 1
    assert "pip install 'jaxinfer[torch]'" in errors


def test_from_torch_without_torch_names_the_extra():
    code = (
        "import sys\n"
        "class Blocked:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] == 'torch':\n"
        "            raise ModuleNotFoundError(\"No module named 'torch'\", name='torch')\n"
        "sys.meta_path.insert(0, Blocked())\n"
        "import jaxinfer as ji\n"
        "ji.from_torch(None, ())\n"
    )
    status, _, errors = python("-c", code)
    assert status == 1
    assert "MissingExtraError: from_torch needs PyTorch" in errors
    assert "pip install 'jaxinfer[torch]'" in errors


def test_types_are_shipped_with_both_packages():
    from importlib.resources import files

    for package in ("jaxinfer", "jaxinfer_converters"):
        assert files(package).joinpath("py.typed").is_file()
