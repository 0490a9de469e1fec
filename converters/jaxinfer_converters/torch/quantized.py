"""Quantized modules of torch: refused before the export, every layer and tensor named."""

from __future__ import annotations

import torch
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from jaxinfer.core.errors import ConversionError, listing

_MODULES = (
    "torch.ao.nn.quantized",
    "torch.ao.nn.intrinsic.quantized",
    "torch.ao.nn.sparse.quantized",
    "torchao.",
    "bitsandbytes.",
    "optimum.quanto.",
    "auto_gptq.",
    "gptqmodel.",
    "awq.",
    "hqq.",
)
ADVICE = (
    "They are packed for torch's own kernels, and have no counterpart in JAX. Convert the "
    "float model: the checkpoint from before quantization, or the module with each such layer "
    "replaced by the float layer of its weights (layer.weight().dequantize(), "
    "tensor.dequantize())."
)


def refuse_quantized(module: torch.nn.Module) -> None:
    """Raise if a module holds quantized layers or tensors.

    Raises:
      ConversionError: all of them, and what to convert instead.
    """
    layers = {
        path: type(layer)
        for path, layer in module.named_modules()
        if type(layer).__module__.startswith(_MODULES)
    }
    inner = {path for path in layers if any(path.startswith(f"{p}.") for p in layers if p)}
    layers = {path: kind for path, kind in layers.items() if path not in inner}
    found = [f"layer {path!r}: {kind.__module__}.{kind.__name__}" for path, kind in layers.items()]
    state = (*module.named_parameters(), *module.named_buffers())
    for name, tensor in state:
        inside = any(name.startswith(f"{path}.") for path in layers if path)
        if tensor.is_quantized and not inside:
            found.append(f"{name}: {str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}")
        elif is_traceable_wrapper_subclass(tensor) and not inside:
            kind = type(tensor)
            found.append(f"{name}: a tensor subclass, {kind.__module__}.{kind.__name__}")
    if found:
        raise ConversionError(
            listing(
                f"{len(found)} quantized layers or tensors, or tensors of a kind of their own:",
                found,
                ADVICE,
            )
        )
