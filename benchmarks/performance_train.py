"""The two trained models of docs/performance.md: a CNN on digits, a small language model.

    python benchmarks/performance.py --train

``digits``          three convolutions with batch norm on scikit-learn's digits (8 x 8 pixels):
                    1077 images train it, 360 are for the search, 360 are held out
``language_model``  a decoder of 4 layers of width 256 over bytes, context 128, which reads the
                    sources of Python's own library; the files of ``HELD_OUT`` it never sees

Seeds are fixed; the weights are the same for everyone only with the same torch, number of threads
and Python (its library is the text). They are kept in ``out/performance``, which git ignores.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import math
import pathlib
import time
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

OUT = pathlib.Path(__file__).parents[1] / "out" / "performance"
TRAINING = (
    *("argparse", "ast", "bdb", "calendar", "cgitb", "cmd", "code", "codecs", "collections"),
    *("configparser", "contextlib", "copy", "csv", "dataclasses", "datetime", "decimal"),
    *("_pydecimal", "difflib", "dis", "doctest", "enum", "filecmp", "fractions", "ftplib"),
    *("functools", "gettext", "glob", "gzip", "hashlib", "http.client", "http.cookiejar"),
    *("imaplib", "inspect", "ipaddress", "json.decoder", "locale", "logging", "mailbox"),
    *("mimetypes", "multiprocessing.pool", "nntplib", "optparse", "os", "pathlib", "pdb"),
    *("pickle", "pickletools", "platform", "plistlib", "poplib", "pprint", "profile", "pydoc"),
    *("random", "selectors", "shelve", "shlex", "shutil", "smtplib", "socket", "socketserver"),
    *("ssl", "statistics", "string", "subprocess", "symtable", "sysconfig", "tarfile"),
    *("telnetlib", "tempfile", "threading", "timeit", "tokenize", "trace", "traceback"),
    *("turtle", "typing", "unittest.case", "unittest.mock", "urllib.parse", "uuid", "warnings"),
    *("wave", "weakref", "webbrowser", "xmlrpc.client", "zipapp", "_pydatetime", "_pyio"),
)
SEARCH = ("asyncio.base_events", "bz2", "html.parser", "netrc", "queue", "sched")
HELD_OUT = ("asyncio.tasks", "bisect", "heapq", "textwrap", "urllib.request", "zipfile")
"""Modules of Python's library: to train on, for the search, and for the final figure."""

CONTEXT = 128
STEPS, WINDOWS = 2000, 4


class Digits(nn.Module):
    """A CNN: f32[b, 1, 8, 8] to logits f32[b, 10]."""

    def __init__(self, widths: tuple[int, ...] = (16, 32, 64)) -> None:
        """Make it with random weights."""
        super().__init__()
        inputs = (1, *widths)
        self.convolutions = nn.ModuleList(
            nn.Conv2d(a, b, 3, padding=1, bias=False) for a, b in zip(inputs, widths, strict=False)
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for width in widths)
        self.head = nn.Linear(4 * widths[-1], 10)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return the logits."""
        x = image
        for number, (convolution, norm) in enumerate(
            zip(self.convolutions, self.norms, strict=True)
        ):
            x = F.relu(norm(convolution(x)))
            x = F.max_pool2d(x, 2) if number else x
        return self.head(x.flatten(1))


class Block(nn.Module):
    """Attention and an MLP, each after a layer norm and added to what came."""

    def __init__(self, width: int, heads: int) -> None:
        """Make it with random weights."""
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return f32[b, t, d]."""
        heads = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1))
        q, k, v = heads.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class LanguageModel(nn.Module):
    """A decoder over bytes: int32[b, t] to logits f32[b, t, 256]."""

    def __init__(self, width: int = 256, layers: int = 4, heads: int = 8) -> None:
        """Make it with random weights."""
        super().__init__()
        self.tokens = nn.Embedding(256, width)
        self.positions = nn.Embedding(CONTEXT, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 256, bias=False)
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                scale = 0.02 / math.sqrt(2 * layers) if name.endswith(
                    ("out.weight", "down.weight")
                ) else 0.02  # fmt: skip
                nn.init.normal_(parameter, std=scale)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return the logits of the byte after each."""
        x = self.tokens(tokens) + self.positions.weight[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


# Data.


def digits_data() -> dict[str, dict[str, np.ndarray]]:
    """Return images and labels: ``train`` (1077), ``search`` (360) and ``test`` (360)."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    found: Any = load_digits()
    images = (found.images[:, None] / 16).astype(np.float32)
    labels = found.target.astype(np.int32)

    def split(x: Any, y: Any) -> Any:
        return train_test_split(x, y, test_size=360, random_state=0, stratify=y)

    x, test_x, y, test_y = split(images, labels)
    x, search_x, y, search_y = split(x, y)
    return {
        "train": {"image": x, "label": y},
        "search": {"image": search_x, "label": search_y},
        "test": {"image": test_x, "label": test_y},
    }


def library(modules: tuple[str, ...]) -> np.ndarray:
    """Return the sources of modules of Python's library as bytes u8[n], read and not imported.

    A module that this version of Python does not have is left out.
    """
    folder, parts = pathlib.Path(inspect.getfile(pathlib)).parent, []
    if not (folder / "argparse.py").exists():  # 3.13 on: pathlib is a package
        folder = folder.parent
    for name in modules:
        path = folder.joinpath(*name.split("."))
        path = path.with_suffix(".py") if path.with_suffix(".py").exists() else path / "__init__.py"
        if path.exists():
            parts.append(path.read_bytes().replace(b"\r\n", b"\n"))
    return np.frombuffer(b"\n".join(parts), np.uint8)


def text_data(count: int = 64) -> dict[str, dict[str, np.ndarray]]:
    """Return windows of bytes and the byte after each: ``search`` and ``test``.

    The windows are spread evenly over the files: int32[count, 128] tokens and targets.
    """
    made = {}
    for name, modules in (("search", SEARCH), ("test", HELD_OUT)):
        text = library(modules)
        starts = np.linspace(0, len(text) - CONTEXT - 1, count).astype(int)
        windows = np.stack([text[s : s + CONTEXT + 1] for s in starts]).astype(np.int32)
        made[name] = {"tokens": windows[:, :-1].copy(), "target": windows[:, 1:].copy()}
    return made


def baselines(train: np.ndarray, test: dict[str, np.ndarray]) -> dict[str, float]:
    """Return perplexities of counting: single bytes, and pairs of them (add 0.1)."""
    single = np.bincount(train, minlength=256) + 0.1
    pairs = np.zeros((256, 256))
    np.add.at(pairs, (train[:-1], train[1:]), 1)
    pairs += 0.1
    log_single = np.log(single / single.sum())
    log_pairs = np.log(pairs / pairs.sum(1, keepdims=True))
    tokens, target = test["tokens"], test["target"]
    return {
        "unigram": float(np.exp(-log_single[target].mean())),
        "bigram": float(np.exp(-log_pairs[tokens, target].mean())),
    }


# Training.


def train_digits(seed: int = 0, epochs: int = 30) -> dict[str, Any]:
    """Train the CNN (a few seconds); writes ``digits.safetensors``; returns what was reached."""
    torch.manual_seed(seed)
    data, started = digits_data(), time.perf_counter()
    module = Digits()
    x, y = (torch.from_numpy(data["train"][name]) for name in ("image", "label"))
    y = y.long()
    generator = np.random.default_rng(seed)
    batch, steps = 64, epochs * (len(x) // 64)
    optimizer = torch.optim.Adam(module.parameters(), 3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(epochs):
        order = torch.from_numpy(generator.permutation(len(x)))
        for start in range(0, len(x) - batch + 1, batch):
            rows = order[start : start + batch]
            optimizer.zero_grad()
            F.cross_entropy(module(x[rows]), y[rows]).backward()
            optimizer.step()
            schedule.step()
    module.eval()
    reached = {}
    with torch.no_grad():
        for name in ("search", "test"):
            predicted = module(torch.from_numpy(data[name]["image"])).argmax(1).numpy()
            reached[f"accuracy_{name}"] = float((predicted == data[name]["label"]).mean())
    return _keep("digits", module, reached, started)


def train_language_model(seed: int = 0, steps: int = STEPS) -> dict[str, Any]:
    """Train the language model (minutes); writes its safetensors; returns perplexities."""
    torch.manual_seed(seed)
    started = time.perf_counter()
    text, data = library(TRAINING), text_data()
    generator = np.random.default_rng(seed)
    module = LanguageModel()
    decayed = [p for p in module.parameters() if p.ndim >= 2]
    others = [p for p in module.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}],
        lr=1.5e-3,
        betas=(0.9, 0.95),
    )
    rate = lambda step: min(1, (step + 1) / 100) * 0.5 * (1.02 + math.cos(math.pi * step / steps))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    for step in range(steps):
        starts = generator.integers(0, len(text) - CONTEXT - 1, WINDOWS)
        windows = np.stack([text[s : s + CONTEXT + 1] for s in starts]).astype(np.int64)
        tokens = torch.from_numpy(windows)
        optimizer.zero_grad()
        loss = F.cross_entropy(module(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 0 or step == steps - 1:
            print(f"step {step}: loss {loss.item():.3f}", flush=True)
    module.eval()
    reached: dict[str, Any] = {"bytes_of_text": len(text), "bytes_seen": steps * WINDOWS * CONTEXT}
    reached |= {"text": hashlib.sha256(text.tobytes()).hexdigest()[:16]}
    with torch.no_grad():
        for name, part in data.items():
            logits = module(torch.from_numpy(part["tokens"])).flatten(0, 1)
            loss = F.cross_entropy(logits, torch.from_numpy(part["target"]).long().flatten())
            reached[f"perplexity_{name}"] = math.exp(loss.item())
    reached |= {f"perplexity_{k}": v for k, v in baselines(text, data["test"]).items()}
    return _keep("language_model", module, reached, started)


def _keep(name: str, module: nn.Module, reached: dict[str, Any], started: float) -> dict[str, Any]:
    from safetensors.torch import save_file

    OUT.mkdir(parents=True, exist_ok=True)
    reached["training_s"] = round(time.perf_counter() - started, 1)
    reached |= {"torch": torch.__version__, "threads": torch.get_num_threads()}
    state = {key: value.contiguous() for key, value in module.state_dict().items()}
    save_file(state, OUT / f"{name}.safetensors")
    (OUT / f"{name}.json").write_text(json.dumps(reached, indent=1) + "\n")
    return reached


TRAINED: dict[str, Any] = {
    "digits": (Digits, train_digits),
    "language_model": (LanguageModel, train_language_model),
}


def trained(name: str) -> nn.Module:
    """Return ``digits`` or ``language_model`` with its weights; trains it if there are none."""
    from safetensors.torch import load_file

    make, train = TRAINED[name]
    path = OUT / f"{name}.safetensors"
    if not path.exists():
        print(f"no {path.name}: training it", flush=True)
        print(json.dumps(train(), indent=1), flush=True)
    module = make()
    module.load_state_dict(load_file(path))
    return module.eval()


def reached(name: str) -> dict[str, Any]:
    """Return what the training reached, as it was written."""
    return json.loads((OUT / f"{name}.json").read_text())
