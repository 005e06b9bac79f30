"""Checks of the codes on each family of rows: the reference's bytes if the claim is exact, else the claimed bound."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from edgekit.numerics.smallfloats import to_float32
from edgekit.reference import Parts, reference
from edgekit.testing import _samples
from edgekit.testing._explain import diagnose, same_parts
from edgekit.testing._kit import Kit, NotApplicable, Profile, fail
from edgekit.testing._samples import Sample, fitting, importances, samples, unit, widths
from edgekit.testing._subjects import QuantizerSubject
from edgekit.testing.quantizers._judge import encode, judge, judge_kind, normal, require_encoder, within_bound
from edgekit.typing import F32

#: The checks of this module, in the order in which they run.
ROOM: Kit[QuantizerSubject] = Kit("quantizers")

#: Factor by which the median block's error may exceed the reference's if a bound is claimed: two bits of precision.
COARSER = 4.0
#: Examples per run of hypothesis, which keeps all examples of a run in memory; a million would not fit.
_BATCH = 5_000


@ROOM.check
def check_exact(subject: QuantizerSubject, profile: Profile) -> None:
    """On ordinary rows every byte is the reference's (packing, order, scales, codes), if it claims ``exact``.

    Tried on normal and heavy-tailed rows, outliers, small weights, rows and groups of different magnitudes. The message
    names known kinds of differences: swapped nibbles, rows in another order, all codes off by one, single codes off by
    one (rounding). Typical faults: a scale per row instead of per group, a scale rounded before the codes are computed,
    float64 or a fused multiply-add where the format uses float32.
    """
    if not subject.exact:
        raise NotApplicable(f"it claims a bound: {subject.claim}")
    judge_kind("ordinary", subject, profile)


@ROOM.check
def check_bound(subject: QuantizerSubject, profile: Profile) -> None:
    """The quantizer's own bound is finite for each element, and wrong codes exceed it.

    The inner values of each block are shifted by one position before encoding; the ends, and so the scale, stay. The
    error is then many steps. A bound that still holds is meaningless: it is infinite, or it is the error itself,
    computed by decoding.
    """
    if subject.exact or getattr(subject.quantizer, "bound", None) is None:
        raise NotApplicable("it states no bound of its own; the reference's holds")
    require_encoder(subject)
    x = normal(subject)
    shape = (x.shape[0], x.shape[1])
    bound = subject.bound(x, encode(subject, x))
    if bound.shape != shape:
        fail(f"its bound has shape {bound.shape}; {shape} is expected, a number for each element")
    if not (np.isfinite(bound).all() and (bound >= 0).all()):
        fail(f"its bound holds {float(bound[~(np.isfinite(bound) & (bound >= 0))][0]):g}; finite numbers are expected")
    parts = encode(subject, _moved(x))
    beyond = np.abs(x - subject.decode(parts, shape).astype(np.float64)) > subject.bound(x, parts)
    if subject.precision.bits > 2 and not beyond.any():
        fail("the codes of other values are within its bound as well; derive it from the rows and the stored scales")


def _moved(x: F32, size: int = 16) -> F32:
    """Return the rows with the values in each group of 16 shifted by one position, except the smallest and largest."""
    moved = x.copy()
    for row, values in enumerate(x):
        for start in range(0, len(values), size):
            piece = values[start : start + size]
            inner = np.delete(np.arange(len(piece)), [piece.argmin(), piece.argmax()])
            moved[row, start + inner] = piece[np.roll(inner, 1)]
    return moved


@ROOM.check
def check_error_within_bound(subject: QuantizerSubject, profile: Profile) -> None:
    """On ordinary rows the error of every element is within the claimed bound.

    The bound is the quantizer's `bound(x, parts)` if its claim is a bound and it has the method, else the reference's.
    The values are decoded by its `decode` if it has one. NaN exceeds every bound.
    """
    require_encoder(subject)
    for sample in samples(subject.precision, "ordinary", profile.rows, profile.seeds):
        within_bound(subject, sample)


@ROOM.check
def check_error_like_reference(subject: QuantizerSubject, profile: Profile) -> None:
    """The median block's error is at most four times the reference's, if a bound is claimed.

    A bound that is derived from the stored scale holds for any scale, even one that is a thousand times too large. A
    factor of four is a loss of two bits. Typical faults: a scale per row instead of per group, the scale of a
    calibration that never ran.
    """
    if subject.exact:
        raise NotApplicable("its bytes are compared with the reference's")
    require_encoder(subject)
    cols = 8 * unit(subject.precision)
    for label in _samples.KINDS["ordinary"]:
        sample = Sample(label, _samples.draw(label, 1, (profile.rows, cols)))
        errors, reference_s = (_block_errors(subject, sample.x, parts) for parts in _both(subject, sample.x))
        coarser = errors > COARSER * reference_s
        if coarser.mean() > 0.5:
            at = int(np.argmax(coarser))
            fail(
                f"on {sample.label!r} {int(coarser.sum())} of {coarser.size} blocks err more than {COARSER:g} times "
                f"as much as the reference's; the first by {errors[at]:.3g} (root mean square), {reference_s[at]:.3g} "
                "there: is the scale the block's own?"
            )


def _both(subject: QuantizerSubject, x: F32) -> tuple[Parts, Parts]:
    return encode(subject, x), subject.expected(x)


def _block_errors(subject: QuantizerSubject, x: F32, parts: Parts) -> Any:
    """Return the root mean square error of each block."""
    error = x.astype(np.float64) - subject.decode(parts, (x.shape[0], x.shape[1]))
    starts = np.arange(0, x.shape[1], unit(subject.precision))
    counts = np.diff([*starts, x.shape[1]])
    return np.sqrt(np.add.reduceat(error**2, starts, axis=1) / counts).ravel()


@ROOM.check
def check_zeros(subject: QuantizerSubject, profile: Profile) -> None:
    """Zeros of both signs, sparse rows and single values among zeros; rows of zeros are decoded to zeros.

    Pruned and padded rows are full of zeros. Typical faults: a division by a scale of zero, NaN from a group of
    zeros, a stored zero point of 0 that becomes 15, the sign bit of -0.0 taken for a code.
    """
    require_encoder(subject)
    zeros = _samples.draw("zeros of both signs", 1, (3, widths(subject.precision)[0]))
    decoded = subject.decode(encode(subject, zeros), (zeros.shape[0], zeros.shape[1]))
    if not np.array_equal(decoded, np.zeros(zeros.shape)):
        fail(f"zeros come back as {float(decoded[decoded != 0][0]):g}: guard the division by a scale of zero")
    judge_kind("zeros", subject, profile)


@ROOM.check
def check_constants(subject: QuantizerSubject, profile: Profile) -> None:
    """Rows of one value, where maximum and minimum are the same.

    Also rows that differ from one value by a few units in the last place. Typical fault: division by a range of zero.
    """
    judge_kind("constants", subject, profile)


@ROOM.check
def check_one_sided(subject: QuantizerSubject, profile: Profile) -> None:
    """Rows that are all positive, all negative, or far from zero.

    Formats differ in whether a range must include zero, and in how the scale of an all-negative group is computed.
    """
    judge_kind("one_sided", subject, profile)


@ROOM.check
def check_ties(subject: QuantizerSubject, profile: Profile) -> None:
    """Values midway between two levels, and one unit in the last place beside it, are rounded as specified.

    MLX and OpenVINO round half to even, ggml and ONNX Runtime half away from zero. Scales are powers of two here, so
    that ties are exact in float32. In addition, the exact threshold between two codes is searched for with the
    reference, and the floats on both sides are encoded. Typical faults: the other rounding, `floor(x + 0.5)`, a product
    with the reciprocal instead of a division.
    """
    judge_kind("ties", subject, profile)


@ROOM.check
def check_saturation(subject: QuantizerSubject, profile: Profile) -> None:
    """Values at the ends of the grid and huge values neither wrap around nor lose a level.

    Tried with the largest magnitude in both signs, several times; every value at an end; rows up to the largest
    float32. Typical faults: 16 that becomes 0 in a nibble, -128 that becomes 127, `max - min` that overflows.
    """
    judge_kind("saturation", subject, profile)


@ROOM.check
def check_subnormals(subject: QuantizerSubject, profile: Profile) -> None:
    """Subnormal values and scales that underflow are flushed to zero only if the format does so.

    Float16 scales are subnormal below 6.1e-5, which real weights reach. Typical faults: a processor in flush-to-zero
    mode, a lower limit on the scale.
    """
    judge_kind("subnormals", subject, profile)


@ROOM.check
def check_shapes(subject: QuantizerSubject, profile: Profile) -> None:
    """One row, one block, many rows, long rows, odd numbers of blocks, and incomplete last blocks if allowed.

    Typical faults: an incomplete block that gets the scale of the previous one, a wrong last row of a partial chunk, a
    buffer that ends at 4096 columns, an odd number of zero points with two per byte.
    """
    for cols in (*widths(subject.precision), _long(subject)):
        for rows in (1, 3, 37) if cols < 4096 else (2,):
            sample = Sample(f"normal [{rows}, {cols}]", _samples.draw("normal", cols, (rows, cols)))
            judge(subject, sample)


def _long(subject: QuantizerSubject) -> int:
    """Return the columns of a long row: an odd number of blocks, larger than the buffers of kernels."""
    block = unit(subject.precision)
    return block * (8192 // block + 1)


@ROOM.check
def check_bound_everywhere(subject: QuantizerSubject, profile: Profile) -> None:
    """The bound holds on every family of rows: ties, ends of the grid, zeros, constants, subnormals, huge values.

    If the claim is ``exact``, the reference's bound is checked.
    """
    require_encoder(subject)
    for kind in _samples.KINDS:
        for sample in samples(subject.precision, kind, profile.rows, 1):
            within_bound(subject, sample)


@ROOM.check
def check_exact_on_examples(subject: QuantizerSubject, profile: Profile) -> None:
    """The claim (exact bytes or the bound) holds on examples that hypothesis draws and shrinks.

    `edgekit.testing.strategies.tensors` draws them: from a distribution, or a block value by value. There are 25
    examples in the quick profile, 300 in the default one, and a million in the deep one. A failing example shrinks to
    one block with zeros wherever the value does not matter.
    """
    require_encoder(subject)
    for first in range(0, profile.examples, _BATCH):
        _examples(subject, min(_BATCH, profile.examples - first), first)


def _examples(subject: QuantizerSubject, count: int, seed: int) -> None:
    try:
        import hypothesis
    except ImportError:
        raise NotApplicable("hypothesis is not installed; pip install 'edgekit-core[testing]'") from None
    from edgekit.testing.strategies import tensors

    def examples(x: F32) -> None:
        for sample in fitting(subject.precision, Sample("a drawn example", x)):
            judge(subject, sample)

    settings = hypothesis.settings(
        max_examples=count, deadline=None, database=None, report_multiple_bugs=False, print_blob=False,
        suppress_health_check=list(hypothesis.HealthCheck),
    )  # fmt: skip
    drawn: Callable[[], None] = hypothesis.given(x=tensors(subject.precision))(examples)
    try:
        settings(hypothesis.seed(seed)(drawn))()
    except hypothesis.errors.Flaky:
        fail("a drawn example fails, and does not when it is tried again: it keeps state, or draws at random")


@ROOM.check
def check_importance(subject: QuantizerSubject, profile: Profile) -> None:
    """An importance matrix, also one with zeros, is used or ignored as by the reference.

    Columns whose input is always zero have an importance of zero. Formats without weighting ignore the importance.
    Typical faults: an ignored importance, the importance of the first block used for all, a division by a sum of zero.
    """
    require_encoder(subject)
    for sample in samples(subject.precision, "ordinary", profile.rows, 1):
        for label, importance in importances(7, sample.x.shape[1]).items():
            judge(subject, Sample(f"{sample.label}, {label}", sample.x), importance)


@ROOM.check
def check_source_types(subject: QuantizerSubject, profile: Profile) -> None:
    """Rows of float16 and bfloat16, including subnormal values, satisfy the claim if the quantizer accepts them.

    MLX and ONNX Runtime compute in the dtype of the weights, so that a float16 source gets other codes than its
    float32 copy. An encoder with `Traits.widens` accepts them too, and returns the codes of the float32 copy. Typical
    faults: every source is widened; subnormal numbers are widened to zero.
    """
    depends = reference(subject.precision).traits.source_dtypes
    if not depends and not subject.quantizer.traits.widens:
        raise NotApplicable("every source is widened to float32 before it is encoded")
    if not subject.exact:
        raise NotApplicable(f"it claims a bound: {subject.claim}")
    for dtype in _source_types():
        for size in (1.0, 2.0**-18):
            x = (_samples.draw("normal", 5, (4, widths(subject.precision)[0])) * np.float32(size)).astype(dtype)
            want, got = subject.expected(x if depends else to_float32(x)), encode(subject, x)
            if not same_parts(want, got):
                fail(f"rows of {np.dtype(dtype).name}: {diagnose(want, got)}")


def _source_types() -> Iterator[Any]:
    yield np.float16
    try:
        import ml_dtypes
    except ImportError:
        return
    yield ml_dtypes.bfloat16


@ROOM.check
def check_nonfinite(subject: QuantizerSubject, profile: Profile) -> None:
    """NaN and both infinities are treated alike, and do not change the codes of other rows.

    `edgekit.encode` refuses them before it calls a quantizer, so that a quantizer may refuse all three (with a
    `ValueError`) or none. Typical faults: NaN refused but infinity encoded, one NaN that changes the whole matrix.
    """
    x = normal(subject)
    clean = encode(subject, x)
    outcomes = {}
    for value in (np.nan, np.inf, -np.inf):
        bad = x.copy()
        bad[2, 1] = value
        try:
            with np.errstate(all="ignore"):
                parts = encode(subject, bad)
        except (ValueError, ArithmeticError) as error:
            outcomes[str(value)] = f"refused ({type(error).__name__})"
            continue
        outcomes[str(value)] = "encoded"
        if subject.precision.rowwise:
            _others_untouched(clean, parts, value, len(x))
    if len(set(outcomes.values())) > 1:
        listed = ", ".join(f"{value}: {outcome}" for value, outcome in outcomes.items())
        fail(f"not one policy: {listed}; refuse all three or none (edgekit refuses them before it calls)")


def _others_untouched(clean: Parts, parts: Parts, value: float, rows: int) -> None:
    for key, part in parts.items():
        if part.shape[:1] != (rows,):
            continue
        others = np.arange(rows) != 2
        if part[others].tobytes() != clean[key][others].tobytes():
            fail(f"{value} in row 2 changed part {key!r} of other rows; rows are encoded on their own")


@ROOM.check
def check_checked(subject: QuantizerSubject, profile: Profile) -> None:
    """The quantizer's `encode_checked`, if it has one, returns the parts of `encode`, or None for invalid rows.

    A kernel may check its rows while it encodes them, which saves edgekit a pass over them. It must return None if a
    value is not finite, or so large that a scale could overflow; edgekit then decides. Typical fault: a NaN in the last
    lane, which a maximum ignores.
    """
    checked = getattr(subject.quantizer, "encode_checked", None)
    if checked is None:
        raise NotApplicable("it has no encode_checked; edgekit checks the rows itself")
    x = normal(subject)
    ones = subject.importance(x, None)
    parts = checked(x, ones)
    if parts is not None and not same_parts(encode(subject, x), dict(parts)):
        fail(f"encode_checked differs from encode: {diagnose(encode(subject, x), dict(parts))}")
    for value in (np.nan, -np.nan, np.inf, -np.inf, 65536.0, -1e38):
        for place in ((0, 0), (2, 1), (-1, -1)):
            bad = x.copy()
            bad[place] = value
            with np.errstate(all="ignore"):
                parts = checked(bad, ones)
            if parts is not None:
                fail(f"encode_checked returns parts for rows with {value}; it must return None so that edgekit decides")


__all__ = [
    "COARSER",
    "ROOM",
    "check_bound",
    "check_bound_everywhere",
    "check_checked",
    "check_constants",
    "check_error_like_reference",
    "check_error_within_bound",
    "check_exact",
    "check_exact_on_examples",
    "check_importance",
    "check_nonfinite",
    "check_one_sided",
    "check_saturation",
    "check_shapes",
    "check_source_types",
    "check_subnormals",
    "check_ties",
    "check_zeros",
]
