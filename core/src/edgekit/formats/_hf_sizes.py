"""What tensors take in a Hugging Face directory, and which precisions are worth trying for them."""

from __future__ import annotations

import itertools

import attrs

from edgekit.artifact import Layout
from edgekit.formats import _hf_files as files
from edgekit.formats._hf_generate import small_files
from edgekit.formats._hf_writer import planned_nbytes
from edgekit.formats._parts import stored_parts
from edgekit.manifest import Manifest
from edgekit.precision import Precision, find_precision
from edgekit.recipe import Plan, Slot, fits

#: Textbook integers of every width, with scales for 64 columns.
LADDER = tuple(f"affine:int{bits}-asym-g64" for bits in (2, 3, 4, 5, 6, 7, 8))


@attrs.frozen
class HuggingFaceSizes:
    """Sizes in the directory of a layout; see `edgekit.artifact.Sizes`."""

    layout: Layout

    def candidates(self, slot: Slot) -> tuple[Precision, ...]:
        """The ladder, and F16."""
        return tuple(p for p in map(find_precision, (*LADDER, "float:F16")) if self.stored(slot, p) is not None)

    def stored(self, slot: Slot, precision: Precision) -> int | None:
        """Bytes of the parts."""
        if not fits(precision, slot.shape):
            return None
        parts = stored_parts(slot.tensor, slot.name, precision)
        return sum(part.nbytes for part in parts) if parts else None

    def whole(self, plan: Plan) -> int:
        """Bytes of the weights, the configuration and the tokenizer."""
        return planned_nbytes(self.layout, plan) + _beside(self.layout, plan)

    def ties(self) -> tuple[tuple[str, ...], ...]:
        """None."""
        return ()


def _beside(layout: Layout, plan: Plan) -> int:
    """Bytes of the small files, which come before the manifest."""
    made = small_files(layout, plan, Manifest(sources={}, recipe="", tensors={}, versions={}))
    return sum(len(content) for _, content in itertools.takewhile(lambda file: file[0] != files.MANIFEST, made))


__all__ = ["LADDER", "HuggingFaceSizes"]
