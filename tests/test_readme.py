"""The Python in the README and in docs/ runs, as it is printed."""

import pathlib
import re

import click
import numpy as np
import pytest
from click.testing import CliRunner

from jaxinfer.cli import main
from jaxinfer.core.ops import OPS
from jaxinfer.core.program import find_entry_point

ROOT = pathlib.Path(__file__).parents[1]
PAGES = sorted(
    str(path.relative_to(ROOT))
    for path in (ROOT / "README.md", *(ROOT / "docs").glob("*.md"))
    if "```python" in path.read_text()
)


def blocks(text):
    """Return the fenced Python blocks of a page; lines before each keep the page's numbers."""
    found = re.finditer(r"^```python\n(.*?)^```$", text, re.M | re.S)
    return ["\n" * text[: match.start(1)].count("\n") + match[1] for match in found]


def run(page, text, namespace):
    for source in blocks(text):
        exec(compile(source, page, "exec"), namespace)


@pytest.fixture
def own_rules(monkeypatch):
    """Forget the rules that a page registers."""
    find_entry_point("graph")
    monkeypatch.setattr(OPS, "_rules", dict(OPS._rules))


def test_pages_with_code():
    assert {"README.md", "docs/custom_operators.md", "docs/artefact.md"} <= set(PAGES)
    assert {"docs/training.md", "docs/transforms.md"} <= set(PAGES)


SLOW = {"docs/huggingface_export.md"}


@pytest.mark.parametrize(
    "page", [pytest.param(p, marks=pytest.mark.slow) if p in SLOW else p for p in PAGES]
)
def test_page_runs(page, tmp_path, monkeypatch, own_rules):
    text = (ROOT / page).read_text()
    for package in re.findall(r"^import (torch|onnx)$", text, re.M):
        pytest.importorskip(package)
    monkeypatch.chdir(tmp_path)
    run(page, text, {"__name__": "page"})


def test_readme_example_is_ten_lines_and_right(tmp_path, monkeypatch):
    torch = pytest.importorskip("torch")
    source, *_ = blocks((ROOT / "README.md").read_text())
    lines = source.strip().splitlines()
    assert len([line for line in lines if line]) == 10
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(source, names)
    want = names["module"](torch.ones(5, 8)).detach().numpy()
    for got in (names["y"], names["same"](np.ones((5, 8), np.float32))):
        np.testing.assert_allclose(got, want, atol=1e-6)  # float32, sums of 16 terms
    assert set(names["gradient"]) == set(names["params"]) == set(names["module"].state_dict())


def test_a_wrong_page_fails():
    with pytest.raises(ZeroDivisionError) as caught:
        run("page.md", "text\n```python\nx = 1\nx / 0\n```\n", {})
    assert caught.traceback[-1].lineno == 3  # counted from 0: line 4 of the page


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", *PAGES])
def test_links_lead_somewhere(page):
    text = (ROOT / page).read_text()
    targets = re.findall(r"\]\((?!https?:)([^)#]+)", text)
    missing = [target for target in targets if not (ROOT / page).parent.joinpath(target).exists()]
    assert not missing


def test_commands_of_the_readme_exist():
    text = (ROOT / "README.md").read_text()
    section = text.split("## On the command line")[1].split("\n## ")[0]
    commands = set(re.findall(r"^jaxinfer (\w+)", section, re.M))
    assert commands == set(main.list_commands(click.Context(main)))
    for command in commands:
        assert CliRunner().invoke(main, [command, "--help"]).exit_code == 0


def test_the_table_of_the_readme_is_what_the_slow_tests_convert():
    pytest.importorskip("torch")
    from tests.slow.architectures import ARCHITECTURES

    rows = re.findall(r"^\| ([^|]+?) \|", (ROOT / "README.md").read_text(), re.M)[1:]
    missing = [name for name in ARCHITECTURES if not any(row.startswith(name) for row in rows)]
    assert not missing
    assert len(rows) == len(ARCHITECTURES) + 1  # and MiniLM


def test_make_targets_of_the_readme_exist():
    makefile = (ROOT / "Makefile").read_text()
    named = set(re.findall(r"(?:`|^)make ([a-z-]+)", (ROOT / "README.md").read_text(), re.M))
    assert named >= {"demo", "test", "test-slow"}
    assert [name for name in named if not re.search(rf"^{name}:", makefile, re.M)] == []
