"""Cases for norm.py."""

import numpy as np

from tests.aten.harness import case, rand

EPS = 1e-5


def _params(c, dtype="float32"):
    """Weight, bias, running mean and (positive) running variance of c channels."""
    return (
        rand(c, dtype=dtype, seed=1),
        rand(c, dtype=dtype, seed=2),
        rand(c, dtype=dtype, seed=3),
        rand(c, dtype=dtype, low=0.5, high=3.0, seed=4),
    )


W, B, MEAN, VAR = P = _params(6)
HALF = _params(6, "bfloat16")
INPUTS = [
    rand(5, 6),
    rand(2, 6, 7),
    rand(2, 6, 3, 5) * 3 + 10,
    rand(2, 6, 2, 3, 5),
    rand(2, 6, 7, dtype="bfloat16"),
    rand(2, 6, 7, dtype="float16"),
]

# Inputs with parameters in float32, then with parameters of their own dtype, then without.
BATCHES = [
    *((x, *P) for x in INPUTS),
    (rand(2, 6, 7, dtype="bfloat16"), *HALF),
    (rand(2, 6, 7), None, None, MEAN, VAR),
    (rand(2, 6, 7), W, None, MEAN, VAR),
    (rand(2, 6, 7, dtype="bfloat16"), None, None, MEAN, VAR),
]
EMPTY = (rand(0, 6, 3), *P)
EVAL = [*BATCHES, EMPTY]
OWN = [(x, w, b) for x, w, b, _, _ in BATCHES]


def _layers(native):
    """Inputs, shapes, weights and biases."""
    w, b = rand(5, 7, seed=1), rand(5, 7, seed=2)
    x, half = rand(2, 3, 5, 7) * 2 + 5, rand(2, 3, 5, 7, dtype="bfloat16")
    calls = [
        (x, [7], w[0], b[0]),
        (x, [5, 7], w, b),
        (x, [5, 7], None, None),
        (x, [7], w[0], None),
        (x, [2, 3, 5, 7], None, None),
        (x[:0], [7], w[0], b[0]),
        (rand(7), [7], w[0], b[0]),
        (rand(3, 1), [1], None, None),
        (half, [7], w[0], b[0]),
        (half, [7], w[0].astype(half.dtype), b[0].astype(half.dtype)),
        (half, [7], None, None),
        (rand(2, 3, 7, dtype="float16"), [7], w[0].astype("float16"), None),
    ]
    cases = [case(*call, 1e-3) for call in calls]
    return cases if native else [*cases, case(x, [7])]


def _groups():
    half = rand(2, 6, 5, dtype="bfloat16")
    calls = [
        (rand(2, 6, 5) + 4, W, B, 3),
        (rand(2, 6, 5, 7), W, B, 1),
        (rand(2, 6, 2, 3, 5), None, None, 6),
        (rand(5, 6), W, None, 2),
        (rand(0, 6, 5), W, B, 3),
        (half, W, B, 2),
        (half, HALF[0], HALF[1], 2),
        (half, None, None, 2),
        (rand(2, 6, 5, dtype="float16"), W, B, 2),
    ]
    for x, w, b, group in calls:
        yield x, w, b, x.shape[0], 6, int(np.prod(x.shape[2:])), group, 1e-3


def _rms():
    w = rand(5, 7)
    x, half = rand(2, 3, 5, 7), rand(2, 3, 5, 7, dtype="bfloat16")
    return [
        case(x, [7], w[0], 1e-3),
        case(x, [5, 7], w, None),
        case(x, [7], None, None),
        case(x[:0], [7], None, 1e-6),
        case(x * 1e-4, [7], None, None),
        case(half, [7], w[0], None),
        case(half, [7], w[0].astype(half.dtype), None),
        case((half.astype("float32") * 1e-4).astype("float16"), [7], None, None),
    ]


CASES = {
    "aten.batch_norm.default": [
        *(case(*call, False, 0.1, EPS, True) for call in EVAL),
        *(case(*call, None, None, True, 0.1, EPS, True) for call in OWN),
    ],
    "aten._native_batch_norm_legit_no_training.default": [case(*call, 0.1, EPS) for call in EVAL],
    "aten._batch_norm_no_update.default": [case(*call, 0.1, EPS) for call in EVAL],
    "aten.native_batch_norm.default": [
        *(case(*call, False, 0.1, EPS) for call in EVAL),
        *(case(*call, None, None, True, 0.1, EPS) for call in OWN),
    ],
    "aten._native_batch_norm_legit.default": [case(*call, False, 0.1, EPS) for call in EVAL],
    "aten._native_batch_norm_legit.no_stats": [case(*call, True, 0.1, EPS) for call in OWN],
    "aten._native_batch_norm_legit_functional.default": [
        *(case(*call, True, 0.1, EPS) for call in BATCHES),
        *(case(*call, False, 0.3, EPS) for call in EVAL),
    ],
    "aten._batch_norm_with_update_functional.default": [case(*call, 0.3, EPS) for call in BATCHES],
    "aten.native_layer_norm.default": _layers(native=True),
    "aten.layer_norm.default": _layers(native=False),
    "aten.native_group_norm.default": [case(*call) for call in _groups()],
    "aten.group_norm.default": [
        case(rand(5, 6), 3),
        *(case(x, group, w, b, eps) for x, w, b, _, _, _, group, eps in _groups()),
    ],
    "aten.instance_norm.default": [
        *(case(*call, False, 0.1, EPS, True) for call in BATCHES if call[0].ndim > 2),
        *(case(*call, None, None, True, 0.1, EPS, True) for call in OWN if call[0].ndim > 2),
    ],
    "aten._fused_rms_norm.default": _rms(),
    "aten.rms_norm.default": [*_rms(), case(rand(2, 7), [7])],
}
