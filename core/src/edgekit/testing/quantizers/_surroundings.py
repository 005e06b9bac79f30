"""Checks of the environment: the process's settings, and the layout of the rows in memory."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from edgekit.testing import _samples
from edgekit.testing._explain import diagnose, same_parts
from edgekit.testing._kit import Kit, Profile, fail
from edgekit.testing._process import States, strict_state, traces, unusual_state
from edgekit.testing._samples import Sample, samples
from edgekit.testing._subjects import QuantizerSubject
from edgekit.testing.quantizers._judge import encode, normal, require_encoder
from edgekit.typing import F32, Array

#: This room's checks, in the order in which they run.
ROOM: Kit[QuantizerSubject] = Kit("quantizers")


@ROOM.check
def check_side_effects(subject: QuantizerSubject, profile: Profile) -> None:
    """It leaves the process as it was: no file, no socket, no setting of numpy's or Python's is another afterwards.

    Looked at are numpy's error state, print options and random stream, Python's random stream, the warning filters,
    variables of the environment, the working directory and what lies in it; all of them have unusual values
    meanwhile, so that a setting made by an earlier call shows when it is made again. Files written and the network
    are noticed through Python's audit events; the first call may fill a cache of compiled kernels.
    """
    encode(subject, normal(subject))
    with unusual_state(), traces() as seen:
        before = States.now()
        for seed in range(3):
            encode(subject, normal(subject, seed=seed))
        changed = before.differences(States.now())
    if changed:
        fail(f"it leaves {changed[0]} changed; set what it needs inside a context manager")
    if seen:
        fail(f"encoding {seen[0]}; a quantizer computes, and nothing else")


@ROOM.check
def check_global_state(subject: QuantizerSubject, profile: Profile) -> None:
    """Numpy's error state and the global random streams change no byte, and nothing raises where all errors do.

    Applications set `np.seterr(all="raise")`. Wherever the arithmetic underflows, overflows or divides by zero by
    design, it has to say so in an `np.errstate` of its own. A rounding that draws from numpy's global stream is
    found here too.
    """
    require_encoder(subject)  # which says what overflows by design, and is not asked for
    for kind in _samples.KINDS:
        for sample in samples(subject.precision, kind, 3, 1):
            _same_in_strict_state(subject, sample)


def _same_in_strict_state(subject: QuantizerSubject, sample: Sample) -> None:
    expected = encode(subject, sample.x)
    with strict_state():
        try:
            actual = encode(subject, sample.x)
        except FloatingPointError as error:
            fail(f"with np.errstate(all='raise') it raises on {sample.label!r}: {error}; compute under np.errstate")
    if not same_parts(expected, actual):
        fail(
            f"under another error state and random stream {sample.label!r} is encoded otherwise: "
            f"{diagnose(expected, actual)}"
        )


@ROOM.check
def check_strides(subject: QuantizerSubject, profile: Profile) -> None:
    """Rows that are not C-contiguous, or begin at an odd address, are encoded as their copy is, or refused.

    edgekit hands over C-contiguous rows, so that refusing others is allowed; encoding memory that was never meant
    is not. Typical fault: a native kernel is given `x.ctypes.data` of a view.
    """
    x = normal(subject, rows=6)
    expected = encode(subject, x)
    for what, view in _views(x):
        try:
            actual = subject.encode(view)
        except Exception:
            continue
        if not same_parts(expected, actual):
            fail(
                f"{what} are encoded otherwise than their copy: {diagnose(expected, actual)}; copy them, or refuse them"
            )


def _views(x: F32) -> Iterator[tuple[str, Array]]:
    yield "every second column of a matrix", np.repeat(x, 2, axis=1)[:, ::2]
    yield "every second row of a matrix", np.repeat(x, 2, axis=0)[::2]
    yield "rows in Fortran order", np.asfortranarray(x)
    yield "rows from the last to the first", np.ascontiguousarray(x[::-1])[::-1]
    yield "rows that begin four bytes further", np.concatenate([[np.float32(0)], x.ravel()])[1:].reshape(x.shape)


__all__ = ["ROOM", "check_global_state", "check_side_effects", "check_strides"]
