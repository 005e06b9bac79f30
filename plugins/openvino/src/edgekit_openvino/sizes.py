"""The sizes of tensors in an IR, and the precisions that a fit may choose for them."""

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
    """The sizes of a layout's tensors as an IR; see `edgekit.artifact.Sizes`."""

    layout: Layout
    _tokenizer: Converted | None = attrs.field(default=None, init=False, repr=False)

    def candidates(self, slot: Slot) -> tuple[Precision, ...]:
        """Return integers of 2 to 4 bits in groups, of 8 bits with a scale per row, and F16."""
        return tuple(p for p in map(find_precision, LADDER) if fits(p, slot.shape))

    def stored(self, slot: Slot, precision: Precision) -> int | None:
        """Return the bytes of a tensor's constants in the .bin; None if an IR cannot store it so."""
        if not storable(precision) or not fits(precision, slot.shape):
            return None
        return sum(aligned(part.nbytes) for part in stored_parts(slot.name, precision, slot.shape).values())

    def whole(self, plan: Plan) -> int:
        """Return the bytes of a directory: graph, constants, configuration and tokenizer."""
        others = small_ones(self.layout, plan, Manifest(sources={}, recipe="", tensors={}, versions={}))
        others = {name: content for name, content in others.items() if name != _MANIFEST}
        if self._tokenizer is None:
            self._tokenizer = tokenizer_models(others, self.layout.source.files)
        places, end = planned_places(plan)
        xml, small = graph_of(self.layout, plan, places, end, self._tokenizer.note)
        beside = (*others.values(), *self._tokenizer.files.values())
        return aligned(end) + len(small) + len(xml) + sum(map(len, beside))

    def ties(self) -> tuple[tuple[str, ...], ...]:
        """Return no ties: each weight has its own decompression nodes, so that each tensor is free."""
        return ()


__all__ = ["LADDER", "OpenVinoSizes"]
