"""A model as a function of flat lists of arrays: what is compiled, stored and called.

flat(params, inputs, donated, sizes, key) -> results

params    arrays of the parameters, array types by their parts, in the order of ``names``
inputs    arrays of the inputs that are not donated, in order
donated   arrays of those that are
sizes     int32 scalars: the real sizes that the bucket has to know (``Padded.needs``)
key       nothing, or the data of a random key
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax

from jaxinfer.core.leaves import leaves as named_leaves
from jaxinfer.core.leaves import map_leaves
from jaxinfer.core.model import Model
from jaxinfer.core.parts import join, split


class Flat:
    """The flat function of a model, and how its arguments are made.

    Attributes:
      names: of the parameter arrays, in order.
      arrays: the parameter arrays themselves.
      donated: positions of the donated arrays among the array inputs.
    """

    def __init__(self, model: Model, donated: Sequence[int]):
        self.model, self.donated = model, tuple(donated)
        arrays, self.types = split(named_leaves(model.params))
        self.names, self.arrays = tuple(arrays), list(arrays.values())
        if model.program.random:
            self.key_impl = str(jax.random.key_impl(jax.random.key(0)))

    def params(self, arrays: Sequence[Any]) -> Any:
        """Return the parameters as the model has them."""
        whole = join(dict(zip(self.names, arrays, strict=True)), self.types)
        return map_leaves(lambda path, _: whole[path], self.model.params)

    def leaves(self, inputs: Sequence[Any], donated: Sequence[Any]) -> list[Any]:
        """Return the leaves of the inputs, fixed values included."""
        kept, given = iter(inputs), iter(donated)
        count = sum(leaf.is_array for leaf in self.model.inputs)
        arrays = iter([next(given if i in self.donated else kept) for i in range(count)])
        return [next(arrays) if leaf.is_array else leaf.value for leaf in self.model.inputs]

    def sort(self, arrays: Sequence[Any]) -> tuple[list[Any], list[Any]]:
        """Return the array inputs that are kept, and those that are donated."""
        kept = [array for i, array in enumerate(arrays) if i not in self.donated]
        return kept, [arrays[i] for i in self.donated]

    def function(self, padded: Any, plan: Any = None) -> Callable[..., list[Any]]:
        """Return the flat function of one bucket (``bucket.Padded``), with a plan's pins."""

        def flat(params: Any, inputs: Any, donated: Any, sizes: Any, key: Any) -> list[Any]:
            real = dict(zip(padded.needs, sizes, strict=True))

            def run(params: Any, leaves: Any, rng_key: Any = None) -> list[Any]:
                return list(padded.run(params, leaves, real, rng_key))

            pinned = run if plan is None else plan.pin(run)
            whole, leaves = self.params(params), self.leaves(inputs, donated)
            return jax.tree.leaves(pinned(whole, leaves, self._key(key)))

        return flat

    def _key(self, key: Sequence[Any]) -> Any:
        return jax.random.wrap_key_data(key[0], impl=self.key_impl) if key else None

    def key_structs(self) -> list[Any]:
        """Return shape and dtype of the random key's data; nothing for a model without."""
        if not self.model.program.random:
            return []
        data = jax.eval_shape(lambda: jax.random.key_data(jax.random.key(0)))
        return [jax.ShapeDtypeStruct(data.shape, data.dtype)]
