"""optimize: options become arguments, results become files, and what fails says so.

The search itself is a fake here, but for one that is really run (slow) and the dry run.
"""

import dataclasses
import functools
import json
import sys

import jax.numpy as jnp
import numpy as np
import pytest

import jaxinfer as ji
from jaxinfer.cli import _optimize_options as options
from jaxinfer.cli.optimize import progress_text
from jaxinfer.tune.data import Dataset
from jaxinfer.tune.journal import Journal
from jaxinfer.tune.plan import UnmetError
from jaxinfer.tune.results import Results
from tests.cli import fakes
from tests.tune import report_results

results = functools.partial(report_results.results, n=3, rejected=1, layers=())
WEIGHT = np.linspace(-1, 1, 24, dtype=np.float32).reshape(3, 8)


@pytest.fixture(autouse=True)
def here(cli, tmp_path):
    """A model directory and data: x of eight samples, labels beside it."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((8, 8), dtype=np.float32)
    np.savez(tmp_path / "calib.npz", x=x, labels=(x @ WEIGHT.T).argmax(1))
    linear().save(tmp_path / "model")


def linear():
    return fakes.graph_model(
        {"x": (("batch", 8), "float32")},
        [("linear", "aten.linear.default", ("x", "w"), None)],
        {"y": "linear"},
        {"w": jnp.asarray(WEIGHT)},
        {"batch": (1, 16)},
    )


class Recipe:
    def to_json(self):
        return {"format": "jaxinfer-recipe", "candidate": {"fold": True}}


class Plan:
    recipe = Recipe()

    def __init__(self, model, made):
        self.model, self.results = model, made


@pytest.fixture
def search(monkeypatch):
    """A fake search; what it was asked is in the list, ``made`` is what it finds or raises."""
    seen = []

    def install(made=None):
        def optimize(model, data, **given):
            seen.append((model, data, {**given, "journal": given["cache"].exists()}))
            Journal(given["cache"], resume=given["resume"]).do("step", None, lambda: 1)
            given["progress"]("baseline", "f32", None, 59.5)
            given["progress"]("precision", "bf16, fold", 31.24, 12.0)
            found = made or results()
            if isinstance(found, BaseException):
                raise found
            return Plan(model, found)

        monkeypatch.setattr("jaxinfer.tune.optimize.optimize", optimize)
        return seen

    return install


BASIC = ("optimize", "model", "--data", "calib.npz")


def test_it_writes_a_model_with_its_report(cli, search, tmp_path):
    seen = search()
    result = cli(*BASIC, "-o", "fast")
    assert result.code == 0, result.err
    fast = tmp_path / "fast"
    assert {"model.json", "report.html", "report.json"} <= {p.name for p in fast.iterdir()}
    assert ji.load(fast)(np.ones((2, 8), np.float32))["y"].shape == (2, 3)
    again = Results.from_json(json.loads((fast / "report.json").read_text()))
    assert len(again.measurements) == len(results().measurements)
    assert "jaxinfer-recipe" in (fast / "report.html").read_text()
    for part in ("chosen *", f"wrote {fast}", "fast.search.jsonl (--continue goes on from it)"):
        assert part in result.out
    assert "precision: bf16, fold; best 31.2 ms; 12 s left\n" in result.err
    ((_, data, given),) = seen
    assert isinstance(data, Dataset)
    assert data.size == 8
    assert set(data.calls[0].extras) == {"labels"}
    assert (given["metric"], given["drop"], given["resume"]) == ("cosine", "absolute", False)
    assert given["space"] == ji_space()


def ji_space(**changes):
    from jaxinfer.tune.space import Space

    return Space(**{"backend": None, "batch": None, "prune": (), **changes})


def test_options_become_arguments(cli, search, tmp_path):
    seen = search()
    (tmp_path / "own_metric.py").write_text("def accuracy(outputs, batch):\n    return 1.0\n")
    result = cli(
        *BASIC, "-o", "fast", "--objective", "throughput", "--metric", "own_metric:accuracy",
        "--max-drop", "0.5%", "--relative", "--constraint", "p99_ms=20", "--constraint",
        "peak_bytes=2GiB", "--seconds", "60", "--compiles", "9", "--batch", "1,8,32", "--buckets",
        "batch=2,8", "--buckets", "batch=8", "--allow", "prune=0.7,W4A16", "--backend", "xla",
        "--seed", "3", "--batch-size", "4", "--report", "other.json",
    )  # fmt: skip
    assert result.code == 0, result.err
    ((_, data, given),) = seen
    assert data.batch == 4
    assert given["objective"] == "throughput"
    assert given["metric"].__name__ == "accuracy"
    assert given["max_drop"] == 0.005
    assert given["drop"] == "relative"
    assert given["constraints"] == {"p99_ms": 20, "peak_bytes": 2 << 30}
    assert (given["budget"].seconds, given["budget"].compiles, given["seed"]) == (60, 9, 3)
    space = given["space"]
    assert space.batch == (1, 8, 32)
    assert space.buckets == {"batch": [(2, 8), (8,)]}
    assert space.prune == ({"sparsity": 0.7},)
    assert space.backend == ("xla",)
    assert space.precision[-1] == "W4A16"
    assert {"bf16", "W8A8"} <= set(space.precision)  # what is usual is still tried
    assert given["cache"] == tmp_path / "fast.search.jsonl"
    assert json.loads((tmp_path / "other.json").read_text())["objective"] == "latency"
    assert f"wrote {'other.json'}" in result.out


def test_json_is_all_there_is_on_stdout(cli, search):
    search()
    found = cli(*BASIC, "-o", "fast", "--json").json
    assert found["out"].endswith("/fast")
    assert found["recipe"]["candidate"] == {"fold": True}
    assert [path.rpartition("/")[2] for path in found["reports"]] == ["report.json", "report.html"]
    assert len(found["measurements"]) == len(results().measurements)


def test_nothing_allowed_is_a_failure_with_the_best_reachable(cli, search, tmp_path):
    text = "optimize: nothing is allowed; 3 candidates:\n  max_drop: best 0.02 (bf16)\nLoosen it."
    made = dataclasses.replace(results(), chosen=None, layers=(), verdict=text)
    search(UnmetError(text, made))
    result = cli(*BASIC, "-o", "fast", "--report", "r.html")
    assert result.code == 1
    assert "max_drop: best 0.02 (bf16)" in result.out
    assert "error: optimize: nothing is allowed; 3 candidates\n" in result.err
    assert "Traceback" not in result.err
    assert not (tmp_path / "fast").exists()
    assert "max_drop: best 0.02 (bf16)" in (tmp_path / "r.html").read_text()
    result = cli(*BASIC, "-o", "fast", "--overwrite", "--json")
    assert result.code == 1
    assert result.json["chosen"] is None
    assert result.json["out"] is None
    assert "max_drop: best 0.02 (bf16)" in result.err


def test_a_search_goes_on_from_its_journal(cli, search, tmp_path):
    seen = search(KeyboardInterrupt())
    result = cli(*BASIC, "-o", "fast")
    assert result.code == 1
    journal = tmp_path / "fast.search.jsonl"
    assert f"--continue goes on from {journal}" in result.err
    assert "interrupted" in result.err
    search()
    result = cli(*BASIC, "-o", "fast")
    assert result.code == 1
    assert "is of an earlier search: --continue goes on from it, --overwrite" in result.err
    assert len(seen) == 1
    result = cli(*BASIC, "-o", "fast", "--continue")
    assert result.code == 0, result.err
    assert seen[-1][2]["resume"]
    assert seen[-1][2]["journal"]
    assert "begins anew" not in result.err
    assert journal.exists()


def test_the_journal_of_a_search_that_failed(cli, tmp_path):
    journal = tmp_path / "fast.search.jsonl"
    (tmp_path / "bad_metric.py").write_text(
        "def bad(outputs, batch):\n    raise ValueError('no labels')\n"
    )
    for _ in range(2):  # the first one's journal is in nobody's way: nothing was done
        result = cli(*BASIC, "-o", "fast", "--metric", "bad_metric:bad")
        assert result.code == 1
        assert "no labels" in result.err
        assert "earlier search" not in result.err
        assert "the journal is kept" not in result.err
    result = cli(*BASIC, "-o", "fast", "--seconds", "0.001")
    assert result.code == 1
    assert "give" in result.err
    assert f"the journal is kept: --continue goes on from {journal}" in result.err
    kept = journal.read_text()
    result = cli(*BASIC, "-o", "fast", "--metric", "bad_metric:bad")
    assert "is of an earlier search" in result.err
    assert journal.read_text() == kept


def test_overwriting_begins_anew(cli, search, tmp_path):
    seen = search()
    assert cli(*BASIC, "-o", "fast").code == 0
    result = cli(*BASIC, "-o", "fast")
    assert result.code == 1
    assert "exists already" in result.err
    assert len(seen) == 1
    assert cli(*BASIC, "-o", "fast", "--overwrite").code == 0
    assert not seen[-1][2]["journal"]  # the old one was gone when the search began
    assert (tmp_path / "fast" / "report.html").exists()


def test_continuing_without_a_journal_is_said(cli, search):
    search()
    result = cli(*BASIC, "-o", "fast", "--continue")
    assert result.code == 0
    assert "fast.search.jsonl is not there: the search begins anew" in result.err


def test_without_matplotlib(cli, search, tmp_path, monkeypatch):
    seen = search()
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    result = cli(*BASIC, "-o", "fast", "--report", "r.html")
    assert result.code == 1
    assert "pip install 'jaxinfer[report]'" in result.err
    assert not seen  # said before the search
    result = cli(*BASIC, "-o", "fast")
    assert result.code == 0
    assert "report.html: the pictures of a report need matplotlib" in result.err
    assert (tmp_path / "fast" / "report.json").exists()
    assert not (tmp_path / "fast" / "report.html").exists()


def test_dry_run_measures_nothing(cli, tmp_path):
    result = cli(*BASIC, "--dry-run", "--backend", "xla", "--allow", "prune")
    assert result.code == 0, result.err
    for part in ("structure  f32, fold", "prune sparsity=0.5", "bf16", "nothing was measured"):
        assert part in result.out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["calib.npz", "model"]
    found = cli(*BASIC, "--dry-run", "--backend", "xla", "--json").json
    assert {"rows", "compiles", "notes"} <= set(found)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "-o FAST is required"),
        (("-o", "f", "--max-drop", "much"), "--max-drop: required a number or a percentage"),
        (("-o", "f", "--constraint", "p99_ms"), "--constraint: required NAME=NUMBER"),
        (("-o", "f", "--constraint", "p99_ms=2GB"), "units: us, ms, s"),
        (("-o", "f", "--constraint", "p99_ms=1", "--constraint", "p99_ms=2"), "is there twice"),
        (("-o", "f", "--allow", "W3A3,prune=x,f16"), "there is no W3A3, prune=x; known: prune"),
        (("-o", "f", "--batch", "1,0"), "--batch: required numbers from 1, got '1,0'"),
        (("-o", "f", "--buckets", "8"), "--buckets: required NAME=SIZE"),
        (("-o", "f", "--metric", "accuracy"), "--metric: required cosine, max, top1, kl or"),
        (("-o", "f", "--objective", "joy"), "'joy' is not one of"),
    ],
)
def test_wrong_usage(cli, search, words, message):
    seen = search()
    result = cli(*BASIC, *words)
    assert result.code == 2
    assert message in " ".join(result.err.split())
    assert not seen


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ("--metric", "no_such_module:f"),
            "no_such_module cannot be imported: ModuleNotFoundError",
        ),
        (("--metric", "json:accuracy"), "json has no function accuracy"),
        (("--seconds", "0"), "seconds: required a number above 0, got 0.0"),
        (("--report", "r.pdf"), "report r.pdf: required a name that ends in .html"),
        (("--backend", "tensorrt"), "there is no 'tensorrt'"),
        (("--data", "nowhere.npz"), "nowhere.npz"),
    ],
)
def test_failures_are_one_message(cli, search, tmp_path, words, message):
    seen = search()
    result = cli("optimize", "model", "-o", "f", *(() if "--data" in words else BASIC[2:]), *words)
    assert result.code == 1
    assert message in result.err
    assert "Traceback" not in result.err
    assert "bug" not in result.err
    assert not seen
    assert not (tmp_path / "f").exists()


def test_numbers_as_text():
    assert options.percent(" 0.5% ") == 0.005
    assert options.percent("-1") == -1
    with pytest.raises(Exception, match="got 'nan'"):
        options.percent("nan")
    given = ["p99_ms=1.5s", "weight_bytes=500MB", "compile_s=2min", "throughput=1e3"]
    assert options.constraints(given) == {
        "p99_ms": 1500, "weight_bytes": 500e6, "compile_s": 120, "throughput": 1000
    }  # fmt: skip


def test_progress_is_one_line():
    assert progress_text("baseline", "f32", None, 59.5) == "baseline: f32; 60 s left"


@pytest.mark.slow
def test_a_search_that_is_run(cli, tmp_path):
    words = (*BASIC, "-o", "fast", "--seconds", "60", "--backend", "xla", "--metric", "max")
    result = cli(*words, "--max-drop", "1%")
    assert result.code == 0, result.err
    assert {"recipe.json", "report.html"} <= {path.name for path in (tmp_path / "fast").iterdir()}
    first = json.loads((tmp_path / "fast" / "report.json").read_text())
    result = cli(*words, "--max-drop", "1%", "--continue", "--overwrite", "--json")
    assert result.code == 0, result.err
    assert result.json["measurements"] == first["measurements"]  # nothing was measured again
    assert result.json["chosen"] == first["chosen"]
    result = cli(
        *words[:4], "-o", "slow", "--seconds", "60", "--backend", "xla", "--max-drop", "-1"
    )
    assert result.code == 1
    assert "the best reachable is" in result.out
