"""verify: errors by output, exit 1 above the tolerance."""

from tests.cli import fakes


def test_passes_and_prints_every_output(cli, open_as, model_dir):
    seen = open_as()
    result = cli("verify", model_dir, "--against", "pkg:make")
    assert result.code == 0, result.err
    assert seen[0][0] == "pkg:make"
    for text in ("logits", "count", "float32[2, 3]", "int64[4]", "ok", "random weights"):
        assert text in result.out


def test_fails_above_the_tolerance(cli, open_as, model_dir):
    open_as(reference=fakes.wrong_reference)
    result = cli("verify", model_dir, "--against", "x")
    assert result.code == 1
    assert "TOO LARGE" in result.out
    assert "1 of 2 outputs" in result.err
    assert cli("verify", model_dir, "--against", "x", "--tolerance", 1).code == 0


def test_json(cli, open_as, model_dir):
    open_as(reference=fakes.wrong_reference)
    result = cli("verify", model_dir, "--against", "x", "--json", "--seed", 5)
    assert result.code == 1
    data = result.json
    assert data["ok"] is False
    assert data["seeds"] == [5, 6]
    by_path = {output["path"]: output for output in data["outputs"]}
    assert by_path["count"]["ok"]
    assert not by_path["logits"]["ok"]
    assert abs(by_path["logits"]["max_abs"] - 0.5) < 1e-5


def test_another_number_of_outputs(cli, open_as, model_dir):
    open_as(reference=lambda args, kwargs, _: fakes.reference(args, kwargs)[:1])
    result = cli("verify", model_dir, "--against", "x")
    assert result.code == 1
    assert "required 1 outputs, got 2" in result.err


def test_a_damaged_model_is_an_error(cli, open_as, model_dir, tmp_path):
    seen = open_as()
    (tmp_path / "model" / "params.safetensors").write_bytes(b"not this")
    result = cli("verify", model_dir, "--against", "x")
    assert result.code == 1
    assert "params.safetensors" in result.err
    assert seen == []
