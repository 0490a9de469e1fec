"""Recipes: plain JSON that comes back, and files that are none are refused, every fault named."""

import json
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxinfer as ji
from jaxinfer.core.errors import ArtefactError, InputError
from jaxinfer.tune._recipe_check import FIELDS
from jaxinfer.tune._recipe_prints import _unsourced
from jaxinfer.tune.candidate import Candidate
from jaxinfer.tune.groups import Group
from jaxinfer.tune.recipe import (
    VERSION,
    Recipe,
    changes_of,
    environment,
    fingerprint,
    make_recipe,
    require_same_program,
)
from tests.tune.recipes import D, F, mlp, mlp_model, normal, recipe_of, weights

FULL = Candidate(
    fold=True,
    precision="bf16",
    groups=(("a", "f32"), ("head", "W8A16")),
    prune=(("compress", True), ("sparsity", 0.5)),
    attention="whole",
    layout="NHWC",
    unroll=True,
    batch=4,
    buckets=(("batch", (2, 8)),),
    mesh="data=2",
    sharding="data",
    donate=("x",),
    options=(("xla_cpu_enable_fast_math", True), ("level", 3)),
)


def full():
    return recipe_of(
        FULL, seed=7, split=0.25, metric="accuracy", drop_kind="relative", max_drop=0.01,
        reference=0.9, measured={"p50_ms": 1.5, "similarity": {"cosine": 0.99}}, notes=("a note",),
    )  # fmt: skip


def test_a_recipe_comes_back_as_it_was(tmp_path):
    recipe = full()
    assert Recipe.from_json(json.loads(json.dumps(recipe.to_json()))) == recipe
    recipe.save(tmp_path / "recipe.json")
    assert Recipe.load(tmp_path / "recipe.json") == recipe
    assert Recipe.load(tmp_path) == recipe  # the directory that holds it
    assert os.listdir(tmp_path) == ["recipe.json"]
    assert recipe.group_list[0] == Group("a", ("a.w",), 0)
    assert str(recipe) == FULL.label


def test_groups_are_kept_where_they_are_needed():
    assert recipe_of(Candidate(precision="bf16")).groups == {}
    assert list(full().groups) == ["a", "b", "head"]


def test_every_field_is_written_and_checked():
    data = full().to_json()
    assert set(data) == {*FIELDS, "format", "version"}
    candidate = {field: getattr(FULL, field) for field in FULL.to_json()}
    assert len(candidate) >= 13


def test_a_directory_is_refused_and_a_file_replaced(tmp_path):
    with pytest.raises(ArtefactError, match="is a directory; give the path of a file"):
        full().save(tmp_path)
    with pytest.raises(ArtefactError, match="not written"):
        full().save(tmp_path / "no" / "recipe.json")
    path = tmp_path / "recipe.json"
    full().save(path)
    recipe_of().save(path)
    assert Recipe.load(path) == recipe_of()
    assert os.listdir(tmp_path) == ["recipe.json"]


def test_what_fails_while_it_is_written_leaves_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "recipe.json"
    full().save(path)

    def full_disk(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(ArtefactError, match="not written: No space left"):
        recipe_of().save(path)
    assert Recipe.load(path) == full()
    assert os.listdir(tmp_path) == ["recipe.json"]


def test_a_recipe_that_is_no_plain_data_is_not_written(tmp_path):
    odd = full().replace(measured={"f": lambda: 0}, reference=float("nan"))
    with pytest.raises(InputError) as caught:
        odd.save(tmp_path / "recipe.json")
    assert "measured: required" in str(caught.value)
    assert "reference: required" in str(caught.value)
    assert os.listdir(tmp_path) == []


def written(tmp_path, data):
    path = tmp_path / "recipe.json"
    path.write_bytes(data if isinstance(data, bytes) else json.dumps(data).encode())
    return path


def test_no_part_of_a_file_is_a_recipe(tmp_path):
    data = recipe_of().encoded()
    for size in range(0, len(data) - 2, 97):
        with pytest.raises(ArtefactError, match="not a recipe"):
            Recipe.load(written(tmp_path, data[:size]))


@pytest.mark.parametrize(
    ("data", "word"),
    [
        (b"\xff\xfe", "not UTF-8"),
        (b"[]", "'format' is not"),
        (b'{"format": "jaxinfer"}', "'format' is not"),
        (b'{"a": 1, "a": 2}', "given twice"),
        (b"[" * 5000, "nested deeper"),
        ({"format": "jaxinfer-recipe"}, "'version' must be a number"),
        ({"format": "jaxinfer-recipe", "version": True}, "'version' must be a number"),
        ({"format": "jaxinfer-recipe", "version": VERSION + 1}, "upgrade jaxinfer"),
    ],
)
def test_a_file_that_is_none_is_refused(tmp_path, data, word):
    with pytest.raises(ArtefactError, match=word):
        Recipe.load(written(tmp_path, data))


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(ArtefactError, match="no such file"):
        Recipe.load(tmp_path / "recipe.json")
    with pytest.raises(ArtefactError, match="no such file"):
        Recipe.load(tmp_path)  # a directory without


def test_every_fault_is_named_at_once(tmp_path):
    data = full().to_json()
    del data["program"]
    data |= {
        "seed": -1, "split": 1.0, "drop_kind": "odd", "shapes": {"x": ["../x", 2]}, "more": 1,
        "groups": {"a": "not a list"}, "measured": [1], "notes": [1], "max_drop": "1%",
    }  # fmt: skip
    data["candidate"] |= {"fold": "yes", "batch": -2, "mesh": 3, "odd": 1, "buckets": [["x", 1]]}
    with pytest.raises(ArtefactError) as caught:
        Recipe.load(written(tmp_path, data))
    text = str(caught.value)
    for fault in (
        "program: missing", "seed: required", "split: required", "drop_kind: required",
        "shapes: required", "more: no field", "groups: required", "measured: required",
        "notes: required", "max_drop: required", "candidate.fold: required true or false",
        "candidate.batch: required", "candidate.mesh: required", "candidate.odd: no such field",
        "candidate.buckets: required",
    ):  # fmt: skip
        assert fault in text, fault


def test_a_candidate_of_values_that_there_are_not(tmp_path):
    data = recipe_of().to_json()
    data["candidate"] = {"precision": "W9", "layout": "CHW", "backend": "tensorrt"}
    with pytest.raises(ArtefactError, match="no such precision 'W9', layout 'CHW', backend"):
        Recipe.load(written(tmp_path, data))


def test_any_value_in_any_place_is_refused_or_read():
    """Nothing but an ArtefactError comes of a damaged file."""
    odd = (None, True, -1, 1.5, float("inf"), "", "x" * 200, [], [[]], [["a"]], {}, {"a": {}})
    refused, data = 0, full().to_json()
    for name in FIELDS:
        for value in odd:
            try:
                made = Recipe.from_json({**data, name: value})
            except ArtefactError:
                refused += 1
            else:
                assert Recipe.from_json(made.to_json()) == made
    candidate = data["candidate"]
    for name in candidate:
        for value in odd:
            try:
                Recipe.from_json({**data, "candidate": {**candidate, name: value}})
            except ArtefactError:
                refused += 1
    assert refused > 150


# What a model is known by.


def test_weights_and_programs_have_a_print_each():
    one, two = mlp_model(), mlp_model(seed=1)
    twice = ji.from_function(lambda p, x: 2 * mlp(p, x), weights(), (normal(4, D),))
    first, second, third = (fingerprint(each).split("-") for each in (one, two, twice))
    assert first == fingerprint(mlp_model()).split("-")
    assert first[0] == second[0] != third[0]
    assert first[1] == third[1] != second[1]


def test_what_a_function_closes_over_is_among_the_weights():
    def model(value):
        held = jnp.full((D, 3), value)
        return ji.from_function(lambda p, x: x @ held + p, jnp.zeros(3), (normal(4, D),))

    one, two = (fingerprint(model(value)).split("-") for value in (1.0, 2.0))
    assert one[0] == two[0]
    assert one[1] != two[1]


def test_array_types_and_rewrites_count():
    model = mlp_model()
    others = ji.quantize("W8A16"), ji.quantize("W8A8"), ji.cast("bf16")
    prints = {fingerprint(each) for each in (model, *(other(model) for other in others))}
    assert len(prints) == 4


def test_another_program_is_refused_and_what_differs_is_said():
    recipe = recipe_of()
    assert require_same_program(recipe, mlp_model()) == []
    (note,) = require_same_program(recipe, mlp_model(seed=5))
    assert "the weights are others" in note
    twice = ji.from_function(lambda p, x: 2 * mlp(p, x), weights(), (normal(4, D),))
    with pytest.raises(InputError, match="program: inputs and parameters are alike, but it"):
        require_same_program(recipe, twice)
    params = {**weights(), "more": jnp.ones(2)}
    params["head"] = {"w": jnp.asarray(normal(F, 5))}
    other = ji.from_function(mlp, params, (normal(4, D),))
    with pytest.raises(InputError) as caught:
        require_same_program(recipe, other)
    assert "more: not among the parameters of the recipe's model" in str(caught.value)
    assert "head.w: required float32[16, 4], got float32[16, 5]" in str(caught.value)
    many = {f"p{n}": jnp.ones(1) for n in range(30)}
    wide = ji.from_function(lambda p, x: x, many, (normal(4, D),))
    with pytest.raises(InputError, match="and 20 more parameters"):
        require_same_program(recipe, wide)


def test_under_another_jax_a_function_is_known_by_its_inputs_and_parameters():
    recipe = recipe_of()
    older = recipe.replace(prints=recipe.prints._replace(of="jaxpr, jax 0.1.2", program="0" * 32))
    (note,) = require_same_program(older, mlp_model())
    assert "compared by its inputs and parameters alone" in note
    graph = recipe.replace(prints=recipe.prints._replace(of="graph"))
    with pytest.raises(InputError, match="required one of kind graph"):
        require_same_program(graph, mlp_model())


def test_a_saved_program_is_known_by_what_is_written(tmp_path):
    mlp_model().save(tmp_path / "model")
    one, two = (ji.load(tmp_path / "model") for _ in range(2))
    assert fingerprint(one) == fingerprint(two)
    recipe = make_recipe(one, Candidate(), (), {"x": (4, D)})
    assert recipe.prints.of == "stablehlo"
    assert require_same_program(recipe, two) == []


def test_lines_of_source_are_no_part_of_a_program():
    node = {"op": "aten.add.Tensor", "args": [{"ref": "x"}], "source": "/here/model.py:3: x + y"}
    assert _unsourced({"nodes": [node]}) == {
        "nodes": [{"op": "aten.add.Tensor", "args": [{"ref": "x"}]}]
    }
    assert _unsourced({"kwargs": {"source": {"ref": "y"}}}) == {"kwargs": {"source": {"ref": "y"}}}


def test_the_environment_says_what_figures_depend_on():
    found = environment(Candidate(backend="openvino"))
    assert found["jax"] == jax.__version__
    assert found["platform"] == jax.devices()[0].platform
    recipe = recipe_of()
    assert changes_of(recipe) == []
    moved = recipe.replace(environment={**recipe.environment, "device": "H100", "jax": "0.1.2"})
    assert [note.split(":")[0] for note in changes_of(moved)] == ["jax", "device"]
    assert np.isscalar(found["devices"])
