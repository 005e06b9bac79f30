"""The texts of a run: what calibrates, what chooses, and what measures, none of it used twice."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import attrs
import numpy as np

import edgekit
from edgekit.artifact import Artifact
from edgekit.errors import InvalidFileError, MissingFileError, UsageError
from edgekit.evaluation.language import CONTEXT, cut, tokens_of
from edgekit.files.atomic import write_atomic
from edgekit.typing import Ints

#: The category of a text that was sampled from the model.
SAMPLED = "sampled"
#: Tokens of a sampled text, in pieces of so many.
_SAMPLE, _PIECE = 8192, 256
#: Shares of the windows of each text that calibrate and that choose; the rest measures.
_CALIBRATE, _CHOOSE = 0.5, 0.25


@attrs.frozen(eq=False)
class Texts:
    """Windows of token ids.

    Attributes:
        calibration: token ids [n], whole windows.
        choosing: token ids [n], whole windows.
        measuring: token ids [count, context] by category.
        digests: SHA-256 (hex) of each text.
        context: tokens of a window.
    """

    calibration: Ints
    choosing: Ints
    measuring: Mapping[str, Ints]
    digests: Mapping[str, str]
    context: int

    @property
    def holdout(self) -> float:
        """The share of calibration and choosing that is set aside to choose, for `edgekit.calibrate`."""
        return (len(self.choosing) / self.context + 0.5) / ((len(self.calibration) + len(self.choosing)) / self.context)


def read_texts(source: Artifact, files: Mapping[str, Path], context: int | None, tokens: int, run: Path) -> Texts:
    """Return the texts of a run, cut into windows.

    Args:
        source: the model, whose tokenizer cuts them.
        files: text files by category; empty to sample a text from the model, which `run` keeps as ``text.txt``.
        context: tokens of a window; None for 512, or the model's context if that is less.
        tokens: most tokens to measure with, over all categories.
        run: the run's directory.

    Raises:
        MissingFileError, InvalidFileError: a text cannot be read, or is not UTF-8.
        UsageError: a text is too short, or the model has no tokenizer.
    """
    texts = {name: _read(file) for name, file in files.items()} or {SAMPLED: _sampled(source, run / "text.txt")}
    longest = source.model.config.context
    length = min(CONTEXT, longest) if context is None else context
    if not 3 <= length <= longest:
        raise UsageError(f"a window of {length} tokens; choose between 3 and the model's context of {longest}")
    parts = [_parts(source, name, text, length) for name, text in texts.items()]
    most = max(1, tokens // length // len(texts))
    measuring = {name: windows[:most] for name, (_, _, windows) in zip(texts, parts, strict=True)}
    return Texts(
        np.concatenate([part[0] for part in parts]).reshape(-1),
        np.concatenate([part[1] for part in parts]).reshape(-1),
        measuring,
        {name: hashlib.sha256(text.encode()).hexdigest() for name, text in texts.items()},
        length,
    )


def _parts(source: Artifact, name: str, text: str, length: int) -> tuple[Ints, Ints, Ints]:
    tokens = tokens_of(source, text)
    count = tokens.size // length
    if count < 3:
        raise UsageError(
            f"the text {name!r} has {tokens.size} tokens, and three windows of {length} are needed to calibrate, to "
            "choose and to measure; give more text, better ten thousand tokens, or a smaller context"
        )
    tokenizer = source.tokenizer
    windows = cut(tokens, length, tokenizer.bos if tokenizer is not None and tokenizer.add_bos else None)
    choosing = max(1, int(count * _CHOOSE))
    calibrating = min(max(1, int(count * _CALIBRATE)), count - choosing - 1)
    return windows[:calibrating], windows[calibrating : calibrating + choosing], windows[calibrating + choosing :]


def _read(file: Path) -> str:
    try:
        return file.read_bytes().decode("utf-8")
    except OSError as error:
        raise MissingFileError(f"{file}: cannot be read ({error.strerror}); give a text file") from error
    except UnicodeDecodeError as error:
        raise InvalidFileError(f"{file}: not UTF-8 at offset {error.start}; convert it to UTF-8") from error


def _sampled(source: Artifact, file: Path) -> str:
    """Return a text that the model wrote itself, from its file if an earlier run kept it."""
    if file.exists():
        return _read(file)
    tokenizer = source.tokenizer
    if tokenizer is None:
        raise UsageError(f"{source.path}: it has no tokenizer; give token ids to other tools, this needs a text")
    start = [tokenizer.bos if tokenizer.bos is not None else 0]
    length = min(_PIECE, source.model.config.context - 1)
    seeds = range(_SAMPLE // length)
    with edgekit.load(source) as model:
        pieces = [model.generate(start, max_tokens=length, temperature=1.0, seed=seed) for seed in seeds]
    text = "\n\n".join(piece.strip() for piece in pieces) + "\n"
    write_atomic(file, text.encode())
    return text


__all__ = ["SAMPLED", "Texts", "read_texts"]
