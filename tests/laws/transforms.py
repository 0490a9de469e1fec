"""Transforms that are tried on every program, and what each promises.

``test_transforms.py`` proves the rows. The table is closed: a name of ``TRANSFORMS``, a scheme,
an array type or a rule that no row exercises fails the suite.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jaxinfer as ji
from jaxinfer.core.table import RuleTable
from jaxinfer.core.transform import Transform, chain, identity
from jaxinfer.transforms.arrange import arrange
from jaxinfer.transforms.cast import cast
from jaxinfer.transforms.fold import fold
from jaxinfer.transforms.prune import finalize, masks, prune
from jaxinfer.transforms.quantize import quantize
from jaxinfer.transforms.schemes import SCHEMES

ROUNDING = 0.0
"""No more than sums in another order: the programs' own tolerance."""


@dataclasses.dataclass(frozen=True)
class Row:
    """A transform, and what it promises of any program.

    Attributes:
      name: unique.
      names: keys of ``TRANSFORMS`` that it goes through.
      make: the transform.
      kinds: array types that it leaves at leaves that it changes.
      of: what its function is near to: ``original``, or ``materialized``: the original function
        of the parameters that its leaves stand for.
      noise: how near, relative to the largest value of an output, beyond rounding. Measured for
        each row on a third of the programs, and trebled: 1.2 % (bf16), 0.14 % (f16), 2.3 %
        (int8 activations; static 5 %), 7.1 % (e4m3), 1.5 % (bf16 and int8 weights).
      data: whether ``init`` needs batches.
      slope: the derivative by the inputs: ``original`` (rules of custom derivatives survive),
        ``forward`` (where it goes into such a function, that of what is computed), or "" where
        rounding has none.
      scheme: of a quantization.
      again: applied twice it is refused, or gives the ``same``.
    """

    name: str
    names: tuple[str, ...]
    make: Callable[[], Transform]
    kinds: frozenset[str] = frozenset()
    of: str = "original"
    noise: float = ROUNDING
    data: bool = False
    slope: str = "forward"
    scheme: str = ""
    again: str = "refused"


TRANSFORM_ROWS: RuleTable[Row] = RuleTable("law of a transform")


def add(name: str, names: str, make: Callable[[], Transform], kinds: str = "", **rest: Any) -> None:
    row = Row(name, tuple(names.split()), make, frozenset(kinds.split()), **rest)
    TRANSFORM_ROWS.register(name)(row)


def compressed() -> Transform:
    """Return pruning 2:4, stored without the zeros."""
    sparse = prune(pattern="2:4")

    def update(model: ji.Model, state: Any) -> ji.Model:
        made = sparse.update(model, state)
        return finalize(made, compress=True) if masks(made) else made

    return Transform(sparse.init, update, sparse.stage)


add("identity", "", identity, slope="original", again="same")

add("cast bf16", "cast", lambda: cast("bf16"), noise=0.035)
add("cast f16", "cast", lambda: cast("f16"), noise=0.004)
add("cast f32", "cast", lambda: cast("params=f32,compute=f32"))

add("fold", "fold", fold, slope="original")

add("arrange NCHW", "arrange", lambda: arrange(layout="NCHW"), slope="original")
unrolled = lambda: arrange(layout="NHWC", unroll=True)
add("arrange NHWC unrolled", "arrange", unrolled, slope="original")

MASKED: dict[str, Any] = {"kinds": "Masked", "of": "materialized"}
add("prune", "prune", prune, **MASKED)
add("prune 2:4", "prune", lambda: prune(pattern="2:4"), **MASKED)
add("prune channel", "prune", lambda: prune(pattern="channel"), **MASKED)
add("prune random", "prune", lambda: prune("random", sparsity=0.3, key=1), **MASKED)
add("prune compressed", "prune", compressed, "Compressed", of="materialized")


def quantized(name: str, noise: float = ROUNDING, data: bool = False, **settings: Any) -> None:
    """Add a row; the function of what the codes stand for, and noise if activations round."""
    scheme = name.split()[0]
    acts = bool(SCHEMES[scheme].activations)
    add(
        f"quantize {name}",
        "quantize",
        lambda: quantize(scheme, **settings),
        "ActQTensor QTensor" if acts else "QTensor",
        of="materialized",
        noise=noise,
        data=data,
        slope="" if acts else "forward",
        scheme=scheme,
    )


quantized("W8A16")
quantized("W8A8", noise=0.07)
quantized("W8A8 static", noise=0.15, data=True, activation="static")
quantized("FP8", noise=0.2)
quantized("W4A16", group=4)
quantized("W4A16 asymmetric", group=4, symmetric=False)
quantized("W4A8", noise=0.07, group=4)
quantized("NF4", group=4)

add(
    "prune, quantize",
    "prune quantize",
    lambda: chain(prune(pattern="2:4"), quantize("W8A16")),
    "Masked QTensor",
    of="materialized",
    scheme="W8A16",
)
add("fold, cast", "fold cast", lambda: chain(fold(), cast("bf16")), noise=0.035)
add(
    "cast, quantize",
    "cast quantize",
    lambda: chain(cast("bf16"), quantize("W8A16")),
    "QTensor",
    of="materialized",
    noise=0.035,
    scheme="W8A16",
)
add(
    "cast, fold, prune, quantize",
    "cast fold prune quantize",
    # at a sparsity of 0 the masks keep all, so the original function is still near
    lambda: chain(cast("bf16"), fold(), prune(sparsity=0.0), quantize("W8A16")),
    "Masked QTensor",
    noise=0.05,
    scheme="W8A16",
)
