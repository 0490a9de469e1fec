"""Space: what a search may try, with a short list for each platform.

What is None takes the platform's list. Levels that round more than their metric allows are
tried all the same: the metric decides, not the list. What is not in a list by default, and has to
be asked for: pruning, float16 on CPUs (its range), four bits.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from jaxinfer.compile.bucket import choose_buckets
from jaxinfer.core.errors import InputError, MissingExtraError, listing
from jaxinfer.core.symbols import is_name
from jaxinfer.tune.candidate import ATTENTION, BACKENDS, LAYOUT, LEVELS, Candidate


@dataclasses.dataclass(frozen=True)
class Space:
    """What a search may try; None: what is usual on the platform.

    Attributes:
      fold: whether folding is tried.
      precision: levels beside f32 (``tune/candidate.py``), for the model and for groups of layers.
      groups: whether levels that are too inaccurate for the whole model are tried for a part.
      attention, layout: other ways to compute attention and convolutions.
      unroll: whether loops over layers are tried unrolled.
      batch: samples in a call, to choose from (of the objective ``throughput``).
      buckets: for dimensions whose size varies: lists of sizes to choose from, or a histogram
        ``{size: count}``, for which lists are made (``ji.choose_buckets``).
      mesh: meshes (``"data=2"``), if there are several devices.
      sharding: strategies to try on a mesh.
      donate: whether inputs are donated where a result can take their memory.
      options: (name, value) of XLA's compiler options.
      backend: ``xla``, ``openvino``.
      prune: settings of ``ji.prune`` that are allowed, each a dict; none by default.

    Raises:
      InputError: names and numbers that there are not; all at once.

    >>> Space(precision=("bf16",)).precision
    ('bf16',)
    """

    fold: bool = True
    precision: Sequence[str] | None = None
    groups: bool = True
    attention: Sequence[str] | None = None
    layout: Sequence[str] | None = None
    unroll: bool = True
    batch: Sequence[int] | None = None
    buckets: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    mesh: Sequence[str] | None = None
    sharding: Sequence[str] = ("auto",)
    donate: bool = True
    options: Sequence[tuple[str, Any]] | None = None
    backend: Sequence[str] | None = None
    prune: Sequence[Mapping[str, Any]] = ()

    def __post_init__(self) -> None:
        problems: list[str] = []
        for name, known in (
            *(("precision", LEVELS), ("attention", ATTENTION)),
            *(("layout", LAYOUT), ("backend", BACKENDS)),
        ):
            given = getattr(self, name)
            if given is None:
                continue
            if isinstance(given, str):
                problems.append(f"{name}: required a sequence, got the text {given!r}")
                continue
            object.__setattr__(self, name, tuple(given))
            if unknown := [each for each in given if each not in known]:
                have = ", ".join(each for each in known if each)
                problems.append(f"{name}: there is no {', '.join(map(repr, unknown))}; {have}")
        if self.backend is not None and not self.backend:
            problems.append("backend: required one at least")
        for size in self.batch or ():
            if isinstance(size, bool) or not isinstance(size, int) or size < 1:
                problems.append(f"batch: required integers from 1, got {size!r}")
        for setting in self.prune:
            if not isinstance(setting, Mapping):
                problems.append(f"prune: required dicts of settings of ji.prune, got {setting!r}")
        if problems:
            raise InputError(listing("Space:", problems))


class Choices(dict[str, Any]):
    """A space with every None filled in: lists by the names of ``Space``."""


_PRECISION = {
    "cpu": ("bf16", "W8A8", "W8A8-static", "W8A16"),
    "gpu": ("bf16", "f16", "bf16+W8A16", "bf16+W8A8", "bf16+FP8", "bf16+W4A16"),
    "tpu": ("bf16", "bf16+W8A16", "bf16+W8A8"),
}
_OPTIONS = {
    "cpu": (
        ("xla_cpu_experimental_ynn_fusion_type", ""),
        ("xla_cpu_enable_fast_math", True),
        ("xla_cpu_prefer_vector_width", 512),
    ),
    "gpu": (
        ("xla_gpu_enable_triton_gemm", False),
        ("xla_gpu_triton_gemm_any", True),
        ("xla_gpu_enable_latency_hiding_scheduler", True),
        ("xla_gpu_exhaustive_tiling_search", True),
    ),
    "tpu": (("xla_tpu_enable_latency_hiding_scheduler", True),),
}


def choices(space: Space, notes: list[str]) -> Choices:
    """Return the lists of a space on this platform; what is left out goes to ``notes``."""
    platform = jax.default_backend()
    precision = space.precision
    if precision is None:
        precision = _PRECISION.get(platform, ("bf16",))
    backend = space.backend
    if backend is None:
        backend = ("xla",)
        if platform == "cpu":
            backend = ("xla", "openvino")
    if "openvino" in backend:
        if platform != "cpu":
            raise InputError(f"Space: the back-end openvino runs on CPUs, this is {platform}")
        if why := _openvino_missing():
            if space.backend is not None:
                raise MissingExtraError(why)
            backend = tuple(each for each in backend if each != "openvino")
            notes.append(f"the back-end openvino was not tried: {why}")
        elif space.precision is None:
            if why := _nncf_missing():
                notes.append(f"int8 with openvino was not tried: {why}")
            else:
                precision = ("int8", *precision)  # the fastest where it is exact enough
    if "int8" in precision and "openvino" not in backend:
        raise InputError(
            "Space: precision int8 is of the back-end openvino, which is not in backend"
        )
    attention = space.attention
    if attention is None:
        attention = ("cudnn",) if platform == "gpu" else ("whole", "blocked")
    layout = space.layout
    if layout is None:
        layout = ("NCHW",) if platform == "gpu" else ()
    options = space.options
    if options is None:
        options = _known_options(_OPTIONS.get(platform, ()), notes)
    mesh = space.mesh
    if mesh is None:
        mesh = _meshes(jax.local_device_count(), platform)
    return Choices(
        fold=space.fold,
        precision=tuple(level for level in precision if level != "f32"),
        groups=space.groups,
        attention=tuple(each for each in attention if each),
        layout=tuple(each for each in layout if each),
        unroll=space.unroll,
        batch=None if space.batch is None else tuple(space.batch),
        buckets={name: _lists(each) for name, each in space.buckets.items()},
        mesh=tuple(mesh),
        sharding=tuple(space.sharding),
        donate=space.donate,
        options=tuple((str(name), value) for name, value in options),
        backend=tuple(backend),
        prune=tuple(tuple(sorted(each.items())) for each in space.prune),
    )


def _lists(given: Any) -> tuple[tuple[int, ...], ...]:
    """Return lists of buckets; of a histogram those that pad least, 2, 4 and 8 of them."""
    if isinstance(given, Mapping):
        return tuple(dict.fromkeys(tuple(choose_buckets(given, n)) for n in (2, *BUCKETS)))
    return tuple(map(tuple, given))


def _meshes(devices: int, platform: str) -> tuple[str, ...]:
    """Return meshes over all devices; CPUs that only count as several share their cores."""
    if devices < 2 or platform == "cpu":
        return ()
    return (f"data={devices}", f"model={devices}")


def _openvino_missing() -> str:
    from jaxinfer.compile.openvino.function import available

    return available()


def _nncf_missing() -> str:
    from importlib.util import find_spec

    if find_spec("nncf") is not None:
        return ""
    return "NNCF is not installed: pip install 'jaxinfer[openvino-int8]'"


def _known_options(
    options: Sequence[tuple[str, Any]], notes: list[str]
) -> tuple[tuple[str, Any], ...]:
    """Return those options that this jaxlib knows: it refuses a name that it does not."""
    known = []
    for name, value in options:
        try:
            jax.jit(lambda x: x + 1).lower(1.0).compile(compiler_options={name: value})
            known.append((name, value))
        except (jax.errors.JaxRuntimeError, ValueError, TypeError) as error:
            first = (str(error).splitlines() or [""])[0][:120]
            notes.append(f"compiler option {name} was not tried: {first}")
    return tuple(known)


def structures(found: Choices, facts: Mapping[str, Any], base: Candidate) -> list[Candidate]:
    """Return the arrangements of float32 to try, each one step away from the baseline.

    Args:
      found: the space.
      facts: what the model has: ``convolutions``, ``attention``, ``scans`` (true or false).
      base: the baseline.
    """
    made = []
    for backend in found["backend"]:
        made.append(base.replace(backend=backend))
        made += [base.replace(backend=backend, fold=True)] if found["fold"] else []
    if "xla" not in found["backend"]:  # the baseline is all that XLA is asked for
        return [each for each in made if each != base]
    if facts.get("attention", True):
        made += [base.replace(attention=each) for each in found["attention"]]
    if facts.get("convolutions", True):
        made += [base.replace(layout=each) for each in found["layout"]]
    if found["unroll"] and facts.get("scans", True):
        made.append(base.replace(unroll=True))
    for mesh in found["mesh"]:
        made += [base.replace(mesh=mesh, sharding=each) for each in found["sharding"]]
    for buckets in found["bucketings"]:
        made.append(base.replace(buckets=buckets))
    made += [base.replace(prune=each) for each in found["prune"]]
    return [each for each in made if each != base]


EXACT_BUCKETS = 12  # sizes that the baseline is compiled for one by one
BUCKETS = (4, 8)
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128)


def base_of(found: Choices, data: Any, model: Any, objective: Any) -> tuple[Candidate, Choices]:
    """Return the baseline, and the space with what depends on the data.

    Calls of several shapes are padded to buckets. The baseline has one for every size that occurs
    (powers of two, if they are many): what ``jit`` would compile.

    Args:
      found: the space.
      data: the Dataset that judges.
      model: the model.
      objective: its name or function.

    Raises:
      InputError: calls of several shapes of a model whose sizes have no names.
    """
    found = Choices(found)
    sizes = _varying(data, model)
    exact, bucketings = [], []
    for name, occur in sizes.items():
        own = sorted(occur)
        if len(own) > EXACT_BUCKETS:
            own = sorted({1 << (size - 1).bit_length() for size in own})
        exact.append((name, tuple(own)))
    if sizes:
        for count in BUCKETS:
            made = tuple(
                (name, tuple(choose_buckets(occur, count))) for name, occur in sizes.items()
            )
            if made != tuple(exact) and made not in bucketings:
                bucketings.append(made)
    for name, lists in found["buckets"].items():
        others = tuple(pair for pair in exact if pair[0] != name)
        for each in lists:
            bucketings.append((*others, (name, tuple(each))))
    found["bucketings"] = tuple(tuple(sorted(each)) for each in bucketings)
    if found["batch"] is None:
        found["batch"] = ()
        if objective == "throughput" and data.sampled and data.uniform and not data.fixed:
            low, high = data.low, data.high
            found["batch"] = tuple(n for n in BATCHES if n >= low and (high is None or n <= high))
    elif found["batch"] and not (data.sampled and data.uniform):
        raise InputError("Space: batch: calls of these data cannot be regrouped or differ in shape")
    return Candidate(buckets=tuple(sorted(exact))), found


def _varying(data: Any, model: Any) -> dict[str, dict[int, int]]:
    """Return how often each size of a dimension occurs, for those that differ between calls."""
    specs = [spec for spec in model.inputs if spec.is_array]
    counts: dict[str, dict[int, int]] = {}
    nameless = []
    for place, spec in enumerate(specs):
        shapes = [call.arrays[place].shape for call in data.calls]
        if len({len(shape) for shape in shapes}) != 1:
            nameless.append(f"{spec}: ranks differ between the calls")
            continue
        for axis in range(len(shapes[0])):
            occur = collections.Counter(shape[axis] for shape in shapes)
            if len(occur) < 2:
                continue
            name = spec.shape[axis] if axis < len(spec.shape) else None
            if isinstance(name, str) and is_name(name):
                counts[name] = dict(occur)
            else:
                nameless.append(
                    f"{spec}: axis {axis} has sizes {', '.join(map(str, sorted(occur)))}"
                )
    if nameless:
        advice = "Pad the data to one shape, or convert the model with names for these sizes."
        raise InputError(listing("optimize: calls of several shapes:", nameless, advice))
    return counts
