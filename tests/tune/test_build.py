"""From a candidate to a running model: what each parameter becomes, what is refused, figures."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxinfer as ji
from jaxinfer.core.errors import InputError
from jaxinfer.core.leaves import leaves
from jaxinfer.numerics.act_qtensor import ActQTensor
from jaxinfer.numerics.qtensor import QTensor
from jaxinfer.tune._build_plan import parts_of
from jaxinfer.tune.build import assemble, blocked, build, transformed
from jaxinfer.tune.candidate import LEVELS, Candidate
from jaxinfer.tune.data import Dataset, read
from jaxinfer.tune.groups import Group
from tests.tune.recipes import D, F, batches, everything, mlp, mlp_model, normal, weights


@pytest.fixture(scope="module", autouse=True)
def quick_to_compile():
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


MODEL, GROUPS, DATA = everything()
X = batches()[0][0]


def kinds(model):
    """Return the dtype of every leaf; of a quantized one also the name of its type."""
    found = {}
    for path, leaf in leaves(model.params).items():
        weight = getattr(leaf, "weight", leaf)
        found[path] = leaf.dtype.name if isinstance(leaf, jax.Array) else type(leaf).__name__
        if isinstance(weight, QTensor):
            found[path] = f"{type(leaf).__name__} {weight.qvalue.dtype.name} {leaf.dtype.name}"
    return found


def changed(candidate, data: Dataset | None = DATA):
    return transformed(MODEL, candidate, GROUPS, data)


def test_nothing_asked_for_is_the_same_model():
    assert changed(Candidate()) is MODEL
    assert changed(Candidate(batch=2, donate=("x",), options=(("a", 1),))) is MODEL


def test_a_level_has_all_of_it_in_its_parts():
    assert {level: parts_of(level) for level in LEVELS if "+" in level or level == "f16"} == {
        "f16": ("f16", ""),
        **{f"{c}+{q}": (c, q) for c in ("bf16", "f16") for q in
           ("W8A16", "W8A8", "W8A8-static", "FP8", "W4A16")},
    }  # fmt: skip


def test_a_level_for_all():
    assert set(kinds(changed(Candidate(precision="bf16"))).values()) == {"bfloat16"}
    got = kinds(changed(Candidate(precision="W8A16")))
    assert got["a.w"] == got["head.w"] == "QTensor int8 float32"
    assert got["a.b"] == "float32"
    got = kinds(changed(Candidate(precision="f16+W8A8")))
    assert got["a.w"] == "ActQTensor int8 float16"
    assert got["a.b"] == "float16"


def test_groups_have_levels_of_their_own():
    assert [group.name for group in GROUPS] == ["a", "b", "head"]
    got = kinds(changed(Candidate(precision="bf16", groups=(("b", "f32"),))))
    assert got == {"a.w": "bfloat16", "a.b": "bfloat16", "b.w": "float32", "b.b": "float32",
                   "head.w": "bfloat16"}  # fmt: skip
    mixed = Candidate(groups=(("a", "bf16+W8A16"), ("b", "W8A8-static"), ("head", "f16")))
    got = kinds(changed(mixed))
    assert got == {"a.w": "QTensor int8 bfloat16", "a.b": "bfloat16", "head.w": "float16",
                   "b.w": "ActQTensor int8 float32", "b.b": "float32"}  # fmt: skip
    made = changed(mixed)
    assert made.params["b"]["w"].scale is not None  # of the activations: calibrated
    assert changed(Candidate(precision="W8A8")).params["b"]["w"].scale is None
    np.testing.assert_allclose(made(X), MODEL(X), atol=0.05 * np.abs(MODEL(X)).max())


def test_a_group_in_float32_computes_in_float32():
    dots = [
        eqn
        for eqn in jax.make_jaxpr(
            changed(Candidate(precision="bf16", groups=(("b", "f32"),))).apply
        )(changed(Candidate(precision="bf16", groups=(("b", "f32"),))).params, X).eqns
        if eqn.primitive.name == "dot_general"
    ]
    assert [eqn.invars[1].aval.dtype.name for eqn in dots] == ["bfloat16", "float32", "bfloat16"]


def parallel(p, x):
    q, k = x @ p["attn.q.weight"] + p["attn.q.bias"], x @ p["attn.k.weight"] + p["attn.k.bias"]
    return (q * k) @ p["out(1).weight"]


def test_what_folding_has_made_has_the_level_of_its_group():
    params = {"attn.q.weight": normal(D, F), "attn.k.weight": normal(D, F, seed=1),
              "attn.q.bias": normal(F, seed=2), "attn.k.bias": normal(F, seed=3),
              "out(1).weight": normal(F, 3, seed=4)}  # fmt: skip
    model = ji.from_function(parallel, params, (X,))
    groups = [
        Group("attn", ("attn.q.weight", "attn.k.weight"), 1),
        Group("out(1)", ("out(1).weight",), 1),
    ]
    candidate = Candidate(fold=True, precision="W8A16", groups=(("attn", "bf16"),))
    made = transformed(model, candidate, groups)
    got = kinds(made)
    assert got["out(1).weight"] == "QTensor int8 float32"  # its name is no regular expression
    merged = {path: kind for path, kind in got.items() if "&" in path}
    assert len(merged) == 2
    assert set(merged.values()) == {"bfloat16"}
    np.testing.assert_allclose(made(X), model(X), atol=0.05 * np.abs(model(X)).max())


def test_pruned_weights_have_their_zeros_written():
    made = changed(Candidate(prune=(("pattern", "2:4"),)))
    for path in ("a.w", "b.w"):
        leaf = leaves(made.params)[path]
        assert isinstance(leaf, jax.Array)
        assert float((leaf == 0).mean()) == 0.5
    with pytest.raises(InputError, match=r"prune: .*odd"):
        changed(Candidate(prune=(("odd", 1),)))


@pytest.mark.slow
def test_pruned_weights_are_compressed_or_quantized():
    small = changed(Candidate(prune=(("compress", True), ("pattern", "2:4"))))
    assert type(small.params["b"]["w"]).__name__ == "Compressed"
    both = changed(Candidate(prune=(("sparsity", 0.5),), precision="W8A16"))
    assert float((both.params["b"]["w"].materialize() == 0).mean()) >= 0.5


@pytest.mark.slow
def test_all_transforms_in_their_order():
    everything_on = Candidate(
        fold=True, precision="bf16+W8A16", prune=(("sparsity", 0.0),), layout="NHWC"
    )
    made = changed(everything_on)
    assert made.provenance["stages"] == ["fold", "cast", "prune", "quantize", "arrange"]
    assert "arrange: changes nothing" in blocked(made, MODEL)
    np.testing.assert_allclose(made(X), MODEL(X), atol=0.05 * np.abs(MODEL(X)).max())


IMPOSSIBLE = {
    "int8: OpenVINO's own": Candidate(precision="int8"),
    "int8 of a group alone": Candidate(backend="openvino", groups=(("a", "int8"),)),
    "int8 with groups in W8A16": Candidate(
        backend="openvino", precision="int8", groups=(("a", "W8A16"),)
    ),
    "does not run W8A8": Candidate(backend="openvino", precision="W8A8"),
    "does not run bf16+FP8": Candidate(backend="openvino", precision="bf16+FP8"),
    "one device, got mesh": Candidate(backend="openvino", mesh="data=2"),
    "donates no memory": Candidate(backend="openvino", donate=("x",)),
    "is of NVIDIA GPUs": Candidate(backend="openvino", attention="cudnn"),
    "no such group: odd; there are a, b, head": Candidate(groups=(("odd", "bf16"),)),
    "no such precision 'W2A2'": Candidate(precision="W2A2"),
}


@pytest.mark.parametrize("word", IMPOSSIBLE)
def test_what_cannot_be_made_is_refused_before_any_work(word):
    with pytest.raises(InputError) as caught:
        changed(IMPOSSIBLE[word])
    assert word in str(caught.value)


def test_all_that_is_impossible_is_said_at_once():
    worst = Candidate(precision="int8", groups=(("a", "W8A8-static"), ("odd", "f32")))
    with pytest.raises(InputError) as caught:
        transformed(MODEL, worst, GROUPS, None)
    for word in ("OpenVINO's own", "with groups in", "needs calibration data", "no such group"):
        assert word in str(caught.value)


def test_calibrated_levels_need_data():
    for data in (None, DATA.take(0)):
        with pytest.raises(InputError, match="W8A8-static: needs calibration data, there are none"):
            changed(Candidate(precision="W8A8-static"), data=data)


# Building.


def test_a_built_candidate_has_its_figures():
    made = build(MODEL, Candidate(precision="W8A16"), GROUPS, DATA, None)
    report = made.executable.report()
    assert made.weight_bytes == made.model.nbytes < MODEL.nbytes / 2
    assert made.peak_bytes == report.buckets[0].device_bytes > made.weight_bytes
    assert made.compile_s > 0
    assert made.first_call_ms > 0
    assert made.second_call_ms > 0
    assert made.shapes == {"x": (4, D)}
    assert made.notes == ()
    assert report.buckets[0].check == {"result": "not checked: check=False"}
    (got,) = made.executable.flat([X])
    np.testing.assert_allclose(got, made.model(X), rtol=1e-5, atol=1e-6)


def test_a_batch_of_its_own():
    made = build(MODEL, Candidate(batch=6), GROUPS, DATA)
    assert made.shapes == {"x": (6, D)}
    assert made.executable.flat([normal(6, D)])[0].shape == (6, 4)


def test_buckets_of_a_function_are_of_its_samples():
    made = build(MODEL, Candidate(buckets=(("batch", (2, 8)),)), GROUPS, DATA)
    assert made.shapes == {"x": ("batch", D)}
    assert made.executable.flat([X[:3]])[0].shape == (3, 4)
    held = [each.device_bytes for each in made.executable.report().buckets]
    assert made.peak_bytes == max(held)
    with pytest.raises(InputError) as caught:
        build(MODEL, Candidate(buckets=(("seq", (2,)),)), GROUPS, DATA)
    assert "seq: no dimension of an input" in str(caught.value)
    assert "There are: batch." in str(caught.value)


def test_a_mesh_and_donation():
    made = build(MODEL, Candidate(mesh="data=2", sharding="data"), GROUPS, DATA)
    assert made.executable.report().device.startswith("2 x ")
    np.testing.assert_allclose(made.executable.flat([X])[0], MODEL(X), rtol=1e-5, atol=1e-6)

    model = ji.from_function(lambda p, x: jnp.tanh(x @ p), normal(D, D), (X,))
    own, groups, data = everything(model)
    made = build(own, Candidate(donate=("x",)), groups, data)
    assert made.executable.report().buckets[0].aliased_bytes == X.nbytes
    np.testing.assert_array_equal(data.calls[0].arrays[0], X)  # the data are still there


def test_compiler_options_reach_the_compiler():
    build(MODEL, Candidate(options=(("xla_cpu_enable_fast_math", True),)), GROUPS, DATA)
    with pytest.raises(Exception, match="no_such_option"):
        build(MODEL, Candidate(options=(("no_such_option", True),)), GROUPS, DATA)


def test_blocked_parameters_are_noted_and_counted():
    def fn(p, x):
        return sum(jnp.sort(p[f"t{n}"], 0).sum() for n in range(7)) + x @ p["w"]

    params = {**{f"t{n}": normal(16, 4, seed=n) for n in range(7)}, "w": normal(D, 16)}
    model = ji.from_function(fn, params, (X,))
    made = transformed(model, Candidate(precision="W8A16"), ())
    (note,) = blocked(made, model)
    assert note.startswith("quantize: blocked: t0 (needed as an array by sort); t1 ")
    assert note.endswith("t4 (needed as an array by sort) and 2 more (audit)")
    assert blocked(made, made) == [note]


def test_inputs_of_any_structure():
    def fn(p, batch, more):
        return {"y": batch["x"] @ p["layers"][0]["w"] + more[0] @ p["layers"][1]["w"]}

    params = {"layers": [{"w": normal(D, 4)}, {"w": normal(2, 4, seed=1)}]}
    inputs = ({"x": X, "unused": normal(4, 1)}, (normal(4, 2), normal(4, 3)))
    model = ji.from_function(fn, params, inputs)
    own, groups, data = everything(model, [inputs] * 2)
    made = build(own, Candidate(precision="W8A8-static"), groups, data, data)
    assert made.shapes == {"x0.unused": (4, 1), "x0.x": (4, D), "x1.0": (4, 2), "x1.1": (4, 3)}
    got = made.executable(*inputs)
    np.testing.assert_allclose(got["y"], model(*inputs)["y"], atol=0.1)


def test_a_model_without_known_inputs_is_refused():
    model = ji.from_function(mlp, weights())
    with pytest.raises(InputError, match="without example inputs"):
        read(model, batches())
    with pytest.raises(InputError, match="example inputs"):
        assemble(model, Candidate(), (), {"x": (4, D)})


def test_zeros_stand_for_inputs_where_there_are_none():
    made = assemble(mlp_model(), Candidate(), (), {"x": (2, D)})
    assert made.executable.flat([X[:2]])[0].shape == (2, 4)
    assert isinstance(changed(Candidate(precision="W8A8")).params["a"]["w"], ActQTensor)


@pytest.mark.slow
def test_openvino_with_groups_in_float32():
    pytest.importorskip("openvino")
    pytest.importorskip("nncf")
    candidate = Candidate(backend="openvino", precision="int8", groups=(("b", "f32"),))
    made = build(MODEL, candidate, GROUPS, DATA, DATA)
    text = " ".join(made.notes)
    assert "peak bytes: of OpenVINO" in text
    assert "float32 as asked: b.w" in text
    np.testing.assert_allclose(made.executable.flat([X])[0], MODEL(X), atol=0.1)
    assert made.peak_bytes == made.weight_bytes
