"""What lies between products, with the kernels: floats as integers and back, sums, and the weights of a softmax."""

from __future__ import annotations

import numpy as np

from edgekit.errors import UsageError
from edgekit.pipeline import rounding
from edgekit.pipeline.rounding import Words
from edgekit.typing import F32, F64, I16, Array
from edgekit_numba import encoders, library
from edgekit_numba.compiler import processor
from edgekit_numba.narrowing import TURNED


def largest(x: F32, axis: int) -> F32:
    """As `edgekit.pipeline.rounding.Largest`."""
    whole = _whole(x)
    found = np.zeros(x.shape[1 - axis], np.float32)
    if len(x) and whole:
        name = "largest_columns" if axis == 0 else "largest_rows"
        library.kernel(name)(*_given(x), found.ctypes.data, len(x), whole // processor().lanes)
    if whole < x.shape[1]:
        rest = rounding.largest(x[:, whole:], axis)
        if axis == 0:
            found[whole:] = rest
        else:
            np.maximum(found, rest, out=found)
    return found


def narrow(out: I16, x: F32, inverse: F32) -> None:
    """As `edgekit.pipeline.rounding.Narrow`."""
    whole, inverse = _whole(x, out), np.ascontiguousarray(inverse)
    if len(x) and whole:
        given = *_given(x), inverse.ctypes.data, *_given(out)
        library.kernel("narrow_rows")(*given, len(x), whole // processor().lanes)
    if whole < x.shape[1]:
        rounding.narrow(out[:, whole:], x[:, whole:], inverse)


def turn(out: Words, x: F32, inverse: F32) -> None:
    """As `edgekit.pipeline.rounding.Turn`."""
    whole, rows, inverse = _whole(x, out), len(x) // TURNED * TURNED, np.ascontiguousarray(inverse)
    if rows and whole:
        given = *_given(x), inverse.ctypes.data, *_given(out)
        library.kernel("narrow_columns")(*given, rows // TURNED, whole // processor().lanes)
    if rows < len(x):
        rounding.turn(out[:, rows // 2 :], x[rows:], inverse)
    if rows and whole < x.shape[1]:
        rounding.turn(out[whole:, : rows // 2], x[:rows, whole:], inverse[whole:])


def units(out: I16, x: F32, factor: F32, inverse: F32) -> None:
    """As `edgekit.pipeline.rounding.Units`."""
    whole, rows = _whole(x, out), len(x) // TURNED * TURNED
    if out.ctypes.data % 4 or out.strides[0] % 4:  # the kernel writes words
        rows = 0
    factor, inverse = np.ascontiguousarray(factor), np.ascontiguousarray(inverse)
    if rows and whole:
        given = *_given(x), factor.ctypes.data, inverse.ctypes.data, out.ctypes.data, out.strides[0] // 4
        library.kernel("cut_columns")(*given, rows // TURNED, whole // processor().lanes)
    if rows < len(x):
        rounding.units(out[:, rows:], x[rows:], factor[rows:], inverse)
    if rows and whole < x.shape[1]:
        rounding.units(out[whole:, :rows], x[:rows, whole:], factor[:rows], inverse[whole:])


def totals(x: F32, y: F32 | None = None) -> F64:
    """As `edgekit.pipeline.rounding.Totals`."""
    found, factors = np.zeros(x.shape[1], np.float64), y
    if factors is None:
        factors = np.broadcast_to(np.ones(x.shape[1], np.float32), x.shape)
    whole = min(_whole(x), _whole(factors))
    if len(x) and whole:
        given = *_given(x), *_given(factors), found.ctypes.data
        library.kernel("totals")(*given, len(x), whole // processor().lanes)
    if whole < x.shape[1]:
        found[whole:] = rounding.totals(x[:, whole:], None if y is None else y[:, whole:])
    return found


def scale(out: F32, of_rows: F32, of_columns: F32) -> None:
    """As `edgekit.pipeline.rounding.Scale`."""
    whole = _whole(out)
    if len(out) and whole:
        rows, columns = np.ascontiguousarray(of_rows), np.ascontiguousarray(of_columns)
        given = *_given(out), rows.ctypes.data, columns.ctypes.data
        library.kernel("scale_both")(*given, len(out), whole // processor().lanes)
    if whole < out.shape[1]:
        rounding.scale(out[:, whole:], of_rows, of_columns[whole:])


def weigh(scores: F32) -> F32:
    """As `edgekit.pipeline.rounding.Weigh`."""
    whole, sums = _whole(scores), np.empty(scores.shape[1], np.float32)
    if whole:
        library.kernel("weigh")(*_given(scores), sums.ctypes.data, len(scores), whole // processor().lanes)
    if whole < scores.shape[1]:
        rest = np.ascontiguousarray(scores[:, whole:])
        sums[whole:] = rounding.weigh(rest)
        scores[:, whole:] = rest
    return sums


def _whole(x: F32, out: Array | None = None) -> int:
    """Columns that fill the lanes; checks that elements of a row lie next to each other."""
    for array, dtypes in ((x, (np.float32,)), (out, (np.int16, np.int32))):
        if array is None:
            continue
        apart = array.size and array.shape[1] > 1 and array.strides[1] != array.itemsize
        if array.dtype not in dtypes or apart:
            raise UsageError(
                f"{array.dtype} {array.shape} with strides {array.strides}; give float32, and int16 or int32 for the "
                "result, whose rows are contiguous"
            )
    encoders.require()
    return int(x.shape[1]) // processor().lanes * processor().lanes


def _given(x: Array) -> tuple[int, int]:
    """The address, and the stride in elements."""
    return x.ctypes.data, x.strides[0] // x.itemsize


__all__ = ["largest", "narrow", "scale", "totals", "turn", "units", "weigh"]
