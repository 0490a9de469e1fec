"""arrange: the same function, computed another way: attention, image layout, loops over layers.

    attention  all scores at once, a few heads after each other, or cuDNN's fused kernel
    layout     two-dimensional convolutions in NCHW or NHWC dimension numbers
    unroll     scans over stacked layers in full

Parameters stay as they are stored. In float32 the results are those of the model within rounding
(sums in another order); cuDNN's kernel computes in half precision, and rounds float32 to
bfloat16. It may come before or after any other transform, once.

What it does not do: find attention that is written out in products and a softmax (it is the
attention operation of converted models that it means), change convolutions over one or three
dimensions, unroll loops over time or ``while`` and ``fori_loop``, or look into exports.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import jax

from jaxinfer.core._compat import x64_scope
from jaxinfer.core.array_types import nbytes
from jaxinfer.core.attention import MODES, Used, attention_as
from jaxinfer.core.audit import Audit, Entry, merged, with_audit
from jaxinfer.core.errors import InputError, listing
from jaxinfer.core.leaves import leaves as named_leaves
from jaxinfer.core.model import Model, interpret
from jaxinfer.core.program import x64_of
from jaxinfer.core.rewrites import REWRITES
from jaxinfer.core.trace import Traced, trace
from jaxinfer.core.transform import TRANSFORMS, Transform, staged
from jaxinfer.transforms._arrange_layout import SPECS
from jaxinfer.transforms._arrange_trace import Arranger, Done
from jaxinfer.transforms._data import batches

_WORDS = {"whole": "all scores at once", "blocked": "a few heads after each other",
          "cudnn": "cuDNN's fused kernel"}  # fmt: skip


@REWRITES.register("arrange")
@dataclasses.dataclass(frozen=True)
class ArrangeRewrite:
    """Evaluates a function in an arrangement; see ``arrange``."""

    kind: ClassVar[str] = "arrange"
    attention: str = ""
    layout: str = ""
    unroll: bool = False

    def apply(self, run: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function, evaluated in the arrangement."""

        def arranged(params: Any, leaves: Any, rng_key: Any = None) -> Any:
            with self.tracing():
                if not self.layout and not self.unroll:
                    return run(params, leaves, rng_key)
                count = len(jax.tree.leaves(params))
                arranger = Arranger(self.layout, self.unroll, count)
                return interpret(arranger, run, params, leaves, rng_key)

        return arranged

    def tracing(self) -> contextlib.AbstractContextManager[list[Used]]:
        """Return the context to trace the function in; it gives what attention was lowered to."""
        if not self.attention:
            return contextlib.nullcontext([])
        return attention_as(self.attention)

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> ArrangeRewrite:
        """Rebuild a rewrite.

        Raises:
          ValueError, TypeError: anything malformed.
        """
        made = cls(**data)
        if problems := made.faults():
            raise ValueError("; ".join(problems))
        return made

    def faults(self) -> list[str]:
        """Return what is wrong with the settings."""
        problems = []
        for name, known in (("attention", MODES), ("layout", tuple(SPECS))):
            value = getattr(self, name)
            if not isinstance(value, str) or (value and value not in known):
                problems.append(f"{name}: required '' or one of {', '.join(known)}, got {value!r}")
        if not isinstance(self.unroll, bool):
            problems.append(f"unroll: required True or False, got {self.unroll!r}")
        return problems


@TRANSFORMS.register("arrange")
def arrange(*, attention: str = "", layout: str = "", unroll: bool = False) -> Transform:
    """Return the transform that has the same function computed in another arrangement.

    Args:
      attention: of converted models: ``"whole"``, ``"blocked"`` (memory of a block of scores) or
        ``"cudnn"`` (NVIDIA GPUs; float16 and bfloat16, to which float32 is rounded); "": as each
        operation takes it by its size.
      layout: of convolutions over two dimensions: ``"NCHW"``, ``"NHWC"``, or "" as they are.
      unroll: evaluate scans over stacked layers in full: longer to compile.

    Returns:
      A Transform of the stage ``arrange``, which may stand anywhere, once. ``init`` needs no data,
      but for a model that was made without example inputs a batch, for its shapes. The audit and
      ``provenance["arrange"]`` say what was changed and what could not be. Where nothing is
      changed the model has no rewrite more than before. Cost: one or two abstract traces.

    Raises:
      InputError: values that there are not (at once, here); nothing is asked for; cuDNN without
        an NVIDIA GPU, a model that was arranged before (where it is applied).

    Example:
      >>> import jax, jax.numpy as jnp, jaxinfer as ji
      >>> from jaxinfer.transforms.arrange import arrange
      >>> def fn(p, x):
      ...     return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, p["w"])[0]
      >>> model = ji.from_function(fn, {"w": jnp.ones((3, 2, 2))}, (jnp.ones((1, 2)),))
      >>> [(e.path, e.why) for e in arrange(unroll=True)(model).audit()["arrange"]]
      [('w', 'a loop of 3 layers, unrolled')]
    """
    rewrite = ArrangeRewrite(attention, layout, unroll)
    problems = rewrite.faults()
    if not problems and rewrite == ArrangeRewrite():
        problems.append("nothing is asked for; give attention, layout or unroll")
    if problems:
        raise InputError(listing("arrange:", problems))

    def init(model: Model, *data: Any) -> dict[str, Any]:
        staged(model, "arrange")
        with x64_scope(x64_of(model.program)):
            found = _found(model, rewrite, data)
        return {"entries": [list(dataclasses.astuple(each)) for each in found]}

    def update(model: Model, state: Mapping[str, Any]) -> Model:
        marked = staged(model, "arrange")
        entries = tuple(Entry(*item) for item in state["entries"])
        own = [entry.path for entry in entries if not entry.path.startswith("(")]
        if own != list(named_leaves(model.params)):
            raise InputError("arrange: the state is of a model with other parameters")
        record = {**rewrite.to_json(), "changed": any(e.status == "changed" for e in entries)}
        provenance = with_audit(marked.provenance, Audit("arrange", entries))
        more = (rewrite,) if record["changed"] else ()
        return marked.replace(
            rewrites=(*model.rewrites, *more), provenance={**provenance, "arrange": record}
        )

    return Transform(init, update, "arrange")


def _found(model: Model, rewrite: ArrangeRewrite, data: tuple[Any, ...]) -> list[Entry]:
    """Return what an arrangement changes: an entry for each parameter, and for the rest."""
    named = named_leaves(model.params)
    if getattr(model.program, "takes_array_types", False):
        why = "the program is an export, which is not looked into"
        return [_entry(path, leaf, "unfit", why) for path, leaf in named.items()]
    example = None
    if model.signature.open and len(model.components) == 1 and data:
        example = next(batches(model, data, "arrange"))
    with rewrite.tracing() as attended:
        traces = trace(model, example)
    by_path: dict[str, list[tuple[str, str, str]]] = {}
    used: set[str] = set()
    rest: dict[tuple[str, str, str], list[str]] = {}
    for traced in traces:
        uses = traced.uses
        used |= {each.path for each in (*uses.sites, *uses.obstacles)}
        if rewrite.layout or rewrite.unroll:
            arranger = _tried(traced, rewrite)
            for done in arranger.done:
                paths = _parameters(done, traced, arranger)
                for path in paths:
                    by_path.setdefault(path, []).append((done.status, done.why, done.source))
                if not paths:
                    rest.setdefault((done.kind, done.status, done.why), []).append(done.source)
    entries = []
    for path, leaf in named.items():
        seen = by_path.get(path, [])
        status = "changed" if any(s == "changed" for s, _, _ in seen) else "unfit"
        if seen:
            what = [item for item in seen if item[0] == status]
            why = "; ".join(dict.fromkeys(why for _, why, _ in what))
            entries.append(_entry(path, leaf, status, why, what[0][2]))
        elif path in used:
            entries.append(_entry(path, leaf, "unfit", "nothing to arrange"))
        else:
            entries.append(_entry(path, leaf, "unused", "the function does not read it"))
    return [*merged(entries, list(named)), *_others(rewrite, attended, rest)]


def _entry(path: str, leaf: Any, status: str, why: str, source: str = "") -> Entry:
    size = nbytes(leaf)
    return Entry(path, status, why, source, size, size)


def _tried(traced: Traced, rewrite: ArrangeRewrite) -> Arranger:
    """Evaluate a trace on shapes, and return the interpreter that did it."""
    arranger = Arranger(rewrite.layout, rewrite.unroll, len(traced.paths))
    avals = [jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in traced.jaxpr.invars]
    jax.make_jaxpr(lambda *args: _arrays(arranger.run(traced.jaxpr, traced.consts, args)))(*avals)
    return arranger


def _arrays(values: Sequence[Any]) -> list[Any]:
    from jaxinfer.core.array_types import materialize

    return list(map(materialize, values))


def _parameters(done: Done, traced: Traced, arranger: Arranger) -> list[str]:
    """Return the parameters that an equation is about."""
    if done.kind == "loop":
        return [traced.paths[place] for place in sorted(arranger.sliced[done.address])]
    uses = traced.uses
    found = [use.path for use in (*uses.sites, *uses.obstacles) if use.address == done.address]
    return list(dict.fromkeys(found))


def _others(
    rewrite: ArrangeRewrite,
    attended: Sequence[Used],
    rest: Mapping[tuple[str, str, str], Sequence[str]],
) -> list[Entry]:
    """Return the entries of what is no parameter's: attention, kernels that are computed."""
    found = []
    for (kind, status, why), sources in rest.items():
        found.append(Entry(f"({kind}, {len(sources)} of no parameter)", status, why, sources[0]))
    if not rewrite.attention:
        return found
    if not attended:
        why = "the program has no attention operation: nothing to change"
        return [*found, Entry("(attention)", "unfit", why)]
    kinds: dict[tuple[str, str], int] = {}
    for each in attended:
        kinds[each.how, each.why] = kinds.get((each.how, each.why), 0) + 1
    for (how, why), count in kinds.items():
        status = "changed" if how == rewrite.attention else "blocked"
        text = _WORDS[how] + (f": {why}" if why else "")
        found.append(Entry(f"(attention, {count} operations)", status, text))
    return found
