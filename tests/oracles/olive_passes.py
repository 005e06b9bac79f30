"""Olive's passes that the tests run: on what, with which options, and how far the outputs may move.

A bound is on the root mean square of the difference, relative to that of the source's outputs, for four seeded inputs.
"""

from __future__ import annotations

from typing import Any, NamedTuple


class Case(NamedTuple):
    """A pass on a source, with options; `error` is None where the outputs cannot be compared."""

    source: str
    options: dict[str, Any]
    error: float | None
    text: bool = False


#: Rounding of float32; of half precision; of 8 bits, activations too; of 4 bits.
SAME, HALF, EIGHT, FOUR = 1e-5, 5e-3, 0.2, 0.5
#: Static quantization of every operator, one scale a tensor: what Olive does by default moves the outputs by half. (Of the
#: products alone it fails, with opset 21, on those of two activations.)
STATIC = {"context": 8, "samples": 4}
CASES = {
    # Graphs that compute the same.
    "AddOliveMetadata": Case("graph", {"graph_name": "sample"}, SAME),
    "DynamicToFixedShape": Case(
        "graph", {"dim_param": ["batch", "new", "total", "past"], "dim_value": [1, 8, 8, 0]}, SAME
    ),
    "OnnxOpVersionConversion": Case("graph", {"target_opset": 22}, SAME),
    "OnnxPeepholeOptimizer": Case("graph", {}, SAME),
    "OnnxQuantizationPreprocess": Case("graph", {}, SAME),
    "OnnxScriptFusion": Case("graph", {}, SAME),
    "OrtSessionParamsTuning": Case("graph", {"cpu_cores": 1}, SAME, text=True),
    "OrtTransformersOptimization": Case("encoder", {"model_type": "bert", "num_heads": 4, "hidden_size": 64}, SAME),
    # Other names of inputs: it is computed with, not compared.
    "GraphSurgeries": Case(
        "graph", {"surgeries": [{"surgeon": "RenameInputs", "old_names": ["input_ids"], "new_names": ["tokens"]}]}, None
    ),
    # Half precision.
    "OnnxFloatToFloat16": Case("graph", {}, HALF),
    "OnnxIODataTypeConverter": Case("graph", {"source_dtype": 1, "target_dtype": 10, "name_pattern": "logits"}, HALF),
    "OrtMixedPrecision": Case("graph", {}, HALF),
    "OpenVINOConversion": Case("graph", {}, HALF),
    # 8 bits.
    "OnnxDynamicQuantization": Case("graph", {}, EIGHT),
    "OnnxQuantization": Case("graph", {"quant_mode": "static", **STATIC}, 0.6, text=True),
    "OnnxStaticQuantization": Case("graph", STATIC, 0.6, text=True),
    # 4 bits.
    # ONNX Runtime fuses the nodes again, and rounds activations to 8 bits then.
    "MatMulNBitsToQDQ": Case("blocks", {}, 0.05),
    "OnnxBlockWiseRtnQuantization": Case("folded", {}, FOUR),
    "OnnxBnb4Quantization": Case("folded", {"precision": "nf4"}, FOUR),
    "OnnxKQuantQuantization": Case("folded", {}, FOUR),
    # On torch modules.
    "AutoClip": Case("hf", {"group_size": 32, "n_grid": 2, "n_sample_token": 16}, FOUR, text=True),
    "CaptureLayerAnnotations": Case("hf", {"layer_annotations": {"a": ["q_proj"]}}, SAME),
    "CaptureSplitInfo": Case("hf", {"num_splits": 2}, SAME),
    "Gptq": Case("hf", {"group_size": 32}, FOUR, text=True),
    "KQuant": Case("hf", {"group_size": 32}, FOUR),
    "QuaRot": Case("hf", {}, 0.05),
    "Rtn": Case("hf", {"group_size": 32}, FOUR),
    "SelectiveMixedPrecision": Case("hf", {"algorithm": "k_quant_mixed"}, SAME),
}
#: Passes that train an adapter, which `test_olive_adapters.py` runs.
TUNED = ("LoRA", "QLoRA", "DoRA", "LoHa", "LoKr")
#: Passes on adapters, which it runs too.
ADAPTERS = ("ExtractAdapters", "MergeAdapterWeights")
#: Passes that may run here, and were not run by the tests: why.
LEFT = {
    "InputNCHWtoNHWC": "it takes the images of a vision model",
    "MixedPrecisionOverrides": "it writes overrides for Qualcomm's quantizer, which is not here",
    "OnnxHqqQuantization": "its weights compute noise in olive-ai 0.13.0; the result is refused, which is tested",
    "OnnxDiscrepancyCheck": "it writes no model: it compares one with torch, as edgekit compare does",
    "OpenVINOIoUpdate": "it renames what OpenVINOConversion leaves unnamed",
    "OpenVINOQuantization": "openvino-quantize of edgekit-openvino does the same",
    "OpenVINOQuantizationWithAccuracy": "openvino-quantize of edgekit-openvino does the same",
    "OpenVINOWeightCompression": "openvino-compress of edgekit-openvino does the same",
    "QNNPreprocess": "it prepares for Qualcomm's NPU, with its provider",
    "SplitModel": "its result is of several parts",
    "VitisAIAddMetaData": "it names attributes that AMD's quantizer records, which is not here",
}
