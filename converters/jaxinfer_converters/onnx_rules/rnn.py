"""Recurrent layers: RNN, GRU, LSTM with ONNX's gate orders, activations, directions and clips.

    LSTM (iofc)  i, o, f = f(W x + R h + P c + b),  c' = f c + i g(W x + R h + b),  h' = o h(c')
    GRU (zrh)    z, r = f(W x + R h + b),  n = g(W x + b_w + r (R h + b_r)),  h' = (1-z) n + z h

x: f[t, b, i]; W: f[dirs, gates m, i]; R: f[dirs, gates m, m]; one ``lax.scan`` a direction. The
steps of a sequence beyond its length change no state, and give zero.
Source: https://onnx.ai/onnx/operators/onnx__LSTM.html, onnx__GRU.html, onnx__RNN.html.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxinfer_converters.aten._common import Array, precision, rule

Activation = Callable[[Array], Array]

_ACTIVATIONS: dict[str, Callable[[Array, float, float], Array]] = {
    "relu": lambda x, a, b: jax.nn.relu(x),
    "tanh": lambda x, a, b: jnp.tanh(x),
    "sigmoid": lambda x, a, b: jax.nn.sigmoid(x),
    "affine": lambda x, a, b: a * x + b,
    "leakyrelu": lambda x, a, b: jnp.where(x < 0, a * x, x),
    "thresholdedrelu": lambda x, a, b: jnp.where(x > a, x, 0),
    "scaledtanh": lambda x, a, b: a * jnp.tanh(b * x),
    "hardsigmoid": lambda x, a, b: jnp.clip(a * x + b, 0, 1),
    "elu": lambda x, a, b: jnp.where(x < 0, a * jnp.expm1(x), x),
    "softsign": lambda x, a, b: x / (1 + jnp.abs(x)),
    "softplus": lambda x, a, b: jax.nn.softplus(x),
}
_ALPHA = {"leakyrelu": 0.01, "thresholdedrelu": 1.0, "hardsigmoid": 0.2, "elu": 1.0, "affine": 1.0}
_BETA = {"hardsigmoid": 0.5}


def _activations(
    names: Sequence[str], alpha: Sequence[float], beta: Sequence[float]
) -> list[Activation]:
    """Return the activations; alphas and betas go to those that take one, in order."""
    alphas, betas, out = list(alpha), list(beta), []
    for name in names:
        key = name.lower()
        if key not in _ACTIVATIONS:
            raise ValueError(f"unknown activation {name!r}; known: {', '.join(_ACTIVATIONS)}")
        a = alphas.pop(0) if key in (*_ALPHA, "scaledtanh") and alphas else _ALPHA.get(key, 1.0)
        takes_b = key in ("affine", "scaledtanh", "hardsigmoid")
        b = betas.pop(0) if takes_b and betas else _BETA.get(key, 0.0)
        out.append(lambda x, fn=_ACTIVATIONS[key], a=a, b=b: fn(x, a, b))
    return out


def _layer(
    step: Callable[..., Any],
    states: int,
    defaults: Sequence[str],
    x: Array,
    weights: Sequence[Array | None],
    lengths: Array | None,
    initial: Sequence[Array | None],
    *,
    hidden_size: int,
    direction: str,
    layout: int,
    activations: Sequence[str],
    activation_alpha: Sequence[float],
    activation_beta: Sequence[float],
    clip: float | None,
) -> list[Array]:
    """Run ``step(state, x, weights, f) -> state`` over time in each direction: Y, then states."""
    x = x.swapaxes(0, 1) if layout else x
    time, batch = x.shape[:2]
    directions = {"forward": (False,), "reverse": (True,), "bidirectional": (False, True)}
    sides = directions[direction]
    names = list(activations) or list(defaults) * len(sides)
    fns = _activations(names, activation_alpha, activation_beta)
    limit = (lambda v: jnp.clip(v, -clip, clip)) if clip else (lambda v: v)
    ys, finals = [], []
    for side, backwards in enumerate(sides):
        own = [None if w is None else w[side] for w in weights]
        f = fns[side * len(defaults) : (side + 1) * len(defaults)]
        begin = []
        for s in range(states):
            value = initial[s] if s < len(initial) else None
            if value is None:
                begin.append(jnp.zeros((batch, hidden_size), x.dtype))
            else:
                begin.append((value.swapaxes(0, 1) if layout else value)[side])
        steps = jnp.arange(time)

        def one(state: Any, now: Any, own: Any = own, f: Any = f) -> Any:
            at, frame = now
            new = step(state, frame, own, f, limit)
            if lengths is None:
                return new, new[0]
            live = (at < lengths)[:, None]
            new = [jnp.where(live, n, o) for n, o in zip(new, state, strict=True)]
            return new, jnp.where(live, new[0], 0)

        last, out = lax.scan(one, begin, (steps, x), reverse=backwards)
        ys.append(out)
        finals.append(last)
    y = jnp.stack(ys, 1)  # [t, dirs, b, m]
    hs = [jnp.stack([last[s] for last in finals]) for s in range(states)]
    if layout:
        return [y.transpose(2, 0, 1, 3), *(h.swapaxes(0, 1) for h in hs)]
    return [y, *hs]


def _dot(x: Array, w: Array) -> Array:
    return jnp.matmul(x, w.T, precision=precision(x, w))


def _biases(b: Array | None, size: int) -> tuple[Any, Any]:
    return (0, 0) if b is None else (b[:size], b[size:])


@rule("onnx.RNN")
def rnn(
    x: Array,
    w: Array,
    r: Array,
    b: Array | None = None,
    lengths: Array | None = None,
    h: Array | None = None,
    *,
    hidden_size: int = 0,
    direction: str = "forward",
    layout: int = 0,
    activations: Sequence[str] = (),
    activation_alpha: Sequence[float] = (),
    activation_beta: Sequence[float] = (),
    clip: float | None = None,
) -> list[Array]:
    """h' = f(W x + R h + b); every h, and the last."""

    def step(state: Any, x: Array, own: Any, f: Any, limit: Any) -> Any:
        (h,), (w, r, b) = state, own
        bw, br = _biases(b, len(w))
        return [f[0](limit(_dot(x, w) + _dot(h, r) + bw + br))]

    return _layer(
        step, 1, ("Tanh",), x, (w, r, b), lengths, (h,), hidden_size=r.shape[-1],
        direction=direction, layout=layout, activations=activations,
        activation_alpha=activation_alpha, activation_beta=activation_beta, clip=clip,
    )  # fmt: skip


@rule("onnx.GRU")
def gru(
    x: Array,
    w: Array,
    r: Array,
    b: Array | None = None,
    lengths: Array | None = None,
    h: Array | None = None,
    *,
    hidden_size: int = 0,
    direction: str = "forward",
    layout: int = 0,
    linear_before_reset: int = 0,
    activations: Sequence[str] = (),
    activation_alpha: Sequence[float] = (),
    activation_beta: Sequence[float] = (),
    clip: float | None = None,
) -> list[Array]:
    """Gates z, r, h; with ``linear_before_reset`` r goes on R h + b_r, else on h; h, last h."""

    def step(state: Any, x: Array, own: Any, f: Any, limit: Any) -> Any:
        (h,), (w, r, b) = state, own
        m = h.shape[-1]
        bw, br = _biases(b, len(w))
        inputs = _dot(x, w) + bw
        if b is None:
            br = jnp.zeros((3 * m,), x.dtype)
        zr = f[0](limit(inputs[:, : 2 * m] + _dot(h, r[: 2 * m]) + br[: 2 * m]))
        z, reset = zr[:, :m], zr[:, m:]
        if linear_before_reset:
            inner = reset * (_dot(h, r[2 * m :]) + br[2 * m :])
        else:
            inner = _dot(reset * h, r[2 * m :]) + br[2 * m :]
        new = f[1](limit(inputs[:, 2 * m :] + inner))
        return [(1 - z) * new + z * h]

    return _layer(
        step, 1, ("Sigmoid", "Tanh"), x, (w, r, b), lengths, (h,), hidden_size=r.shape[-1],
        direction=direction, layout=layout, activations=activations,
        activation_alpha=activation_alpha, activation_beta=activation_beta, clip=clip,
    )  # fmt: skip


@rule("onnx.LSTM")
def lstm(
    x: Array,
    w: Array,
    r: Array,
    b: Array | None = None,
    lengths: Array | None = None,
    h: Array | None = None,
    c: Array | None = None,
    peephole: Array | None = None,
    *,
    hidden_size: int = 0,
    direction: str = "forward",
    input_forget: int = 0,
    layout: int = 0,
    activations: Sequence[str] = (),
    activation_alpha: Sequence[float] = (),
    activation_beta: Sequence[float] = (),
    clip: float | None = None,
) -> list[Array]:
    """Gates i, o, f, c with peepholes (i, o, f); every h, the last h, the last c."""

    def step(state: Any, x: Array, own: Any, f: Any, limit: Any) -> Any:
        (h, c), (w, r, b, p) = state, own
        bw, br = _biases(b, len(w))
        i, o, forget, g = jnp.split(_dot(x, w) + _dot(h, r) + bw + br, 4, -1)
        pi, po, pf = (0, 0, 0) if p is None else jnp.split(p, 3)
        i = f[0](limit(i + pi * c))
        forget = 1 - i if input_forget else f[0](limit(forget + pf * c))
        new = forget * c + i * f[1](limit(g))
        o = f[0](limit(o + po * new))
        return [o * f[2](new), new]

    return _layer(
        step, 2, ("Sigmoid", "Tanh", "Tanh"), x, (w, r, b, peephole), lengths, (h, c),
        hidden_size=r.shape[-1], direction=direction, layout=layout, activations=activations,
        activation_alpha=activation_alpha, activation_beta=activation_beta, clip=clip,
    )  # fmt: skip
