"""Integers with one scale for a group of neighbours, as MLX, OpenVINO and ONNX Runtime define them.

The length of a group is an argument of the kernel, a multiple of 32, so that one kernel serves every group size and
whole rows. As many groups as lanes are read twice: once for their extremes, from which the scales are computed with a
group in each lane; and once for the codes, with an element in each lane.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import attrs
from llvmlite import ir

from edgekit_numba.elementwise import Numbers, first_sign
from edgekit_numba.kernels import LARGEST, SAFE, function, set_flags
from edgekit_numba.layout import across, folded, joined
from edgekit_numba.rounding import nearest_within, rint
from edgekit_numba.vectors import F32, I1, I8, I32, I64, Code, Vector, constant, higher, lower, select

_CHUNK = 32  # elements whose codes fill whole words for every number of bits
_MAGNITUDE = 0x7FFFFFFF
_BELOW_HALF = 0.49999997  # the largest float32 below one half
_MLX_EPS = 1e-7
_OPENVINO_EPS = 2.0**-23


@attrs.frozen
class Fit:
    """The parameters of groups, a group in each lane.

    Attributes:
        scale: of the codes.
        second: the bias or the zero point, as float32.
        odd: groups that the reference must encode.
        numbers: parameters for encoding an element.
        code: returns the code of an element as int32, all higher bits zero, given the numbers of its group.
    """

    scale: Vector
    second: Vector
    odd: Vector
    numbers: tuple[Vector, ...]
    code: Callable[..., Vector]


class Fitter(Protocol):
    """Function from the smallest and the largest element of each group, a group in each lane, to its fit."""

    def __call__(self, low: Vector, high: Vector, groups: Groups, *, bits: int) -> Fit:
        """Return the fit."""


def mlx(low: Vector, high: Vector, groups: Groups, *, bits: int) -> Fit:
    """Return MLX's affine fit, in float32."""
    top = (1 << bits) - 1
    at_bottom = abs(low) > abs(high)
    step = (high - low) / top
    step = select(step > _MLX_EPS, step, _MLX_EPS)
    step = select(at_bottom, step, -step)
    edge = select(at_bottom, low, high)
    steps = rint(edge / step)
    scale, bias = select(steps != 0, edge / steps, step), select(steps != 0, edge, 0)
    odd = scale.nonfinite() | (scale == 0)
    return Fit(scale, bias, odd, (scale, bias), partial(_mlx_code, top=top))


def _mlx_code(v: Vector, scale: Vector, bias: Vector, top: int) -> Vector:
    return nearest_within((v - bias) / scale, 0, top)


def mlx_one_bit(low: Vector, high: Vector, groups: Groups, *, bits: int) -> Fit:
    """Return MLX's affine fit of one bit: the codes are the extremes."""
    step = high - low
    scale, bias = select(step > _MLX_EPS, step, _MLX_EPS), groups.first_zero(low)
    return Fit(scale, bias, scale.nonfinite(), (scale, bias), partial(_mlx_code, top=1))


def openvino_symmetric(low: Vector, high: Vector, groups: Groups, *, bits: int) -> Fit:
    """Return NNCF's symmetric fit: signed scales; codes in two's complement, 2-bit codes plus 2."""
    half = 1 << (bits - 1)
    scale = select(~(abs(low) < high), abs(low), -high) / half
    scale = select(abs(scale) < _OPENVINO_EPS, _OPENVINO_EPS, scale)
    shift = half if bits == 2 else 0
    mask = (1 << bits) - 1
    code = partial(_openvino_code, half=half, shift=shift, mask=mask)
    return Fit(scale, scale, scale.nonfinite(), (scale,), code)


def _openvino_code(v: Vector, scale: Vector, half: int, shift: int, mask: int) -> Vector:
    return (nearest_within(v / scale, -half, half - 1) + shift) & mask


def openvino_asymmetric(low: Vector, high: Vector, groups: Groups, *, bits: int) -> Fit:
    """Return NNCF's asymmetric fit: the sum with the zero point is rounded before the code."""
    top = (1 << bits) - 1
    low, high = select(low < 0, low, 0), select(high > 0, high, 0)
    scale = (high - low) / top
    scale = select(scale > _OPENVINO_EPS, scale, _OPENVINO_EPS)
    zero = _clip(-rint(low / scale), 0, top)
    return Fit(scale, zero, scale.nonfinite(), (scale, zero), partial(_zero_point_code, top=top))


def _zero_point_code(v: Vector, scale: Vector, zero: Vector, top: int) -> Vector:
    return nearest_within(v / scale + zero, 0, top)


def onnx_symmetric(low: Vector, high: Vector, groups: Groups, *, bits: int) -> Fit:
    """Return MatMulNBits' fit without a zero point: the sign of the first zero is that of an empty group's scale."""
    middle = 1 << (bits - 1)
    edge = select(abs(high) > abs(low), high, low)
    scale = select(edge == 0, groups.first(), edge) / -middle
    return _onnx(scale, scale.code.f32(middle), bits)


def onnx_asymmetric(low: Vector, high: Vector, groups: Groups, *, bits: int) -> Fit:
    """Return MatMulNBits' fit with a zero point."""
    top = (1 << bits) - 1
    low, high = select(low < 0, low, 0), select(high > 0, high, 0)
    scale = abs(high - low) / top
    exact = select(scale != 0, 0 - low / scale, 0)
    zero = (_clip(exact, 0, top) + _BELOW_HALF).to_int().to_float()
    return _onnx(scale, zero, bits)


def _onnx(scale: Vector, zero: Vector, bits: int) -> Fit:
    """Return MatMulNBits' fit: codes from a product with the reciprocal, rounded half away from zero."""
    reciprocal = select(scale != 0, 1 / scale, 0)
    odd = scale.nonfinite() | reciprocal.nonfinite()
    return Fit(scale, zero, odd, (reciprocal, zero), partial(_onnx_code, top=(1 << bits) - 1))


def _onnx_code(v: Vector, reciprocal: Vector, zero: Vector, top: int) -> Vector:
    return (_clip(v * reciprocal + zero, 0, top) + _BELOW_HALF).to_int()


def _clip(v: Vector, low: int, high: int) -> Vector:
    v = select(v < low, low, v)
    return select(v > high, high, v)


@attrs.frozen
class Grouped:
    """The kernel ``name(x, scales, seconds, codes, odd, groups, size)``; `groups` counts whole sets of lanes.

    Attributes:
        name: of the function.
        bits: of a code.
        fit: computes scale and codes.
    """

    name: str
    bits: int
    fit: Fitter

    def __call__(self, lanes: int) -> str:
        """Return LLVM's text of the module."""
        f32, i8 = F32.as_pointer(), I8.as_pointer()
        arguments = [f32, f32, f32, i8, i8, I64, I64]
        with function(self.name, arguments, lanes) as (code, given), code.loop(given[5]) as group:
            self._groups(code, given, code.scaled(group, lanes))
        return code.text()

    def _groups(self, code: Code, arguments: Any, group: Any) -> None:
        builder, (x, scales, seconds, codes, flags, _, size) = code.builder, arguments
        groups = Groups(code, builder.gep(x, [builder.mul(group, size)]), size)
        low, high, largest = groups.extremes()
        fit = self.fit(low, high, groups, bits=self.bits)
        for pointer, vector in ((scales, fit.scale), (seconds, fit.second)):
            _store(code, builder.gep(pointer, [group]), vector.value)
        set_flags(code, flags, group, fit.odd | (largest > LARGEST), largest > SAFE)
        numbers = [Numbers(parameter) for parameter in fit.numbers]
        with code.loop(code.lanes) as lane:
            parameters = [number.one(lane) for number in numbers]
            with code.loop(groups.chunks) as chunk:
                quantized = [fit.code(v, *parameters) for v in groups.elements(lane, chunk)]
                index = builder.add(builder.mul(builder.add(group, lane), groups.chunks), chunk)
                place = builder.gep(codes, [code.scaled(index, _CHUNK * self.bits // 8)])
                _store(code, place, _stream(code, quantized, self.bits))


class Groups:
    """As many groups of `size` float32 as lanes, one after another in memory."""

    def __init__(self, code: Code, pointer: Any, size: Any) -> None:
        self.code, self._pointer, self._size = code, pointer, size
        self.chunks = code.builder.udiv(size, code.index(_CHUNK))

    def elements(self, group: Any, chunk: Any) -> list[Vector]:
        """Return the elements of a chunk of a group, in vectors that follow each other."""
        builder = self.code.builder
        first = builder.add(builder.mul(group, self._size), self.code.scaled(chunk, _CHUNK))
        pointer = builder.gep(self._pointer, [first])
        return [self.code.load(pointer, k) for k in range(0, _CHUNK, self.code.lanes)]

    def first(self) -> Vector:
        """Return the first element of each group."""
        first = Numbers(self.code.f32(0))
        with self.code.loop(self.code.lanes) as lane:
            at = self.code.builder.gep(self._pointer, [self.code.builder.mul(lane, self._size)])
            first.set_one(lane, self.code.builder.load(at, align=4))
        return first.get()

    def first_zero(self, low: Vector) -> Vector:
        """Return `low`, the smallest elements, with the sign of its group's first zero where it is zero."""
        code, builder, signs = self.code, self.code.builder, Numbers(self.code.i32(0))
        with code.where_any(low == 0), code.loop(code.lanes) as lane, code.loop(self.chunks) as step:
            chunk = builder.sub(builder.sub(self.chunks, code.index(1)), step)  # the last first
            bits = [v.bits() for v in self.elements(lane, chunk)]
            zeros = code.word([(b & _MAGNITUDE) == 0 for b in bits])
            has_zero = builder.icmp_unsigned("!=", zeros, ir.Constant(I32, 0))
            signs.set_one(lane, builder.select(has_zero, first_sign(code, zeros, bits), signs.get_one(lane)))
        return select(low == 0, signs.get().as_float(), low)

    def extremes(self) -> tuple[Vector, Vector, Vector]:
        """Return the smallest and the largest element of each group, and the bits of its largest magnitude.

        Zero may come with either sign. The bits are above those of any finite float32 for NaN or infinity.
        """
        lanes = self.code.lanes
        lows, highs, magnitudes = self.code.rows(lanes), self.code.rows(lanes), self.code.rows(lanes, I32)
        with self.code.loop(lanes) as lane:
            any_element = self.elements(lane, 0)[0]
            low, high = self.code.variable(any_element), self.code.variable(any_element)
            largest = self.code.variable(self.code.i32(0))
            with self.code.loop(self.chunks) as chunk:
                vectors = self.elements(lane, chunk)
                low.set(folded([low.get(), *vectors], lower))
                high.set(folded([high.get(), *vectors], higher))
                largest.set(folded([largest.get(), *(v.bits() & _MAGNITUDE for v in vectors)], higher))
            lows[lane], highs[lane], magnitudes[lane] = low.get(), high.get(), largest.get()
        return across(list(lows), lower), across(list(highs), higher), across(list(magnitudes), higher)


def _store(code: Code, pointer: Any, values: Any) -> None:
    code.builder.store(values, code.builder.bitcast(pointer, values.type.as_pointer()), align=1)


def _stream(code: Code, codes: list[Vector], bits: int) -> Any:
    """Return the bytes of codes that follow each other in one stream, the first code in the lowest bits.

    Neighbours are joined, then pairs, then fours, until what is joined fills whole bytes; the empty bytes are dropped.
    """
    builder, width, filled = code.builder, 8, bits
    values = joined(code, [v.value for v in codes])
    if bits == 1:
        return builder.bitcast(builder.trunc(values, ir.VectorType(I1, _CHUNK)), I32)
    values = builder.trunc(values, ir.VectorType(I8, _CHUNK))
    while filled % 8:
        kind = ir.VectorType(ir.IntType(2 * width), 8 * _CHUNK // (2 * width))
        values = builder.bitcast(values, kind)
        ones = (1 << filled) - 1
        low = builder.and_(values, constant(kind, ones))
        moved = builder.lshr(values, constant(kind, width - filled))
        values = builder.or_(low, builder.and_(moved, constant(kind, ones << filled)))
        width, filled = 2 * width, 2 * filled
    values = builder.bitcast(values, ir.VectorType(I8, _CHUNK))
    kept = [start + byte for start in range(0, _CHUNK, width // 8) for byte in range(filled // 8)]
    return code.shuffle(values, values, kept)


def emitters() -> list[Grouped]:
    """Return the kernels of this module."""
    kernels = [Grouped("mlx_int1", 1, mlx_one_bit)]
    kernels += [Grouped(f"mlx_int{bits}", bits, mlx) for bits in (2, 3, 4, 5, 6, 8)]
    kernels += [Grouped(f"openvino_int{bits}_sym", bits, openvino_symmetric) for bits in (2, 4, 8)]
    kernels += [Grouped(f"openvino_int{bits}_asym", bits, openvino_asymmetric) for bits in (4, 8)]
    for bits in (2, 4, 8):
        kernels.append(Grouped(f"onnx_int{bits}_sym", bits, onnx_symmetric))
        kernels.append(Grouped(f"onnx_int{bits}_asym", bits, onnx_asymmetric))
    return kernels


__all__ = [
    "Fit",
    "Fitter",
    "Grouped",
    "Groups",
    "emitters",
    "mlx",
    "mlx_one_bit",
    "onnx_asymmetric",
    "onnx_symmetric",
    "openvino_asymmetric",
    "openvino_symmetric",
]
