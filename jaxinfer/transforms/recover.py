"""recover: train what pruning and quantizing left of a model, with masks and formats held.

    total = (1 - a) loss(output, target) + a D(output, teacher's output)
    kl:   D = T^2 mean over positions of sum_v p_v (log p_v - log q_v),
          p = softmax(teacher / T), q = softmax(output / T), along the last axis
    mse:  D = mean (output - teacher)^2

Masked weights train under their masks: gradients reach the kept elements alone, and what an
optimizer adds to the others (weight decay) is dropped. Of a parameter that was pruned and is
masked no more (finalized, or quantized since), what is zero stays zero. Quantized weights train
as float copies that are quantized anew in each forward pass, their gradient that of the floats
(``_recover_leaves``). A schedule chooses the masks again as the steps go.

Sources: Hinton, Vinyals, Dean, "Distilling the knowledge in a neural network", 2015,
https://arxiv.org/abs/1503.02531; Zhu, Gupta, "To prune, or not to prune", 2017 (gradual pruning),
https://arxiv.org/abs/1710.01878; straight-through: Bengio, Leonard, Courville, 2013,
https://arxiv.org/abs/1308.3432.

What it does not do: simulate quantized *activations* (of a W8A8 model the weights are trained, in
float products), batch statistics and dropout (it trains the inference function), learned scales,
several devices (the arrays stay where they are; the step is one ``jit``).
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxinfer.core._compat import x64_scope
from jaxinfer.core.array_types import materialize, nbytes
from jaxinfer.core.arrays import as_array
from jaxinfer.core.audit import Audit, Entry, merged, with_audit
from jaxinfer.core.errors import InputError, InputTypeError, MissingExtraError
from jaxinfer.core.leaves import leaves, with_leaves
from jaxinfer.core.model import Model
from jaxinfer.core.multi import MultiProgram
from jaxinfer.core.program import x64_of
from jaxinfer.core.selectors import Rule, resolve
from jaxinfer.numerics.masks import Masked
from jaxinfer.transforms import _recover_leaves as kinds
from jaxinfer.transforms._data import leaves_of
from jaxinfer.transforms._recover_step import DIVERGENCES, step_of
from jaxinfer.transforms.prune import remasking, zero_text

Array = jax.Array


def recover(
    model: Model,
    data: Iterable[tuple[Any, Any]],
    loss: Callable[[Any, Any], Any] | None,
    *,
    tx: Any,
    steps: int | None = None,
    epochs: int = 1,
    teacher: Model | None = None,
    distill: float | None = None,
    temperature: float = 2.0,
    divergence: str = "kl",
    schedule: Callable[[int], Any] | None = None,
    every: int = 1,
    trainable: Sequence[Rule] = (),
    key: Any = None,
    progress: Callable[[int, int | None, float], None] | None = None,
) -> Model:
    """Return the model with its float parameters trained, its masks and formats as they are.

    What trains: floating leaves, the weights of masked ones, and quantized ones through their
    format; in float32 copies where they are smaller. What does not, and is in the audit with
    the reason: buffers, integers, ``Compressed`` leaves, what ``trainable`` ignores.

    Args:
      model: any model that is no pair of components (recover one: ``model.components[...]``).
      data: an iterable of pairs (inputs, target). Inputs: what a call of the model takes, a
        tuple by position, a dict by name, or the one input by itself; target: a pytree of
        arrays. An iterator is read into a list if there is more than one epoch.
      loss: ``loss(output, target) -> scalar``, of a batch; traced. None if ``distill`` is 1. A
        model that returns new state besides its outputs: of the outputs.
      tx: an optax gradient transformation, ``optax.adam(1e-3)``.
      steps: number of steps; goes through the data as often as that takes. By default
        ``epochs`` times through.
      epochs: how often to go through the data, if ``steps`` is not given.
      teacher: a model of the same inputs and outputs, the dense one, to distill from.
      distill: the share a of the distillation in [0, 1]; by default 0.5 with a teacher, else 0.
      temperature: T of the softmax.
      divergence: ``"kl"`` for logits along the last axis, ``"mse"`` for any outputs; of several
        float outputs the mean.
      schedule: step -> sparsity (``jaxinfer.numerics.schedules``): before step i the masks are
        chosen anew at ``schedule(i)``, starting from all weights; the model must be of
        ``prune``, and keeps its method, pattern, scope and shares. Masks of a growing sparsity
        are nested. Weights of n:m keep their masks.
      every: choose masks only at steps divisible by this one.
      trainable: rules; those that ignore a path freeze it.
      key: for models that sample: a JAX key, folded with the number of the step.
      progress: called as ``progress(steps done, total or None, loss)``; waits for each step.

    Returns:
      A Model with the same structure of parameters, masks (but for ``schedule``), formats and
      tiles.

    Raises:
      InputError: nothing trains, no data, batches that do not fit (which), numbers out of range,
        a loss that is no scalar, or one that is NaN or infinite (at which step).
      InputTypeError: ``tx``, ``data`` or a batch of another kind.
      MissingExtraError: ``tx`` is none, and optax is not installed.

    Cost: a compilation for each shape of batch; memory for a float copy of what trains, its
    gradient, and the optimizer's state. The model given is not changed.

    >>> import jax.numpy as jnp, optax, jaxinfer as ji
    >>> from jaxinfer.transforms.prune import prune
    >>> x = jnp.array([[1.0, 2.0], [3.0, 1.0]])
    >>> dense = ji.from_function(lambda p, x: x @ p, jnp.array([1.0, 2.0]), (x,))
    >>> pruned = prune()(dense)
    >>> mse = lambda y, target: jnp.mean((y - target) ** 2)
    >>> better = recover(pruned, [(x, dense(x))], mse, tx=optax.sgd(0.1), steps=50)
    >>> before, after = mse(pruned(x), dense(x)), mse(better(x), dense(x))
    >>> bool(after < before), better.params.mask.tolist()
    (True, [False, True])
    """
    share = _checked(loss, tx, steps, epochs, teacher, distill, temperature, divergence, every)
    if isinstance(model.program, MultiProgram):
        raise InputError(
            "recover: this model has components, and a loss is of one of them: recover "
            f"model.components[...] ({', '.join(model.components)}) and put its params back"
        )
    if model.program.random and key is None:
        raise InputError("recover: this model samples: pass key=jax.random.key(0)")
    named = leaves(model.params)
    with x64_scope(x64_of(model.program)):
        fixed = _fixed(model, named, trainable)
    own = [path for path in named if path not in fixed]
    if not own:
        why = "; ".join(f"{path}: {reason}" for path, (_, reason) in list(fixed.items())[:5])
        raise InputError(f"recover: no parameter trains: {why}")
    choose = None if schedule is None else jax.jit(remasking(model))

    with x64_scope(x64_of(model.program)):
        held = _held(model, {path: named[path] for path in own})
        masks = _Masks(held, schedule, choose, every)
        step = step_of(model, loss, tx, teacher, share, (divergence, temperature))
        values = {path: kinds.master(named[path]) for path in own}
        # copied: a state that holds the parameters themselves could not be donated with them
        state = jax.tree.map(lambda x: x.copy() if hasattr(x, "copy") else x, tx.init(values))
        watch = _Watch(progress, _total(data, steps, epochs))
        count = 0
        for count, (inputs, target) in enumerate(_pairs(model, data, steps, epochs), 1):
            masks.at(count - 1, values)
            own_key = None if key is None else jax.random.fold_in(key, count - 1)
            seen = None if teacher is None else teacher.params
            values, state, value = step(
                values, state, masks.now, named, seen, inputs, target, own_key
            )
            watch(count, value)
        if not count:
            raise InputError("recover: the data hold no batch")
        watch.done(values)
        changes = {
            path: kinds.trained(each, named[path], masks.now.get(path))
            for path, each in values.items()
        }
        entries = [
            Entry(path, "changed", _how(leaf, path in held), "", nbytes(named[path]), nbytes(leaf))
            for path, leaf in changes.items()
        ]
    for path, (status, why) in fixed.items():
        entries.append(Entry(path, status, why, "", nbytes(named[path]), nbytes(named[path])))
    audit = Audit("recover", merged(entries, list(named)))
    params = with_leaves(model.params, changes)
    return model.replace(params=params, provenance=with_audit(model.provenance, audit))


def _held(model: Model, named: Mapping[str, Any]) -> dict[str, Array]:
    """Return the masks that hold: of masked leaves, and the zeros of those that were pruned."""
    pruned = model.provenance.get("prune", {}).get("leaves", {})
    held = {}
    for path, leaf in named.items():
        if isinstance(leaf, Masked):
            held[path] = leaf.mask
        elif path in pruned:
            held[path] = materialize(leaf) != 0
    return held


def _how(leaf: Any, held: bool) -> str:
    if not held:
        return kinds.how(leaf)
    mask = leaf.mask if isinstance(leaf, Masked) else materialize(leaf) != 0
    return f"{kinds.how(leaf)}, {zero_text(mask)}"


def _checked(
    loss: Any,
    tx: Any,
    steps: int | None,
    epochs: int,
    teacher: Model | None,
    distill: float | None,
    temperature: float,
    divergence: str,
    every: int,
) -> float:
    """Check the arguments; return the share of the distillation."""
    if not (callable(getattr(tx, "init", None)) and callable(getattr(tx, "update", None))):
        if importlib.util.find_spec("optax") is None:
            raise MissingExtraError(
                "recover: tx is an optax gradient transformation, and optax is not installed: "
                "pip install 'jaxinfer[recover]' (or optax)"
            )
        raise InputTypeError(
            "recover: tx: required an optax gradient transformation such as optax.adam(1e-3), "
            f"got {type(tx).__name__}"
        )
    share = (0.0 if teacher is None else 0.5) if distill is None else distill
    problems = []
    if not 0 <= share <= 1:
        problems.append(f"distill: required a number from 0 to 1, got {share}")
    if share and teacher is None:
        problems.append(f"distill={share}: required teacher=, the dense model")
    if teacher is not None and not share:
        problems.append("distill=0 leaves no use for a teacher")
    if share < 1 and not callable(loss):
        problems.append(f"loss: required a function (output, target) -> scalar, got {loss!r}")
    if not temperature > 0:
        problems.append(f"temperature: required a number above 0, got {temperature}")
    if divergence not in DIVERGENCES:
        problems.append(f"divergence: required one of {', '.join(DIVERGENCES)}, got {divergence!r}")
    for name, value in (("steps", steps), ("epochs", epochs), ("every", every)):
        if value is not None and value < 1:
            problems.append(f"{name}: required 1 or more, got {value}")
    if problems:
        raise InputError("recover: " + "; ".join(problems))
    return float(share)


def _fixed(
    model: Model, named: Mapping[str, Any], rules: Sequence[Rule]
) -> dict[str, tuple[str, str]]:
    """Return (status, why) of each parameter that does not train."""
    settings = resolve(rules, named, {})
    buffers = getattr(model.program, "state_kinds", {})
    found = {}
    for path, leaf in named.items():
        if settings[path] is None:
            found[path] = "ignored", "by a rule"
        elif buffers.get(path) == "buffer":
            found[path] = "unfit", "a buffer"
        elif why := kinds.unfit(leaf):
            found[path] = "unfit", why
    return found


class _Masks:
    """The masks of the moment, by path: held, or chosen by a schedule."""

    def __init__(self, held: dict[str, Array], schedule: Any, choose: Any, every: int):
        self.now, self.schedule, self.choose, self.every = held, schedule, choose, every
        self.last: float | None = None

    def at(self, step: int, values: Mapping[str, Array]) -> None:
        """Choose the masks for a step."""
        if self.schedule is None or step % self.every:
            return
        sparsity = float(self.schedule(step))
        if not 0 <= sparsity < 1:
            raise InputError(f"recover: step {step}: the schedule gives {sparsity}, not in [0, 1)")
        if sparsity == self.last:
            return
        before = self.now
        if self.last is None or sparsity < self.last:  # from all weights
            before = {path: jnp.ones_like(mask) for path, mask in self.now.items()}
        weights = {path: values[path] for path in self.now}
        self.now, self.last = self.now | self.choose(weights, before, sparsity), sparsity


class _Watch:
    """Looks at each loss, one step late so that the device need not wait for the host."""

    def __init__(self, progress: Any, total: int | None):
        self.progress, self.total = progress, total
        self.pending: tuple[int, Any] | None = None

    def __call__(self, count: int, value: Any) -> None:
        if self.progress is not None:
            self._look(count, value)
            self.progress(count, self.total, float(value))
            return
        if self.pending is not None:
            self._look(*self.pending)
        self.pending = count, value

    def done(self, values: Any) -> None:
        """Look at the last loss, and at what the last step made."""
        if self.pending is not None:
            self._look(*self.pending)
        odd = [path for path, x in values.items() if not bool(jnp.isfinite(x).all())]
        if odd:
            raise InputError(
                f"recover: the last step made {', '.join(odd[:5])} infinite or NaN; "
                "a smaller learning rate, or optax.clip_by_global_norm before it"
            )

    def _look(self, count: int, value: Any) -> None:
        if not math.isfinite(float(value)):
            raise InputError(
                f"recover: step {count - 1}: the loss is {float(value)}; a smaller learning rate, "
                "optax.clip_by_global_norm before it, or a look at that batch"
            )


def _total(data: Any, steps: int | None, epochs: int) -> int | None:
    if steps is not None:
        return steps
    return len(data) * epochs if hasattr(data, "__len__") else None


def _pairs(
    model: Model, data: Any, steps: int | None, epochs: int
) -> Iterator[tuple[list[Any], Any]]:
    """Yield (leaves of the inputs, target), as often as asked."""
    if isinstance(data, (str, bytes, Mapping)) or not isinstance(data, Iterable):
        raise InputTypeError(
            f"recover: data: required an iterable of (inputs, target), got {type(data).__name__}"
        )
    if isinstance(data, Iterator) and steps is None and epochs > 1:
        data = list(data)
    done, around = 0, 0
    while steps is None or done < steps:
        first = done
        for item in data:
            yield _pair(model, item, done)
            done += 1
            if done == steps:
                return
        around += 1
        if done == first:
            if first:
                raise InputError(
                    f"recover: the data ended after {done} of {steps} steps, being an iterator; "
                    "give a list, or fewer steps"
                )
            return
        if steps is None and around == epochs:
            return


def _pair(model: Model, item: Any, number: int) -> tuple[list[Any], Any]:
    if not isinstance(item, (tuple, list)) or len(item) != 2:
        got = type(item).__name__
        got += f" of {len(item)}" if isinstance(item, (tuple, list)) else ""
        raise InputTypeError(
            f"recover: batch {number}: required a pair (inputs, target), got {got}"
        )
    inputs, target = item
    found = leaves_of(model, inputs, f"recover: batch {number}")
    arrays = [value if hasattr(value, "dtype") else 0 for value in found]  # see _recover_step
    return arrays, jax.tree.map(lambda x: as_array(x, f"recover: batch {number}: target"), target)
