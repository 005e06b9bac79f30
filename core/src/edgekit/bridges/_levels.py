"""A stored tensor as levels under scales: the codes that its format offers, and other codes put in their place.

    value = scale * (table[code] - zero) + bias

The table is the format's own and ascends; scale, zero and bias are those of a group of columns. `levels` reads them,
`recoded` stores other codes under the same scales, `rescaled` other scales that the format can hold. What the format
rounds besides (values to the type of the scales, in MLX and Olive) is left out: `table` and `scale` are exact where
scales are float32 or where products are.
"""

from __future__ import annotations

from collections.abc import Callable

import attrs
import numpy as np

from edgekit.bridges import _minifloats
from edgekit.bridges._lattice import Lattice
from edgekit.bridges._planes import join, split
from edgekit.bridges._read import read
from edgekit.bridges._relation import holds
from edgekit.bridges._write import write
from edgekit.errors import InexactError
from edgekit.numerics.smallfloats import E2M1, E4M3, bfloat16_to_float32, to_float32
from edgekit.precision import Precision
from edgekit.reference.ggml import TYPES, _nonlinear, iq4_xs
from edgekit.reference.ggml._layout import Blocks
from edgekit.reference.openvino import _layout, _scales, codebooks
from edgekit.tensor import QuantizedTensor
from edgekit.typing import F32, U8, Array


@attrs.frozen(eq=False)
class Levels:
    """What the codes of a tensor mean.

    Attributes:
        codes: places in the table, [rows, cols].
        table: ascending values, float32 [n].
        group: columns that share a scale.
        scale: float32 [rows, groups]; may be negative, or 0.
        zero: float32 [rows, groups], subtracted from the table's values; None for 0.
        bias: float32 [rows, groups], added at the end; None for 0.
    """

    codes: U8
    table: F32
    group: int
    scale: F32
    zero: F32 | None = None
    bias: F32 | None = None

    @property
    def even(self) -> bool:
        """Whether the table's values follow one another by 1."""
        return bool((np.diff(self.table) == 1).all())


_SIGNS = np.array([-1, 1], np.float32)
#: Code parts of conventions whose scales are parts of their own.
_CODE_PART = {"affine": "codes", "mlx": "weight", "olive": "qweight", "openvino": "codes"}
#: Patterns of ascending values, without the second zero; and of e4m3 without NaN.
_E2M1 = np.concatenate([E2M1, -E2M1])


def _ascending(values: F32) -> tuple[F32, U8]:
    """The distinct finite values in order, and the first pattern of each."""
    finite = np.flatnonzero(np.isfinite(values))
    table, first = np.unique(values[finite], return_index=True)
    return table.astype(np.float32), finite[first].astype(np.uint8)


_TABLES = {4: _ascending(_E2M1), 8: _ascending(E4M3)}


def levels(tensor: QuantizedTensor) -> Levels:
    """The levels of a stored tensor.

    Raises:
        InexactError: its format has no levels under scales.
    """
    precision = tensor.precision
    if _minifloats.holds(precision):
        return _small(tensor)
    if precision.convention == "openvino" and precision.kind in ("nf4", "cb4"):
        return _codebook(tensor)
    if precision.convention == "ggml" and precision.kind in UNEVEN:
        return _uneven(tensor)
    held = holds(precision)
    if held is None:
        raise InexactError(f"{precision} has no levels under scales")
    lattice = read(_widened(tensor))
    assert isinstance(lattice, Lattice)
    if held.offset == "fixed":
        return _fixed(tensor, lattice)
    table = np.arange(held.high - held.low + 1, dtype=np.float32)
    zero = None if lattice.zero is None else lattice.zero.astype(np.float32)
    return Levels(lattice.codes, table, lattice.group, lattice.scale, zero, lattice.bias)


def has_levels(precision: Precision) -> bool:
    """Whether tensors of a precision have `levels`."""
    table = precision.convention == "openvino" and precision.kind in ("nf4", "cb4")
    return table or bool(_minifloats.holds(precision)) or holds(precision) is not None


def _fixed(tensor: QuantizedTensor, lattice: Lattice) -> Levels:
    """Levels around a zero that the format fixes."""
    precision = tensor.precision
    held = holds(precision)
    assert held is not None
    assert lattice.zero is not None
    zero = int(lattice.zero.flat[0])
    if held.signs:
        return Levels((lattice.codes > zero).astype(np.uint8), _SIGNS, lattice.group, lattice.scale)
    low, high = held.low, held.high
    if precision.reduced:  # its codes stay within the range that the encoder leaves itself
        low, high = int(lattice.codes.min()) - zero, int(lattice.codes.max()) - zero
    if precision.name == "ggml:Q8_0":
        low = -127  # no encoder of ggml writes -128
    codes = np.maximum(lattice.codes.astype(np.int16) - np.int16(zero + low), 0).astype(np.uint8)
    return Levels(codes, np.arange(low, high + 1, dtype=np.float32), lattice.group, lattice.scale)


def _widened(tensor: QuantizedTensor) -> QuantizedTensor:
    """The tensor with float32 scales, which its convention may have in the source's type."""
    if tensor.precision.convention not in ("mlx", "olive"):
        return tensor
    parts = {n: _float32(p) if n in ("scales", "biases") else p for n, p in tensor.parts.items()}
    return attrs.evolve(tensor, parts=parts)


def _float32(values: Array) -> F32:
    return bfloat16_to_float32(values) if values.dtype == np.uint16 else to_float32(values)


def _small(tensor: QuantizedTensor) -> Levels:
    values = _minifloats.read(tensor)
    table = _TABLES[values.bits][0]
    place = np.zeros(1 << values.bits, np.uint8)
    every = _E2M1 if values.bits == 4 else E4M3
    finite = np.isfinite(every)
    place[: len(every)][finite] = np.searchsorted(table, every[finite] + np.float32(0))
    return Levels(place[values.codes], table, values.group, values.scale)


def _codebook(tensor: QuantizedTensor) -> Levels:
    precision, rows, cols = tensor.precision, tensor.rows, tensor.shape[-1]
    codes = _layout.unpack(tensor.parts["codes"].view(np.uint8).reshape(-1), precision.bits, rows * cols)
    scale = _scales.widen(tensor.parts, precision).reshape(rows, -1)
    return Levels(codes.reshape(rows, cols), codebooks.levels(precision), precision.block or cols, scale)


def _uneven(tensor: QuantizedTensor) -> Levels:
    blocks = blocks_of(tensor)
    codes = split(blocks["qs"].reshape(-1, 16), 4).reshape(tensor.rows, -1)
    scale = blocks["d"].astype(np.float32)
    if tensor.precision.kind == "IQ4_XS":
        scale = scale[:, None] * iq4_xs.unpack_scales(blocks)
    return Levels(codes, _nonlinear.VALUES.astype(np.float32), 32, scale.reshape(tensor.rows, -1))


def blocks_of(tensor: QuantizedTensor) -> Blocks:
    return np.ascontiguousarray(tensor.parts["blocks"]).reshape(-1).view(TYPES[tensor.precision.kind].LAYOUT)


def recoded(tensor: QuantizedTensor, codes: U8) -> QuantizedTensor:
    """The tensor with other codes under the same scales.

    Args:
        tensor: one that has `levels`.
        codes: places in their table, [rows, cols].
    """
    precision, cols = tensor.precision, tensor.shape[-1]
    name = _CODE_PART.get(precision.convention, "codes")
    if _minifloats.holds(precision):
        return evolved(tensor, _minifloats.packed(tensor, _TABLES[precision.bits][1][codes]))
    if precision.convention == "openvino" and precision.kind in ("nf4", "cb4"):
        packed = _layout.in_rows(_layout.pack(codes.reshape(-1), precision.bits), len(codes), cols, precision.bits)
        return evolved(tensor, {"codes": packed.view(tensor.parts["codes"].dtype)})
    if precision.convention == "ggml" and precision.kind in _PACK:
        blocks = blocks_of(tensor).copy()
        _PACK[precision.kind](blocks, codes)
        return evolved(tensor, {"blocks": blocks.view(np.uint8).reshape(len(codes), -1)})
    lattice = read(_widened(tensor))
    assert isinstance(lattice, Lattice)
    parts = write(attrs.evolve(lattice, codes=_native(tensor, lattice, codes)), precision, exact=False)
    if precision.convention == "onnx":
        name = "B" if "B" in parts else "codes"
    return evolved(tensor, parts if precision.convention == "ggml" else {name: parts[name]})


def _native(tensor: QuantizedTensor, lattice: Lattice, codes: U8) -> U8:
    """Codes of the table as codes of the lattice."""
    held = holds(tensor.precision)
    assert held is not None
    if held.offset != "fixed":
        return codes
    assert lattice.zero is not None
    zero = int(lattice.zero.flat[0])
    if held.signs:
        return (codes << np.uint8(1)) + np.uint8(zero - 1)
    low = int(_fixed(tensor, lattice).table[0])
    return (codes.astype(np.int16) + np.int16(zero + low)).astype(np.uint8)


def evolved(tensor: QuantizedTensor, parts: dict[str, Array]) -> QuantizedTensor:
    return attrs.evolve(tensor, parts={**tensor.parts, **parts})


def _q2_k(blocks: Blocks, codes: U8) -> None:
    blocks["qs"] = join(codes.reshape(-1, 4, 32), 2).reshape(-1, 64)


def _q3_k(blocks: Blocks, codes: U8) -> None:
    _q2_k(blocks, codes & np.uint8(3))
    blocks["hmask"] = join((codes >> np.uint8(2)).reshape(-1, 8, 32), 1)


def _q4_k(blocks: Blocks, codes: U8) -> None:
    blocks["qs"] = join(codes.reshape(-1, 2, 32), 4).reshape(-1, 128)


def _q5_k(blocks: Blocks, codes: U8) -> None:
    _q4_k(blocks, codes & np.uint8(15))
    blocks["qh"] = join((codes >> np.uint8(4)).reshape(-1, 8, 32), 1)


def _q6_k(blocks: Blocks, codes: U8) -> None:
    blocks["ql"] = join((codes & np.uint8(15)).reshape(-1, 2, 64), 4).reshape(-1, 128)
    blocks["qh"] = join((codes >> np.uint8(4)).reshape(-1, 4, 32), 2).reshape(-1, 64)


def _nibbles(blocks: Blocks, codes: U8) -> None:
    blocks["qs"] = join(codes.reshape(-1, 2, 16), 4).reshape(len(blocks), -1)


UNEVEN = ("IQ4_NL", "IQ4_XS")
_PACK: dict[str, Callable[[Blocks, U8], None]] = {
    "Q2_K": _q2_k,
    "Q3_K": _q3_k,
    "Q4_K": _q4_k,
    "Q5_K": _q5_k,
    "Q6_K": _q6_k,
    "IQ4_NL": _nibbles,
    "IQ4_XS": _nibbles,
}
