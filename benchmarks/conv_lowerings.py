"""Ways to compute a convolution, against each other: which one the rules should take.

    python benchmarks/conv_lowerings.py [--cases GLOB] [--repeats 25]

Shapes are those of real networks. Every way computes the same values (checked first); times
are of jitted functions with the kernel as an argument, interleaved. ``nchw`` is XLA's
convolution in torch's layout. Results are written after every case.
"""

import fnmatch
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import common
from jaxinfer_converters.aten import _convolve as ways
from jaxinfer_converters.aten._lowering import FIRST

# name: (image [n, *space, c], kernel [*k, i, o], stride, padding, dilation, groups)
CASES = {
    "depthwise 3x3 112x112x32 (MobileNet)": ((1, 112, 112, 32), (3, 3, 1, 32), 1, 1, 1, 32),
    "depthwise 3x3/2 112x112x96 (EfficientNet)": ((1, 112, 112, 96), (3, 3, 1, 96), 2, 1, 1, 96),
    "depthwise 5x5 14x14x480": ((1, 14, 14, 480), (5, 5, 1, 480), 1, 2, 1, 480),
    "depthwise 7x7 56x56x96 (ConvNeXt)": ((1, 56, 56, 96), (7, 7, 1, 96), 1, 3, 1, 96),
    "depthwise 7x7 7x7x768 (ConvNeXt)": ((1, 7, 7, 768), (7, 7, 1, 768), 1, 3, 1, 768),
    "depthwise 31 1x200x256 (Conformer)": ((1, 200, 256), (31, 1, 256), 1, 15, 1, 256),
    "depthwise 3x3x3 8x28x28x64": ((1, 8, 28, 28, 64), (3, 3, 3, 1, 64), 1, 1, 1, 64),
    "depthwise 3x3 56x56x32 x2": ((1, 56, 56, 32), (3, 3, 1, 64), 1, 1, 1, 32),
    "grouped 3x3 56x56x128/32 (ResNeXt)": ((1, 56, 56, 128), (3, 3, 4, 128), 1, 1, 1, 32),
    "grouped 3x3 14x14x512/32 (ResNeXt)": ((1, 14, 14, 512), (3, 3, 16, 512), 1, 1, 1, 32),
    "grouped 3x3 28x28x192/8 (RegNet)": ((1, 28, 28, 192), (3, 3, 24, 192), 1, 1, 1, 8),
    "grouped 128 50x768/16 (wav2vec2)": ((1, 50, 768), (128, 48, 768), 1, 64, 1, 16),
    "dense 7x7/2 224x224x3 (ResNet stem)": ((1, 224, 224, 3), (7, 7, 3, 64), 2, 3, 1, 1),
    "dense 3x3 56x56x64 (ResNet)": ((1, 56, 56, 64), (3, 3, 64, 64), 1, 1, 1, 1),
    "dense 3x3 7x7x512 (ResNet)": ((1, 7, 7, 512), (3, 3, 512, 512), 1, 1, 1, 1),
    "1x1 56x56x64 to 256 (ResNet)": ((1, 56, 56, 64), (1, 1, 64, 256), 1, 0, 1, 1),
    "1x1 7x7x2048 to 512 (ResNet)": ((1, 7, 7, 2048), (1, 1, 2048, 512), 1, 0, 1, 1),
    "1x1/2 56x56x256 to 512 (ResNet)": ((1, 56, 56, 256), (1, 1, 256, 512), 2, 0, 1, 1),
    "patches 16x16/16 224x224x3 (ViT)": ((1, 224, 224, 3), (16, 16, 3, 768), 16, 0, 1, 1),
    "patches 4x4/4 224x224x3 (Swin)": ((1, 224, 224, 3), (4, 4, 3, 96), 4, 0, 1, 1),
    "patches 2x2/2 56x56x96 (ConvNeXt)": ((1, 56, 56, 96), (2, 2, 96, 192), 2, 0, 1, 1),
    "1-d 3 3000x80 to 384 (Whisper)": ((1, 3000, 80), (3, 80, 384), 1, 1, 1, 1),
    "1-d 3/2 3000x384 (Whisper)": ((1, 3000, 384), (3, 384, 384), 2, 1, 1, 1),
    "1-d 10/5 16000x1 to 512 (wav2vec2)": ((1, 16000, 1), (10, 1, 512), 5, 0, 1, 1),
    "1-d 3/2 3199x512 (wav2vec2)": ((1, 3199, 512), (3, 512, 512), 2, 0, 1, 1),
    "3-d 3x3x3 8x28x28x64 (R3D)": ((1, 8, 28, 28, 64), (3, 3, 3, 64, 64), 1, 1, 1, 1),
}
# name: (image, kernel [*k, i, o], stride, padding, extra, groups)
TRANSPOSED = {
    "transposed 2x2/2 28x28x256 to 128 (U-Net)": ((1, 28, 28, 256), (2, 2, 256, 128), 2, 0, 0, 1),
    "transposed 4x4/2 16x16x256 to 128 (DCGAN)": ((1, 16, 16, 256), (4, 4, 256, 128), 2, 1, 0, 1),
    "transposed 3x3/2 28x28x64 to 32": ((1, 28, 28, 64), (3, 3, 64, 32), 2, 1, 1, 1),
    "transposed 3x3/1 28x28x64": ((1, 28, 28, 64), (3, 3, 64, 64), 1, 1, 0, 1),
    "transposed 16/8 200x256 to 128 (HiFi-GAN)": ((1, 200, 256), (16, 256, 128), 8, 4, 0, 1),
    "transposed 4/2 1600x128 to 64 (HiFi-GAN)": ((1, 1600, 128), (4, 128, 64), 2, 1, 0, 1),
    "transposed 2x2x2/2 8x14x14x64 to 32": ((1, 8, 14, 14, 64), (2, 2, 2, 64, 32), 2, 0, 0, 1),
    "transposed 4x4/2 28x28x64/64 (depthwise)": ((1, 28, 28, 64), (4, 4, 64, 1), 2, 1, 0, 64),
}


def patches(x, w, window):
    """Gather every window, and multiply it by the kernel, group by group."""
    *kernel, inputs, features = w.shape
    outs, groups = window.outputs(x.shape[1:-1], kernel), window.groups
    pieces = list(ways.shifted(ways.padded(x, window.padding), window, kernel, outs))
    rows = jnp.stack([p.reshape(-1, groups, inputs) for p in pieces], 2)  # [b p, g, k, i]
    rows = rows.reshape(-1, groups, inputs * len(pieces))
    columns = w.reshape(-1, groups, features // groups)
    y = jnp.einsum("rgk,kgo->rgo", rows, columns, precision="highest")
    return y.reshape(x.shape[0], *outs, features)


def split(x, w, window):
    """Convolve group by group."""
    one = window._replace(groups=1)
    pairs = zip(jnp.split(x, window.groups, -1), jnp.split(w, window.groups, -1), strict=True)
    return jnp.concatenate([ways.direct(a, b, one) for a, b in pairs], -1)


def shifted_products(x, w, window):
    """Compute a convolution of one group as Σ_k shift_k(x) @ w[k]."""
    *kernel, inputs, features = w.shape
    outs = window.outputs(x.shape[1:-1], kernel)
    entries = w.reshape(-1, inputs, features)
    pieces = ways.shifted(ways.padded(x, window.padding), window, kernel, outs)
    terms = [jnp.matmul(p, e, precision="highest") for p, e in zip(pieces, entries, strict=True)]
    return sum(terms[1:], terms[0])


def dense_ways(kernel, groups, channels):
    """Return the ways that fit."""
    made = {"direct": ways.direct}
    if len(kernel) == 3:
        made["planes"] = ways.planes
    few = int(np.prod(kernel)) <= 32  # beyond, the program is too large to compile
    if groups == 1:
        if few:
            made["shifted_products"] = shifted_products
        if set(kernel) == {1}:
            made["product"] = ways.product
    elif groups == channels:
        made["taps"] = ways.taps
    if groups < channels:
        if few:
            made["patches"] = patches
        if 1 < groups <= 32:
            made["split"] = split
    return made


def measure(name, repeats):
    rng = np.random.default_rng(0)
    transposed = name in TRANSPOSED
    image, kernel, stride, padding, other, groups = (TRANSPOSED if transposed else CASES)[name]
    nd = len(image) - 2
    x = jnp.asarray(rng.normal(size=image), jnp.float32)
    w = jnp.asarray(rng.normal(size=kernel), jnp.float32)
    if transposed:
        how = ways.Transposed((stride,) * nd, (padding,) * nd, (other,) * nd, (1,) * nd, groups)
        sides = {"dilated": ways.dilated, "phases": ways.phases}
        if groups == 1:
            sides["phases by products"] = lambda x, w, how: ways.phases(x, w, how, shifted_products)
    else:
        how = ways.Window((stride,) * nd, ((padding, padding),) * nd, (other,) * nd, groups)
        sides = dense_ways(kernel[:nd], groups, image[-1])
    want = np.asarray(sides[next(iter(sides))](x, w, how))
    calls = {}
    for side, fn in sides.items():
        got = np.asarray(fn(x, w, how))
        error = float(np.abs(got - want).max() / np.abs(want).max())
        assert got.shape == want.shape, (name, side, got.shape)
        assert error < 1e-4, (name, side, error)
        calls[side] = jax.jit(lambda x, w, fn=fn: fn(x, w, how))
    if not transposed:
        xs, ws = jnp.moveaxis(x, -1, 1), w.transpose(nd + 1, nd, *range(nd))
        conv = jax.jit(
            lambda x, w: jax.lax.conv_general_dilated(
                x,
                w,
                how.stride,
                how.padding,
                rhs_dilation=how.dilation,
                dimension_numbers=FIRST[nd],
                feature_group_count=how.groups,
            )
        )
        calls["nchw"] = lambda x, w: conv(xs, ws)
    timed = {
        side: (lambda call=call: jax.block_until_ready(call(x, w))) for side, call in calls.items()
    }
    return common.interleave(timed, repeats=repeats)


def main():
    parser = common.parser(__doc__.splitlines()[0])
    parser.add_argument("--cases", default="*", help="a pattern of names")
    options = parser.parse_args()
    results = {}
    for name in fnmatch.filter([*CASES, *TRANSPOSED], options.cases):
        results[name] = measure(name, options.repeats)
        best = {side: spread["min_ms"] for side, spread in results[name].items()}
        print(f"{name}: {best}", flush=True)
        common.write("conv_lowerings", results, options.out, quiet=True)


if __name__ == "__main__":
    main()
