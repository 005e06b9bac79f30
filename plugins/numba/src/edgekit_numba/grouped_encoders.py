"""`edgekit.encoding.Quantizer` for integers with a scale for each group: MLX, OpenVINO, ONNX Runtime.

The reference encodes what kernels do not support: groups that are not a multiple of 32, ragged rows, ONNX Runtime's
scales of float16 and bfloat16 weights, and rows with groups whose scale overflows or vanishes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import attrs
import numpy as np

import edgekit_numba
from edgekit.numerics.smallfloats import float32_to_bfloat16, is_bfloat16
from edgekit.precision import Precision, find_precision
from edgekit.reference import Traits, reference
from edgekit.typing import F32, U8, Array
from edgekit_numba import library
from edgekit_numba.compiler import processor
from edgekit_numba.encoders import in_parts, padded, pieces, require
from edgekit_numba.library import ODD

_MULTIPLE = 32


@attrs.frozen
class Groups:
    """The results of a kernel, by row: scales, biases or zero points, packed codes, and a flag for each group."""

    scale: F32
    second: F32
    codes: U8
    flags: U8


@attrs.frozen
class GroupEncoder:
    """The encoder of one precision."""

    traits: ClassVar[Traits] = Traits(widens=True)

    precision: Precision

    def encode(self, x: Array, importance: F32 | None = None) -> Mapping[str, Array]:
        """Encode rows [rows, cols]; see `edgekit.reference.Reference.encode`. Importance is ignored."""
        groups = self._run(x)
        if groups is None:
            return reference(self.precision).encode(x, self.precision, importance)
        parts, rows = self._parts(groups, x), np.flatnonzero((groups.flags & ODD).any(axis=1))
        return self._encode_anew(x, rows, parts) if len(rows) else parts

    def encode_checked(self, x: Array, importance: F32 | None = None) -> Mapping[str, Array] | None:
        """Encode as `encode`; None if the kernel skips a group or a magnitude is above 65504."""
        groups = self._run(x)
        return None if groups is None or groups.flags.any() else self._parts(groups, x)

    def _parts(self, groups: Groups, x: Array) -> dict[str, Array]:
        return _PARTS[self.precision.convention](groups, self.precision, x.dtype)

    def _encode_anew(self, x: Array, rows: Array, parts: dict[str, Array]) -> dict[str, Array]:
        by_row = {name: part for name, part in parts.items() if part.ndim}
        if any(len(part) != len(x) for part in by_row.values()):  # a part whose rows share bytes
            return reference(self.precision).encode(x, self.precision)
        anew = reference(self.precision).encode(np.ascontiguousarray(x[rows]), self.precision)
        for name, part in by_row.items():
            part[rows] = anew[name]
        return parts

    def _run(self, x: Array) -> Groups | None:
        """Return the kernel's results for rows [rows, cols]; None if there is no kernel for them."""
        size = self.precision.block or x.shape[1]
        exact_source = self.precision.convention != "onnx" or x.dtype == np.float32
        if size % _MULTIPLE or x.shape[1] % size or not exact_source:
            return None
        groups = np.ascontiguousarray(x).reshape(-1, size)  # the kernel gets the address alone
        scale, second = np.empty(len(groups), np.float32), np.empty(len(groups), np.float32)
        codes = np.empty((len(groups), size * self.precision.bits // 8), np.uint8)
        flags = np.empty(len(groups), np.uint8)
        results: list[Array] = [scale, second, codes, flags]
        kernel = library.kernel(kernel_name(self.precision))

        def run(part: slice) -> None:
            for piece, values in pieces(groups[part]):
                _run_float32(kernel, [values, *(v[part][piece] for v in results)])

        in_parts(run, groups)
        rows = len(x)
        return Groups(*(array.reshape(rows, -1) for array in results))


def _run_float32(kernel: Any, arrays: list[Array]) -> None:
    """Call the kernel with groups [groups, n] and the arrays for its results; the last lanes are padded with zeros."""
    count, lanes = len(arrays[0]), processor().lanes
    whole = count // lanes * lanes
    if whole:
        _call(kernel, [v[:whole] for v in arrays])
    if whole < count:
        tail = [padded(v[whole:], lanes) for v in arrays]
        _call(kernel, tail)
        for room, done in zip(arrays[1:], tail[1:], strict=True):
            room[whole:] = done[: count - whole]


def _call(kernel: Any, arrays: list[Array]) -> None:
    groups, size = arrays[0].shape
    kernel(*(array.ctypes.data for array in arrays), groups // processor().lanes, size)


def kernel_name(precision: Precision) -> str:
    """Return the kernel of a precision."""
    name = f"{precision.convention}_int{precision.bits}"
    return name if precision.convention == "mlx" else f"{name}_{'sym' if precision.symmetric else 'asym'}"


def _mlx_parts(groups: Groups, precision: Precision, dtype: np.dtype[Any]) -> dict[str, Array]:
    weight = groups.codes.view("<u4").astype(np.uint32, copy=False)
    with np.errstate(over="ignore"):
        return {"weight": weight, "scales": _narrow(groups.scale, dtype), "biases": _narrow(groups.second, dtype)}


def _narrow(values: F32, dtype: np.dtype[Any]) -> Array:
    """Round to the source's type."""
    return float32_to_bfloat16(values).view(dtype) if is_bfloat16(dtype) else values.astype(dtype, copy=False)


def _openvino_parts(groups: Groups, precision: Precision, dtype: np.dtype[Any]) -> dict[str, Array]:
    signed = precision.bits == 8 and precision.symmetric
    with np.errstate(over="ignore", under="ignore"):
        scale = groups.scale.astype(np.float16)
    parts: dict[str, Array] = {"codes": groups.codes.view(np.int8) if signed else groups.codes}
    parts["scale"] = scale[..., None] if precision.block else scale
    if precision.bits == 2:
        parts["zero_point"] = np.array(2, np.int8)
    elif not precision.symmetric:
        parts["zero_point"] = _packed(groups.second.astype(np.uint8), precision.bits)
    return parts


def _packed(zero_points: U8, bits: int) -> U8:
    """Pack zero points [rows, groups] as bytes [rows, groups * b / 8], or flat if rows share bytes."""
    if bits == 8:
        return zero_points
    if zero_points.shape[1] % 2:
        flat = zero_points.reshape(-1)
        flat = np.append(flat, np.uint8(0)) if flat.size % 2 else flat
        return flat[::2] | (flat[1::2] << np.uint8(4))
    return zero_points[:, ::2] | (zero_points[:, 1::2] << np.uint8(4))


def _onnx_parts(groups: Groups, precision: Precision, dtype: np.dtype[Any]) -> dict[str, Array]:
    rows, blocks = groups.scale.shape
    parts: dict[str, Array] = {"B": groups.codes.reshape(rows, blocks, -1), "scales": groups.scale}
    if precision.symmetric:
        return parts
    per_byte = 8 // precision.bits
    zero_points = np.full((rows, -(-blocks // per_byte) * per_byte), 1 << (precision.bits - 1), np.uint8)
    zero_points[:, :blocks] = groups.second
    packed = np.zeros((rows, zero_points.shape[1] // per_byte), np.uint8)
    for place in range(per_byte):
        packed |= zero_points[:, place::per_byte] << np.uint8(place * precision.bits)
    return {**parts, "zero_points": packed}


_PARTS: dict[str, Callable[[Groups, Precision, np.dtype[Any]], dict[str, Array]]] = {
    "mlx": _mlx_parts,
    "openvino": _openvino_parts,
    "onnx": _onnx_parts,
}


@functools.cache
def _encoder(name: str) -> GroupEncoder:
    return GroupEncoder(find_precision(name))


def __getattr__(name: str) -> GroupEncoder:
    """Return the encoder of a precision, by its name with ``_`` for other characters: ``mlx_int4_g64``."""
    for precision in edgekit_numba.GROUPED:
        if attribute(precision) == name:
            require()
            return _encoder(precision)
    raise AttributeError(name)


def attribute(precision: str) -> str:
    """Return the attribute of this module that encodes a precision."""
    return precision.replace(":", "_").replace("-", "_")


__all__ = ["GroupEncoder", "Groups", "attribute", "kernel_name"]
