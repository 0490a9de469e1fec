"""Attention arranged another way: whole, in blocks, by cuDNN as far as that can be seen on CPUs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxinfer as ji
from jaxinfer.core.attention import attention_as, chosen, record
from jaxinfer.core.errors import InputError
from jaxinfer.core.transform import chain
from jaxinfer.transforms.arrange import ArrangeRewrite, arrange
from jaxinfer.transforms.cast import cast
from jaxinfer.transforms.quantize import quantize
from tests.transforms.arranging import image, near, network, normal, of, weights


@pytest.fixture(scope="module", autouse=True)
def quick_to_compile():
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture(scope="module")
def attending():
    torch = pytest.importorskip("torch")

    class Attending(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.qkv = torch.nn.Linear(16, 48)

        def forward(self, x):
            heads = [t.unflatten(-1, (2, 8)).transpose(1, 2) for t in self.qkv(x).chunk(3, -1)]
            y = torch.nn.functional.scaled_dot_product_attention(*heads, is_causal=True)
            return y.transpose(1, 2).flatten(-2)

    torch.manual_seed(0)
    example = torch.randn(2, 5, 16)
    return ji.from_torch(Attending().eval(), (example,), dynamic_shapes=({0: "batch"},))


@pytest.mark.parametrize(
    ("mode", "why"), [("whole", "all scores at once"), ("blocked", "a few heads after each other")]
)
def test_attention_another_way(attending, mode, why, tmp_path):
    x = normal(3, 5, 16)
    made = arrange(attention=mode)(attending)
    near(made(x), attending(x))
    assert bool(of(made, "scan", x)) == (mode == "blocked")
    assert not of(attending, "scan", x)
    entry = made.audit()["arrange"].entries[-1]
    assert (entry.path, entry.status, entry.why) == ("(attention, 1 operations)", "changed", why)
    made.save(tmp_path / "model")
    back = ji.load(tmp_path / "model")
    assert back.rewrites == made.rewrites == (ArrangeRewrite(attention=mode),)
    assert back.audit() == made.audit()
    np.testing.assert_array_equal(back(x), made(x))


@pytest.mark.slow
def test_attention_with_the_other_transforms(attending):
    x = normal(3, 5, 16)
    for other in (cast("bf16"), quantize("W8A8")):
        want = other(attending)(x)
        for order in ((other, arrange(attention="blocked")), (arrange(attention="blocked"), other)):
            made = chain(*order)(attending)
            assert of(made, "scan", x)
            np.testing.assert_allclose(made(x), want, atol=0.02 * np.abs(want).max())


def test_cudnn_needs_a_gpu(attending):
    if jax.default_backend() == "gpu":
        pytest.skip("there is one")
    with pytest.raises(InputError, match="needs an NVIDIA GPU, JAX computes on cpu here"):
        arrange(attention="cudnn")(attending)


def test_what_cudnn_does_not_take_is_said(monkeypatch):
    fused = pytest.importorskip("jaxinfer_converters.aten._fused")
    from jaxinfer_converters.aten.attention import scaled_dot_product_attention as rule

    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    taken = {}
    monkeypatch.setattr(fused, "attend", lambda *args, **options: taken.update(options) or args[0])
    fits, odd = normal(2, 3, 5, 8), normal(2, 3, 5, 6)
    with attention_as("cudnn") as found:
        rule(None, fits, fits, fits, None, 0.0, True)
        got = rule(None, odd, odd, odd)
        rule(None, fits[..., :0, :], fits, fits)
        rule(None, jnp.asarray(fits, jnp.bfloat16), *[jnp.asarray(fits, jnp.bfloat16)] * 2)
    assert taken == {"causal": False, "scale": None}
    assert [(each.how, each.why) for each in found] == [
        ("cudnn", "float32 operands are rounded to bfloat16"),
        ("whole", "cuDNN: heads of 6 values, which is no multiple of 8"),
        ("whole", "cuDNN: a size is 0"),
        ("cudnn", ""),
    ]
    np.testing.assert_allclose(got, rule(None, odd, odd, odd), rtol=1e-6)


@pytest.mark.parametrize(
    ("mask", "causal"), [("none", True), ("bool", False), ("float", True), ("keys", False)]
)
def test_what_is_asked_of_cudnn_is_attention(monkeypatch, mask, causal):
    """The kernel itself runs on GPUs alone: here XLA's implementation stands for it."""
    fused = pytest.importorskip("jaxinfer_converters.aten._fused")
    from jaxinfer_converters.aten.attention import _attend

    own = jax.nn.dot_product_attention

    def stands(*args, implementation, **options):
        assert implementation == "cudnn"
        assert {x.dtype.name for x in args} == {"bfloat16"}
        return own(*(x.astype(jnp.float32) for x in args), implementation="xla", **options)

    monkeypatch.setattr(jax.nn, "dot_product_attention", stands)
    q, k, v = (normal(2, n, t, 8, seed=n) for n, t in ((4, 3), (2, 5), (2, 5)))
    seen = normal(2, 1, 3, 5, seed=9) > 0
    seen[0, 0, 1] = False  # a row that sees nothing
    masks = {"none": None, "bool": seen, "float": np.where(seen, normal(2, 1, 3, 5), -np.inf),
             "keys": np.array([True, False, True, True, True])}  # fmt: skip
    given = None if masks[mask] is None else jnp.asarray(masks[mask])
    q, k, v = map(jnp.asarray, (q, k, v))
    want = _attend(q, k, v, given, causal=causal, scale=0.3)
    got = fused.attend(q, k, v, given, causal=causal, scale=0.3)
    assert got.dtype == want.dtype
    np.testing.assert_allclose(got, want, atol=0.03)


def test_a_program_without_attention_says_so():
    model = ji.from_function(network, weights(), (image("NHWC"),))
    made = arrange(attention="blocked")(model)
    assert made.rewrites == ()
    last = made.audit()["arrange"].entries[-1]
    assert (last.path, last.status) == ("(attention)", "unfit")
    assert last.why == "the program has no attention operation: nothing to change"


def test_a_choice_reaches_no_further_than_its_context():
    with attention_as("whole") as outer:
        with attention_as("blocked") as inner:
            assert chosen() == "blocked"
            record("whole", "why")
        assert chosen() == "whole"
        record("whole")
    record("cudnn")
    assert [each.why for each in inner] == ["why"]
    assert len(outer) == 1
    assert chosen() == ""
    with pytest.raises(ValueError, match="attention: required one of"), attention_as("odd"):
        pass
