"""What is recorded of a finished text, in the metrics and the log: numbers and flags, never its content."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

import attrs

from edgekit.runtime import TokenScore

#: Characters of a text's beginning in which a refusal is looked for.
OPENING = 200
_REFUSAL = re.compile(
    r"\b(sorry|apologi[sz]e|unfortunately)\b.{0,40}\b(can't|cannot|can not|unable|not able|won't)\b"
    r"|\bI('m| am) (unable|not able) to\b"
    r"|\bI (can't|cannot|can not|won't|will not) (help|assist|provide|comply|answer|discuss|do|fulfil|create|write)"
    r"|\bas an AI\b.{0,40}\b(can't|cannot|unable|not able)\b",
    re.IGNORECASE | re.DOTALL,
)


@attrs.frozen
class Outcome:
    """What is recorded of a finished text.

    Attributes:
        tokens: number of tokens generated, with the one that ended the text.
        finish: why it ended, as in the answer: ``stop``, ``length``, ``tool_calls``.
        refused: whether the text begins with a refusal, by `refuses`.
        confidence: geometric mean of the probabilities of its tokens; None unless they were recorded.
    """

    tokens: int
    finish: str
    refused: bool
    confidence: float | None

    def fields(self) -> dict[str, Any]:
        """Return the outcome as fields of the log."""
        rounded = None if self.confidence is None else round(self.confidence, 4)
        return {"tokens": self.tokens, "finish": self.finish, "refused": self.refused, "confidence": rounded}


def refuses(text: str) -> bool:
    """Return whether a text begins with one of the phrases by which models refuse, in English.

    Example:
        >>> refuses("I'm sorry, but I can't help with that."), refuses("The capital of France is Paris.")
        (True, False)
    """
    return _REFUSAL.search(text[:OPENING].replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")) is not None


def confidence(scores: Sequence[TokenScore]) -> float | None:
    """Return the geometric mean of the probabilities of tokens, from 0 to 1; None without scores."""
    known = [score.logprob for score in scores if not math.isnan(score.logprob)]
    return math.exp(sum(known) / len(known)) if known else None


__all__ = ["OPENING", "Outcome", "confidence", "refuses"]
