"""Whether a text was used to calibrate: hashes of runs of the calibration's tokens, small enough for a manifest."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekit.pipeline.rounding.calibration import Calibration
from edgekit.typing import Ints

#: Tokens of a run that two texts do not share by chance; half a window if that is shorter.
RUN = 32
#: Share of common runs from which two texts count as the same.
SHARED = 0.1
_FACTOR = 0x9E3779B97F4A7C15


def record_of(calibration: Calibration) -> dict[str, Any]:
    """Return what a manifest says of a calibration: how many tokens in which windows, and hashes of their runs.

    The runs do not overlap, and leave out the first token of a window, which may be a BOS that replaced a token.

    Returns:
        ``tokens``, ``context``, ``run`` (tokens of a run), and ``runs``, 8 hexadecimal digits for each.
    """
    run = max(1, min(RUN, calibration.context // 2))
    windows = calibration.windows[:, 1:]
    count = windows.shape[1] // run
    hashes = _hashes(windows[:, : count * run].reshape(-1, run))
    return {
        "tokens": calibration.tokens,
        "context": calibration.context,
        "run": run,
        "runs": hashes.astype(">u4").tobytes().hex(),
    }


def shared_with(record: Mapping[str, Any], windows: Ints) -> float:
    """Return which share, 0 to 1, of a text's runs, or of the calibration's if they are fewer, the two have in common.

    Args:
        record: of the calibration, from `record_of`; a share of 0 if it says nothing.
        windows: token ids [count, context] of the text; the runs may be at any offset.
    """
    run, runs = record.get("run"), record.get("runs")
    tokens = np.asarray(windows).reshape(-1)
    if not isinstance(run, int) or not isinstance(runs, str) or not 0 < run <= len(tokens) or not runs:
        return 0.0
    try:
        known = np.frombuffer(bytes.fromhex(runs), ">u4")
    except ValueError:
        return 0.0
    there = _hashes(np.lib.stride_tricks.sliding_window_view(tokens, run))
    found = int(np.isin(known, there).sum())
    return min(1.0, found / max(1, min(len(known), len(tokens) // run)))


def _hashes(runs: Ints) -> npt.NDArray[np.uint32]:
    """Return a polynomial hash of each run [count, run], uint32 [count]."""
    total = np.zeros(len(runs), np.uint64)
    for column in runs.T.astype(np.uint64):
        total = (total + column + np.uint64(1)) * np.uint64(_FACTOR)
    return (total >> np.uint64(32)).astype(np.uint32)


__all__ = ["RUN", "SHARED", "record_of", "shared_with"]
