"""Cases for conv.py."""

from tests.aten.harness import case, rand

SHAPES = {1: (11,), 2: (11, 7), 3: (5, 7, 6)}
KERNELS = {1: (3,), 2: (3, 2), 3: (3, 2, 3)}


def _conv(nd):
    """default: every option; unequal kernels; empty and missing batch; dtypes."""
    size, kernel = SHAPES[nd], KERNELS[nd]
    x, w = rand(2, 6, *size), rand(4, 3, *kernel)
    full, b = rand(4, 6, *kernel), rand(4)
    return [
        case(x, full, b),
        case(x, full),
        case(x, full, b, [2] * nd, [1] * nd, [2] * nd),
        case(x, w, b, [2], [1], [1], 2),
        case(x, rand(6, 1, *kernel), None, [1], [0], [1], 6),
        case(x, rand(12, 1, *kernel), None, [1], [1], [2], 6),
        case(x[0], full, b, [3] * nd),
        case(x[:0], full, b),
        case(rand(2, 6, *size, dtype="bfloat16"), rand(4, 6, *kernel, dtype="bfloat16"), atol=0.1),
        case(rand(2, 6, *size, dtype="float16"), rand(4, 6, *kernel, dtype="float16"), atol=0.02),
        case(rand(2, 6, *size, dtype="int32"), rand(4, 6, *kernel, dtype="int32")),
        case(rand(2, 6, *size, dtype="complex64"), rand(4, 6, *kernel, dtype="complex64")),
    ]  # half: sums of up to 108 products of size 4, rounded once at up to 64: spacing 0.25 / 0.03


def _same(nd):
    size, kernel = SHAPES[nd], KERNELS[nd]
    x, w, b = rand(2, 6, *size), rand(4, 3, *kernel), rand(4)
    return [
        case(x, w, b, [1], "same", [1], 2),
        case(x, w, None, [1], "same", [2], 2),
        case(x, rand(4, 6, *(4,) * nd), b, [1] * nd, "same"),
        case(x[0], w, b, [2], "valid", [1], 2),
    ]


def _transposed(nd):
    size, kernel = SHAPES[nd], KERNELS[nd]
    x, w, b = rand(2, 6, *size), rand(6, 4, *kernel), rand(4)
    half = rand(6, 4, *kernel, dtype="bfloat16")
    return [
        case(x, w, b),
        case(x, w, None, [2] * nd, [1] * nd, [1] * nd),
        case(x, w, rand(8), [3], [2], [2], 2, [1]),
        case(x, w, b, [2], [3], [0], 1, [2]),
        case(x, rand(6, 1, *kernel), rand(6), [2], [0], [0], 6),
        case(x, rand(6, 4, *(1,) * nd), b, [1], [2]),
        case(x[0], w, b, [2]),
        case(x[:0], w, b),
        case(rand(2, 6, *size, dtype="bfloat16"), half, atol=0.1),
    ]


def _convolution():
    cases = []
    for nd in (1, 2, 3):
        size, kernel = SHAPES[nd], KERNELS[nd]
        x, w, b = rand(2, 6, *size), rand(6, 3, *kernel), rand(6)
        cases += [
            case(x, w, b, [2] * nd, [1] * nd, [2] * nd, False, [0] * nd, 2),
            case(x, w, None, [2] * nd, [1] * nd, [1] * nd, True, [1] * nd, 2),
        ]
    return cases


CASES = {
    **{f"aten.conv{nd}d.default": _conv(nd) for nd in (1, 2, 3)},
    **{f"aten.conv{nd}d.padding": _same(nd) for nd in (1, 2, 3)},
    "aten.conv_transpose1d.default": _transposed(1),
    "aten.conv_transpose2d.input": _transposed(2),
    "aten.conv_transpose3d.input": _transposed(3),
    "aten.convolution.default": _convolution(),
    "aten.conv_tbc.default": [
        case(rand(7, 2, 3), rand(3, 3, 5), rand(5)),
        case(rand(7, 2, 3), rand(2, 3, 5), rand(5), 2),
    ],
}
