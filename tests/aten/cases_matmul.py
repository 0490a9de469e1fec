"""Cases for aten/matmul.py."""

import numpy as np

from tests.aten.harness import case, rand

INF = float("inf")


def _pair(a, b, dtypes=("float32", "bfloat16", "float16", "complex64", "int32", "int64")):
    return [case(rand(*a, dtype=d), rand(*b, dtype=d, seed=1)) for d in dtypes]


def _add(x, a, b):
    three = [rand(*shape, seed=seed) for seed, shape in enumerate((x, a, b))]
    half = [rand(*s, dtype="bfloat16", seed=n) for n, s in enumerate((x, a, b))]
    whole = [rand(*s, dtype="int64", seed=n) for n, s in enumerate((x, a, b))]
    return [
        case(*three),
        case(*three, beta=0.5, alpha=2.5),
        case(np.full_like(three[0], np.nan), *three[1:], beta=0),
        case(*half),
        case(*half, beta=2, alpha=3),
        case(*whole, beta=2, alpha=3),
    ]


_mm = [*_pair((2, 3), (3, 5)), case(rand(2, 0), rand(0, 5)), case(rand(0, 3), rand(3, 5))]
_points = [rand(5, 3), rand(7, 3, seed=1)]
_distances = [
    *(case(*_points, p, None) for p in (0.0, 0.5, 1.0, 2.0, 3.0, INF)),
    *(case(rand(2, 1, 5, 3), rand(3, 7, 3, seed=1), p, 2) for p in (1.0, 2.0)),
    case(*_points, 2.0, 1),
    case(rand(31, 3), rand(29, 3, seed=1), 2.0, None),
    case(rand(31, 3), rand(29, 3, seed=1), 2.0, 2),
    case(rand(5, 0), rand(7, 0), 2.0, None),
    case(rand(0, 3), rand(7, 3), 1.0, None),
]

CASES = {
    "aten.mm.default": _mm,
    "aten.bmm.default": [*_pair((2, 3, 5), (2, 5, 7)), case(rand(0, 3, 5), rand(0, 5, 7))],
    "aten.mv.default": [*_pair((2, 3), (3,)), case(rand(2, 0), rand(0))],
    "aten.dot.default": [*_pair((7,), (7,)), case(rand(0), rand(0))],
    "aten.vdot.default": _pair((7,), (7,)),
    "aten.matmul.default": [
        *_mm,
        *_pair((7,), (7,)),
        *_pair((3,), (3, 5), ("float32", "bfloat16")),
        *_pair((2, 3), (3,), ("float32",)),
        *_pair((2, 5, 3), (3,), ("float32",)),
        *_pair((3,), (2, 3, 5), ("float32",)),
        *_pair((2, 5, 3), (3, 7), ("float32", "float16")),
        *_pair((2, 1, 5, 3), (7, 3, 2), ("float32", "int64")),
        *_pair((5, 3), (2, 3, 7), ("float32",)),
        *_pair((1, 5, 3), (2, 3, 7), ("float32",)),
        *_pair((2, 0, 3), (3, 7), ("float32",)),
    ],
    "aten.linear.default": [
        *_pair((2, 5, 3), (7, 3)),
        *_pair((3,), (7, 3), ("float32",)),
        *_pair((2, 3), (3,), ("float32",)),
        *_pair((0, 3), (7, 3), ("float32",)),
        *(
            case(rand(2, 3, dtype=d), rand(7, 3, dtype=d), rand(7, dtype=d))
            for d in ("float32", "bfloat16", "float16")
        ),
    ],
    "aten.addmm.default": [
        *_add((2, 5), (2, 3), (3, 5)),
        *_add((5,), (2, 3), (3, 5)),
        *_add((), (2, 3), (3, 5)),
        *_add((2, 1), (2, 3), (3, 5)),
    ],
    "aten.addmv.default": [*_add((2,), (2, 3), (3,)), *_add((), (2, 3), (3,))],
    "aten.baddbmm.default": [
        *_add((2, 3, 7), (2, 3, 5), (2, 5, 7)),
        *_add((7,), (2, 3, 5), (2, 5, 7)),
    ],
    "aten.addbmm.default": _add((3, 7), (2, 3, 5), (2, 5, 7)),
    "aten.addr.default": [*_add((2, 3), (2,), (3,)), *_add((3,), (2,), (3,))]
    + [case(rand(2, 3, dtype="int32"), rand(2), rand(3))],
    "aten.outer.default": [*_pair((2,), (3,)), case(rand(2, dtype="int32"), rand(3))],
    "aten.inner.default": [
        *_pair((2, 3), (5, 3)),
        *_pair((2, 7, 3), (5, 3), ("float32",)),
        *_pair((3,), (3,), ("float32",)),
        *_pair((), (2, 3), ("float32",)),
    ],
    "aten.tensordot.default": [
        case(rand(2, 3, 5), rand(5, 3, 7), [1, 2], [1, 0]),
        case(rand(2, 3, 5), rand(5, 3, 7), [-1], [0]),
        case(rand(2, 3), rand(5), [], []),
        case(rand(2, 1), rand(3, 5), [1], [0]),
        case(rand(2, 3), rand(1, 5), [1], [0]),
        case(rand(2, 3, dtype="bfloat16"), rand(3, 5, dtype="bfloat16"), [1], [0]),
    ],
    "aten.einsum.default": [
        case("ij,jk->ik", [rand(2, 3), rand(3, 5)]),
        case("ij, jk", [rand(2, 3), rand(3, 5)]),
        case("b...ij,b...jk->b...ik", [rand(2, 7, 3, 5), rand(2, 7, 5, 2)]),
        case("bhqd,bhkd->bhqk", [rand(2, 3, 5, 7, dtype=d) for d in ("bfloat16",) * 2]),
        case("ii->i", [rand(3, 3)]),
        case("ii", [rand(3, 3)]),
        case("i,i->", [rand(3), rand(3, seed=1)]),
        case("bA,aA,bC->aC", [rand(2, 3), rand(5, 3), rand(2, 7)]),
        case("Bb,aB", [rand(2, 3), rand(5, 2)]),
        case("i,j", [rand(2), rand(3)]),
        case("ij->ji", [rand(2, 3, dtype="int64")]),
        case("...,...->...", [rand(2, 3), rand(3)]),
        case("ij,jk->ik", [rand(2, 1), rand(3, 5)]),
        case("ij,ij->ij", [rand(1, 3), rand(2, 3)]),
        case("ij,jk->ik", [rand(2, 3), rand(3, 5)], path=[0, 1]),
    ],
    "aten.bilinear.default": [
        case(rand(2, 3), rand(2, 5), rand(7, 3, 5)),
        case(rand(2, 11, 3), rand(2, 11, 5), rand(7, 3, 5), rand(7)),
    ],
    "aten.kron.default": [
        case(rand(2, 3), rand(5, 7)),
        case(rand(2), rand(3, 5)),
        case(rand(), rand(2, 3)),
        case(rand(2, 3, dtype="int32"), rand(2)),
        case(rand(2, 3, dtype="bool"), rand(2, dtype="bool")),
    ],
    "aten.linalg_multi_dot.default": [
        case([rand(2, 3), rand(3, 5), rand(5, 7)]),
        case([rand(3), rand(3, 5), rand(5)]),
        case([rand(2, 3), rand(3, 5)]),
    ],
    "aten.chain_matmul.default": [case([rand(2, 3), rand(3, 5), rand(5, 7)]), case([rand(2, 3)])],
    "aten.trace.default": [case(rand(3, 5)), case(rand(3, 3, dtype="int32")), case(rand(0, 3))]
    + [case(rand(5, 3, dtype=d)) for d in ("complex64", "bfloat16")],
    "aten.linalg_cross.default": [
        case(rand(2, 3), rand(2, 3, seed=1)),
        case(rand(3, 5), rand(3, 5, seed=1), dim=0),
        case(rand(2, 1, 3), rand(1, 5, 3), dim=-1),
        case(rand(2, 3, dtype="int32"), rand(2, 3, dtype="int32", seed=1)),
        case(rand(2, 3, dtype="bfloat16"), rand(2, 3, dtype="bfloat16", seed=1)),
    ],
    "aten.cross.default": [
        case(rand(2, 3, 5), rand(2, 3, 5, seed=1)),
        case(rand(3, 3), rand(3, 3, seed=1)),
        case(rand(3, 3), rand(3, 3, seed=1), -1),
    ],
    "aten.cdist.default": [case(*_points), case(rand(2, 5, 3), rand(7, 3), INF), *_distances],
    "aten._cdist_forward.default": _distances,
    "aten._pdist_forward.default": [case(rand(7, 3), p) for p in (0.0, 1.0, 2.0, 3.0, INF)]
    + [case(rand(1, 3)), case(rand(0, 3)), case(rand(5, 0))],
    "aten.pairwise_distance.default": [
        *(case(rand(5, 3), rand(5, 3, seed=1), p) for p in (1.0, 2.0, 3.0, INF)),
        case(rand(5, 3), rand(3), 2.0, 1e-3, True),
        case(rand(3), rand(3, seed=1)),
        case(rand(5, 3, dtype="bfloat16"), rand(5, 3, dtype="bfloat16", seed=1)),
    ],
    "aten.cosine_similarity.default": [
        case(rand(5, 3), rand(5, 3, seed=1)),
        case(rand(2, 5, 3), rand(5, 3), -1),
        case(rand(5, 3), rand(5, 3) * 0),
        case(rand(5, 3) * 1e-3, rand(5, 3, seed=1), 0, 0.5),
        case(rand(5, 3, dtype="bfloat16"), rand(5, 3, dtype="bfloat16", seed=1)),
        case(rand(3), rand(3, seed=1), 0),
    ],
}
