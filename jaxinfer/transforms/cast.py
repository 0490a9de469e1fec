"""cast: store the parameters, and compute the products, in half precision.

    y = round_c( sum_f32( round_c(x) * w ) )        c the compute dtype, w stored in the params'

Products (matrix products, convolutions) take their operands in the compute dtype, sum in
float32 and round once; softmax, norms, sums, exp, log and powers stay in float32; what is
between follows its operands. ``_cast_rules`` has the classes. Outputs have the dtypes that they
had, unless the policy names one. It works on any function, by evaluating its trace again.

For float16, whose largest value is 65504, weights are checked, and with calibration data so is
everything that would be rounded to it, on a float32 run of each batch: what overflows is in the
audit and in ``model.provenance["cast"]["overflow"]``, with its line and the batch.

It does not scale losses or gradients, does not touch what is float16 or bfloat16 already, nor
the buffers that a model changes, and does not make the carry of a loop (a KV cache that is an
input, say) any narrower.

Source: P. Micikevicius et al., "Mixed Precision Training", 2018,
https://arxiv.org/abs/1710.03740; the policy of jmp, https://github.com/google-deepmind/jmp.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

from jaxinfer.core._compat import x64_scope
from jaxinfer.core.array_types import nbytes
from jaxinfer.core.audit import Audit, with_audit
from jaxinfer.core.dtypes import NAMES, dtype_of
from jaxinfer.core.errors import InputError, InputTypeError
from jaxinfer.core.leaves import leaves as named_leaves
from jaxinfer.core.leaves import map_leaves
from jaxinfer.core.model import Model
from jaxinfer.core.program import x64_of
from jaxinfer.core.rewrites import REWRITES
from jaxinfer.core.selectors import Rule
from jaxinfer.core.transform import TRANSFORMS, Transform, staged
from jaxinfer.numerics.masks import Masked
from jaxinfer.transforms._cast_overflow import find_overflow
from jaxinfer.transforms._cast_plan import (
    Plan,
    check_rules,
    faults_of,
    plan,
    require_no_overflow,
    targets_of,
)
from jaxinfer.transforms._cast_policy import Policy as Policy
from jaxinfer.transforms._cast_rules import is_float
from jaxinfer.transforms._cast_trace import evaluate_cast
from jaxinfer.transforms._data import batches


@REWRITES.register("cast")
@dataclasses.dataclass(frozen=True)
class CastRewrite:
    """Evaluates a function under a policy.

    Attributes:
      policy: the dtypes.
      declared: for each parameter that was cast, the dtype that the function is traced with.
      computes: for some parameters, another dtype for the products with them.
    """

    kind: ClassVar[str] = "cast"
    policy: Policy
    declared: tuple[tuple[str, str], ...] = ()
    computes: tuple[tuple[str, str], ...] = ()

    def apply(self, run: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function, evaluated under the policy."""

        def cast_run(params: Any, leaves: Any, rng_key: Any = None) -> Any:
            return evaluate_cast(self, run, params, leaves, rng_key)

        return cast_run

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        return {
            "policy": dataclasses.asdict(self.policy),
            "declared": dict(self.declared),
            "computes": dict(self.computes),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> CastRewrite:
        """Rebuild a rewrite.

        Raises:
          ValueError, TypeError: anything malformed.
        """
        pairs = []
        for key in ("declared", "computes"):
            found = data[key]
            if not isinstance(found, dict) or not all(
                isinstance(dtype, str) and dtype in NAMES and is_float(dtype_of(dtype))
                for dtype in found.values()
            ):
                raise ValueError(f"{key}: required an object of paths to float dtypes")
            pairs.append(tuple(found.items()))
        return cls(Policy(**data["policy"]), *pairs)


@TRANSFORMS.register("cast")
def cast(
    policy: str | Policy = "bf16", *, rules: Sequence[Rule] = (), strict: bool = False
) -> Transform:
    """Return a transform that stores and computes in half precision.

    Args:
      policy: a ``Policy``, or the text of one: ``"bf16"``, ``"f16"``,
        ``"params=bf16,compute=bf16,output=f32"``.
      rules: exceptions by path. ``rule("head.*", compute="f32")`` has the products with these
        parameters in float32, ``params="f32"`` keeps them stored so, ``ignore=True`` both.
      strict: raise if a parameter is blocked (its values overflow, or the products that a rule
        means cannot be told), or if anything overflows on the calibration data.

    Returns:
      A transform of the stage ``cast``. ``init(model)`` needs no data; given an iterable of
      batches and a policy with float16, it looks for overflow on them.

    Raises:
      InputError: a policy or rules that cannot be used, data that do not fit; when applied.

    Error: one rounding of each weight and of each operand and result of a product, relative
    2^-8 (bfloat16) or 2^-11 (float16). Memory: one leaf more than both models.

    Example:
      >>> import jax.numpy as jnp, jaxinfer as ji
      >>> from jaxinfer.transforms.cast import cast
      >>> x = jnp.ones((2, 3))
      >>> model = ji.from_function(lambda p, x: x @ p["w"], {"w": jnp.eye(3)}, (x,))
      >>> half = cast("bf16")(model)
      >>> half.params["w"].dtype.name, half(x).dtype.name
      ('bfloat16', 'float32')
      >>> print(half.audit()["cast"])
      cast: 1 of 1 parameters changed; 36 B -> 18 B
        changed  w  float32 -> bfloat16  36 B -> 18 B
    """
    chosen = Policy.parse(policy) if isinstance(policy, str) else policy
    if not isinstance(chosen, Policy):
        raise InputTypeError(f"cast: required a policy or its text, got {type(policy).__name__}")
    rules = tuple(rules)
    check_rules(rules)

    def init(model: Model, *data: Any) -> dict[str, Any]:
        if len(data) > 1:
            raise InputError(f"cast: required at most one iterable of batches, got {len(data)}")
        with x64_scope(x64_of(model.program)):
            targets = targets_of(model, chosen, rules)
            state: dict[str, Any] = {"parameters": faults_of(model, targets), "overflow": []}
            if data:
                made = plan(model, chosen, rules, state)
                state["overflow"] = _calibrate(model, made, _rewrite(chosen, made), data)
        return state

    def update(model: Model, state: Mapping[str, Any]) -> Model:
        done = staged(model, "cast")
        with x64_scope(x64_of(model.program)):
            made = plan(model, chosen, rules, state)
            if strict:
                Audit("cast", made.entries).require()
                require_no_overflow(state["overflow"])
            params = _cast_params(model.params, made.targets)
        after = {path: nbytes(leaf) for path, leaf in named_leaves(params).items()}
        entries = (dataclasses.replace(each, after=after[each.path]) for each in made.entries)
        found = {"policy": str(chosen), **{key: state[key] for key in ("parameters", "overflow")}}
        provenance = {**done.provenance, "cast": found}
        return done.replace(
            params=params,
            rewrites=(*model.rewrites, _rewrite(chosen, made)),
            provenance=with_audit(provenance, Audit("cast", tuple(entries))),
        )

    return Transform(init, update, "cast")


def _rewrite(policy: Policy, made: Plan) -> CastRewrite:
    return CastRewrite(policy, tuple(made.declared.items()), tuple(made.computes.items()))


def _calibrate(
    model: Model, made: Plan, rewrite: CastRewrite, data: tuple[Any, ...]
) -> list[dict[str, Any]]:
    """Return what overflows; without float16 nothing can, and the data are only checked."""
    if len(model.components) > 1:
        raise InputError(
            "cast: calibration data for a model of several components "
            f"({', '.join(model.components)}) are for none of them; leave them out"
        )
    given, policy = batches(model, data, "cast"), rewrite.policy
    dtypes = {*made.targets.values(), *made.computes.values(), policy.compute, policy.output}
    if "float16" in dtypes:
        return find_overflow(model, rewrite, made.targets, given)
    for _ in given:
        pass
    return []


def _cast_params(params: Any, targets: Mapping[str, str]) -> Any:
    done: dict[tuple[int, str], Any] = {}  # one array at two paths stays one

    def one(path: str, leaf: Any) -> Any:
        if path not in targets:
            return leaf
        dtype = dtype_of(targets[path])
        key = (id(leaf), targets[path])
        if key not in done:
            masked = isinstance(leaf, Masked)
            done[key] = (
                dataclasses.replace(leaf, weight=leaf.weight.astype(dtype))
                if masked
                else leaf.astype(dtype)
            )
        return done[key]

    return map_leaves(one, params)
