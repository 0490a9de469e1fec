"""Weight files that only torch can read: ``.pth``, ``.pt``, ``.bin``, with weights_only=True."""

from __future__ import annotations

import pathlib
import pickle
from collections.abc import Mapping
from typing import Any

import torch

from jaxinfer.core.arrays import from_torch_tensor
from jaxinfer.core.errors import CheckpointError


def read_pickle(path: Any) -> Mapping[str, Any]:
    """Return ``{name: array}`` of a state_dict file; code in the file is refused, not run.

    A dict with a ``state_dict`` or ``model`` entry (training checkpoints) is unwrapped.

    Raises:
      CheckpointError: the file holds objects other than tensors and plain containers, is
        damaged, or holds no tensors.
    """
    path = pathlib.Path(path)
    try:
        data = torch.load(path, map_location="cpu", weights_only=True, mmap=_is_zip(path))
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path}: refused: it holds Python objects, not only weights "
            f"({str(error).splitlines()[0][:200]}). Save the weights alone, for example "
            "safetensors.torch.save_file(module.state_dict(), 'weights.safetensors')"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        text = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise CheckpointError(f"{path}: not a readable torch weight file: {text}") from error
    for key in ("state_dict", "model"):
        if isinstance(data, dict) and isinstance(data.get(key), dict):
            data = data[key]
    if not isinstance(data, dict) or not any(isinstance(v, torch.Tensor) for v in data.values()):
        raise CheckpointError(f"{path}: holds no named tensors (a {type(data).__name__})")
    odd = [k for k, v in data.items() if not isinstance(v, torch.Tensor)]
    if odd:
        raise CheckpointError(f"{path}: entries that are no tensors: {', '.join(map(str, odd[:10]))}")
    return {str(name): from_torch_tensor(tensor) for name, tensor in data.items()}


def _is_zip(path: pathlib.Path) -> bool:
    with path.open("rb") as file:
        return file.read(2) == b"PK"


READERS = {suffix: read_pickle for suffix in (".pth", ".pt", ".bin", ".ckpt")}
