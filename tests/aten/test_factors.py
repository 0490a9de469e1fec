"""Factors whose signs are a choice: they must multiply to the matrix, and be orthonormal."""

import jax
import numpy as np
import pytest

import jaxinfer_converters.aten  # noqa: F401
from jaxinfer.core.ops import OPS
from tests.aten.cases_linalg import COMPLEX, HERMITIAN, TALL, WIDE, A

# float32, sizes up to 7, norms up to about 10: a few hundred units in the last place
TOLERANCE = {"rtol": 1e-4, "atol": 1e-4}


def _h(x):
    return np.conj(np.swapaxes(x, -1, -2))


def _orthonormal(q):
    eye = np.broadcast_to(np.eye(q.shape[-1]), (*q.shape[:-2], q.shape[-1], q.shape[-1]))
    np.testing.assert_allclose(_h(q) @ q, eye, **TOLERANCE)


def _qr(name, *options):
    def check(x):
        q, r = (np.asarray(y) for y in jax.jit(lambda x: OPS[name](x, *options))(x))
        _orthonormal(q)
        np.testing.assert_array_equal(r, np.triu(r))
        return q @ r

    return check


def _svd(name, *options):
    def check(x):
        u, s, vh = (np.asarray(y) for y in jax.jit(lambda x: OPS[name](x, *options))(x))
        _orthonormal(u)
        _orthonormal(_h(vh))
        assert (np.diff(s) <= 0).all()
        k = s.shape[-1]
        return (u[..., :k] * s[..., None, :]) @ vh[..., :k, :]

    return check


def _eigh(name, uplo):
    def check(x):
        triangle = np.tril(x) if uplo == "L" else np.triu(x)  # the other one must not be read
        values, vectors = (np.asarray(y) for y in jax.jit(lambda x: OPS[name](x, uplo))(triangle))
        _orthonormal(vectors)
        assert (np.diff(values) >= 0).all()
        return (vectors * values[..., None, :]) @ _h(vectors)

    return check


@pytest.mark.parametrize(
    ("check", "inputs"),
    [
        (_qr("aten.linalg_qr.default", "reduced"), (TALL, WIDE, A, COMPLEX)),
        (_qr("aten.linalg_qr.default", "complete"), (TALL, WIDE, A, COMPLEX)),
        (_qr("aten.qr.default", True), (TALL, WIDE)),
        (_qr("aten.qr.default", False), (TALL, WIDE)),
        (_svd("aten.linalg_svd.default", True), (TALL, WIDE, A, COMPLEX)),
        (_svd("aten.linalg_svd.default", False), (TALL, WIDE, A, COMPLEX)),
        (_svd("aten._linalg_svd.default", False), (TALL, WIDE, A, COMPLEX)),
        (_eigh("aten.linalg_eigh.default", "L"), HERMITIAN),
        (_eigh("aten.linalg_eigh.default", "U"), HERMITIAN),
        (_eigh("aten._linalg_eigh.default", "L"), HERMITIAN),
    ],
)
def test_factors_multiply_to_the_matrix(check, inputs):
    for x in inputs:
        np.testing.assert_allclose(check(x), x, **TOLERANCE)
    with pytest.raises(AssertionError):
        np.testing.assert_allclose(check(inputs[0]) * 1.01, inputs[0], **TOLERANCE)


@pytest.mark.parametrize("x", [A, COMPLEX, A[..., :0, :0]], ids=["real", "complex", "empty"])
def test_eigenvectors_of_any_matrix(x):
    values, vectors = (np.asarray(y) for y in jax.jit(OPS["aten.linalg_eig.default"])(x))
    np.testing.assert_allclose(x @ vectors, vectors * values[..., None, :], **TOLERANCE)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=-2), np.ones(values.shape), rtol=1e-5)
    for name in ("aten.linalg_eigvals.default", "aten._linalg_eigvals.default"):
        again = np.asarray(jax.jit(OPS[name])(x))
        np.testing.assert_allclose(again, values, **TOLERANCE)
