"""The kernels of rounding with error feedback as the core calls them: numpy's bits, many rows at a time."""

from __future__ import annotations

from typing import Any

import numpy as np

from edgekit.errors import UsageError
from edgekit.pipeline import rounding
from edgekit.pipeline.rounding import Places
from edgekit.typing import F32, I16, U8, Indices
from edgekit_numba import encoders, library, products
from edgekit_numba.compiler import processor


def multiply(out: F32, b: I16, a: I16) -> None:
    """As `edgekit.pipeline.rounding.Multiply`."""
    if out.dtype != np.float32 or b.dtype != np.int16 or a.dtype != np.int16 or b.shape[1] % 2:
        raise UsageError(
            f"a product of {b.dtype} {b.shape} and {a.dtype} {a.shape} in {out.dtype}; give int16 with an even number "
            "of columns, and float32"
        )
    if not out.size or not b.shape[1]:
        return
    encoders.require()
    lanes = processor().lanes
    tile, across = products.tile_rows(lanes), products.WIDE * lanes
    rows, columns = (count // step * step for count, step in zip(out.shape, (tile, across), strict=True))
    _products(out[:rows, :columns], b[:rows], a[:columns])
    if columns < out.shape[1]:
        _edge(out[:rows, columns:], b[:rows], a[columns:], (tile, across))
    if rows < len(out):
        _edge(out[rows:], b[rows:], a, (tile, across))


def _edge(out: F32, b: I16, a: I16, whole: tuple[int, int]) -> None:
    """A product whose sides are no whole number of tiles: with zeros around it."""
    n, m = (-(-count // step) * step for count, step in zip(out.shape, whole, strict=True))
    padded = np.zeros((n, m), np.float32)
    padded[: out.shape[0], : out.shape[1]] = out
    _products(padded, _rows(b, n), _rows(a, m))
    out[...] = padded[: out.shape[0], : out.shape[1]]


def _rows(x: I16, count: int) -> I16:
    padded = np.zeros((count, x.shape[1]), np.int16)
    padded[: len(x)] = x
    return padded


def _products(out: F32, b: I16, a: I16) -> None:
    if not out.size:
        return
    b, a = (x if x.strides[1] == 2 and x.strides[0] % 4 == 0 else np.ascontiguousarray(x) for x in (b, a))
    lanes = processor().lanes
    scratch = np.empty(64 * products.WIDE * lanes, np.int32)
    library.kernel("product_int16")(
        out.ctypes.data,
        out.strides[0] // 4,
        b.ctypes.data,
        b.strides[0] // 4,
        a.ctypes.data,
        a.strides[0] // 4,
        scratch.ctypes.data,
        len(out) // products.tile_rows(lanes),
        out.shape[1] // (products.WIDE * lanes),
        b.shape[1] // 2,
    )


def exponential(x: F32) -> None:
    """As `edgekit.pipeline.rounding.Exponential`."""
    if x.dtype != np.float32 or not x.flags.c_contiguous:
        raise UsageError(f"powers of {x.dtype} with strides {x.strides}; give contiguous float32")
    encoders.require()
    kernel, lanes, flat = library.kernel("exponential"), processor().lanes, x.reshape(-1)
    whole = len(flat) // lanes * lanes
    if whole:
        kernel(flat.ctypes.data, whole // lanes)
    if whole < len(flat):
        rest = np.zeros(lanes, np.float32)
        rest[: len(flat) - whole] = flat[whole:]
        kernel(rest.ctypes.data, 1)
        flat[whole:] = rest[: len(flat) - whole]


def feed(targets: F32, errors: F32, codes: U8, weights: F32, places: Places, columns: Indices, spread: F32) -> None:
    """As `edgekit.pipeline.rounding.Feed`."""
    encoders.require()
    rows, groups = targets.shape[1], columns // places.group
    whole = rows // processor().lanes * processor().lanes
    if whole:
        _call("feed", (targets, errors, codes, weights), places, columns, groups, spread, whole)
    if whole < rows:
        tail = _Tail(whole, rows)
        given = [tail.of(x) for x in (targets, errors, codes[columns], weights[columns])]
        _call("feed", given, tail.places(places), np.arange(len(columns)), groups, spread, processor().lanes)
        errors[:, whole:] = given[1][:, : rows - whole]
        codes[columns, whole:] = given[2][:, : rows - whole]


def descend(slopes: F32, values: F32, errors: F32, codes: U8, places: Places, start: int, h: F32) -> int:
    """As `edgekit.pipeline.rounding.Descend`."""
    encoders.require()
    rows, lanes = slopes.shape[1], processor().lanes
    columns = np.arange(start, start + len(slopes))
    groups, whole, changed = columns // places.group, rows // lanes * lanes, 0
    if whole:
        changes = np.empty(whole, np.int32)
        _call("descend", (slopes, values, errors, codes), places, columns, groups, h, whole, changes.ctypes.data)
        changed += int(changes.sum())
    if whole < rows:
        tail, block, changes = _Tail(whole, rows), slice(start, start + len(slopes)), np.empty(lanes, np.int32)
        given = [tail.of(x) for x in (slopes, values[block], errors[block], codes[block])]
        numbers = np.arange(len(slopes))
        _call("descend", given, tail.places(places), numbers, groups, h, lanes, changes.ctypes.data)
        values[block, whole:], errors[block, whole:], codes[block, whole:] = (x[:, : rows - whole] for x in given[1:])
        changed += int(changes[: rows - whole].sum())
    return changed


def substitute(values: F32, factor: F32) -> None:
    """As `edgekit.pipeline.rounding.Substitute`."""
    if values.dtype != np.float32 or factor.dtype != np.float32 or (values.size and values.strides[1] != 4):
        raise UsageError(
            f"equations of {factor.dtype} for {values.dtype} with strides {values.strides}; give float32 with "
            "contiguous rows"
        )
    encoders.require()
    rows, lanes, factor = values.shape[1], processor().lanes, np.ascontiguousarray(factor)
    whole = rows // lanes * lanes
    if whole and len(values):
        given = len(values), factor.ctypes.data, values.ctypes.data, values.strides[0] // 4
        library.kernel("substitute")(whole // lanes, *given)
    if whole < rows:
        rounding.substitute(values[:, whole:], factor)


class _Tail:
    """The last rows, fewer than lanes: with copies of the last one, so that they fill them."""

    def __init__(self, start: int, stop: int) -> None:
        self._rows = np.minimum(np.arange(start, start + processor().lanes), stop - 1)

    def of(self, x: Any) -> Any:
        """A copy of an array's columns [n, rows] for them."""
        return np.ascontiguousarray(x[:, self._rows])

    def places(self, places: Places) -> Places:
        """What codes of those rows stand for."""
        scale, inverse = self.of(places.scale), self.of(places.inverse)
        zero, bias = (None if x is None else self.of(x) for x in (places.zero, places.bias))
        return Places(places.first, places.count, places.group, scale, inverse, zero, bias, places.table)


def _call(
    name: str, arrays: Any, places: Places, columns: Indices, groups: Indices, square: F32, rows: int, *more: int
) -> None:
    """Call a kernel for the first rows, a whole number of vectors."""
    none, levels = np.zeros(rows, np.float32), np.array([places.first, places.count - 1], np.float32)
    if places.table is not None:
        name, levels = f"{name}_table", np.concatenate([places.table, places.middles])
    columns, groups = (np.ascontiguousarray(x, np.int64) for x in (columns, groups))
    square = np.ascontiguousarray(square)
    given: list[int] = []
    for array in arrays:
        given += [array.ctypes.data, array.strides[0] // array.itemsize]
    given += [places.scale.ctypes.data, places.inverse.ctypes.data, places.scale.strides[0] // 4]
    for part in (places.zero, places.bias):
        given += [none.ctypes.data, 0] if part is None else [part.ctypes.data, part.strides[0] // 4]
    library.kernel(name)(
        rows // processor().lanes,
        len(columns),
        columns.ctypes.data,
        groups.ctypes.data,
        square.ctypes.data,
        *given,
        levels.ctypes.data,
        places.count,
        *more,
    )


__all__ = ["descend", "exponential", "feed", "multiply", "substitute"]
