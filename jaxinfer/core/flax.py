"""Flax in and out: linen or NNX modules as Models, and any Model as an ``nnx.Module``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
from flax import linen, nnx

from jaxinfer.core.array_types import is_array_type
from jaxinfer.core.errors import ConversionError
from jaxinfer.core.leaves import leaves as named_leaves
from jaxinfer.core.model import Model
from jaxinfer.core.program import FunctionProgram, param_names, signature_of


class Buffer(nnx.Variable):
    """State that is not trained: running statistics, index tables."""


def from_flax(
    module: Any,
    variables: Any = None,
    example_inputs: Sequence[Any] | Any | None = None,
    **kwargs: Any,
) -> Model:
    """Make a Model of a Flax module.

    Args:
      module: a linen module with its ``variables`` (``{"params": ..., ...}``), or an NNX
        module (``variables`` None: its own state; else a state to use instead).
      variables: see above.
      example_inputs: a tuple of example inputs (see ``from_function``).
      kwargs: passed to every call of the module (``train=False``).

    Returns:
      A Model whose params are linen's variables, or the NNX state as a nested dict. The
      function returns the module's output. An NNX module that changes its state in a call
      (batch norm in training) is refused while tracing: put it in eval mode.

    Raises:
      TypeError: not a Flax module, or a linen module without variables.

    Example:
      >>> import jax, jax.numpy as jnp, jaxinfer as ji
      >>> from flax import linen
      >>> dense = linen.Dense(2)
      >>> x = jnp.ones((3, 5))
      >>> model = ji.from_flax(dense, dense.init(jax.random.key(0), x), (x,))
      >>> model(x).shape
      (3, 2)
    """
    if isinstance(module, linen.Module):
        if variables is None:
            raise TypeError("a linen module needs its variables: from_flax(module, variables)")
        fn: Any = lambda params, *args: module.apply(params, *args, **kwargs)
        params = variables
    elif isinstance(module, nnx.Module):
        graphdef, state = nnx.split(module)
        if variables is not None:
            state = variables if isinstance(variables, nnx.State) else _fill(state, variables)
        params = nnx.to_pure_dict(state)
        fn = _nnx_function(graphdef, state, kwargs)
    else:
        raise TypeError(
            f"from_flax takes a flax linen or nnx Module, got {type(module).__name__}; "
            "for a plain function use jaxinfer.from_function"
        )
    source = f"{type(module).__module__}.{type(module).__qualname__}"
    return Model(
        FunctionProgram(fn, signature_of(example_inputs)), params, provenance={"source": source}
    )


def _fill(state: Any, values: Any) -> Any:
    filled = jax.tree.map(lambda x: x, state)
    nnx.replace_by_pure_dict(filled, values)
    return filled


def _nnx_function(graphdef: Any, template: Any, kwargs: dict[str, Any]) -> Any:
    def fn(params: Any, *args: Any) -> Any:
        merged = nnx.merge(graphdef, _fill(template, params))
        before = jax.tree.leaves(nnx.state(merged))
        out = merged(*args, **kwargs)
        after = jax.tree.leaves(nnx.state(merged))
        if len(before) != len(after) or any(a is not b for a, b in zip(before, after, strict=True)):
            raise ConversionError(
                "the module changes its state when called (batch norm or dropout in training?): "
                "call module.eval() first, or wrap it in a function that returns the new state"
            )
        return out

    return fn


class ConvertedModule(nnx.Module):
    """A Model as an NNX module: parameters as ``nnx.Param`` leaves, nested by dotted name.

    ``nnx.split``, ``nnx.merge``, ``nnx.grad`` and optax work on it. Calling it runs the
    model's function on the present values; a model that changes buffers updates them.

    An array type is a node with a variable for each part (``weight.qvalue``, ``weight.scale``):
    what is float can be trained (scales, a masked weight), codes and masks are buffers.
    """

    def __init__(self, model: Model):
        names = param_names(model.params)
        leaves = jax.tree.leaves(model.params)
        kinds = getattr(model.program, "state_kinds", {})
        owners = [path for path, leaf in named_leaves(model.params).items() if is_array_type(leaf)]
        self.model = nnx.static(_Stripped(model)) if hasattr(nnx, "static") else _Stripped(model)
        for name, leaf in zip(names, leaves, strict=True):
            path = next((path for path in owners if name.startswith(f"{path}.")), name)
            trainable = kinds.get(path, "parameter") == "parameter" and _is_inexact(leaf)
            node: Any = self
            *parents, last = name.split(".")
            for part in parents:
                if not hasattr(node, _attr(part)):
                    setattr(node, _attr(part), _Node())
                node = getattr(node, _attr(part))
            setattr(node, _attr(last), nnx.Param(leaf) if trainable else Buffer(leaf))

    def params(self) -> Any:
        """Return the model's params with the present values, in the model's own structure."""
        return jax.tree.unflatten(
            self.model.tree, [self._variable(n)[...] for n in self.model.names]
        )

    def _variable(self, name: str) -> Any:
        node: Any = self
        for part in name.split("."):
            node = getattr(node, _attr(part))
        return node

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model; changed buffers are stored, and only the outputs returned."""
        out = self.model.apply(self.params(), *args, **kwargs)
        if not self.model.mutates:
            return out
        out, state = out
        for name, value in state.items():
            if name in self.model.names:
                self._variable(name)[...] = value
        return out


class _Node(nnx.Module):
    """One level of the nesting."""


class _Stripped:
    """What a ConvertedModule keeps of its Model: the function, not the values."""

    def __init__(self, model: Model):
        self.apply = model.apply
        self.names = tuple(param_names(model.params))
        self.tree = jax.tree.structure(model.params)
        self.mutates = tuple(getattr(model.program, "mutates", ()))
        self.program = model.program

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Stripped) and self.program is other.program

    def __hash__(self) -> int:
        return hash(id(self.program))


_RESERVED = frozenset(dir(nnx.Module)) | {"model", "params"}


def _attr(part: str) -> str:
    """Return the attribute for a name's part; a part that Flax uses itself gets a ``_``."""
    return f"{part}_" if part in _RESERVED else part


def _is_inexact(leaf: Any) -> bool:
    return jax.numpy.issubdtype(leaf.dtype, jax.numpy.inexact)


def to_nnx(model: Model) -> ConvertedModule:
    """Return the model as an NNX module with nested parameters.

    ``encoder.layer.0.weight`` becomes the attribute path ``encoder``, ``layer``, ``0``,
    ``weight``; parts that Flax itself uses get an underscore. Buffers (and integer leaves)
    are ``Buffer`` variables, so ``nnx.Param`` filters select what can be trained.

    Example:
      >>> import jax.numpy as jnp, jaxinfer as ji
      >>> from flax import nnx
      >>> params = {"scale.weight": jnp.ones(3)}
      >>> model = ji.from_function(lambda p, x: x * p["scale.weight"], params)
      >>> module = model.to_nnx()
      >>> module(jnp.arange(3.0)).tolist()
      [0.0, 1.0, 2.0]
      >>> list(nnx.to_pure_dict(nnx.state(module, nnx.Param)))
      ['scale']
    """
    return ConvertedModule(model)
