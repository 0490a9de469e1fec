"""Hugging Face front end: a checkpoint directory (config.json and safetensors) to a Model."""

from __future__ import annotations

import json
import pathlib

from jaxinfer.core.errors import CheckpointError, MissingExtraError
from jaxinfer.core.frontend import Options, Source


class HuggingFaceFrontEnd:
    """Directories with a ``config.json`` that transformers knows."""

    name = "huggingface"
    forms = ("checkpoint/                    a directory with config.json and *.safetensors",)

    def accepts(self, source: str) -> bool:
        """Return whether the source is a directory (a missing one is reported by ``open``)."""
        path = pathlib.Path(source)
        return path.is_dir() or source.endswith("/")

    def open(self, source: str, options: Options) -> Source:
        """Open a checkpoint directory without reading its weights."""
        path = pathlib.Path(source)
        if not path.is_dir():
            raise CheckpointError(f"{source}: no such directory")
        if (path / "model.json").is_file() and not (path / "config.json").is_file():
            raise CheckpointError(f"{source}: is a jaxinfer model already; nothing to convert")
        config = _read_config(path)
        try:
            from jaxinfer_converters.torch import huggingface
        except ModuleNotFoundError as error:
            raise MissingExtraError(
                f"converting a Hugging Face checkpoint needs {error.name}: "
                "pip install 'jaxinfer[huggingface]'"
            ) from error
        return huggingface.open_checkpoint_directory(path, config, options)


def _read_config(path: pathlib.Path) -> dict[str, object]:
    file = path / "config.json"
    if not file.is_file():
        raise CheckpointError(
            f"{path}: has no config.json; a Hugging Face checkpoint directory has config.json "
            "and model.safetensors (or an index with shards)"
        )
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{file}: not valid JSON: {error}") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{file}: must hold a JSON object")
    if "auto_map" in config:
        raise CheckpointError(
            f"{file}: names Python code to run (auto_map: {config['auto_map']}); jaxinfer runs no "
            "code from a checkpoint. Convert the module yourself: package.module:factory"
        )
    return config


FRONT_END = HuggingFaceFrontEnd()
