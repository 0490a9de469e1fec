"""The figures and pictures of schedules, from stamps made by hand."""

import json
import xml.etree.ElementTree as ElementTree

import pytest

from jaxinfer.compile.stages.run import Stamp
from jaxinfer.compile.stages.schedule import Schedule, ideal_bubble


def perfect(stages, microbatches, seconds=1.0):
    return tuple(
        Stamp(s, j, (s + j) * seconds, (s + j + 1) * seconds)
        for s in range(stages)
        for j in range(microbatches)
    )


@pytest.mark.parametrize(("stages", "microbatches"), [(1, 1), (1, 5), (2, 3), (4, 8), (8, 1)])
def test_equal_stages_have_the_ideal_bubble(stages, microbatches):
    schedule = Schedule(perfect(stages, microbatches, 0.25), alone=(0.25,) * stages)
    assert schedule.makespan == pytest.approx((stages + microbatches - 1) / 4)
    assert schedule.ideal == pytest.approx((stages - 1) / (microbatches + stages - 1))
    assert schedule.bubble == pytest.approx(schedule.ideal)
    assert schedule.attainable == pytest.approx(schedule.ideal)
    assert schedule.efficiency == pytest.approx(1 - schedule.ideal)


def test_unequal_stages():
    """Stage 0 takes 1 s, stage 1 takes 3 s: 3 micro-batches need 1 + 3 * 3 s."""
    cells = [Stamp(0, j, j + 5.0, j + 6.0) for j in range(3)]
    cells += [Stamp(1, j, 6.0 + 3 * j, 9.0 + 3 * j) for j in range(3)]
    schedule = Schedule(tuple(cells), alone=(1.0, 3.0))
    assert schedule.start == 5
    assert schedule.makespan == 10
    assert schedule.busy == (3, 9)
    assert schedule.bubble == pytest.approx(1 - 12 / 20)
    assert schedule.attainable == pytest.approx(1 - 12 / 20)
    assert schedule.ideal == pytest.approx(1 / 4)
    assert schedule.efficiency == pytest.approx(12 / 20)


def test_stretched_cells_look_busy_and_are_not_efficient():
    """Two stages that share a core: both always compute, at half the speed."""
    cells = perfect(2, 9, 2.0)
    schedule = Schedule(cells, alone=(1.0, 1.0))
    assert schedule.bubble == pytest.approx(0.1)
    assert schedule.efficiency == pytest.approx(0.45)


def test_text():
    lines = Schedule(perfect(3, 12), labels=("a", "b", "c")).text(width=28).splitlines()
    assert lines[0] == "stage 0 (a)  00112233445566778899aabb...."
    assert lines[2] == "stage 2 (c)  ....00112233445566778899aabb"
    assert lines[3].startswith("3 stages, 12 micro-batches: 14 s, bubble 14.3 % (ideal 14.3 %)")
    assert len(lines) == 4
    with pytest.raises(ValueError, match="width must be 1 or more, got 0"):
        Schedule(perfect(1, 1)).text(width=0)


def test_marks_begin_again_after_62():
    text = Schedule(perfect(1, 63)).text(width=63)
    assert text.splitlines()[0].endswith("XYZ0")


def test_summary_with_all_figures():
    line = Schedule(perfect(2, 3), alone=(1.0, 0.5)).summary()
    assert "attainable with these stages 35.7 %), efficiency 56.2 %" in line
    assert Schedule(()).summary() == "nothing was computed"


def test_svg(tmp_path):
    schedule = Schedule(perfect(3, 4), labels=("<cpu:0>", "b", "c"))
    text = schedule.svg(tmp_path / "s.svg")
    assert (tmp_path / "s.svg").read_text() == text
    root = ElementTree.fromstring(text)
    space = "{http://www.w3.org/2000/svg}"
    boxes = [box for box in root.iter(f"{space}rect") if box.find(f"{space}title") is not None]
    assert len(boxes) == 12
    x, width = (float(boxes[-1].get(name)) for name in ("x", "width"))
    right = float(root.get("width")) - 16
    assert x + width == pytest.approx(right, abs=0.1)  # the last cell ends at the edge
    assert boxes[-1].find(f"{space}title").text.endswith("micro-batch 3: 5 to 6 s")
    texts = [node.text for node in root.iter(f"{space}text")]
    assert "stage 0 (<cpu:0>)" in texts
    assert texts[-1] == "6 s"


def test_json_and_nothing():
    data = json.loads(json.dumps(Schedule(perfect(2, 2), (1.0, 1.0), 3.5).to_json()))
    assert data["cells"][1] == [0, 1, 1.0, 2.0]
    assert data["wall_s"] == 3.5
    empty = Schedule(())
    assert (empty.stages, empty.makespan, empty.bubble, empty.ideal) == (0, 0, 0, 0)
    assert empty.attainable is None
    assert empty.efficiency is None
    assert ideal_bubble(0, 3) == 0
    assert ElementTree.fromstring(empty.svg()) is not None
