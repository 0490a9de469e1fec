"""Model: a program, rewrites, and the parameters as a pytree. Data, nothing else.

``model.apply(params, *inputs)`` is pure and traces under every JAX transform;
``model(*inputs)`` is its jitted convenience, which also takes numpy arrays and torch tensors
and checks them first.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import jax

from jaxinfer.core._compat import x64_enabled, x64_scope
from jaxinfer.core.array_types import array_rule, has_array_types, nbytes
from jaxinfer.core.arrays import as_array
from jaxinfer.core.audit import Report, audits
from jaxinfer.core.errors import InputError
from jaxinfer.core.interpret import Interpreter
from jaxinfer.core.leaves import leaves as named_leaves
from jaxinfer.core.multi import MultiProgram
from jaxinfer.core.program import Program, x64_of
from jaxinfer.core.signature import LeafSpec, Signature


class Rewrite(Protocol):
    """Turns a flat function ``run(params, leaves, rng_key)`` into another at trace time.

    Deterministic, reads no data, and is re-applied on load from its JSON.
    """

    kind: str

    def apply(self, run: Callable[..., Any]) -> Callable[..., Any]:
        """Return the rewritten function."""
        ...

    def to_json(self) -> dict[str, Any]:
        """Return the arguments that rebuild this rewrite."""
        ...


@dataclasses.dataclass(frozen=True, eq=False)
class Model:
    """A function and its parameters.

    Attributes:
      program: where the function comes from.
      params: the parameters, a pytree. Converted models have a flat dict keyed by the
        checkpoint's own names, ``{"encoder.layer.0.attention.self.query.weight": f32[d, d]}``.
      rewrites: changes to the function, applied in order.
      provenance: source, versions, and what the conversion left out (JSON).

    Example:
      >>> import jax.numpy as jnp, jaxinfer as ji
      >>> model = ji.from_function(lambda p, x: x @ p["w"], {"w": jnp.eye(3)}, (jnp.ones((2, 3)),))
      >>> model(jnp.ones((2, 3))).shape
      (2, 3)
    """

    program: Program
    params: Any
    rewrites: tuple[Rewrite, ...] = ()
    provenance: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def signature(self) -> Signature:
        """The arguments, their leaves and the ranges of symbolic sizes."""
        return self.program.signature

    @property
    def inputs(self) -> tuple[LeafSpec, ...]:
        """The input leaves in order: path, shape (with symbolic sizes), dtype."""
        return self.program.signature.leaves

    @property
    def nbytes(self) -> int:
        """Bytes of the parameters as allocated; of array types, those of their parts."""
        return sum(map(nbytes, named_leaves(self.params).values()))

    def audit(self) -> Report:
        """Return what each transform did to every parameter, and where it was blocked.

        >>> import jax.numpy as jnp, jaxinfer as ji
        >>> print(ji.from_function(jnp.dot, jnp.eye(2), (jnp.ones(2),)).audit())
        no transform was applied
        """
        return Report(audits(self.provenance))

    @functools.cached_property
    def components(self) -> Mapping[str, Model]:
        """The functions of this model by name, Models over the same arrays.

        ``{"prefill": ..., "decode": ...}`` for one made by ``from_generative``; any other
        model is its own component, ``{"model": self}``.
        """
        program = self.program
        if not isinstance(program, MultiProgram):
            return {"model": self}

        def params_of(part: Program) -> Any:
            read = getattr(part, "param_specs", None)
            return self.params if read is None else {name: self.params[name] for name in read}

        return {
            name: self.replace(program=part, params=params_of(part))
            for name, part in program.programs.items()
        }

    def _run(self) -> Callable[..., Any]:
        run = functools.reduce(
            lambda run, rewrite: rewrite.apply(run), self.rewrites, self.program.run
        )
        return run if getattr(self.program, "takes_array_types", False) else typed(run)

    @functools.cached_property
    def apply(self) -> Callable[..., Any]:
        """The pure function ``apply(params, *inputs, rng_key=None, **named_inputs)``.

        It traces under ``jit``, ``vmap``, ``grad`` and ``eval_shape`` at any size that the
        program declares. A model that samples needs ``rng_key``. A model that changes its
        buffers returns ``(outputs, new_state)``, ``new_state`` a dict by buffer name.

        A model converted with ``x64=True`` traces only where 64-bit types are on
        (``with jax.enable_x64(True):``, or the configuration); its ``__call__`` sees to that.

        Raises (while tracing):
          InputError, InputTypeError: the inputs do not fit; all problems at once.
        """
        program, run = self.program, self._run()

        def apply(params: Any, *args: Any, rng_key: Any = None, **kwargs: Any) -> Any:
            if x64_of(program) and not x64_enabled():
                raise InputError(
                    "this model computes in 64 bits (x64=True): trace and call apply within "
                    "`with jax.enable_x64(True):`, or call model(...), which does so itself"
                )
            leaves = program.signature.flatten(args, kwargs)
            return program.finish(run(params, leaves, _need_key(program, rng_key)))

        return apply

    @functools.cached_property
    def _jitted(self) -> Callable[..., Any]:
        run, leaves_of, is_open = self._run(), self.inputs, self.signature.open

        def flat(params: Any, arrays: list[Any], rng_key: Any) -> Any:
            if is_open:
                return run(params, arrays, rng_key)
            filled = iter(arrays)
            leaves = [next(filled) if spec.is_array else spec.value for spec in leaves_of]
            return run(params, leaves, rng_key)

        return jax.jit(flat)

    def __call__(self, *args: Any, rng_key: Any = None, **kwargs: Any) -> Any:
        """Run the model, jitted; compiled once for each combination of input shapes.

        Takes numpy arrays, JAX arrays, torch tensors and numbers, in the structure that the
        model was converted with, by position or by name.

        Raises:
          InputError, InputTypeError: the inputs do not fit; all problems at once.
          OverflowError: a 64-bit integer does not fit while 64-bit types are off.
        """
        with x64_scope(x64_of(self.program)):
            return self._call(args, kwargs, rng_key)

    def _call(self, args: Any, kwargs: Any, rng_key: Any) -> Any:
        signature = self.program.signature
        values = signature.flatten(args, kwargs)
        if signature.open:
            values = jax.tree.map(lambda value: as_array(value, "input"), values)
            return self.program.finish(self._jitted(self.params, values, None))
        values = [
            as_array(value, spec.path) if spec.is_array else value
            for spec, value in zip(signature.leaves, values, strict=True)
        ]
        if self.program.fixed:
            signature.bind_sizes(values, strict=True)
        arrays = [v for spec, v in zip(signature.leaves, values, strict=True) if spec.is_array]
        key = _need_key(self.program, rng_key)
        return self.program.finish(self._jitted(self.params, arrays, key))

    def replace(self, **changes: Any) -> Model:
        """Return a copy with some fields changed, as ``dataclasses.replace``."""
        return dataclasses.replace(self, **changes)

    def save(self, path: Any, *, overwrite: bool = False) -> None:
        """Write the model to a directory; see ``jaxinfer.save``."""
        from jaxinfer.io.artefact import save

        save(self, path, overwrite=overwrite)

    def to_nnx(self) -> Any:
        """Return a ``flax.nnx.Module`` over the same function; see ``jaxinfer.to_nnx``."""
        from jaxinfer.core.flax import to_nnx

        return to_nnx(self)

    def __repr__(self) -> str:
        leaves = named_leaves(self.params).values()
        count = sum(leaf.size for leaf in leaves)
        inputs = ", ".join(map(str, self.inputs))
        return f"Model({self.program.kind}, {count:,} values in {len(leaves)} leaves; {inputs})"


def typed(run: Callable[..., Any]) -> Callable[..., Any]:
    """Return a flat function that takes array types among its parameters.

    It is evaluated as it is where there are none, else by the interpreter.
    """

    def with_types(params: Any, leaves: Any, rng_key: Any = None) -> Any:
        if not has_array_types(params):
            return run(params, leaves, rng_key)
        return interpret(Interpreter(array_rule), run, params, leaves, rng_key)

    return with_types


def interpret(
    interpreter: Interpreter, run: Callable[..., Any], params: Any, leaves: Any, rng_key: Any = None
) -> Any:
    """Evaluate a flat function with an interpreter; leaves that are no arrays stay as they are."""
    flat, tree = jax.tree.flatten(leaves)
    arrays = [value for value in flat if hasattr(value, "dtype")]

    def fn(params: Any, arrays: Any, rng_key: Any) -> Any:
        filled = iter(arrays)
        given = [next(filled) if hasattr(value, "dtype") else value for value in flat]
        return run(params, tree.unflatten(given), rng_key)

    return interpreter.call(fn, params, arrays, rng_key)


def _need_key(program: Program, rng_key: Any) -> Any:
    if program.random and rng_key is None:
        raise InputError(
            "this model samples random numbers: pass rng_key=jax.random.key(0); "
            f"{getattr(program, 'random_sites', 'see jaxinfer inspect')}"
        )
    return rng_key
