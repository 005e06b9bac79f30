"""What no precision encodes: values that are not finite, and values beyond what its scales can hold.

The same outcome for every convention: `NonFiniteError` before encoding, `ScaleOverflowError` after it. Both work in
pieces, so that looking costs no memory of the tensor's size.
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

#: Elements that are looked at together: 4 MiB of float32.
_PIECE = 1 << 20
#: The largest float16: below it no search and no scale overflows.
_SAFE = 65504.0
#: A row whose largest magnitude decodes to less than this share of it has been lost.
_NOTHING = 2.0**-20


def refuse_nonfinite(x: Array, name: str = "array", first_row: int = 0, *, infinities: bool = False) -> None:
    """Raise where there is a NaN or an infinity.

    Args:
        x: rows [rows, cols] of floating point values.
        name: of the tensor, for the error's message.
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
    """Raise where a stored scale is no longer finite, or where values so large were lost that they decode to nothing.

    Args:
        x: the rows [rows, cols] that were encoded.
        parts: what they were encoded to.
        precision: in which they were encoded.
        name: of the tensor, for the error's message.

    Raises:
        ScaleOverflowError: names the tensor, the part and the type that cannot hold it.
    """
    yardstick = reference(precision)
    part = yardstick.traits.overflowed(parts, precision)
    if part and precision.scale_dtype == "float8_e8m0fnu":
        # It has an exponent for every large float32; MLX's wraps around for the smallest.
        size, what = "small", f"its {part} would have to be less than float8_e8m0fnu can hold"
    elif part:
        size, what = "large", f"its {part} would have to be more than {_stored(x, precision)} can hold"
    elif _lost(x, parts, precision, yardstick):
        size, what = "large", "a row would decode to less than a millionth of itself"
    else:
        return
    raise ScaleOverflowError(
        f"{name} holds values too {size} for {precision.name}: {what}; "
        "rescale the tensor, or choose a precision with a wider scale (affine: float32)"
    )


def _pieces(x: Array) -> Iterator[tuple[slice, Array]]:
    """Rows of x and their values as float32: numpy does not reckon with bfloat16, and is slow with float16."""
    for rows in row_chunks(len(x), x.shape[1], _PIECE):
        yield rows, as_float32(x[rows])


def _stored(x: Array, precision: Precision) -> str:
    """The type in which scales, or the values themselves, are stored; or the narrower one that decodes them."""
    through = reference(precision).traits.decoded_through
    if precision.kind in through:
        return through[precision.kind]
    if precision.scale_dtype == "source":
        return x.dtype.name
    return precision.scale_dtype or {"F16": "float16", "BF16": "bfloat16"}.get(precision.kind, "float32")


def _lost(x: Array, parts: Parts, precision: Precision, yardstick: Reference) -> bool:
    """Whether some row of huge values decodes to next to nothing.

    Squares overflowed in the search for its scale, or the scale was cut off at the largest that its type has.
    """
    if not precision.rowwise or not yardstick.traits.searches:
        return False
    for rows, piece in _pieces(x):
        if max(piece.max(), -piece.min()) > _SAFE:
            own = {part: values[rows] for part, values in parts.items()}
            decoded = _peaks(yardstick.decode(own, precision, piece.shape))
            peaks = _peaks(piece)
            if ((peaks > _SAFE) & (decoded < peaks * _NOTHING)).any():
                return True
    return False


def _peaks(rows: Array) -> Array:
    """The largest magnitude of each row."""
    peaks: Array = np.maximum(rows.max(axis=1), -rows.min(axis=1))
    return peaks


__all__ = ["refuse_nonfinite", "refuse_overflow"]
