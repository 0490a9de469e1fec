"""Shapes, indexing, sequences: operators with operands that are to be static."""

from __future__ import annotations

import numpy as np

from jaxinfer.core.errors import ConversionError
from jaxinfer_converters.graph import Ref
from jaxinfer_converters.onnx.build import Builder, lowers, plain, with_static
from jaxinfer_converters.onnx.call import Call

# The places of the inputs that are to be static.
_STATIC = {
    "Reshape": (1,), "Expand": (1,), "Tile": (1, 2), "Squeeze": (1,), "Unsqueeze": (1,),
    "Trilu": (1,), "OneHot": (1,), "TopK": (1,), "ConstantOfShape": (0,), "Range": (0, 1, 2),
    "Col2Im": (1, 2), "MaxUnpool": (2,), "DFT": (1, 2), "STFT": (1, 3), "SequenceAt": (1,),
    "SequenceInsert": (2,), "SequenceErase": (1,), "SplitToSequence": (1,),
    "MelWeightMatrix": (0, 1, 2, 3, 4),
}  # fmt: skip
for _name, _places in _STATIC.items():
    lowers(_name)(with_static(*_places))


@lowers("Transpose")
def _transpose(b: Builder, n: Call) -> Ref:
    x, perm = b.array(n.inputs[0]), n.attrs.get("perm")
    if perm is None:
        return b.emit("onnx.Transpose", x)
    return b.emit("aten.permute.default", x, perm)


@lowers("Concat")
def _concat(b: Builder, n: Call) -> Ref:
    return b.emit("aten.cat.default", [b.array(name) for name in n.inputs], n.attrs["axis"])


@lowers("Gather")
def _gather(b: Builder, n: Call) -> Ref:
    x, indices = b.array(n.inputs[0]), b.either(n.inputs[1])
    return b.emit("onnx.Gather", x, indices, axis=n.attrs.get("axis"))


@lowers("Split")
def _split(b: Builder, n: Call) -> list[Ref | None]:
    count = n.attrs.get("num_outputs", len(n.outputs))
    out = b.emit(
        "onnx.Split", b.array(n.inputs[0]), b.optional_host(n.input(1)),
        axis=n.attrs.get("axis"), num_outputs=count,
    )  # fmt: skip
    return [b.item(out, i) if name else None for i, name in enumerate(n.outputs)]


@lowers("Slice")
def _slice(b: Builder, n: Call) -> Ref:
    x = b.array(n.inputs[0])
    rest = [b.host(name) if name else None for name in n.inputs[1:]]
    return b.emit("onnx.Slice", x, *rest)


@lowers("Pad")
def _pad(b: Builder, n: Call) -> Ref:
    x, pads, axes = b.array(n.inputs[0]), b.known(n.inputs[1]), n.input(3)
    mode = n.attrs.get("mode", "constant")
    value = b.known(n.input(2)) if n.input(2) else np.zeros(())
    if mode == "constant" and pads is not None and not axes and value is not None:
        half = len(pads) // 2  # PyTorch's order: the last axis first, before and after
        pairs = [int(p) for i in reversed(range(half)) for p in (pads[i], pads[i + half])]
        kind = float if value.dtype.kind == "f" else int
        if value.dtype.kind in "fiu":
            return b.emit("aten.constant_pad_nd.default", x, pairs, kind(value.reshape(())))
    fill = b.optional(n.input(2))
    return b.emit("onnx.Pad", x, b.host(n.inputs[1]), fill, b.optional_host(axes), mode=mode)


@lowers("DepthToSpace")
def _depth_to_space(b: Builder, n: Call) -> Ref:
    x = b.array(n.inputs[0])
    if n.attrs.get("mode", "DCR") == "CRD":
        return b.emit("aten.pixel_shuffle.default", x, n.attrs["blocksize"])
    return b.emit("onnx.DepthToSpace", x, **plain(n.attrs))


@lowers("LayerNormalization")
def _layer_norm(b: Builder, n: Call) -> Ref | list[Ref | None]:
    x, scale, bias = (b.optional(n.input(i)) for i in range(3))
    axis = n.attrs.get("axis", -1)
    sizes = b.info(n.inputs[1]).shape
    rank, epsilon = b.info(n.inputs[0]).rank, n.attrs.get("epsilon", 1e-5)
    alone = not n.has_output(1) and not n.has_output(2)
    last = axis == -1 or (rank is not None and axis == rank - 1)
    if alone and last and sizes and len(sizes) == 1 and isinstance(sizes[0], int) and sizes[0] > 1:
        return b.emit("aten.layer_norm.default", x, [sizes[0]], scale, bias, epsilon)
    out = b.emit("onnx.LayerNormalization", x, scale, bias, axis=axis, epsilon=epsilon)
    return [b.item(out, i) if n.has_output(i) else None for i in range(3)]


DATA_DEPENDENT = {
    "NonZero": "take the k first with TopK on the condition, or multiply by it as a mask",
    "Compress": "use Where and keep the shape",
    "Unique": "use a fixed set of values",
    "NonMaxSuppression": "end the model before it, and do it outside on the boxes and scores",
}


def _data_dependent(b: Builder, n: Call) -> Ref:
    """Refuse: the shape of the result depends on data, which XLA cannot compile for."""
    del b
    raise ConversionError(
        f"{n.op} ({n.name}): the shape of its result depends on the data, and JAX compiles for "
        f"fixed shapes. Instead: {DATA_DEPENDENT[n.op]}"
    )


for _name in DATA_DEPENDENT:
    lowers(_name)(_data_dependent)
