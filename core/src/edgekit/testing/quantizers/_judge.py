"""Compares the encoding of rows with a quantizer's claim, and reports a small block that violates it."""

from __future__ import annotations

from functools import partial

import numpy as np

from edgekit.reference import Parts, reference
from edgekit.testing import _samples
from edgekit.testing._explain import block_report, diagnose, minimise, same_parts
from edgekit.testing._kit import NotApplicable, Profile, fail
from edgekit.testing._samples import Sample, samples, widths
from edgekit.testing._subjects import QuantizerSubject, encodable
from edgekit.typing import F32, Array, Bools


def judge(subject: QuantizerSubject, sample: Sample, importance: F32 | None = None) -> None:
    """Fail if the encoding of a sample violates the claim: the reference's bytes, or the bound of each element."""
    require_encoder(subject)
    if subject.exact:
        _same_bytes(subject, sample, importance)
    else:
        within_bound(subject, sample, importance)


def judge_kind(kind: str, subject: QuantizerSubject, profile: Profile) -> None:
    """Fail if the encoding of any sample of a family violates the claim."""
    require_encoder(subject)
    for sample in samples(subject.precision, kind, profile.rows, profile.seeds):
        judge(subject, sample)


def require_encoder(subject: QuantizerSubject) -> None:
    """Raise an error if the reference of the precision cannot encode.

    Raises:
        NotApplicable: the reference only decodes, so that there is nothing to compare with.
    """
    if not encodable(subject.precision):
        raise NotApplicable(f"{subject.precision.name} has no reference encoder to compare with")


def encode(subject: QuantizerSubject, x: Array, importance: F32 | None = None) -> Parts:
    """Return the subject's encoding of rows, passed C-contiguous as edgekit does."""
    return subject.encode(np.ascontiguousarray(x), importance)


def normal(subject: QuantizerSubject, rows: int = 5, seed: int = 1) -> F32:
    """Return normally distributed rows of a width that the precision allows."""
    return _samples.draw("normal", seed, (rows, widths(subject.precision)[0]))


def _same_bytes(subject: QuantizerSubject, sample: Sample, importance: F32 | None) -> None:
    actual, expected = encode(subject, sample.x, importance), subject.expected(sample.x, importance)
    if same_parts(expected, actual):
        return

    def differs(x: F32) -> bool:
        weights = None if importance is None else importance[: x.shape[1]]
        return not same_parts(subject.expected(x, weights), encode(subject, x, weights))

    small = minimise(sample.x, subject.precision, differs)
    weights = None if importance is None else importance[: small.shape[1]]
    want, got = subject.expected(small, weights), encode(subject, small, weights)
    if same_parts(want, got):
        fail(f"on {sample.label!r} it gives other bytes from call to call; it keeps state, or draws at random")
    fail(
        f"it claims exact, and its bytes are not the reference's on {sample.label!r}: {diagnose(want, got)}\n"
        + block_report(small, want, got, _decoded(subject, want, got, small.shape))
    )


def _decoded(subject: QuantizerSubject, want: Parts, got: Parts, shape: tuple[int, ...]) -> tuple[F32, F32] | None:
    """Return both encodings decoded by the reference; None if the parts do not have the expected shapes."""
    decode = partial(reference(subject.precision).decode, precision=subject.precision, shape=(shape[0], shape[1]))
    try:
        with np.errstate(all="ignore"):
            return decode(want), decode(got)
    except Exception:
        return None


def within_bound(subject: QuantizerSubject, sample: Sample, importance: F32 | None = None) -> None:
    """Fail if the error of any element exceeds the claimed bound."""
    wrong = partial(_beyond_bound, subject, importance=importance)
    if not wrong(sample.x).any():
        return
    small = minimise(sample.x, subject.precision, lambda x: bool(wrong(x).any()))
    weights = None if importance is None else importance[: small.shape[1]]
    got, want = encode(subject, small, weights), subject.expected(small, weights)
    beyond = np.argwhere(wrong(small))
    if not len(beyond):
        fail(f"on {sample.label!r} it breaks its bound in one call and keeps it in another; it keeps state")
    row, column = beyond[0]
    decoded = subject.decode(got, (small.shape[0], small.shape[1]))
    allowed = subject.bound(small, got)[row, column]
    fail(
        f"on {sample.label!r} {float(small[row, column]):.9g} at column {column} of the block comes back as "
        f"{float(decoded[row, column]):.9g}: off by "
        f"{abs(float(small[row, column]) - float(decoded[row, column])):.3g}, the bound is {float(allowed):.3g}\n"
        + block_report(small, want, got, _decoded(subject, want, got, small.shape))
    )


def _beyond_bound(subject: QuantizerSubject, x: F32, importance: F32 | None = None) -> Bools:
    weights = None if importance is None else importance[: x.shape[1]]
    parts = encode(subject, x, weights)
    with np.errstate(all="ignore"):  # a decoded NaN is reported as a failure, not as a warning
        decoded = subject.decode(parts, (x.shape[0], x.shape[1]))
        bound = subject.bound(x, parts)
    if decoded.shape != x.shape:
        fail(f"decoded it has shape {decoded.shape}; {x.shape} is expected")
    if bound.shape != x.shape:
        fail(f"its bound has shape {bound.shape}; {x.shape} is expected, a number for each element")
    error = np.abs(x.astype(np.float64) - decoded)
    beyond: Bools = ~(error <= bound)  # NaN exceeds every bound
    return beyond


__all__ = ["encode", "judge", "judge_kind", "normal", "require_encoder", "within_bound"]
