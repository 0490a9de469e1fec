"""Cases for random.py: shapes, dtypes and moments of what is drawn (torch's stream differs).

The key is fixed, so a check passes or fails for good. Bounds on a mean are six standard errors.
"""

import math

import numpy as np

from tests.aten.harness import Case, case, dtype, rand

N = 10_000
BIG = np.ones((100, 100), np.float32)


def drawn(shape, name, *, mean=None, std=None, low=-math.inf, high=math.inf, whole=False):
    """Check one output: shape, dtype, range (high excluded), mean and standard deviation."""

    def check(outputs) -> None:
        (out,) = outputs
        assert (out.shape, out.dtype.name) == (shape, name)
        values = out.astype(np.float64)
        assert np.all((values >= low) & (values < high))
        assert not whole or np.all(values == np.round(values))
        if mean is not None:
            error = 6 * std / math.sqrt(values.size)
            assert abs(values.mean() - mean) < error, (values.mean(), mean)
            # fourth moments up to the normal's and a little more: 2 % is six of its errors
            assert abs(values.std() - std) < 0.06 * std + error, (values.std(), std)

    return check


def dropped(shape, scale, p, *, features=False):
    """Check dropout of ones: 0 or ``scale``, a fraction p dropped, channels whole if asked."""

    def check(outputs) -> None:
        out = outputs[0].astype(np.float64)
        assert out.shape == shape
        zero = out == 0
        np.testing.assert_allclose(out[~zero], scale, rtol=1e-2)
        if features:
            flat = zero.reshape(*shape[:2], -1)
            assert np.all(flat.all(-1) == flat.any(-1))
            zero = flat[..., 0]
        assert abs(zero.mean() - p) < 6 * math.sqrt(p * (1 - p) / zero.size)

    return check


def _alpha_check(shape, p, features=False):
    alpha = 1.7580993408473766
    a = 1 / math.sqrt((alpha**2 * p + 1) * (1 - p))

    def check(outputs) -> None:
        out = outputs[0].astype(np.float64)
        assert out.shape == shape
        kept = np.isclose(out, a + alpha * a * p, atol=1e-5)
        assert np.all(kept | np.isclose(out, -alpha * a + alpha * a * p, atol=1e-5))
        if features:
            kept = kept.reshape(*shape[:2], -1)
            assert np.all(kept.all(-1) == kept.any(-1))
            kept = kept[..., 0]
        assert abs(kept.mean() - (1 - p)) < 6 * math.sqrt(p * (1 - p) / kept.size)

    return check


def _off(*, native=False) -> list[Case]:
    x = rand(2, 3, 5)
    return [
        case(x, 0.5, False),
        case(x, 0.0, not native),
        case(rand(3, 5, dtype="bfloat16"), 1.0, False),
    ]


CHANNELS = np.ones((30, 40, 2, 3), np.float32)
CASES: dict[str, list[Case]] = {
    "aten.dropout.default": [
        *_off(),
        case(rand(2, 3), 1.0, True),
        *(case(BIG, p, True, check=dropped(BIG.shape, 1 / (1 - p), p)) for p in (0.1, 0.7)),
        case(BIG.astype(np.float16), 0.3, True, check=dropped(BIG.shape, 1 / 0.7, 0.3)),
    ],
    "aten.feature_dropout.default": [
        *_off(),
        case(rand(2, 3, 5), 1.0, True),
        case(CHANNELS, 0.3, True, check=dropped(CHANNELS.shape, 1 / 0.7, 0.3, features=True)),
    ],
    "aten.native_dropout.default": [
        *_off(native=True),
        case(rand(2, 3), 1.0, True),
    ],
    "aten.alpha_dropout.default": [
        *_off(),
        case(rand(2, 3), 1.0, True),
        case(BIG, 0.3, True, check=_alpha_check(BIG.shape, 0.3)),
    ],
    "aten.feature_alpha_dropout.default": [
        *_off(),
        case(CHANNELS, 0.3, True, check=_alpha_check(CHANNELS.shape, 0.3, features=True)),
    ],
}


def _native_check(outputs) -> None:
    out, mask = outputs
    assert mask.dtype == bool
    np.testing.assert_array_equal(out != 0, mask)
    dropped(BIG.shape, 2.0, 0.5)([out])


CASES["aten.native_dropout.default"] += [
    case(BIG, 0.5, train, check=_native_check) for train in (True, None)
]


def _rrelu_check(outputs) -> None:
    (out,) = outputs
    slopes = -out[:50]
    assert slopes.min() >= 0.1
    assert slopes.max() < 0.4
    assert abs(slopes.mean() - 0.25) < 6 * 0.3 / math.sqrt(12 * slopes.size)
    np.testing.assert_array_equal(out[50:], 1)


SIGNS = np.where(np.arange(100)[:, None] < 50, -BIG, BIG)


def _rrelu_noise_check(outputs) -> None:
    out, slopes = outputs
    _rrelu_check([out])
    np.testing.assert_allclose(out, SIGNS * slopes)


CASES["aten.rrelu_with_noise_functional.default"] = [
    case(rand(2, 3), rand(2, 3, seed=1)),
    case(SIGNS, BIG, 0.1, 0.4, True, check=_rrelu_noise_check),
]
CASES["aten.rrelu.default"] = [
    case(rand(2, 3, 5)),
    case(rand(2, 3), 0.1, 0.7, False),
    case(rand(7, dtype="bfloat16")),
    case(SIGNS, 0.1, 0.4, True, check=_rrelu_check),
]

UNIFORM = {"mean": 0.5, "std": 12**-0.5, "low": 0, "high": 1}
NORMAL = {"mean": 0, "std": 1}
INT32 = "int32"


def _complex_check(outputs) -> None:
    (out,) = outputs
    assert (out.shape, out.dtype.name) == ((3,), "complex64")
    assert np.all((out.real > 0) & (out.imag > 0) & (out.real != out.imag))


CASES["aten.rand.default"] = [
    case([N], check=drawn((N,), "float32", **UNIFORM)),
    case([2, 0], check=drawn((2, 0), "float32")),
    case([N], dtype=dtype("bfloat16"), check=drawn((N,), "bfloat16", low=0, high=1)),
    case([3], dtype=dtype("complex64"), check=_complex_check),
]
CASES["aten.rand_like.default"] = [
    case(BIG, check=drawn((100, 100), "float32", **UNIFORM)),
    case(BIG, dtype=dtype("float16"), check=drawn((100, 100), "float16", **UNIFORM)),
]
CASES["aten.randn.default"] = [
    case([N], check=drawn((N,), "float32", **NORMAL)),
    case([], check=drawn((), "float32")),
    case([N], dtype=dtype("bfloat16"), check=drawn((N,), "bfloat16", **NORMAL)),
]
CASES["aten.randn_like.default"] = [case(BIG, check=drawn((100, 100), "float32", **NORMAL))]
DIE = {"mean": 2.5, "std": math.sqrt(35 / 12), "low": 0, "high": 6, "whole": True}
SHIFTED = {**DIE, "mean": -0.5, "low": -3, "high": 3}
CASES["aten.randint.default"] = [
    case(6, [N], check=drawn((N,), INT32, **DIE)),
    case(
        6, [2, 3], dtype=dtype("float32"), check=drawn((2, 3), "float32", low=0, high=6, whole=True)
    ),
]
CASES["aten.randint.low"] = [case(-3, 3, [N], check=drawn((N,), INT32, **SHIFTED))]
CASES["aten.randint_like.default"] = [
    case(BIG, 6, check=drawn((100, 100), "float32", **DIE)),
    case(BIG, 6, dtype=dtype("int64"), check=drawn((100, 100), INT32, **DIE)),
]
CASES["aten.randint_like.Tensor"] = [
    case(BIG, np.array(6), check=drawn((100, 100), "float32", **DIE)),
]
CASES["aten.randint_like.low_dtype"] = [
    case(BIG, -3, 3, check=drawn((100, 100), "float32", **SHIFTED)),
]
CASES["aten.random.from"] = [case(BIG, -3, 3, check=drawn((100, 100), "float32", **SHIFTED))]
CASES["aten.random.to"] = [case(BIG, 6, check=drawn((100, 100), "float32", **DIE))]


def _permutation(outputs) -> None:
    (out,) = outputs
    assert out.dtype == np.int32
    np.testing.assert_array_equal(np.sort(out), np.arange(97))
    assert not np.array_equal(out, np.arange(97))


CASES["aten.randperm.default"] = [
    case(97, check=_permutation),
    case(0, check=drawn((0,), INT32)),
    case(5, dtype=dtype("float32"), check=drawn((5,), "float32", low=0, high=5, whole=True)),
]

for _name in ("rand", "randn", "randint", "randperm"):
    CASES[f"aten.{_name}.generator"] = CASES[f"aten.{_name}.default"]
CASES["aten.randint.low_generator"] = CASES["aten.randint.low"]

COIN = {"mean": 0.3, "std": math.sqrt(0.21), "low": 0, "high": 1.5, "whole": True}
CASES["aten.bernoulli.default"] = [
    case(BIG * np.float32(0.3), check=drawn((100, 100), "float32", **COIN)),
    case(np.float32([0, 1]), check=drawn((2,), "float32", low=0, high=1.5)),
]
CASES["aten.bernoulli.p"] = [case(BIG, 0.3, check=drawn((100, 100), "float32", **COIN))]
CASES["aten.bernoulli.Tensor"] = [
    case(BIG, np.float32(0.3).reshape(()), check=drawn((100, 100), "float32", **COIN)),
    case(
        BIG.astype(np.int64),
        np.full((100,), 0.3, np.float32),
        check=drawn((100, 100), INT32, **COIN),
    ),
]
MOVED = {"mean": 1.5, "std": 0.5}
MOVED_ARRAYS = (BIG * np.float32(1.5), BIG * np.float32(0.5))
SQUARE = drawn((100, 100), "float32", **MOVED)
CASES["aten.normal.Tensor_float"] = [case(MOVED_ARRAYS[0], 0.5, check=SQUARE)]
CASES["aten.normal.float_Tensor"] = [case(1.5, MOVED_ARRAYS[1], check=SQUARE)]
CASES["aten.normal.Tensor_Tensor"] = [case(*MOVED_ARRAYS, check=SQUARE)]
CASES["aten.normal.float_float"] = [case(1.5, 0.5, [100, 100], check=SQUARE)]
CASES["aten.normal_functional.default"] = [
    case(BIG, 1.5, 0.5, check=SQUARE),
    case(BIG.astype(np.float16), check=drawn((100, 100), "float16", **NORMAL)),
]
CASES["aten.uniform.default"] = [
    case(BIG, check=drawn((100, 100), "float32", **UNIFORM)),
    case(BIG, -2.0, 4.0, check=drawn((100, 100), "float32", mean=1, std=3**0.5, low=-2, high=4)),
]
CASES["aten.exponential.default"] = [
    case(BIG, check=drawn((100, 100), "float32", mean=1, std=1, low=0)),
    case(BIG, 2.0, check=drawn((100, 100), "float32", mean=0.5, std=0.5, low=0)),
]
_spread = math.exp(0.1**2 / 2)
CASES["aten.log_normal.default"] = [
    case(
        BIG,
        0.0,
        0.1,
        check=drawn(
            (100, 100), "float32", mean=_spread, std=_spread * math.sqrt(_spread**2 - 1), low=0
        ),
    ),
]


def _cauchy_check(outputs) -> None:
    (out,) = outputs
    quartiles = np.quantile(out, [0.25, 0.5, 0.75])
    np.testing.assert_allclose(quartiles, [-1, 1, 3], atol=0.3)


CASES["aten.cauchy.default"] = [case(BIG, 1.0, 2.0, check=_cauchy_check)]
CASES["aten.geometric.default"] = [
    case(
        BIG,
        0.4,
        check=drawn((100, 100), "float32", mean=2.5, std=math.sqrt(0.6) / 0.4, low=1, whole=True),
    ),
]
CASES["aten.poisson.default"] = [
    case(BIG * 4, check=drawn((100, 100), "float32", mean=4, std=2, low=0, whole=True)),
]
CASES["aten.binomial.default"] = [
    case(
        BIG * 9,
        BIG * np.float32(0.5),
        check=drawn((100, 100), "float32", mean=4.5, std=1.5, low=0, high=9.5, whole=True),
    ),
]

WEIGHTS = np.float32([1, 0, 3, 4])


def _categories(outputs) -> None:
    (out,) = outputs
    assert (out.shape, out.dtype.name) == ((2, N), INT32)
    counts = np.stack([np.bincount(row, minlength=4) for row in out]) / N
    want = np.stack([WEIGHTS / 8, WEIGHTS[::-1] / 8])
    assert np.all(counts[want == 0] == 0)
    np.testing.assert_allclose(counts, want, atol=6 * 0.5 / math.sqrt(N))


def _distinct(outputs) -> None:
    (out,) = outputs
    assert (out.shape, out.dtype.name) == ((3,), INT32)
    assert sorted(out) == [0, 2, 3]


CASES["aten.multinomial.default"] = [
    case(np.stack([WEIGHTS, WEIGHTS[::-1]]), N, True, check=_categories),
    case(WEIGHTS, 3, check=_distinct),
    case(WEIGHTS, 5, True, check=drawn((5,), INT32, low=0, high=4)),
]
