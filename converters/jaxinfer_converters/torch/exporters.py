"""jaxinfer as a backend of ``transformers.exporters``: importing this module registers it.

``JaxExporter().export(...)`` and ``.export_for_generation(...)`` give transformers'
``ExportedModel``, whose programs are ``jaxinfer.Model``s that share their parameters. The
graph is captured by transformers' own ``DynamoExporter``. Experimental there, so here too.
Source: https://huggingface.co/docs/transformers/exporters.
"""

from __future__ import annotations

import copy
import dataclasses
import tempfile
import zipfile
from collections.abc import Iterator, Mapping, MutableMapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch.utils import _pytree as pytree
from transformers import GenerationConfig, StaticCache
from transformers.cache_utils import Cache, StaticLayer, StaticSlidingWindowLayer
from transformers.exporters.auto import register_backend
from transformers.exporters.base import ExportedModel, HfExporter
from transformers.exporters.configs import DynamoConfig
from transformers.exporters.exporter_dynamo import DynamoExporter
from transformers.exporters.metadata import ExportMetadata
from transformers.exporters.runners.base import ModelRunner

import jaxinfer
from jaxinfer.core.arrays import as_array
from jaxinfer.core.errors import ConversionError
from jaxinfer.core.model import Model
from jaxinfer.core.symbols import evaluate
from jaxinfer_converters.graph import Ref
from jaxinfer_converters.program import GraphProgram
from jaxinfer_converters.torch.components import Shared, component, joined

FORMAT = "jaxinfer"


@dataclasses.dataclass
class JaxConfig(DynamoConfig):
    """As transformers' ``DynamoConfig``: ``dynamic``, ``dynamic_shapes`` and the rest."""

    export_format: Any = FORMAT


class JaxExporter(HfExporter):
    """Exports a transformers model as ``jaxinfer.Model``s.

    Example::

        exported = JaxExporter().export_for_generation(
            model,
            {"input_ids": ids, "attention_mask": mask},
            JaxConfig(),
            generation_config=GenerationConfig(cache_implementation="static", max_cache_len=64),
        )
        decode = exported.components["decode"].program  # a jaxinfer.Model
        model_of(exported).save("llama/")  # one directory, parameters once
    """

    export_format = FORMAT
    config_class = JaxConfig
    program_suffix = ".jaxinfer.zip"
    required_packages: ClassVar[list[str]] = ["torch", "jax"]
    min_versions = DynamoExporter.min_versions

    def __init__(self) -> None:
        super().__init__()
        self._shared: Shared | None = None

    def export_program(
        self, model: Any, sample_inputs: MutableMapping[str, Any], config: DynamoConfig
    ) -> tuple[Model, ExportMetadata]:
        """Trace one graph and convert it.

        Raises:
          ConversionError: a quantizer, or a sliding-window cache, whose trace is right for one
            fill of the window only.
          MissingRulesError: operators without a rule, all of them.
        """
        if config.quantizer is not None:
            raise ConversionError(
                "JaxConfig(quantizer=...): quantized PyTorch graphs have no rules; export the "
                "float model, and quantize the jaxinfer.Model"
            )
        refuse_sliding(sample_inputs)
        program, metadata = DynamoExporter().export_program(model, sample_inputs, config)
        made = component(program, model, self._shared or Shared.of(model))
        metadata.out_constants = [[at, {"size": size}] for at, size in made.sizes.items()]
        return made.model, metadata

    def export_for_generation(
        self,
        model: Any,
        sample_inputs: MutableMapping[str, Any],
        config: Any,
        *,
        generation_config: GenerationConfig | None = None,
        multi_token_decode: bool = False,
    ) -> ExportedModel:
        """Export each stage of generation; see ``HfExporter.export_for_generation``.

        The components share their parameters. A static cache that transformers would make
        with sliding-window layers is made with full-length layers: the mask still applies the
        window, and the trace holds at every length.
        """
        settings, made = generation_config, sample_inputs
        if (
            settings is not None
            and settings.cache_implementation == "static"
            and not model.config.is_encoder_decoder
            and "past_key_values" not in sample_inputs
        ):
            if settings.max_cache_len is None:
                raise ConversionError(
                    "a static cache needs its length: GenerationConfig(max_cache_len=...)"
                )
            made = {**sample_inputs, "past_key_values": full_cache(model, settings.max_cache_len)}
            settings = copy.deepcopy(settings)
            settings.cache_implementation = None
        self._shared = Shared.of(model)
        try:
            exported = super().export_for_generation(
                model,
                made,
                config,
                generation_config=settings,
                multi_token_decode=multi_token_decode,
            )
        finally:
            self._shared = None
        exported.generation_config = generation_config
        return exported

    @classmethod
    def save_program(cls, program: Model, path: Any) -> None:
        """Write a model directory as one uncompressed zip file."""
        with tempfile.TemporaryDirectory(dir=Path(path).parent) as folder:
            made = Path(folder) / "model"
            program.save(made)
            with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
                for file in sorted(made.rglob("*")):
                    archive.write(file, file.relative_to(made))

    @classmethod
    def load_program(cls, path: Any) -> Model:
        """Read what ``save_program`` wrote; checked like any model directory."""
        with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(path) as archive:
            archive.extractall(folder)
            return jaxinfer.load(folder)


class JaxRunner(ModelRunner):
    """Runs a ``jaxinfer.Model`` on torch tensors, and returns what the source model returns.

    Tensors pass through the host's memory. A cache that is passed is not written to: the new
    one is among the outputs.
    """

    def __init__(self, model: Model, metadata: ExportMetadata):
        super().__init__(metadata)
        self.model = model
        self.sizes = {
            at: constant["size"]
            for at, constant in metadata.out_constants
            if isinstance(constant, dict)
        }

    @property
    def device(self) -> torch.device:
        """The CPU: that is where tensors come from and go to."""
        return torch.device("cpu")

    @classmethod
    def from_program(
        cls, program: Model, metadata: ExportMetadata, device: Any = None
    ) -> JaxRunner:
        """Return a runner; JAX chooses the device that computes.

        Raises:
          ValueError: a device of torch's is asked for.
        """
        if device is not None and torch.device(device).type != "cpu":
            raise ValueError(
                f"device: required None or 'cpu' (torch's side), got {device!r}; the device that "
                "computes is JAX's: jax.config.update('jax_platforms', ...)"
            )
        return cls(program, metadata)

    def __call__(
        self, share_inputs: bool = True, share_outputs: bool = False, **kwargs: Any
    ) -> Any:
        """Run the model on keyword arguments; always copies in and out."""
        del share_inputs, share_outputs
        names = self.model.signature.names
        kwargs = {k: v for k, v in {**self.metadata.in_constants, **kwargs}.items() if k in names}
        program: Any = self.model.program
        out = self.model(**kwargs)
        state: Mapping[str, Any] = {}
        if program.mutates:
            out, state = out
        leaves = self.model.signature.flatten((), kwargs)
        for spec, leaf in zip(self.model.inputs, leaves, strict=True):
            if spec.path in state:
                leaf.copy_(_tensor(state[spec.path], spec.dtype))
        if self.sizes:
            specs = self.model.inputs
            arrays = [
                as_array(v, s.path) if s.is_array else v for s, v in zip(specs, leaves, strict=True)
            ]
            bound = self.model.signature.bind_sizes(arrays)
            self.out_constants |= {at: evaluate(size, bound) for at, size in self.sizes.items()}
        flat = program.outputs.flatten(out, "output", [])
        dtypes = _output_dtypes(program)
        return self.unflatten([_tensor(v, d) for v, d in zip(flat, dtypes, strict=True)])


register_backend(JaxExporter, JaxRunner)


def model_of(exported: ExportedModel) -> Model:
    """Return an export's components as one Model, with each parameter once.

    Raises:
      ConversionError: the export is of another backend.
    """
    if exported.export_format != FORMAT:
        raise ConversionError(
            f"model_of: required an export of JaxExporter, got format {exported.export_format!r}"
        )
    parts = {name: part.program for name, part in exported.components.items()}
    return joined(parts, {})


def full_cache(model: Any, length: int) -> StaticCache:
    """Return an empty static cache in which every layer holds ``length`` tokens.

    transformers' sliding-window layers count tokens in Python, and a trace is right for one
    count only; a full-length layer under a sliding mask computes the same.
    """
    cache = StaticCache(model.config, max_cache_len=length)
    cache.layers = [
        StaticLayer(max_cache_len=length) if type(layer) is StaticSlidingWindowLayer else layer
        for layer in cache.layers
    ]
    return cache


def refuse_sliding(inputs: Mapping[str, Any]) -> None:
    """Refuse caches whose trace would hold for one number of tokens only.

    Raises:
      ConversionError: an input is a cache with static sliding-window layers.
    """
    for name, value in inputs.items():
        for cache in _caches(value):
            if any(isinstance(layer, StaticSlidingWindowLayer) for layer in cache.layers):
                raise ConversionError(
                    f"{name}: a static sliding-window cache counts its tokens in Python, so a "
                    "trace of it is right for one count only; pass full-length layers: "
                    f"{name}=jaxinfer_converters.torch.exporters.full_cache(model, max_cache_len)"
                )


def _caches(value: Any) -> Iterator[Any]:
    if not isinstance(value, Cache):
        return
    for part in ("self_attention_cache", "cross_attention_cache"):
        yield from _caches(getattr(value, part, None))
    if hasattr(value, "layers"):
        yield value


def counters_of(value: Any) -> list[int] | None:
    """Return the integers in a cache that holds nothing but counters, else None."""
    leaves = pytree.tree_leaves(value)
    if not all(isinstance(leaf, torch.Tensor) and leaf.ndim == 0 for leaf in leaves):
        return None
    return [int(leaf) for leaf in leaves]


def _output_dtypes(program: GraphProgram) -> list[str]:
    """Return the dtype that torch recorded for each output, '' for what is no array."""
    graph = program.graph
    avals = {item.name: item.aval for item in graph.inputs}
    avals |= {node.name: node.avals[0] for node in graph.nodes if node.avals}
    found = []
    for result in graph.results:
        if result.kind == "output":
            aval = avals.get(result.value.name) if isinstance(result.value, Ref) else None
            found.append("" if aval is None else aval.dtype)
    return found


def _tensor(value: Any, dtype: str) -> Any:
    """Return an array as a torch tensor of its own memory, in the dtype that torch had."""
    if not dtype:
        return value
    array = np.array(value)
    if array.dtype.name in ("bfloat16",):
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array).to(getattr(torch, dtype))
