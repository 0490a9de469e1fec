"""`make demo`: sentence embeddings by torch and by a converted model, side by side.

    python notebooks/demo.py CHECKPOINT MODEL

CHECKPOINT is the Hugging Face directory of MiniLM, MODEL the directory that
`jaxinfer convert CHECKPOINT -o MODEL` has written. An embedding is the mean of the token
vectors under the attention mask, scaled to length 1; that part is the user's own function.

At the end the model is loaded again in a process in which importing torch raises.
"""

import time

STARTED = time.perf_counter()

import argparse
import json
import os
import statistics
import subprocess
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer

import jaxinfer as ji

SENTENCES = (
    "The spacecraft reached Saturn after a journey of seven years.",
    "Whisk the eggs with the sugar until the mixture is pale and thick.",
    "The central bank raised interest rates to slow inflation.",
    "The orchestra rehearsed the symphony until late in the evening.",
    "A vaccine teaches the immune system to recognize a virus.",
    "The goalkeeper saved a penalty in the last minute of the match.",
    "Glaciers in the Alps are melting faster every summer.",
    "The new bridge cuts the drive across the bay to ten minutes.",
    "She repaired the old bicycle and rides it to work every day.",
)
QUERY = "How long does a probe take to fly to the outer planets?"
REQUIRED_COSINE = 0.99999
BLOCKED = ("torch", "transformers")


def tokenize(checkpoint, texts):
    """Return ids and mask, i32[b, s], padded to the longest text."""
    tokenizer = Tokenizer.from_file(os.path.join(checkpoint, "tokenizer.json"))
    tokenizer.enable_padding()
    encoded = tokenizer.encode_batch(list(texts))
    ids = np.array([item.ids for item in encoded], np.int32)
    return ids, np.array([item.attention_mask for item in encoded], np.int32)


def mean_pool(hidden, mask):
    """Return unit vectors: normalize_b(sum_s mask[b, s] hidden[b, s, d] / sum_s mask[b, s])."""
    mask = mask[..., None].astype(hidden.dtype)
    mean = (hidden * mask).sum(1) / mask.sum(1)
    return mean / jnp.linalg.norm(mean, axis=-1, keepdims=True)


def jax_embedder(model):
    """Return embed(ids, mask), jitted: the model and the pooling are one pure function."""

    @jax.jit
    def embed(params, ids, mask):
        hidden = model.apply(params, input_ids=ids, attention_mask=mask).last_hidden_state
        return mean_pool(hidden, mask)

    return lambda ids, mask: embed(model.params, ids, mask).block_until_ready()


def torch_embedder(checkpoint):
    """Return embed(ids, mask) by transformers and torch, from the same checkpoint."""
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    bert = transformers.AutoModel.from_pretrained(checkpoint).eval()

    @torch.inference_mode()
    def embed(ids, mask, threads=None):
        torch.set_num_threads(threads or torch.get_num_threads())
        ids, mask = torch.from_numpy(ids).long(), torch.from_numpy(mask).long()
        hidden = bert(input_ids=ids, attention_mask=mask).last_hidden_state
        weights = mask[..., None].to(hidden.dtype)
        mean = (hidden * weights).sum(1) / weights.sum(1)
        return torch.nn.functional.normalize(mean, dim=-1).numpy()

    return embed


def cosines(a, b):
    """Return the cosine of each row of a with the same row of b, in float64."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return (a * b).sum(1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))


def nearest(embeddings):
    """Return the index of the sentence nearest to the query (the last row), and its cosine."""
    embeddings = np.asarray(embeddings)
    scores = embeddings[:-1] @ embeddings[-1]
    return int(scores.argmax()), float(scores.max())


def interleaved_times(functions, rounds=9):
    """Return each function's (median, fastest) in ms; one call of each in every round."""
    times = [[] for _ in functions]
    for _ in range(rounds):
        for function, seconds in zip(functions, times, strict=True):
            start = time.perf_counter()
            function()
            seconds.append(time.perf_counter() - start)
    return [(statistics.median(seconds) * 1e3, min(seconds) * 1e3) for seconds in times]


def show_embeddings(console, with_torch, with_jax, ids, mask):
    """Print the cosine of both embeddings of each sentence and the nearest one to the query."""
    expected, got = with_torch(ids, mask), np.asarray(with_jax(ids, mask))
    table = Table("sentence", "cosine", "largest error", title="Embeddings: torch and jaxinfer")
    same, errors = cosines(expected, got), np.abs(expected - got).max(1)
    for sentence, cosine, error in zip((*SENTENCES, QUERY), same, errors, strict=True):
        table.add_row(sentence, f"{cosine:.9f}", f"{error:.1e}")
    console.print(table)
    if same.min() < REQUIRED_COSINE:
        raise SystemExit(f"a cosine is {same.min():.9f}, below {REQUIRED_COSINE}")
    console.print(f"\nquery    {QUERY}")
    for name, embeddings in (("torch", expected), ("jaxinfer", got)):
        index, score = nearest(embeddings)
        console.print(f"nearest  {SENTENCES[index]}  ({name}, cosine {score:.4f})")
    return nearest(expected)[0]


def show_times(console, with_torch, model, ids, mask):
    """Print the time per batch of both: the sentences, and 32 texts of 64 random tokens."""
    import torch

    table = Table(title="Time per batch: one conversion, any batch and length, compiled per shape")
    for header in ("batch x tokens", "torch", "jaxinfer", "jaxinfer compiles, once"):
        table.add_column(header, justify="right")
    # On a busy machine torch's threads wait for each other, and one is faster than all.
    threads = sorted({1, torch.get_num_threads()})
    rng = np.random.default_rng(0)
    many = rng.integers(1000, 30000, (32, 64)).astype(np.int32)
    for x, m in ((ids, mask), (many, np.ones_like(many))):
        with_jax = jax_embedder(model)
        start = time.perf_counter()
        with_jax(x, m)
        compiling = time.perf_counter() - start
        ways = [partial(with_torch, x, m, count) for count in threads]
        ways[0]()  # warm
        *torch_times, (jax_median, jax_best) = interleaved_times([*ways, partial(with_jax, x, m)])
        median, best = min(torch_times)
        count = threads[torch_times.index((median, best))]
        table.add_row(
            f"{x.shape[0]} x {x.shape[1]}",
            f"{median:.1f} ms ({best:.1f}), {count} threads",
            f"{jax_median:.1f} ms ({jax_best:.1f})",
            f"{compiling:.1f} s",
        )
    console.print(table)
    console.print(
        f"median (fastest) of 9 interleaved runs, float32; torch {torch.__version__} eager on cpu, "
        f"the better of {' and '.join(map(str, threads))} threads; jax {jax.__version__} on "
        f"{jax.devices()[0].platform}; {os.cpu_count()} cores"
    )


def show_without_torch(console, checkpoint, folder, expected):
    """Run the saved model in a process in which importing torch raises, and print times."""
    command = [sys.executable, __file__, checkpoint, folder, "--without-torch"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode != 0:
        raise SystemExit("the saved model does not run without torch")
    report = json.loads(done.stdout)
    console.print(f"A new process in which importing {' or '.join(BLOCKED)} raises:")
    console.print(
        f"imports {report['imports']:.2f} s, load {report['load']:.2f} s, compile and first result "
        f"{report['first']:.2f} s"
    )
    console.print(f"nearest  {SENTENCES[report['nearest']]}")
    if report["nearest"] != expected:
        raise SystemExit("without torch the nearest sentence is another one")


def compare(checkpoint, folder):
    """Embed the sentences with both, and print what comes out."""
    console = Console(width=100, highlight=False)
    ids, mask = tokenize(checkpoint, (*SENTENCES, QUERY))
    with_torch, model = torch_embedder(checkpoint), ji.load(folder)
    found = show_embeddings(console, with_torch, jax_embedder(model), ids, mask)
    console.print()
    show_times(console, with_torch, model, ids, mask)
    console.print()
    show_without_torch(console, checkpoint, folder, found)
    console.print(f"\nThe model directory is {folder}: jaxinfer inspect {folder}")


class Blocker:
    """A meta path finder that raises on the import of some packages."""

    def __init__(self, *packages):
        self.packages = packages

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in self.packages:
            raise ImportError(f"{name} is blocked: a saved model does not need it")


def without_torch(checkpoint, folder):
    """Load and run the saved model where torch cannot be imported; print times as JSON."""
    assert not set(BLOCKED) & set(sys.modules), "importing jaxinfer has imported them"
    sys.meta_path.insert(0, Blocker(*BLOCKED))
    for package in BLOCKED:
        try:
            __import__(package)
        except ImportError:
            continue
        raise SystemExit(f"{package} could be imported")
    imported = time.perf_counter()
    model = ji.load(folder)
    loaded = time.perf_counter()
    index, _ = nearest(jax_embedder(model)(*tokenize(checkpoint, (*SENTENCES, QUERY))))
    done = time.perf_counter()
    report = {"imports": imported - STARTED, "load": loaded - imported, "first": done - loaded}
    print(json.dumps({**report, "nearest": index}))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("checkpoint")
    parser.add_argument("model")
    parser.add_argument("--without-torch", action="store_true", help="block torch; print JSON")
    args = parser.parse_args()
    (without_torch if args.without_torch else compare)(args.checkpoint, args.model)


if __name__ == "__main__":
    main()
