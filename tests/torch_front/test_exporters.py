"""transformers' exporters, and generative models: prefill and decode over a static cache."""

import functools
import json
import os
import re
import subprocess
import sys

import jax
import numpy as np
import pytest
from click.testing import CliRunner

import jaxinfer as ji
from jaxinfer.cli import main
from jaxinfer.core.errors import ConversionError, InputError
from jaxinfer.core.structure import Output
from jaxinfer.engine import GreedyDecoder
from tests.conftest import randomize

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers", minversion="5.0")
pytest.importorskip("transformers.exporters")

LENGTH, NEW, EOS = 24, 14, 2
TINY = {
    "vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": EOS,
}  # fmt: skip

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")


def tiny(name, **config):
    config = getattr(transformers, f"{name}Config")(**TINY | config)
    return randomize(getattr(transformers, f"{name}ForCausalLM")(config).eval())


def prompts():
    """Three prompts of length 5, 3 and 2, padded on the left."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, 97, (3, 5), generator=generator)
    mask = torch.ones_like(ids)
    mask[0, :2] = 0
    mask[1, :3] = 0
    return {"input_ids": ids * mask, "attention_mask": mask}


def config(eos=EOS, **kwargs):
    return transformers.GenerationConfig(
        do_sample=False, pad_token_id=0, eos_token_id=eos, decoder_start_token_id=1, **kwargs
    )


def reference(module, inputs, new=NEW, eos=EOS):
    """transformers' own greedy tokens, [b, up to new]: it stops when every row has ended."""
    out = module.generate(**inputs, generation_config=config(eos, max_new_tokens=new))
    start = 1 if module.config.is_encoder_decoder else inputs["input_ids"].shape[1]
    return out[:, start:].numpy()


def check(module, model, inputs, new=NEW):
    """Both loops give transformers' tokens; returns them."""
    want = reference(module, inputs, new)
    decoder = GreedyDecoder(model)
    got = np.asarray(decoder(inputs, max_new_tokens=new))
    np.testing.assert_array_equal(got[:, : want.shape[1]], want)
    assert (got[:, want.shape[1] :] == 0).all()
    steps = np.stack(list(decoder.steps(inputs, max_new_tokens=new)), 1)
    np.testing.assert_array_equal(steps, want)
    return want


@pytest.fixture(scope="module")
def llama():
    module = tiny("Llama")
    return module, ji.from_generative(module, max_cache_len=LENGTH)


@pytest.mark.slow
def test_llama_gives_the_tokens_of_transformers(llama):
    want = check(*llama, prompts())
    assert len(np.unique(want)) > 15  # not one token over and over
    one = {"input_ids": torch.tensor([[5]]), "attention_mask": torch.ones(1, 1, dtype=torch.long)}
    check(*llama, one)  # a batch and a prompt of another size


@pytest.mark.slow
def test_a_row_that_ends_is_filled_while_others_go_on(llama):
    module, model = llama
    free = reference(module, prompts())
    row, end = next(  # a token that comes first in the middle of one row, and not in another
        (row, token)
        for row in range(3)
        for at, token in enumerate(free[row, : NEW - 3])
        if at > 1 and token not in free[row, :at] and token not in free[row - 1]
    )
    want = reference(module, prompts(), eos=int(end))
    assert want.shape == free.shape
    assert (want[row, -2:] == 0).all()
    decoder = GreedyDecoder(model, eos_token_id=(int(end),))
    np.testing.assert_array_equal(decoder(prompts(), max_new_tokens=NEW), want)
    np.testing.assert_array_equal(
        np.stack(list(decoder.steps(prompts(), max_new_tokens=NEW)), 1), want
    )
    alone = {
        name: value[row : row + 1] for name, value in prompts().items()
    }  # then the loop ends early
    short = reference(module, alone, eos=int(end))
    assert short.shape[1] < NEW
    assert len(list(decoder.steps(alone, max_new_tokens=NEW))) == short.shape[1]
    got = np.asarray(decoder(alone, max_new_tokens=NEW))
    np.testing.assert_array_equal(got[:, : short.shape[1]], short)
    assert (got[:, short.shape[1] :] == 0).all()


def test_components_share_their_parameters(llama):
    _, model = llama
    prefill, decode = model.components["prefill"], model.components["decode"]
    assert set(prefill.params) == set(decode.params) == set(model.params)
    assert "model.layers.0.self_attn.q_proj.weight" in model.params
    for name, leaf in model.params.items():
        assert prefill.params[name] is leaf
        assert decode.params[name] is leaf


def test_the_cache_is_an_argument_and_a_result(llama):
    _, model = llama
    prefill, decode = model.components["prefill"], model.components["decode"]
    assert set(prefill.signature.names) == {
        "input_ids", "attention_mask", "position_ids", "logits_to_keep",
    }  # fmt: skip
    ids = np.arange(10, dtype=np.int32).reshape(2, 5)
    mask = np.ones((2, LENGTH), np.int32)
    out = prefill(input_ids=ids, attention_mask=mask, position_ids=np.tile(np.arange(5), (2, 1)))
    assert out.logits.shape == (2, 1, 97)
    layer = out.past_key_values.layers[0]
    assert isinstance(layer, Output)
    assert layer["keys"].shape == (2, 2, LENGTH, 8)
    assert int(layer.cumulative_length) == 5
    again = decode(
        input_ids=ids[:, :1],
        attention_mask=mask,
        position_ids=np.full((2, 1), 5),
        past_key_values=out.past_key_values,
    )
    assert int(again.past_key_values.layers[1].cumulative_length) == 6
    assert jax.tree.structure(again.past_key_values) == jax.tree.structure(out.past_key_values)


def compiled_step(model):
    decoder = GreedyDecoder(model)
    arrays = decoder.check(prompts(), NEW)
    cache, state, still = decoder._start(model.params, arrays)
    return cache, decoder._step.lower(model.params, cache, state, still).compile()


@pytest.mark.slow
def test_a_step_writes_the_cache_in_place(llama):
    cache, compiled = compiled_step(llama[1])
    nbytes = sum(leaf.nbytes for leaf in jax.tree.leaves(cache))
    assert compiled.memory_analysis().alias_size_in_bytes == nbytes  # all of it, and no more
    text = compiled.as_text()
    assert len(re.findall(r" dynamic-update-slice\(", text)) == 4  # keys and values of 2 layers
    assert not re.findall(r" scatter\(", text)
    assert not re.findall(r"f32\[3,2,24,8\]\S* copy\(", text)
    assert not re.findall(r"f32\[3,4,24,8\]|f32\[3,2,2,24,8\]", text)  # nor for groups
    plain = jax.jit(GreedyDecoder(llama[1])._advance)  # so the check can fail
    arrays = GreedyDecoder(llama[1]).check(prompts(), NEW)
    parts = GreedyDecoder(llama[1])._start(llama[1].params, arrays)
    other = plain.lower(llama[1].params, *parts).compile()
    assert other.memory_analysis().alias_size_in_bytes == 0


def test_a_prompt_is_written_as_one_slice(llama):
    model = llama[1].components["prefill"]
    ids, mask = np.zeros((2, 5), np.int32), np.ones((2, LENGTH), np.int32)
    run = lambda params: model.apply(params, input_ids=ids, attention_mask=mask, position_ids=ids)
    names = {e.primitive.name for e in jax.make_jaxpr(run)(model.params).eqns}
    assert "dynamic_update_slice" in names
    assert "scatter" not in names


@pytest.mark.slow
def test_saved_it_is_one_directory_and_needs_no_torch(llama, tmp_path):
    module, model = llama
    model.save(tmp_path / "llama")
    stored = (tmp_path / "llama" / "params.safetensors").stat().st_size
    nbytes = sum(leaf.nbytes for leaf in model.params.values())
    assert nbytes < stored < 1.1 * nbytes
    np.savez(tmp_path / "prompts.npz", **{k: v.numpy() for k, v in prompts().items()})
    code = f"""
import sys
sys.modules["torch"] = sys.modules["transformers"] = None
import json, numpy as np, jaxinfer as ji
from jaxinfer.engine import GreedyDecoder
inputs = dict(np.load({str(tmp_path / "prompts.npz")!r}))
tokens = GreedyDecoder(ji.load({str(tmp_path / "llama")!r}))(inputs, max_new_tokens={NEW})
print(json.dumps(tokens.tolist()))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    want = reference(module, prompts())
    np.testing.assert_array_equal(np.array(json.loads(done.stdout))[:, : want.shape[1]], want)
    part = ji.load(tmp_path / "llama").components["decode"]
    part.save(tmp_path / "decode")  # a component is a model
    assert ji.load(tmp_path / "decode").signature == part.signature


def test_inspect_shows_a_component(llama, tmp_path):
    llama[1].save(tmp_path / "llama")
    shown = CliRunner().invoke(main, ["inspect", str(tmp_path / "llama"), "--component", "decode"])
    assert shown.exit_code == 0, shown.output
    assert "past_key_values.layers.0.keys" in shown.output
    refused = CliRunner().invoke(main, ["inspect", str(tmp_path / "llama")])
    assert refused.exit_code == 2
    assert "--component" in refused.output
    assert "prefill, decode" in refused.output


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "extra"),
    [("Mistral", {"sliding_window": 6}), ("Qwen3", {"head_dim": 8})],
)
def test_other_decoders(name, extra):
    """A sliding window shorter than prompt and answer together is among them."""
    module = tiny(name, **extra)
    want = check(module, ji.from_generative(module, max_cache_len=LENGTH), prompts())
    assert len(np.unique(want)) > 8


@pytest.mark.slow
def test_an_encoder_comes_first():
    config = transformers.T5Config(
        vocab_size=97, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, pad_token_id=0,
        eos_token_id=EOS, decoder_start_token_id=1, tie_word_embeddings=False,
    )  # fmt: skip
    module = randomize(transformers.T5ForConditionalGeneration(config).eval())
    inputs = prompts()
    example = {name: value[:2] for name, value in inputs.items()}
    model = ji.from_generative(module, example, max_cache_len=LENGTH)
    assert list(model.components) == ["encoder", "prefill", "decode"]
    assert set(model.params) <= set(module.state_dict())  # names of the whole model
    want = reference(module, inputs)
    decoder = GreedyDecoder(model)
    got = np.asarray(decoder(inputs, max_new_tokens=NEW))
    np.testing.assert_array_equal(got[:, : want.shape[1]], want)
    # tokens may repeat; logits hide nothing
    hidden = model.components["encoder"](**{k: v.numpy() for k, v in inputs.items()})
    out = model.components["prefill"](
        attention_mask=inputs["attention_mask"],
        decoder_input_ids=np.ones((3, 1), np.int32),
        decoder_attention_mask=np.ones((3, LENGTH), np.int32),
        encoder_outputs=hidden,
    )
    with torch.no_grad():
        logits = module(**inputs, decoder_input_ids=torch.ones(3, 1, dtype=torch.long)).logits
    np.testing.assert_allclose(out.logits, logits, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_weights_come_from_a_checkpoint(llama, tmp_path):
    module, model = llama
    module.save_pretrained(tmp_path)
    empty = tiny("Llama")
    torch.nn.init.zeros_(empty.lm_head.weight)
    other = ji.from_generative(empty, max_cache_len=LENGTH, weights=tmp_path)
    for name, leaf in model.params.items():
        np.testing.assert_array_equal(other.params[name], leaf)


def test_what_does_not_fit_is_said(llama):
    module, model = llama
    decoder = GreedyDecoder(model)
    right = prompts()
    right["attention_mask"] = right["attention_mask"].flip(1)
    with pytest.raises(InputError, match="padded on the left"):
        decoder(right, max_new_tokens=2)
    with pytest.raises(InputError, match=r"<= 24 \(max_cache_len"):
        decoder(prompts(), max_new_tokens=LENGTH)
    with pytest.raises(InputError, match=r"call one of them.*prefill.*decode"):
        model(np.zeros((2, 5)))
    with pytest.raises(InputError, match="from_generative"):
        GreedyDecoder(model.components["decode"])
    with pytest.raises(TypeError, match="can generate"):
        ji.from_generative(torch.nn.Linear(2, 2), max_cache_len=LENGTH)
    with pytest.raises(ConversionError, match=r"max_cache_len: required 8"):
        ji.from_generative(module, max_cache_len=3)


@pytest.fixture(scope="module")
def exported(llama):
    from jaxinfer_converters.torch.exporters import JaxConfig, JaxExporter

    return JaxExporter().export_for_generation(
        llama[0],
        prompts(),
        JaxConfig(),
        generation_config=config(cache_implementation="static", max_cache_len=LENGTH),
    )


def generate_on(module, exported, inputs):
    """transformers' own ``generate``, with the exported components in the module's place."""
    from jaxinfer_converters.torch.exporters import full_cache

    forward, called = module.forward, []

    @functools.wraps(forward)
    def instead(**kwargs):
        name = "prefill" if kwargs["input_ids"].shape[1] > 1 else "decode"
        called.append(name)
        takes = exported.components[name].metadata.kwargs
        return exported.runners[name](**{k: v for k, v in kwargs.items() if k in takes})

    module.forward = instead
    try:
        out = module.generate(
            **inputs,
            past_key_values=full_cache(module, LENGTH),
            generation_config=config(max_new_tokens=NEW),
        )
    finally:
        module.forward = forward
    return out[:, inputs["input_ids"].shape[1] :].numpy(), called


@pytest.mark.slow
def test_the_backend_runs_in_transformers_own_loop(llama, exported):
    assert exported.export_format == "jaxinfer"
    tokens, called = generate_on(llama[0], exported, prompts())
    np.testing.assert_array_equal(tokens, reference(llama[0], prompts()))
    assert called[0] == "prefill"
    assert set(called[1:]) == {"decode"}


def test_the_backend_shares_parameters_and_joins(exported):
    from jaxinfer_converters.torch.exporters import model_of

    prefill, decode = (exported.components[name].program for name in ("prefill", "decode"))
    assert all(prefill.params[name] is leaf for name, leaf in decode.params.items())
    assert len(model_of(exported).params) == len(decode.params)


def test_the_backend_saves_and_loads(llama, exported, tmp_path):
    from transformers.exporters.base import ExportedModel

    exported.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "export.json").read_text())["export_format"] == "jaxinfer"
    exported.save_pretrained(tmp_path)  # over the old one
    again = ExportedModel.from_pretrained(tmp_path)
    tokens, _ = generate_on(llama[0], again, prompts())
    np.testing.assert_array_equal(tokens, reference(llama[0], prompts()))
    assert not [name for name in os.listdir(tmp_path) if name.startswith("tmp")]


@pytest.mark.slow
def test_the_backend_is_found_by_its_name(llama):
    from transformers.exporters.auto import AutoExportConfig, AutoHfExporter

    from jaxinfer_converters.torch.exporters import JaxExporter

    made = AutoExportConfig.from_dict({"export_format": "jaxinfer", "dynamic": True})
    assert isinstance(AutoHfExporter.from_config(made), JaxExporter)
    inputs = {"input_ids": prompts()["input_ids"]}
    exported = JaxExporter().export(llama[0].model, dict(inputs) | {"use_cache": False}, made)
    other = torch.arange(8).reshape(2, 4)  # another batch and length: dynamic
    with torch.no_grad():
        want = llama[0].model(other, use_cache=False).last_hidden_state
    got = exported(input_ids=other).last_hidden_state
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


def test_the_backend_refuses_a_cache_that_counts_in_python():
    from jaxinfer_converters.torch.exporters import JaxConfig, JaxExporter

    module = tiny("Mistral", sliding_window=6)
    cache = transformers.StaticCache(module.config, max_cache_len=LENGTH)
    inputs = prompts() | {"past_key_values": cache}
    with pytest.raises(ConversionError, match="full_cache"):
        JaxExporter().export(module, inputs, JaxConfig())
