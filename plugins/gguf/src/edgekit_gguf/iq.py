"""The grid formats IQ1_S, IQ1_M, IQ2_XXS, IQ2_XS, IQ2_S, IQ3_XXS and IQ3_S: decoding only.

A block of 256 weights holds indices into a fixed grid of 4- or 8-vectors, sign bits, and scales. The grids are
data, kilobytes of it, which gguf-py contains and maintains; so gguf-py decodes. Its arithmetic is float32,
in ggml's order. Source: ``ggml-quants.c`` (dequantize_row_iq*), ggml 0.25.3; gguf-py 0.19.0.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, NoReturn

import attrs
import numpy as np

from edgekit.errors import UsageError
from edgekit.precision import Precision, ggml, register
from edgekit.reference import Traits
from edgekit.typing import F32, Array


@attrs.frozen
class GridFormat:
    """Reference implementation of one grid format; see `edgekit.reference.Reference`."""

    precision: Precision
    traits: ClassVar[Traits] = Traits(
        proof="decoded only, by gguf-py 0.19.0", bound="none: it is not encoded", decode_only=True
    )

    def encode(self, x: Array, precision: Precision, importance: object = None) -> NoReturn:
        """Refuse.

        Raises:
            UsageError: always; no encoder of these formats is exact yet.
        """
        raise UsageError(
            f"{self.precision.name} can be decoded, but not encoded; "
            "choose a precision with an encoder (ggml:Q2_K, ggml:IQ4_XS), or quantize with llama.cpp"
        )

    def decode(self, parts: Mapping[str, Array], precision: Precision, shape: tuple[int, int]) -> F32:
        """Decode ``blocks`` [rows, bytes] to float32 [rows, cols] with gguf-py's tables."""
        from gguf import GGMLQuantizationType, dequantize

        kind = GGMLQuantizationType[self.precision.kind]
        with np.errstate(invalid="ignore", over="ignore"):  # a foreign file's scale may be a NaN or infinite
            values = dequantize(np.ascontiguousarray(parts["blocks"]), kind)
        return values.astype(np.float32, copy=False).reshape(shape)

    def bound(self, x: Array, parts: Mapping[str, Array], precision: Precision) -> NoReturn:
        """Refuse: without an encoder there is no error to bound.

        Raises:
            UsageError: always.
        """
        raise UsageError(f"{self.precision.name} has no encoder here, so there is no error to bound")


_FORMATS = {kind: GridFormat(grid.precision(kind)) for kind, grid in ggml.GRIDS.items()}


def __getattr__(kind: str) -> GridFormat:
    """Return the reference implementation of a grid format of ggml, by its name."""
    if kind in _FORMATS:
        return _FORMATS[kind]
    raise AttributeError(f"module {__name__!r} has no attribute {kind!r}; it has {', '.join(_FORMATS)}")


def known(kind: str) -> Precision:
    """Return the precision of a kind, registered for `find_precision` and for decoding."""
    implementation = _FORMATS[kind]
    register(implementation)
    return implementation.precision


__all__ = ["GridFormat", "known"]
