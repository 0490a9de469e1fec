"""The five models of docs/performance.md: factories, data, and what is asked of their outputs.

A factory returns ``(module, args, kwargs, dynamic_shapes)`` and is a source of ``jaxinfer
convert`` and ``jaxinfer bench``: ``benchmarks.performance_models:minilm``.

    minilm          all-MiniLM-L6-v2, its real weights; passages of the docstrings of Python's
                    library, cut or padded to 128 tokens; the mean cosine of the sentence
                    embeddings (mean of the token vectors under the mask) to those of torch
    resnet50        timm, random weights; noise; the mean cosine of the logits to those of torch
    vit_b16         timm's vit_base_patch16_224, the same
    digits          trained by the benchmark; handwritten digits; accuracy
    language_model  trained by the benchmark; bytes of Python's library; the mean log-likelihood
                    of the next byte, so that ``exp(-metric)`` is the perplexity

With random weights a cosine says little of a trained network; the speed is the architecture's.
"""

from __future__ import annotations

import hashlib
import pathlib
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from benchmarks import performance_train as training

TOKENS = 128
EMBEDDING = "embedding"
LOGITS = "logits"
Arrays = dict[str, np.ndarray]


class Case(NamedTuple):
    """A model and what is asked of it.

    Attributes:
      title: for people.
      factory: its name here.
      inputs: names of the model's inputs among the data.
      metric: ``metric(outputs, batch) -> float``, higher is better.
      measures: what the metric is, in words.
      max_drop: how much worse an arrangement may be, absolutely, and that in words.
      samples: (for the search, for the final figure) at least; a search has two calls at least.
    """

    title: str
    factory: str
    inputs: tuple[str, ...]
    metric: Callable[[Any, Mapping[str, Any]], float]
    measures: str
    max_drop: float
    allowed: str
    samples: tuple[int, int]

    @property
    def source(self) -> str:
        """The source for the command line."""
        return f"{__name__}:{self.factory}"


# Metrics.


def first(outputs: Any) -> np.ndarray:
    """Return the first output of a model as float32: an array, a sequence, a dict or an object."""
    if hasattr(outputs, "last_hidden_state"):
        outputs = outputs.last_hidden_state
    if isinstance(outputs, Mapping):
        outputs = next(iter(outputs.values()))
    if isinstance(outputs, (list, tuple)):
        outputs = outputs[0]
    return np.asarray(outputs).astype(np.float32)


def pooled(hidden: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return sentence embeddings f32[b, d]: the mean of the token vectors under the mask."""
    weights = mask[..., None].astype(np.float32)
    return (hidden * weights).sum(1) / weights.sum(1)


def cosine(got: np.ndarray, want: np.ndarray) -> float:
    """Return the mean over rows of the cosine, in float64."""
    a, b = np.asarray(got, np.float64), np.asarray(want, np.float64)
    lengths = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    return float(((a * b).sum(-1) / lengths).mean())


def embedding_cosine(outputs: Any, batch: Mapping[str, Any]) -> float:
    """Return the mean cosine of the sentence embeddings to those of torch in float32."""
    found = pooled(first(outputs), np.asarray(batch["attention_mask"]))
    return cosine(found, np.asarray(batch[EMBEDDING]))


def logit_cosine(outputs: Any, batch: Mapping[str, Any]) -> float:
    """Return the mean cosine of the logits to those of torch in float32."""
    return cosine(first(outputs), np.asarray(batch[LOGITS]))


def accuracy(outputs: Any, batch: Mapping[str, Any]) -> float:
    """Return the share of samples whose largest logit is that of the label."""
    return float((first(outputs).argmax(-1) == np.asarray(batch["label"])).mean())


def log_likelihood(outputs: Any, batch: Mapping[str, Any]) -> float:
    """Return the mean log-likelihood of the targets, in nats."""
    logits = first(outputs).astype(np.float64)
    logits -= logits.max(-1, keepdims=True)
    norm = np.log(np.exp(logits).sum(-1))
    target = np.asarray(batch["target"]).astype(np.int64)
    chosen = np.take_along_axis(logits, target[..., None], -1)[..., 0]
    return float((chosen - norm).mean())


# Factories.


def minilm() -> tuple[Any, ...]:
    """Return MiniLM with its weights."""
    import transformers

    from benchmarks import common

    module = transformers.AutoModel.from_pretrained(common.minilm()).eval()
    example = torch.ones((2, TOKENS), dtype=torch.int32)
    batch = {0: "batch"}
    kwargs = {"input_ids": example, "attention_mask": example.clone()}
    return module, (), kwargs, {"input_ids": batch, "attention_mask": batch}


def resnet50() -> tuple[Any, ...]:
    """Return ResNet-50 with random weights."""
    return _image("resnet50")


def vit_b16() -> tuple[Any, ...]:
    """Return ViT-B/16 with random weights."""
    return _image("vit_base_patch16_224")


def digits() -> tuple[Any, ...]:
    """Return the CNN for digits, trained."""
    example = torch.zeros((2, 1, 8, 8))
    return training.trained("digits"), (), {"image": example}, {"image": {0: "batch"}}


def language_model() -> tuple[Any, ...]:
    """Return the small language model, trained."""
    example = torch.zeros((2, training.CONTEXT), dtype=torch.int32)
    return training.trained("language_model"), (), {"tokens": example}, {"tokens": {0: "batch"}}


def _image(name: str) -> tuple[Any, ...]:
    folder = pathlib.Path(sys.prefix) / "vision"  # where `make test` puts timm
    if folder.is_dir() and str(folder) not in sys.path:
        sys.path.append(str(folder))
    _define_torchvision_operators()
    import timm  # pyright: ignore[reportMissingImports]

    torch.manual_seed(0)
    module = _randomize(timm.create_model(name, pretrained=False).eval())
    return module, (), {"x": torch.zeros((2, 3, 224, 224))}, {"x": {0: "batch"}}


def _define_torchvision_operators() -> None:
    """Let a torchvision wheel built for CUDA import beside the CPU build of torch."""
    for name in ("nms", "qnms"):
        try:
            torch.library.define(
                f"torchvision::{name}",
                "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
            )
        except RuntimeError:
            return  # they exist: this torchvision fits


def _randomize(module: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Give batch-norm statistics, biases and what is zero random values."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in (*module.named_parameters(), *module.named_buffers()):
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 1.5, generator=generator)
            elif name.endswith("running_mean"):
                tensor.normal_(0, 0.2, generator=generator)
            elif isinstance(tensor, torch.nn.Parameter) and tensor.ndim < 2:
                tensor.add_(torch.randn(tensor.shape, generator=generator) * 0.1)
            elif isinstance(tensor, torch.nn.Parameter) and not tensor.any():
                tensor.normal_(0, 0.05, generator=generator)
    return module


# Data.


def passages(count: int) -> list[str]:
    """Return docstrings of Python's library of 60 words and more, the first by their digest."""
    from benchmarks import accuracy as texts

    found = set()
    for name in texts.MODULES:
        for text in texts.docstrings(name):
            whole = re.sub(r"\s+", " ", text).strip()
            if len(whole.split()) >= 60:
                found.add(whole)
    ordered = sorted(found, key=lambda text: hashlib.sha256(text.encode()).digest())
    if len(ordered) < count:
        raise SystemExit(f"the library has {len(ordered)} long docstrings, not {count}")
    return ordered[:count]


def _minilm_data(sizes: Sequence[int]) -> list[Arrays]:
    from tokenizers import Tokenizer

    from benchmarks import common

    tokenizer = Tokenizer.from_file(str(common.minilm() / "tokenizer.json"))
    tokenizer.enable_padding(length=TOKENS)
    tokenizer.enable_truncation(TOKENS)
    encoded = tokenizer.encode_batch(passages(sum(sizes)))
    ids = np.asarray([item.ids for item in encoded], np.int32)
    mask = np.asarray([item.attention_mask for item in encoded], np.int32)
    data = {"input_ids": ids, "attention_mask": mask}
    data[EMBEDDING] = pooled(_torch(minilm()[0], data), mask)
    return _cut(data, sizes)


def _image_data(make: Callable[[], tuple[Any, ...]], sizes: Sequence[int]) -> list[Arrays]:
    noise = np.random.default_rng(1).standard_normal((sum(sizes), 3, 224, 224))
    data = {"x": noise.astype(np.float32)}
    data[LOGITS] = _torch(make()[0], data)
    return _cut(data, sizes)


def _torch(module: torch.nn.Module, data: Arrays, size: int = 8) -> np.ndarray:
    """Return the first output of a module in float32, in batches."""
    found, count = [], len(next(iter(data.values())))
    with torch.no_grad():
        for start in range(0, count, size):
            part = {k: torch.from_numpy(v[start : start + size]) for k, v in data.items()}
            out = module(**part)
            found.append((out if isinstance(out, torch.Tensor) else out[0]).numpy())
    return np.concatenate(found)


def _cut(data: Arrays, sizes: Sequence[int]) -> list[Arrays]:
    ends = np.cumsum(sizes)
    return [
        {k: v[end - size : end] for k, v in data.items()}
        for size, end in zip(sizes, ends, strict=True)
    ]


def make_data(name: str) -> dict[str, Arrays]:
    """Return the data ``search`` (which calibrates and judges a search) and ``test``."""
    sizes = CASES[name].samples
    if name == "digits":
        found = training.digits_data()
        return {"search": found["search"], "test": found["test"]}
    if name == "language_model":
        return training.text_data(max(sizes))
    made = {
        "minilm": lambda: _minilm_data(sizes),
        "resnet50": lambda: _image_data(resnet50, sizes),
        "vit_b16": lambda: _image_data(vit_b16, sizes),
    }[name]()
    return dict(zip(("search", "test"), made, strict=True))


def data(name: str) -> dict[str, Arrays]:
    """Return the data of a model, from ``out/performance`` or made and kept there."""
    found = {}
    for part in ("search", "test"):
        path = training.OUT / f"{name}-{part}.npz"
        if not path.exists():
            training.OUT.mkdir(parents=True, exist_ok=True)
            for each, arrays in make_data(name).items():
                np.savez(training.OUT / f"{name}-{each}.npz", **arrays)  # pyright: ignore
        with np.load(path) as stored:
            found[part] = {key: stored[key] for key in stored.files}
    return found


def batches(arrays: Arrays, size: int) -> list[Arrays]:
    """Return the samples in batches of one size; what does not fill one is left out."""
    count = len(next(iter(arrays.values())))
    return [
        {k: v[start : start + size] for k, v in arrays.items()}
        for start in range(0, count - size + 1, size)
    ]


CASES: dict[str, Case] = {
    "minilm": Case(
        "MiniLM, passages of 128 tokens", "minilm", ("input_ids", "attention_mask"),
        embedding_cosine, "mean cosine of sentence embeddings to float32's",
        0.01, "0.01 of cosine", (64, 64),
    ),
    "resnet50": Case(
        "ResNet-50, 224 x 224, random weights", "resnet50", ("x",),
        logit_cosine, "mean cosine of logits to float32's",
        0.01, "0.01 of cosine", (64, 32),
    ),
    "vit_b16": Case(
        "ViT-B/16, 224 x 224, random weights", "vit_b16", ("x",),
        logit_cosine, "mean cosine of logits to float32's",
        0.01, "0.01 of cosine", (64, 32),
    ),
    "digits": Case(
        "CNN on handwritten digits, 8 x 8", "digits", ("image",),
        accuracy, "accuracy", 0.01, "1 point of accuracy", (360, 360),
    ),
    "language_model": Case(
        "Language model over bytes, 128 tokens", "language_model", ("tokens",),
        log_likelihood, "mean log-likelihood of a byte", float(np.log(1.01)),
        "1 % of perplexity", (64, 64),
    ),
}  # fmt: skip
