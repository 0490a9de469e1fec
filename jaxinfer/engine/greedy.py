"""Greedy decoding over a model's components: prefill once, then decode token by token.

    token_0 = argmax logits of prefill at the last position,
    token_i = argmax logits of decode(token_{i-1}, cache)

until every row has given an end token; a row that has ended is filled with the padding token.
Prompts of unequal length are padded on the left. These are the tokens of transformers'
``generate(do_sample=False)`` (``transformers/generation/utils.py``, ``_sample``). There is no
sampling, no beam and no batching of requests here.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer

from jaxinfer.core.arrays import as_array
from jaxinfer.core.errors import InputError
from jaxinfer.core.model import Model

Array = jax.Array


class State(NamedTuple):
    """Where each row is, beside its cache.

    Attributes:
      token: i32[b], the last token of each row.
      position: i32[b], the position of that token, padding not counted.
      finished: bool[b], whether the row has given an end token.
    """

    token: Array
    position: Array
    finished: Array


@dataclasses.dataclass(frozen=True, eq=False)
class GreedyDecoder:
    """Decodes greedily with a model that has components ``prefill`` and ``decode``.

    Attributes:
      model: from ``jaxinfer.from_generative``, or loaded.
      eos_token_id: end tokens; None: those of the model's settings.
      pad_token_id: what fills a row that has ended; None: that of the model's settings.

    Example::

        decoder = GreedyDecoder(ji.load("llama/"))
        tokens = decoder({"input_ids": ids, "attention_mask": mask}, max_new_tokens=20)
    """

    model: Model
    eos_token_id: tuple[int, ...] | None = None
    pad_token_id: int | None = None

    def __post_init__(self) -> None:
        missing = {"prefill", "decode"} - set(self.model.components)
        if missing:
            raise InputError(
                f"a model to decode with needs the components prefill and decode; this one has "
                f"{', '.join(self.model.components)}: convert it with jaxinfer.from_generative"
            )

    @functools.cached_property
    def settings(self) -> Mapping[str, Any]:
        """The model's settings, with this decoder's own tokens."""
        program: Any = self.model.program
        own = dict(program.settings)
        if self.eos_token_id is not None:
            own["eos_token_id"] = list(self.eos_token_id)
        if self.pad_token_id is not None:
            own["pad_token_id"] = self.pad_token_id
        if own.get("pad_token_id") is None:
            own["pad_token_id"] = (own.get("eos_token_id") or [0])[0]
        return own

    def __call__(self, inputs: Mapping[str, Any], *, max_new_tokens: int) -> Array:
        """Return the new tokens, ``i32[b, max_new_tokens]``: one compiled loop on the device.

        Args:
          inputs: ``input_ids: i[b, t]`` and ``attention_mask: i[b, t]`` (1 for a token, 0 for
            padding on the left; optional) of a decoder; the encoder's inputs (and
            ``decoder_input_ids``, if the decoder starts with more than its start token).

        Raises:
          InputError: padding on the right, or more tokens than the cache holds.
        """
        arrays = self.check(inputs, max_new_tokens)
        return self._generate(self.model.params, arrays, max_new_tokens)

    def steps(self, inputs: Mapping[str, Any], *, max_new_tokens: int) -> Iterator[Array]:
        """Yield the new tokens ``i32[b]`` step by step, until every row has ended.

        Each step is one call of a jitted function to which the cache is donated.
        """
        arrays = self.check(inputs, max_new_tokens)
        cache, state, still = self._start(self.model.params, arrays)
        yield state.token
        for _ in range(max_new_tokens - 1):
            if bool(state.finished.all()):
                return
            cache, state = self._step(self.model.params, cache, state, still)
            yield state.token

    def check(self, inputs: Mapping[str, Any], max_new_tokens: int) -> dict[str, Any]:
        """Return the inputs as arrays, a mask among them, or raise what is wrong with them."""
        arrays = {key: as_array(value, key) for key, value in inputs.items()}
        length = self.settings["max_cache_len"]
        ids = arrays.get("decoder_input_ids" if self._has_encoder else "input_ids")
        used = (1 if ids is None else ids.shape[1]) + max_new_tokens - 1
        if max_new_tokens < 1 or used > length:
            raise InputError(
                f"max_new_tokens: required 1 or more, and prompt + max_new_tokens - 1 <= {length} "
                f"(max_cache_len, fixed at conversion); got {max_new_tokens}, {used} in all"
            )
        if self._has_encoder or ids is None:
            return arrays
        mask = arrays.setdefault("attention_mask", np.ones(ids.shape, np.int32))
        if mask.shape != ids.shape:
            raise InputError(f"attention_mask: required {list(ids.shape)}, got {list(mask.shape)}")
        if not isinstance(mask, Tracer):
            kept = np.asarray(mask) != 0
            if not (kept[:, -1].all() and (kept[:, :-1] <= kept[:, 1:]).all()):
                raise InputError(
                    "attention_mask: prompts must be padded on the left (zeros, then ones); "
                    "with a tokenizer of transformers: padding_side='left'"
                )
        return arrays

    @property
    def _has_encoder(self) -> bool:
        return "encoder" in self.model.components

    def _call(self, name: str, params: Any, values: Mapping[str, Any]) -> Any:
        """Call a component with those of the values that it takes."""
        part = self.model.components[name]
        taken = {key: values[key] for key in part.signature.names if key in values}
        return part.apply(params, **taken)

    def _begin(self, params: Any, inputs: Mapping[str, Array]) -> tuple[Any, State, dict[str, Any]]:
        """Run the prefill; returns cache, first token, and what stays the same in every step."""
        length = self.settings["max_cache_len"]
        if self._has_encoder:
            hidden = self._call("encoder", params, inputs)
            batch = jax.tree.leaves(hidden)[0].shape[0]
            start = jnp.full((batch, 1), self.settings["decoder_start_token_id"] or 0, jnp.int32)
            ids = inputs.get("decoder_input_ids", start)
            still = {"decoder_attention_mask": jnp.ones((batch, length), jnp.int32)}
            still |= {key: inputs[key] for key in ("attention_mask",) if key in inputs}
            still["encoder_outputs"] = hidden  # of which a decode reads no more than the size
            first = {**still, "decoder_input_ids": ids}
            position = jnp.full((batch,), ids.shape[1], jnp.int32)
        else:
            ids, mask = inputs["input_ids"], inputs["attention_mask"].astype(jnp.int32)
            room = jnp.ones((ids.shape[0], length - ids.shape[1]), jnp.int32)
            still = {"attention_mask": jnp.concatenate([mask, room], 1)}
            places = jnp.maximum(jnp.cumsum(mask, 1) - 1, 0)
            first = {**still, "input_ids": ids, "position_ids": places}
            position = mask.sum(1)
        out = self._call("prefill", params, first)
        token, finished = self._choose(out.logits, jnp.zeros(ids.shape[0], bool))
        return out.past_key_values, State(token, position, finished), still

    def _advance(
        self, params: Any, cache: Any, state: State, still: Mapping[str, Any]
    ) -> tuple[Any, State]:
        """Decode one token; returns cache and state after it."""
        column = state.token[:, None]
        values = {
            **still,
            "decoder_input_ids" if self._has_encoder else "input_ids": column,
            "position_ids": state.position[:, None],
            "past_key_values": cache,
        }
        out = self._call("decode", params, values)
        token, finished = self._choose(out.logits, state.finished)
        return out.past_key_values, State(token, state.position + 1, finished)

    def _choose(self, logits: Array, finished: Array) -> tuple[Array, Array]:
        """Argmax of the last position's logits in float32; padding where a row has ended."""
        best = jnp.argmax(logits[:, -1].astype(jnp.float32), -1).astype(jnp.int32)
        token = jnp.where(finished, self.settings["pad_token_id"], best).astype(jnp.int32)
        ends = jnp.asarray(self.settings["eos_token_id"] or [-1], jnp.int32)
        return token, finished | (token[:, None] == ends).any(-1)

    def generate(self, params: Any, inputs: Mapping[str, Array], max_new_tokens: int) -> Array:
        """Return the new tokens, ``i32[b, max_new_tokens]``; pure, for jit and further transforms.

        ``check`` first: nothing is checked here.
        """
        cache, state, still = self._begin(params, inputs)
        pad = self.settings["pad_token_id"]
        tokens = jnp.full((state.token.shape[0], max_new_tokens), pad, jnp.int32)
        tokens = tokens.at[:, 0].set(state.token)

        def more(carry: tuple[Array, Array, Any, State]) -> Array:
            step, _, _, state = carry
            return (step < max_new_tokens) & ~state.finished.all()

        def body(carry: tuple[Array, Array, Any, State]) -> tuple[Array, Array, Any, State]:
            step, tokens, cache, state = carry
            cache, state = self._advance(params, cache, state, still)
            tokens = lax.dynamic_update_slice_in_dim(tokens, state.token[:, None], step, 1)
            return step + 1, tokens, cache, state

        return lax.while_loop(more, body, (jnp.int32(1), tokens, cache, state))[1]

    @functools.cached_property
    def _generate(self) -> Callable[..., Array]:
        return jax.jit(self.generate, static_argnums=2)

    @functools.cached_property
    def _start(self) -> Callable[..., tuple[Any, State, dict[str, Any]]]:
        return jax.jit(self._begin)

    @functools.cached_property
    def _step(self) -> Callable[..., tuple[Any, State]]:
        return jax.jit(self._advance, donate_argnums=1)
