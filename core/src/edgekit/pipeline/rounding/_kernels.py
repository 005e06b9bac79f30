"""The arithmetic of rounding with feedback: products whose sums have one order, or are exact, on every machine.

BLAS sums in an order that depends on the processor and on the number of threads, and a code that lies near the middle
of two levels can fall either way. Here sums of floats are taken term by term, each product and each sum rounded once:
numpy's elementwise operations do so by definition, and a plugin's kernel that does the same gives the same bits. Sums
of integers are exact.
"""

from __future__ import annotations

from typing import Protocol

import attrs
import numpy as np
import numpy.typing as npt

from edgekit.typing import F32, F64, I16, U8, Array, Indices

#: Elements of the result that are computed at once: 256 KiB of float32 fit in a processor's cache.
_CHUNK = 1 << 16
#: Rows that get their scales at once: they stay in a cache.
_SCALED = 64
Words = npt.NDArray[np.int32]
#: The largest magnitude of an operand of `Multiply`, and the columns whose products are summed exactly.
MOST, PIECE = 4095, 128
#: Levels of a table whose columns kernels round; in a larger one, as of 8 bits, numpy searches.
LEVELS = 32
_LOG2E, _LN2_HIGH, _LN2_LOW = np.float32(1.44269504), np.float32(0.693359375), np.float32(-2.12194440e-4)
#: The polynomial of the Cephes library.
_EXP = [1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1]
_LEAST, _MOST = np.float32(-87), np.float32(88)


class Accumulate(Protocol):
    """A kernel that adds a matrix product to an array in place, summing in a fixed order."""

    def __call__(self, out: Array, b: Array, a: Array) -> None:
        """Add ``b[i, n] * a[i, m]`` to ``out[n, m]`` for i = 0, 1, … k - 1 in this order.

        Args:
            out: float32 or float64 [n, m]; each row is contiguous, the rows may have any stride.
            b: [k, n], of the same dtype, any strides.
            a: [k, m], of the same dtype; each row is contiguous, the rows may have any stride.
        """
        ...


class Multiply(Protocol):
    """Adds a product of integers to an array of floats, in place."""

    def __call__(self, out: F32, b: I16, a: I16) -> None:
        """``out[n, m] += sum of b[n, k] * a[m, k]``, the sum exact, over 128 columns k at a time.

        Each sum is rounded to float32 and added before that of the next 128 columns.

        Args:
            out: float32 [n, m]; rows may be apart, elements of a row may not.
            b: int16 [n, k], magnitudes up to 4095, k even; rows may be apart.
            a: int16 [m, k], likewise.
        """
        ...


class Exponential(Protocol):
    """Raises e to every element, in place."""

    def __call__(self, x: F32) -> None:
        """Within 2 units in the last place, 0 below -87; `edgekit.pipeline.rounding.exponential` says each step.

        Args:
            x: float32, contiguous.
        """
        ...


class Weigh(Protocol):
    """The weights of a softmax along the columns of a matrix, in place."""

    def __call__(self, scores: F32) -> F32:
        """Replace each column by the powers of e, as `Exponential`, of its elements less its largest; return sums.

        Args:
            scores: float32 [rows, cols], contiguous; at least one element of each column is finite.

        Returns:
            The sum of each column of powers, one row after another, float32 [cols].
        """
        ...


class Largest(Protocol):
    """Finds the largest magnitudes of a matrix."""

    def __call__(self, x: F32, axis: int) -> F32:
        """Return that of each column (axis 0) or row (axis 1) of x, float32 [rows, cols]; NaN if one is no number."""
        ...


class Narrow(Protocol):
    """Rounds values to integers, each row in units of its own."""

    def __call__(self, out: I16, x: F32, inverse: F32) -> None:
        """Write ``rint(x * inverse)``, ties to even, and 0 where the inverse is 0.

        Args:
            out: int16 [rows, cols]; elements of a row lie next to each other.
            x: float32 [rows, cols], likewise; magnitudes up to 4095 units.
            inverse: of each row's unit, float32 [rows].
        """
        ...


class Turn(Protocol):
    """Rounds values to integers, each column in units of its own, and makes columns rows."""

    def __call__(self, out: Words, x: F32, inverse: F32) -> None:
        """Write ``rint(x * inverse)``, ties to even, and 0 where the inverse is 0.

        Args:
            out: int32 [cols, n]: the low half of word k of a column is row 2 k, the high half row 2 k + 1, or 0 if
                there is none.
            x: float32 [2 n, cols] or [2 n - 1, cols]; elements of a row lie next to each other.
            inverse: of each column's unit, float32 [cols].
        """
        ...


class Units(Protocol):
    """Rounds products to integers, each column in units of its own, and makes columns rows."""

    def __call__(self, out: I16, x: F32, factor: F32, inverse: F32) -> None:
        """Write ``rint((x * factor) * inverse)``, ties to even, cut off at magnitudes of 4095.

        Args:
            out: int16 [cols, rows]; elements of a row lie next to each other, the rows may be apart.
            x: float32 [rows, cols], likewise.
            factor: of each row, float32 [rows].
            inverse: of each column's unit, float32 [cols].
        """
        ...


class Totals(Protocol):
    """Adds up the columns of a matrix, or of a product of two element by element."""

    def __call__(self, x: F32, y: F32 | None = None) -> F64:
        """Return the sum of each column of ``x * y``, or of x, float64 [cols].

        Products are rounded to float32; they are added in float64, one row after another.

        Args:
            x: float32 [rows, cols]; elements of a row lie next to each other, the rows may be apart.
            y: likewise.
        """
        ...


class Scale(Protocol):
    """Multiplies a matrix by a factor for each row and one for each column, in place."""

    def __call__(self, out: F32, of_rows: F32, of_columns: F32) -> None:
        """``out = (out * of_rows) * of_columns``, each product rounded.

        Args:
            out: float32 [rows, cols]; elements of a row lie next to each other.
            of_rows: float32 [rows].
            of_columns: float32 [cols].
        """
        ...


@attrs.frozen(eq=False)
class Places:
    """How the codes of columns stand for values: ``(code + first - zero) * scale + bias``, or of the table's value.

    Attributes:
        first: value of code 0.
        count: number of codes.
        group: columns that share a scale.
        scale, inverse, zero, bias: float32 [groups, rows], rows next to each other.
        table: ascending values of the codes, float32 [count], at most `LEVELS`; None where they are 1 apart.
    """

    first: float
    count: int
    group: int
    scale: F32
    inverse: F32
    zero: F32 | None
    bias: F32 | None
    table: F32 | None = None

    @property
    def middles(self) -> F32:
        """What a target has to exceed for each code after the first, in units of the scale, float32 [count - 1]."""
        if self.table is None:
            raise ValueError("values that follow one another by 1 are found by rounding, not by the table's middles")
        return middles(self.table)


def middles(table: F32) -> F32:
    """Return the numbers midway between neighbouring levels of a table, float32 [n - 1]."""
    between: F32 = (table[1:] + table[:-1]) * np.float32(0.5)
    return between


class Substitute(Protocol):
    """Solves a small triangular system of equations by substitution, in place."""

    def __call__(self, values: F32, factor: F32) -> None:
        """Divide each row by its pivot, and subtract its multiples from the rows after it, one row after another.

        ``values[j] /= factor[j, j]``, then ``values[k] -= factor[j, k] * values[j]`` for each k > j, each operation
        rounded.

        Args:
            values: float32 [n, m]; elements of a row lie next to each other, the rows may have any stride.
            factor: float32 [n, n], any strides; what lies below the diagonal is not read.
        """
        ...


class Feed(Protocol):
    """Rounds some columns one after another; the error of each moves the targets of those after it."""

    def __call__(
        self, targets: F32, errors: F32, codes: U8, weights: F32, places: Places, columns: Indices, spread: F32
    ) -> None:
        """Write codes and errors.

        Args:
            targets: float32 [n, rows], changed.
            errors: float32 [n, rows], written.
            codes: uint8 [cols, rows], of which the columns are written.
            weights: float32 [cols, rows].
            places: what codes stand for.
            columns: int64 [n], which columns they are.
            spread: float32 [n, n], what the error of one adds to the target of another.
        """
        ...


class Descend(Protocol):
    """Gives the codes of some columns their best values, one column after another."""

    def __call__(self, slopes: F32, values: F32, errors: F32, codes: U8, places: Places, start: int, h: F32) -> int:
        """Change codes, values and errors in place.

        Args:
            slopes: float32 [n, rows], changed.
            values: float32 [cols, rows], what the codes stand for.
            errors: float32 [cols, rows], the weights less the values.
            codes: uint8 [cols, rows].
            places: what codes stand for.
            start: the first of the n columns.
            h: float32 [n, n], the moment of the columns.

        Returns:
            How many codes changed.
        """
        ...


def accumulate(out: Array, b: Array, a: Array) -> None:
    """Add ``b^T a`` to `out` in place, term by term: the numpy reference of `Accumulate`."""
    n, m = out.shape
    step = max(256, _CHUNK // max(1, n))
    factors = np.ascontiguousarray(b)[:, :, None]
    for start in range(0, m, step):
        piece, rows = out[:, start : start + step], a[:, start : start + step]
        product: npt.NDArray[np.floating] = np.empty_like(piece)
        for k in range(len(a)):
            np.multiply(factors[k], rows[k], out=product)
            piece += product


def multiply(out: F32, b: I16, a: I16) -> None:
    """The reference of `Multiply`: float64 holds every sum exactly, in whatever order BLAS takes it."""
    for start in range(0, b.shape[1], PIECE):
        columns = slice(start, start + PIECE)
        out += (b[:, columns].astype(np.float64) @ a[:, columns].astype(np.float64).T).astype(np.float32)


def exponential(x: F32) -> None:
    """The reference of `Exponential`."""
    beyond = x <= _LEAST
    np.clip(x, _LEAST, _MOST, out=x)
    power = np.rint(x * _LOG2E)
    x -= power * _LN2_HIGH
    x -= power * _LN2_LOW
    found = np.full_like(x, np.float32(_EXP[0]))
    for coefficient in _EXP[1:]:
        found *= x
        found += np.float32(coefficient)
    found *= x
    found *= x
    found += x
    found += np.float32(1)
    np.multiply(found, ((power.astype(np.int32) + np.int32(127)) << np.int32(23)).view(np.float32), out=x)
    x[beyond] = 0


def weigh(scores: F32) -> F32:
    """The reference of `Weigh`."""
    scores -= scores.max(axis=0)
    exponential(scores)
    if scores.shape[1] > 1:
        total: F32 = np.add.reduce(scores, axis=0)
        return total
    total = np.zeros(1, np.float32)
    for row in scores:
        total += row
    return total


def largest(x: F32, axis: int) -> F32:
    """The reference of `Largest`."""
    found: F32 = np.maximum(x.max(axis=axis, initial=0), -x.min(axis=axis, initial=0))
    return found


def narrow(out: I16, x: F32, inverse: F32) -> None:
    """The reference of `Narrow`."""
    out[...] = np.rint(_known(x, inverse[:, None]) * inverse[:, None])


def turn(out: Words, x: F32, inverse: F32) -> None:
    """The reference of `Turn`."""
    rows = np.rint(_known(x, inverse) * inverse).astype(np.int32)
    if len(rows) % 2:
        rows = np.concatenate([rows, np.zeros_like(rows[:1])])
    out[...] = ((rows[0::2] & np.int32(0xFFFF)) | (rows[1::2] << np.int32(16))).T


def units(out: I16, x: F32, factor: F32, inverse: F32) -> None:
    """The reference of `Units`."""
    product = x * factor[:, None]
    product *= inverse
    np.rint(product, out=product)
    np.clip(product, -MOST, MOST, out=product)
    out[...] = product.astype(np.int16).T


def totals(x: F32, y: F32 | None = None) -> F64:
    """The reference of `Totals`."""
    wide = (x if y is None else x * y).astype(np.float64)
    # A reduction would add up a single column in another order.
    total: F64 = np.add.reduce(wide, axis=0) if wide.shape[1] > 1 else np.cumsum(wide, axis=0)[-1]
    return total


def substitute(values: F32, factor: F32) -> None:
    """The reference of `Substitute`."""
    for j in range(len(values)):
        values[j] /= factor[j, j]
        values[j + 1 :] -= factor[j, j + 1 :, None] * values[j]


def _known(x: F32, inverse: F32) -> F32:
    """With zeros where the inverse is 0: infinity times 0 would be no number."""
    unknown = inverse == 0
    return np.where(unknown, np.float32(0), x) if unknown.any() else x


def scale(out: F32, of_rows: F32, of_columns: F32) -> None:
    """The reference of `Scale`; some rows at a time, which stay in a cache."""
    for start in range(0, len(out), _SCALED):
        rows = slice(start, start + _SCALED)
        out[rows] *= of_rows[rows, None]
        out[rows] *= of_columns


@attrs.frozen(eq=False)
class Kernels:
    """What computes; by default in numpy.

    Attributes:
        accumulate: adds products of floats.
        multiply: adds products of integers.
        exponential: raises e to powers.
        weigh: makes scores the weights of a softmax.
        largest, narrow, turn, units, scale: make floats integers, and floats of their products.
        totals: adds up columns.
        substitute: solves a few equations.
        feed, descend: the steps of feedback and of sweeps within some columns; None leaves them to numpy.
    """

    accumulate: Accumulate = accumulate
    multiply: Multiply = multiply
    exponential: Exponential = exponential
    weigh: Weigh = weigh
    largest: Largest = largest
    narrow: Narrow = narrow
    turn: Turn = turn
    units: Units = units
    scale: Scale = scale
    totals: Totals = totals
    substitute: Substitute = substitute
    feed: Feed | None = None
    descend: Descend | None = None


NUMPY = Kernels()

__all__ = [
    "MOST",
    "NUMPY",
    "PIECE",
    "Accumulate",
    "Descend",
    "Exponential",
    "Feed",
    "Kernels",
    "Largest",
    "Multiply",
    "Narrow",
    "Places",
    "Scale",
    "Substitute",
    "Totals",
    "Turn",
    "Units",
    "Weigh",
    "Words",
    "accumulate",
    "exponential",
    "largest",
    "multiply",
    "narrow",
    "scale",
    "substitute",
    "totals",
    "turn",
    "units",
    "weigh",
]
