"""A native encoder of ``ggml:Q8_0``: the same bytes as the reference, another way to them.

The reference works in float32 and rounds with ggml's own trick; this one rounds in float64, where adding a half
and truncating is exact. A real backend would call its kernel here.
"""

from __future__ import annotations

import numpy as np

from edgekit.reference import Traits
from edgekit.typing import F32, I8, Array

BLOCK = np.dtype([("d", "<f2"), ("qs", "i1", 32)])


class Q8_0:  # noqa: N801  - the format's own name
    """Encodes rows; see `edgekit.encoding.Quantizer`."""

    precision = "ggml:Q8_0"
    claim = "exact"
    traits = Traits()

    def encode(self, x: F32, importance: F32 | None = None) -> dict[str, Array]:
        """Encode rows [rows, cols], cols a multiple of 32, to ``blocks`` uint8 [rows, cols / 32 * 34]."""
        values = x.reshape(len(x), -1, 32)
        blocks = np.empty(values.shape[:2], BLOCK)
        with np.errstate(all="ignore"):  # a subnormal scale's reciprocal is infinite, a huge scale overflows float16
            d = np.abs(values).max(axis=2) / np.float32(127)
            steps = values * np.where(d > 0, 1 / d, np.float32(0))[..., None]
            blocks["d"] = d
            blocks["qs"] = round_away(steps)
        return {"blocks": blocks.view(np.uint8)}


def round_away(steps: F32) -> I8:
    """To the nearest integer, ties away from zero; what is infinite or no number becomes 0."""
    wide = steps.astype(np.float64)
    rounded = np.trunc(wide + np.copysign(0.5, wide))
    return np.where(np.isfinite(rounded), rounded, 0).astype(np.int8)


__all__ = ["BLOCK", "Q8_0", "round_away"]
