"""Cases for aten/loss.py."""

import numpy as np

from tests.aten.harness import case, dtype, rand

X = rand(5, 3)
Y = rand(5, 3, seed=1)
P = rand(5, 3, low=0.0, high=1.0)
Q = rand(5, 3, low=0.0, high=1.0, seed=1)
EDGE = np.array([0.0, 1.0, 0.5], np.float32)
HALF = [rand(5, 3, dtype="bfloat16"), rand(5, 3, dtype="bfloat16", seed=1)]
CLASS = np.array([0, 2, 1, -100, 1], np.int64)
IMAGE = rand(5, 3, 2, 7)
PIXELS = rand(5, 2, 7, dtype="int64", low=0, high=3)
WEIGHT = rand(3, low=0.5, high=2.0)
LOGS = np.log(P / P.sum(1, keepdims=True))
REDUCTIONS = (0, 1, 2)
ROWS, HEAD, BIAS = rand(5, 4), rand(7, 4), rand(7)  # linear_cross_entropy: 7 classes
NEXT = np.array([6, 2, 3, 0, 3], np.int64)
SHARE = rand(7, low=0.5, high=2.0)

_plain = [*(case(X, Y, r) for r in REDUCTIONS), case(X, Y), case(*HALF), case(X, Y[0], 0)]
_nll = [
    *(case(LOGS, CLASS, w, r) for w in (None, WEIGHT) for r in REDUCTIONS),
    case(LOGS, np.abs(CLASS) % 100, None, 1, 2),
    case(LOGS, np.full(5, -100, np.int64)),
]
_image = [
    *(case(IMAGE, PIXELS, w, r) for w in (None, WEIGHT) for r in REDUCTIONS),
    case(IMAGE, PIXELS, None, 1, 2),
]
_forward = [*(case(LOGS, CLASS, w, r, -100) for w in (None, WEIGHT) for r in REDUCTIONS)]
_entropy = [
    case(x, target, weight, reduction, -100, smoothing)
    for x, target in ((X, CLASS), (X, Q), (IMAGE, PIXELS), (X[0], np.array(2)), (X[0], Q[0]))
    for weight in (None, WEIGHT)
    for reduction in REDUCTIONS
    for smoothing in (0.0, 0.2)
]
_single = [case(LOGS[0], np.array(2)), case(LOGS[0], np.array(2), WEIGHT, 0)]

CASES = {
    "aten.mse_loss.default": _plain,
    "aten.l1_loss.default": [*_plain, case(rand(3, dtype="complex64"), rand(3, seed=1))],
    "aten.smooth_l1_loss.default": [*_plain, case(X, Y, 1, 0.3), case(X, Y, 1, 0.0)],
    "aten.huber_loss.default": [*_plain, case(X, Y, 1, 0.3)],
    "aten.kl_div.default": [
        *(case(LOGS, Q, r) for r in REDUCTIONS),
        case(LOGS, Y, log_target=True),
        case(EDGE, EDGE),
    ],
    "aten.binary_cross_entropy.default": [
        *(case(P, Q, w, r) for w in (None, WEIGHT) for r in REDUCTIONS),
        case(EDGE, np.array([0.0, 1.0, 1.0], np.float32)),
        case(EDGE, EDGE[::-1].copy()),
    ],
    "aten.binary_cross_entropy_with_logits.default": [
        *(
            case(X * 20, Q, w, p, r)
            for w, p in ((None, WEIGHT), (WEIGHT, None))
            for r in REDUCTIONS
        ),
        case(X, Q),
        case(*HALF),
    ],
    "aten.nll_loss.default": [*_nll, *_single],
    "aten.nll_loss_nd.default": [*_nll, *_image, *_single],
    "aten.nll_loss2d.default": _image,
    "aten.nll_loss_forward.default": _forward,
    "aten.nll_loss2d_forward.default": [case(*c.args[:4], -100) for c in _image[:6]],
    "aten.cross_entropy_loss.default": [
        *_entropy,
        case(X, CLASS),
        case(X, np.abs(CLASS) % 100, None, 1, 2, 0.1),
        case(rand(5, 3, dtype="bfloat16"), CLASS),
    ],
    "torch_nn._linear_cross_entropy_batch_chunked_no_reduction.default": [
        case(ROWS, HEAD, NEXT, None, None, -100, 2, "balanced", dtype("float32")),
        case(ROWS, HEAD, NEXT, BIAS, SHARE, 3, 2, "balanced", dtype("float32")),
    ],
    "torch_nn._linear_cross_entropy_batch_chunked.default": [
        case(
            ROWS,
            HEAD,
            NEXT,
            BIAS,
            SHARE,
            how,
            3,
            smooth,
            2,
            "balanced",
            dtype("float32"),
            True,
            *want,
        )
        for how, smooth, want in (
            ("mean", 0.0, (False, False, False)),
            ("sum", 0.0, (True, True, True)),
            ("mean", 0.0, (True, False, True)),
        )
    ],
}
