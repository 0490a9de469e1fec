"""Cases for grid.py."""

import itertools

import numpy as np

from tests.aten.harness import case, rand

IMAGE, VOLUME = rand(2, 3, 5, 7), rand(2, 3, 4, 5, 7)
POINTS, PLACES = rand(2, 4, 6, 2, low=-2.7, high=2.7), rand(2, 3, 2, 4, 3, low=-2.7, high=2.7)
MODES = list(itertools.product((0, 1, 2), (0, 1, 2), (False, True)))


def _exact():
    """Points on pixels, halfway between pixels and on the border."""
    edge = np.array([-1.0, -0.5, 0.0, 0.25, 1.0], np.float32)
    return np.stack(np.meshgrid(edge, edge), -1)[None]


FLAT = [
    *(case(IMAGE, POINTS, *mode) for mode in MODES),
    *(case(rand(1, 2, 5, 8), _exact(), *mode) for mode in MODES),
    *(case(rand(2, 3, 1, 7), POINTS, *mode) for mode in MODES if mode[0] != 2),
    case(IMAGE[:0], POINTS[:0], 0, 0, False),
    case(IMAGE, POINTS[:, :0], 0, 1, False),
    case(IMAGE, POINTS * 1e6, 0, 0, False),
    # Half: positions in float32 from points rounded to half, values rounded once.
    case(rand(2, 3, 5, 7, dtype="bfloat16"), rand(2, 4, 6, 2, dtype="bfloat16"), 0, 0, True),
    # torch computes cubic weights in float16: 0.016 off float64 here, where the rule is 0.0007.
    case(
        rand(2, 3, 5, 7, dtype="float16"),
        rand(2, 4, 6, 2, dtype="float16"),
        *(2, 1, True),
        atol=0.03,
    ),
]
DEEP = [
    *(case(VOLUME, PLACES, *mode) for mode in MODES if mode[0] != 2),
    case(VOLUME[:0], PLACES[:0], 0, 0, False),
]

CASES = {
    "aten.grid_sampler_2d.default": FLAT,
    "aten.grid_sampler_3d.default": DEEP,
    "aten.grid_sampler.default": [*FLAT[:6], *DEEP[:6]],
    "aten.affine_grid_generator.default": [
        *(case(rand(2, 2, 3), [2, 3, 5, 7], align) for align in (False, True)),
        *(case(rand(2, 3, 4), [2, 1, 3, 5, 2], align) for align in (False, True)),
        case(rand(2, 2, 3), [2, 3, 1, 4], False),
        case(rand(0, 2, 3), [0, 3, 2, 4], False),
        case(rand(2, 2, 3, dtype="bfloat16"), [2, 3, 5, 7], False),
    ],
}
