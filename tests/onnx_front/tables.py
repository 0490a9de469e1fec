"""Which test holds each ``onnx.*`` rule: a node case of onnx's own, or a call given here.

``NODES``: rule -> case of onnx.backend.test. ``CALLS``: rule -> (operator, opset, inputs,
attributes) of a model of one node. ``HOST``: rule -> calls of the numpy rule itself.
"""

import numpy as np

from tests.aten.harness import rand

i64 = lambda *values: np.array(values, np.int64)
f32 = lambda *values: np.array(values, np.float32)

NODES = {
    "ai.onnx.ml.ArrayFeatureExtractor": "ai_onnx_ml_array_feature_extractor",
    "ai.onnx.ml.Binarizer": "ai_onnx_ml_binarizer",
    "onnx.ArgMax": "argmax_no_keepdims_example",
    "onnx.ArgMin": "argmin_no_keepdims_example",
    "onnx.AveragePool": "averagepool_2d_precomputed_same_upper",
    "onnx.BatchNormalizationTraining": "batchnorm_example_training_mode",
    "onnx.Bernoulli": "bernoulli",
    "onnx.BitCast": "bitcast_float32_to_int32",
    "onnx.BitShift": "bitshift_right_uint8",
    "onnx.Cast": "affine_grid_2d_expanded",
    "onnx.Col2Im": "col2im",
    "onnx.ConstantOfShape": "attention_bidirectional_window_expanded",
    "onnx.ConvInteger": "convinteger_without_padding",
    "onnx.ConvTranspose": "convtranspose_output_shape",
    "onnx.CumProd": "cumprod_1d",
    "onnx.CumSum": "cumsum_1d",
    "onnx.DFT": "dft_opset19",
    "onnx.DeformConv": "basic_deform_conv_with_padding",
    "onnx.DepthToSpace": "depthtospace_example",
    "onnx.DequantizeLinear": "dequantizelinear",
    "onnx.Det": "det_2d",
    "onnx.DropoutTraining": "training_dropout_default",
    "onnx.DynamicQuantizeLinear": "dynamicquantizelinear",
    "onnx.Einsum": "einsum_transpose",
    "onnx.Expand": "attention_4d_diff_heads_mask4d_padded_kv_expanded",
    "onnx.EyeLike": "eyelike_without_dtype",
    "onnx.Flatten": "layer_normalization_4d_axis0_expanded",
    "onnx.GRU": "gru_defaults",
    "onnx.Gather": "rotary_embedding_expanded",
    "onnx.GatherElements": "affine_grid_2d_expanded",
    "onnx.GatherND": "gathernd_example_int32",
    "onnx.Gemm": "gemm_default_zero_bias",
    "onnx.HardSigmoid": "hardsigmoid_example",
    "onnx.Hardmax": "hardmax_example",
    "onnx.IsInf": "isinf",
    "onnx.LRN": "lrn",
    "onnx.LSTM": "lstm_defaults",
    "onnx.LayerNormalization": "layer_normalization_4d_axis0",
    "onnx.Loop": "loop11",
    "onnx.LpNormalization": "l2normalization_axis_0",
    "onnx.LpPool": "lppool_1d_default",
    "onnx.MatMulInteger": "matmulinteger",
    "onnx.MaxPool": "maxpool_with_argmax_2d_precomputed_pads",
    "onnx.MaxUnpool": "maxunpool_export_without_output_shape",
    "onnx.Mean": "mean_example",
    "onnx.OneHot": "onehot_without_axis",
    "onnx.OptionalGetElement": "optional_get_element_optional_tensor",
    "onnx.PRelu": "prelu_example",
    "onnx.Pad": "attention_4d_diff_heads_mask4d_padded_kv_expanded",
    "onnx.QLinearConv": "qlinearconv",
    "onnx.QLinearMatMul": "qlinearmatmul_2D_uint8_float32",
    "onnx.QuantizeLinear": "dynamicquantizelinear_expanded",
    "onnx.RNN": "simple_rnn_defaults",
    "onnx.RandomUniformLike": "bernoulli_expanded",
    "onnx.ReduceL1": "reduce_l1_do_not_keepdims_example",
    "onnx.ReduceL2": "reduce_l2_do_not_keepdims_example",
    "onnx.ReduceLogSum": "reduce_log_sum_desc_axes",
    "onnx.ReduceLogSumExp": "reduce_log_sum_exp_do_not_keepdims_example",
    "onnx.ReduceProd": "reduce_prod_do_not_keepdims_example",
    "onnx.ReduceSum": "reduce_l1_empty_set_expanded",
    "onnx.ReduceSumSquare": "reduce_sum_square_do_not_keepdims_example",
    "onnx.Reshape": "affine_grid_2d_expanded",
    "onnx.Resize": "resize_upsample_scales_nearest",
    "onnx.ReverseSequence": "reversesequence_time",
    "onnx.RoiAlign": "roialign_aligned_false",
    "onnx.STFT": "stft",
    "onnx.Scan": "linear_attention_linear_expanded",
    "onnx.Scatter": "scatter_without_axis",
    "onnx.ScatterElements": "scatter_elements_without_axis",
    "onnx.ScatterND": "scatternd",
    "onnx.SequenceAt": "sequence_map_identity_1_sequence_expanded",
    "onnx.SequenceConstruct": "sequence_map_identity_1_sequence_expanded",
    "onnx.SequenceEmpty": "sequence_map_identity_1_sequence_expanded",
    "onnx.SequenceInsert": "sequence_map_identity_1_sequence_expanded",
    "onnx.Shrink": "shrink_hard",
    "onnx.Slice": "affine_grid_2d_expanded",
    "onnx.Softsign": "softsign_example",
    "onnx.SpaceToDepth": "spacetodepth",
    "onnx.Split": "affine_grid_2d_expanded",
    "onnx.SplitToSequence": "split_to_sequence_1",
    "onnx.Squeeze": "affine_grid_2d_expanded",
    "onnx.Swish": "swiglu_expanded",
    "onnx.TensorScatter": "tensorscatter",
    "onnx.ThresholdedRelu": "thresholdedrelu_example",
    "onnx.Tile": "tile",
    "onnx.TopK": "top_k",
    "onnx.Transpose": "affine_grid_2d_expanded",
    "onnx.Trilu": "triu",
    "onnx.Unsqueeze": "affine_grid_2d_expanded",
    "onnx.constant": "affine_grid_2d_expanded",
    "onnx.host.Add": "loop11",
    "onnx.host.And": "attention_4d_diff_heads_mask4d_padded_kv_expanded",
    "onnx.host.Cast": "attention_4d_diff_heads_mask4d_padded_kv_expanded",
    "onnx.host.CastLike": "attention_bidirectional_window_expanded",
    "onnx.host.Concat": "attention_4d_diff_heads_mask4d_padded_kv_expanded",
    "onnx.host.ConstantOfShape": "affine_grid_2d_expanded",
    "onnx.host.Div": "attention_4d_diff_heads_mask4d_padded_kv_expanded",
    "onnx.host.Equal": "attention_4d_diff_heads_mask4d_padded_kv_expanded",
    "onnx.host.Gather": "attention_4d_causal_expanded",
    "onnx.host.Less": "attention_4d_causal_expanded",
    "onnx.host.LessOrEqual": "attention_bidirectional_window_expanded",
    "onnx.host.Mod": "attention_4d_diff_heads_mask4d_padded_kv_expanded",
    "onnx.host.Neg": "attention_bidirectional_window_expanded",
    "onnx.host.Not": "attention_4d_diff_heads_mask4d_padded_kv_expanded",
    "onnx.host.OptionalHasElement": "optional_has_element_tensor_input",
    "onnx.host.Range": "attention_bidirectional_window_expanded",
    "onnx.host.SequenceLength": "sequence_map_identity_1_sequence_expanded",
    "onnx.host.Shape": "affine_grid_2d_expanded",
    "onnx.host.Slice": "loop11",
    "onnx.host.Sqrt": "attention_4d_diff_heads_mask4d_padded_kv_expanded",
    "onnx.host.Squeeze": "attention_bidirectional_window_expanded",
    "onnx.host.Sub": "attention_4d_diff_heads_mask4d_padded_kv_expanded",
    "onnx.host.Unsqueeze": "loop11",
    "onnx.host.Where": "attention_4d_diff_heads_mask4d_padded_kv_expanded",
    "onnx.to_array": "affine_grid_2d_expanded",
}

X = rand(2, 3, 4)
IMAGE = rand(1, 2, 7, 6)

CALLS = {
    "onnx.BatchedScan": None,  # test_convert.py
    "onnx.CastLike": None,  # test_rules.py: the dtype it takes over is known wherever it is typed
    "onnx.ConcatFromSequence": None,  # test_convert.py
    "onnx.If": None,  # test_convert.py
    "onnx.Multinomial": None,  # test_convert.py
    "onnx.Optional": None,  # test_convert.py
    "onnx.RandomNormal": None,  # test_convert.py
    "onnx.RandomNormalLike": None,
    "onnx.RandomUniform": None,
    "onnx.SequenceErase": None,  # test_convert.py
    "onnx.MelWeightMatrix": None,  # its operands are static: onnx.host.MelWeightMatrix
    "onnx.Range": None,  # its operands are static: onnx.host.Range, and test_rules.py
    "ai.onnx.ml.LinearRegressor": (
        "ai.onnx.ml.LinearRegressor", 1, [rand(4, 3)],
        {"coefficients": [0.5, -1.0, 2.0, 1.0, 0.25, -3.0], "intercepts": [0.5, 1.5],
         "targets": 2},
    ),
    "ai.onnx.ml.Normalizer": ("ai.onnx.ml.Normalizer", 1, [rand(4, 3)], {"norm": "L2"}),
    "ai.onnx.ml.Scaler": (
        "ai.onnx.ml.Scaler", 1, [rand(4, 3)],
        {"offset": [0.5, 1.0, -1.0], "scale": [2.0, 3.0, 0.5]},
    ),
    "onnx.Conv": (
        "Conv", 13, [IMAGE, rand(5, 2, 3, 2)], {"auto_pad": "SAME_LOWER", "strides": [2, 2]},
    ),
    "onnx.Div": ("Div", 13, [i64(-7, 7, -6), i64(2, -2, 4)], {}),
    "onnx.GlobalLpPool": ("GlobalLpPool", 13, [IMAGE], {"p": 3}),
    "onnx.HardmaxFlat": ("Hardmax", 11, [X], {"axis": 1}),
    "onnx.LogSoftmaxFlat": ("LogSoftmax", 11, [X], {"axis": 1}),
    "onnx.SoftmaxFlat": ("Softmax", 11, [X], {"axis": 0}),
    "onnx.Mod": ("Mod", 13, [rand(3, 4), rand(4, low=0.5)], {"fmod": 1}),
    "onnx.Pow": ("Pow", 15, [i64(2, -3, 1, -1), i64(5, 3, -2, -3)], {}),
    "onnx.ReduceMax": ("ReduceMax", 18, [i64(3, 5, -1).reshape(1, 3)], {"keepdims": 0}),
    "onnx.ReduceMin": ("ReduceMin", 18, [i64(3, 5, -1).reshape(1, 3)], {"keepdims": 0}),
    "onnx.ReduceMean": ("ReduceMean", 13, [rand(2, 3, dtype="int32")], {"axes": [1]}),
}  # fmt: skip

A, B = f32(1.5, -2.5, 3.0), f32(0.5, 2.0, -4.0)
TRUE = np.array([True, False, True])

HOST = {
    "Abs": ([A], {}), "Ceil": ([A], {}), "Floor": ([A], {}), "Round": ([A], {}), "Sign": ([A], {}),
    "Exp": ([A], {}), "Log": ([f32(0.5, 2.0)], {}), "Reciprocal": ([A], {}), "Relu": ([A], {}),
    "Greater": ([A, B], {}), "GreaterOrEqual": ([A, A], {}), "Max": ([A, B], {}),
    "Min": ([A, B], {}), "Mul": ([A, B], {}), "Or": ([TRUE, ~TRUE], {}), "Xor": ([TRUE, TRUE], {}),
    "Pow": ([i64(2, 3), i64(3, 2)], {}), "Size": ([X], {}),
    "CumSum": ([X, i64(1).reshape(())], {"exclusive": 1, "reverse": 1}),
    "Expand": ([f32(1.0, 2.0).reshape(2, 1), i64(3, 1, 4)], {}),
    "Flatten": ([X], {"axis": 2}), "NonZero": ([i64(0, 3, 0, 1).reshape(2, 2)], {}),
    "ReduceMax": ([X, i64(1)], {}), "ReduceMin": ([X, i64(0, 2)], {"keepdims": 0}),
    "ReduceProd": ([X, i64(-1)], {}), "ReduceSum": ([X, i64(0)], {}),
    "Reshape": ([X, i64(0, -1)], {}), "Tile": ([A, i64(3)], {}),
    "Transpose": ([X], {"perm": [2, 0, 1]}),
    "ScatterND": ([A, i64(2, 0).reshape(2, 1), f32(7.0, 8.0)], {}),
    "Split": ([A, i64(1, 2)], {}), "MelWeightMatrix": (
        [i64(8).reshape(()), i64(32).reshape(()), i64(8192).reshape(()), np.float32(0),
         np.float32(4096)], {},
    ),
}  # fmt: skip
