"""`edgekit.encoding.Quantizer` for each block type: kernels encode the blocks, the reference those that kernels skip.

A kernel skips a block if C's conversions are undefined or a scale overflows: infinities and NaN, and steps so small
that their reciprocal is infinite. Such rows are rare; the reference encodes them.
"""

from __future__ import annotations

import functools
import os
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import attrs
import numpy as np

import edgekit_numba
from edgekit.errors import MissingPluginError
from edgekit.files.buffers import uninitialized
from edgekit.files.workers import Workers, cores
from edgekit.numerics.smallfloats import as_float32
from edgekit.precision import find_precision
from edgekit.reference import Traits, reference
from edgekit.reference.ggml import GRIDS, TYPES, needs_importance
from edgekit.typing import F32, U8, Array
from edgekit_numba import grid_tables, library
from edgekit_numba.compiler import llvm, processor
from edgekit_numba.library import ODD

#: float32, float16, or ml_dtypes' bfloat16.
Narrow = Array

#: Elements that are widened together, of whole groups of blocks: 256 KiB of float32, which stay in the L2 cache.
PIECE = 1 << 16
#: Elements that all threads together have widened at a time: 16 MiB of float32, on any number of cores.
WIDENED = 1 << 22
#: Elements encoded by one thread at a time; `edgekit.quantize` hands in no more, and has threads of its own.
PART = 1 << 21
_TYPES = TYPES | GRIDS
_PROVED = ("x86_64", "amd64", "aarch64", "arm64")


def require() -> None:
    """Raise on a platform on which the kernels cannot run or are not tested.

    Raises:
        MissingPluginError: states the reason and the cure.
    """
    machine = platform.machine().lower()
    if machine not in _PROVED and os.environ.get("EDGEKIT_NUMBA_UNPROVED") != "1":
        raise MissingPluginError(
            f"edgekit-numba's kernels are proved on x86-64 and ARM64 only, this is {machine}; "
            "EDGEKIT_NUMBA_UNPROVED=1 uses them all the same"
        )
    llvm()


@attrs.frozen
class Encoder:
    """The encoder of one block type.

    Attributes:
        kind: ggml's name of the type.
    """

    kind: str

    @property
    def traits(self) -> Traits:
        """It widens rows itself; some types refuse rows without an importance matrix."""
        return _traits(self.kind)

    def encode(self, x: Narrow, importance: F32 | None = None) -> Mapping[str, Array]:
        """Encode rows [rows, cols]; see `edgekit.reference.Reference.encode`."""
        blocks, flags = self._encode(x, importance)
        left = np.flatnonzero((flags & ODD).any(axis=1))
        if len(left):
            precision = find_precision(f"ggml:{self.kind}")
            blocks[left] = reference(precision).encode(as_float32(x[left]), precision, importance)["blocks"]
        return {"blocks": blocks}

    def encode_checked(self, x: Narrow, importance: F32 | None = None) -> Mapping[str, Array] | None:
        """Encode as `encode`; None if the kernel skips a block or a magnitude is above 65504."""
        blocks, flags = self._encode(x, importance)
        return None if np.count_nonzero(flags) else {"blocks": blocks}  # a tenth of the time of `any`

    def _encode(self, x: Narrow, importance: F32 | None) -> tuple[U8, U8]:
        """Return blocks [rows, bytes], and the kernel's flags [rows, blocks]."""
        if importance is None and self.traits.needs_importance:
            precision = find_precision(f"ggml:{self.kind}")
            reference(precision).encode(as_float32(x[:1]), precision)  # raises its UsageError
        weights = self._weights(x, importance)
        blocks = np.ascontiguousarray(x).reshape(-1, _TYPES[self.kind].SIZE)  # kernels get the address alone
        width = _TYPES[self.kind].LAYOUT.itemsize
        out = uninitialized(len(blocks) * width).reshape(-1, width)
        flags = np.empty(len(blocks), np.uint8)
        in_parts(lambda part: self._run(blocks[part], out[part], flags[part], weights, part.start), blocks)
        return out.reshape(len(x), -1), flags.reshape(len(x), -1)

    def decode(self, parts: Mapping[str, Array], shape: tuple[int, int]) -> F32:
        """Decode to float32 [rows, cols]; see `edgekit.reference.Reference.decode`. The payload of a NaN may differ.

        Grid types are decoded by the reference.
        """
        if self.kind in GRIDS:
            precision = find_precision(f"ggml:{self.kind}")
            with np.errstate(all="ignore"):
                return reference(precision).decode(parts, precision, shape)
        size, width = _TYPES[self.kind].SIZE, _TYPES[self.kind].LAYOUT.itemsize
        blocks = np.ascontiguousarray(parts["blocks"]).reshape(-1, width)
        values = np.empty((len(blocks), size), np.float32)
        kernel = library.kernel(f"{self.kind}_decode")
        in_parts(lambda part: kernel(blocks[part].ctypes.data, values[part].ctypes.data, len(values[part])), values)
        return values.reshape(shape)

    def _weights(self, x: Narrow, importance: F32 | None) -> _Weights | None:
        if importance is None or _TYPES[self.kind].IMPORTANCE == "unused":
            return None
        per_row = len(importance) // _TYPES[self.kind].SIZE
        copies = -(-(per_row + processor().lanes) // per_row)
        by_row = _TYPES[self.kind].IMPORTANCE == "row"
        rows = np.ascontiguousarray(x)
        power = (
            np.concatenate([row_power(piece) for _, piece in pieces(rows)]) if by_row else np.zeros(len(x), np.float32)
        )
        return _Weights(np.tile(importance, copies), np.repeat(power, per_row), per_row)

    def _run(self, x: Narrow, out: U8, flags: U8, weights: _Weights | None, first: int) -> None:
        """Encode blocks [blocks, n] of any type."""
        done = self._run_narrow(x, out, flags) if weights is None and x.dtype != np.float32 else 0
        if done < len(x):
            for part, rows in pieces(x[done:]):
                self._run_float32(rows, out[done:][part], flags[done:][part], weights, first + done + part.start)

    def _run_narrow(self, x: Narrow, out: U8, flags: U8) -> int:
        """Encode whole groups of blocks of a type of 2 bytes; return the number of blocks.

        What Python does for a piece holds the interpreter, and so every other thread: it adds to addresses.
        """
        lanes, size = processor().lanes, x.shape[1]
        whole, step = len(x) // lanes * lanes, _blocks_of_piece(size)
        if not whole:
            return 0
        widen, kernel = library.kernel(f"widen_{x.dtype.name}"), library.kernel(self.kind)
        tables = grid_tables.tables(self.kind, lanes) if self.kind in GRIDS else ()
        values = uninitialized(4 * size * min(step, whole))
        source, wide, to, flag, *grids = (array.ctypes.data for array in (x, values, out, flags, *tables))
        for start in range(0, whole, step):
            count = min(step, whole - start)
            widen(source + start * x.strides[0], wide, count * size // lanes)
            kernel(wide, to + start * out.strides[0], flag + start, count // lanes, *grids)
        return whole

    def _run_float32(self, x: F32, out: U8, flags: U8, weights: _Weights | None, first: int) -> None:
        """Encode blocks [blocks, n]; the last group is padded with zeros."""
        kernel = library.kernel(self.kind if weights is None else f"{self.kind}_weighted")
        tables = grid_tables.tables(self.kind, processor().lanes) if self.kind in GRIDS else ()
        whole = len(x) // processor().lanes * processor().lanes
        if whole:
            _call(kernel, x[:whole], out[:whole], flags[:whole], weights, first, tables)
        if whole < len(x):
            tail, full = slice(whole, len(x)), processor().lanes
            longer = [padded(v[tail], full) for v in (x, out, flags)]
            _call(kernel, longer[0], longer[1], longer[2], weights, first + whole, tables)
            out[tail], flags[tail] = longer[1][: len(x) - whole], longer[2][: len(x) - whole]


@functools.cache
def _traits(kind: str) -> Traits:
    return Traits(widens=True, needs_importance=needs_importance(kind))


@attrs.frozen
class _Weights:
    """An importance matrix as kernels read it.

    Attributes:
        columns: the importance of a row's columns, repeated for as many blocks as lanes.
        power: mean of x² over the row, for each block.
        per_row: blocks of a row.
    """

    columns: F32
    power: F32
    per_row: int

    def arguments(self, first: int, count: int) -> tuple[list[Any], list[int]]:
        """Return the arguments for blocks from `first` on."""
        power = padded(self.power[first : first + count], count)
        return [self.columns, power], [self.per_row, first % self.per_row]


def _call(
    kernel: Any, x: F32, out: U8, flags: U8, weights: _Weights | None, first: int, tables: Sequence[Array]
) -> None:
    arrays, numbers = ([], []) if weights is None else weights.arguments(first, len(x))
    kernel(
        x.ctypes.data,
        out.ctypes.data,
        flags.ctypes.data,
        len(x) // processor().lanes,
        *(array.ctypes.data for array in arrays),
        *numbers,
        *(table.ctypes.data for table in tables),
    )


def pieces(x: Narrow) -> Iterator[tuple[slice, F32]]:
    """Yield blocks [blocks, n] of any type as float32, whole groups of lanes at a time, in a buffer that is reused.

    float32 is yielded as a whole, without a copy.
    """
    if x.dtype == np.float32:
        yield slice(0, len(x)), x
        return
    step = _blocks_of_piece(x.shape[1])
    shape = min(step, len(x)), x.shape[1]
    values = uninitialized(4 * shape[0] * shape[1]).view(np.float32).reshape(shape)
    for start in range(0, len(x), step):
        part = slice(start, min(start + step, len(x)))
        yield part, widened(x[part], values[: part.stop - start])


def _blocks_of_piece(size: int) -> int:
    """Return how many blocks of `size` elements are widened at a time: whole groups of lanes."""
    return max(1, PIECE // size // processor().lanes) * processor().lanes


def widened(x: Narrow, into: F32) -> F32:
    """Blocks of float16 or bfloat16 [blocks, n], n a multiple of 32, as float32 in the memory of `into`."""
    kernel = library.kernel(f"widen_{x.dtype.name}")
    kernel(x.ctypes.data, into.ctypes.data, x.size // processor().lanes)
    return into


def padded(v: Array, length: int) -> Array:
    """Return an array padded with zeros to `length`; unchanged if it has that length."""
    if len(v) == length:
        return v
    longer = np.zeros((length, *v.shape[1:]), v.dtype)
    longer[: len(v)] = v
    return longer


def in_parts(job: Callable[[slice], Any], blocks: Narrow) -> None:
    """Call ``job(slice)`` for all blocks [blocks, n], on several threads where there are many elements.

    Each job may have one piece widened at a time (`pieces`); there are no more threads than pieces in `WIDENED`.
    """
    parts = list(_parts(*blocks.shape))
    if len(parts) <= 1:
        for part in parts:
            job(part)
        return
    allowed = int(os.environ.get("EDGEKIT_NUMBA_THREADS") or cores())
    threads = min(len(parts), allowed, WIDENED // max(PIECE, processor().lanes * blocks.shape[1]))
    if threads <= 1:
        for part in parts:
            job(part)
        return
    with Workers(threads, "edgekit-numba") as pool:
        list(pool.map(job, parts))


def _parts(count: int, size: int) -> Iterator[slice]:
    """Return slices of whole groups of lanes of about `PART` elements."""
    step = max(1, PART // size // 16) * 16
    for start in range(0, count, step):
        yield slice(start, min(start + step, count))


def row_power(x: F32) -> F32:
    """Return the mean of x² over each row [rows], summed sequentially in float32."""
    lanes, kernel = processor().lanes, library.kernel("row_power")
    power = np.empty(-(-len(x) // lanes) * lanes, np.float32)
    whole = len(x) // lanes * lanes
    for rows, into in ((x[:whole], power[:whole]), (padded(x[whole:], len(power) - whole), power[whole:])):
        kernel(rows.ctypes.data, into.ctypes.data, len(into) // lanes, x.shape[1]) if len(into) else None
    return power[: len(x)] / np.float32(x.shape[1])


@functools.cache
def _encoder(kind: str) -> Encoder:
    return Encoder(kind)


def __getattr__(name: str) -> Encoder:
    """Return the encoder of a block type, by its name."""
    if name not in (*edgekit_numba.KINDS, *edgekit_numba.GRIDS):
        raise AttributeError(name)
    require()
    return _encoder(name)


__all__ = [
    "PART",
    "PIECE",
    "WIDENED",
    "Encoder",
    "Narrow",
    "in_parts",
    "padded",
    "pieces",
    "require",
    "row_power",
    "widened",
]
