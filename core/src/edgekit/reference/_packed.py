"""Formats that other tools store and edgekit only decodes: small floats and codebooks under float32 scales.

    part    dtype                      shape                          holds
    codes   uint8                      [rows, ceil(cols * b / 8)]     b-bit codes, LSB first
    scale   float32                    [rows, groups] | [rows, 1]     (group | channel)
    zero    int16                      [rows, groups]                 int2, int3, int4, and int8 with groups
    group   any unsigned integer       [rows, cols]                   as `zero`: the group of each column
    offset  float32                    as `scale`                     int4_offset

    fp8, fp4          e4m3[code] * scale, e2m1[code] * scale
    nf4, bnb_fp4      level[code] * scale
    int8-channel      (int8(code) * scale) * float32(1 / 127)         rounded after each product, as the library does
    int<b>-g<size>    (code - zero) * scale                           scale and zero of the column's group
    int4_offset       int4(code) * scale + offset                     the code in two's complement

All arithmetic is float32, every operation rounded once.

Sources: OCP Microscaling Formats (MX) v1.0 for e2m1, OCP 8-bit Floating Point v1.0 for e4m3; T. Dettmers et al.,
"QLoRA", NeurIPS 2023 (arXiv:2305.14314), appendix E, for nf4; bitsandbytes 0.50.2, `functional.py` (`get_4bit_type`,
`create_normal_map`, `int8_vectorwise_dequant`), for the levels of both codebooks and the constant of LLM.int8();
E. Frantar et al., "GPTQ", ICLR 2023 (arXiv:2210.17323), for columns quantized in the order of their activations;
FBGEMM GenAI, ``experimental/gen_ai/quantize.py`` (`int4_row_quantize_zp`, `pack_int4`), for int4_offset.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NoReturn

import numpy as np

from edgekit.errors import UsageError
from edgekit.numerics.bits import unpack_lsb
from edgekit.numerics.blocks import row_chunks
from edgekit.numerics.smallfloats import E2M1, E4M3
from edgekit.precision import Precision
from edgekit.reference._traits import Traits
from edgekit.typing import F32, Array

traits = Traits(
    proof="decoded only; equal to the libraries that wrote it (tests/oracles/test_packed.py)",
    bound="none: it is not encoded",
    decode_only=True,
)

#: Quantiles of the normal distribution, scaled to -1 … 1, with a 0 among them.
NF4 = np.array(
    [
        -1.0,
        -0.6961928009986877,
        -0.5250730514526367,
        -0.39491748809814453,
        -0.28444138169288635,
        -0.18477343022823334,
        -0.09105003625154495,
        0.0,
        0.07958029955625534,
        0.16093020141124725,
        0.24611230194568634,
        0.33791524171829224,
        0.44070982933044434,
        0.5626170039176941,
        0.7229568362236023,
        1.0,
    ],
    np.float32,
)
#: Magnitudes in twelfths; the code's upper bit is the sign.
_BNB_FP4_MAGNITUDES = np.array([0, 0.0625, 8, 12, 4, 6, 2, 3], np.float32) / np.float32(12)
BNB_FP4 = np.concatenate([_BNB_FP4_MAGNITUDES, np.float32(0) - _BNB_FP4_MAGNITUDES])  # no zero of the other sign
#: 1 / 127 as the library writes it.
LLM_INT8_UNIT = np.float32(7.874015718698502e-3)

_LEVELS = {"fp8": E4M3, "fp4": np.concatenate([E2M1, -E2M1]), "nf4": NF4, "bnb_fp4": BNB_FP4}
_LEVELS["int4_offset"] = np.array([*range(8), *range(-8, 0)], np.float32)


def encode(x: Array, precision: Precision, importance: F32 | None = None) -> NoReturn:
    """Refuse.

    Raises:
        UsageError: always; these formats are read and not written.
    """
    raise UsageError(
        f"{precision.name} is read and decoded, not written; choose a precision that `edgekit precisions` lists"
    )


def decode(parts: Mapping[str, Array], precision: Precision, shape: tuple[int, int]) -> F32:
    """Decode to float32 [rows, cols]; a NaN code stays one, and an overflow becomes infinite."""
    rows, cols = shape
    values = np.empty(shape, np.float32)
    for chunk in row_chunks(rows, cols):
        codes = unpack_lsb(parts["codes"][chunk], precision.bits, cols)
        if "group" in parts:
            group = parts["group"][chunk].astype(np.intp)
            levels = codes - np.take_along_axis(parts["zero"][chunk], group, axis=1)
            values[chunk] = levels.astype(np.float32) * np.take_along_axis(parts["scale"][chunk], group, axis=1)
        elif precision.kind == "int8":
            values[chunk] = codes.view(np.int8).astype(np.float32) * parts["scale"][chunk] * LLM_INT8_UNIT
        else:
            values[chunk] = _LEVELS[precision.kind][codes]
            values[chunk] *= _by_column(parts["scale"][chunk], precision, cols)
            if "offset" in parts:
                values[chunk] += _by_column(parts["offset"][chunk], precision, cols)
    return values


def bound(x: Array, parts: Mapping[str, Array], precision: Precision) -> NoReturn:
    """Refuse: without an encoder there is no error to bound.

    Raises:
        UsageError: always.
    """
    raise UsageError(f"{precision.name} has no encoder, so there is no error to bound")


def _by_column(scale: F32, precision: Precision, cols: int) -> F32:
    if precision.block is None:
        return scale
    return np.repeat(scale, precision.block, axis=1)[:, :cols]


__all__ = ["BNB_FP4", "LLM_INT8_UNIT", "NF4", "bound", "decode", "encode", "traits"]
