"""Padding never shows: programs on padded inputs against the same on unpadded ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxinfer as ji
from jaxinfer.compile.bucket import Size, pad
from jaxinfer.compile.padding import run as pad_run
from tests.compile.padding import Case, assert_same, check, garbage, padded_of, quick, real_of

N, BS = (3, "n"), ("b", "s", 4)
BOTH = {"b": 4, "s": 8}
REALS = ({"b": 1, "s": 8}, {"b": 3, "s": 5})


def both(fn, *shapes, **changes):
    return Case(fn, shapes or (BS,), bucket=BOTH, reals=REALS, **changes)


def attention(p, x, mask=None, causal=False):
    q, k, v = (x @ p[name] for name in "qkv")
    heads = lambda y: y.reshape(*y.shape[:2], 2, 2).swapaxes(1, 2)
    scores = heads(q) @ heads(k).swapaxes(-1, -2) / np.sqrt(2)
    if mask is not None:
        scores = jnp.where(mask[:, None, None, :] > 0, scores, -1e9)
    if causal:
        n = x.shape[1]
        scores = jnp.where(jnp.tril(jnp.ones((n, n), bool)), scores, -jnp.inf)
    out = jax.nn.softmax(scores, -1) @ heads(v)
    return out.swapaxes(1, 2).reshape(x.shape)


def norm(x, axis):
    mean, var = x.mean(axis, keepdims=True), x.var(axis, keepdims=True)
    return (x - mean) * lax.rsqrt(var + 1e-5)


def lstm(p, x):
    def step(state, row):
        h, c = state
        i, f, g, o = jnp.split(row @ p["w"] + h @ p["u"], 4, -1)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        h = jax.nn.sigmoid(o) * jnp.tanh(c)
        return (h, c), h

    zero = jnp.zeros((x.shape[0], 3))
    (h, c), every = lax.scan(step, (zero, zero), x.swapaxes(0, 1))
    return h, c, every.swapaxes(0, 1)


def rotary(x):
    at = jnp.arange(x.shape[1], dtype=jnp.float32)[:, None] * jnp.array([1.0, 0.1])
    cos, sin = (jnp.concatenate([f(at), f(at)], -1) for f in (jnp.cos, jnp.sin))
    half = jnp.concatenate([-x[..., 2:], x[..., :2]], -1)
    return x * cos + half * sin


def experts(p, x):
    """Each token to its two best experts, by a sort of the tokens and ragged products."""
    flat = x.reshape(-1, 4)
    weight, choice = lax.top_k(jax.nn.softmax(flat @ p["gate"]), 2)
    order = jnp.argsort(choice.reshape(-1), stable=True)
    rows = flat[order // 2]
    sizes = jnp.bincount(choice.reshape(-1), length=3)
    out = lax.ragged_dot(rows, p["experts"], sizes)
    back = jnp.zeros_like(out).at[order].set(out)
    return (back.reshape(-1, 2, 4) * weight[..., None]).sum(1).reshape(x.shape)


def dense_experts(p, x):
    weight, choice = lax.top_k(jax.nn.softmax(x @ p["gate"]), 2)
    gates = (jax.nn.one_hot(choice, 3) * weight[..., None]).sum(-2)
    return jnp.einsum("bsd,edf,bse->bsf", x, p["experts"], gates)


def collatz(p, x):
    """Rows of a batch that stop at different times: a loop until the last one has."""
    step = lambda v: jnp.where(v > 1, jnp.where(v % 2 == 0, v // 2, 3 * v + 1), v)
    grown = jnp.abs(jnp.round(jnp.where(jnp.isnan(x), 97, x * 3))).astype(jnp.int32) + 1
    return lax.while_loop(lambda s: (s[1] > 1).any(),
                          lambda s: (s[0] + 1, step(s[1])), (0, grown))  # fmt: skip


def w(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


QKV = {name: w(4, 4, seed=i) for i, name in enumerate("qkv")}
LSTM = {"w": w(4, 12), "u": w(3, 12, seed=1)}
MOE = {"gate": w(4, 3), "experts": w(3, 4, 4, seed=1)}
TABLE = {"table": w(16, 4)}
IDS = {"dtypes": ["int32"]}

CASES = {
    # reductions over the padded axis
    "mean": Case(lambda p, x: x.mean(1), [N]),
    "var": Case(lambda p, x: x.var(1, ddof=1), [N], reals=[{"n": 2}, {"n": 5}]),
    "mean of all": both(lambda p, x: x.mean()),
    "max, min, prod": Case(lambda p, x: (x.max(1), x.min(1), x.prod(1)), [N]),
    "max of integers": Case(lambda p, x: (x.max(1), x.min(1)), [N], ["int32"]),
    "any, all": Case(lambda p, x: (x.any(1), x.all(1)), [N], ["bool"]),
    "all bits": Case(lambda p, x: lax.reduce_and(x, (1,)), [N], ["int32"]),
    "argmax, argmin": Case(lambda p, x: (x.argmax(1), x.argmin(1)), [N]),
    "argmax of -inf": Case(lambda p, x: (x * 0 - jnp.inf).argmax(1), [N]),
    "logsumexp": Case(lambda p, x: jax.nn.logsumexp(x, 1), [N]),
    "softmax": Case(lambda p, x: jax.nn.softmax(x, 1), [N]),
    "any reduction": Case(
        lambda p, x: lax.reduce(x, 0.0, lambda a, b: a + b + a * b, (1,)), [N]
    ),
    "norm over the axis": Case(lambda p, x: norm(x, 1), [N]),
    "layer norm": both(lambda p, x: norm(x, -1)),
    "batch statistics": both(lambda p, x: norm(x, (0, 1))),
    "sqrt n": Case(lambda p, x: x.sum(1) / np.sqrt(x.shape[1]), [N]),
    "1 / (n + 3)": Case(lambda p, x: x.sum(1) * (1 / (x.shape[1] + 3)), [N]),
    "log n": Case(lambda p, x: x.sum(1) * float(np.log(x.shape[1])) * 0.7, [N], reals=[{"n": 5}]),
    "bfloat16 by n": Case(lambda p, x: x.sum(1) / x.shape[1], [N], ["bfloat16"]),
    "size as a result": Case(lambda p, x: (x, jnp.int32(x.shape[1])), [N]),
    # products
    "contraction": Case(lambda p, x: x @ x.T, [N]),
    "gram": Case(lambda p, x: x.T @ x, [N]),
    "uniform operand": both(lambda p, x: jnp.ones(x.shape[0] * x.shape[1]) @ x.reshape(-1, 4)),
    # attention
    "attention": both(attention, params=QKV),
    "causal attention": both(lambda p, x: attention(p, x, causal=True), params=QKV),
    "masked attention": both(attention, BS, ("b", "s"), dtypes=["float32", "int32"], params=QKV),
    "dot_product_attention": both(
        lambda p, x: jax.nn.dot_product_attention(*[x[..., None, :]] * 3, is_causal=True)
    ),
    # joining and cutting
    "cls token": both(
        lambda p, x: jnp.concatenate([jnp.broadcast_to(p["c"], (x.shape[0], 1, 4)), x], 1).mean(1),
        params={"c": w(4)},
    ),
    "padded part first": Case(lambda p, x: jnp.concatenate([x, x[:, :1], x], 1).cumsum(1), [N]),
    "last": Case(lambda p, x: x[:, -1], [N]),
    "all but the last": Case(lambda p, x: x[:, 1:].sum(1) - x[:, :-1].sum(1), [N]),
    "last three": Case(lambda p, x: x[:, -3:], [N], reals=[{"n": 3}, {"n": 7}]),
    "reversed": Case(lambda p, x: x[:, ::-1], [N]),
    "rolled": Case(lambda p, x: jnp.roll(x, 1, 1), [N]),
    "split": Case(
        lambda p, x: lax.split(jnp.concatenate([x, 2 * x], 1), (x.shape[1],) * 2, axis=1), [N]
    ),
    "edges": Case(lambda p, x: jnp.pad(x, ((0, 0), (1, 2)), constant_values=7).sum(1), [N]),
    "to a fixed size": Case(lambda p, x: jnp.pad(x, ((0, 0), (0, 16 - x.shape[1]))), [N]),
    "apart by zeros": Case(lambda p, x: lax.pad(x, 0.0, [(0, 0, 0), (1, 1, 2)]), [N]),
    "positions": both(lambda p, x: x + p["table"][: x.shape[1]], params=TABLE),
    "last positions": both(lambda p, x: x + p["table"][-x.shape[1] :], params=TABLE),
    "positions after a past": both(
        lambda p, x: x + lax.dynamic_slice_in_dim(p["table"], 13, x.shape[1]), params=TABLE
    ),
    "rotary": both(lambda p, x: rotary(x)),
    "into a cache": Case(
        lambda p, x: lax.dynamic_update_slice(jnp.ones((3, 10)), x, (0, 9)), [N]
    ),
    "into a part": Case(lambda p, x: jnp.full((3, 16), 7.0).at[:, : x.shape[1]].set(x), [N]),
    "added to a part": Case(lambda p, x: jnp.ones((3, 16)).at[:, 2 : 2 + x.shape[1]].add(x), [N]),
    "a part of it": Case(lambda p, x: x.at[:, -2:].set(0.5), [N], reals=[{"n": 2}, {"n": 6}]),
    "one place of it": Case(lambda p, x: x.at[:, -1].set(0.5).sum(1), [N]),
    # running
    "cumsum": Case(lambda p, x: jnp.cumsum(x, 1), [N]),
    "cumulative from the back": Case(lambda p, x: lax.cummax(x, axis=1, reverse=True), [N]),
    "flat cumsum": both(lambda p, x: jnp.cumsum(x[..., 0].reshape(-1)).reshape(x.shape[:2])),
    "sort": Case(lambda p, x: jnp.sort(x, 1), [N]),
    "argsort": Case(lambda p, x: jnp.argsort(-x, 1), [N]),
    "sort of integers": Case(lambda p, x: jnp.argsort(x, 1), [N], ["int32"]),
    "median": Case(lambda p, x: jnp.median(x, 1), [N]),
    "top_k": Case(lambda p, x: lax.top_k(x, 2), [N], reals=[{"n": 2}, {"n": 7}]),
    # windows
    "convolution": Case(
        lambda p, x: lax.conv_general_dilated(x[None], p["k"], (1,), "SAME"), [N],
        params={"k": w(2, 3, 3)},
    ),
    "depthwise convolution": Case(
        lambda p, x: lax.conv_general_dilated(x[None], p["k"], (1,), [(2, 0)],
                                              feature_group_count=3),
        [N], params={"k": w(6, 1, 3)},
    ),
    "into merged axes": both(
        lambda p, x: lax.dynamic_update_slice(x.reshape(-1), jnp.ones(2), (1,)).reshape(x.shape)
    ),
    "carried on": Case(
        lambda p, x: lax.fori_loop(0, 12, lambda i, c: (x, *c[:-1]), (jnp.zeros_like(x),) * 10)[9]
        .sum(1), [N],
    ),
    "ones of every bit, of unsigned": Case(
        lambda p, x: lax.reduce_and(x.astype("uint8"), (1,)), [N], ["int32"]
    ),
    "valid convolution": Case(
        lambda p, x: lax.conv_general_dilated(x[None], p["k"], (1,), [(0, 1)], rhs_dilation=(2,)),
        [N], params={"k": w(2, 3, 3)}, reals=[{"n": 4}, {"n": 7}],
    ),
    "transposed convolution": Case(
        lambda p, x: lax.conv_general_dilated(x[None], p["k"], (1,), [(1, 1)], lhs_dilation=(2,)),
        [N], params={"k": w(2, 3, 3)},
    ),
    "convolved batch": Case(
        lambda p, x: lax.conv_general_dilated(x, p["k"], (2,), "SAME"), [("n", 3, 7)],
        params={"k": w(2, 3, 3)},
    ),
    "max pool": Case(
        lambda p, x: lax.reduce_window(x, -jnp.inf, lax.max, (1, 3), (1, 1), "SAME"), [N]
    ),
    "average pool": Case(
        lambda p, x: lax.reduce_window(x, 0.0, lax.add, (1, 3), (1, 1), "SAME")
        / lax.reduce_window(jnp.ones_like(x), 0.0, lax.add, (1, 3), (1, 1), "SAME"),
        [N],
    ),
    "global pool": Case(
        lambda p, x: lax.reduce_window(x, 0.0, lax.add, (1, x.shape[1]), (1, 1), "VALID"), [N]
    ),
    "any pool": Case(
        lambda p, x: lax.reduce_window(
            x, 1.0, lambda a, b: a * b, (1, 3), (1, 1), "SAME"
        ), [N],
    ),
    # control flow
    "lstm over time": both(lstm, params=LSTM),
    "scan from the back": Case(
        lambda p, x: lax.scan(lambda c, a: (jnp.tanh(c + a), c * a), jnp.ones(3), x.T,
                              reverse=True), [N],
    ),
    "scan of a constant": Case(
        lambda p, x: lax.scan(lambda c, a: (c * 0.9 + a, c), x[:, 0], jnp.ones(x.shape[1])), [N]
    ),
    "padded constant of a scan": Case(
        lambda p, x: lax.scan(lambda c, a: (c + a * x.sum(), x.max(1)), 0.0, jnp.arange(3.0)), [N]
    ),
    "loop to n": Case(
        lambda p, x: lax.fori_loop(0, x.shape[1], lambda i, c: c + x[:, i] * i, jnp.zeros(3)), [N]
    ),
    "number carried by a loop": Case(
        lambda p, x: lax.while_loop(lambda s: s[0] < s[1],
                                    lambda s: (s[0] + 1, s[1], s[2] + x[:, s[0]]),
                                    (0, x.shape[1], jnp.zeros(3)))[2], [N],
    ),
    "loop until all have stopped": Case(collatz, [("n",)]),
    "branches": Case(
        lambda p, x: lax.cond(x[0, 0] > 0, lambda y: y.mean(1), lambda y: -y.max(1), x), [N]
    ),
    "checkpoint": Case(lambda p, x: jax.checkpoint(lambda y: jnp.sin(y).sum(1))(x), [N]),
    "custom_jvp": Case(lambda p, x: jax.nn.silu(x).sum(1) + jax.nn.relu(x).mean(1), [N]),
    "vmap": Case(lambda p, x: jax.vmap(lambda r: r / r.sum())(x), [N]),
    "gradient": Case(lambda p, x: jax.grad(lambda y: (jax.nn.softmax(y, 1) ** 2).sum())(x), [N]),
    # indices
    "embedding": Case(lambda p, x: p["table"][x].mean(0), [("n",)], **IDS, params=TABLE),
    "index from the end": Case(lambda p, x: x[:, jnp.array([-1, 0])], [N]),
    "index beyond, clipped": Case(lambda p, x: jnp.take(x, 50, 1, mode="clip"), [N]),
    "index beyond, filled": Case(lambda p, x: jnp.take(x, jnp.array([6, 0]), 1), [N]),
    "index beyond": Case(lambda p, x: x[:, jnp.array([6, 0])], [N]),
    "window beyond": Case(
        lambda p, x: lax.dynamic_slice(x, (0, 6), (3, 2)), [N], reals=[{"n": 2}, {"n": 7}]
    ),
    "along": Case(lambda p, x: jnp.take_along_axis(x, x.argmax(1)[:, None], 1), [N]),
    "batched index": both(lambda p, x: x[jnp.arange(x.shape[0]), x[..., 0].argmax(1)]),
    "histogram": Case(lambda p, x: jnp.bincount(x, length=4), [("n",)], **IDS),
    "scattered, clipped": Case(
        lambda p, x: jnp.zeros(3).at[x].add(1.0, mode="clip"), [("n",)], **IDS
    ),
    "scattered rows": Case(lambda p, x: jnp.zeros((5, 3)).at[(x[0] > 0).astype(int)].max(x.T), [N]),
    "one-hot": Case(lambda p, x: jax.nn.one_hot(x, 3).mean(0), [("n",)], **IDS),
    "last token": both(
        lambda p, x, m: x[jnp.arange(x.shape[0]), m.sum(1) - 1], BS, ("b", "s"),
        dtypes=["float32", "int32"],
    ),
    # experts
    "experts": both(experts, params=MOE),
    "dense experts": both(dense_experts, params=MOE),
    # axes that are merged
    "flat": both(lambda p, x: (x.reshape(-1, 4) @ p["w"]).reshape(x.shape), params={"w": w(4, 4)}),
    "flat sum": both(lambda p, x: x.reshape(-1).sum() / x.size),
    "heads": Case(
        lambda p, x: x.reshape(-1, 2, 2).swapaxes(0, 1).reshape(2, -1).T, [("n", 4)]
    ),
    "flat sort": both(lambda p, x: jnp.sort(x[..., 0].reshape(-1)).reshape(x.shape[:2])),
    "flat argmax": both(lambda p, x: x.reshape(-1, 4).argmax(0)),
    "flat slice": both(lambda p, x: x.reshape(-1, 4)[-2:]),
    "flat index": both(lambda p, x: x.reshape(-1, 4)[jnp.array([0, -1])]),
    "flat parts": both(lambda p, x: jnp.concatenate([x.reshape(-1, 4)] * 2).cumsum(0)[-1]),
    "flat in two orders": both(
        lambda p, x: (x.reshape(-1, 4) + x.swapaxes(0, 1).reshape(-1, 4)).reshape(x.shape)
    ),
    "flat positions": both(
        lambda p, x: (x[..., 0].reshape(-1) * jnp.arange(x[..., 0].size)).reshape(x.shape[:2])
    ),
    "flat product": both(lambda p, x: x.reshape(-1, 4).T @ x.swapaxes(0, 1).reshape(-1, 4)),
    "flat scatter": both(
        lambda p, x: jnp.zeros(x[..., 0].size).at[jnp.arange(x[..., 0].size)[::-1]].set(
            x[..., 0].reshape(-1)).reshape(x.shape[:2])
    ),
    "twice, then apart": Case(
        lambda p, x: jnp.concatenate([x, 2 * x]).reshape(2, -1, 4)[1], [("n", 4)]
    ),
    "pairs": Case(lambda p, x: (x[0][:, None] - x[0]).reshape(-1).max(), [N]),
    # linear algebra and transforms of a batch
    "cholesky": Case(lambda p, x: jnp.linalg.cholesky(x @ x.mT + jnp.eye(3)), [("n", 3, 3)]),
    "fft": Case(lambda p, x: jnp.fft.rfft(x, axis=0), [N]),
    "bits": Case(lambda p, x: lax.bitcast_convert_type(x, jnp.int32), [N]),
    # dims that are expressions
    "2 n + 1": Case(lambda p, x, y: x.mean(0) + y.max(0), [("2*n + 1",), ("n",)]),
}  # fmt: skip


MANY = frozenset({
    "max of integers", "any, all", "argmax of -inf", "log n", "contraction", "masked attention",
    "dot_product_attention", "all but the last", "split", "apart by zeros", "last positions",
    "added to a part", "one place of it", "argsort", "median", "convolved batch", "any pool",
    "scan of a constant", "padded constant of a scan", "checkpoint", "custom_jvp", "vmap",
    "gradient", "window beyond", "scattered rows", "one-hot", "last token", "dense experts",
    "flat", "cholesky", "bits", "reversed", "transposed convolution", "var", "logsumexp",
    "norm over the axis", "flat product", "flat index", "gram", "rotary",
    "index beyond, clipped", "embedding", "branches",
})  # fmt: skip
"""Cases that are run with the slow tests."""


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] if n in MANY else []) for n in CASES]
)
def test_padding_never_shows(name):
    check(CASES[name], tol=2e-2 if "bfloat16" in name else 2e-6)


MUTATED = (
    *("mean", "max, min, prod", "attention", "convolution", "top_k", "lstm over time"),
    *("edges", "last", "cls token", "histogram", "into a cache", "index beyond"),
)


@pytest.mark.parametrize("name", MUTATED)
def test_each_thing_done_is_needed(name):
    """Leave out what is done in any one equation, and the padding shows."""
    case = CASES[name]
    padded = padded_of(case)
    found = padded.run.__closure__  # the findings that the function runs with
    (findings,) = [c.cell_contents for c in found if hasattr(c.cell_contents, "actions")]
    assert findings.actions or findings.numbers
    for address in list(findings.actions):
        kept = findings.actions.pop(address)
        with pytest.raises(AssertionError):
            check(case, padded)
        findings.actions[address] = kept
    check(case, padded)


def test_a_mask_of_zeros_is_no_minus_infinity(monkeypatch):
    """The check sees a wrong identity as well."""
    monkeypatch.setattr(pad_run, "fill_of", lambda name, dtype: 0)
    case = Case(lambda p, x: (x - 9).max(1), [N])
    with pytest.raises(AssertionError):
        check(case)


def test_every_slow_case_is_a_case():
    assert CASES.keys() >= MANY


def test_batch_only_is_the_program_itself():
    case = Case(lambda p, x: jnp.tanh(x @ p["w"]), [("n", 4)], params={"w": w(4, 2)})
    padded = check(case)
    assert (padded.needs, padded.masked, padded.least) == ((), (), {})
    assert "where" not in str(jax.make_jaxpr(padded.run)(case.params, [jnp.ones((8, 4))], {}))


def test_the_audit_names_primitive_line_and_axis():
    padded = padded_of(CASES["softmax"])
    assert [item.primitive for item in padded.masked] == ["reduce_max", "reduce_sum"]
    assert "test_pad_programs.py" in padded.masked[0].source
    assert padded.masked[0].did == "axis 1 of operand 0 ((n of 8)) <- lowest"
    assert padded.needs == ("n",)


def test_exact_symbols_need_nothing():
    case = both(attention, params=QKV)
    model = ji.from_function(case.fn, QKV, None)
    padded = pad(model, [BS], BOTH, exact=("s",), arrays=["float32"])
    assert padded.needs == ()
    assert padded.outputs == ((Size("b"), None, None),)
    assert pad(model, [BS], BOTH, exact=("b", "s"), arrays=["float32"]).outputs == ((None,) * 3,)


def test_quantized_and_pruned_weights():
    """The rules of array types are asked after the masks."""
    case = both(attention, params={name: w(4, 4, seed=i) for i, name in enumerate("qkv")})
    x = jnp.ones((2, 8, 4))
    model = ji.from_function(case.fn, case.params, (x,))
    many = ji.prune("magnitude", sparsity=0.5)(model)
    rng = np.random.default_rng(0)
    for changed in (ji.quantize("W8A16")(model), ji.quantize("W8A8")(model), many):
        padded = pad(changed, [BS], BOTH)
        run = quick(padded.run)
        for real in REALS:
            given = rng.normal(size=(real["b"], real["s"], 4)).astype("float32")
            want = quick(changed.apply)(changed.params, given)
            got = run(changed.params, [garbage(given, (4, 8, 4))], real)[0]
            # activations are rounded: one that is at an edge moves the sum by a step of 1/127
            assert_same(real_of(got, padded.outputs[0], real), want, 2e-2)


def test_padding_is_masked_before_activations_are_quantized():
    """The scale of an image is the largest of its values, of the real ones."""
    fn = lambda p, x: lax.conv_general_dilated(x, p["w"], (1,), "SAME")
    params = {"w": w(2, 3, 3)}
    model = ji.from_function(fn, params, (jnp.ones((2, 3, 8)),))
    small = ji.quantize("W8A8")(model)
    padded = pad(small, [(2, 3, "n")], {"n": 8})
    given = np.random.default_rng(0).normal(size=(2, 3, 5)).astype("float32")
    got = quick(padded.run)(small.params, [garbage(given, (2, 3, 8))], {"n": 5})[0]
    assert_same(got[..., :5], small.apply(small.params, given), 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
def test_half_types(kind):
    case = Case(lambda p, x: (jax.nn.softmax(x, 1), x.mean(1), x.max(1), norm(x, 1)), [N], [kind])
    check(case, tol=2e-2)  # sums of 8 in half precision, eps 8e-3 of bfloat16


@pytest.mark.slow
def test_under_transforms():
    case = CASES["softmax"]
    padded = padded_of(case)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(3, 5)), jnp.float32)
    full = garbage(x, (3, 8))
    run = lambda y: padded.run({}, [y], {"n": 5})[0]
    assert_same(jax.vmap(run)(jnp.stack([full, full]))[1][:, :5], jax.nn.softmax(x, 1))
    slope = jax.grad(lambda y: (run(y)[:, :5] ** 2).sum())(jnp.zeros((3, 8)))
    assert np.isfinite(slope).all()


def test_x64():
    with jax.enable_x64(True):
        case = Case(lambda p, x: (x.mean(1), x[:, -1], lax.dynamic_slice(x, (0, 7), (3, 1))), [N],
                    ["float64"])  # fmt: skip
        check(case, tol=1e-15)


def test_array_constants():
    """A table that the function closes over: the beginning of a larger one, whatever the size."""
    case = Case(lambda p, x: x * np.arange(x.shape[1], dtype="float32") + np.float32(x.shape[1]),
                [N])  # fmt: skip
    check(case)
