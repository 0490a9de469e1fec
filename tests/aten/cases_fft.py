"""Cases for aten/fft.py."""

import numpy as np

from tests.aten.harness import case, dtype, rand

F = rand(2, 3, 5)
C = rand(2, 3, 5, dtype="complex64")
INT = rand(3, 5, dtype="int64")
DEEP = rand(2, 3, 2, 3, 5)
HANN = np.hanning(17)[:16].astype(np.float32)
NORMS = ("backward", "ortho", "forward", None)


def _one(*inputs):
    return [
        *(case(x) for x in inputs),
        *(case(inputs[0], n, 1) for n in (2, 3, 7)),
        *(case(inputs[0], None, 0, norm) for norm in NORMS),
    ]


def _many(*inputs):
    return [
        *(case(x) for x in inputs),
        case(inputs[0], [4, 7]),
        case(inputs[0], [-1, 3], [0, 1]),
        case(inputs[0], None, [2, 0]),
        *(case(inputs[0], None, [0, 1], norm) for norm in NORMS),
    ]


_code = [0, 1, 2]
_shift = [case(F), case(F, [1]), case(F, [0, -1]), case(INT, [1])]
_stft = [
    case(rand(2, 67), 16, 5, return_complex=True),
    case(rand(67), 16, None, 12, HANN[:12], True, True, True),
    case(rand(67), 16, 5, 11, HANN[:11], False, False, True),
    case(rand(2, 67), 16, 5, 16, HANN, False, True, False),
    case(rand(67, dtype="complex64"), 16, 5, 16, HANN, False, False, True),
    case(rand(67), 16, 5, 12, HANN[:12], return_complex=True, align_to_window=True),
]
_spectrum = rand(2, 9, 13, dtype="complex64").copy()

CASES = {
    **{f"aten.fft_{n}.default": _one(F, C, INT) for n in ("fft", "ifft", "irfft", "hfft")},
    **{f"aten.fft_{n}.default": _one(F, INT) for n in ("rfft", "ihfft")},
    **{
        f"aten.fft_{n}{many}.default": _many(F, C, INT)
        for n in ("fft", "ifft", "irfft", "hfft")
        for many in "2n"
    },
    **{f"aten.fft_{n}{many}.default": _many(F, INT) for n in ("rfft", "ihfft") for many in "2n"},
    "aten._fft_c2c.default": [
        *(case(C, [1], code, forward) for code in _code for forward in (True, False)),
        case(C, [0, 2], 0, True),
        case(C, [2, 1, 0], 1, False),
        case(DEEP.astype(np.complex64), [0, 1, 2, 3, 4], 2, True),
    ],
    "aten._fft_r2c.default": [
        *(case(F, [1], code, onesided) for code in _code for onesided in (True, False)),
        case(F, [0, 2], 1, True),
        case(DEEP, [0, 1, 2, 3, 4], 2, True),
    ],
    "aten._fft_c2r.default": [
        *(case(C, [2], code, size) for code in _code for size in (8, 9)),
        case(C, [0, 1], 1, 4),
        case(DEEP.astype(np.complex64), [0, 1, 2, 3, 4], 0, 9),
    ],
    "aten.fft_fftshift.default": _shift,
    "aten.fft_ifftshift.default": _shift,
    "aten.fft_fftfreq.default": [case(5), case(8, 0.5), case(5, dtype=dtype("float64"))],
    "aten.fft_rfftfreq.default": [case(5), case(8, 0.5), case(5, dtype=dtype("float64"))],
    "aten.stft.default": _stft,
    "aten.stft.center": [
        *(
            case(rand(2, 67), 16, 5, 16, HANN, True, mode, False, True, True)
            for mode in ("reflect", "constant", "replicate")
        ),
        case(rand(67), 16, 5, 12, HANN[:12], False, return_complex=True),
    ],
    "aten.istft.default": [
        case(_spectrum, 16, 4, 16, HANN),
        case(_spectrum[0], 16, 4, 12, HANN[:12], True, True),
        case(_spectrum, 16, 5, 16, HANN + 0.1, False),
        case(_spectrum, 16, 4, 16, HANN, True, False, True, 37),
        case(rand(2, 16, 13, dtype="complex64"), 16, 4, 16, HANN, True, False, False),
        case(
            rand(2, 16, 13, dtype="complex64"),
            16,
            4,
            16,
            HANN,
            True,
            False,
            False,
            None,
            True,
        ),
    ],
}
