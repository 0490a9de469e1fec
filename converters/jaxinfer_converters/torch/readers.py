"""Weight files that only torch can read: ``.pth``, ``.pt``, ``.bin``, with weights_only=True."""

from __future__ import annotations

import io
import json
import pathlib
import pickle
import zipfile
from collections.abc import Mapping
from typing import Any

import torch

from jaxinfer.core.arrays import from_torch_tensor
from jaxinfer.core.errors import CheckpointError
from jaxinfer.io.checkpoint import Reader


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
        raise CheckpointError(
            f"{path}: entries that are no tensors: {', '.join(map(str, odd[:10]))}"
        )
    return {str(name): from_torch_tensor(tensor) for name, tensor in data.items()}


def _is_zip(path: pathlib.Path) -> bool:
    with path.open("rb") as file:
        return file.read(2) == b"PK"


def refuse_code(path: pathlib.Path) -> None:
    """Raise if a ``.pt2`` archive holds pickled objects other than tensors.

    ``torch.export.load`` unpickles script objects, opaque constants and sample inputs without
    restriction; here they are looked at first, with ``weights_only=True``.

    Raises:
      CheckpointError: the file is no readable archive, or holds objects that would run code.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            pickled = [n for n in names if n.endswith(".pt") or "/sample_inputs/" in n]
            objects = [
                n for n in names if n.split("/")[-1].startswith(("custom_obj_", "opaque_obj_"))
            ]
            for name in names:
                if name.endswith("_config.json"):
                    entries = json.loads(archive.read(name)).get("config", {}).values()
                    folder = name.rsplit("/", 1)[0]
                    pickled += [
                        f"{folder}/{e['path_name']}" for e in entries if e.get("use_pickle")
                    ]
            if objects:
                raise CheckpointError(f"{path}: refused: it holds Python objects ({objects[0]})")
            for name in pickled:
                data = archive.read(name)
                if data and not data.startswith((b"PK", b"\x80\x02")):
                    raise pickle.UnpicklingError(f"{name} is a plain pickle")
                if data:
                    torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path}: refused: it holds Python objects, not only tensors "
            f"({str(error).splitlines()[0][:200]})"
        ) from error
    except (zipfile.BadZipFile, OSError, ValueError, KeyError, RuntimeError, EOFError) as error:
        if isinstance(error, CheckpointError):
            raise
        text = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise CheckpointError(f"{path}: not a readable .pt2 archive: {text}") from error


READERS: dict[str, Reader] = dict.fromkeys((".pth", ".pt", ".bin", ".ckpt"), read_pickle)
