"""Splits a text into disjoint parts: to calibrate, to choose by, and to measure the result."""

from __future__ import annotations

from concurrent.futures import Executor
from pathlib import Path

import attrs

from edgekit.artifact import Artifact
from edgekit.errors import EdgekitError, UsageError
from edgekit.evaluation._common import Source
from edgekit.evaluation.language import CONTEXT, Text, cut, tokens_of
from edgekit.evaluation.moments import calibrate
from edgekit.pipeline._conversion import as_artifact
from edgekit.pipeline._progress import Shown
from edgekit.pipeline.rounding import Calibration, read_calibration
from edgekit.pipeline.rounding._overlap import SHARED, record_of, shared_with
from edgekit.pipeline.rounding.calibration import as_ids, model_digest, text_digest
from edgekit.typing import Ints

#: Largest number of tokens to choose by, since every precision of every tensor is measured on them.
CHOOSING = 4096
#: Largest number of tokens to measure the result on.
REPORTING = 8192


@attrs.frozen(eq=False)
class Split:
    """The parts of a text.

    Attributes:
        calibration: the calibration on the first part.
        choosing: token ids [count, context] of the second part, to choose by.
        reporting: token ids [count, context] of the third part, to measure the result; may be empty.
    """

    calibration: Calibration
    choosing: Ints
    reporting: Ints


def split(
    given: Source,
    text: Text | None,
    calibration: Calibration | None,
    *,
    context: int | None = None,
    report: bool = True,
    file: Path | None = None,
    executor: Executor | None = None,
    progress: Shown = None,
) -> Split:
    """Split a text and calibrate on its first part; if a calibration is given, split the text into the other parts.

    Args:
        given: the model, or its path.
        text: a text or token ids [n]; None takes the calibration's held-out windows.
        calibration: a calibration on another text, or on another part of it; None calibrates on the first part.
        context: number of tokens in a window; None takes the calibration's, or 512, or the model's context if that is
            smaller.
        report: whether to reserve a part for measuring the result.
        file: the file in which to write the calibration; one from an earlier run is reused.
        executor: as for `edgekit.calibrate`.
        progress: the progress of the calibration.

    Raises:
        UsageError: there is neither a text nor held-out windows, there are fewer windows than parts, the text is the
            calibration's own, or as for `edgekit.calibrate`.
    """
    source, parts = as_artifact(given), 2 if report else 1
    if calibration is not None:
        calibration.refuse_other_model(source)
        windows = calibration.held_out if text is None else _windows(source, text, context or calibration.context)
        if text is not None:
            _refuse_same(windows, calibration)
        _refuse_few(len(windows), parts, windows.shape[1], "choose and to measure" if report else "measure")
        length, count = windows.shape[1], len(windows)
        reporting = max(1, count // 3) if report else 0
        choosing = min(count - reporting, max(1, CHOOSING // length))
        return Split(calibration, *_last(windows, choosing, min(reporting, max(1, REPORTING // length))))
    if text is None:
        raise UsageError("a text is needed to calibrate and to measure with; give one, or a calibration that held out")
    count, length = _count(source, text, context)
    _refuse_few(
        count, 1 + parts, length, "calibrate, to choose and to measure" if report else "calibrate and to measure"
    )
    choosing = min(max(1, count // 4), max(1, CHOOSING // length))
    reporting = min(max(1, count // 8), max(1, REPORTING // length)) if report else 0
    made = _calibrated(given, text, length, (choosing + reporting + 0.5) / count, file, executor, progress)
    return Split(made, *_last(made.held_out, choosing, reporting))


def _last(windows: Ints, choosing: int, reporting: int) -> tuple[Ints, Ints]:
    return windows[:choosing], windows[choosing : choosing + reporting]


def _count(source: Artifact, text: Text, context: int | None) -> tuple[int, int]:
    """Return the number of windows of a text, and the number of tokens in each."""
    longest = source.model.config.context
    length = min(CONTEXT, longest) if context is None else context
    return tokens_of(source, text).size // max(1, length), length


def _windows(source: Artifact, text: Text, context: int) -> Ints:
    tokens, tokenizer = tokens_of(source, text), source.tokenizer
    if tokens.ndim == 1 and tokens.size < context:
        raise UsageError(f"the text has {tokens.size} tokens, fewer than a window of {context}; give more text")
    return as_ids(cut(tokens, context, tokenizer.bos if tokenizer is not None and tokenizer.add_bos else None))


def _refuse_few(count: int, needed: int, length: int, purpose: str) -> None:
    if count < needed:
        raise UsageError(
            f"the text has {count} whole windows of {length} tokens, and {needed} are needed to {purpose}; give more "
            "text, better ten thousand tokens, or choose a smaller context"
        )


def _calibrated(
    given: Source,
    text: Text,
    length: int,
    holdout: float,
    file: Path | None,
    executor: Executor | None,
    progress: Shown,
) -> Calibration:
    """Return the calibration on the first part; an earlier run's file is reused if it is of the same text and model."""
    if file is not None and file.exists():
        model = model_digest(as_artifact(given))
        try:
            there = read_calibration(file)
        except EdgekitError:
            pass
        else:
            count = len(there.windows) + len(there.held_out)
            same = (there.model, there.text, there.context) == (model, text_digest(text), length)
            if same and len(there.held_out) == int(count * holdout) and "token_embd.weight" in _matrices(there):
                return there
    return calibrate(
        given, text, to=file, context=length, outputs=True, holdout=holdout, executor=executor, progress=progress
    )


def _matrices(calibration: Calibration) -> set[str]:
    """Return the matrices that a calibration covers; a separate output matrix counts as the embedding."""
    named = {name for shared in calibration.inputs.values() for name in shared}
    return named | ({"token_embd.weight"} if "output.weight" in named else set())


def _refuse_same(windows: Ints, calibration: Calibration) -> None:
    """Raise `UsageError` if the windows contain much of the calibration's text, at any offset."""
    if shared_with(record_of(calibration), windows) > SHARED:
        raise UsageError(
            "the calibration is of the text to measure on, which would flatter the result; give another text, or none "
            "to use what the calibration has held out"
        )


__all__ = ["CHOOSING", "REPORTING", "Split", "split"]
