"""Checks of the result: stored size, decoding, guarantees of the format, known answers, files, speed."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np

from edgekit.recipe import fits
from edgekit.reference import Parts, reference
from edgekit.testing import _promises as promises
from edgekit.testing import _samples
from edgekit.testing._explain import diagnose, same_parts
from edgekit.testing._kit import Kit, NotApplicable, Profile, fail
from edgekit.testing._samples import Sample, samples, widths
from edgekit.testing._subjects import QuantizerSubject
from edgekit.testing._trips import round_trips
from edgekit.testing.quantizers._judge import encode, normal, require_encoder
from edgekit.typing import F32, Array

#: The checks of this module, in the order in which they run.
ROOM: Kit[QuantizerSubject] = Kit("quantizers")


@ROOM.check
def check_size(subject: QuantizerSubject, profile: Profile) -> None:
    """The stored parts take exactly the bits per weight that the precision states.

    Measured by the growth when a row's length doubles, so that what a tensor stores once does not count.
    """
    precision = subject.precision
    width = (
        64 * int(np.lcm(_samples.unit(precision), 8)) // 8
        if not precision.whole_blocks
        else 8 * _samples.unit(precision)
    )
    rows = 8
    short, long = (_nbytes(subject, (rows, cols)) for cols in (width, 2 * width))
    measured = Fraction(8 * (long - short), rows * width)
    if measured != precision.bits_per_weight:
        fail(f"{float(measured):g} bits a weight are stored, {float(precision.bits_per_weight):g} are stated")


def _nbytes(subject: QuantizerSubject, shape: tuple[int, int]) -> int:
    wide = not reference(subject.precision).traits.source_dtypes
    x = _samples.draw("normal", 1, shape)
    return sum(part.nbytes for part in encode(subject, x if wide else x.astype(np.float16)).values())


@ROOM.check
def check_decoding(subject: QuantizerSubject, profile: Profile) -> None:
    """The quantizer's `decode`, if it has one, returns the reference's values: bit for bit if it claims ``exact``.

    Tried on every family of rows, on incomplete last blocks, and on codes that the encoder never produces but a file
    may hold. If the claim is a bound, the values from the reference's decoder must be within it too, since other
    readers of the file use that decoder. Typical faults: an encoder that swaps nibbles and a decoder that swaps them
    back, small values flushed to zero, modified parts.
    """
    if getattr(subject.quantizer, "decode", None) is None:
        raise NotApplicable("it has no decode; the reference decodes")
    require_encoder(subject)
    for what, x, parts in _stored(subject, profile):
        shape = (x.shape[0], x.shape[1])
        before = {key: part.copy() for key, part in parts.items()}
        with np.errstate(all="ignore"):
            got, want = (
                subject.decode(parts, shape),
                reference(subject.precision).decode(before, subject.precision, shape),
            )
        if not same_parts(before, parts):
            fail(f"its decode writes to the parts ({what})")
        if (got.dtype, got.shape) != (want.dtype, want.shape):
            fail(f"decode gives {got.dtype} {got.shape}; {want.dtype} {want.shape} is expected")
        if subject.exact:
            _same_values(got, want, what)
        elif what in _BOUNDED:
            _reader_within_bound(subject, x, parts, want, what)


def _stored(subject: QuantizerSubject, profile: Profile) -> Iterator[tuple[str, F32, Parts]]:
    """Yield parts to decode, each with its label and the rows that were encoded."""
    for cols in widths(subject.precision):
        x = _samples.draw("normal", cols, (3, cols))
        yield f"normal [3, {cols}]", x, encode(subject, x)
    for kind in _samples.KINDS:
        for sample in samples(subject.precision, kind, profile.rows, 1):
            yield sample.label, sample.x, encode(subject, sample.x)
    if subject.exact:
        x = normal(subject, rows=8)
        yield "random bytes", x, _random_codes(encode(subject, x))


#: Labels of the samples on which the reference's decoder must be within a claimed bound.
_BOUNDED = tuple(_samples.KINDS["ordinary"])


def _random_codes(parts: Parts) -> Parts:
    """Return the parts with random bytes in every array that does not hold floats."""
    random = np.random.RandomState(11)

    def drawn(part: Array) -> Array:
        return np.frombuffer(random.bytes(part.nbytes), part.dtype).reshape(part.shape).copy()

    return {key: drawn(part) if part.dtype.kind in "iu" else part for key, part in parts.items()}


def _same_values(got: F32, want: F32, what: str) -> None:
    differing = (got.view(np.uint32) != want.view(np.uint32)) & ~(np.isnan(got) & np.isnan(want))
    if differing.any():
        row, column = np.argwhere(differing)[0]
        fail(
            f"of {what} row {row}, column {column} decodes to {float(got[row, column]):.9g}, "
            f"the reference to {float(want[row, column]):.9g}"
        )


def _reader_within_bound(subject: QuantizerSubject, x: F32, parts: Parts, read: F32, what: str) -> None:
    beyond = ~(np.abs(x.astype(np.float64) - read) <= subject.bound(x, parts))
    if beyond.any():
        row, column = np.argwhere(beyond)[0]
        fail(
            f"of {what} row {row}, column {column} was {float(x[row, column]):.9g}, and who reads the file with the "
            f"reference's decoder gets {float(read[row, column]):.9g}, beyond the bound: its codes mean something else"
        )


@ROOM.check
def check_signs(subject: QuantizerSubject, profile: Profile) -> None:
    """No value is decoded with the opposite sign, if the format guarantees it.

    Every format in which zero is a level guarantees it; formats with a stored minimum do not.
    """
    if not promises.signs(subject.precision):
        raise NotApplicable("a format with a minimum does not keep signs")
    for kind in ("ordinary", "one_sided", "ties"):
        for sample in samples(subject.precision, kind, profile.rows, 1):
            decoded = subject.decode(encode(subject, sample.x), (sample.x.shape[0], sample.x.shape[1]))
            wrong = sample.x.astype(np.float64) * decoded < 0
            if wrong.any():
                at = tuple(np.argwhere(wrong)[0])
                fail(f"on {sample.label!r} {float(sample.x[at]):.9g} comes back as {float(decoded[at]):.9g}")


@ROOM.check
def check_order(subject: QuantizerSubject, profile: Profile) -> None:
    """Within a block with one scale, a larger value is never decoded to a smaller one.

    Formats whose sub-blocks have their own scales do not guarantee this. Typical fault: dithering.
    """
    if not promises.order(subject.precision):
        raise NotApplicable("sub-blocks of this format have scales of their own")
    for kind in ("ordinary", "ties"):
        for sample in samples(subject.precision, kind, profile.rows, 1):
            _ordered(subject, sample)


def _ordered(subject: QuantizerSubject, sample: Sample) -> None:
    x = sample.x
    decoded = subject.decode(encode(subject, x), (x.shape[0], x.shape[1]))
    block = subject.precision.block or x.shape[1]
    for row in range(len(x)):
        for start in range(0, x.shape[1], block):
            values, back = x[row, start : start + block], decoded[row, start : start + block]
            order = np.argsort(values, kind="stable")
            falls = np.diff(back[order]) < 0
            if falls.any():
                a, b = order[int(np.argmax(falls))], order[int(np.argmax(falls)) + 1]
                fail(
                    f"on {sample.label!r} {values[a]:.9g} <= {values[b]:.9g} come back as {back[a]:.9g}, {back[b]:.9g}"
                )


@ROOM.check
def check_idempotent(subject: QuantizerSubject, profile: Profile) -> None:
    """Encoding decoded values gives the same bytes, if the format guarantees it.

    A model that is opened, changed elsewhere and saved again then keeps its other tensors. Typical fault: a margin on
    the scale, which grows with each encoding.
    """
    if not promises.idempotent(subject.precision):
        raise NotApplicable("this format's scale moves when it is encoded again")
    for sample in samples(subject.precision, "ordinary", profile.rows, 1):
        shape = (sample.x.shape[0], sample.x.shape[1])
        once = encode(subject, sample.x)
        twice = encode(subject, subject.decode(once, shape))
        if not same_parts(once, twice) and _reference_holds(subject, sample.x):
            fail(f"on {sample.label!r} a second encoding of the decoded values differs: {diagnose(once, twice)}")


def _reference_holds(subject: QuantizerSubject, x: F32) -> bool:
    once = subject.expected(x)
    decoded = reference(subject.precision).decode(once, subject.precision, (x.shape[0], x.shape[1]))
    return same_parts(once, subject.expected(np.ascontiguousarray(decoded)))


@ROOM.check
def check_vectors(subject: QuantizerSubject, profile: Profile) -> None:
    """The codes are those of the stored known answers, which the framework computed, if it claims ``exact``.

    The corpus comes with edgekit; `PROVENANCE.md` beside it names the library and the version behind each answer.
    """
    if not subject.exact:
        raise NotApplicable(f"it claims a bound: {subject.claim}")
    from edgekit.testing import vectors

    if subject.precision.name not in vectors.names():
        raise NotApplicable(f"no known answers are stored for {subject.precision.name}")
    vectors.check(subject.encode, subject.precision)


@ROOM.check
def check_formats(subject: QuantizerSubject, profile: Profile) -> None:
    """Every installed format that stores the precision returns the same parts.

    A small model with the quantizer's parts is written and read back, once for each format that accepts them.
    """
    require_encoder(subject)
    cols = 2 * int(np.lcm(_samples.unit(subject.precision), 32))
    if not fits(subject.precision, (8, cols)):
        raise NotApplicable("no small model has rows that this precision's blocks divide")
    with tempfile.TemporaryDirectory() as folder:
        stored = round_trips(subject.encode, subject.precision, cols, Path(folder))
    if not stored:
        raise NotApplicable("no installed format stores this precision")


#: For the speed check: elements, tries, and the factor by which the best try may be slower than the reference's. On a
#: busy machine the best of seven tries varies by less than that.
_ELEMENTS, _TRIES, _NOISE = 1 << 16, 7, 1.25


@ROOM.check
def check_speed(subject: QuantizerSubject, profile: Profile) -> None:
    """A quantizer registered with a speed above 1, which replaces the reference by default, is not slower than it.

    Both encode the same rows in turn, after a first call that may compile kernels; the best of several tries counts,
    in the processor's time.
    Typical faults: a speed copied from another plugin, a kernel that is called row by row.
    """
    if not subject.exact or subject.speed <= 1:
        raise NotApplicable("it does not claim to be faster than the reference")
    require_encoder(subject)
    unit = int(np.lcm(_samples.unit(subject.precision), 32))
    cols = unit * -(-1024 // unit)
    x = _samples.draw("normal", 1, (max(1, _ELEMENTS // cols), cols))
    seconds, theirs = _best_times(x, subject.encode, subject.expected)
    if seconds > _NOISE * theirs:
        fail(
            f"it claims speed={subject.speed:g}, and takes {1000 * seconds:.2f} ms for {list(x.shape)} where the "
            f"reference takes {1000 * theirs:.2f} ms; state speed=0, so that it is used on request only"
        )


def _best_times(x: F32, *encoders: Callable[[F32], Parts]) -> list[float]:
    """Return the processor seconds of the best try of each encoder; the encoders take turns in every round."""
    for encoder in encoders:
        encoder(x)
    rounds = [[_timed(encoder, x) for encoder in encoders] for _ in range(_TRIES)]
    return [min(times) for times in zip(*rounds, strict=True)]


def _timed(encoder: Callable[[F32], Parts], x: F32) -> float:
    began = time.process_time()  # the clock on the wall also counts what other processes do
    encoder(x)
    return time.process_time() - began


__all__ = [
    "ROOM",
    "check_decoding",
    "check_formats",
    "check_idempotent",
    "check_order",
    "check_signs",
    "check_size",
    "check_speed",
    "check_vectors",
]
