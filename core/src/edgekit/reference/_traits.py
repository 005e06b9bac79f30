"""Properties of an encoder that the codec needs beside its functions."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import attrs
import numpy as np

from edgekit.numerics.smallfloats import bfloat16_to_float32, is_bfloat16
from edgekit.precision import Precision
from edgekit.typing import Array


def nonfinite_part(parts: Mapping[str, Array], precision: Precision) -> str:
    """The first part that stores a NaN or an infinity, or ""."""
    for part, values in parts.items():
        wide = bfloat16_to_float32(values.view(np.uint16)) if is_bfloat16(values.dtype) else values
        if wide.dtype.kind == "f" and not np.isfinite(wide).all():
            return part
    return ""


@attrs.frozen
class Traits:
    """The traits of a reference, or of a backend's quantizer; each states them as its attribute ``traits``.

    A quantizer's matter only where they are about its own encoder: `widens` and `needs_importance`.

    Attributes:
        proof: what the encoder is proved against, with the version, or how it is bounded.
        bound: the error bound in words.
        source_dtypes: True where the arithmetic depends on the source's type: float16 and bfloat16 (ml_dtypes) rows
            come as they are.
        widens: True where the encoder takes float16 and bfloat16 rows too and encodes them as their float32 copy, of
            which it never holds the whole. A reference gets them where its rows depend on each other.
        searches: False where no search for a scale can lose huge values.
        decode_only: True where a reference decodes but does not encode.
        needs_importance: True where rows without an importance are refused.
        decoded_through: by kind, the type that overflows where it is not the one that stores the scale.
        overflowed: the part whose scale is not finite, or "", from parts and precision.
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
