"""The sizes of tensors in an ONNX directory, and the precisions that a fit may choose for them."""

from __future__ import annotations

import attrs

from edgekit.artifact import Layout
from edgekit.files.guard import ARTIFACT_FILES
from edgekit.formats import small_files
from edgekit.manifest import Manifest
from edgekit.precision import Precision, find_precision
from edgekit.recipe import Plan, Slot
from edgekit_olive import dialect, genai
from edgekit_olive.elements import can_hold
from edgekit_olive.writer import aligned, data_bytes, graph_of, planned_offsets

LADDER = (
    "onnx:int2-asym-g32",
    "onnx:int2-asym-g16",
    "onnx:int4-sym-g128",
    "onnx:int4-sym-g64",
    "onnx:int4-sym-g32",
    "onnx:int4-asym-g32",
    "onnx:int4-asym-g16",
    "onnx:int8-sym-g32",
    "float:F16",
)
_MANIFEST = ARTIFACT_FILES[-1]


@attrs.frozen
class OnnxSizes:
    """The sizes of a layout's tensors as an ONNX directory; see `edgekit.artifact.Sizes`."""

    layout: Layout
    fused: bool

    def candidates(self, slot: Slot) -> tuple[Precision, ...]:
        """Return the precisions of MatMulNBits with 2 to 8 bits, and F16."""
        return tuple(p for p in map(find_precision, LADDER) if self._holds(slot, p))

    def stored(self, slot: Slot, precision: Precision) -> int | None:
        """Return the bytes of a tensor's constants beside the graph; None if a graph cannot store it so."""
        if not self._holds(slot, precision):
            return None
        return sum(aligned(part.nbytes) for part in dialect.stored(slot, precision, self.fused).values())

    def whole(self, plan: Plan) -> int:
        """Return the bytes of a directory: constants, graph, configuration and tokenizer."""
        parts = [dialect.stored(s, a.precision, self.fused) for s, a in zip(self.layout.slots, plan, strict=True)]
        others = dict(small_files(self.layout, plan, Manifest(sources={}, recipe="", tensors={}, versions={})))
        others.pop(_MANIFEST, None)
        graph = graph_of(self.layout, plan, parts, planned_offsets(parts), self.fused)
        beside = len(genai.config_of(self.layout)) if self.fused and genai.runs(self.layout) else 0
        return data_bytes(parts) + len(graph) + beside + sum(map(len, others.values()))

    def ties(self) -> tuple[tuple[str, ...], ...]:
        """Return no ties: each weight has its own operator, so that each tensor is free."""
        return ()

    def _holds(self, slot: Slot, precision: Precision) -> bool:
        fault = "" if self.fused else dialect.portable_fault(precision, slot.shape)
        return can_hold(precision, slot.shape) and not fault


__all__ = ["LADDER", "OnnxSizes"]
