"""Sources of the command line: checkpoint directories, timm, .pt2, factories; end to end."""

import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import nn

import jaxinfer as ji
from jaxinfer.cli import main
from jaxinfer.core.errors import CheckpointError, ConversionError
from jaxinfer.core.frontend import Options, open_source
from jaxinfer.core.parity import prove
from tests.conftest import randomize

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("default")  # transformers warns about its own future


def small_bert(cls, **changes):
    config = transformers.BertConfig(
        vocab_size=101, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=64, max_position_embeddings=40, **changes,
    )  # fmt: skip
    torch.manual_seed(0)
    return randomize(cls(config).eval())


def open_checked(path, **options):
    source = open_source(str(path), Options(**options))
    model = source.convert(None)
    report = prove(model, source, (0, 1))
    assert all(error.ok for error in report.outputs), report
    return source, model


def test_checkpoint_directory_streams_under_its_own_names(tmp_path):
    module = small_bert(transformers.BertModel)
    module.save_pretrained(tmp_path, max_shard_size="20KB")
    assert (tmp_path / "model.safetensors.index.json").exists()
    _, model = open_checked(tmp_path)
    assert set(model.params) == set(dict(module.named_parameters()))
    assert model.inputs[0].shape == ("batch", "sequence")
    assert model.signature.symbols["sequence"][1] == 40
    assert model.provenance["notes"] == []


def test_base_model_from_a_checkpoint_with_a_head(tmp_path):
    module = small_bert(transformers.BertForMaskedLM)
    module.save_pretrained(tmp_path)
    _, model = open_checked(tmp_path)
    assert "bert.embeddings.word_embeddings.weight" in model.params
    assert "cls.predictions.decoder.weight" not in model.params  # tied to the embedding
    # BertModel alone has a pooler that this checkpoint lacks: transformers would make one up
    with pytest.raises(CheckpointError, match=r"pooler\.dense\.weight: missing"):
        open_source(str(tmp_path), Options(class_name="BertModel")).convert(None)


def test_weights_that_the_class_does_not_have_are_errors_unless_it_is_named(tmp_path):
    small_bert(transformers.BertForPreTraining).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["architectures"] = ["BertForMaskedLM"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        CheckpointError, match=r"(?s)seq_relationship\.bias.*--class BertForMaskedLM"
    ):
        open_source(str(tmp_path), Options())
    source, _ = open_checked(tmp_path, class_name="BertForMaskedLM")
    assert "left out" in source.notes[0]
    assert "cls.seq_relationship.weight" in source.notes[0]


@pytest.mark.slow
def test_pickled_weights_and_weights_of_another_file(tmp_path):
    module = small_bert(transformers.BertModel)
    module.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(module.state_dict(), tmp_path / "pytorch_model.bin")
    _, model = open_checked(tmp_path)
    other = {name: tensor + 0.01 for name, tensor in module.state_dict().items()}
    torch.save(other, tmp_path / "other.pth")
    _, changed = open_checked(tmp_path, weights=str(tmp_path / "other.pth"))
    name = "encoder.layer.0.output.dense.bias"
    np.testing.assert_allclose(changed.params[name], model.params[name] + 0.01, atol=1e-6)
    torch.save({"w": torch.ones(2)}, tmp_path / "wrong.pth")
    with pytest.raises(CheckpointError, match="not the weights of BertModel"):
        open_source(str(tmp_path), Options(weights=str(tmp_path / "wrong.pth")))


@pytest.mark.slow
def test_half_checkpoint_stays_half(tmp_path):
    small_bert(transformers.BertModel).to(torch.bfloat16).save_pretrained(tmp_path)
    _, model = open_checked(tmp_path)
    assert {leaf.dtype.name for leaf in model.params.values()} == {"bfloat16"}
    _, model = open_checked(tmp_path, dtype="float32")
    assert {leaf.dtype.name for leaf in model.params.values()} == {"float32"}


@pytest.mark.slow
def test_encoder_decoder_checkpoint(tmp_path):
    config = transformers.T5Config(
        vocab_size=101, d_model=32, num_layers=2, num_heads=4, d_kv=8, d_ff=64
    )
    randomize(transformers.T5ForConditionalGeneration(config).eval()).save_pretrained(tmp_path)
    _, model = open_checked(tmp_path)
    assert "shared.weight" in model.params
    assert "lm_head.weight" not in model.params or not config.tie_word_embeddings


@pytest.mark.parametrize(
    ("edit", "text"),
    [
        (lambda d: (d / "config.json").unlink(), "no config.json"),
        (lambda d: (d / "config.json").write_text("{"), "not valid JSON"),
        (lambda d: (d / "config.json").write_text("[]"), "JSON object"),
        (lambda d: (d / "config.json").write_text('{"model_type": "nope"}'), "nope"),
        (lambda d: (d / "model.safetensors").unlink(), "weight"),
        (lambda d: (d / "model.safetensors").write_bytes(b"abc"), r"model\.safetensors"),
    ],
    ids=["no-config", "bad-json", "not-object", "unknown-type", "no-weights", "truncated"],
)
def test_damaged_directories(tmp_path, edit, text):
    small_bert(transformers.BertModel).save_pretrained(tmp_path)
    edit(tmp_path)
    with pytest.raises(CheckpointError, match=text):
        open_source(str(tmp_path), Options()).convert(None)


def test_code_in_a_checkpoint_is_refused(tmp_path):
    small_bert(transformers.BertModel).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["auto_map"] = {"AutoModel": "modeling.Evil"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "modeling.py").write_text("raise SystemExit('run')")
    with pytest.raises(CheckpointError, match="names Python code to run"):
        open_source(str(tmp_path), Options())


def test_unknown_class(tmp_path):
    small_bert(transformers.BertModel).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="not a transformers model class"):
        open_source(str(tmp_path), Options(class_name="os"))


def test_pt2_archive(tmp_path):
    module = randomize(nn.Sequential(nn.Linear(3, 4), nn.GELU()))
    batch = torch.export.Dim("batch")
    program = torch.export.export(module, (torch.randn(5, 3),), dynamic_shapes=({0: batch},))
    torch.export.save(program, tmp_path / "model.pt2")
    _, model = open_checked(tmp_path / "model.pt2")
    assert model(np.ones((9, 3), np.float32)).shape == (9, 4)
    with pytest.raises(ConversionError, match="no such file"):
        open_source(str(tmp_path / "other.pt2"), Options())
    (tmp_path / "bad.pt2").write_bytes(b"PK not really")
    with pytest.raises(CheckpointError, match=r"not a readable \.pt2"):
        open_source(str(tmp_path / "bad.pt2"), Options())


def test_timm(timm, tmp_path):
    source, model = open_checked("timm:test_resnet.r160_in1k".replace(".r160_in1k", ""))
    assert "random weights" in source.notes[0]
    assert model.inputs[0].shape[0] == "batch"
    with pytest.raises(ConversionError, match=r"no architecture 'resnet5'.*resnet50"):
        open_source("timm:resnet5", Options())


FACTORY = """
import torch
from torch import nn

def plain():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 2)).eval()

def whole():
    return plain(), (torch.randn(2, 3, 4),), None, ({0: "batch"},)

def training():
    return nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)), (torch.randn(5, 4),)

def nothing():
    return 3
"""


@pytest.fixture
def factory(tmp_path, monkeypatch):
    (tmp_path / "factory_for_tests.py").write_text(FACTORY)
    monkeypatch.syspath_prepend(str(tmp_path))
    return "factory_for_tests"


def test_factories(factory):
    _, model = open_checked(f"{factory}:whole")
    assert model.inputs[0].shape == ("batch", 3, 4)
    _, model = open_checked(f"{factory}:plain", inputs=("float32[batch=2,3,4]",))
    assert model.inputs[0].shape == ("batch", 3, 4)
    _, model = open_checked(f"{factory}:training")
    assert set(model.program.mutates) == {
        "1.running_mean", "1.running_var", "1.num_batches_tracked"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "options", "text"),
    [
        ("plain", {}, "--input"),
        ("plain", {"inputs": ("float32[2;3]",)}, "bad size"),
        ("plain", {"inputs": ("floaty[2]",)}, "not of the form"),
        ("nothing", {}, "got int"),
        ("absent", {}, "absent"),
    ],
)
def test_bad_factories(factory, name, options, text):
    with pytest.raises(ConversionError, match=text):
        open_source(f"{factory}:{name}", Options(**options))


def test_factory_weights(factory, tmp_path):
    from safetensors.torch import save_file

    state = {"1.weight": torch.ones(2, 12), "1.bias": torch.zeros(2)}
    save_file(state, tmp_path / "w.safetensors")
    _, model = open_checked(f"{factory}:whole", weights=str(tmp_path / "w.safetensors"))
    np.testing.assert_array_equal(model(np.ones((1, 3, 4), np.float32)), [[12, 12]])
    save_file({"1.weight": torch.ones(2, 11)}, tmp_path / "bad.safetensors")
    with pytest.raises(CheckpointError, match=r"(?s)1\.bias.*missing.*1\.weight.*got float32"):
        open_source(f"{factory}:whole", Options(weights=str(tmp_path / "bad.safetensors")))


def test_convert_verify_run_on_the_command_line(factory, tmp_path):
    out, inputs, outputs = (str(tmp_path / n) for n in ("out", "in.npz", "out.npz"))
    run = lambda *args: CliRunner().invoke(main, list(args))
    done = run("convert", f"{factory}:whole", "-o", out)
    assert done.exit_code == 0, done.output
    assert run("verify", out, "--against", f"{factory}:whole").exit_code == 0
    assert run("verify", out, "--against", f"{factory}:training").exit_code == 1
    np.savez(inputs, np.ones((3, 3, 4), np.float32))
    assert run("run", out, inputs, "-o", outputs).exit_code == 0
    want = ji.load(out)(np.ones((3, 3, 4), np.float32))
    np.testing.assert_array_equal(next(iter(np.load(outputs).values())), want)


def test_weights_that_are_not_finite_are_in_the_summary(factory, tmp_path):
    from safetensors.torch import save_file

    weight = torch.ones(2, 12)
    weight[0, 3] = float("nan")
    save_file({"1.weight": weight, "1.bias": torch.zeros(2)}, tmp_path / "w.safetensors")
    module = f"{factory}:whole"
    out, weights = str(tmp_path / "out"), str(tmp_path / "w.safetensors")
    done = CliRunner().invoke(main, ["convert", module, "-o", out, "--weights", weights])
    assert done.exit_code == 0, done.output
    assert "1.weight: 1 NaN of 24 values" in done.output


def test_nothing_takes_the_source():
    with pytest.raises(ji.JaxinferError, match=r"(?s)cannot open.*checkpoint/.*timm:resnet50"):
        open_source("no_such_thing", Options())
