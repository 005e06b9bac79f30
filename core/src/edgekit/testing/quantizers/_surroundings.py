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

#: The checks of this module, in the order in which they run.
ROOM: Kit[QuantizerSubject] = Kit("quantizers")


@ROOM.check
def check_side_effects(subject: QuantizerSubject, profile: Profile) -> None:
    """Encoding leaves the process unchanged: it writes no file, opens no socket, and changes no setting.

    Checked are numpy's error state, print options and random stream, Python's random stream, the warning filters,
    environment variables, the working directory and its files. All of them have unusual values during the call, so
    that a setting made by an earlier call is noticed when it is made again. Written files and the network are observed
    through Python's audit events; the first call may fill a cache of compiled kernels.
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
    """The bytes do not depend on numpy's error state or the global random streams, and no floating-point error raises.

    Applications set `np.seterr(all="raise")`. Code that underflows, overflows or divides by zero by design must use
    its own `np.errstate`. The check also finds stochastic rounding that draws from numpy's global stream.
    """
    require_encoder(subject)  # returns what overflows by design; not part of this check
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
    """Rows that are not C-contiguous, or start at an odd address, are encoded like their copy, or refused.

    edgekit passes C-contiguous rows, so that refusing others is allowed; encoding other memory is not. Typical fault:
    a native kernel gets `x.ctypes.data` of a view.
    """
    x = normal(subject, rows=37)  # groups of as many lanes as processors have, and a rest, which kernels may copy
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
