"""Accuracy on handwritten digits: folded, quantized to int8, pruned 2:4 and to 80 %, recovered.

    python benchmarks/digits.py [--seeds 0 1 2] [--epochs 30]

A CNN of three convolutions with batch norm (plain JAX, 8 x 8 images, 26 thousand weights) is
trained on scikit-learn's digits: 1437 images, 360 held out by a fixed stratified split, so that
one prediction is 0.28 points. Each row is the mean over the seeds of training; the split is the
same. Calibration and recovery see the training images alone.
"""

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import jaxinfer as ji
from benchmarks import common

WIDTHS = (16, 32, 64)
EPSILON = 1e-5
BATCH = 128


def data():
    """Return training and test images f32[n, 8, 8, 1] with labels, always the same."""
    digits = load_digits()
    images = (digits.images[..., None] / 16).astype(np.float32)
    return train_test_split(
        images, digits.target.astype(np.int32), test_size=360, random_state=0,
        stratify=digits.target,
    )  # fmt: skip


def initial(seed):
    generator, params, width = np.random.default_rng(seed), {}, 1
    normal = lambda *shape: generator.standard_normal(shape).astype(np.float32)
    for number, out in enumerate(WIDTHS, 1):
        params[f"conv{number}.weight"] = normal(3, 3, width, out) * np.sqrt(2 / (9 * width))
        params |= {f"bn{number}.scale": np.ones(out), f"bn{number}.bias": np.zeros(out)}
        params |= {f"bn{number}.mean": np.zeros(out), f"bn{number}.var": np.ones(out)}
        width = out
    params["head.weight"] = normal(4 * width, 10) * np.sqrt(1 / (4 * width))
    params["head.bias"] = np.zeros(10)
    return {name: jnp.asarray(value, jnp.float32) for name, value in params.items()}


def network(params, x, statistics=None):
    """Return logits; with a dict ``statistics``, batch norm uses the batch's and leaves them."""
    for number in range(1, len(WIDTHS) + 1):
        x = lax.conv_general_dilated(
            x, params[f"conv{number}.weight"], (1, 1), "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )  # fmt: skip
        mean, var = params[f"bn{number}.mean"], params[f"bn{number}.var"]
        if statistics is not None:
            mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))
            statistics |= {f"bn{number}.mean": mean, f"bn{number}.var": var}
        x = (x - mean) * lax.rsqrt(var + EPSILON)
        x = jax.nn.relu(x * params[f"bn{number}.scale"] + params[f"bn{number}.bias"])
        if number > 1:
            x = lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
    return x.reshape(x.shape[0], -1) @ params["head.weight"] + params["head.bias"]


def cross_entropy(logits, labels):
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def batches(images, labels, epochs, seed):
    """Yield shuffled batches of one size."""
    generator = np.random.default_rng(seed)
    for _ in range(epochs):
        order = generator.permutation(len(images))
        for start in range(0, len(images) - BATCH + 1, BATCH):
            chosen = order[start : start + BATCH]
            yield images[chosen], labels[chosen]


def train(images, labels, epochs, seed):
    params = initial(seed)
    tx = optax.adam(optax.cosine_decay_schedule(3e-3, epochs * (len(images) // BATCH)))

    def loss(params, x, y):
        statistics = {}
        return cross_entropy(network(params, x, statistics), y), statistics

    @jax.jit
    def step(params, state, x, y):
        grads, found = jax.grad(loss, has_aux=True)(params, x, y)
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        moved = {name: 0.9 * params[name] + 0.1 * value for name, value in found.items()}
        return params | moved, state

    state = tx.init(params)
    for x, y in batches(images, labels, epochs, seed):
        params, state = step(params, state, x, y)
    return ji.from_function(network, params, (jnp.asarray(images[:2]),))


def recovered(model, dense, images, labels, seed, schedule=None, epochs=30):
    """Recover from hard labels and the dense model's logits, the statistics left alone."""
    count = epochs * (len(images) // BATCH)
    return ji.recover(
        model, batches(images, labels, epochs, seed + 100), cross_entropy,
        tx=optax.adam(optax.cosine_decay_schedule(2e-3, count)),
        teacher=dense, distill=0.5, schedule=schedule, every=5,
        trainable=[ji.rule(r"bn\d\.(mean|var)", ignore=True)],
    )  # fmt: skip


def one(seed, epochs, split):
    from jaxinfer.numerics.schedules import cubic

    train_x, test_x, train_y, test_y = split
    predict = lambda model: np.asarray(model(test_x)).argmax(1)
    dense = train(train_x, train_y, epochs, seed)
    want = predict(dense)
    found = {}

    def row(name, make):
        start = time.perf_counter()
        try:
            model = make()
        except AttributeError as error:  # a transform that this tree does not have
            found[name] = {"missing": str(error)}
            return None
        got = predict(model)
        found[name] = {
            "accuracy": float((got == test_y).mean() * 100),
            "differ_from_float": int((got != want).sum()),
            "bytes": model.nbytes,
            "seconds": round(time.perf_counter() - start, 2),
        }
        return model

    row("float32", lambda: dense)
    folded = row("folded", lambda: ji.fold()(dense))
    calibration = [train_x[i : i + BATCH] for i in range(0, 1024, BATCH)]
    row(
        "int8 static, folded",
        lambda: ji.quantize("W8A8", activation="static")(folded or dense, calibration),
    )
    pruned = row("2:4", lambda: ji.prune(pattern="2:4")(dense))
    model = row("2:4, recovered", lambda: recovered(pruned, dense, train_x, train_y, seed))
    row("2:4, recovered, compressed", lambda: ji.finalize(model, compress=True))
    pruned = row("80 %", lambda: ji.prune(sparsity=0.8)(dense))
    row("80 %, recovered", lambda: recovered(pruned, dense, train_x, train_y, seed))
    schedule = cubic(0.0, 0.8, 0, 200)
    model = row(
        "80 % gradually, recovered",
        lambda: recovered(pruned, dense, train_x, train_y, seed, schedule),
    )
    masks = ji.masks(model)
    zeros = sum(mask.size - int(mask.sum()) for mask in masks.values())
    found["80 % gradually, recovered"]["zeros"] = zeros / sum(m.size for m in masks.values())
    return found


def summary(runs):
    """Return the mean and the range over the seeds, and the drop from float32 in points."""
    table = {}
    for name in runs[0]:
        if any("missing" in run[name] for run in runs):
            table[name] = next(run[name] for run in runs if "missing" in run[name])
            continue
        accuracies = [run[name]["accuracy"] for run in runs]
        drops = [run["float32"]["accuracy"] - run[name]["accuracy"] for run in runs]
        table[name] = {
            "accuracy_mean": round(float(np.mean(accuracies)), 2),
            "accuracy_of_seeds": [round(value, 2) for value in accuracies],
            "drop_mean_points": round(float(np.mean(drops)), 2),
            "drop_worst_points": round(float(np.max(drops)), 2),
            "differing_predictions": [run[name]["differ_from_float"] for run in runs],
            "bytes": runs[0][name]["bytes"],
            "seconds": [run[name]["seconds"] for run in runs],
        } | {key: runs[0][name][key] for key in ("zeros",) if key in runs[0][name]}
    return table


def main():
    parser = common.parser(__doc__.splitlines()[0])
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=30)
    options = parser.parse_args()
    split = data()
    table = summary([one(seed, options.epochs, split) for seed in options.seeds])
    print(f"{'':28}{'accuracy':>9}{'drop':>7}{'worst':>7}{'bytes':>9}  differing of 360")
    for name, row in table.items():
        if "missing" in row:
            print(f"{name:28}{row['missing']}")
            continue
        print(
            f"{name:28}{row['accuracy_mean']:9.2f}{row['drop_mean_points']:7.2f}"
            f"{row['drop_worst_points']:7.2f}{row['bytes']:9}  {row['differing_predictions']}"
        )
    common.write("digits", table, options.out, quiet=True)


if __name__ == "__main__":
    main()
