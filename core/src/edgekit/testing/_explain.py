"""Explains a failure: reduces the matrix to one small block, and describes how the encodings differ."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np

from edgekit.precision import Precision
from edgekit.testing._samples import unit
from edgekit.typing import F32, U8, Array, Bools

Parts = Mapping[str, Array]
_SHOWN = 16
#: Largest number of calls of a quantizer while a failing matrix is reduced.
_BUDGET = 150


def same(a: Array, b: Array) -> bool:
    """Return whether two parts have the same dtype, shape and bytes."""
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def same_parts(a: Parts, b: Parts) -> bool:
    """Return whether two encodings have the same parts with the same bytes."""
    return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)


def minimise(x: F32, precision: Precision, fails: Callable[[F32], bool]) -> F32:
    """Return a smaller matrix that still fails: one row, one block, and as many zeros as possible."""
    budget = _BUDGET

    def still(candidate: F32) -> bool:
        nonlocal budget
        budget -= 1
        try:
            return budget > 0 and fails(np.ascontiguousarray(candidate))
        except Exception:
            return False  # a different fault from the one to be shown

    x = next((x[row : row + 1] for row in range(min(len(x), 16)) if still(x[row : row + 1])), x)
    block = unit(precision)
    for start in range(0, min(x.shape[1], 8 * block), block):
        piece = x[:, start : start + block]
        if piece.shape[1] < x.shape[1] and (piece.shape[1] == block or not precision.whole_blocks) and still(piece):
            x = piece
            break
    return _with_zeros(x, still)


def _with_zeros(x: F32, still: Callable[[F32], bool]) -> F32:
    size = x.shape[1] // 2
    while size:
        for start in range(0, x.shape[1], size):
            candidate = x.copy()
            candidate[:, start : start + size] = 0
            if candidate.any() and (candidate != x).any() and still(candidate):
                x = candidate
        size //= 2
    return x


def diagnose(expected: Parts, actual: Parts) -> str:
    """Return a sentence that describes how two encodings differ."""
    if expected.keys() != actual.keys():
        return f"the parts are {', '.join(actual)}; {', '.join(expected)} are expected"
    for key, want in expected.items():
        got = actual[key]
        if got.dtype != want.dtype:
            return f"part {key!r} is {got.dtype}; {want.dtype} is expected"
        if got.shape != want.shape:
            return f"part {key!r} has shape {got.shape}; {want.shape} is expected"
    wrong = [key for key in expected if not same(expected[key], actual[key])]
    right = [key for key in expected if key not in wrong]
    rest = f" ({', '.join(right)} {'agrees' if len(right) == 1 else 'agree'})" if right and wrong else ""
    return "; ".join(f"part {key!r}: {_how(expected[key], actual[key])}" for key in wrong) + rest


def _how(want: Array, got: Array) -> str:
    w, g = _bytes(want), _bytes(got)
    if want.dtype.kind not in "iu":
        return _how_floats(want, got)
    differing = w != g
    share = f"{int(differing.sum())} of {w.size} bytes differ"
    a, b = w[differing].astype(np.int64), g[differing].astype(np.int64)
    if w.itemsize == 1 and np.array_equal((g << 4 | g >> 4) & 255, w):
        return "the two codes of every byte are swapped (the low nibble must come first)"
    if want.ndim == 2 and len(want) > 1 and sorted(map(bytes, _rows(want))) == sorted(map(bytes, _rows(got))):
        return "the rows are there, in another order"
    if len(a) > 1 and len(set((b - a).tolist())) == 1 and differing.mean() > 0.5:
        return f"every code is off by {int(b[0] - a[0]):+d}"
    nibbles = np.concatenate([(b & 15) - (a & 15), (b >> 4) - (a >> 4)])
    if len(a) and np.abs(b - a).max() == 1:
        return f"{share}, each by one: rounding, or a scale that moved"
    if len(a) and np.abs(nibbles).max() == 1:
        return f"{share}, each code by one: rounding, or a scale that moved"
    return share


def _rows(part: Array) -> list[Array]:
    return list(np.ascontiguousarray(part))


def _bytes(part: Array) -> U8:
    return np.frombuffer(np.ascontiguousarray(part).tobytes(), np.uint8)


def _how_floats(want: Array, got: Array) -> str:
    w, g = (np.atleast_1d(each).astype(np.float64).reshape(-1) for each in (want, got))
    differing = np.frombuffer(want.tobytes(), f"u{want.itemsize}") != np.frombuffer(got.tobytes(), f"u{want.itemsize}")
    at = int(np.argmax(differing))
    if np.isnan(g).any() and not np.isnan(w).any():
        return f"NaN where {w[np.isnan(g)][0]:g} is expected"
    if np.array_equal(w, g):
        return "only the sign of a zero differs"
    if np.array_equal(np.abs(w), np.abs(g)):
        return "the sign differs"
    return f"{int(differing.sum())} of {w.size} values differ, the first is {g[at]:.9g}, wanted is {w[at]:.9g}"


def block_report(x: F32, expected: Parts, actual: Parts, decoded: tuple[F32, F32] | None = None) -> str:
    """Return the block with the expected and the actual codes; long blocks start shortly before the difference."""
    values = x.reshape(-1)
    start = _start(values, decoded)
    shown = f" from {start}" if start else ""
    lines = [f"  smallest block [{x.shape[0]}, {x.shape[1]}]{shown}: {_values(values[start:])}"]
    for key in expected:
        if key in actual and not same(expected[key], actual[key]):
            lines += [f"  {line}" for line in _side_by_side(key, expected[key], actual[key])]
    if decoded is not None:
        lines += [f"  decoded{shown}   expected {_values(decoded[0].reshape(-1)[start:])}"]
        lines += [f"         {' ' * len(shown)}   actual   {_values(decoded[1].reshape(-1)[start:])}"]
    return "\n".join(lines)


def _start(values: F32, decoded: tuple[F32, F32] | None) -> int:
    """Return the first column to show, so that the first wrong element, or else the first nonzero one, is visible."""
    wrong = values != 0
    if decoded is not None and (decoded[0] != decoded[1]).any():
        wrong = (decoded[0] != decoded[1]).reshape(-1)
    return 0 if values.size <= _SHOWN else max(0, int(np.argmax(wrong)) - 4)


def _side_by_side(key: str, want: Array, got: Array) -> Iterator[str]:
    a, b = want.reshape(-1), got.reshape(-1)
    start = 0
    if a.size == b.size:
        start = max(0, int(np.argmax(_differences(a, b))) - 4)
    at = f" from {start}" if start else ""
    yield f"part {key!r} ({got.dtype}){at}   expected {_values(a[start:])}"
    yield f"{' ' * len(f'part {key!r} ({got.dtype}){at}')}   actual   {_values(b[start:])}"


def _differences(a: Array, b: Array) -> Bools:
    if a.dtype.itemsize != b.dtype.itemsize:
        return np.ones(a.size, bool)
    view = f"u{a.dtype.itemsize}"
    differing: Bools = np.ascontiguousarray(a).view(view) != np.ascontiguousarray(b).view(view)
    return differing


def _values(values: Array) -> str:
    shown = values[:_SHOWN]
    if values.dtype.kind in "iu":
        text = " ".join(f"{int(v):02x}" if values.dtype == np.uint8 else str(int(v)) for v in shown)
    else:
        text = " ".join(f"{float(v):.8g}" for v in shown)
    return text + (f" … ({values.size} in all)" if values.size > _SHOWN else "")
