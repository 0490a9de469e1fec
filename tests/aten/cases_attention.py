"""Cases for aten/attention.py."""

import numpy as np

from tests.aten.harness import case, dtype, rand

INF_ROW = rand(3, 5).copy()
INF_ROW[1] = -np.inf
_rows = [
    case(rand(2, 3, 5), 1),
    case(rand(2, 3, 5) * 50, -1),
    case(INF_ROW, 1),
    case(rand(), 0),
    case(rand(2, 0, 5), 1),
    case(rand(2, 0, 5), 2),
    case(rand(3, 31, dtype="bfloat16"), -1),
    case(rand(3, 31, dtype="float16"), 0),
]
_typed = [
    *_rows,
    case(rand(3, 5), 1, dtype("float64")),
    case(rand(3, 5, dtype="bfloat16"), 1, dtype("float32")),
    case(rand(3, 5, dtype="int64"), 1, dtype("float32")),
]
_primitive = [case(*c.args, False) for c in _rows]


def _qkv(q=(2, 3, 5, 7), k=(2, 3, 11, 7), v=(2, 3, 11, 7), kind="float32"):
    return [rand(*shape, dtype=kind, seed=seed) for seed, shape in enumerate((q, k, v))]


def _mask(*shape, kind="bool"):
    mask = rand(*shape, dtype=kind, seed=3).copy()
    mask[..., 1, :] = False if kind == "bool" else -np.inf  # one row wholly masked
    return mask


_half = [_qkv(kind=kind) for kind in ("bfloat16", "float16")]
_group = ((2, 6, 5, 7), (2, 3, 11, 7), (2, 3, 11, 7))


def _kept(outputs):
    """About 0.7 of the weights survive, scaled: rows of v = 1 sum to 1 on average."""
    (out,) = outputs
    assert 0.97 < out.mean() < 1.03
    assert len(np.unique(out)) > 5


CASES = {
    "aten.softmax.int": _typed,
    "aten.log_softmax.int": _typed,
    "aten._safe_softmax.default": _typed,
    "aten._softmax.default": _primitive,
    "aten._log_softmax.default": _primitive,
    "aten.scaled_dot_product_attention.default": [
        case(*_qkv()),
        case(*_qkv(), None, 0.0, True),
        case(*_qkv((2, 3, 13, 7)), None, 0.0, True),
        case(*_qkv(v=(2, 3, 11, 2))),
        case(*_qkv(), scale=0.3),
        case(*_qkv(), _mask(5, 11)),
        case(*_qkv(), _mask(2, 1, 5, 11)),
        case(*_qkv(), _mask(2, 3, 5, 11, kind="float32")),
        case(*_qkv(), rand(1, 1, 1, 11), scale=2.0),
        case(*_qkv(v=(2, 3, 11, 2)), _mask(5, 11)),
        case(*_qkv((3, 5, 7), (3, 11, 7), (3, 11, 2))),
        case(*_qkv((5, 7), (11, 7), (11, 2)), _mask(5, 11)),
        case(*_qkv((2, 3, 2, 5, 7), (2, 3, 2, 11, 7), (2, 3, 2, 11, 7)), _mask(2, 5, 11)),
        case(*_qkv((2, 3, 5, 7), (1, 1, 11, 7), (2, 1, 11, 2))),
        case(*_qkv(*_group), enable_gqa=True),
        case(*_qkv(*_group), None, 0.0, True, enable_gqa=True),
        case(*_qkv(*_group), _mask(2, 6, 5, 11), enable_gqa=True),
        case(*_qkv((2, 6, 5, 7), (2, 3, 11, 7), (2, 1, 11, 2)), enable_gqa=True),
        case(*_qkv((6, 5, 7), (3, 11, 7), (3, 11, 2)), enable_gqa=True),
        case(*_qkv(k=(2, 3, 0, 7), v=(2, 3, 0, 7))),
        case(*_qkv(q=(2, 3, 0, 7))),
        *(case(*qkv) for qkv in _half),
        *(case(*qkv, _mask(5, 11, kind=str(qkv[0].dtype))) for qkv in _half),
        case(*_half[0], None, 0.0, True),
        case(
            rand(2, 3, 97, 5),
            rand(2, 3, 89, 5),
            np.ones((2, 3, 89, 1), np.float32),
            None,
            0.3,
            check=_kept,
        ),
        case(*_qkv(), None, 1.0, check=lambda out: np.testing.assert_array_equal(out[0], 0)),
    ],
    "aten._scaled_dot_product_flash_attention_for_cpu.default": [
        case(*_qkv()),
        case(*_qkv(), 0.0, True, scale=0.3),
        case(*_qkv(), attn_mask=rand(1, 1, 5, 11)),
        case(*_half[0]),
    ],
}
