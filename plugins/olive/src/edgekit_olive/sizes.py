"""What tensors take in an ONNX directory, and which precisions are worth trying for them."""

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
    """Sizes in the directory of a layout; see `edgekit.artifact.Sizes`."""

    layout: Layout
    fused: bool

    def candidates(self, slot: Slot) -> tuple[Precision, ...]:
        """MatMulNBits of 2 to 8 bits, and F16."""
        return tuple(p for p in map(find_precision, LADDER) if self._holds(slot, p))

    def stored(self, slot: Slot, precision: Precision) -> int | None:
        """Bytes of the constants beside the graph."""
        if not self._holds(slot, precision):
            return None
        return sum(aligned(part.nbytes) for part in dialect.stored(slot, precision, self.fused).values())

    def whole(self, plan: Plan) -> int:
        """Bytes of the constants, the graph, the configuration and the tokenizer."""
        parts = [dialect.stored(s, a.precision, self.fused) for s, a in zip(self.layout.slots, plan, strict=True)]
        others = dict(small_files(self.layout, plan, Manifest(sources={}, recipe="", tensors={}, versions={})))
        others.pop(_MANIFEST, None)
        graph = graph_of(self.layout, plan, parts, planned_offsets(parts), self.fused)
        beside = len(genai.config_of(self.layout)) if self.fused and genai.runs(self.layout) else 0
        return data_bytes(parts) + len(graph) + beside + sum(map(len, others.values()))

    def ties(self) -> tuple[tuple[str, ...], ...]:
        """None: each weight is decoded by an operator of its own."""
        return ()

    def _holds(self, slot: Slot, precision: Precision) -> bool:
        fault = "" if self.fused else dialect.portable_fault(precision, slot.shape)
        return can_hold(precision, slot.shape) and not fault


__all__ = ["LADDER", "OnnxSizes"]
