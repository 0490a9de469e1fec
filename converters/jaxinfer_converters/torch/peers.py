"""Peers of a benchmark that start from a torch module: torch itself, and what it is exported to.

    torch                         eager, under inference_mode
    torch-compile                 torch.compile, static shapes
    torch-compile-max-autotune    the same, mode="max-autotune", weights frozen into the code
    ...-bf16, ...-fp16            module and float inputs in that type
    onnxruntime, onnxruntime-int8     by way of torch.onnx.export(dynamo=True)
    openvino, openvino-int8           by way of openvino.convert_model of the exported program

``open_peer`` is found through the entry point of this folder's front end; see
``jaxinfer.tune.bench``. The module gets the weights of the model directory wherever names and
shapes fit; where they do not, the row says that the weights differ.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import io
import logging
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils import _pytree as pytree

from jaxinfer.tune.bench._peer_inputs import Interface
from jaxinfer.tune.bench._worker import resident_mb
from jaxinfer.tune.bench.side import Prepared
from jaxinfer_converters.torch._peers_module import open_module, with_weights_of
from jaxinfer_converters.torch.examples import flat_outputs, to_torch

HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}


def open_peer(settings: Mapping[str, Any]) -> TorchPeer | ExportedPeer:
    """Open a peer on the torch module ``settings["source"]``.

    Raises:
      InputError: no such peer.
      ConversionError, CheckpointError, MissingExtraError: the source cannot be opened.
    """
    torch.set_num_threads(int(settings["threads"]))
    peer = str(settings["peer"])
    if peer.startswith("torch"):
        return TorchPeer(settings)
    return ExportedPeer(settings)


class TorchPeer:
    """The module in torch: eager or compiled."""

    def __init__(self, settings: Mapping[str, Any]):
        self._settings = settings
        self.base_mb = resident_mb()
        self.interface = Interface(settings["model_dir"])
        module = open_module(str(settings["source"]), settings.get("options") or {})
        self.module, notes = with_weights_of(module, settings["model_dir"])
        self._device, note = _device(settings)
        self._how, self._half = _parts(str(settings["peer"]))
        if self._half is not None:
            self.module = self.module.to(self._half)
        self.module = self.module.to(self._device)
        torch.backends.cudnn.allow_tf32 = False  # float32 is float32, as for matmuls
        self.facts: dict[str, Any] = {
            "precision": _precision(self.module),
            "device": _device_name(self._device),
            "versions": {"torch": importlib.metadata.version("torch")},
            "notes": [*notes, *note],
        }

    def prepare(self, arrays: Sequence[np.ndarray]) -> Prepared:
        """Bring the inputs to torch, in memory shared with the arrays, and compile."""
        tensors = [_shared(array) for array in self.interface.inward(arrays)]
        if self._half is not None:
            tensors = [t.to(self._half) if t.is_floating_point() else t for t in tensors]
        args, kwargs = self.interface.call(tensors)
        call = self._compiled()
        on_gpu = self._device.type == "cuda"

        def run() -> Any:
            with torch.inference_mode():
                if not on_gpu:
                    return call(*args, **kwargs)
                moved, named = pytree.tree_map_only(
                    torch.Tensor, lambda t: t.to(self._device, non_blocking=True), (args, kwargs)
                )
                result = call(*moved, **named)
                torch.cuda.synchronize()
                return result

        def outputs(result: Any) -> list[np.ndarray]:
            return self.interface.outward([_wide(each) for each in flat_outputs(result)])

        if self._how != "torch":
            run()  # it compiles when it is called first
        return Prepared(run, outputs)

    def _compiled(self) -> Any:
        if self._how == "torch":
            return self.module
        import torch._inductor.config as inductor

        if self._how == "torch-compile-max-autotune":
            inductor.freezing = True
            return torch.compile(self.module, dynamic=False, mode="max-autotune")
        return torch.compile(self.module, dynamic=False)


class ExportedPeer:
    """The module exported to ONNX or OpenVINO, at the shapes of the call."""

    def __init__(self, settings: Mapping[str, Any]):
        from jaxinfer_converters.onnx import peers as onnx_peers

        self._settings, self._onnx = settings, onnx_peers
        self.base_mb = resident_mb()
        self.interface = Interface(settings["model_dir"])
        module = open_module(str(settings["source"]), settings.get("options") or {})
        self.module, notes = with_weights_of(module, settings["model_dir"])
        self.facts = onnx_peers.peer_facts(settings)
        self.facts["notes"] = notes

    def prepare(self, arrays: Sequence[np.ndarray]) -> Prepared:
        """Export, and compile."""
        given = self.interface.inward(arrays)
        flat = _Flat(self.module, self.interface).eval()
        tensors = tuple(map(_shared, given))
        quiet = contextlib.redirect_stdout(io.StringIO())
        logging.disable(logging.WARNING)
        try:
            with warnings.catch_warnings(), quiet, torch.no_grad():
                warnings.simplefilter("ignore")
                if str(self._settings["peer"]).startswith("openvino"):
                    return self._by_openvino(flat, tensors, given)
                path = Path(self._settings["scratch"]) / "module.onnx"
                names = [f"input_{place}" for place in range(len(given))]
                torch.onnx.export(
                    flat,
                    tensors,
                    str(path),
                    input_names=names,
                    dynamo=True,
                    verbose=False,
                    external_data=False,
                )
        finally:
            logging.disable(logging.NOTSET)
        return self._onnx.prepared(self._settings, path, given, self.interface.outward)

    def _by_openvino(
        self, flat: torch.nn.Module, tensors: tuple[torch.Tensor, ...], given: list[np.ndarray]
    ) -> Prepared:
        from jaxinfer.compile.openvino.loading import load_openvino
        from jaxinfer.tune.bench import _openvino
        from jaxinfer.tune.bench._peer_inputs import calibration_batches

        exported = torch.export.export(flat, tensors)
        converted = load_openvino().convert_model(exported)
        notes: list[str] = []
        if self._settings["peer"] == "openvino-int8":
            batches, note = calibration_batches(self._settings, given)
            converted, done = _openvino.quantized(converted, batches)
            notes += [done, *note]
        threads = int(self._settings["threads"])
        return _openvino.prepared(converted, given, self.interface.outward, threads, notes)


class _Flat(torch.nn.Module):
    """A module that takes its array inputs in order, and returns a flat tuple."""

    def __init__(self, module: torch.nn.Module, interface: Interface):
        super().__init__()
        self.module, self._interface = module, interface

    def forward(self, *arrays: torch.Tensor) -> tuple[torch.Tensor, ...]:
        args, kwargs = self._interface.call(arrays)
        leaves = pytree.tree_leaves(self.module(*args, **kwargs))
        return tuple(leaf for leaf in leaves if isinstance(leaf, torch.Tensor))


def _parts(peer: str) -> tuple[str, torch.dtype | None]:
    how, _, half = peer.rpartition("-")
    if half in HALF:
        return how, HALF[half]
    return peer, None


def _device(settings: Mapping[str, Any]) -> tuple[torch.device, list[str]]:
    """Return where torch computes: where jaxinfer does; without it, on a GPU if there is one."""
    wanted = str(settings.get("device") or "")
    if wanted == "cpu" or not torch.cuda.is_available():
        note = [] if wanted in ("", "cpu") else [f"jaxinfer ran on {wanted}, torch on the CPU"]
        return torch.device("cpu"), note
    return torch.device("cuda"), []


def _device_name(device: torch.device) -> str:
    return "cpu" if device.type == "cpu" else f"gpu: {torch.cuda.get_device_name(device)}"


def _precision(module: torch.nn.Module) -> str:
    names = {
        str(tensor.dtype).removeprefix("torch.")
        for tensor in module.parameters()
        if tensor.is_floating_point()
    }
    return ", ".join(sorted(names - {"float32"})) or "f32"


def _shared(array: np.ndarray) -> torch.Tensor:
    """Return a tensor in the array's memory."""
    if array.dtype.name in ("bool",) or array.dtype.type.__module__ == "numpy":
        return torch.from_numpy(array)
    return to_torch(array)


def _wide(array: np.ndarray) -> np.ndarray:
    """Return half types as float32, as the outputs of others are compared."""
    return array.astype(np.float32) if array.dtype.name in ("bfloat16", "float16") else array
