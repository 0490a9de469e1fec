"""A model in stages gives what the model gives; what cannot be cut is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxinfer as ji
from jaxinfer.compile.guard import no_compile
from jaxinfer.compile.pipeline import pipeline
from jaxinfer.core.errors import InputError, InputTypeError

LAYERS, WIDTH, VOCAB, LENGTH = 4, 13, 11, 3


def weights(seed=0):
    rng = np.random.default_rng(seed)

    def draw(*shape):
        return jnp.asarray(rng.standard_normal(shape) / np.sqrt(shape[0]), jnp.float32)

    params = {f"layers.{i}.w": draw(WIDTH, WIDTH) for i in range(LAYERS)}
    return params | {"embed": draw(VOCAB, WIDTH)}


def transformer(p, ids, mask):
    """Tied embeddings, a mask that every layer reads, a skip from the first value to the last."""
    first = x = p["embed"][ids]
    for i in range(LAYERS):
        scores = jax.nn.softmax(jnp.where(mask[:, None, :], x @ x.mT, -1e9), -1)
        x = jax.jit(lambda x, w: x + jnp.tanh(x @ w))(scores @ x, p[f"layers.{i}.w"])
    return {"logits": (x + first) @ p["embed"].T, "mean": x.mean(1), "ids": ids}


def data(rows, seed=1):
    rng = np.random.default_rng(seed)
    mask = rng.random((rows, LENGTH)) > 0.3
    mask[:, 0] = True
    return rng.integers(0, VOCAB, (rows, LENGTH)).astype(np.int32), mask


SIZES = {"x0": ("batch", LENGTH), "x1": ("batch", LENGTH)}


@pytest.fixture(scope="module")
def model():
    return ji.from_function(transformer, weights(), data(2))


@pytest.fixture(scope="module")
def pipe(model):
    return pipeline(model, SIZES, stages=4, microbatch=2)


def assert_same(got, want, tol=1e-6):
    """Equal structure, shapes, dtypes; values within ``tol`` of the largest.

    XLA fuses the equations of a stage and those of the whole model differently, so float32
    rounds differently: a few eps (1.2e-7) for each of the layers here; most runs agree bit
    for bit.
    """
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert g.shape == w.shape
        assert g.dtype == w.dtype
        g, w = np.asarray(g, np.float64), np.asarray(w, np.float64)
        np.testing.assert_allclose(g, w, rtol=0, atol=tol * (np.abs(w).max(initial=0) or 1))


def slow(*values):
    return [pytest.param(value, marks=pytest.mark.slow) for value in values]


@pytest.mark.parametrize("stages", [1, 2, 8, *slow(3, 4, 5, 6, 7)])
def test_every_number_of_stages_gives_what_the_model_gives(model, stages):
    pipe = pipeline(model, SIZES, stages=stages, microbatch=2)
    inputs = data(5)
    assert_same(pipe(*inputs), model(*inputs))
    assert len(pipe.report().stages) == stages
    devices = [stage.place.devices for stage in pipe.stages]
    assert devices == [(device,) for device in jax.devices()[:stages]]
    assert len(pipe.stages[0].run(*arguments(pipe))[0].devices()) == 1


def arguments(pipe):
    stage = pipe.stages[0]
    inputs = data(2)
    placed = [jax.device_put(inputs[i], stage.place.whole) for i in stage.plan.inputs]
    return stage.params, placed, []


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 7])
def test_a_batch_that_is_no_multiple_is_padded_and_sliced(model, pipe, rows):
    assert_same(pipe(*data(rows)), model(*data(rows)))


def test_a_batch_of_no_rows(model, pipe):
    got = pipe(*data(0))
    assert got["logits"].shape == (0, LENGTH, VOCAB)
    assert got["mean"].dtype == jnp.float32


def test_inputs_by_name_and_arrays_of_jax(model, pipe):
    ids, mask = data(4)
    assert_same(pipe(x1=jnp.asarray(mask), x0=jnp.asarray(ids)), model(ids, mask))


def test_calls_do_not_compile(pipe):
    with no_compile():
        for rows in (1, 2, 5, 8, 0):
            jax.block_until_ready(pipe(*data(rows)))
    with pytest.raises(Exception, match="compiled"), no_compile():  # the guard would see it
        jax.jit(lambda x: x * 3)(np.ones(rows + 1)).block_until_ready()


def test_several_calls_at_once(model, pipe):
    from concurrent.futures import ThreadPoolExecutor

    batches = [data(rows, seed=rows) for rows in range(1, 7)]
    wants = [model(*batch) for batch in batches]
    with ThreadPoolExecutor(6) as threads:
        for got, want in zip(threads.map(lambda b: pipe(*b), batches), wants, strict=True):
            assert_same(got, want)


def test_a_stage_holds_the_parameters_that_it_uses(pipe, model):
    report = pipe.report()
    held = [name for row in report.stages for name in row.params]
    assert sorted(set(held)) == sorted(model.params)
    assert sorted(held) == sorted([*model.params, "embed"])  # the tied one twice
    assert report.tied == {"embed": (0, 3)}
    assert "embed is on stages 0, 3" in str(report)
    assert sum(row.param_bytes for row in report.stages) == sum(
        model.params[name].nbytes for name in held
    )
    for stage in pipe.stages:
        assert all(param.devices() == set(stage.place.devices) for param in stage.params)


def test_values_go_straight_to_who_needs_them(pipe):
    """The mask is an input of every stage, the skip passes the stages between by."""
    plans = [stage.plan for stage in pipe.stages]
    assert [plan.inputs for plan in plans][:3] == [(0, 1), (1,), (1,)]
    skip = set(plans[3].received) & set(plans[0].sent)
    assert skip
    assert not skip & {*plans[1].received, *plans[2].received}
    rows = pipe.report().stages
    assert sum(row.bytes_out for row in rows) == sum(row.bytes_in for row in rows)


def test_report_adds_up(pipe):
    report = pipe.report()
    assert sum(report.shares) == pytest.approx(1)
    assert 1 <= report.balance < 2
    assert report.to_json()["balance"] == report.balance
    assert all(row.compile_s > 0 for row in report.stages)
    assert "tested" in report.rows
    assert "Pipeline(4 stages" in repr(pipe)


def test_boundary_buffers_are_donated(pipe):
    assert any(row.aliased_bytes for row in pipe.report().stages)


def test_one_device_for_all_stages(model):
    pipe = pipeline(model, SIZES, stages=3, microbatch=3, devices=[jax.devices()[5]] * 3)
    assert_same(pipe(*data(4)), model(*data(4)))
    assert all(row.aliased_bytes == 0 for row in pipe.report().stages)
    assert pipe(*data(4))["mean"].devices() == {jax.devices()[5]}


def test_micro_batches_of_one_row(model):
    pipe = pipeline(model, SIZES, stages=2, microbatch=1)
    assert_same(pipe(*data(3)), model(*data(3)))
    assert "nothing to test" in pipe.report().rows


def quantized(model, scheme):
    return ji.quantize(scheme)(model)


@pytest.mark.parametrize("scheme", ["W8A16", *slow("W4A16", "W8A8")])
def test_quantized_weights(scheme):
    model = quantized(ji.from_function(transformer, weights(), data(2)), scheme)
    pipe = pipeline(model, SIZES, stages=3, microbatch=2)
    assert_same(pipe(*data(5)), model(*data(5)))
    held = [name for row in pipe.report().stages for name in row.params]
    assert any(name.endswith(".qvalue") for name in held)
    assert sum(row.param_bytes for row in pipe.report().stages) < model.nbytes * 2


def test_masked_weights():
    from jaxinfer.numerics.masks import Masked

    params = weights()
    kept = jnp.asarray(np.random.default_rng(3).random((WIDTH, WIDTH)) > 0.5)
    params["layers.2.w"] = Masked(params["layers.2.w"], kept)
    model = ji.from_function(transformer, params, data(2))
    pipe = pipeline(model, SIZES, stages=2, microbatch=2)
    assert_same(pipe(*data(3)), model(*data(3)))


def scanned(p, x):
    def layer(x, w):
        x = jnp.tanh(x @ w)
        return x, x.sum(-1)

    x, sums = jax.lax.scan(layer, x, p["layers"])
    return x @ p["head"], sums.T


def stack(length):
    rng = np.random.default_rng(0)
    layers = rng.standard_normal((length, WIDTH, WIDTH)) / 4
    return {
        "layers": jnp.asarray(layers, jnp.float32),
        "head": jnp.asarray(rng.standard_normal((WIDTH, 2)), jnp.float32),
    }


@pytest.mark.parametrize(("length", "stages"), [(7, 3), (3, 1)])
def test_a_scan_is_split_by_its_length(length, stages):
    x = np.random.default_rng(1).standard_normal((5, WIDTH)).astype(np.float32)
    model = ji.from_function(scanned, stack(length), (x,))
    pipe = pipeline(model, [("batch", WIDTH)], stages=stages, microbatch=2)
    assert_same(pipe(x), model(x))
    report = pipe.report()
    assert report.balance < 1.4
    assert bool(report.splits) == (stages > 1)
    layers = sum(
        np.asarray(stage.params[i]).nbytes
        for stage in pipe.stages
        for i, var in enumerate(stage.plan.params)
        if pipe.program.params[var].name.startswith("layers")
    )
    assert layers == model.params["layers"].nbytes  # each layer on one device only


def test_a_scan_backwards_is_split():
    def fn(p, x):
        return jax.lax.scan(lambda x, w: (jnp.sin(x @ w), x), x, p["layers"], reverse=True)

    x = np.random.default_rng(1).standard_normal((4, WIDTH)).astype(np.float32)
    model = ji.from_function(lambda p, x: fn(p, x)[0], stack(5), (x,))
    pipe = pipeline(model, [("batch", WIDTH)], stages=3, microbatch=2)
    assert pipe.report().splits
    assert_same(pipe(x), model(x))


def test_a_quantized_scan_is_split():
    x = np.random.default_rng(1).standard_normal((4, WIDTH)).astype(np.float32)
    model = quantized(ji.from_function(scanned, stack(6), (x,)), "W8A16")
    pipe = pipeline(model, [("batch", WIDTH)], stages=3, microbatch=2)
    assert pipe.report().splits
    assert_same(pipe(x), model(x))


def test_loops_and_branches_stay_whole():
    def fn(p, x):
        x = x @ p["a"]
        x = jax.lax.while_loop(lambda c: c[0] < 3, lambda c: (c[0] + 1, c[1] @ p["b"]), (0, x))[1]
        x = jax.lax.cond(p["a"].sum() > 0, jnp.sin, jnp.cos, x)
        return jax.checkpoint(lambda x: x @ p["b"])(x)

    params = {"a": jnp.ones((3, 5)), "b": jnp.eye(5) * 0.5}
    model = ji.from_function(fn, params, (jnp.ones((2, 3)),))
    x = np.random.default_rng(0).standard_normal((3, 3)).astype(np.float32)
    pipe = pipeline(model, [("n", 3)], stages=3, microbatch=2)
    assert_same(pipe(x), model(x))


@pytest.mark.slow
@pytest.mark.parametrize("meshes", [False, *slow(True)])
def test_a_converted_model_in_64_bits(meshes):
    torch = pytest.importorskip("torch")

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = torch.nn.Embedding(7, 6, dtype=torch.float64)
            self.layers = torch.nn.Sequential(
                *(torch.nn.Linear(6, 6, dtype=torch.float64) for _ in range(3))
            )

        def forward(self, ids):
            return self.layers(self.embed(ids)), ids + 2**40

    ids = np.arange(15).reshape(5, 3) % 7
    dynamic = ({0: "rows"},)
    model = ji.from_torch(Net().eval(), (torch.as_tensor(ids),), dynamic_shapes=dynamic, x64=True)
    devices = [jax.devices()[:2], jax.devices()[2:4]] if meshes else None
    pipe = pipeline(model, stages=2, microbatch=2, devices=devices)
    got, want = pipe(ids), model(ids)
    assert got[0].dtype == np.float64
    assert int(got[1][0, 0]) == 2**40
    assert_same(got, want, 1e-14)


def test_large_constants_go_to_their_stage():
    table = np.random.default_rng(0).standard_normal((130, 131)).astype(np.float32)

    def fn(p, x):
        return jnp.tanh(x @ p["w"]) @ jnp.asarray(table)

    x = np.ones((2, 7), np.float32)
    model = ji.from_function(fn, {"w": jnp.ones((7, 130))}, (x,))
    pipe = pipeline(model, [("batch", 7)], stages=2, microbatch=1)
    assert_same(pipe(x), model(x))
    assert any(name.startswith("constant") for name in pipe.report().stages[1].params)


def test_inputs_without_a_batch_go_whole_to_every_stage():
    def fn(p, x, scale):
        return jnp.tanh(x * scale @ p["a"]) @ p["b"] * scale

    params = {"a": jnp.ones((3, 5)), "b": jnp.ones((5, 2))}
    x, scale = np.ones((4, 3), np.float32), np.float32(0.25) * np.ones((1,), np.float32)
    model = ji.from_function(fn, params, (x, scale))
    pipe = pipeline(model, {"x0": ("batch", 3)}, stages=2, microbatch=2)
    assert_same(pipe(x, scale), model(x, scale))
    assert [1 in stage.plan.inputs for stage in pipe.stages] == [True, True]


def test_boundaries_by_name_and_by_position(model):
    names = [r"layers\.1\.", r"layers\.3\."]
    pipe = pipeline(model, SIZES, stages=3, microbatch=2, boundaries=names)
    held = [set(row.params) for row in pipe.report().stages]
    assert held[1] == {"layers.1.w", "layers.2.w"}
    again = pipeline(model, SIZES, stages=3, microbatch=2, boundaries=pipe.positions)
    assert again.positions == pipe.positions
    assert_same(again(*data(3)), model(*data(3)))


def test_equations_name_the_positions_of_cuts(pipe):
    lines = pipe.equations()
    assert len(lines) == len(pipe.measured.order)
    for stage, position in enumerate(pipe.positions, 1):
        assert lines[position].split()[:3] == [str(position), "stage", str(stage)]
        assert f"stage {stage} begins at" in str(pipe.report())
        assert pipe.report().stages[stage].begins in lines[position]
    assert "test_pipeline.py" in lines[-1]


def test_progress(model):
    seen = []
    pipeline(model, SIZES, stages=2, microbatch=2, progress=lambda *args: seen.append(args))
    assert sorted(seen) == [("stage 0", 1, 2), ("stage 1", 2, 2)] or sorted(seen) == [
        ("stage 0", 2, 2),
        ("stage 1", 1, 2),
    ]


def test_an_error_in_a_stage_ends_the_call():
    def fail(x):
        if x[0, 0] == 3:
            raise RuntimeError("the third")
        return x

    def fn(p, x):
        x = x @ p["w"]
        x = jax.pure_callback(fail, jax.ShapeDtypeStruct(x.shape, x.dtype), x)
        return jnp.sin(x) @ p["w"]

    x = np.zeros((12, 1), np.float32)
    model = ji.from_function(fn, {"w": jnp.ones((1, 1))}, (x,))
    pipe = pipeline(model, [("batch", 1)], stages=4, microbatch=1, boundaries=[1, 2, 3])
    assert pipe(x).shape == (12, 1)
    x[2] = 3
    with pytest.raises(Exception, match="the third"):
        pipe(x)
    x[2] = 0
    assert pipe(x).shape == (12, 1)  # and the next call works


def small(fn, *shapes, params=None):
    inputs = tuple(jnp.ones(shape) for shape in shapes)
    return ji.from_function(fn, {"w": jnp.ones((3, 3))} if params is None else params, inputs)


def test_rows_that_see_each_other_are_refused():
    for fn in (
        lambda p, x: (x - x.mean(0)) @ p["w"],
        lambda p, x: jnp.cumsum(x @ p["w"], 0),
        lambda p, x: x @ p["w"] + jnp.arange(x.shape[0], dtype=jnp.float32)[:, None],
        lambda p, x: (x @ p["w"])[::-1],
    ):
        with pytest.raises(InputError, match=r"rows of a batch depend.*\n.*result 0") as error:
            pipeline(small(fn, (2, 3)), [("batch", 3)], stages=2, microbatch=3)
        assert "check=False" in str(error.value)
        pipe = pipeline(small(fn, (2, 3)), [("batch", 3)], stages=2, microbatch=3, check=False)
        assert "not tested" in pipe.report().rows


def test_results_without_a_batch_are_refused():
    def fn(p, x):
        y = x @ p["w"]
        return y, y.sum(), y.reshape(-1), y

    with pytest.raises(InputError, match=r"result 1.*\n.*result 2") as error:
        pipeline(small(fn, (2, 3)), [("batch", 3)], stages=2, microbatch=3)
    assert "result 0" not in str(error.value)
    with pytest.raises(InputError, match="returns nothing"):
        pipeline(small(lambda p, x: None, (2, 3)), [("batch", 3)], stages=1, microbatch=3)


def test_stages_and_devices_that_do_not_fit(model):
    cases = [
        ({"stages": 0}, "stages must be an integer of 1 or more"),
        ({"stages": 2.0}, "stages must be an integer"),
        ({"stages": 9}, r"9 stages need 9 devices, there are 8 \(cpu\)"),
        ({"stages": 2, "devices": jax.devices()[:3]}, "2 stages need 2 devices, got 3"),
        ({"stages": 2, "devices": ["cpu:0", jax.devices()[0]]}, "a device of.*\n.*'cpu:0'"),
        ({"stages": 300, "devices": jax.devices()[:1] * 300}, "300 stages, and .* equations"),
        ({"stages": 2, "microbatch": 0}, "microbatch must be an integer of 1 or more"),
        ({"stages": 2, "microbatch": True}, "microbatch must be"),
    ]
    for options, message in cases:
        with pytest.raises(InputError, match=message):
            pipeline(model, SIZES, **{"microbatch": 2, **options})


def test_boundaries_that_are_no_cuts():
    def chain(p, x):
        for w in p.values():
            x = jnp.sin(x @ w)
        return x

    model = small(chain, (2, 3), params={f"layers.{i}": jnp.ones((3, 3)) for i in range(4)})
    cases = [
        ([3], "required 2 for 3 stages, got 1"),
        ([0, 3], "0: a cut is before one of the equations 1 to"),
        ([3, 3000], "3000: a cut"),
        ([5, 5], r"5 \(equation 5\) does not come before 5"),
        (["layers.3", "layers.1"], "'layers.3' .* does not come before 'layers.1'"),
        (["nothing", "layers.1"], "'nothing': no equation reads a parameter of that name"),
        (["(", "layers.1"], "not a regular expression"),
        ([1.5, 3], "1.5: neither a position nor"),
    ]
    for boundaries, message in cases:
        with pytest.raises(InputError, match=message):
            pipeline(model, [("n", 3)], stages=3, microbatch=2, boundaries=boundaries)


def test_all_faults_of_boundaries_at_once(model):
    with pytest.raises(InputError, match=r"required 2(.|\n)*'zzz': no equation(.|\n)*0: a cut"):
        pipeline(model, SIZES, stages=3, microbatch=2, boundaries=["zzz", 0, 7])


def test_a_boundary_before_everything():
    model = small(lambda p, x: jnp.sin(x @ p["w"]), (2, 3))
    with pytest.raises(InputError, match="'w': w is read by the first equation"):
        pipeline(model, [("batch", 3)], stages=2, microbatch=2, boundaries=["w"])


def test_an_equation_that_holds_nearly_all_is_reported():
    def fn(p, x):
        return jax.lax.while_loop(lambda x: x.sum() < 0, lambda x: x @ p["w"] @ p["w"], x) + 1

    pipe = pipeline(small(fn, (2, 3)), [("n", 3)], stages=2, microbatch=2, check=False)
    assert pipe.report().balance > 1.8
    assert "unbalanced: stage 0" in str(pipe.report())


def test_models_that_cannot_be_cut():
    from types import SimpleNamespace

    from jaxinfer.core.multi import MultiProgram

    sampler = small(lambda p, x: x, (2, 3))
    random = sampler.replace(program=SimpleNamespace(random=True))
    with pytest.raises(InputError, match="samples random numbers"):
        pipeline(random, stages=1, microbatch=1)
    part = sampler.program
    several = sampler.replace(program=MultiProgram({"prefill": part, "decode": part}))
    with pytest.raises(InputError, match=r"several functions.*model\.components"):
        pipeline(several, stages=1, microbatch=1)


def test_inputs_of_another_size_are_refused(pipe):
    ids, mask = data(4)
    with pytest.raises(InputError, match=r"x0: int32\[batch, 3\]: got shape \[4, 2\]"):
        pipe(ids[:, :2], mask)
    with pytest.raises(InputError, match=r"x0: batch is 4\n.*x1: batch is 3"):
        pipe(ids, mask[:3])
    with pytest.raises(InputTypeError, match=r"x1.*got int32"):
        pipe(ids, mask.astype(np.int32))
    with pytest.raises(InputError, match="missing"):
        pipe(ids)
    with pytest.raises(InputError, match="no rows has no schedule"):
        pipe.schedule(*data(0))
    with pytest.raises(InputError, match="repeats must be"):
        pipe.schedule(*data(2), repeats=0)


def test_schedule_of_a_run(pipe):
    schedule = pipe.schedule(*data(7), repeats=1)
    assert (schedule.stages, schedule.microbatches) == (4, 4)
    assert len(schedule.cells) == 16
    assert len(schedule.alone) == 4
    assert schedule.wall > 0
    ends = {(cell.stage, cell.microbatch): cell.end for cell in schedule.cells}
    for cell in schedule.cells:  # a cell begins after the stage before it and its own last one
        assert cell.end > cell.start
        if cell.microbatch:
            assert cell.start >= ends[cell.stage, cell.microbatch - 1]
    assert "stage 3 (cpu:3)" in schedule.text()
    assert pipe.schedule(repeats=1).microbatches == 8
