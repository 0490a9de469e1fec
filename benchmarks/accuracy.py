"""Sentence embeddings of MiniLM after each transform, against those of its float32 self.

    python benchmarks/accuracy.py [--cases GLOB] [--sentences 512] [--calibration 64]

The weights are real (all-MiniLM-L6-v2). The sentences are those of the docstrings of Python's own
library: chosen by nothing but their text's digest, so that the choice is the same for everyone
with the same Python. Those of the calibration are others. An embedding is the mean of the token
vectors under the mask, scaled to length 1; "nearest" is the share of sentences whose nearest other
sentence is the one that float32 finds. Batches are padded to 16, 32, 64 or 128 tokens.
"""

import ast
import fnmatch
import hashlib
import inspect
import pathlib
import re
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import common

MODULES = re.findall(
    r"\S+",
    """
argparse ast asyncio.events asyncio.tasks bdb calendar codecs collections concurrent.futures._base
configparser contextlib csv dataclasses datetime decimal difflib dis doctest email.message enum
fractions ftplib functools gettext heapq html.parser http.client http.cookiejar imaplib inspect
ipaddress json.decoder locale logging logging.handlers mailbox multiprocessing.pool nntplib optparse
os pathlib pickle pickletools platform plistlib pprint random selectors shelve shutil smtplib
socket socketserver ssl statistics string subprocess symtable tarfile tempfile textwrap threading
timeit tokenize trace traceback turtle typing unittest.case unittest.mock urllib.parse
urllib.request uuid warnings wave weakref xml.dom.minidom xml.sax.handler xmlrpc.client zipfile
""",
)
LENGTHS = (16, 32, 64, 128)
BATCH = 32
TARGETS = {"W8A16": 0.9995, "W8A8 dynamic": 0.995}


def docstrings(name):
    """Return the docstrings of a module of the library, read and not imported."""
    folder = pathlib.Path(inspect.getfile(ast)).parent
    path = folder.joinpath(*name.split("."))
    path = path.with_suffix(".py") if path.with_suffix(".py").exists() else path / "__init__.py"
    if not path.exists():  # of another version of Python
        return []
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = (
        node for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, kinds)
    )
    return [text for node in nodes if (text := ast.get_docstring(node))]


def sentences(count):
    """Return so many sentences of the library's docstrings, the first by their digest."""
    found = set()
    for name in MODULES:
        for text in docstrings(name):
            for paragraph in re.split(r"\n\s*\n", text):
                if re.search(r">>>|^\s{2,}|::|--\s|\|", paragraph, re.MULTILINE):
                    continue  # code, tables, lists of options
                whole = " ".join(paragraph.split())
                found |= {s for s in re.split(r"(?<=[.!?])\s+(?=[A-Z])", whole) if _is_sentence(s)}
    ordered = sorted(found, key=lambda s: hashlib.sha256(s.encode()).digest())
    if len(ordered) < count:
        raise SystemExit(f"the library's docstrings hold {len(ordered)} sentences, not {count}")
    return ordered[:count]


def _is_sentence(text):
    words = text.split()
    return bool(re.match(r"[A-Z]", text)) and text[-1] in ".!?" and 5 <= len(words) <= 70


def batches(texts):
    """Return (rows, ids, mask) for each batch: sorted by length, padded to one of ``LENGTHS``."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(common.minilm() / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(LENGTHS[-1])
    encoded = [item.ids for item in tokenizer.encode_batch(list(texts))]
    made = []
    for low, high in zip((0, *LENGTHS), LENGTHS, strict=False):
        rows = [i for i, ids in enumerate(encoded) if low < len(ids) <= high]
        for start in range(0, len(rows), BATCH):
            part = rows[start : start + BATCH]
            ids, mask = np.zeros((2, BATCH, high), np.int32)
            mask[:, 0] = 1  # rows that fill up the batch
            for row, i in enumerate(part):
                ids[row, : len(encoded[i])] = encoded[i]
                mask[row, : len(encoded[i])] = 1
            made.append((part, ids, mask))
    return made


def converted():
    """Return MiniLM as ``jaxinfer convert`` makes it."""
    import jaxinfer as ji

    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "minilm"
        command = [sys.executable, "-m", "jaxinfer.cli", "convert", str(common.minilm())]
        subprocess.run([*command, "-o", str(path)], check=True, capture_output=True)
        return ji.load(path)


def embed(model, data, count):
    """Return the embeddings f32[count, d] of the sentences."""

    @jax.jit
    def pooled(params, ids, mask):
        out = model.apply(params, input_ids=ids, attention_mask=mask)
        hidden = out.last_hidden_state.astype(jnp.float32)
        weights = mask[..., None].astype(jnp.float32)
        mean = (hidden * weights).sum(1) / weights.sum(1)
        return mean / jnp.linalg.norm(mean, axis=-1, keepdims=True)

    found = None
    for rows, ids, mask in data:
        vectors = np.asarray(pooled(model.params, ids, mask))
        if found is None:
            found = np.zeros((count, vectors.shape[1]), np.float32)
        found[rows] = vectors[: len(rows)]
    return found


def cases():
    """Return the transforms by name; a pair has calibration data."""
    import jaxinfer as ji

    return {
        "cast bf16": lambda: ji.cast("bf16"),
        "fold": lambda: ji.fold(),
        "W8A16": lambda: ji.quantize("W8A16"),
        "W8A16, least squares": lambda: ji.quantize("W8A16", scales="mse"),
        "W8A8 dynamic": lambda: ji.quantize("W8A8"),
        "W8A8 static": lambda: ji.quantize("W8A8", activation="static"),
        "W8A8 static, least squares": lambda: ji.quantize(
            "W8A8", activation="static", calibration="mse"
        ),
        "fold + W8A8 dynamic": lambda: ji.chain(ji.fold(), ji.quantize("W8A8")),
        "FP8": lambda: ji.quantize("FP8"),
        "W4A16, groups of 64": lambda: ji.quantize("W4A16", group=64),
        "W4A16, groups of 32, asymmetric": lambda: ji.quantize("W4A16", group=32, symmetric=False),
        "NF4": lambda: ji.quantize("NF4"),
        "W4A8": lambda: ji.quantize("W4A8"),
    }


def compare(got, want):
    """Return cosines and errors of embeddings, and how often the nearest neighbour is the same."""
    a, b = np.asarray(got, np.float64), np.asarray(want, np.float64)
    cosine = (a * b).sum(1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))

    def nearest(vectors):
        scores = vectors @ vectors.T
        np.fill_diagonal(scores, -1)
        return scores.argmax(1)

    return {
        "mean_cosine": float(cosine.mean()),
        "worst_cosine": float(cosine.min()),
        "largest_error": float(np.abs(a - b).max()),
        "nearest": float((nearest(a) == nearest(b)).mean()),
    }


def main():
    parser = common.parser(__doc__.splitlines()[0])
    parser.add_argument("--cases", default="*", help="a pattern of names")
    parser.add_argument("--sentences", type=int, default=512)
    parser.add_argument("--calibration", type=int, default=64)
    options = parser.parse_args()
    texts = sentences(options.sentences + options.calibration)
    data = batches(texts[: options.sentences])
    calibration = [
        {"input_ids": ids, "attention_mask": mask}
        for _, ids, mask in batches(texts[options.sentences :])
    ]
    model = converted()
    want = embed(model, data, options.sentences)
    results = {
        "sentences": options.sentences,
        "calibration": options.calibration,
        "tokens": int(sum(mask[: len(rows)].sum() for rows, _, mask in data)),
        "digest": hashlib.sha256("\n".join(texts).encode()).hexdigest()[:16],
        "examples": texts[:3],
        "bytes": model.nbytes,
        "schemes": {},
    }
    path = options.out or common.RESULTS / "accuracy.json"
    if options.cases != "*" and path.exists():
        import json

        results["schemes"] = json.loads(path.read_text())["results"]["schemes"]
    for name, make in cases().items():
        if not fnmatch.fnmatchcase(name, options.cases):
            continue
        start = time.perf_counter()
        changed = make()(model, calibration) if "static" in name else make()(model)
        transformed = time.perf_counter()
        got = embed(changed, data, options.sentences)
        seconds = [transformed - start, time.perf_counter() - transformed]
        audits = list(changed.audit())
        entries = {status: len(audits[-1].of(status)) for status in ("changed", "blocked")}
        found = {**compare(got, want), "bytes": changed.nbytes, **entries}
        found |= {"transform_s": round(seconds[0], 2), "embed_s": round(seconds[1], 1)}
        if name in TARGETS:
            found["target"] = TARGETS[name]
        results["schemes"][name] = found
        print(name, found, flush=True)
        common.write("accuracy", results, path, quiet=True)


if __name__ == "__main__":
    main()
