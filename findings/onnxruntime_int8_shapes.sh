#!/usr/bin/env bash
# Expected: onnxruntime's dynamic 8-bit quantisation takes any valid ONNX file, also one whose value_info names the
#   shapes of its weights, as files written by torch.onnx.export do. value_info is optional and may name any value.
# Happens: with onnxruntime 1.31.1 (1.23.0 does the same) a Gemm with transB = 1 loses its transposition: the weight
#   is stored transposed under its old name, and the old shape of value_info stays beside it. The shape inference that
#   follows refuses the contradiction, which names two numbers and no cure. Version 1.32.0 takes the file.
# Why it matters: every classifier and every embedding head that torch exports ends in such a Gemm. Taking the
#   entries of the weights out of graph.value_info before quantising is all that is needed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet onnxruntime==1.31.1 onnx==1.20.0 numpy==2.3.5
cd "$folder"
venv/bin/python - <<'PYTHON'
import sys

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic


def write(path, named):
    weight = numpy_helper.from_array(np.ones((8, 96), np.float32), "weight")
    bias = numpy_helper.from_array(np.ones(8, np.float32), "bias")
    graph = helper.make_graph(
        [helper.make_node("Gemm", ["x", "weight", "bias"], ["y"], transB=1)],
        "linear",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 96])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 8])],
        [weight, bias],
        value_info=[helper.make_tensor_value_info("weight", TensorProto.FLOAT, [8, 96])] if named else [],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)


def outcome(named):
    write("dense.onnx", named)
    try:
        quantize_dynamic("dense.onnx", "small.onnx", weight_type=QuantType.QUInt8)
    except Exception as error:
        return f"{type(error).__name__}: {str(error).strip().splitlines()[-1][:90]}"
    return "quantised"


without, with_shape = outcome(named=False), outcome(named=True)
print(f"onnxruntime {onnxruntime.__version__}, both files pass onnx.checker with full_check:")
print(f"  weight not named in value_info: {without}")
print(f"  weight named in value_info:     {with_shape}")
sys.exit(not (without == "quantised" and "ShapeInferenceError" in with_shape))
PYTHON
