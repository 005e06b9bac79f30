"""Optimizes graphs with ONNX Runtime's tools, as passes: folding, fusion, and floats of 16 bits.

    ONNX_OPTIMIZE    folds constants, removes what changes nothing, and with level=extended fuses operators for CPUs
    ONNX_FLOAT16     weights and operators in float16, with inputs, outputs and chosen operators in float32

The manifest of the result has the operators before and after, and the difference of the outputs.

Source: onnxruntime 1.32.0, its ``GraphOptimizationLevel`` and ``transformers/float16.py``.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path

from edgekit.artifact import Artifact
from edgekit_olive.library import FATAL_ONLY, onnx, onnxruntime
from edgekit_olive.results import one_of, refuse_bad_cosine
from edgekit_olive.rewriting import rewritten

#: Levels of optimization -> onnxruntime's. Its highest, which depends on the processor, is for sessions alone.
LEVELS = {"basic": "ORT_ENABLE_BASIC", "extended": "ORT_ENABLE_EXTENDED"}


class Optimize:
    """Folding and fusion; see `edgekit.pipeline.passes.Pass`."""

    name = "ONNX_OPTIMIZE"

    def run(self, source: Artifact, to: Path, *, level: str = "extended", least_cosine: float = 0.999) -> Artifact:
        """Write the graph as ONNX Runtime optimizes it before it runs.

        Args:
            source: an ONNX model.
            to: the directory to write.
            level: ``basic`` (standard operators stay standard) or ``extended`` (fused ones of ONNX Runtime).
            least_cosine: a result whose outputs have a lower cosine with the source's is refused; -1 for none.

        Returns:
            The result. Its ``manifest.quality`` has ``output_error``, ``cosine`` and ``top1`` (see
            `edgekit.evaluation.outputs`), ``size_ratio``, ``operators_before`` and ``operators``.

        Raises:
            UsageError: an option is out of range.
            UnsupportedModelError: ONNX Runtime refuses the graph, or it is larger than a protobuf.
            NonFiniteError: the result computes values that are not finite.
            QualityGateError: the cosine is below `least_cosine`.
            ResourceError: the target cannot be written; it is left as it was.
        """
        one_of("level", level, LEVELS)
        refuse_bad_cosine(least_cosine)

        def optimize(graph: Path, result: Path) -> None:
            library = onnxruntime()
            options = library.SessionOptions()
            options.log_severity_level = FATAL_ONLY
            options.graph_optimization_level = getattr(library.GraphOptimizationLevel, LEVELS[level])
            options.optimized_model_filepath = str(result)
            library.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])

        return rewritten(source, to, f"{self.name} level={level}", optimize, least_cosine)


class Float16:
    """Floats of 16 bits; see `edgekit.pipeline.passes.Pass`."""

    name = "ONNX_FLOAT16"

    def run(
        self,
        source: Artifact,
        to: Path,
        *,
        keep_ports: bool = True,
        operators: Sequence[str] = (),
        ignored: Sequence[str] = (),
        least_cosine: float = 0.99,
    ) -> Artifact:
        """Write the graph in float16; what is kept in float32 has casts around it.

        Args:
            source: an ONNX model.
            to: the directory to write.
            keep_ports: whether the graph's inputs and outputs stay float32.
            operators: types of operators to keep in float32.
            ignored: names of nodes to keep in float32.
            least_cosine: see `Optimize.run`, which also says what is returned and raised.
        """
        refuse_bad_cosine(least_cosine)

        def narrow(graph: Path, result: Path) -> None:
            tool = importlib.import_module("onnxruntime.transformers.float16")
            kept = [*tool.DEFAULT_OP_BLOCK_LIST, *operators]
            made = tool.convert_float_to_float16(
                onnx().load(str(graph)), keep_io_types=keep_ports, op_block_list=kept, node_block_list=list(ignored)
            )
            onnx().save_model(made, str(result))

        words = f"{self.name} keep_ports={keep_ports} operators={','.join(operators)} ignored={','.join(ignored)}"
        return rewritten(source, to, words, narrow, least_cosine, unchanged="it has no floats of 32 bits")


__all__ = ["LEVELS", "Float16", "Optimize"]
