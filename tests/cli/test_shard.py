"""shard: how a model would lie on a mesh, as text and as JSON, and wrong usage."""

import jax
import pytest

from tests.sharding import functions


@pytest.fixture
def saved(monkeypatch):
    """A directory from which an MLP is loaded (one saved as StableHLO would be opaque)."""
    monkeypatch.setattr("jaxinfer.io.artefact.load", lambda path: functions.mlp(64, 256))
    return "mlp"


def test_an_opaque_program_is_stored_split_and_gathered(cli, tmp_path):
    functions.mlp(64, 256).save(tmp_path / "mlp")
    result = cli("shard", "mlp", "--mesh", "model=4", "--sharding", "tensor", "--json")
    assert result.code == 0, result.err
    reasons = {row["path"]: row["why"] for row in result.json["rows"]}
    assert reasons["up"] == "no dimension of it is split: axis 1 of 256, gathered for use"


def test_explains_every_leaf(cli, saved):
    result = cli("shard", saved, "--mesh", "data=2,model=4", "--explain")
    assert result.code == 0, result.err
    for text in (
        "planned on 8 CPU devices of this process",
        "data+tensor on data=2, model=4: 33,024 of 132,096 bytes",
        "columns: makes axis 1, 256 units that down sums over",
        "follows up along axis 0, 256 units",
        "axis 0 is the batch",
        "fsdp(data)+tensor",
        "1 all-reduce",
        "chosen",
    ):
        assert text in result.out


def test_without_explain_there_is_only_the_sum(cli, saved):
    result = cli("shard", saved, "--mesh", "model=4", "--sharding", "tensor")
    assert result.code == 0, result.err
    assert "tensor on model=4: 33,024 of 132,096 bytes" in result.out
    assert "columns" not in result.out
    assert "candidate" not in result.out


def test_json_is_a_plan(cli, saved):
    from jaxinfer.sharding import ShardingPlan

    result = cli("shard", saved, "--mesh", "model=4", "--json")
    plan = ShardingPlan.from_json(result.json)
    assert plan.strategy == "tensor"
    assert plan.bytes_per_device == 33024
    assert result.json["candidates"][0]["collectives"][0]["kind"] == "all-reduce"
    assert "4 CPU devices" in result.json["stand_in"]


def test_bytes_alone(cli, saved):
    result = cli("shard", saved, "--mesh", "x=4", "--no-compile", "--json")
    assert not any(each["compiled"] for each in result.json["candidates"])
    shown = cli("shard", saved, "--mesh", "x=4", "--no-compile")
    assert "chosen" in shown.out


def test_rules_of_a_file(cli, saved, tmp_path):
    (tmp_path / "rules.toml").write_text(
        '[rules]\n\'^up$\' = ["", "hidden"]\nnothing = "model"\n[logical]\nhidden = "model"\n'
    )
    result = cli("shard", saved, "--mesh", "model=4", "--rules", "rules.toml", "--json")
    assert result.code == 0, result.err
    assert result.json["params"]["up"] == [None, "model"]
    assert result.json["notes"] == ["rule 'nothing' matches no parameter"]
    shown = cli("shard", saved, "--mesh", "model=4", "--rules", "rules.toml")
    assert "note: rule 'nothing' matches no parameter" in shown.out


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("[rules", "rules.toml: no TOML"),
        ("[other]\n", "required a table [rules]"),
        ("rules = 3", "required a table [rules]"),
        ("[rules]\nup = ['', 'modle']\n", "no axis 'modle'"),
    ],
)
def test_files_that_are_no_rules(cli, saved, tmp_path, text, part):
    (tmp_path / "rules.toml").write_text(text)
    result = cli("shard", saved, "--mesh", "model=4", "--rules", "rules.toml")
    assert result.code == 1
    assert part in result.err
    assert "Traceback" not in result.err


def test_symbolic_sizes(cli, model_dir):
    result = cli("shard", model_dir, "--mesh", "data=3", "--sizes", "batch=9", "--json")
    assert [row["shape"] for row in result.json["rows"] if row["path"] == "inputs.x"] == [[9, 5]]


@pytest.mark.parametrize(
    ("args", "code", "part"),
    [
        (("--mesh", "model=4", "--sizes", "batch"), 2, "'batch' is not NAME=NUMBER"),
        (("--mesh", "model=4", "--sharding", "odd"), 1, "no strategy ['odd']"),
        (("--mesh", "model=0"), 1, "axis 'model': required a size of 1 or more"),
        (("--mesh", "model=64"), 1, "needs 64 devices, there are 8"),
        (("--mesh", "model=4", "--devices", "2"), 1, "needs 4 devices, there are 2"),
        ((), 2, "Missing option '--mesh'"),
    ],
)
def test_wrong_usage(cli, saved, args, code, part):
    jax.devices()  # eight: they cannot become more in a process that uses them
    result = cli("shard", saved, *args)
    assert result.code == code
    assert part in result.err


def test_rules_or_a_strategy(cli, saved, tmp_path):
    (tmp_path / "rules.toml").write_text("[rules]\n")
    args = ("--mesh", "x=2", "--sharding", "data", "--rules", "rules.toml")
    assert "exclude each other" in cli("shard", saved, *args).err
