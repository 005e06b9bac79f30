"""Quantizes weights and activations of graphs to 8 bits with ONNX Runtime's tools, as passes.

    INT8_DYNAMIC    weights int8; activations are rounded as they come, each tensor with a scale of its own
    INT8_QDQ        weights int8; activations with scales from samples, as QDQ nodes or as operators on integers

With INT8_QDQ, a product whose activations 8 bits do not hold (after a GELU, a few are a hundred times as large as the
others) keeps them in floats, and has its weights alone in 8 bits.

The weights' codes are edgekit's reference's (``onnx:int8-sym-channel`` and so on). Before, matrices that the graph
transposes, or multiplies with FusedMatMul, become constants of a MatMul, which is what the tools look for.

Source: onnxruntime 1.32.0, ``quantization/quantize.py`` and ``calibrate.py``.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgekit.artifact import Artifact
from edgekit.errors import UsageError
from edgekit.evaluation.samples import CONTEXT, Feed, Samples
from edgekit.precision import find_precision
from edgekit.reference.onnx import encode
from edgekit.typing import Array
from edgekit_olive.folding import drop_unused, folded
from edgekit_olive.library import onnx, onnxruntime
from edgekit_olive.results import one_of, read_samples, refuse_bad_cosine
from edgekit_olive.rewriting import rewritten

#: Operators that are quantized by default: those with matrices, and the embedding.
OPERATORS = ("MatMul", "Gemm", "Conv", "Gather")
#: Names of calibration methods -> onnxruntime's.
METHODS = {"minmax": "MinMax", "entropy": "Entropy", "percentile": "Percentile"}
#: How a static graph is written: QuantizeLinear and DequantizeLinear around operators, or operators on integers.
LAYOUTS = {"qdq": "QDQ", "operator": "QOperator"}
TYPES = {"int8": "QInt8", "uint8": "QUInt8"}
_MOST = 128
_NOTHING = "it has no operators of these types with constant weights"


class Dynamic:
    """Dynamic quantization; see `edgekit.pipeline.passes.Pass`."""

    name = "INT8_DYNAMIC"

    def run(
        self,
        source: Artifact,
        to: Path,
        *,
        per_channel: bool = False,
        reduce_range: bool = False,
        weights: str = "int8",
        operators: Sequence[str] = OPERATORS,
        ignored: Sequence[str] = (),
        least_cosine: float = 0.5,
    ) -> Artifact:
        """Write the graph with weights in 8 bits, whose activations are rounded as they come.

        Args:
            source: an ONNX model.
            to: the directory to write.
            per_channel: whether each column of a matrix has a scale of its own; else each matrix.
            reduce_range: whether codes have 7 bits, for x86 processors without VNNI.
            weights: ``int8`` (symmetric) or ``uint8`` (with zero points).
            operators: types of the operators to quantize.
            ignored: names of nodes to leave in floats.
            least_cosine: a result whose outputs have a lower cosine with the source's is refused; -1 for none.

        Returns:
            The result. Its ``manifest.quality`` has ``output_error``, ``cosine`` and ``top1`` (see
            `edgekit.evaluation.outputs`), ``size_ratio``, ``operators_before`` and ``operators``.

        Raises:
            UsageError: an option is out of range.
            UnsupportedModelError: there is nothing to quantize, or ONNX Runtime's tools fail on the graph.
            NonFiniteError: the result computes values that are not finite.
            QualityGateError: the cosine is below `least_cosine`.
            ResourceError: the target cannot be written; it is left as it was.
        """
        one_of("weights", weights, TYPES)
        refuse_bad_cosine(least_cosine)
        options = {"per_channel": per_channel, "reduce_range": reduce_range}

        def quantize(graph: Path, result: Path) -> None:
            tools = importlib.import_module("onnxruntime.quantization")
            tools.quantize_dynamic(
                graph, result, weight_type=tools.QuantType[TYPES[weights]], op_types_to_quantize=list(operators),
                nodes_to_exclude=list(ignored), extra_options=_extra(), **options,
            )  # fmt: skip

        words = f"{self.name} weights={weights} " + " ".join(f"{key}={value}" for key, value in options.items())
        return rewritten(source, to, words, quantize, least_cosine, prepare=folded, unchanged=_NOTHING)


class Static:
    """Static quantization; see `edgekit.pipeline.passes.Pass`."""

    name = "INT8_QDQ"

    def run(
        self,
        source: Artifact,
        to: Path,
        *,
        calibration: Samples | None = None,
        context: int = CONTEXT,
        samples: int = _MOST,
        layout: str = "qdq",
        method: str = "minmax",
        per_channel: bool = True,
        reduce_range: bool = False,
        weights: str = "int8",
        activations: str = "uint8",
        operators: Sequence[str] = OPERATORS,
        ignored: Sequence[str] = (),
        largest_error: float = 0.02,
        least_cosine: float = 0.5,
    ) -> Artifact:
        """Write the graph with weights and activations in 8 bits.

        Args:
            source: an ONNX model.
            to: the directory to write.
            calibration: samples of the input; see `edgekit.evaluation.samples`.
            context: number of tokens in a sample, if `calibration` is a text.
            samples: largest number of samples.
            layout: ``qdq`` or ``operator``.
            method: how the ranges of activations are found: ``minmax``, ``entropy`` or ``percentile``.
            per_channel: whether each column of a matrix has a scale of its own; else each matrix.
            reduce_range: whether codes have 7 bits, for x86 processors without VNNI.
            weights: ``int8`` (symmetric) or ``uint8`` (with zero points).
            activations: ``uint8`` or ``int8``.
            operators: types of the operators to quantize.
            ignored: names of nodes to leave in floats.
            largest_error: root mean square of the error, relative to the activations', that rounding may have at the
                input of a MatMul; above it the input stays in floats. 0 for all, 1 for none.
            least_cosine: see `Dynamic.run`, which also says what is returned and raised.

        Raises:
            UsageError, ShapeError, NonFiniteError: an option or a sample is invalid; raised before any work.
        """
        if calibration is None:
            raise UsageError("INT8_QDQ is calibrated on samples of the model's input; give calibration=")
        for name, value, allowed in (
            ("layout", layout, LAYOUTS),
            ("method", method, METHODS),
            ("weights", weights, TYPES),
            ("activations", activations, TYPES),
        ):
            one_of(name, value, allowed)
        refuse_bad_cosine(least_cosine)
        if isinstance(largest_error, bool) or not isinstance(largest_error, int | float) or not 0 <= largest_error <= 1:
            raise UsageError(f"largest_error={largest_error!r:.80}; choose a number between 0 and 1")
        feeds = read_samples(source, calibration, samples, context)
        options = {"per_channel": per_channel, "reduce_range": reduce_range}

        def quantize(graph: Path, result: Path) -> None:
            tools = importlib.import_module("onnxruntime.quantization")
            errors = rounding_errors(graph, feeds) if largest_error < 1 and "MatMul" in operators else {}
            apart = [name for name, error in errors.items() if error > largest_error and name not in ignored]
            tools.quantize_static(
                graph, result, _Feeds(feeds), quant_format=tools.QuantFormat[LAYOUTS[layout]],
                calibrate_method=tools.CalibrationMethod[METHODS[method]], op_types_to_quantize=list(operators),
                weight_type=tools.QuantType[TYPES[weights]], activation_type=tools.QuantType[TYPES[activations]],
                nodes_to_exclude=[*ignored, *apart], extra_options=_extra(), **options,
            )  # fmt: skip
            _weights_alone(result, apart, f"{weights}-{'sym' if weights == 'int8' else 'asym'}", per_channel)

        words = f"{self.name} {layout} {method} weights={weights} activations={activations} " + " ".join(
            f"{key}={value}" for key, value in options.items()
        )
        return rewritten(source, to, words, quantize, least_cosine, prepare=folded, unchanged=_NOTHING)


def _extra() -> dict[str, Any]:
    """Return the tools' further options: only constant matrices; float32 where shape inference knows no type.

    It knows none behind an operator of ONNX Runtime's own.
    """
    return {"MatMulConstBOnly": True, "DefaultTensorType": onnx().TensorProto.FLOAT}


def rounding_errors(graph: Path, feeds: Sequence[Feed]) -> dict[str, float]:
    """Return the error of rounding to 8 bits at the input of each MatMul with constant weights, by the node's name.

    Args:
        graph: a graph with its weights inside.
        feeds: samples of the graph's inputs.

    Returns:
        Root mean square of the error with one scale for the range over all samples, relative to the input's: uniform
        rounding to a step s has the variance s²/12.
    """
    proto = onnx().load(str(graph))
    constants = {tensor.name for tensor in proto.graph.initializer}
    products = {n.name: n.input[0] for n in proto.graph.node if n.op_type == "MatMul" and n.input[1] in constants}
    watched = sorted(set(products.values()))
    del proto.graph.output[:]
    proto.graph.output.extend(onnx().ValueInfoProto(name=name) for name in watched)
    session = onnxruntime().InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    found = [session.run(watched, _fed(session, feed)) for feed in feeds]
    errors = {name: _rounding_error([outputs[at] for outputs in found]) for at, name in enumerate(watched)}
    return {node: errors[name] for node, name in products.items()}


def _fed(session: Any, feed: Feed) -> Feed:
    """Return the inputs that a graph has left."""
    return {port.name: feed[port.name] for port in session.get_inputs()}


def _rounding_error(values: Sequence[Array]) -> float:
    low, high = min(0.0, *(float(v.min()) for v in values)), max(0.0, *(float(v.max()) for v in values))
    square = sum(float(np.square(v, dtype=np.float64).sum()) for v in values) / sum(v.size for v in values)
    return (high - low) / 255 / float(np.sqrt(12 * square)) if square else 0.0


def _weights_alone(graph: Path, nodes: Sequence[str], grid: str, per_channel: bool) -> None:
    """Store the constant matrices of MatMul nodes in 8 bits, with the reference's codes, before a DequantizeLinear."""
    if not nodes:
        return
    library, precision = onnx(), find_precision(f"onnx:{grid}-{'channel' if per_channel else 'tensor'}")
    proto = library.load(str(graph))
    constants = {tensor.name: tensor for tensor in proto.graph.initializer}
    added = []
    for node in proto.graph.node:
        if node.name in nodes and len(constants[node.input[1]].dims) == 2:
            name = node.input[1]
            rows = np.ascontiguousarray(library.numpy_helper.to_array(constants[name]).T)
            parts = encode(rows, precision)
            arrays = {"quantized": parts["codes"].T, "scale": parts["scale"], "zero_point": parts["zero_point"]}
            names = [f"{name}_{key}" for key in arrays]
            for key, array in arrays.items():
                stored = library.numpy_helper.from_array(np.ascontiguousarray(array), f"{name}_{key}")
                proto.graph.initializer.append(stored)
            node.input[1] = f"{name}_decoded"
            axis = {"axis": 1} if per_channel else {}
            added.append(library.helper.make_node("DequantizeLinear", names, [node.input[1]], f"{name}_decode", **axis))
    for node in reversed(added):
        proto.graph.node.insert(0, node)
    drop_unused(proto.graph)
    library.save_model(proto, str(graph))


class _Feeds:
    """Samples as onnxruntime's calibration reads them: one after another, then None."""

    def __init__(self, feeds: Sequence[Feed]) -> None:
        self._feeds = feeds
        self.rewind()

    def get_next(self) -> Feed | None:
        return next(self._left, None)

    def rewind(self) -> None:
        self._left: Iterator[Feed] = iter(self._feeds)

    def __len__(self) -> int:
        return len(self._feeds)


__all__ = ["LAYOUTS", "METHODS", "OPERATORS", "TYPES", "Dynamic", "Static", "rounding_errors"]
