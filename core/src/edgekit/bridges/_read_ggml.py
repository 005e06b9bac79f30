"""Read ggml's blocks: codes, scale, zero and offset of each sub-block."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from edgekit.bridges._lattice import Lattice
from edgekit.bridges._planes import split
from edgekit.errors import InexactError
from edgekit.numerics.bits import unpack_lsb
from edgekit.reference.ggml import TYPES, _nonlinear, _sixbit, iq4_xs, q2_k, q3_k, q6_k
from edgekit.reference.ggml._layout import Blocks
from edgekit.tensor import QuantizedTensor
from edgekit.typing import F32, U8

#: Codes [m, n], scales [..], the code of the value 0 or None, offsets or None, elements of a sub-block.
_Taken = tuple[U8, F32, int | None, F32 | None, int]


def read(tensor: QuantizedTensor) -> Lattice:
    """Return the lattice that a tensor's blocks represent."""
    kind, rows = tensor.precision.kind, tensor.rows
    if kind not in _TAKE:
        raise InexactError(f"{tensor.precision} is not a lattice with a bridge")
    blocks = np.ascontiguousarray(tensor.parts["blocks"]).reshape(-1).view(TYPES[kind].LAYOUT)
    codes, scale, zero, bias, group = _TAKE[kind](blocks)
    return Lattice(
        codes.reshape(rows, -1),
        scale.reshape(rows, -1),
        group,
        zero=None if zero is None else np.full((rows, scale.size // rows), zero, np.int16),
        bias=None if bias is None else bias.reshape(rows, -1),
    )


def _d(blocks: Blocks, field: str = "d") -> F32:
    scale: F32 = blocks[field].astype(np.float32)
    return scale


def _nibbles(blocks: Blocks) -> U8:
    codes: U8 = split(blocks["qs"], 4).reshape(-1, 32)
    return codes


def _five_bits(blocks: Blocks) -> U8:
    return _nibbles(blocks) | unpack_lsb(np.ascontiguousarray(blocks["qh"]).view(np.uint8), 1, 32) << np.uint8(4)


def _of_levels(kind: str, zero: int) -> Callable[[Blocks], _Taken]:
    """Read a type with one scale per block: with a scale of 1 it decodes to its levels."""

    def take(blocks: Blocks) -> _Taken:
        plain = blocks.copy()
        plain["d"] = 1
        codes: U8 = (TYPES[kind].decode(plain) + np.float32(zero)).astype(np.uint8)
        return codes, _d(blocks), zero, None, TYPES[kind].SIZE

    return take


def _uneven(codes: U8) -> U8:
    """Read codes of the sixteen uneven values, counted from -128."""
    return _nonlinear.VALUES[codes].view(np.uint8) ^ np.uint8(128)


def _iq4_xs(blocks: Blocks) -> _Taken:
    codes = split(blocks["qs"].reshape(-1, 16), 4).reshape(-1, 32)
    return _uneven(codes), _d(blocks)[:, None] * iq4_xs.unpack_scales(blocks), 128, None, 32


def _sixbit_lattice(blocks: Blocks, codes: U8) -> _Taken:
    step, offset = _sixbit.steps_and_offsets(blocks)
    return codes, step, None, -offset, 32


def _q2_k(blocks: Blocks) -> _Taken:
    step, offset = q2_k.steps_and_offsets(blocks)
    return split(blocks["qs"].reshape(-1, 32), 2).reshape(-1, 256), step, None, -offset, 16


def _q4_k(blocks: Blocks) -> _Taken:
    return _sixbit_lattice(blocks, split(blocks["qs"].reshape(-1, 32), 4))


def _q5_k(blocks: Blocks) -> _Taken:
    low = split(blocks["qs"].reshape(-1, 32), 4).reshape(-1, 8, 32)
    return _sixbit_lattice(blocks, low | split(blocks["qh"], 1) << np.uint8(4))


def _q6_k(blocks: Blocks) -> _Taken:
    codes = split(blocks["ql"].reshape(-1, 64), 4).reshape(-1, 256)
    codes |= split(blocks["qh"].reshape(-1, 32), 2).reshape(-1, 256) << np.uint8(4)
    return codes, _d(blocks)[:, None] * blocks["scales"], q6_k.TOP, None, 16


def _q3_k(blocks: Blocks) -> _Taken:
    codes = split(blocks["qs"].reshape(-1, 32), 2).reshape(-1, 256)
    codes |= split(blocks["hmask"], 1).reshape(-1, 256) << np.uint8(2)
    return codes, _d(blocks)[:, None] * q3_k.unpack_scales(blocks["scales"]), q3_k.TOP, None, 16


_TAKE: dict[str, Callable[[Blocks], _Taken]] = {
    "Q4_0": lambda blocks: (_nibbles(blocks), _d(blocks), 8, None, 32),
    "Q4_1": lambda blocks: (_nibbles(blocks), _d(blocks), None, _d(blocks, "m"), 32),
    "Q5_0": lambda blocks: (_five_bits(blocks), _d(blocks), 16, None, 32),
    "Q5_1": lambda blocks: (_five_bits(blocks), _d(blocks), None, _d(blocks, "m"), 32),
    "Q8_0": lambda blocks: (blocks["qs"].view(np.uint8) ^ np.uint8(128), _d(blocks), 128, None, 32),
    "Q1_0": _of_levels("Q1_0", 1),
    "Q2_0": _of_levels("Q2_0", 1),
    "TQ1_0": _of_levels("TQ1_0", 1),
    "TQ2_0": _of_levels("TQ2_0", 1),
    "IQ4_NL": lambda blocks: (_uneven(_nibbles(blocks)), _d(blocks), 128, None, 32),
    "IQ4_XS": _iq4_xs,
    "Q2_K": _q2_k,
    "Q3_K": _q3_k,
    "Q4_K": _q4_k,
    "Q5_K": _q5_k,
    "Q6_K": _q6_k,
}
