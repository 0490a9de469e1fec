"""Cases for fold.py."""

from tests.aten.harness import case, rand

# Kernel, dilation, padding, stride.
WINDOWS = [
    ([2, 3], [1, 1], [0, 0], [1, 1]),
    ([3, 2], [2, 1], [1, 2], [2, 3]),
    ([2, 2], [1, 1], [0, 0], [2, 2]),
    ([1, 4], [1, 2], [2, 3], [3, 1]),
]
SIZE = (7, 9)


def _blocks(kernel, dilation, padding, stride):
    counts = [
        (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, k, d, p, s in zip(SIZE, kernel, dilation, padding, stride, strict=True)
    ]
    return kernel[0] * kernel[1] * 3, counts[0] * counts[1]


CASES = {
    "aten.im2col.default": [
        *(case(rand(2, 3, *SIZE), *window) for window in WINDOWS),
        case(rand(3, *SIZE), *WINDOWS[1]),
        case(rand(0, 3, *SIZE), *WINDOWS[1]),
        case(rand(2, 3, *SIZE, dtype="bfloat16"), *WINDOWS[1]),
        case(rand(2, 3, *SIZE, dtype="complex64"), *WINDOWS[1]),
    ],
    "aten.col2im.default": [
        *(case(rand(2, *_blocks(*window)), list(SIZE), *window) for window in WINDOWS),
        case(rand(*_blocks(*WINDOWS[1])), list(SIZE), *WINDOWS[1]),
        case(rand(0, *_blocks(*WINDOWS[1])), list(SIZE), *WINDOWS[1]),
        case(rand(2, *_blocks(*WINDOWS[1]), dtype="float16"), list(SIZE), *WINDOWS[1]),
    ],
}
