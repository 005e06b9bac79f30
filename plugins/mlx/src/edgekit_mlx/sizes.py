"""The sizes of tensors in an MLX directory, and the precisions that a fit may choose for them."""

from __future__ import annotations

import attrs

from edgekit.artifact import Layout
from edgekit.files.guard import ARTIFACT_FILES
from edgekit.formats import small_files
from edgekit.manifest import Manifest
from edgekit.precision import Precision, find_precision
from edgekit.recipe import Assignment, Plan, Slot, fits
from edgekit_mlx.writer import CONFIG, config_of, stored_parts, weights_nbytes

LADDER = tuple(f"mlx:int{bits}-g64" for bits in (2, 3, 4, 5, 6, 8))
#: The group size for matrices whose number of columns is not a multiple of 64.
NARROW = tuple(f"mlx:int{bits}-g32" for bits in (2, 3, 4, 5, 6, 8))
_MANIFEST = ARTIFACT_FILES[-1]


@attrs.frozen
class MlxSizes:
    """The sizes of a layout's tensors as an MLX directory; see `edgekit.artifact.Sizes`."""

    layout: Layout

    def candidates(self, slot: Slot) -> tuple[Precision, ...]:
        """Return every width in groups of 64, or 32 if needed, and the tensor's own float type."""
        groups = LADDER if fits(find_precision(LADDER[0]), slot.shape) else NARROW
        return tuple(p for p in (*map(find_precision, groups), slot.keep) if self.stored(slot, p) is not None)

    def stored(self, slot: Slot, precision: Precision) -> int | None:
        """Return the bytes that a tensor takes in a precision; None if MLX cannot store it so."""
        if precision.convention not in ("mlx", "float") or not fits(precision, slot.shape):
            return None
        if precision.convention == "mlx" and not slot.name.endswith(".weight"):
            return None
        line = Assignment(slot.name, slot.role, slot.shape, precision, "")
        return sum(part.nbytes for part in stored_parts(slot, line))

    def whole(self, plan: Plan) -> int:
        """Return the bytes of a directory: weights, configuration and tokenizer."""
        manifest = Manifest(sources={}, recipe="", tensors={}, versions={})
        beside = 0
        for name, content in small_files(self.layout, plan, manifest):
            written = config_of(self.layout, plan, content, self.layout.source.path) if name == CONFIG else content
            beside += len(written) if name != _MANIFEST else 0
        return weights_nbytes(self.layout, plan) + beside

    def ties(self) -> tuple[tuple[str, ...], ...]:
        """Return no ties: config.json states bits and group size per module, so that each tensor is free."""
        return ()


__all__ = ["LADDER", "NARROW", "MlxSizes"]
