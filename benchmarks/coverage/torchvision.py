"""torchvision: every model that it registers, by task.

Quantized models are refused (``docs/limits.md``); detection models pick boxes by their scores,
which torch.export refuses.
"""

from __future__ import annotations

import inspect
from typing import Any

from benchmarks.coverage.common import Case
from benchmarks.coverage.vision import case, images, on_path, refused_by_torch

TITLE = "torchvision"
INTRO = (
    "Every model that torchvision registers: classification, segmentation, video and optical "
    "flow at reduced size; detection models as far as torch.export takes them. Excluded are the "
    "quantized ones (their modules hold packed int8 weights, which have no picture in JAX: "
    "convert the float model). Weights and statistics as for timm. A case passes within 1e-4 of "
    "the largest output."
)
TIMEOUT = 900.0
TARGET = 1.0

TASKS = ("segmentation", "detection", "video", "optical_flow", "quantization")
SIZES = {
    "inception_v3": (96, 96),  # the least that its poolings take
    "maxvit_t": (224, 224),
    "mvit_v1_b": (16, 224, 224),
    "mvit_v2_s": (16, 224, 224),
    "raft_large": (128, 128),
    "raft_small": (128, 128),
    "s3d": (14, 128, 128),
}
BY_TASK = {"classification": (128, 128), "segmentation": (96, 96), "video": (8, 64, 64)}


def names() -> list[str]:
    """Return ``task/model``."""
    on_path()
    from torchvision import models  # pyright: ignore

    found = [f"classification/{name}" for name in models.list_models(module=models)]
    for task in TASKS:
        listed = models.list_models(module=getattr(models, task))
        found += [f"{task}/{name}" for name in listed]
    return found


def run(name: str) -> list[Case]:
    """Convert one model, and compare."""
    on_path()
    import torch
    from torchvision import models  # pyright: ignore

    task, entry = name.split("/")
    if task == "quantization":
        return [Case(name, "excluded", "not a model: of floats, but packed int8", group=task)]
    torch.manual_seed(0)
    builder = models.get_model_builder(entry)
    module: Any = builder(weights=None, **_arguments(builder)).eval()
    if task == "detection" and (why := refused_by_torch(module, _inputs(task, entry, module))):
        return [Case(name, "excluded", f"torch.export refuses: {why}", group=task)]
    return [case(name, module, _inputs(task, entry, module), group=task)]


def _arguments(builder: Any) -> dict[str, Any]:
    """Return what keeps a builder from fetching the weights of its backbone."""
    known = inspect.signature(builder).parameters
    return {"weights_backbone": None} if "weights_backbone" in known else {}


def _inputs(task: str, entry: str, module: Any) -> tuple[Any, ...]:
    if task == "detection":
        return (list(images(2, 3, 128, 128)),)
    if task == "optical_flow":
        size = SIZES[entry]
        return images(2, 3, *size), images(2, 3, *size, seed=1)
    size = SIZES.get(entry, BY_TASK[task])
    if entry.startswith("vit_"):  # its positions are for one size
        size = (module.image_size, module.image_size)
    return (images(2, 3, *size),)
