"""Tuned models: a call runs what was compiled; recipes are replayed, saved and loaded."""

import json

import jax
import numpy as np
import pytest

import jaxinfer as ji
from jaxinfer.compile.openvino import function as openvino
from jaxinfer.core.errors import ArtefactError, InputError, MissingExtraError, ParityError
from jaxinfer.core.model import Model
from jaxinfer.tune.build import build
from jaxinfer.tune.candidate import Candidate
from jaxinfer.tune.recipe import Recipe, make_recipe
from jaxinfer.tune.tuned import TunedModel, apply_recipe, load_tuned, tuned_of
from tests.tune.recipes import D, batches, everything, mlp_model, normal, recipe_of


@pytest.fixture(scope="module", autouse=True)
def quick_to_compile():
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


MODEL, GROUPS, DATA = everything()
X = batches()[0][0]


@pytest.fixture(scope="module")
def tuned():
    candidate = Candidate(precision="W8A8-static", groups=(("head", "f32"),))
    built = build(MODEL, candidate, GROUPS, DATA, DATA)
    recipe = make_recipe(MODEL, candidate, GROUPS, built.shapes)
    return tuned_of(built, recipe, ["a note"])


def test_a_call_runs_the_executable(tuned, monkeypatch):
    assert isinstance(tuned, Model)
    with ji.no_compile():
        got = tuned(X)
    np.testing.assert_allclose(got, tuned.apply(tuned.params, X), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(tuned(x=X), got)
    monkeypatch.setattr(type(tuned.executable), "__call__", lambda self, *a, **k: "ran")
    assert tuned(X) == "ran"
    assert tuned.audit()["quantize"].of("changed")
    assert tuned.notes == ("a note",)
    assert repr(tuned).startswith("TunedModel(function, ")
    assert repr(tuned).endswith("; W8A8-static (1 group f32))")


def test_sizes_that_were_not_compiled_are_refused_with_what_to_do(tuned):
    with pytest.raises(InputError) as caught:
        tuned(X[:3])
    assert "axis 0 must be 4" in str(caught.value)
    assert "model.plain(*inputs) compiles for others" in str(caught.value)
    assert tuned.plain(X[:3]).shape == (3, 4)
    assert type(tuned.plain) is Model


def test_what_changes_the_function_has_no_executable_of_the_old_one(tuned):
    for changes in ({"params": tuned.params}, {"rewrites": ()}, {"program": tuned.program}):
        assert type(tuned.replace(**changes)) is Model
    kept = tuned.replace(provenance={"source": "me"})
    assert isinstance(kept, TunedModel)
    assert kept.executable is tuned.executable
    assert type(ji.quantize("W8A16")(tuned_plainly())) is Model
    assert type(ji.cast("bf16")(tuned_plainly())) is Model


def tuned_plainly():
    built = build(MODEL, Candidate(), GROUPS, DATA)
    return tuned_of(built, recipe_of())


def test_a_recipe_is_replayed_to_the_bit(tuned, tmp_path):
    # all data calibrated above: a split of none judging is not possible, so seed and share matter
    from jaxinfer.tune.data import split

    calibration, judging = split(DATA, 3, 0.5)
    built = build(MODEL, tuned.recipe.candidate, GROUPS, judging, calibration)
    recipe = make_recipe(
        MODEL, tuned.recipe.candidate, GROUPS, built.shapes, seed=3, split=0.5, max_drop=0.1
    )
    recipe.save(tmp_path / "recipe.json")
    again = apply_recipe(tmp_path / "recipe.json", MODEL, batches())
    one, two = (m.params["b"]["w"] for m in (built.model, again))
    np.testing.assert_array_equal(one.scale, two.scale)
    np.testing.assert_array_equal(one.weight.qvalue, two.weight.qvalue)
    np.testing.assert_array_equal(again(X), tuned_of(built, recipe)(X))
    (said,) = [note for note in again.notes if "drop of" in note]
    assert said.startswith("cosine 0.99")
    assert "on 6 samples" in said
    other = recipe.replace(seed=4)
    different = apply_recipe(other, MODEL, batches())
    assert not np.array_equal(different.params["b"]["w"].scale, one.scale)


def test_without_data_the_shapes_are_the_recipes():
    made = apply_recipe(recipe_of(Candidate(precision="bf16")), MODEL)
    assert made(X).shape == (4, 4)
    assert "not compared with the model as it came: no data" in made.notes
    calibrated = recipe_of(Candidate(precision="W8A8-static"))
    with pytest.raises(InputError, match="W8A8-static is calibrated: give data"):
        apply_recipe(calibrated, MODEL)


def test_other_weights_are_noted_and_another_program_refused():
    made = apply_recipe(recipe_of(), mlp_model(seed=3))
    assert any("the weights are others" in note for note in made.notes)
    np.testing.assert_allclose(made(X), mlp_model(seed=3)(X), rtol=1e-5, atol=1e-6)
    with pytest.raises(InputError, match="the recipe is of another model"):
        apply_recipe(recipe_of(), ji.from_function(lambda p, x: x @ p, normal(D, 2), (X,)))


def test_a_result_that_is_worse_than_allowed_is_refused():
    recipe = recipe_of(Candidate(precision="W4A16"), max_drop=1e-9)
    with pytest.raises(ParityError) as caught:
        apply_recipe(recipe, MODEL, batches())
    assert "worse here" in str(caught.value)
    assert "the recipe allows 1e-09" in str(caught.value)
    made = apply_recipe(recipe, MODEL, batches(), check=False)
    assert any("the recipe allows 1e-09" in note for note in made.notes)
    apply_recipe(recipe.replace(max_drop=0.5), MODEL, batches())


def test_a_metric_that_is_a_function_is_given_again():
    recipe = recipe_of(Candidate(precision="W4A16"), max_drop=0.01, metric="worst")
    made = apply_recipe(recipe, MODEL, batches())
    assert any("'worst' is a function: give it as metric=" in note for note in made.notes)

    def worst(outputs, batch):
        same = np.array_equal(outputs, MODEL(batch["x"]))
        return 1.0 if same else 0.0

    with pytest.raises(ParityError, match="worst 0, 1 of the model as it came: a drop of 1"):
        apply_recipe(recipe, MODEL, batches(), metric=worst)


def test_a_back_end_that_is_missing_is_named_with_its_extra(monkeypatch):
    monkeypatch.setattr(
        openvino, "available", lambda: "openvino is not installed: pip install 'jaxinfer[openvino]'"
    )
    with pytest.raises(MissingExtraError, match=r"back-end openvino: .*jaxinfer\[openvino\]"):
        apply_recipe(recipe_of(Candidate(backend="openvino")), MODEL)


def test_another_device_is_a_note():
    recipe = recipe_of()
    moved = recipe.replace(environment={**recipe.environment, "device": "NVIDIA H100"})
    made = apply_recipe(moved, MODEL)
    assert any(note.startswith("device: the recipe is of NVIDIA H100") for note in made.notes)


# Directories.


def test_a_directory_has_the_model_and_its_recipe(tuned, tmp_path):
    tuned.save(tmp_path / "fast")
    assert Recipe.load(tmp_path / "fast") == tuned.recipe
    plain = ji.load(tmp_path / "fast")
    assert type(plain) is Model
    np.testing.assert_allclose(plain(X), tuned(X), rtol=1e-5, atol=1e-6)
    back = load_tuned(tmp_path / "fast")  # calibrated, and no data are needed
    assert isinstance(back, TunedModel)
    with ji.no_compile():
        np.testing.assert_allclose(back(X), tuned(X), rtol=1e-5, atol=1e-6)
    assert back.recipe == tuned.recipe
    with pytest.raises(ArtefactError, match="exists already"):
        tuned.save(tmp_path / "fast")


def test_a_recipe_beside_a_model_is_verified(tuned, tmp_path):
    tuned.save(tmp_path / "fast")
    file = tmp_path / "fast" / "recipe.json"
    data = json.loads(file.read_text())
    data["seed"] = 99
    file.write_text(json.dumps(data))
    with pytest.raises(ArtefactError, match=r"recipe\.json: damaged"):
        load_tuned(tmp_path / "fast")
    file.unlink()
    with pytest.raises(ArtefactError, match=r"has no recipe\.json: it is no tuned model"):
        load_tuned(tmp_path / "fast")


def test_a_function_is_saved_at_the_sizes_that_it_is_compiled_for(tmp_path):
    recipe = recipe_of(Candidate(batch=6)).replace(shapes={"x": (6, D)})
    made = apply_recipe(recipe, MODEL)
    assert made.inputs[0].shape == (6, D)
    made.save(tmp_path / "fast")
    assert load_tuned(tmp_path / "fast")(normal(6, D)).shape == (6, 4)


@pytest.mark.parametrize(
    ("candidate", "word"),
    [
        (Candidate(buckets=(("batch", (2, 4)),)), "has buckets"),
        (Candidate(backend="openvino"), "is for openvino"),
    ],
)
def test_what_an_exported_function_cannot_be_is_said(tmp_path, candidate, word):
    built = build(MODEL, Candidate(), GROUPS, DATA)
    tuned_of(built, recipe_of(candidate)).save(tmp_path / "fast")
    with pytest.raises(InputError, match=rf"recipe {word}.*apply_recipe"):
        load_tuned(tmp_path / "fast")


# Other kinds of models.


@pytest.mark.slow
def test_a_model_that_samples_is_given_a_key():
    torch = pytest.importorskip("torch")

    class Noisy(torch.nn.Module):
        def forward(self, x):
            return x + torch.rand_like(x)

    model = ji.from_torch(Noisy(), (torch.zeros(2, 3),))
    made = apply_recipe(make_recipe(model, Candidate(), (), {"x": (2, 3)}), model)
    x, key = np.zeros((2, 3), np.float32), jax.random.key(1)
    np.testing.assert_array_equal(made(x, rng_key=key), model(x, rng_key=key))
    with pytest.raises(InputError, match="pass rng_key"):
        made(x)
    with pytest.raises(InputError, match="random"):
        apply_recipe(made.recipe, model, [(x,)])


@pytest.mark.slow
def test_a_model_that_changes_its_buffers_gives_them_back():
    torch = pytest.importorskip("torch")

    class Counting(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = torch.nn.Linear(8, 8)
            self.register_buffer("calls", torch.zeros(1))

        def forward(self, x):
            self.calls += 1
            return self.fc(x) + self.calls

    torch.manual_seed(0)
    model = ji.from_torch(Counting().eval(), (torch.zeros(2, 8),))
    recipe = make_recipe(model, Candidate(precision="bf16"), (), {"x": (2, 8)}, max_drop=0.01)
    made = apply_recipe(recipe, model, [(normal(2, 8, seed=n),) for n in range(2)])
    out, state = made(normal(2, 8))
    assert out.shape == (2, 8)
    np.testing.assert_array_equal(state["calls"], [1.0])
