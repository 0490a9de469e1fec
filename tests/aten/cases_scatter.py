"""Cases for aten/scatter.py. Without a reduction no index occurs twice: that is undefined."""

import numpy as np

from tests.aten.harness import case, rand

X = rand(5, 7, 3)
ONCE = np.argsort(rand(5, 7, 3), axis=1)[:4, 2:5, :2]  # no index twice along dim 1
MANY = rand(4, 11, 2, dtype="int64", low=0, high=7)
SRC = rand(5, 11, 3, seed=1)
NONE = np.zeros((0, 11, 2), np.int64)
ROW = np.array([1, 1, 4, 1])
NAN = np.array([1.0, np.nan, 3.0, 4.0, 5.0], np.float32)
KINDS = ("sum", "prod", "mean", "amax", "amin")


def reduced(reduce, **kwargs):
    kind = {"reduce": reduce} if kwargs.pop("keyword", False) else {}
    tail = () if kind else (reduce,)
    found = [
        case(X, 1, MANY, SRC, *tail, **kind, **kwargs),
        case(rand(5, 7, dtype="int64"), -2, rand(11, 2, dtype="int64", low=0, high=5),
             rand(11, 7, dtype="int64"), *tail, **kind, **kwargs),
        case(rand(5, dtype="bfloat16"), 0, ROW, rand(4, dtype="bfloat16"), *tail, **kind, **kwargs),
        case(rand(5, dtype="float16"), 0, ROW, rand(4, dtype="float16"), *tail, **kind, **kwargs),
        case(X, 1, NONE, SRC, *tail, **kind, **kwargs),
        case(rand(), 0, np.array(0), rand(), *tail, **kind, **kwargs),
        case(NAN, 0, ROW, rand(4), *tail, **kind, **kwargs),
        case(rand(5), 0, ROW, NAN, *tail, **kind, **kwargs),
    ]  # fmt: skip
    return found


COPY_INDEX = np.array([6, 0, 3])
SOURCES = rand(5, 3, 3, seed=2)

CASES = {
    "aten.scatter.src": [
        case(X, 1, ONCE, SRC), case(X, -2, ONCE, SRC), case(X, 1, NONE, SRC),
        case(rand(), 0, np.array(0), rand()), case(rand(5), 0, np.array(3), rand(1)),
        case(rand(5, dtype="bool"), 0, np.array([1, 3]), np.array([True, False])),
        case(rand(5, dtype="bfloat16"), 0, np.array([1, 3]), rand(2, dtype="bfloat16"))],
    "aten.scatter.value": [
        case(X, 1, MANY, 2.5), case(X, 1, NONE, 1), case(rand(), 0, np.array(0), 3),
        case(rand(5, dtype="int64"), 0, ROW, 7), case(rand(5, dtype="bool"), 0, ROW, True)],
    "aten.scatter.reduce": [c for kind in ("add", "multiply") for c in reduced(kind, keyword=True)],
    "aten.scatter.value_reduce": [
        case(x, 0, ROW, 3, reduce=kind)
        for x in (rand(5), rand(5, dtype="int64"), rand(5, dtype="bfloat16"))
        for kind in ("add", "multiply")],
    "aten.scatter_add.default": [
        case(X, 1, MANY, SRC), case(X, 1, NONE, SRC), case(rand(), 0, np.array(0), rand()),
        case(rand(5, dtype="int64"), -1, ROW, rand(7, dtype="int64")),
        case(rand(5, dtype="bfloat16"), 0, ROW, rand(4, dtype="bfloat16")),
        case(rand(5, dtype="bool"), 0, ROW, rand(4, dtype="bool"))],
    "aten.scatter_reduce.two": [
        *(c for kind in KINDS for keep in (True, False) for c in reduced(kind, include_self=keep)),
        *(case(rand(5, dtype="bool"), 0, ROW, rand(4, dtype="bool"), kind)
          for kind in ("sum", "prod", "amax", "amin"))],
    "aten.index_copy.default": [
        case(X, 1, COPY_INDEX, SOURCES), case(X, -2, COPY_INDEX, SOURCES),
        case(rand(5), 0, np.array(2), rand()), case(rand(), 0, np.array([0]), rand(1)),
        case(X, 1, np.zeros(0, np.int64), rand(5, 0, 3)),
        case(rand(5, dtype="bool"), 0, np.array([1]), np.array([True]))],
    "aten.index_add.default": [
        case(X, 1, np.array([6, 0, 6]), SOURCES), case(X, -2, COPY_INDEX, SOURCES, alpha=2.5),
        case(rand(5), 0, np.array(2), rand(1)), case(rand(), 0, np.array([0]), rand(), alpha=-1),
        case(rand(5, dtype="int64"), 0, ROW.astype(np.int32), rand(4, dtype="int64"), alpha=3),
        case(rand(5, dtype="bfloat16"), 0, ROW, rand(4, dtype="bfloat16")),
        case(rand(5, dtype="bool"), 0, ROW, rand(4, dtype="bool"))],
    "aten.index_reduce.default": [
        case(x, 0, ROW, source, kind, include_self=keep)
        for x, source in (
            (rand(5, 3), rand(4, 3)), (rand(5, dtype="int64"), rand(4, dtype="int64")),
            (rand(5, dtype="float16"), rand(4, dtype="float16")), (NAN, rand(4)))
        for kind in ("prod", "mean", "amax", "amin") for keep in (True, False)],
    "aten.index_fill.int_Scalar": [
        case(X, 1, np.array([0, -1]), 2.5), case(X, -1, np.array(1), 3),
        case(rand(), 0, np.array([0]), 1), case(X, 0, np.zeros(0, np.int64), 1),
        case(rand(5, dtype="int64"), 0, ROW, 7), case(rand(5, dtype="bool"), 0, ROW, True)],
    "aten.index_fill.int_Tensor": [
        case(X, 1, np.array([0, -1]), np.array(2.5, np.float32)),
        case(rand(5, dtype="int64"), 0, ROW, np.array(7))],
    "aten.put.default": [
        case(X, np.array([[0, -1], [50, 3]]), rand(2, 2)),
        case(X, np.array([0, 0, -1]), rand(3), True), case(rand(), np.array([0]), rand(1)),
        case(X, np.zeros(0, np.int64), rand(0)),
        case(rand(5, dtype="int64"), np.array([1, 1]), rand(2, dtype="int64"), True)],
}  # fmt: skip
