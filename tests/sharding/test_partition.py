"""partition: the search, its candidates, and plans as data."""

import dataclasses
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import jaxinfer as ji
from jaxinfer.core.errors import InputError
from jaxinfer.core.hlo import Collective
from jaxinfer.core.multi import MultiProgram
from jaxinfer.core.parts import split
from jaxinfer.numerics.masks import Masked
from jaxinfer.sharding import Score, ShardingPlan, make_mesh, partition
from jaxinfer.sharding._score import available_bytes
from jaxinfer.sharding.partition import CANDIDATES, score
from tests.sharding import functions

TOLERANCE = 5e-6  # as in test_auto


@pytest.fixture(scope="module")
def plan():
    """Of a large MLP at few rows: to split its weights costs less than to read them all."""
    return partition(functions.mlp(64, 256), "data=2,model=4")


def test_every_candidate_is_kept_with_its_numbers(plan):
    assert [each.strategy for each in plan.candidates] == ["data+tensor", "fsdp(data)+tensor"]
    assert plan.strategy == plan.candidates[0].strategy
    best = plan.candidates[0]
    assert best.compiled
    assert best.collectives == (Collective("all-reduce", 4 * 64 * 4, 1),)
    assert best.wire_bytes == 2 * 3 * 4 * 64
    assert best.param_bytes == plan.bytes_per_device == plan.bytes // 4
    assert best.argument_bytes == best.param_bytes + 4 * 64 * 4
    assert best.available > 0
    costs = [each.cost for each in plan.candidates]
    assert costs == sorted(costs)


def test_the_cost_is_the_stated_formula():
    made = Score(
        *("s", 100, 1000, 10, 30, 7),
        flops=256.0,
        compiled=True,
    )
    assert made.memory == 1040
    assert made.cost == 1040 + 30 + 8 * 7 + 256 / 128
    assert Score.from_json(json.loads(json.dumps(made.to_json()))) == made


def test_what_fits_comes_first():
    small = Score("small", argument_bytes=10, wire_bytes=1000, available=50)
    large = Score("large", argument_bytes=100, available=50)
    larger = Score("larger", argument_bytes=200, wire_bytes=0, available=50)
    wrong = Score("wrong", argument_bytes=1, available=50, problem="does not compile")
    found = sorted([wrong, larger, large, small], key=lambda each: each.key)
    assert [each.strategy for each in found] == ["small", "large", "larger", "wrong"]


def test_memory_decides_before_cost():
    model = functions.mlp(64, 256)
    rows = [jax.ShapeDtypeStruct((64, 64), jnp.float32)]  # many: to reduce them costs the most
    free = partition(model, "x=4", inputs=rows)
    assert free.strategy == "data(x)"
    best = free.candidates[0]
    tight = partition(model, "x=4", inputs=rows, memory=best.memory - 1)
    assert not next(c for c in tight.candidates if c.strategy == best.strategy).fits
    fitting = [c for c in free.candidates if c.compiled and c.memory < best.memory]
    assert tight.strategy == min(fitting, key=lambda c: c.cost).strategy != best.strategy
    nothing = partition(model, "x=4", inputs=rows, memory=1_000)
    compiled = [c for c in nothing.candidates if c.compiled]
    assert nothing.candidates[0].memory == min(c.memory for c in compiled)
    assert partition(model, "x=4", inputs=rows, memory=1_000).candidates == nothing.candidates


def test_without_compiling_bytes_decide():
    found = partition(functions.mlp(64, 256), "x=4", compile=False)
    assert not any(each.compiled for each in found.candidates)
    assert found.bytes_per_device == min(each.param_bytes for each in found.candidates)


def test_at_most_so_many_are_compiled(monkeypatch):
    monkeypatch.setattr(sys.modules["jaxinfer.sharding.partition"], "CANDIDATES", 2)
    found = partition(functions.mlp(), "a=2,b=2")
    compiled = [each for each in found.candidates if each.compiled]
    assert len(compiled) == 2
    assert "data(a,b)" in [each.strategy for each in compiled]
    assert any("not compiled: 2 others" in each.problem for each in found.candidates)
    assert CANDIDATES == 8


def test_a_candidate_that_does_not_compile_is_out(monkeypatch):
    from jaxinfer.sharding import _score

    compiled = _score.compiled

    def failing(model, inputs, shardings, *rest):
        if any(sharding.spec for sharding in shardings.values()):
            raise RuntimeError("no such layout\nmore")
        return compiled(model, inputs, shardings, *rest)

    monkeypatch.setattr(_score, "compiled", failing)
    found = partition(functions.mlp(), "x=4")
    assert found.strategy == "data(x)"
    problems = {each.strategy: each.problem for each in found.candidates}
    assert problems["tensor(x)"] == "does not compile: RuntimeError: no such layout"
    monkeypatch.setattr(_score, "compiled", lambda *_: 1 / 0)
    with pytest.raises(InputError, match=r"no candidate compiles:\n  .*ZeroDivisionError"):
        partition(functions.mlp(), "x=4")


def test_one_device():
    found = partition(functions.mlp(), "x=1")
    assert found.strategy == "one device"
    assert all(spec == P() for spec in found.params.values())


def test_symbolic_sizes_are_those_of_the_devices():
    from tests.cli import fakes

    found = partition(fakes.model(), "data=3", "data")
    assert found.rows[-1].shape[0] == 3  # fakes: 1 <= batch <= 9
    assert partition(fakes.model(), "data=3", "data", sizes={"batch": 6}).rows[-1].shape[0] == 6


def test_a_plan_is_data(plan):
    data = json.loads(json.dumps(plan.to_json()))
    again = ShardingPlan.from_json(data)
    assert again == dataclasses.replace(plan, mesh=again.mesh)
    assert dict(again.mesh.shape) == {"data": 2, "model": 4}
    assert ShardingPlan.from_json(data, plan.mesh) == plan
    with pytest.raises(InputError, match=r"the plan is for a mesh .*, got {'x': 8}"):
        ShardingPlan.from_json(data, {"x": 8})
    for wrong in ({}, {**data, "rows": [{}]}, {**data, "axes": 3}, {**data, "params": None}):
        with pytest.raises(InputError, match="no sharding plan"):
            ShardingPlan.from_json(wrong)


def test_the_table_says_all(plan):
    text = plan.table()
    assert text.splitlines()[0] == (
        f"data+tensor on data=2, model=4: {plan.bytes // 4:,} of {plan.bytes:,} bytes of "
        "parameters on each device"
    )
    for part in ("up", "[64, 256]", "(-, model)", f"{64 * 256:,}", "columns: makes axis 1"):
        assert part in text
    assert "note: " not in text
    noted = dataclasses.replace(plan, notes=("something",))
    assert noted.table().endswith("note: something")


def test_placed_parameters_lie_as_planned(plan):
    placed = plan.place(functions.mlp(64, 256))
    up = placed.params["up"]
    assert up.sharding == NamedSharding(plan.mesh, P(None, "model"))
    assert up.addressable_shards[0].data.shape == (64, 64)
    on_one = sum(each.addressable_shards[0].data.nbytes for each in placed.params.values())
    assert on_one == plan.bytes_per_device


def test_inputs_of_other_sizes_stay_whole(plan):
    (own,) = plan.input_shardings()
    assert own.spec == P("data")
    (odd,) = plan.input_shardings([jnp.ones((3, 64))])
    assert odd.spec == P()


def test_a_plan_for_other_sizes_and_parameters(plan):
    struct = jax.ShapeDtypeStruct((16, 64), jnp.float32)
    again = partition(functions.mlp(64, 256), plan.mesh, plan, inputs=[struct])
    assert (again.params, again.inputs) == (plan.params, plan.inputs)
    assert again.rows[-1].shape == (16, 64)
    with pytest.raises(InputError, match=r"up \[64, 6\]: axis 1 of size 6 does not divide"):
        partition(functions.mlp(64, 6), plan.mesh, plan)
    with pytest.raises(InputError, match=r"the plan does not fit .*\n  up \[64, 6\]"):
        plan.param_shardings(functions.mlp(64, 6).params)


def test_score_of_a_plan(plan):
    found = score(functions.mlp(64, 256), plan)
    assert found == plan.candidates[0]


def test_memory_of_a_device():
    assert available_bytes(make_mesh("x=8")) > 2**20


def test_quantized_and_masked_leaves_follow_their_weight():
    model = functions.transformer(layers=1, d=64, f=128, vocab=64)
    small = ji.quantize("W8A16")(model)
    masked = small.params["head"]
    weight = model.params["l0.o"]
    small = small.replace(params={**small.params, "l0.o": Masked(weight, weight > 0)})
    assert masked is not None
    found = partition(small, "model=4", "tensor")
    assert found.params["l0.q"] == P(None, "model")
    shardings = found.param_shardings(small.params)
    assert shardings["l0.q.qvalue"].spec == P(None, "model")
    assert shardings["l0.q.scale"].spec == P(None, "model")  # [1, d]: one for each output
    assert shardings["l0.down.qvalue"].spec == P("model")
    assert shardings["l0.down.scale"].spec == P()
    assert shardings["l0.o.weight"].spec == shardings["l0.o.mask"].spec == P("model")
    assert list(shardings) == list(split(small.params)[0])
    ids = jnp.asarray(np.random.default_rng(3).integers(0, 64, (8, 16)), jnp.int32)
    error, compiled = functions.ran(small, found, ids)
    assert error <= TOLERANCE
    assert "all-reduce" in compiled.as_text()


def test_tiles_that_do_not_divide():
    """Four scales along 256 rows cannot be split over 8 devices: an error, or another axis."""
    model = ji.quantize("W4A16")(functions.mlp(64, 256))
    with pytest.raises(InputError) as caught:
        partition(model, "model=8", {"down": ("model",)})
    assert "its part down.scale [4, 64]: axis 0 of size 4 does not divide over model=8" in str(
        caught.value
    )
    found = partition(model, "model=8", "tensor")
    assert found.params["down"] == P(None, "model")
    assert functions.ran(model, found, functions.batch(8, 64))[0] <= TOLERANCE


def test_components_share_a_plan():
    """Two functions over one set of parameters: one plan, then each function's inputs."""
    first, second = functions.mlp(), functions.mlp()
    program = MultiProgram({"prefill": first.program, "decode": second.program})
    model = first.replace(program=program)
    found = partition(model, "data=2,model=4", "data+tensor")
    assert found.params["up"] == P(None, "model")
    assert found.inputs == ()
    assert [row.path for row in found.rows][-2:] == ["inputs.prefill.x", "inputs.decode.x"]
    own = partition(model.components["decode"], found.mesh, found)
    assert own.params == found.params
    assert own.inputs == (P("data"),)
    with pytest.raises(InputError, match="components prefill, decode, each with its own"):
        partition(model, "data=2", "data", inputs=[jnp.ones((8, 24))])


def test_any_function_of_the_parameters_can_be_pinned():
    """One that closes over a traced value, as a bucket's does over its real sizes."""
    model = functions.mlp(64, 256)
    found = partition(model, "data=8", "fsdp")
    assert set(found.gathered) == {"up", "bias", "down"}

    def scaled(params, x, size):
        run = found.pin(lambda p, leaves, key=None: model._run()(p, leaves) * size)
        return run(params, [x])

    x = functions.batch(8, 64)
    params = found.place(model).params
    compiled = jax.jit(scaled).lower(params, x, 3.0).compile()
    np.testing.assert_allclose(compiled(params, x, 3.0), 3 * model(x), rtol=1e-5, atol=1e-5)
    assert "all-gather" in compiled.as_text()
    plain = dataclasses.replace(found, gathered={}, closed=())
    run = model._run()
    assert plain.pin(run) is run


def test_a_cache_is_split_along_its_heads():
    """An input that the parameters' dimensions run along, by strategy, by rules, by a plan."""

    def fn(p, x, cache):
        q = (x @ p["q"]).reshape(x.shape[0], 4, 2)
        new = jnp.einsum("bnh,bnsh->bns", q, cache)
        return jnp.einsum("bns,bnsh->bnh", new, cache).reshape(x.shape[0], 8) @ p["o"]

    params = functions.random({"q": (16, 8), "o": (8, 16)})
    inputs = (functions.batch(2, 16), functions.batch(2, 4, 5, 2))
    model = ji.from_function(fn, params, inputs)
    found = partition(model, "data=2,model=4", "data+tensor")
    assert found.inputs == (P("data"), P("data", "model"))
    assert found.rows[-1].why == "axis 1 is the heads of the parameters; axis 0 is the batch"
    assert functions.ran(model, found, *inputs)[0] <= TOLERANCE
    rules = {"q": (None, "model"), "o": ("model",)}
    assert partition(model, "data=2,model=4", rules).inputs == found.inputs
    bare = dataclasses.replace(found, inputs=())
    assert partition(model, found.mesh, bare).inputs == found.inputs


@pytest.mark.slow
def test_a_converted_bert():
    """Two layers, converted from transformers: 8 heads over 4, the batch over 2."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=96,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=8,
        intermediate_size=256,
        max_position_embeddings=64,
    )
    kwargs = {"input_ids": torch.randint(0, 96, (2, 16))}
    module = transformers.BertModel(config).eval()
    model = ji.from_torch(module, (), kwargs, {"input_ids": {0: "batch", 1: "seq"}})
    found = partition(model, "data=2,model=4", "data+tensor", sizes={"batch": 8, "seq": 16})
    layer = "encoder.layer.1."
    specs = {path.removeprefix(layer): s for path, s in found.params.items() if layer in path}
    column, row = P(None, "model"), P("model")
    assert specs["attention.self.query.weight"] == specs["attention.self.value.weight"] == column
    assert specs["attention.output.dense.weight"] == specs["output.dense.weight"] == row
    assert specs["intermediate.dense.weight"] == column
    assert specs["intermediate.dense.bias"] == row
    assert specs["output.LayerNorm.weight"] == P()
    assert partition(model, found.mesh, "logical").params.items() >= {
        (layer + name, spec) for name, spec in specs.items() if "dense.bias" not in name
    }
    ids = jnp.asarray(np.random.default_rng(4).integers(0, 96, (8, 16)), jnp.int32)
    assert functions.ran(model, found, ids)[0] <= TOLERANCE


def patches():
    """x[b, 3, 8, 8] -> patches of 2 x 2, as a vision transformer starts: transpose, convolve."""

    def fn(p, x):
        numbers = ("NHWC", "HWIO", "NHWC")
        x = x.transpose(0, 2, 3, 1)
        return jax.lax.conv_general_dilated(x, p["w"], (2, 2), "VALID", dimension_numbers=numbers)

    w = np.random.default_rng(0).standard_normal((2, 2, 3, 8)).astype(np.float32)
    return ji.from_function(fn, {"w": jnp.asarray(w)}, (jnp.ones((4, 3, 8, 8)),))


@pytest.mark.parametrize("strategy", ["tensor", "fsdp", "data+tensor", "auto"])
def test_the_window_of_a_convolution_is_never_split(strategy):
    """XLA's partitioner would sum over the devices of the other axis too."""
    model, mesh = patches(), make_mesh({"data": 2, "model": 2})
    plan = partition(model, mesh, strategy)
    spec = plan.params["w"]
    assert not any(spec[:2])
    x = np.random.default_rng(1).standard_normal((4, 3, 8, 8)).astype(np.float32)
    shardings = (plan.param_shardings(model.params), plan.input_shardings()[0])
    run = plan.run(model)
    got = jax.jit(lambda p, x: run(p, [x]), in_shardings=shardings)(model.params, x)
    np.testing.assert_allclose(got, model(x), atol=1e-5)  # float32 sums of 12 terms


def test_rules_that_split_a_window_are_refused():
    mesh = make_mesh({"data": 2, "model": 2})
    with pytest.raises(InputError, match=r"(?s)window of a convolution.*w: axis 1 of 2, spec"):
        partition(patches(), mesh, {"w": P(None, "model")})
