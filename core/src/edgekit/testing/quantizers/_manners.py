"""Checks of side effects and form: no output, shapes and dtypes, purity, unchanged inputs."""

from __future__ import annotations

from typing import Any

import numpy as np

from edgekit.reference import Parts
from edgekit.testing import _samples
from edgekit.testing._explain import diagnose, same_parts
from edgekit.testing._kit import Kit, Profile, fail
from edgekit.testing._process import heard
from edgekit.testing._samples import importances, widths
from edgekit.testing._subjects import QuantizerSubject
from edgekit.testing.quantizers._judge import encode, normal, require_encoder
from edgekit.typing import F32

#: The checks of this module, in the order in which they run.
ROOM: Kit[QuantizerSubject] = Kit("quantizers")

_LABELS = ("normal", "positive zeros", "constant rows", "subnormal")


@ROOM.check
def check_quiet(subject: QuantizerSubject, profile: Profile) -> None:
    """Encoding emits no warning and writes nothing to stdout: not on the first call, not on zeros, not from C.

    Stdout is for data: a line of progress there breaks programs that read `--json`. Output of native code counts too,
    since the file descriptor is captured. Zeros and constants lead to divisions by zero, of which numpy warns: guard
    those divisions, or compute under `np.errstate`. This check runs first, since a banner is printed only once.
    """
    with heard() as output:
        for label in _LABELS:
            _tried(subject, _samples.draw(label, 2, (2, widths(subject.precision)[0])))
    if output.warnings:
        first = output.warnings[0]
        fail(f"it warns: {first.category.__name__}: {first.message}; compute without, or np.errstate")
    if output.text:
        fail(f"it writes to stdout, which is for data: {output.text[:60]!r}")


def _tried(subject: QuantizerSubject, x: F32) -> None:
    try:
        encode(subject, x)
    except Exception:
        return  # reported by another check


@ROOM.check
def check_parts(subject: QuantizerSubject, profile: Profile) -> None:
    """`encode` returns the precision's parts, with the names, dtypes and shapes that the framework stores.

    Tried with one row and several, an odd and an even number of blocks, and an incomplete last block if the format
    allows one. Parts must be C-contiguous and in the machine's byte order, so that a writer can use their memory
    directly. Typical faults: rows padded to a multiple of four bytes, transposed codes, scales of another float type,
    missing zero points.
    """
    require_encoder(subject)
    for rows in (1, 2, 5):
        for cols in widths(subject.precision):
            x = _samples.draw("normal", rows, (rows, cols))
            got, want = encode(subject, x), subject.expected(x)
            if _form(got) != _form(want):
                fail(f"rows [{rows}, {cols}]: {diagnose(want, got)}")
            for key, part in got.items():
                if not part.flags.c_contiguous:
                    fail(f"part {key!r} is not C-contiguous, and writers take its memory; np.ascontiguousarray")


def _form(parts: Parts) -> dict[str, tuple[Any, tuple[int, ...]]]:
    return {key: (part.dtype, part.shape) for key, part in parts.items()}


@ROOM.check
def check_pure(subject: QuantizerSubject, profile: Profile) -> None:
    """The same rows give the same bytes, whatever is encoded in between; results share no memory.

    In between, rows of the same and of another shape and rows with an importance are encoded; then the rows are
    changed in place, at the same address. Typical faults: a buffer per shape that is returned twice, a moving average,
    the importance of the previous call, a cache with an address as its key.
    """
    x = normal(subject)
    first = encode(subject, x.copy())
    copies = {key: part.copy() for key, part in first.items()}
    _between(subject, x.shape)
    if not same_parts(copies, first):
        fail("a later call changed the parts that an earlier one had returned; give each call memory of its own")
    for given in (x.copy() for _ in range(8)):
        again = encode(subject, given)
        if not same_parts(copies, again):
            fail(
                f"a second encoding of the same rows differs: {diagnose(copies, again)}; "
                "it keeps state between calls, or draws at random"
            )
        # The values of a float precision may be the rows themselves.
        if subject.precision.convention != "float" and any(np.shares_memory(part, given) for part in again.values()):
            fail("a part shares memory with the input; copy it")
    _changed_in_place(subject, x)


def _between(subject: QuantizerSubject, shape: tuple[int, ...]) -> None:
    """Encode other rows: of the same shape, of another one, and with an importance."""
    weights = importances(1, shape[1])["importance"]
    for rows, importance in ((shape[0], None), (3, None), (shape[0], weights), (shape[0], None)):
        subject.encode(1000 * _samples.draw("normal", 3 + rows, (rows, shape[1])), importance)


def _changed_in_place(subject: QuantizerSubject, x: F32) -> None:
    changing, values = x.copy(), _samples.draw("normal", 8, (x.shape[0], x.shape[1]))
    encode(subject, changing)
    changing[...] = values
    actual, expected = encode(subject, changing), encode(subject, values.copy())
    if not same_parts(expected, actual):
        fail(
            f"rows that changed in place are encoded as they were: {diagnose(expected, actual)}; it remembers addresses"
        )


@ROOM.check
def check_inputs_unwritten(subject: QuantizerSubject, profile: Profile) -> None:
    """Neither the rows nor the importance are modified, and read-only arrays are accepted.

    A tensor is often a read-only memory map of its file, and another backend may encode it next. Typical faults:
    dividing by the scale in place, normalising the importance in place.
    """
    x, importance = normal(subject), importances(1, widths(subject.precision)[0])["importance"]
    before, weights_before = x.copy(), importance.copy()
    subject.encode(x, importance)
    subject.encode(x)
    if not np.array_equal(x, before):
        row, column = np.argwhere(x != before)[0]
        fail(f"it wrote to its input: row {row}, column {column} was {before[row, column]}, is {x[row, column]}")
    if not np.array_equal(importance, weights_before):
        fail("it wrote to the importance that it was given")
    x.flags.writeable = importance.flags.writeable = False
    subject.encode(x, importance)


__all__ = ["ROOM", "check_inputs_unwritten", "check_parts", "check_pure", "check_quiet"]
