"""Integers with one scale for a group of neighbours, as MLX, OpenVINO and ONNX Runtime define them.

A lane is a group. Its length is an argument of the kernel, a multiple of 32, so that one kernel serves every group
size and whole rows; a group is read twice, once for its extremes and once for its codes.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import attrs

from edgekit_numba.kernels import LARGEST, SAFE, function, set_flags
from edgekit_numba.layout import Output, turned
from edgekit_numba.rounding import nearest_int, rint
from edgekit_numba.vectors import F32, I8, I64, Code, Vector, select

_CHUNK = 32  # elements whose codes fill whole words for every number of bits
_BELOW_HALF = 0.49999997  # the largest float32 below one half
_MLX_EPS = 1e-7
_OPENVINO_EPS = 2.0**-23


@attrs.frozen
class Fit:
    """The parameters of groups, from their extremes.

    Attributes:
        scale: of the codes.
        second: the bias or the zero point, as float32.
        odd: groups that the reference must encode.
        code: returns the code of an element as int32, all higher bits zero.
    """

    scale: Vector
    second: Vector
    odd: Vector
    code: Callable[[Vector], Vector]


#: Function from the smallest, largest and first element of a group to its fit.
Fitter = Callable[[Vector, Vector, Vector], Fit]


def mlx(low: Vector, high: Vector, first: Vector, bits: int) -> Fit:
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
    return Fit(scale, bias, odd, lambda v: nearest_int(_clip((v - bias) / scale, 0, top)))


def openvino_symmetric(low: Vector, high: Vector, first: Vector, bits: int) -> Fit:
    """Return NNCF's symmetric fit: signed scales; codes in two's complement, 2-bit codes plus 2."""
    half = 1 << (bits - 1)
    scale = select(~(abs(low) < high), abs(low), -high) / half
    scale = select(abs(scale) < _OPENVINO_EPS, _OPENVINO_EPS, scale)
    shift = half if bits == 2 else 0
    mask = (1 << bits) - 1
    code = partial(_openvino_code, scale=scale, half=half, shift=shift, mask=mask)
    return Fit(scale, scale, scale.nonfinite(), code)


def _openvino_code(v: Vector, scale: Vector, half: int, shift: int, mask: int) -> Vector:
    return (nearest_int(_clip(v / scale, -half, half - 1)) + shift) & mask


def openvino_asymmetric(low: Vector, high: Vector, first: Vector, bits: int) -> Fit:
    """Return NNCF's asymmetric fit: the sum with the zero point is rounded before the code."""
    top = (1 << bits) - 1
    low, high = select(low < 0, low, 0), select(high > 0, high, 0)
    scale = (high - low) / top
    scale = select(scale > _OPENVINO_EPS, scale, _OPENVINO_EPS)
    zero = _clip(-rint(low / scale), 0, top)
    return Fit(scale, zero, scale.nonfinite(), lambda v: nearest_int(_clip(v / scale + zero, 0, top)))


def onnx(low: Vector, high: Vector, first: Vector, bits: int, symmetric: bool) -> Fit:
    """Return MatMulNBits' fit: codes from a product with the reciprocal, rounded half away from zero."""
    top, middle = (1 << bits) - 1, 1 << (bits - 1)
    if symmetric:
        edge = select(abs(high) > abs(low), high, low)
        scale = select(edge == 0, first, edge) / -middle
        zero = first.code.f32(middle)
    else:
        low, high = select(low < 0, low, 0), select(high > 0, high, 0)
        scale = abs(high - low) / top
        exact = select(scale != 0, 0 - low / scale, 0)
        zero = (_clip(exact, 0, top) + _BELOW_HALF).to_int().to_float()
    reciprocal = select(scale != 0, 1 / scale, 0)
    odd = scale.nonfinite() | reciprocal.nonfinite()
    return Fit(scale, zero, odd, lambda v: (_clip(v * reciprocal + zero, 0, top) + _BELOW_HALF).to_int())


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
        rows = builder.gep(x, [builder.mul(group, size)])
        low, high, first, largest = _extremes(code, rows, size)
        fits = self.fit(low, high, first)
        for pointer, values in ((scales, fits.scale), (seconds, fits.second)):
            _store(code, builder.gep(pointer, [group]), values.value)
        set_flags(code, flags, group, fits.odd | (largest > LARGEST), largest > SAFE)
        width = builder.mul(builder.udiv(size, code.index(_CHUNK)), code.index(4 * self.bits))
        out = Output(code, builder.gep(codes, [builder.mul(group, width)]), width)
        with code.loop(builder.udiv(size, code.index(_CHUNK))) as chunk:
            quantized = []
            for quarter in range(0, _CHUNK, 4):
                vectors = turned(code, rows, size, code.scaled(chunk, _CHUNK, quarter))
                quantized += [fits.code(v) for v in vectors]
            out.words(code.scaled(chunk, 4 * self.bits), _stream(quantized, self.bits))


def _extremes(code: Code, rows: Any, size: Any) -> tuple[Vector, Vector, Vector, Vector]:
    """Return smallest, largest and first element of each group, and the bits of the largest magnitude."""
    first = turned(code, rows, size, code.index(0))[0]
    low, high, largest = code.variable(first), code.variable(first), code.variable(code.i32(0))
    with code.loop(code.builder.udiv(size, code.index(4))) as quarter:
        for v in turned(code, rows, size, code.scaled(quarter, 4)):
            low.set(v, v < low.get())
            high.set(v, v > high.get())
            magnitude = v.bits() & 0x7FFFFFFF
            largest.set(magnitude, magnitude > largest.get())
    return low.get(), high.get(), first, largest.get()


def _store(code: Code, pointer: Any, values: Any) -> None:
    code.builder.store(values, code.builder.bitcast(pointer, values.type.as_pointer()), align=1)


def _stream(codes: list[Vector], bits: int) -> list[Vector]:
    """Write codes as one stream of 32-bit words, the first code in the lowest bits."""
    words = [codes[0].code.i32(0) for _ in range(len(codes) * bits // 32)]
    for j, code in enumerate(codes):
        word, place = divmod(j * bits, 32)
        words[word] = words[word] | (code << place)
        if place + bits > 32:
            words[word + 1] = words[word + 1] | (code >> (32 - place))
    return words


def emitters() -> list[Grouped]:
    """Return the kernels of this module."""
    kernels = [Grouped(f"mlx_int{bits}", bits, partial(mlx, bits=bits)) for bits in (2, 3, 4, 5, 6, 8)]
    kernels += [Grouped(f"openvino_int{bits}_sym", bits, partial(openvino_symmetric, bits=bits)) for bits in (2, 4, 8)]
    kernels += [Grouped(f"openvino_int{bits}_asym", bits, partial(openvino_asymmetric, bits=bits)) for bits in (4, 8)]
    for bits in (2, 4, 8):
        for kind in ("sym", "asym"):
            kernels.append(Grouped(f"onnx_int{bits}_{kind}", bits, partial(onnx, bits=bits, symmetric=kind == "sym")))
    return kernels


__all__ = ["Fit", "Fitter", "Grouped", "emitters", "mlx", "onnx", "openvino_asymmetric", "openvino_symmetric"]
