"""The public functions: a Model from PyTorch, Flax or any JAX function; save and load."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from jaxinfer.core.errors import MissingExtraError
from jaxinfer.core.model import Model
from jaxinfer.core.program import FunctionProgram, find_entry_point, signature_of

if TYPE_CHECKING:
    from jaxinfer.compile.executable import Executable
    from jaxinfer.core.frontend import Progress
    from jaxinfer.tune.budget import Budget
    from jaxinfer.tune.plan import Plan
    from jaxinfer.tune.space import Space
    from jaxinfer.tune.tuned import TunedModel


def from_torch(
    module: Any,
    example_args: Sequence[Any] = (),
    example_kwargs: Mapping[str, Any] | None = None,
    dynamic_shapes: Any = None,
    *,
    weights: Any = None,
    layout: str = "NCHW",
    scan_layers: bool = False,
    x64: bool = False,
    progress: Progress | None = None,
) -> Model:
    """Convert a PyTorch module (or ``torch.export.ExportedProgram``) to a Model.

    The module is exported as it stands: call ``module.eval()`` first unless you want dropout
    and batch statistics. ``params`` is a flat dict keyed by the state_dict's names.

    Args:
      module: ``torch.nn.Module``, also on the meta device or fake if ``weights`` is given, or
        ``ExportedProgram`` (then alone).
      example_args: example inputs by position (a tuple of tensors, nested as forward takes
        them). A size that is to be dynamic must be 2 or more.
      example_kwargs: example inputs by name.
      dynamic_shapes: None (static), as in ``torch.export``, with strings for ``Dim``:
        ``{"x": {0: "batch"}}``; one string: that name for axis 0 of every tensor; ``"auto"``:
        every axis as dynamic as the module allows.
      weights: a weight file or checkpoint directory to read parameters from, instead of the
        module: leaf by leaf, torch holds none of them.
      layout: of images at the interface: ``"NCHW"`` (torch's) or ``"NHWC"``. Inside,
        convolutions run channels-last either way; ``"keep"`` leaves every layout as it was.
      scan_layers: run repeated blocks in one ``lax.scan`` over stacked parameters, to cut
        compile time. The key of a stack is the path with ``*`` for the layer's number
        (``encoder.layer.*.output.dense.weight``), or a slice (``layers.1:12:2.weight``) where
        other layers of that name are outside. ``provenance["scan_layers"]`` says what was
        scanned, and what was not and why.
      x64: compute in 64 bits wherever the module does (int64, float64, complex128). The model
        then turns 64-bit types on for its own calls, also after ``load``; ``model.apply``
        demands them on. False: as JAX is configured, which by default narrows them to 32
        bits, and refuses numbers that do not fit.
      progress: called as ``progress(leaf name, done, total)``.

    Returns:
      A Model. Cost: the export, one abstract trace, and one copy of the weights.

    Raises:
      MissingRulesError: operators without a rule, all of them (before any weight is read).
      ConversionError: the module cannot be exported, or depends on data; which line.
      CheckpointError: missing, extra and misshapen weights, all of them.
      MissingExtraError: torch is not installed.

    Example::

        model = ji.from_torch(module.eval(), (x,), dynamic_shapes=({0: "batch"},))
        y = model(x)
    """
    return _torch_front_end().convert(
        module,
        example_args,
        example_kwargs,
        dynamic_shapes,
        weights=weights,
        layout=layout,
        scan_layers=scan_layers,
        x64=x64,
        progress=progress,
    )


def from_generative(
    module: Any,
    example_inputs: Mapping[str, Any] | None = None,
    *,
    max_cache_len: int,
    weights: Any = None,
    progress: Progress | None = None,
) -> Model:
    """Convert a transformers model that generates: prefill and decode over a static cache.

    ``model.components["prefill"]`` takes a whole prompt and returns the last position's logits
    and a cache, ``["decode"]`` one token and the cache, and returns both again; ``["encoder"]``
    comes first where there is one. All share ``model.params``. Batch and prompt length are
    dynamic. ``jaxinfer.engine.GreedyDecoder(model)`` is the loop around them. Under jit with
    the cache donated, a decode step writes the new keys and values in place.

    Args:
      module: a transformers model in eval mode (``AutoModelForCausalLM``, T5, BART, Whisper).
      example_inputs: what ``module.generate`` takes, with a batch of 2; None: token ids. The
        length of an encoder's output is fixed to that of the example.
      max_cache_len: how many tokens the cache holds, prompt and answer together. Every layer
        has that length, sliding-window ones too: their mask applies the window.
      weights: a weight file or checkpoint directory to read parameters from, instead of the
        module.
      progress: called as ``progress(leaf name, done, total)``.

    Returns:
      A Model of several components; saved, it is one directory with each parameter once.
      Cost: two calls of the module on the example, two or three exports, one copy of the
      weights.

    Raises:
      ConversionError: transformers cannot generate with a static cache, or trace it; why.
      MissingRulesError, CheckpointError, MissingExtraError: as ``from_torch``.

    Example::

        model = ji.from_generative(AutoModelForCausalLM.from_pretrained(path), max_cache_len=256)
        prefill, decode = model.components["prefill"], model.components["decode"]
    """
    return _torch_front_end().convert_generative(
        module, example_inputs, max_cache_len=max_cache_len, weights=weights, progress=progress
    )


def from_onnx(
    source: Any,
    *,
    inputs: Mapping[str, Any] | None = None,
    fixed: Mapping[str, Any] | None = None,
    dynamic: bool = True,
    layout: str = "NCHW",
    x64: bool = False,
    progress: Progress | None = None,
) -> Model:
    """Convert an ONNX model to a Model.

    ``params`` is a flat dict keyed by the initializers' names. Sizes that the model names
    (``dim_param``) or leaves open are symbols of the signature.

    Args:
      source: the path of an ``.onnx`` file (its external data is read from its folder), or an
        ``onnx.ModelProto``.
      inputs: shapes by input name, in place of those the model declares: integers and names
        of dynamic sizes, ``{"x": ("batch", 3, 224, 224)}``; for a sequence a list of shapes;
        None leaves an optional input out.
      fixed: values by input name: they become constants, and are no arguments any more. An
        input that a shape, an axis or a count depends on has to be one of them.
      dynamic: false fixes every size that is a symbol to 1, or to what ``inputs`` says.
      layout: of images at the interface: ``"NCHW"`` (ONNX's) or ``"NHWC"``. Inside,
        convolutions run channels-last either way; ``"keep"`` leaves every layout as it was.
      x64: compute in 64 bits wherever the model does; see ``from_torch``.
      progress: called as ``progress(initializer name, done, total)``.

    Returns:
      A Model. Cost: one or two abstract traces, and one copy of the weights, one at a time.

    Raises:
      CheckpointError: the file is no ONNX model, is cut short, or its external data is missing,
        misshapen, or outside its folder.
      ConversionError: an opset that is not supported, inputs without shapes, shapes that
        depend on data, strings; what, where, and what to do.
      MissingRulesError: operators without a rule, all of them (before any weight is read).
      MissingExtraError: onnx is not installed.

    Example::

        model = ji.from_onnx("resnet18.onnx", inputs={"x": ("batch", 3, 224, 224)})
        y = model(x)
    """
    return find_entry_point("onnx").convert(
        source,
        inputs=inputs,
        fixed=fixed,
        dynamic=dynamic,
        layout=layout,
        x64=x64,
        progress=progress,
    )


def _torch_front_end() -> Any:
    try:
        return find_entry_point("torch")
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise MissingExtraError(
            "from_torch needs PyTorch, which is not installed: pip install 'jaxinfer[torch]'. "
            "A model that was converted and saved before loads without it: jaxinfer.load(path)"
        ) from error


def from_function(
    fn: Callable[..., Any], params: Any, example_inputs: Sequence[Any] | Any | None = None
) -> Model:
    """Make a Model of any JAX function ``fn(params, *inputs)``.

    Args:
      fn: a pure function; any pytree in and out.
      params: its parameters, any pytree.
      example_inputs: a tuple of example inputs (arrays, ``jax.ShapeDtypeStruct`` or pytrees of
        them); they give the input specs, and the shapes at which ``save`` exports. The
        function itself still takes any shapes it can. None: any positional arguments.

    Raises:
      TypeError: ``fn`` is not callable.

    Example:
      >>> import jax.numpy as jnp, jaxinfer as ji
      >>> model = ji.from_function(lambda p, x: p * x, jnp.float32(2), (jnp.ones(3),))
      >>> model(jnp.arange(3.0)).tolist()
      [0.0, 2.0, 4.0]
    """
    if not callable(fn):
        raise TypeError(f"from_function takes a callable fn(params, *inputs), got {type(fn)}")
    name = getattr(fn, "__qualname__", type(fn).__qualname__)
    source = f"{getattr(fn, '__module__', '?')}.{name}"
    program = FunctionProgram(fn, signature_of(example_inputs))
    return Model(program, params, provenance={"source": source})


def from_flax(
    module: Any, variables: Any = None, example_inputs: Any = None, **kwargs: Any
) -> Model:
    """Make a Model of a Flax module, linen or NNX; see ``jaxinfer.core.flax.from_flax``."""
    from jaxinfer.core.flax import from_flax as make

    return make(module, variables, example_inputs, **kwargs)


def to_nnx(model: Model) -> Any:
    """Return a ``flax.nnx.Module`` that computes the model; see ``jaxinfer.core.flax.to_nnx``."""
    return model.to_nnx()


def save(model: Model, path: Any, *, overwrite: bool = False) -> None:
    """Write a model directory (``model.json`` and safetensors), aside and then renamed.

    Args:
      model: any Model; one made of a Python function is exported as StableHLO at the shapes
        of its example inputs.
      path: the directory to make.
      overwrite: replace an existing directory (the old one stays if writing fails).

    Raises:
      ArtefactError: the path exists, or cannot be written (a full disk); nothing is left.
    """
    model.save(path, overwrite=overwrite)


def load(
    path: Any,
    *,
    abstract: bool = False,
    shardings: Any = None,
    verify: bool = True,
    progress: Callable[[int, int, float, str], None] | None = None,
) -> Model:
    """Read a model directory. Needs no torch, runs no code from it, checks everything.

    Args:
      path: the directory.
      abstract: read no weight: parameters are ``jax.ShapeDtypeStruct``, for a plan or a trace.
      shardings: where each parameter goes: a ``ShardingPlan``, one ``Sharding`` for all, or a
        mapping or function from the array's name (``w``, ``w.qvalue``) to one. Each process
        reads its slices only, and holds at most one tensor for each thread beside them.
      verify: hold the weight files against their SHA-256, in constant memory; False: those that
        were not are listed in ``provenance["loaded_unverified"]``.
      progress: called as ``progress(done_bytes, total_bytes, bytes_per_s, name)``.

    Raises:
      ArtefactError: everything that is wrong with the directory, at once.
      InputError: shardings that are missing, extra, or do not divide a parameter; all at once.
      MemoryError: the devices cannot hold their shards.

    Example::

        plan = ji.partition(ji.load("big/", abstract=True), ji.make_mesh({"model": 8}))
        model = ji.load("big/", shardings=plan)
    """
    from jaxinfer.io.artefact import load as read

    return read(path, abstract=abstract, shardings=shardings, verify=verify, progress=progress)


def load_executable(path: Any, *, strict: bool = False) -> Executable:
    """Read what ``Executable.save`` has written; see ``jaxinfer.compile.store``."""
    from jaxinfer.compile.store import load_executable as read

    return read(path, strict=strict)


def export(model: Model, path: Any, **options: Any) -> Any:
    """Write a model as StableHLO for other platforms; see ``jaxinfer.compile.export.export``."""
    from jaxinfer.compile.export import export as write

    return write(model, path, **options)


def load_export(path: Any, *, check: bool = True) -> Model:
    """Read what ``export`` has written; see ``jaxinfer.compile.export.load_export``."""
    from jaxinfer.compile.export import load_export as read

    return read(path, check=check)


def pipeline(
    model: Model, inputs: Any = None, *, stages: int, microbatch: int, **options: Any
) -> Any:
    """Cut a model into stages on several devices; see ``jaxinfer.compile.pipeline.pipeline``."""
    from jaxinfer.compile.pipeline import pipeline as cut

    return cut(model, inputs, stages=stages, microbatch=microbatch, **options)


def save_calibration(stats: Mapping[str, Any], path: Any, *, overwrite: bool = False) -> None:
    """Write the statistics of ``jaxinfer.calibrate`` to a file, for ``quantize(stats=...)``.

    Args:
      stats: {parameter: statistics}.
      path: the safetensors file to make.
      overwrite: replace a file that is there.

    Raises:
      ArtefactError: the path is taken or cannot be written; nothing is left.
    """
    from jaxinfer.io.calibration import save_calibration as write

    write(stats, path, overwrite=overwrite)


def load_calibration(path: Any) -> dict[str, Any]:
    """Read what ``save_calibration`` has written, bit for bit.

    Raises:
      ArtefactError: no such file, damaged, or not of calibration.
    """
    from jaxinfer.io.calibration import load_calibration as read

    return read(path)


def optimize(
    model: Model,
    data: Any,
    *,
    objective: Any = "latency",
    metric: Any = None,
    max_drop: float = 0.01,
    drop: str = "absolute",
    constraints: Mapping[str, float] | None = None,
    budget: Budget | None = None,
    space: Space | None = None,
    seed: int = 0,
    cache: Any = None,
    resume: bool = False,
    progress: Callable[[str, str, float | None, float], None] | None = None,
) -> Plan:
    """Find the fastest arrangement of a model that is accurate enough.

    Args:
      model: of one function, with known inputs.
      data: an iterable of batches; half of the samples calibrate, the others judge. What a batch
        holds beyond the inputs (labels) goes to the metric.
      objective: ``latency``, ``p99``, ``throughput``, ``memory``, or a function of a Measurement to
        make small.
      metric: ``metric(outputs, batch) -> float``, higher is better; or similarity to the float32
        outputs: ``cosine`` (the default), ``max``, ``top1``, ``kl``.
      max_drop: how much lower than the float32 reference's the metric may be.
      drop: ``absolute``, or ``relative`` to the reference's metric.
      constraints: ``p50_ms``, ``p99_ms``, ``peak_bytes``, ``weight_bytes``, ``compile_s``,
        ``first_call_ms`` at most; ``throughput`` (samples per second) at least.
      budget: seconds and programs; by default 300 s.
      space: what may be tried; by default what is usual on the platform.
      seed: of the split of the data.
      cache: a file for the journal of the search; None: it is not kept.
      resume: go on from that file.
      progress: called as ``progress(stage, candidate, best_ms, seconds_left)``.

    Returns:
      A Plan: ``plan.model``, ``plan.recipe``, ``plan.table()``, ``plan.report(path)``. Cost: the
      budget.

    Raises:
      InputError, InputTypeError: arguments, data or a metric that cannot be used.
      DisagreementError: two compilations of the model do not agree.
      BudgetError: it does not last for the reference and the baseline; how much would.
      UnmetError: nothing meets ``max_drop`` and the constraints; the best reachable.
      ArtefactError: the journal cannot be used.

    Example::

        plan = ji.optimize(model, batches, metric=accuracy, max_drop=0.005)
        print(plan.table())
        fast = plan.model
    """
    from jaxinfer.tune.optimize import optimize as search

    return search(
        model, data, objective=objective, metric=metric, max_drop=max_drop, drop=drop,
        constraints=constraints, budget=budget, space=space, seed=seed, cache=cache,
        resume=resume, progress=progress,
    )  # fmt: skip


def apply_recipe(recipe: Any, model: Model, data: Any = None, **settings: Any) -> TunedModel:
    """Make a model again as a recipe says, without a search; see ``jaxinfer.tune.tuned``.

    Args:
      recipe: a Recipe, its file, or a directory with a ``recipe.json``.
      model: the model as it came.
      data: batches, for recipes with calibrated levels, and to compare with the model as it came.
      settings: ``metric``, ``check``.
    """
    from jaxinfer.tune.tuned import apply_recipe as apply

    return apply(recipe, model, data, **settings)


def load_tuned(path: Any, data: Any = None, *, verify: bool = True) -> TunedModel:
    """Read a tuned model that was saved, and compile it as its recipe says.

    Args:
      path: a directory of ``TunedModel.save`` or ``jaxinfer optimize``.
      data: batches, needed for int8 of OpenVINO alone.
      verify: as for ``load``.
    """
    from jaxinfer.tune.tuned import load_tuned as read

    return read(path, data, verify=verify)
