"""The grid formats IQ1_S, IQ1_M, IQ2_XXS, IQ2_XS, IQ2_S, IQ3_XXS and IQ3_S: decoded, never encoded.

A block of 256 weights holds indices into a fixed grid of 4- or 8-vectors, sign bits, and scales. The grids are
data, kilobytes of it, that gguf-py carries and keeps up to date; so gguf-py decodes. Its arithmetic is float32,
in ggml's order. Source: ``ggml-quants.c`` (dequantize_row_iq*), ggml 0.25.3; gguf-py 0.19.0.
"""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import Any, ClassVar, NoReturn

import attrs
import numpy as np
import numpy.typing as npt

from edgekit import precision as precisions
from edgekit import reference as references
from edgekit.errors import UsageError
from edgekit.precision import Precision
from edgekit_gguf.types import BY_NAME

#: Bits of a weight's code, rounded up.
_BITS = {"IQ1_S": 2, "IQ1_M": 2, "IQ2_XXS": 2, "IQ2_XS": 2, "IQ2_S": 2, "IQ3_XXS": 3, "IQ3_S": 3}


def _record(kind: str) -> Precision:
    block_type = BY_NAME[kind]
    return Precision(
        "ggml",
        kind,
        bits=_BITS[kind],
        granularity="group",
        block=block_type.block,
        symmetric=True,
        scale_dtype="float16",
        bits_per_weight=Fraction(8 * block_type.size, block_type.block),
        name=f"ggml:{kind}",
    )


@attrs.frozen
class GridFormat:
    """Reference implementation of one grid format; see `edgekit.reference.Reference`."""

    precision: Precision
    PROOF: ClassVar[str] = "decoded only, by gguf-py 0.19.0"
    DECODE_ONLY: ClassVar[bool] = True
    BOUND: ClassVar[str] = "none: it is not encoded"

    def encode(self, x: npt.NDArray[Any], precision: Precision, importance: object = None) -> NoReturn:
        """Refuse.

        Raises:
            UsageError: always; no encoder of these formats is exact yet.
        """
        raise UsageError(
            f"{self.precision.name} can be decoded, but not encoded; "
            "choose a precision with an encoder (ggml:Q2_K, ggml:IQ4_XS), or quantize with llama.cpp"
        )

    def decode(
        self, parts: Mapping[str, npt.NDArray[Any]], precision: Precision, shape: tuple[int, int]
    ) -> npt.NDArray[np.float32]:
        """Decode ``blocks`` [rows, bytes] to float32 [rows, cols] with gguf-py's tables."""
        from gguf import GGMLQuantizationType, dequantize

        kind = GGMLQuantizationType[self.precision.kind]
        with np.errstate(invalid="ignore", over="ignore"):  # a foreign file's scale may be a NaN or infinite
            values = dequantize(np.ascontiguousarray(parts["blocks"]), kind)
        return values.astype(np.float32, copy=False).reshape(shape)

    def bound(self, x: npt.NDArray[Any], parts: Mapping[str, npt.NDArray[Any]], precision: Precision) -> NoReturn:
        """Refuse: without an encoder there is no error to bound.

        Raises:
            UsageError: always.
        """
        raise UsageError(f"{self.precision.name} has no encoder here, so there is no error to bound")


IQ1_S = GridFormat(_record("IQ1_S"))
IQ1_M = GridFormat(_record("IQ1_M"))
IQ2_XXS = GridFormat(_record("IQ2_XXS"))
IQ2_XS = GridFormat(_record("IQ2_XS"))
IQ2_S = GridFormat(_record("IQ2_S"))
IQ3_XXS = GridFormat(_record("IQ3_XXS"))
IQ3_S = GridFormat(_record("IQ3_S"))


def known(kind: str) -> Precision:
    """The precision of that kind, made known to `Precision.parse` and to decoding."""
    implementation: GridFormat = globals()[kind]
    precisions.register(implementation.precision)
    references.register(implementation.precision, implementation)
    return implementation.precision
