"""Elementwise operators, matmuls and reductions: most are PyTorch's own, under another name."""

from __future__ import annotations

from jaxinfer_converters.graph import DType, Ref
from jaxinfer_converters.onnx.build import Builder, Lowering, lowers, with_static
from jaxinfer_converters.onnx.call import Call

_SAME = {
    "Abs": "abs", "Acos": "acos", "Acosh": "acosh", "Asin": "asin", "Asinh": "asinh",
    "Atan": "atan", "Atanh": "atanh", "BitwiseNot": "bitwise_not", "Ceil": "ceil", "Cos": "cos",
    "Cosh": "cosh", "Erf": "erf", "Exp": "exp", "Floor": "floor", "HardSwish": "hardswish",
    "IsNaN": "isnan", "Log": "log", "Mish": "mish", "Neg": "neg", "Not": "logical_not",
    "Reciprocal": "reciprocal", "Relu": "relu", "Round": "round", "Sigmoid": "sigmoid",
    "Sign": "sign", "Sin": "sin", "Sinh": "sinh", "Softplus": "softplus", "Sqrt": "sqrt",
    "Tan": "tan", "Tanh": "tanh", "MatMul": "matmul", "And": "logical_and", "Or": "logical_or",
    "Xor": "logical_xor",
}  # fmt: skip
_BINARY = {
    "Add": "add.Tensor", "Sub": "sub.Tensor", "Mul": "mul.Tensor", "Equal": "eq.Tensor",
    "Less": "lt.Tensor", "LessOrEqual": "le.Tensor", "Greater": "gt.Tensor",
    "GreaterOrEqual": "ge.Tensor", "BitwiseAnd": "bitwise_and.Tensor",
    "BitwiseOr": "bitwise_or.Tensor", "BitwiseXor": "bitwise_xor.Tensor", "Where": "where.self",
}  # fmt: skip


def _same(op: str) -> Lowering:
    def lower(b: Builder, n: Call) -> Ref:
        return b.emit(op, *(b.array(name) for name in n.inputs))

    return lower


for _name, _op in _SAME.items():
    lowers(_name)(_same(f"aten.{_op}.default"))
for _name, _op in _BINARY.items():
    lowers(_name)(_same(f"aten.{_op}"))


def is_float(b: Builder, name: str) -> bool:
    """Return whether a value is known to be of a real float dtype of 16 bits or more."""
    dtype = b.info(name).dtype
    return dtype in ("float16", "bfloat16", "float32", "float64")


def _variadic(op: str) -> Lowering:
    def lower(b: Builder, n: Call) -> Ref:
        out = b.array(n.inputs[0])
        for name in n.inputs[1:]:
            out = b.emit(op, out, b.array(name))
        return out

    return lower


for _name, _op in {"Max": "maximum.default", "Min": "minimum.default", "Sum": "add.Tensor"}.items():
    lowers(_name)(_variadic(f"aten.{_op}"))


@lowers("Div")
def _div(b: Builder, n: Call) -> Ref:
    op = "aten.div.Tensor" if is_float(b, n.inputs[0]) else "onnx.Div"
    return b.emit(op, b.array(n.inputs[0]), b.array(n.inputs[1]))


@lowers("Pow")
def _pow(b: Builder, n: Call) -> Ref:
    x, exponent = b.array(n.inputs[0]), b.known(n.inputs[1])
    if is_float(b, n.inputs[0]):
        if exponent is not None and exponent.ndim == 0:
            return b.emit("aten.pow.Tensor_Scalar", x, float(exponent))
        if b.info(n.inputs[0]).dtype == b.info(n.inputs[1]).dtype:
            return b.emit("aten.pow.Tensor_Tensor", x, b.array(n.inputs[1]))
    return b.emit("onnx.Pow", x, b.array(n.inputs[1]))


@lowers("Clip")
def _clip(b: Builder, n: Call) -> Ref:
    x, low, high = n.inputs[0], n.input(1), n.input(2)
    if not low and not high:
        return b.array(x)
    return b.emit("aten.clamp.Tensor", b.array(x), b.optional(low), b.optional(high))


@lowers("Elu")
def _elu(b: Builder, n: Call) -> Ref:
    return b.emit("aten.elu.default", b.array(n.inputs[0]), n.attrs.get("alpha", 1.0))


@lowers("Celu")
def _celu(b: Builder, n: Call) -> Ref:
    return b.emit("aten.celu.default", b.array(n.inputs[0]), n.attrs.get("alpha", 1.0))


@lowers("Selu")
def _selu(b: Builder, n: Call) -> Ref:
    alpha = n.attrs.get("alpha", 1.6732632423543772)
    gamma = n.attrs.get("gamma", 1.0507009873554805)
    return b.emit("aten.elu.default", b.array(n.inputs[0]), alpha, gamma)


@lowers("LeakyRelu")
def _leaky_relu(b: Builder, n: Call) -> Ref:
    return b.emit("aten.leaky_relu.default", b.array(n.inputs[0]), n.attrs.get("alpha", 0.01))


@lowers("Gelu")
def _gelu(b: Builder, n: Call) -> Ref:
    approximate = n.attrs.get("approximate", "none")
    return b.emit("aten.gelu.default", b.array(n.inputs[0]), approximate=approximate)


@lowers("Identity", "Dropout")
def _identity(b: Builder, n: Call) -> Ref | list[Ref | None]:
    x = b.array(n.inputs[0])
    if n.op == "Identity":
        return x
    training = b.known(n.input(2)) if n.input(2) else None
    if training is not None and bool(training):
        out = b.emit("onnx.DropoutTraining", x, b.optional(n.input(1)), seed=n.attrs.get("seed"))
        return [b.item(out, 0), b.item(out, 1)]
    if n.input(2) and training is None:
        b.host(n.input(2))  # raises: whether it trains is to be known
    dtype = DType("bool") if n.version >= 10 else None
    mask = b.emit("aten.ones_like.default", x, dtype=dtype) if n.has_output(1) else None
    return [x, mask]


@lowers("Cast")
def _cast(b: Builder, n: Call) -> Ref:
    to, x = n.attrs["to"], b.array(n.inputs[0])
    source = b.info(n.inputs[0]).dtype
    wide = {"float16", "bfloat16", "float32", "float64"}
    if to in wide and source in wide:
        return b.emit("aten._to_copy.default", x, dtype=DType(to))
    return b.emit("onnx.Cast", x, to=to, saturate=n.attrs.get("saturate"),
                  round_mode=n.attrs.get("round_mode"))  # fmt: skip


@lowers("CastLike")
def _cast_like(b: Builder, n: Call) -> Ref:
    x, like = b.array(n.inputs[0]), b.info(n.inputs[1]).dtype
    options = {key: n.attrs.get(key) for key in ("saturate", "round_mode")}
    if like is not None:
        return b.emit("onnx.Cast", x, to=like, **options)
    return b.emit("onnx.CastLike", x, b.array(n.inputs[1]), **options)


@lowers("Gemm")
def _gemm(b: Builder, n: Call) -> Ref:
    x, w = b.array(n.inputs[0]), b.array(n.inputs[1])
    bias = b.optional(n.input(2))
    plain = n.attrs.get("alpha", 1.0) == 1 and n.attrs.get("beta", 1.0) == 1
    flat = bias is None or b.info(n.input(2)).rank == 1
    if plain and flat and not n.attrs.get("transA") and n.attrs.get("transB"):
        return b.emit("aten.linear.default", x, w, bias)
    keys = ("alpha", "beta", "transA", "transB")
    return b.emit("onnx.Gemm", x, w, bias, **{key: n.attrs.get(key) for key in keys})


@lowers("Einsum")
def _einsum(b: Builder, n: Call) -> Ref:
    return b.emit("onnx.Einsum", *map(b.array, n.inputs), equation=n.attrs["equation"])


_REDUCED = {"ReduceMean": "mean.dim", "ReduceMax": "amax.default", "ReduceMin": "amin.default",
            "ReduceSum": "sum.dim_IntList"}  # fmt: skip


def _reduce(b: Builder, n: Call) -> Ref:
    """A reduction over axes known at conversion is PyTorch's; another is ONNX's own."""
    x, axes = n.inputs[0], n.input(1)
    known = b.known(axes) if axes else None
    keep = bool(n.attrs.get("keepdims", 1))
    rank, shape = b.info(x).rank, b.info(x).shape or ()
    whole = not axes or (known is not None and known.size == 0)
    whole = whole and not n.attrs.get("noop_with_empty_axes")
    if whole and rank:
        listed = list(range(rank))
    elif known is not None and known.size:
        listed = [int(axis) for axis in known]
    else:
        listed = []
    if n.op in _REDUCED and listed and is_float(b, x) and 0 not in shape and None not in shape:
        return b.emit(f"aten.{_REDUCED[n.op]}", b.array(x), listed, keep)
    keys = ("keepdims", "noop_with_empty_axes")
    return b.emit(
        f"onnx.{n.op}", b.array(x), b.optional_host(axes), **{k: n.attrs.get(k) for k in keys}
    )


for _name in ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare"):
    lowers(f"Reduce{_name}")(_reduce)


def _softmax(op: str) -> Lowering:
    def lower(b: Builder, n: Call) -> Ref:
        x = b.array(n.inputs[0])
        axis = n.attrs.get("axis", -1 if n.version >= 13 else 1)
        rank = b.info(n.inputs[0]).rank
        last = axis == -1 or (rank is not None and axis == rank - 1)
        if n.version < 13 and not last:
            return b.emit(f"onnx.{n.op}Flat", x, axis=axis)
        if n.op == "Hardmax":
            return b.emit("onnx.Hardmax", x, axis=axis)
        return b.emit(op, x, axis)

    return lower


lowers("Softmax")(_softmax("aten.softmax.int"))
lowers("LogSoftmax")(_softmax("aten.log_softmax.int"))
lowers("Hardmax")(_softmax("onnx.Hardmax"))


for _name in ("CumSum", "CumProd"):
    lowers(_name)(with_static(1))
