"""What tensors take in an MLX directory, and which precisions are worth trying for them."""

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
#: For rows that groups of 64 do not divide.
NARROW = tuple(f"mlx:int{bits}-g32" for bits in (2, 3, 4, 5, 6, 8))
_MANIFEST = ARTIFACT_FILES[-1]


@attrs.frozen
class MlxSizes:
    """Sizes in the directory of a layout; see `edgekit.artifact.Sizes`."""

    layout: Layout

    def candidates(self, slot: Slot) -> tuple[Precision, ...]:
        """Every width in groups of 64, or of 32; and the float type that the tensor has."""
        groups = LADDER if fits(find_precision(LADDER[0]), slot.shape) else NARROW
        return tuple(p for p in (*map(find_precision, groups), slot.keep) if self.stored(slot, p) is not None)

    def stored(self, slot: Slot, precision: Precision) -> int | None:
        """Bytes of the parts."""
        if precision.convention not in ("mlx", "float") or not fits(precision, slot.shape):
            return None
        if precision.convention == "mlx" and not slot.name.endswith(".weight"):
            return None
        line = Assignment(slot.name, slot.role, slot.shape, precision, "")
        return sum(part.nbytes for part in stored_parts(slot, line))

    def whole(self, plan: Plan) -> int:
        """Bytes of the weights, the configuration and the tokenizer."""
        manifest = Manifest(sources={}, recipe="", tensors={}, versions={})
        beside = 0
        for name, content in small_files(self.layout, plan, manifest):
            written = config_of(self.layout, plan, content, self.layout.source.path) if name == CONFIG else content
            beside += len(written) if name != _MANIFEST else 0
        return weights_nbytes(self.layout, plan) + beside

    def ties(self) -> tuple[tuple[str, ...], ...]:
        """None: config.json has the bits and the group of each module."""
        return ()


__all__ = ["LADDER", "NARROW", "MlxSizes"]
