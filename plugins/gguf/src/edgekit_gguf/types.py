"""The type ids of GGUF: metadata values and tensors.

Source: ``ggml.h`` (enum ggml_type), ``gguf.h`` (enum gguf_type) and ``llama.h`` (enum llama_ftype) of ggml 0.25.3;
the tests check ids and sizes against gguf-py's `GGMLQuantizationType`, `GGML_QUANT_SIZES` and `LlamaFileType`.
"""

from __future__ import annotations

import enum
from fractions import Fraction
from typing import Any

import attrs
import numpy as np

from edgekit.precision import Precision, ggml

MAGIC = b"GGUF"
VERSION = 3
#: Versions that are read; version 1 counted in 32 bits.
READABLE = (2, 3)
ALIGNMENT = 32
#: ``general.quantization_version`` of the block layouts below.
QUANTIZATION_VERSION = 2


class ValueType(enum.IntEnum):
    """Type of a metadata value."""

    UINT8 = 0
    INT8 = 1
    UINT16 = 2
    INT16 = 3
    UINT32 = 4
    INT32 = 5
    FLOAT32 = 6
    BOOL = 7
    STRING = 8
    ARRAY = 9
    UINT64 = 10
    INT64 = 11
    FLOAT64 = 12


#: How numbers are laid out in the file: little-endian always.
DTYPES: dict[ValueType, np.dtype[Any]] = {
    ValueType.UINT8: np.dtype("u1"),
    ValueType.INT8: np.dtype("i1"),
    ValueType.UINT16: np.dtype("<u2"),
    ValueType.INT16: np.dtype("<i2"),
    ValueType.UINT32: np.dtype("<u4"),
    ValueType.INT32: np.dtype("<i4"),
    ValueType.FLOAT32: np.dtype("<f4"),
    ValueType.BOOL: np.dtype("u1"),
    ValueType.UINT64: np.dtype("<u8"),
    ValueType.INT64: np.dtype("<i8"),
    ValueType.FLOAT64: np.dtype("<f8"),
}


@attrs.frozen
class TensorType:
    """A tensor type: `block` elements take `size` bytes.

    Attributes:
        id: its number in a file.
        name: ggml's name.
        dtype: edgekit's dtype of a plain type; empty for a block format.
    """

    id: int
    name: str
    block: int
    size: int
    dtype: str = ""

    @property
    def precision(self) -> str:
        """Name of the precision in which such a tensor is written; empty if edgekit does not write it."""
        if self.dtype:
            return f"float:{self.name}" if self.name in ("F32", "F16", "BF16") else ""
        return f"ggml:{self.name}"

    @property
    def bits_per_weight(self) -> Fraction:
        """Bits per element, scales included."""
        return Fraction(8 * self.size, self.block)


_PLAIN = (
    TensorType(0, "F32", 1, 4, "float32"),
    TensorType(1, "F16", 1, 2, "float16"),
    TensorType(24, "I8", 1, 1, "int8"),
    TensorType(25, "I16", 1, 2, "int16"),
    TensorType(26, "I32", 1, 4, "int32"),
    TensorType(27, "I64", 1, 8, "int64"),
    TensorType(28, "F64", 1, 8, "float64"),
    TensorType(30, "BF16", 1, 2, "bfloat16"),
)
_BLOCKS = tuple(TensorType(t.id, name, t.block, t.size) for name, t in (ggml.BLOCKS | ggml.GRIDS).items())
TENSOR_TYPES: dict[int, TensorType] = {t.id: t for t in sorted((*_PLAIN, *_BLOCKS), key=lambda t: t.id)}
BY_NAME = {t.name: t for t in TENSOR_TYPES.values()}
#: Why a type id that once meant something is not read.
RETIRED = {
    4: "Q4_2, which llama.cpp dropped in 2023",
    5: "Q4_3, which llama.cpp dropped in 2023",
    9: "Q8_1, which exists in memory only",
    15: "Q8_K, which exists in memory only",
    31: "Q4_0_4_4, dropped: download the Q4_0 file",
    32: "Q4_0_4_8, dropped: download the Q4_0 file",
    33: "Q4_0_8_8, dropped: download the Q4_0 file",
    36: "IQ4_NL_4_4, dropped: download the IQ4_NL file",
    37: "IQ4_NL_4_8, dropped: download the IQ4_NL file",
    38: "IQ4_NL_8_8, dropped: download the IQ4_NL file",
}


def tensor_type(precision: Precision) -> TensorType | None:
    """The type in which a precision's parts are stored; None if GGUF has none."""
    known = BY_NAME.get(precision.kind)
    return known if known and known.precision == precision.name else None


#: ``general.file_type`` of each recipe.
FILE_TYPES: dict[str, int] = {
    "F32": 0,
    "F16": 1,
    "Q4_0": 2,
    "Q4_1": 3,
    "Q8_0": 7,
    "Q5_0": 8,
    "Q5_1": 9,
    "Q2_K": 10,
    "Q3_K_S": 11,
    "Q3_K_M": 12,
    "Q3_K_L": 13,
    "Q4_K_S": 14,
    "Q4_K_M": 15,
    "Q5_K_S": 16,
    "Q5_K_M": 17,
    "Q6_K": 18,
    "IQ2_XXS": 19,
    "IQ2_XS": 20,
    "Q2_K_S": 21,
    "IQ3_XS": 22,
    "IQ3_XXS": 23,
    "IQ1_S": 24,
    "IQ4_NL": 25,
    "IQ3_S": 26,
    "IQ3_M": 27,
    "IQ2_S": 28,
    "IQ2_M": 29,
    "IQ4_XS": 30,
    "IQ1_M": 31,
    "BF16": 32,
    "TQ1_0": 36,
    "TQ2_0": 37,
    "MXFP4_MOE": 38,
    "NVFP4": 39,
    "Q1_0": 40,
    "Q2_0": 41,
}
#: The recipe that llama.cpp takes a file for whose most frequent tensor type is not a recipe's own name.
LIKELY_RECIPE = {"Q3_K": "Q3_K_M", "Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M", "MXFP4": "MXFP4_MOE"}

__all__ = [
    "ALIGNMENT",
    "BY_NAME",
    "DTYPES",
    "FILE_TYPES",
    "LIKELY_RECIPE",
    "MAGIC",
    "QUANTIZATION_VERSION",
    "READABLE",
    "RETIRED",
    "TENSOR_TYPES",
    "VERSION",
    "TensorType",
    "ValueType",
    "tensor_type",
]
