"""Properties of an encoder that the codec reads."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import attrs
import numpy as np

from edgekit.numerics.smallfloats import bfloat16_to_float32, is_bfloat16
from edgekit.precision import Precision
from edgekit.typing import Array


def nonfinite_part(parts: Mapping[str, Array], precision: Precision) -> str:
    """Return the first part that stores a NaN or an infinity; empty if there is none."""
    for part, values in parts.items():
        wide = bfloat16_to_float32(values.view(np.uint16)) if is_bfloat16(values.dtype) else values
        if wide.dtype.kind == "f" and not np.isfinite(wide).all():
            return part
    return ""


@attrs.frozen
class Traits:
    """The traits of a reference, or of a backend's quantizer; each states them as its attribute ``traits``.

    Of a quantizer's traits only `widens` and `needs_importance` are used; the reference states the others.

    Attributes:
        proof: the implementation and version that the encoder is tested against, or how its error is bounded.
        bound: the error bound in words.
        source_dtypes: True if the arithmetic depends on the source's type: float16 and bfloat16 (ml_dtypes) rows
            are then passed unchanged.
        widens: True if the encoder also accepts float16 and bfloat16 rows, and widens them in pieces. A reference
            receives them if its rows depend on each other.
        searches: False if the encoder has no search for a scale in which huge values could overflow.
        decode_only: True if a reference decodes but does not encode.
        needs_importance: True if rows without an importance are refused.
        decoded_through: by kind, the type that overflows, if it is not the one that stores the scale.
        overflowed: function of parts and precision; returns the part whose scale is not finite, or an empty string.
    """

    proof: str | Callable[[Precision], str] = ""
    bound: str | Callable[[Precision], str] = ""
    source_dtypes: bool = False
    widens: bool = False
    searches: bool = True
    decode_only: bool = False
    needs_importance: bool = False
    decoded_through: Mapping[str, str] = attrs.field(factory=dict)
    overflowed: Callable[[Mapping[str, Array], Precision], str] = nonfinite_part


__all__ = ["Traits", "nonfinite_part"]
