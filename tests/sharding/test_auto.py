"""Automatic partitioning: what each strategy does to programs whose right partition is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

import jaxinfer as ji
from jaxinfer.core.errors import InputError
from jaxinfer.core.hlo import collectives
from jaxinfer.sharding import make_mesh, partition
from tests.sharding import functions as programs

# Sums of at most 64 float32 products and of 8 shards, added in another order, layer norms after
# them: measured 2e-7 to 9e-7 of the largest value.
TOLERANCE = 5e-6


def check(model, mesh, strategy):
    """Return the plan, and count and bytes of its collectives by kind; the numbers are right."""
    plan = partition(model, mesh, strategy)
    error, compiled = programs.ran(model, plan, *example(model))
    assert error <= TOLERANCE
    return plan, {e.kind: (e.count, e.bytes) for e in collectives(compiled.as_text())}


def example(model):
    (spec,) = model.inputs
    rng = np.random.default_rng(5)
    if spec.dtype == "int32":
        return (jnp.asarray(rng.integers(0, 48, spec.shape), jnp.int32),)
    return (jnp.asarray(rng.normal(size=spec.shape), jnp.float32),)


def why(plan):
    return {row.path: row.why for row in plan.rows}


def test_columns_then_rows():
    model = programs.mlp()
    plan, found = check(model, "model=8", "tensor")
    assert plan.params == {"up": P(None, "model"), "bias": P("model"), "down": P("model")}
    assert plan.inputs == (P(),)
    assert found == {"all-reduce": (1, 8 * 24 * 4)}
    reasons = why(plan)
    assert reasons["up"] == "columns: makes axis 1, 40 units that down sums over"
    assert reasons["down"].startswith("rows: sums over axis 0, 40 units made by up, then all-red")
    assert reasons["bias"] == "follows up along axis 0, 40 units"
    assert plan.bytes_per_device == plan.bytes // 8


def test_the_rows_of_the_batch():
    model = programs.mlp()
    plan, found = check(model, "data=8", "data")
    assert plan.inputs == (P("data"),)
    assert all(spec == P() for spec in plan.params.values())
    assert found == {}


def test_megatron_two_all_reduces_a_layer():
    layers = 2
    model = programs.transformer(layers)
    plan, found = check(model, "model=4", "tensor")
    for i in range(layers):
        specs = {name: plan.params[f"l{i}.{name}"] for name in programs.shapes_of_block(1, 1)}
        columns = dict.fromkeys(("q", "k", "v", "gate", "up"), P(None, "model"))
        rows = dict.fromkeys(("o", "down"), P("model"))
        assert specs == {**columns, **rows, "norm1": P(), "norm2": P()}
    assert plan.params["embed"] == P(None, "model")
    assert plan.params["head"] == P(None, "model")
    # two a layer, each of f32[8, 16, 32], and the table, which is less than the rows picked
    stream = 8 * 16 * 32 * 4
    assert found == {
        "all-reduce": (2 * layers, 2 * layers * stream),
        "all-gather": (1, 48 * 32 * 4),
    }
    assert "8 heads that l0.o sums over" in why(plan)["l0.q"]


def test_layers_of_a_scan_are_never_split():
    model = programs.stack(layers=8)
    plan, found = check(model, "model=8", "tensor")
    assert plan.params["q"] == P(None, None, "model")
    assert plan.params["down"] == P(None, "model")
    assert found == {"all-reduce": (16, 16 * 8 * 16 * 32 * 4)}
    plan = partition(model, "data=8", "fsdp")
    assert plan.params["q"] == P(None, "data")


def test_heads_that_do_not_divide():
    model = programs.transformer(layers=1, d=48, n=6, rows=1, seq=8)
    plan, _ = check(model, "model=4", "tensor")
    assert "6 heads do not divide over model=4" in why(plan)["l0.q"]
    assert plan.params["l0.q"] == P("model")
    assert plan.params["l0.up"] == P(None, "model")
    assert plan.bytes_per_device <= 1.1 * plan.bytes / 4


def test_little_is_reduced_and_much_is_gathered():
    """A weight that no dimension splits: by what is less, its results or itself."""

    def fn(p, x):
        return (x @ p).reshape(x.shape[0], 6, 8)[:, ::-1] * jnp.arange(6.0)[:, None]

    def plan_of(rows):
        weight = programs.random({"p": (64, 48)})["p"]
        model = ji.from_function(fn, weight, (programs.batch(rows, 64),))
        return check(model, "model=4", "tensor")

    plan, found = plan_of(4)
    assert why(plan)["value"].endswith("sums over axis 0 of 64, then all-reduce")
    assert found["all-reduce"] == (1, 4 * 48 * 4)
    plan, found = plan_of(4096)
    assert plan.gathered == {"value": ("model",)}
    assert found == {"all-gather": (1, 64 * 48 * 4)}


def test_a_table_that_does_not_divide_stays_where_it_is():
    model = programs.transformer(layers=1, vocab=509, rows=2, seq=4)
    plan, found = check(model, "data=2,model=4", "data+tensor")
    assert plan.params["embed"] == P(None, "model")
    assert plan.closed == ("embed", "head")
    assert "509 rows do not divide over model=4" in why(plan)["embed"]
    assert found["all-gather"] == (1, 4 * 32 * 4)  # the rows that were picked, once
    assert found["all-reduce"][0] == 3  # two a layer, and the logits


@pytest.mark.parametrize("ragged", [False, True])
def test_experts(ragged):
    model = programs.experts(ragged=ragged)
    plan, _ = check(model, "expert=4", "expert")
    assert plan.params["w1"] == plan.params["w2"] == P("expert")
    assert why(plan)["w1"] == "experts: axis 0, 4 experts"
    plan, _ = check(model, "expert=4,model=2", "expert+tensor")
    assert plan.params["w1"] == P("expert", None, "model")
    assert plan.params["w2"] == P("expert", "model")


def test_experts_that_do_not_divide_are_reported():
    plan = partition(programs.experts(count=3), "expert=4", "expert")
    assert all(spec == P() for spec in plan.params.values())
    assert "3 experts of w1 do not divide over expert=4" in plan.notes[0]
    assert partition(programs.mlp(), "expert=4", "expert").notes == (
        "expert: the program has no experts",
    )


def test_channels():
    model = programs.convnet()
    plan, found = check(model, "model=4", "tensor")
    assert plan.params == {"conv1": P("model"), "conv2": P("model"), "head": P("model")}
    assert "no dimension of it is split: axis 0 of 8, gathered for use" in why(plan)["conv1"]
    assert found["all-reduce"] == (1, 8 * 5 * 4)


def test_fsdp_gathers_the_weights_and_reduces_nothing():
    model = programs.transformer(layers=1, vocab=64)
    plan, found = check(model, "data=8", "fsdp")
    assert plan.inputs == (P("data"),)
    split = {path: spec for path, spec in plan.params.items() if spec != P()}
    assert split["l0.q"] == P("data")
    assert split["l0.up"] == P(None, "data")  # its largest axis
    assert plan.bytes_per_device <= 1.1 * plan.bytes / 8
    assert set(found) <= {"all-gather", "all-to-all"}
    weights = sum(row.bytes for row in plan.rows if row.path in split and row.path != "embed")
    picked = 8 * 16 * 32 * 4 + 8 * 16 * 4  # rows of the embedding, and the ids
    assert found["all-gather"][1] <= weights + picked
    assert found["all-gather"][1] >= weights


def test_fsdp_gathers_one_layer_of_a_scan_at_a_time():
    model = programs.stack(layers=2)
    _, found = check(model, "data=8", "fsdp")
    layer = (4 * 32 * 32 + 3 * 32 * 64) * 4
    norms = 2 * 32 * 4
    assert set(found) == {"all-gather"}
    assert 2 * layer <= found["all-gather"][1] <= 2 * (layer + norms)


def test_the_sequence():
    model = programs.transformer(layers=1)
    plan, _ = check(model, "seq=4", "sequence")
    assert plan.inputs == (P(None, "seq"),)
    assert why(plan)["inputs.x"] == "axis 1 is the sequence"


def test_three_axes():
    model = programs.transformer(layers=1)
    plan, _ = check(model, "data=2,fsdp=2,model=2", "data+fsdp+tensor")
    assert plan.inputs == (P(("data", "fsdp")),)
    assert plan.params["l0.q"] == P("fsdp", "model")
    assert plan.bytes_per_device <= 1.1 * plan.bytes / 4


def test_names_that_say_nothing_are_taken_in_order():
    model = programs.transformer(layers=1)
    by_order = partition(model, "a=2,b=4", "data+tensor")
    assert by_order.inputs == (P("a"),)
    assert by_order.params["l0.q"] == P(None, "b")
    by_name = partition(model, "a=2,b=4", "data(b)+tensor(a)")
    assert by_name.inputs == (P("b"),)
    assert by_name.params["l0.q"] == P(None, "a")


def test_a_weight_with_one_dimension_twice():
    """A recurrence: what is made is what is summed over."""

    def fn(p, x):
        return jax.lax.fori_loop(0, 3, lambda _, h: jnp.tanh(h @ p), x)

    model = ji.from_function(fn, programs.random({"p": (16, 16)})["p"], (programs.batch(8, 16),))
    check(model, "model=4", "tensor")


def test_a_batch_that_does_not_divide_is_said():
    model = ji.from_function(lambda p, x: x @ p, jnp.eye(4), (jnp.ones((3, 4)),))
    plan = partition(model, "data=2", "data")
    assert plan.inputs == (P(),)
    assert plan.notes == (
        "data: inputs.x: axis 0 of size 3 does not divide over data=2: whole at these sizes",
    )


@pytest.mark.parametrize(
    ("mesh", "strategy", "text"),
    [
        ("data=2", "tensro", "no strategy ['tensro']; known: auto, logical, data, fsdp"),
        ("data=2", "", "no strategy []"),
        ("data=2", "data+tensor", "no mesh axis for tensor; the mesh has data=2. Name one 'model'"),
        ("data=2", "sequence", "Name one 'seq'"),
        ("data=2", "tensor(model)", "no mesh axis model; the mesh has data=2"),
    ],
)
def test_strategies_that_are_none(mesh, strategy, text):
    with pytest.raises(InputError) as caught:
        partition(programs.mlp(), mesh, strategy)
    assert text in str(caught.value)


def test_sizes_and_inputs_that_do_not_fit():
    model = programs.mlp()
    with pytest.raises(InputError, match=r"no such size \['batch'\]; the model has none"):
        partition(model, "data=2", "data", sizes={"batch": 8})
    with pytest.raises(InputError, match="required 1 arrays or shapes, got 2"):
        partition(model, "data=2", "data", inputs=[jnp.ones((2, 24))] * 2)


def test_inputs_at_other_sizes():
    struct = jax.ShapeDtypeStruct((6, 24), jnp.float32)
    plan = partition(programs.mlp(), "data=2", "data", inputs=[struct])
    assert plan.inputs == (P("data"),)
    assert plan.rows[-1].shape == (6, 24)


def test_logical_axes_of_a_family():
    """[in, out] and [out, in] weights get what their sites say, not what their order says."""

    def fn(p, x):
        q = x @ p["encoder.layer.0.attention.self.query.weight"]
        k = x @ p["encoder.layer.0.attention.self.key.weight"].T
        return jnp.concatenate([q, k], -1)

    names = ("query", "key")
    params = {f"encoder.layer.0.attention.self.{n}.weight": jnp.ones((8, 8)) for n in names}
    model = ji.from_function(fn, params, (jnp.ones((2, 8)),))
    plan = partition(model, "model=4", "logical")
    assert list(plan.params.values()) == [P(None, "model"), P("model")]
    with pytest.raises(InputError, match="no parameter has a name of the families bert, vit"):
        partition(programs.mlp(), "model=4", "logical")


def test_a_mesh_may_be_made_before():
    mesh = make_mesh("model=4")
    assert partition(programs.mlp(), mesh, "tensor").mesh is mesh


def test_a_tied_table_is_split_by_rows():
    """Picked from at the start, multiplied with at the end: the logits stay split."""

    def fn(p, ids):
        x = jnp.tanh(p["embed"][ids] @ p["w"])
        return x @ p["embed"].T

    params = programs.random({"embed": (48, 16), "w": (16, 16)})
    ids = jnp.arange(24, dtype=jnp.int32).reshape(4, 6)
    model = ji.from_function(fn, params, (ids,))
    plan = partition(model, "model=4", "tensor")
    assert plan.params["embed"] == P("model")
    assert programs.ran(model, plan, ids)[0] <= TOLERANCE
