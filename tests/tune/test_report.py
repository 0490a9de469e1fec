"""The report: made of results alone; everything there is shown, and nothing in it is executed."""

import dataclasses
import html.parser
import io
import itertools
import json
import re
import sys
import xml.etree.ElementTree as ET

import matplotlib
import numpy as np
import pytest
from rich.console import Console

from jaxinfer.core.errors import ArtefactError, InputError, MissingExtraError
from jaxinfer.tune import report
from jaxinfer.tune.measurement import Measurement
from jaxinfer.tune.report import _figure, _summary, pictures, write
from jaxinfer.tune.results import Results
from tests.tune.report_results import results

NONE = dataclasses.replace(results(), chosen=None, layers=())
SVG = "{http://www.w3.org/2000/svg}"
HOSTILE = "<script>alert(1)</script>\"'&<b>\x1b[31m\x00\u2028$\\frac{1}{0}$ 模型"
VOID = {"meta", "br", "hr", "img", "link", "input"}


class Page(html.parser.HTMLParser):
    """Checks that every tag is closed, and keeps what is of interest."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.ids, self.rows, self.text = [], [], [], [], ""
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        known = dict(attrs)
        self.tags.append((tag, known))
        self.ids += [known["id"]] if "id" in known else []
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.ids += [value for name, value in attrs if name == "id"]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data
        if {"td", "th"} & set(self.open[-3:]):
            self.rows[-1].append(data)


@pytest.fixture(scope="module")
def page():
    return report.html(results(), {"format": "jaxinfer-recipe", "candidate": {"fold": True}})


# the table


def lines_of(text, number):
    return [line for line in text.splitlines() if re.match(rf" *{number} .*\dx$", line)]


def test_table_is_sorted_and_marked():
    text = report.text(results(), 200)
    order = [line.split()[0] for line in text.splitlines() if re.match(r" *\d+ .*\dx$", line)]
    assert order == [str(i) for i in range(1, 9)]
    (first,) = lines_of(text, 1)
    assert "chosen *" in first
    assert " 45.0 " in first  # the median of the fastest
    assert first.endswith("1.78x")  # 80 / 45
    (last,) = lines_of(text, 8)
    assert "baseline *" in last
    assert last.endswith("1.00x")


@pytest.mark.parametrize("width", [60, 80, 120, 160])
def test_table_fits_its_width(width):
    text = report.text(results(), width)
    assert max(map(len, text.splitlines())) <= width
    shown = text.split("left out at this width:")
    assert "speed-up" in shown[0]
    for name in ("p99 ms", "MAD ms", "compile s", "weight MB"):
        assert name in text.replace("\n", " ")  # as a column, or as one that is left out
    assert (len(shown) > 1) == (width < 160)


def test_table_has_all_parts():
    text = report.text(dataclasses.replace(results(), verdict="It is faster."), 160)
    for part in (
        "Model(graph, 9 values)", "objective latency", "allowed drop 0.005", "p99_ms at most 200",
        "no rule for erf_inv", "bound: no call is faster than 90 ms", "encoder.layer.3.attention",
        "openvino was not tried", "jax 0.10.1", "reference 2.00 s", "It is faster.",
    ):  # fmt: skip
        assert part in text


def test_equal_reasons_are_one_line():
    text = report.text(results(n=2, rejected=40), 160)
    assert text.count("erf_inv") == 1
    assert "and 17 more" in text
    assert "the first of 20 like it" in text


def test_what_is_measured_and_not_allowed_has_its_reason():
    made = results(drop=lambda i: 0.003 * i)
    text = report.text(made, 200)
    assert [line for line in text.splitlines() if "not allowed" in line and line.endswith("1.78x")]
    assert "drop 0.021, allowed 0.005 (the first of 6 like it)" in text
    (row,) = [row for row in _summary.measured(made) if row.chosen]
    assert row.measurement.p50_ms == pytest.approx(75)


def test_table_prints_and_renders():
    made = report.table(results())
    assert str(made) == report.text(results())
    console = Console(width=100, file=io.StringIO())
    console.print(made)
    assert "chosen *" in console.file.getvalue()


def test_objectives_sort_by_themselves():
    fewer = dataclasses.replace(results().measurements[3], peak_bytes=1_000_000)
    held = [*results().measurements]
    held[3] = fewer
    made = dataclasses.replace(results(), measurements=tuple(held), objective="memory")
    assert _summary.measured(made)[0].place == 3
    assert "300x" in report.text(made, 220)
    batched = dataclasses.replace(held[3], batch=64)
    held[3] = batched
    made = dataclasses.replace(results(), measurements=tuple(held), objective="throughput")
    first = _summary.measured(made)[0]
    assert first.place == 3
    assert first.speedup == pytest.approx(80 / 65 * 8)


def test_control_characters_are_spelled_out():
    held = results().measurements[0].replace(label=HOSTILE)
    made = dataclasses.replace(results(), measurements=(held, *results().measurements[1:]))
    text = report.text(made, 200)
    assert "\x1b" not in text
    assert "\\x1b[31m" in text


# the page


def test_page_is_whole_and_needs_nothing(page):
    found = Page(page)
    assert [tag for tag, _ in found.tags].count("script") == 1
    assert not {"link", "img", "iframe", "object"} & {tag for tag, _ in found.tags}
    for _, attributes in found.tags:
        for name, value in attributes.items():
            assert name not in ("src", "action", "data") or not value
            if "href" in name:
                assert value.startswith("#")
    assert not re.search(r"@import|url\((?!#)", page)
    assert not re.findall(r"https?://(?!www\.w3\.org/)", page)
    assert len(found.ids) == len(set(found.ids))
    assert "prefers-color-scheme: dark" in page


def test_page_leads_with_the_verdict(page):
    found = Page(page)
    body = page.partition("<main>")[2]
    assert body.index('class="verdict won"') < body.index("<section>")
    assert "1.78x better than the baseline" in found.text
    assert "jaxinfer-recipe" in found.text


def test_page_tables_hold_everything(page):
    rows = Page(page).rows
    text = [" ".join(row) for row in rows]
    assert sum("erf_inv" in row for row in text) == 3  # each of them, not grouped
    assert sum("encoder.layer" in row for row in text) == 4
    (first, *_) = [row for row in rows if row[:1] == ["1"]]
    assert {"chosen *", "1.78x", "45.0"} <= set(first)


def test_nothing_won_is_said_first():
    held = results(n=2, p50=lambda i: 80 + i)
    found = report.html(dataclasses.replace(held, chosen=0))
    assert 'class="verdict kept">Nothing beat the baseline' in found
    assert "What was chosen" not in found


def test_nothing_allowed_shows_how_near():
    found = report.html(dataclasses.replace(NONE, constraints={"p99_ms": 2, "throughput": 1e6}))
    assert 'class="verdict none">Nothing is allowed' in found
    assert "<li>smallest drop: 0 (f32), allowed 0.005</li>" in found
    assert re.search(r"<li>p99_ms: best 49.\d+ \(.*\), required 2</li>", found)
    assert re.search(r"<li>throughput: best 177\.\d+ \(.*\), required 1000000</li>", found)
    said = dataclasses.replace(
        NONE, verdict="optimize: nothing is allowed:\n  max_drop: 1\nAdvice."
    )
    lines = report.html(said)
    assert 'class="verdict none">nothing is allowed:</p>' in lines
    assert "<li>max_drop: 1</li><li>Advice.</li>" in lines
    assert "  max_drop: 1\n  Advice." in report.text(said)


def hostile_results():
    made = results()
    held = [
        each.replace(label=HOSTILE, reason=HOSTILE, stage=HOSTILE, notes=(HOSTILE,))
        for each in made.measurements
    ]
    layers = [dataclasses.replace(each, name=HOSTILE, precision=HOSTILE) for each in made.layers]
    return dataclasses.replace(
        made, model=HOSTILE, metric=HOSTILE, measurements=held, layers=layers, verdict=HOSTILE,
        device={HOSTILE: HOSTILE}, environment={HOSTILE: [HOSTILE]}, seconds={HOSTILE: 1.0},
        notes=(HOSTILE,), constraints={HOSTILE: 1.0},
    )  # fmt: skip


def test_every_text_is_escaped():
    text = report.html(hostile_results(), {"candidate": {HOSTILE: HOSTILE}})
    found = Page(text)
    assert [tag for tag, _ in found.tags].count("script") == 1
    assert "b" not in {tag for tag, attrs in found.tags if attrs} - {"b"}
    assert "<script>alert" not in text
    assert "\x1b" not in text
    assert "\x00" not in text
    assert found.text.count("<script>alert(1)</script>") > 30  # shown, as text


def test_the_check_of_escaping_finds(monkeypatch):
    monkeypatch.setattr("jaxinfer.tune.report.page.escape", str)
    assert "<script>alert" in report.html(hostile_results())


# the pictures


PARTS = (pictures.pareto, pictures.distribution, pictures.layers, pictures.sensitivity)


def svgs(made, parts=PARTS):
    return [picture for part in parts if (picture := part(made)) is not None]


def test_pictures_are_xml_without_colours_of_their_own():
    found = svgs(results())
    assert len(found) == 4
    for each in found:
        root = ET.fromstring(each)
        assert root.tag == SVG + "svg"
        assert root.get("aria-label")
        colours = set(re.findall(r"(?:fill|stroke): ?(#[0-9a-f]+)", each))
        assert not colours, "a colour that a dark page cannot change"


def test_pictures_are_the_same_every_time_and_change_nothing():
    before = dict(matplotlib.rcParams)
    pyplot = "matplotlib.pyplot" in sys.modules
    parts = (pictures.pareto, pictures.layers)
    first = svgs(results(), parts)
    matplotlib.rcParams["font.size"] = 31
    matplotlib.rcParams["text.usetex"] = True
    try:
        assert svgs(results(), parts) == first
        assert matplotlib.rcParams["font.size"] == 31
    finally:
        matplotlib.rcParams.update({name: before[name] for name in ("font.size", "text.usetex")})
    assert dict(matplotlib.rcParams) == before
    assert ("matplotlib.pyplot" in sys.modules) == pyplot


def texts_of(picture):
    return [each.text for each in ET.fromstring(picture).iter(SVG + "text")]


def test_pareto_says_what_was_won():
    picture = pictures.pareto(results(n=14, rejected=0, drop=lambda i: 0.0005 * i))
    texts = texts_of(picture)
    assert "4 chosen, 2.67x as fast" in texts  # 80 / 30 with a drop of 0.005; 1 to 3 have more
    assert "14 baseline" in texts
    assert "allowed drop 0.005" in texts
    assert {"1", "2", "3", "13"} <= set(texts)
    tips = [each.text for each in ET.fromstring(picture).iter(SVG + "title")]
    assert len(tips) == 14
    assert "6: bf16, unrolled: 40.0 ms, 2.00x, drop 0.00400" in tips


def test_front_is_a_line_through_its_points():
    made = results(drop=lambda i: [0, 3e-3, 1e-3, 2e-3, 2e-3, 3e-3, 4e-3, 1e-2][i])
    with _figure.style():
        axes = pictures.pareto_figure(made).axes[0]
        (line,) = [line for line in axes.lines if len(line.get_xdata()) == len(made.front) > 2]
    assert list(line.get_xdata()) == [made.measurements[i].p50_ms / 8 for i in made.front]
    assert list(line.get_ydata()) == [made.measurements[i].drop for i in made.front]
    assert line.get_drawstyle() == "steps-post"


@pytest.mark.parametrize("n", [5, 40])
def test_labels_do_not_overlap(n):
    rng = np.random.default_rng(0)
    made = results(
        n=n, drop=lambda i: 0.0 if not i else float(rng.choice([1e-4, 2e-3, 4e-3, 0.1])),
        p50=lambda i: 80.0 if not i else float(rng.uniform(20, 120)),
    )  # fmt: skip
    with _figure.style():
        figure = pictures.pareto_figure(made)
        figure.draw_without_rendering()
        axes = figure.axes[0]
        frame = axes.get_window_extent()
        boxes = [
            (each.get_text(), each.get_window_extent())
            for each in axes.texts
            if each.get_text() and not each.get_text().startswith("allowed")
        ]
    for (one, a), (other, b) in itertools.combinations(boxes, 2):
        width = min(a.x1, b.x1) - max(a.x0, b.x0)
        height = min(a.y1, b.y1) - max(a.y0, b.y0)
        assert min(width, height) < 1, f"{one} and {other} overlap"
    for text, box in boxes:
        assert frame.x0 - 1 <= box.x0 <= box.x1 <= frame.x1 + 1, text
    assert len(boxes) == n if n < 10 else len(boxes) > n / 2


@pytest.mark.parametrize("allowed", [0.0, 0.005, -0.01])
@pytest.mark.parametrize(
    "drop",
    [
        lambda i: 0.0,
        lambda i: 10.0**i if i else 0.0,
        lambda i: -0.001 * i,
        lambda i: -0.1 * i,
        lambda i: 1e-9 * i,
    ],
)
def test_axis_of_drops_shows_every_point(drop, allowed):
    made = results(n=7, drop=drop, max_drop=allowed)
    with _figure.style():
        axes = pictures.pareto_figure(made).axes[0]
        low, high = axes.get_ylim()
        ticks = axes.get_yticks()
    assert low < min(0, allowed, *map(drop, range(7)))
    assert high > max(0, allowed, *map(drop, range(7)))
    assert 0 in ticks
    assert 2 <= sum(low <= tick <= high for tick in ticks) <= 14


CASES = {
    "one": results(n=1, rejected=0, layers=()),
    "five": results(n=5, rejected=1, layers=()),
    "all rejected": results(measurements=results(1, 4).measurements[1:], chosen=None, front=()),
    "equal times": results(n=6, p50=lambda i: 40, layers=()),
    "unknown numbers": dataclasses.replace(
        results(),
        measurements=(
            *results().measurements[:2],
            Measurement({}, "bare"),
            results().measurements[3].replace(
                metric=float("nan"), drop=float("nan"), peak_bytes=None, similarity={},
                times_ms=(float("nan"),), compile_s=float("inf"),
            ),
        ),
        front=(0, 1), chosen=1, reference=float("nan"),
        layers=(dataclasses.replace(
            results().layers[0], time_ms=None, sensitivity=float("nan"), time_share=None,
        ),),
        seconds={"reference": 0.0},
    ),
    "long names": results(
        measurements=[each.replace(label="x" * 500) for each in results().measurements],
        metric="m" * 300,
    ),
    "sixty": results(n=60, p50=lambda i: 80 - i, drop=lambda i: 1e-4 * i, layers=()),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_every_kind_of_results(name):
    made = CASES[name]
    text = report.html(made)
    pictures_of = re.findall(r"<svg .*?</svg>", text, re.S)
    assert pictures_of or name == "all rejected"
    for each in pictures_of:
        ET.fromstring(each)
    found = Page(text)
    assert "nan" not in found.text.replace("jaxinfer", "")
    for width in (60, 160):
        text = report.text(made, width)
        assert "nan" not in text
        assert max(map(len, text.splitlines())) <= width


def test_without_times_of_layers_there_is_no_picture():
    made = CASES["unknown numbers"]
    assert pictures.layers(made) is None
    assert pictures.sensitivity(made) is None
    assert "encoder.layer.0.attention" in report.html(made)


# files


def test_json_reads_back(tmp_path):
    made = Results.from_json(results().to_json())  # times are kept to 10 ns
    path = report.write_report(made, tmp_path / "r.json")
    again = Results.from_json(json.loads(path.read_text()))
    assert again.to_json() == json.loads(json.dumps(made.to_json()))
    assert report.text(again) == report.text(made)


def test_files_by_suffix(tmp_path):
    made = results(n=2, rejected=0, layers=())
    (tmp_path / "r.html").write_text("old")
    for name, start in (("r.html", "<!doctype html>"), ("r.md", "```\nModel(graph")):
        assert report.write_report(made, tmp_path / name).read_text().startswith(start)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["r.html", "r.md"]
    with pytest.raises(InputError, match=r"required a name that ends in .html, .json, .md, got"):
        report.write_report(made, tmp_path / "r.pdf")
    with pytest.raises(ArtefactError, match="a folder that does not exist"):
        report.write_report(made, tmp_path / "nowhere" / "r.json")


def test_a_failed_write_leaves_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "r.json"
    path.write_text("old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(write.os, "fsync", full)
    with pytest.raises(ArtefactError, match="not written: No space left"):
        report.write_report(results(), path)
    assert [each.name for each in tmp_path.iterdir()] == ["r.json"]
    assert path.read_text() == "old"


def test_without_matplotlib_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    for call in (
        lambda: report.html(results()),
        lambda: report.write_report(results(), tmp_path / "r.html"),
        lambda: report.check_target(tmp_path / "r.html"),
    ):
        with pytest.raises(MissingExtraError, match=r"pip install 'jaxinfer\[report\]'"):
            call()
    assert report.write_report(results(), tmp_path / "r.json").exists()
    assert "chosen" in report.text(results())
