"""What tensors take in an IR, and which precisions are worth trying for them."""

from __future__ import annotations

import attrs

from edgekit.artifact import Layout
from edgekit.files.guard import ARTIFACT_FILES
from edgekit.manifest import Manifest
from edgekit.precision import Precision, find_precision
from edgekit.recipe import Plan, Slot, fits
from edgekit_openvino.elements import storable, stored_parts
from edgekit_openvino.serialize import aligned
from edgekit_openvino.tokenizer import Converted, tokenizer_models
from edgekit_openvino.writer import graph_of, planned_places, small_ones

LADDER = (
    "openvino:int2-sym-g32",
    "openvino:int3-sym-g64",
    "openvino:int3-sym-g32",
    "openvino:int4-sym-g128",
    "openvino:int4-sym-g64",
    "openvino:int4-sym-g32",
    "openvino:int4-asym-g32",
    "openvino:int8-asym-channel",
    "float:F16",
)
_MANIFEST = ARTIFACT_FILES[-1]


@attrs.define
class OpenVinoSizes:
    """Sizes in the directory of a layout; see `edgekit.artifact.Sizes`."""

    layout: Layout
    _tokenizer: Converted | None = attrs.field(default=None, init=False, repr=False)

    def candidates(self, slot: Slot) -> tuple[Precision, ...]:
        """Integers of 2 to 4 bits in groups, 8 bits a row, and F16."""
        return tuple(p for p in map(find_precision, LADDER) if fits(p, slot.shape))

    def stored(self, slot: Slot, precision: Precision) -> int | None:
        """Bytes of the constants in the .bin."""
        if not storable(precision) or not fits(precision, slot.shape):
            return None
        return sum(aligned(part.nbytes) for part in stored_parts(slot.name, precision, slot.shape).values())

    def whole(self, plan: Plan) -> int:
        """Bytes of the graph, its constants, the configuration and the tokenizer."""
        others = small_ones(self.layout, plan, Manifest(sources={}, recipe="", tensors={}, versions={}))
        others = {name: content for name, content in others.items() if name != _MANIFEST}
        if self._tokenizer is None:
            self._tokenizer = tokenizer_models(others, self.layout.source.files)
        places, end = planned_places(plan)
        xml, small = graph_of(self.layout, plan, places, end, self._tokenizer.note)
        beside = (*others.values(), *self._tokenizer.files.values())
        return aligned(end) + len(small) + len(xml) + sum(map(len, beside))

    def ties(self) -> tuple[tuple[str, ...], ...]:
        """None: each weight is decompressed by nodes of its own."""
        return ()


__all__ = ["LADDER", "OpenVinoSizes"]
