"""Rows on which quantizers have differed: every sample has a label, and is the same on every machine.

The families (`KINDS`) are named after possible faults: ties, saturation, zeros, constants … Strategies, checks and
known-answer vectors draw from them. What a label draws must not change, since stored answers depend on it.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from functools import cache

import attrs
import numpy as np

from edgekit.encoding._refusals import refuse_overflow
from edgekit.errors import ScaleOverflowError
from edgekit.precision import Precision
from edgekit.reference import Parts, reference
from edgekit.typing import F32, I64, Array

Ordinals = I64
Draw = Callable[[np.random.RandomState, tuple[int, int]], Array]

LARGEST = float(np.finfo(np.float32).max)
#: Ends of the integer grids of all formats: with these the step is a power of two, and half steps are exact ties.
_ENDS = (1, 3, 6, 7, 7.5, 8, 15, 15.5, 16, 31, 63, 127, 127.5, 128, 255, 448)


@attrs.frozen(eq=False)
class Sample:
    """Rows, float32 [rows, cols], with their label."""

    label: str
    x: F32


def _normal(random: np.random.RandomState, shape: tuple[int, int]) -> Array:
    return random.standard_normal(shape)


def _scaled(random: np.random.RandomState, shape: tuple[int, int]) -> Array:
    return np.asarray(random.standard_normal(shape) * 2.0 ** random.randint(-4, 14, (shape[0], 1)))


def _groups_scaled(random: np.random.RandomState, shape: tuple[int, int]) -> Array:
    """Draw rows whose groups of 32 columns have different magnitudes, so that a scale per row is far too large."""
    scales = 2.0 ** random.randint(-8, 9, (shape[0], -(-shape[1] // 32)))
    return np.asarray(random.standard_normal(shape) * np.repeat(scales, 32, axis=1)[:, : shape[1]])


def _constant_rows(random: np.random.RandomState, shape: tuple[int, int]) -> Array:
    return np.repeat(random.standard_normal((shape[0], 1)), shape[1], axis=1)


def _nearly_constant(random: np.random.RandomState, shape: tuple[int, int]) -> Array:
    return 1 + random.randint(-2, 3, shape) * 2.0**-23


def _signed_zeros(random: np.random.RandomState, shape: tuple[int, int]) -> Array:
    return np.where(random.random_sample(shape) < 0.5, 0.0, -0.0)


def _sparse(random: np.random.RandomState, shape: tuple[int, int]) -> Array:
    return np.asarray(random.standard_normal(shape) * random.choice([0.0, -0.0, 1.0], shape, p=[0.4, 0.3, 0.3]))


def _zero_runs(random: np.random.RandomState, shape: tuple[int, int]) -> Array:
    runs = random.random_sample((shape[0], -(-shape[1] // 16))) < 0.5
    return random.standard_normal(shape) * np.repeat(runs, 16, axis=1)[:, : shape[1]]


def _spike(random: np.random.RandomState, shape: tuple[int, int]) -> Array:
    x = np.zeros(shape)
    x[np.arange(shape[0]), random.randint(0, shape[1], shape[0])] = random.standard_normal(shape[0])
    return x


def _outliers(random: np.random.RandomState, shape: tuple[int, int]) -> Array:
    return random.standard_normal(shape) * np.where(random.random_sample(shape) < 0.03, 100.0, 1.0)


def _both_ends(random: np.random.RandomState, shape: tuple[int, int]) -> Array:
    """Draw rows with the largest magnitude in both signs; in ggml's formats the first one decides the scale's sign."""
    x = random.choice([-1.0, 1.0, 0.25, -0.5], shape, p=[0.1, 0.1, 0.4, 0.4])
    return np.asarray(x * 2.0 ** random.randint(-3, 4, (shape[0], 1)))


def _steps(unit: float) -> Draw:
    """Return a draw of multiples of `unit` steps, between ends that make the step a power of two."""

    def draw(random: np.random.RandomState, shape: tuple[int, int]) -> Array:
        end = random.choice(_ENDS, (shape[0], 1))
        x = np.clip(random.randint(-2048, 2049, shape) % np.maximum(4 * end, 1) - 2 * end, -end, end)
        x = np.floor(x / unit) * unit
        sign = random.choice([-1.0, 1.0], (shape[0], 1))
        at = np.arange(shape[1]) % 16  # an end of the grid in every sub-block, on one side or on both
        x = np.where(at == 3, end, x)
        x = np.where((at == 5) & (random.random_sample((shape[0], 1)) < 0.7), -end, x)
        return np.asarray(x * sign * 2.0 ** random.randint(-6, 7, (shape[0], 1)))

    return draw


def _one_sided_steps(random: np.random.RandomState, shape: tuple[int, int]) -> Array:
    end = random.choice(_ENDS, (shape[0], 1))
    x = np.floor(random.random_sample(shape) * (2 * end + 1)) / 2
    x[:, ::16], x[:, 1::16] = end, 0
    return np.asarray(x * random.choice([-1.0, 1.0], (shape[0], 1)))


def _below_half(random: np.random.RandomState, shape: tuple[int, int]) -> Array:
    """Draw values one unit in the last place beside a half, which ``floor(x + 0.5)`` rounds wrongly."""
    x = random.randint(-6, 7, shape) + 0.5
    bits = x.astype(np.float32).view(np.int32) + random.randint(-1, 2, shape).astype(np.int32)
    near = bits.view(np.float32).astype(np.float64)
    near[:, ::16] = random.choice([7.0, -8.0, 127.0, 7.5, 15.0])
    return near


#: family -> label -> draw function
KINDS: dict[str, dict[str, Draw]] = {
    "ordinary": {
        "normal": _normal,
        "heavy tailed": lambda random, shape: random.standard_t(2, shape),
        "rows of every magnitude": _scaled,
        "groups of every magnitude": _groups_scaled,
        "outliers": _outliers,
        "weights": lambda random, shape: 0.02 * random.standard_normal(shape),
    },
    "ties": {
        "ties of halves": _steps(0.5),
        "ties of quarters": _steps(0.25),
        "one-sided ties": _one_sided_steps,
        "beside a half": _below_half,
    },
    "saturation": {
        "largest magnitude of either sign": _both_ends,
        "end of the grid": lambda random, shape: (
            random.choice([-1.0, 1.0], shape) * random.choice(_ENDS, (shape[0], 1))
        ),
        "huge": lambda random, shape: random.standard_normal(shape) * 10.0 ** random.uniform(3, 37, (shape[0], 1)),
        "largest float": lambda random, shape: random.choice([-LARGEST, LARGEST, 1.0, 0.0], shape),
    },
    "zeros": {
        "positive zeros": lambda random, shape: np.zeros(shape),
        "negative zeros": lambda random, shape: np.full(shape, -0.0),
        "zeros of both signs": _signed_zeros,
        "sparse": _sparse,
        "runs of zeros": _zero_runs,
        "one value among zeros": _spike,
    },
    "subnormals": {
        "subnormal": lambda random, shape: random.randint(-(2**22), 2**22, shape) * 2.0**-149,
        "smallest subnormals": lambda random, shape: random.randint(-3, 4, shape) * 2.0**-149,
        "smallest normals": lambda random, shape: random.standard_normal(shape) * 2.0**-124,
        "scales below float16": lambda random, shape: random.standard_normal(shape) * 1e-6,
        "subnormal float16 scales": lambda random, shape: (
            random.standard_normal(shape) * 10.0 ** random.uniform(-6.5, -3.5, (shape[0], 1))
        ),
    },
    "constants": {
        "constant rows": _constant_rows,
        "ones": lambda random, shape: np.ones(shape),
        "nearly constant": _nearly_constant,
    },
    "one_sided": {
        "all positive": lambda random, shape: np.abs(random.standard_normal(shape)) + 0.01,
        "all negative": lambda random, shape: -np.abs(random.standard_normal(shape)) - 0.01,
        "far above zero": lambda random, shape: random.standard_normal(shape) + 9,
        "far below zero": lambda random, shape: random.standard_normal(shape) - 9,
    },
}
LABELS = {label: draw for family in KINDS.values() for label, draw in family.items()}


def draw(label: str, seed: int, shape: tuple[int, int]) -> F32:
    """Return the rows of a label, float32, drawn from numpy's legacy random stream, which is frozen."""
    random = np.random.RandomState((zlib.crc32(label.encode()) + seed) % 2**32)
    with np.errstate(over="ignore"):
        x = np.clip(LABELS[label](random, shape), -LARGEST, LARGEST)
    return np.ascontiguousarray(x, np.float32)


def unit(precision: Precision) -> int:
    """Return the number of columns in a block; 32 if a row or the tensor has one scale."""
    return precision.block or 32


def widths(precision: Precision) -> list[int]:
    """Return row lengths that a precision allows: whole blocks, and, if allowed, with an incomplete last block."""
    block = unit(precision)
    whole = [max(2 * block, 64), block, 3 * block]
    return whole if precision.whole_blocks else [*whole, 2 * block + 5, max(1, block - 3)]


def samples(precision: Precision, kind: str, rows: int, seeds: int) -> Iterator[Sample]:
    """Yield samples of one family that the precision can encode, without rows whose scales overflow."""
    cols = widths(precision)[0]
    for seed in range(seeds):
        for label in KINDS[kind]:
            yield from fitting(precision, Sample(label, draw(label, seed, (rows, cols))))
    if kind == "ties":
        for seed in range(seeds):
            yield from fitting(precision, Sample("between two levels", level_midpoints(precision, seed, rows)))
            yield from fitting(precision, Sample("half steps of its own grid", own_ties(precision, seed, rows)))
            yield from fitting(precision, Sample("on both sides of a threshold", thresholds(precision, seed, rows)))


def fitting(precision: Precision, sample: Sample) -> Iterator[Sample]:
    """Yield the sample, or its rows that do not overflow, or nothing if all do."""
    if not overflows(precision, sample.x):
        yield sample
        return
    rows = [row for row in sample.x if not overflows(precision, row[None])]
    if rows and not overflows(precision, np.array(rows)):
        yield Sample(sample.label, np.array(rows))


def overflows(precision: Precision, x: F32) -> bool:
    """Return whether `edgekit.encode` refuses the rows because a scale overflows its dtype."""
    with np.errstate(all="ignore"):
        parts = _encoded(precision, np.ascontiguousarray(x))
        try:
            refuse_overflow(np.ascontiguousarray(x), parts, precision)
        except ScaleOverflowError:
            return True
    return False


def _encoded(precision: Precision, x: F32) -> Parts:
    """Encode by the reference, with equal importances if it needs some."""
    implementation = reference(precision)
    ones = np.ones(x.shape[1], np.float32) if implementation.traits.needs_importance else None
    return implementation.encode(x, precision, ones)


def own_ties(precision: Precision, seed: int, rows: int) -> F32:
    """Return rows of half steps between the ends of a precision's integer grid, so that the step is a power of two."""
    random = np.random.RandomState(seed)
    half, whole = 2 ** (precision.bits - 1), 2**precision.bits - 1
    grids = [(1 - half, half - 1), (0, whole), (-half, half - 1), (1 - half, half), (-whole, 0), (-half, half)]
    cols = widths(precision)[0]
    x = np.empty((max(rows, len(grids)), cols))
    for row in range(len(x)):
        low, high = grids[row % len(grids)]
        x[row] = random.randint(2 * low, 2 * high + 1, cols) / 2
        x[row, ::16], x[row, 1::16] = (low, high) if random.randint(2) else (high, low)
    return (x * 2.0 ** random.randint(-3, 4, (len(x), 1))).astype(np.float32)


def level_midpoints(precision: Precision, seed: int, rows: int) -> F32:
    """Return rows of values midway between levels that the reference used; the ends of each block are kept."""
    random = np.random.RandomState(seed)
    cols, block = widths(precision)[0], unit(precision)
    x = random.standard_normal((rows, cols)).astype(np.float32) * np.float32(2) ** random.randint(-4, 5, (rows, 1))
    x = x.astype(np.float32)
    decoded = reference(precision).decode(_encoded(precision, x), precision, x.shape)
    for row in range(rows):
        for start in range(0, cols, block):
            span = slice(start, min(start + block, cols))
            x[row, span] = _between(x[row, span], decoded[row, span], random)
    return x


@cache
def thresholds(precision: Precision, seed: int, rows: int) -> F32:
    """Return pairs of rows that differ in one value by one unit in the last place and get different codes for it."""
    random = np.random.RandomState(seed)
    x = random.standard_normal((rows, widths(precision)[0])).astype(np.float32)
    at = (np.arange(rows), np.argsort(x, axis=1)[:, random.randint(2, x.shape[1] - 2)])  # not an end of the block
    low, high = _neighbouring_levels(precision, x, random)
    first = _decoded_with(precision, x, at, low)
    while (high - low > 1).any():
        middle = low + (high - low) // 2
        same = _decoded_with(precision, x, at, middle) == first
        low, high = np.where(same, middle, low), np.where(same, high, middle)
    pairs = np.repeat(x, 2, axis=0)
    pairs[np.arange(2 * rows), np.repeat(at[1], 2)] = _of_ordinal(np.stack([low, high], axis=1).ravel())
    pairs.flags.writeable = False
    return pairs


def _neighbouring_levels(precision: Precision, x: F32, random: np.random.RandomState) -> tuple[Ordinals, Ordinals]:
    """Return, for each row, two neighbouring levels to which its values are decoded."""
    implementation = reference(precision)
    decoded = implementation.decode(_encoded(precision, x), precision, (x.shape[0], x.shape[1]))
    grids = [np.unique(row) for row in decoded]
    first = [random.randint(max(1, len(grid) - 1)) for grid in grids]
    low = [grid[k] for grid, k in zip(grids, first, strict=True)]
    high = [grid[min(k + 1, len(grid) - 1)] for grid, k in zip(grids, first, strict=True)]
    return _ordinal(np.array(low, np.float32)), _ordinal(np.array(high, np.float32))


def _decoded_with(precision: Precision, x: F32, at: tuple[Array, Array], ordinals: Ordinals) -> F32:
    """Return the decoded values at some positions, after replacing the values there by the given floats."""
    changed = x.copy()
    changed[at] = _of_ordinal(ordinals)
    implementation = reference(precision)
    parts = _encoded(precision, changed)
    return implementation.decode(parts, precision, (x.shape[0], x.shape[1]))[at]


def _ordinal(values: F32) -> Ordinals:
    """Return floats as integers in the same order, such that neighbouring floats differ by one."""
    bits = (values + np.float32(0)).view(np.int32).astype(np.int64)  # +0.0 and -0.0 must map to the same integer
    return np.where(bits >= 0, bits, np.int64(-(2**31)) - bits)


def _of_ordinal(ordinals: Ordinals) -> F32:
    bits = np.where(ordinals >= 0, ordinals, np.int64(-(2**31)) - ordinals)
    return bits.astype(np.int32).view(np.float32)


def _between(values: F32, levels: F32, random: np.random.RandomState) -> F32:
    grid = np.unique(levels)
    if len(grid) < 2:
        return values
    middles = random.choice((grid[1:] + grid[:-1]) / np.float32(2), len(values)).astype(np.float32)
    extremes = [values.argmin(), values.argmax()]
    middles[extremes] = values[extremes]
    return middles


def importances(seed: int, cols: int) -> dict[str, F32]:
    """Return importances [cols] by label: squares, squares with zeros for unused columns, and all ones."""
    random = np.random.RandomState(seed)
    squares = (random.standard_normal(cols) ** 2).astype(np.float32)
    silent = np.where(random.random_sample(cols) < 0.5, np.float32(0), squares)
    return {"importance": squares, "importance with zeros": silent, "equal importance": np.ones(cols, np.float32)}
