"""Transform: a pair of functions from models to models, as optax's are from gradients.

    init(model, *data) -> state       the only place that sees data
    update(model, state) -> model     deterministic; the same state on the same model gives the
                                      same model
    transform(model, *data) = update(model, init(model, *data))

``chain`` composes them: each ``init`` sees the model as those before it left it. Stages keep
the order legal: what casts and folds comes before what prunes, and that before what quantizes.
Source: the interface of optax, https://optax.readthedocs.io.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from jaxinfer.core.errors import InputError
from jaxinfer.core.model import Model
from jaxinfer.core.table import RuleTable

TRANSFORMS: RuleTable[Callable[..., Any]] = RuleTable("transform")
"""Functions that make transforms, by the names under which ``jaxinfer`` has them."""

STAGES = ("cast", "fold", "smooth", "prune", "quantize", "shard", "arrange")
"""The legal order of transforms; a model that has been through one takes none before it, but
``cast`` and ``fold`` may come in either order (folding first rounds once less), and ``arrange``,
which changes no value, anywhere."""


class Transform(NamedTuple):
    """A model transform.

    Attributes:
      init: ``init(model, *data) -> state``, a pytree.
      update: ``update(model, state) -> model``.
      stage: its place in ``STAGES``, of a chain all of its places, or "" for one that may stand
        anywhere.
      apply: what calling it does, where that is cheaper than ``init`` and ``update``.

    Example:
      >>> import jax.numpy as jnp, jaxinfer as ji
      >>> model = ji.from_function(lambda p, x: x * p, jnp.ones(2), (jnp.ones(2),))
      >>> identity()(model) is model
      True
    """

    init: Callable[..., Any]
    update: Callable[[Model, Any], Model]
    stage: str = ""
    apply: Callable[..., Model] | None = None

    def __call__(self, model: Model, *data: Any) -> Model:
        """Transform a model. An iterator among the data is read once, into a list.

        Raises:
          InputError: the model has been through a later stage, or through this one.
        """
        data = tuple(list(each) if isinstance(each, Iterator) else each for each in data)
        if self.apply is not None:
            return self.apply(model, *data)
        return self.update(model, self.init(model, *data))


def identity() -> Transform:
    """Return the transform that does nothing."""
    return Transform(lambda model, *data: (), lambda model, state: model)


def chain(*transforms: Transform) -> Transform:
    """Return the transforms one after the other; the state is the tuple of theirs.

    Raises:
      InputError: their order is not legal.

    >>> chain(identity(), chain()).init(None)
    ((), ())
    """
    stages: list[str] = []
    for each in transforms:
        for stage in each.stage.split(" ") if each.stage else ():
            _require_order(stages, stage)
            stages.append(stage)

    def init(model: Model, *data: Any) -> tuple[Any, ...]:
        states = []
        for number, each in enumerate(transforms):
            states.append(each.init(model, *data))
            if number + 1 < len(transforms):  # the last one's model is made by update alone
                model = each.update(model, states[-1])
        return tuple(states)

    def update(model: Model, state: tuple[Any, ...]) -> Model:
        for each, own in zip(transforms, state, strict=True):
            model = each.update(model, own)
        return model

    def apply(model: Model, *data: Any) -> Model:
        """Update each once (``init`` has to, and ``update`` again)."""
        for each in transforms:
            model = each(model, *data)
        return model

    return Transform(init, update, " ".join(stages), apply)


def staged(model: Model, stage: str) -> Model:
    """Return the model marked as having been through a stage; for ``update`` to call.

    Raises:
      InputError: it has been through a later one, or through this one.
    """
    done = list(model.provenance.get("stages", ()))
    _require_order(done, stage)
    return model.replace(provenance={**model.provenance, "stages": [*done, stage]})


def _require_order(done: Sequence[str], stage: str) -> None:
    for name in (*done, stage):
        if name not in STAGES:
            raise ValueError(f"stage: required one of {', '.join(STAGES)}, got {name!r}")
    if stage in done:
        raise InputError(
            f"{stage}: this model has been through it already; start from the one before it"
        )
    later = [name for name in done if name != "arrange" and _rank(name) > _rank(stage)]
    if later and stage != "arrange":
        order = ", ".join(STAGES)
        raise InputError(
            f"{stage} after {later[-1]}: the legal order is {order}; fold may come before cast, "
            "and arrange anywhere"
        )


def _rank(stage: str) -> int:
    return max(0, STAGES.index(stage) - 1)  # cast and fold are of one rank
