"""MXFP4 blocks and scales, as gpt-oss stores its experts.

    part          dtype    shape                      holds
    X_blocks      uint8    [experts, out, in/32, 16]  e2m1 codes, the even column in a byte's lower half
    X_scales      uint8    [experts, out, in/32]      exponents of float8_e8m0fnu
    X                      [experts, out, in]         what is read: ggml's MXFP4, whose bytes say the same

    value = e2m1[code] * 2^(exponent - 127)

The matrices are [out, in], as quantized matrices always are; the same parameter unquantized is [experts, in, out].
ggml keeps a block as its exponent, then 16 bytes with column j below and column j + 16 above: the codes move, their
values do not change.

Source: OCP Microscaling Formats (MX) v1.0; transformers 5.23, ``integrations/mxfp4.py``
(`convert_moe_packed_tensors`); ggml 0.25.3, ``block_mxfp4``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from edgekit.formats._packed._scheme import Packed, Source, encoded
from edgekit.tensor import EncodedTensor, Tensor
from edgekit.typing import U8, Array

KNOWN = ("quant_method", "modules_to_not_convert", "dequantize")
#: Columns of a block, and the bytes that hold them.
SIZE, BYTES = 32, 16


def read(source: Source) -> Iterator[Packed]:
    """Yield the experts' matrices; see `edgekit.formats._packed.Scheme`."""
    source.fields.only(KNOWN)
    for name in source.modules("_blocks"):
        blocks = source.part(f"{name}_blocks", ("uint8",))
        if len(blocks.shape) < 3 or blocks.shape[-1] != BYTES:
            raise source.mismatch(blocks.name, blocks.shape, f"[…, out, blocks, {BYTES}]")
        scales = source.part(f"{name}_scales", ("uint8",), blocks.shape[:-1])
        shape = (*blocks.shape[:-2], blocks.shape[-2] * SIZE)
        yield Packed(matrix(name, shape, blocks, scales), (blocks.name, scales.name))


def matrix(name: str, shape: tuple[int, ...], codes: Tensor, exponents: Tensor) -> EncodedTensor:
    """Return codes of neighbours in one byte and exponents, both in rows, as ggml's MXFP4."""
    blocks, by_block = shape[-1] // SIZE, len(codes.shape) > len(shape)

    def read(start: int, stop: int) -> Mapping[str, Array]:
        first, last = (start * blocks, stop * blocks) if by_block else (start, stop)
        return {"blocks": repacked(codes.read_rows(first, last), exponents.read_rows(start, stop))}

    return encoded(name, shape, "ggml:MXFP4", (codes, exponents), read)


def repacked(codes: U8, exponents: U8) -> U8:
    """Return rows of ggml's blocks.

    Args:
        codes: of the rows, neighbouring columns in one byte, 16 bytes a block.
        exponents: [rows, blocks].
    """
    pairs = np.stack([codes & np.uint8(15), codes >> np.uint8(4)], axis=-1).reshape(-1, SIZE)
    packed = np.empty((len(pairs), 1 + BYTES), np.uint8)
    packed[:, 0] = exponents.reshape(-1)
    packed[:, 1:] = pairs[:, :BYTES] | pairs[:, BYTES:] << np.uint8(4)
    return packed.reshape(len(exponents), -1)


__all__ = ["KNOWN", "matrix", "read", "repacked"]
