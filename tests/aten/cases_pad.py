"""Cases for pad.py."""

from tests.aten.harness import case, rand

X = rand(2, 3, 5, 7)
DTYPES = ("bfloat16", "int64", "uint8", "bool", "complex64")
WIDTHS = {1: [2, 3], 2: [2, 3, 1, 0], 3: [2, 3, 1, 0, 2, 1]}
CROPS = {1: [-1, 2], 2: [3, -2, -1, -2], 3: [-1, 2, 0, -1, 1, -1]}


def _spatial(nd):
    """Inputs with and without a batch, widths, crops, dtypes."""
    size = (4, 5, 7)[3 - nd :]
    x = rand(2, 3, *size)
    yield from ((x, WIDTHS[nd]), (x[0], WIDTHS[nd]), (x, CROPS[nd]), (x, [0] * 2 * nd))
    yield (x[:0], WIDTHS[nd])
    yield from ((rand(2, 3, *size, dtype=d), WIDTHS[nd]) for d in DTYPES if d != "bool")


CONSTANT = [
    (X, [1, 2]),
    (X, [1, 2, 0, 3], 1.5),
    (X, [-2, 1, 2, -3], 2),
    (X, [1, 0, 2, 1, 0, 1, 3, 0], -1.0),
    (X, []),
    (X, [-3, -4]),
    (rand(0, 3), [1, 1, 2, 0], 3.0),
    *((rand(3, 5, dtype=d), [2, 1, -1, 2], 1) for d in DTYPES),
    (rand(3, 5, dtype="int32"), [2, 1], 2.7),
    (rand(3, dtype="float16"), [2, 1], float("-inf")),
]

CASES = {
    "aten.constant_pad_nd.default": [case(*call) for call in CONSTANT],
    "aten.pad.default": [
        case(X, [1, 2, 3, 0]),
        case(X, [1, -2, 3, 0], "constant", 2.5),
        *(
            case(x, widths, mode)
            for mode in ("reflect", "replicate", "circular")
            for nd in (1, 2, 3)
            for x, widths in [*_spatial(nd)][: 3 if mode == "circular" else None]
        ),
    ],
    **{
        f"aten.{kind}_pad{nd}d.default": [case(*call) for call in _spatial(nd)]
        for kind in ("reflection", "replication")
        for nd in (1, 2, 3)
    },
    "aten._pad_circular.default": [
        *(case(*call) for nd in (1, 2, 3) for call in [*_spatial(nd)][:3]),
        case(X, [7, 7, 5, 5]),
    ],
}
