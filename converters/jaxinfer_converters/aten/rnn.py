"""LSTM, GRU and plain recurrent layers, and their cells: one ``lax.scan`` a direction.

Gate order and formulas: https://docs.pytorch.org/docs/stable/generated/torch.nn.LSTM.html and
GRU.html, RNN.html. The input's projection for all steps is one matmul before the scan; only
the recurrent product is inside. Functions are applied to all gates at once, those that are not
needed included, and sliced after: fused into slices of 256, XLA on CPUs takes 61 instead of
27 µs for a step of 8 x 256 (GRU: 54 and 19; ``benchmarks/recurrent.py``). Gates are computed in
float32 for half types, the state is kept in the input's type, as torch keeps it. Packed
sequences are not converted: how long the batch of each step is would have to be known.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxinfer_converters.aten._common import Array, acc_dtype, cast, rule
from jaxinfer_converters.aten.matmul import wide_dot

State = tuple[Array, ...]


class Weights(NamedTuple):
    """Parameters of one layer in one direction: [gates · hidden, in] and so on."""

    w_ih: Array
    w_hh: Array
    b_ih: Array | None = None
    b_hh: Array | None = None
    w_hr: Array | None = None
    transposed: bool = False  # [in, gates · hidden] and so on, as ``layout`` stores them


# A cell: gates of the input, gates of the state, state -> the new state; first entry is h.
Cell = Callable[[Array, Array, State, Weights], State]


def _project(x: Array, weight: Array, bias: Array | None, transposed: bool) -> Array:
    """X weightᵀ + bias (x weight + bias if it is transposed already), not yet rounded."""
    out = wide_dot(x, weight, ((x.ndim - 1,), (0 if transposed else 1,)))
    return out if bias is None else out + cast(bias, out.dtype)


def _lstm(from_x: Array, from_h: Array, state: State, weights: Weights) -> State:
    """c' = σ(f) c + σ(i) tanh(g); h' = σ(o) tanh(c'), projected by w_hr if there is one."""
    gates = from_x + from_h
    g = jnp.split(gates, 4, -1)[2]
    i, f, _, o = jnp.split(jax.nn.sigmoid(gates), 4, -1)
    wide = f * cast(state[1], f.dtype) + i * jnp.tanh(g)
    h = cast(o * jnp.tanh(wide), state[0].dtype)
    if weights.w_hr is not None:
        h = cast(_project(h, weights.w_hr, None, weights.transposed), h.dtype)
    return h, cast(wide, state[1].dtype)


def _gru(from_x: Array, from_h: Array, state: State, weights: Weights) -> State:
    """N = tanh(x_n + σ(r) h_n); h' = (1 - σ(z)) n + σ(z) h."""
    del weights
    r, z, _ = jnp.split(jax.nn.sigmoid(from_x + from_h), 3, -1)
    wide = jnp.tanh(from_x + jnp.concatenate([r, r, r], -1) * from_h)
    n = jnp.split(wide, 3, -1)[2]
    h = cast(state[0], n.dtype)
    return (cast((1 - z) * n + z * h, state[0].dtype),)


def _plain(activation: Callable[[Array], Array]) -> Cell:
    """h' = activation(x + h)."""

    def cell(from_x: Array, from_h: Array, state: State, weights: Weights) -> State:
        del weights
        return (cast(activation(from_x + from_h), state[0].dtype),)

    return cell


def _step(cell: Cell, from_x: Array, state: State, weights: Weights) -> State:
    from_h = _project(state[0], weights.w_hh, weights.b_hh, weights.transposed)
    return cell(from_x, from_h, state, weights)


def _direction(
    cell: Cell, x: Array, state: State, weights: Weights, reverse: bool
) -> tuple[Array, State]:
    """Scan one layer over x [t, b, in]; returns (outputs [t, b, h], last state)."""
    if cell is not _gru and weights.b_ih is not None and weights.b_hh is not None:
        wide = acc_dtype(x.dtype)  # the gates are a plain sum: one bias before the scan
        both = cast(weights.b_ih, wide) + cast(weights.b_hh, wide)
        weights = weights._replace(b_ih=both, b_hh=None)
    gates = _project(x, weights.w_ih, weights.b_ih, weights.transposed)

    def step(state: State, from_x: Array) -> tuple[State, Array]:
        state = _step(cell, from_x, state, weights)
        return state, state[0]

    last, outputs = lax.scan(step, state, gates, reverse=reverse)
    return outputs, last


def _split(
    params: Sequence[Array], parts: int, has_biases: bool, transposed: bool
) -> list[Weights]:
    """Group the flat parameters by layer and direction."""
    each = len(params) // parts
    found = []
    for start in range(0, len(params), each):
        w_ih, w_hh, *rest = params[start : start + each]
        w_hr = rest.pop() if len(rest) % 2 else None  # biases come in pairs
        b_ih, b_hh = rest if has_biases else (None, None)
        found.append(Weights(w_ih, w_hh, b_ih, b_hh, w_hr, transposed))
    return found


def _layers(
    context: Any,
    cell: Cell,
    x: Array,
    states: State,
    params: Sequence[Array],
    has_biases: bool,
    num_layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_first: bool,
    transposed: bool = False,
) -> tuple[Array, ...]:
    """Run all layers; returns (outputs, last states [layers · directions, b, h])."""
    directions = 2 if bidirectional else 1
    weights = _split(params, num_layers * directions, has_biases, transposed)
    x = jnp.swapaxes(x, 0, 1) if batch_first else x
    finals: list[State] = []
    for layer in range(num_layers):
        if layer and train and dropout > 0:
            key = jax.random.fold_in(context.key(), layer)
            keep = jax.random.bernoulli(key, 1 - dropout, x.shape)
            x = jnp.where(keep, x / (1 - dropout), 0) if dropout < 1 else jnp.zeros_like(x)
        outputs = []
        for direction in range(directions):
            part = layer * directions + direction
            first = tuple(state[part] for state in states)
            out, last = _direction(cell, x, first, weights[part], direction == 1)
            outputs.append(out)
            finals.append(last)
        x = jnp.concatenate(outputs, -1) if bidirectional else outputs[0]
    x = jnp.swapaxes(x, 0, 1) if batch_first else x
    return x, *(jnp.stack(parts) for parts in zip(*finals, strict=True))


def _drops(*args: Any, **kwargs: Any) -> bool:
    """Whether dropout between layers is on: several layers, dropout > 0, train."""
    names = ("num_layers", "dropout", "train")
    layers, dropout, train = (
        args[i] if len(args) > i else kwargs[name] for i, name in enumerate(names, 4)
    )
    return bool(train) and dropout > 0 and layers > 1


def _recurrent(name: str, cell: Cell) -> None:
    """Register ``name.input``, ``name_cell`` and the refusal of ``name.data``."""

    def layers(context: Any, x: Array, hx: Any, *args: Any, **kwargs: Any) -> tuple[Array, ...]:
        states = tuple(hx) if isinstance(hx, (list, tuple)) else (hx,)
        return _layers(context, cell, x, states, *args, **kwargs)

    def one(
        x: Array,
        hx: Any,
        w_ih: Array,
        w_hh: Array,
        b_ih: Array | None = None,
        b_hh: Array | None = None,
        *,
        transposed: bool = False,
    ) -> Any:
        state = tuple(hx) if isinstance(hx, (list, tuple)) else (hx,)
        weights = Weights(w_ih, w_hh, b_ih, b_hh, transposed=transposed)
        new = _step(cell, _project(x, w_ih, b_ih, transposed), state, weights)
        first, *rest = new
        return new if rest else first

    def packed(*args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError(
            "a packed sequence has as many rows a step as there are sequences that long, which "
            "is data; pass the padded tensor to the recurrent layer, and mask what comes after "
            "each sequence's end"
        )

    rule(f"aten.{name}.input", samples=_drops)(layers)
    rule(f"aten.{name}_cell.default")(one)
    rule(f"aten.{name}.data")(packed)


_recurrent("lstm", _lstm)
_recurrent("gru", _gru)
_recurrent("rnn_tanh", _plain(jnp.tanh))
_recurrent("rnn_relu", _plain(jax.nn.relu))
