"""Values that are refused: those that are not finite, and those beyond the range of a precision's scales.

Every convention raises `NonFiniteError` before encoding and `ScaleOverflowError` after it. Both checks work in pieces,
so that no temporary array has the tensor's size.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from edgekit.errors import NonFiniteError, ScaleOverflowError, option
from edgekit.numerics.blocks import row_chunks
from edgekit.numerics.smallfloats import as_float32
from edgekit.precision import Precision
from edgekit.reference import Parts, Reference, reference
from edgekit.typing import Array

#: Elements that are checked at a time: 4 MiB of float32.
_PIECE = 1 << 20
#: The largest float16: below it no search and no scale overflows.
_SAFE = 65504.0
#: Values from which one that is rounded up can exceed float32.
_HUGE = 2.0**126
#: A row whose largest magnitude decodes to less than this share of it has been lost.
_NOTHING = 2.0**-20


def refuse_nonfinite(x: Array, name: str = "array", first_row: int = 0, *, infinities: bool = False) -> None:
    """Raise if a value is NaN or infinite.

    Args:
        x: rows [rows, cols] of floating point values.
        name: of the tensor, for the message.
        first_row: number of the first of these rows in the tensor.
        infinities: True lets infinities pass.

    Raises:
        NonFiniteError: names the tensor, the row and the column of the first.
    """
    bad = np.isnan if infinities else lambda values: ~np.isfinite(values)
    for rows, piece in _pieces(x):
        # Two passes of min and max are several times cheaper than isfinite, and both propagate NaN.
        if bad(piece.min()) or bad(piece.max()):
            row, column = np.argwhere(bad(piece))[0]
            raise NonFiniteError(
                f"{name} holds {piece[row, column]} at row {first_row + rows.start + row}, column {column}; "
                f"mend the weights, or leave such tensors in float with {option('nonfinite', 'keep')}"
            )


def refuse_overflow(x: Array, parts: Parts, precision: Precision, name: str = "array") -> None:
    """Raise if a stored scale is not finite, or if large values decode to almost zero or to infinity.

    Args:
        x: the rows [rows, cols] that were encoded.
        parts: what they were encoded to.
        precision: of the parts.
        name: of the tensor, for the error's message.

    Raises:
        ScaleOverflowError: names the tensor, the part and the type that cannot represent it.
    """
    judge = reference(precision)
    part = judge.traits.overflowed(parts, precision)
    if part and precision.scale_dtype == "float8_e8m0fnu":
        # Its exponents cover every large float32; for the smallest, MLX's wrap around.
        size, what = "small", f"its {part} is below the range of float8_e8m0fnu"
    elif part:
        size, what = "large", f"its {part} exceeds the range of {_stored(x, precision)}"
    elif _lost(x, parts, precision, judge):
        size, what = "large", "a row would decode to less than a millionth of itself"
    elif _infinite(x, parts, precision, judge):
        size, what = "large", "a value would decode to infinity"
    else:
        return
    raise ScaleOverflowError(
        f"{name} holds values too {size} for {precision.name}: {what}; "
        "rescale the tensor, or choose a precision with a wider scale (affine: float32)"
    )


def _pieces(x: Array) -> Iterator[tuple[slice, Array]]:
    """Rows of x and their values as float32: numpy has no arithmetic for bfloat16, and is slow with float16."""
    for rows in row_chunks(len(x), x.shape[1], _PIECE):
        yield rows, as_float32(x[rows])


def _stored(x: Array, precision: Precision) -> str:
    """Return the type that stores the scales (or the values), or the narrower one through which they are decoded."""
    through = reference(precision).traits.decoded_through
    if precision.kind in through:
        return through[precision.kind]
    if precision.scale_dtype == "source":
        return x.dtype.name
    return precision.scale_dtype or {"F16": "float16", "BF16": "bfloat16"}.get(precision.kind, "float32")


def _lost(x: Array, parts: Parts, precision: Precision, judge: Reference) -> bool:
    """Whether a row of huge values decodes to almost zero.

    Squares overflowed in the search for its scale, or the scale was clipped to the largest of its type.
    """
    if not precision.rowwise or not judge.traits.searches:
        return False
    for rows, piece in _pieces(x):
        if max(piece.max(), -piece.min()) > _SAFE:
            chunk = {part: values[rows] for part, values in parts.items()}
            decoded = _peaks(judge.decode(chunk, precision, piece.shape))
            peaks = _peaks(piece)
            if ((peaks > _SAFE) & (decoded < peaks * _NOTHING)).any():
                return True
    return False


def _infinite(x: Array, parts: Parts, precision: Precision, judge: Reference) -> bool:
    """Whether a value near the largest float32 is rounded up beyond it."""
    for rows, piece in _pieces(x):
        if max(piece.max(), -piece.min()) < _HUGE:
            continue
        chunk = {part: values[rows] for part, values in parts.items()} if precision.rowwise else parts
        with np.errstate(over="ignore"):
            decoded = judge.decode(chunk, precision, piece.shape if precision.rowwise else x.shape)
        infinite = not np.isfinite(decoded).all()
        if infinite or not precision.rowwise:
            return infinite
    return False


def _peaks(rows: Array) -> Array:
    """Return the largest magnitude of each row."""
    peaks: Array = np.maximum(rows.max(axis=1), -rows.min(axis=1))
    return peaks


__all__ = ["refuse_nonfinite", "refuse_overflow"]
