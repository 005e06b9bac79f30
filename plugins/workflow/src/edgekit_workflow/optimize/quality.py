"""Quality of an artifact against the source: by position, by category of text, and the worst places in their text.

The baseline's logits are computed again from its hidden states for each artifact, a few positions at a time, and never
written: nothing of the run's directory grows with the vocabulary. The means are those of `edgekit.evaluate`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import attrs
import numpy as np

from edgekit.architectures.forward import Transformer
from edgekit.artifact import Artifact
from edgekit.errors import NonFiniteError
from edgekit.evaluation import Baseline
from edgekit.evaluation.language import log_softmax, score
from edgekit.tokenizer import Tokenizer
from edgekit.typing import F64, Ints

#: Positions of most divergence that are kept with their text, and tokens of the text before each.
WORST, _BEFORE = 12, 24
#: Tokens of a batch, and logits in memory at once.
_BATCH, _LOGITS = 2048, 1 << 22


@attrs.frozen
class Worst:
    """A position at which the artifact predicts otherwise than the source.

    Attributes:
        category: of its text.
        before: the text before it.
        actual: the token that comes next.
        expected: the source's most likely token, and `expected_share` its probability by the source.
        predicted: the artifact's most likely token, and `predicted_share` its probability by the artifact.
        kl: KL divergence at the position, in nats.
    """

    category: str
    before: str
    actual: str
    expected: str
    expected_share: float
    predicted: str
    predicted_share: float
    kl: float


@attrs.frozen(eq=False)
class _Scored:
    """Scores [4, positions] of a category, and what both models find most likely: tokens and their probabilities."""

    scores: F64
    tops: Ints
    shares: F64


def measure_quality(baseline: Baseline, artifact: Artifact, windows: Mapping[str, Ints]) -> dict[str, Any]:
    """Return what an artifact's quality is, as plain data.

    Args:
        baseline: the source.
        artifact: of the same vocabulary.
        windows: token ids [count, context] by category; the second half of each window is scored.

    Returns:
        ``kl``, ``kl_error`` (standard error of the mean), ``kl_p99``, ``top1``, ``perplexity``,
        ``perplexity_error`` (of the difference to the baseline's), ``positions``, ``categories`` with the same by
        category, and ``worst``, the positions of most divergence.

    Raises:
        NonFiniteError: a model computes a NaN or an infinity.
    """
    model = Transformer(artifact.model)
    scored = {name: _scored(baseline, model, of_category) for name, of_category in windows.items()}
    whole = np.concatenate([each.scores for each in scored.values()], axis=1)
    if not np.isfinite(whole).all():
        raise NonFiniteError(f"{artifact.path}: it computes values that are not finite; choose a precision with more")
    tokenizer = baseline.artifact.tokenizer
    worst = [] if tokenizer is None else list(_worst(scored, windows, tokenizer))
    return {
        **_summary(whole),
        "categories": {name: _summary(each.scores) for name, each in scored.items()},
        "worst": [attrs.asdict(place) for place in worst],
    }


def noise_floor(baseline: Baseline, windows: Mapping[str, Ints]) -> float:
    """Return the KL divergence, in nats, of the source from itself when its products are summed in another order."""
    first = next(iter(windows.values()))
    return baseline.noise_floor(first[: max(1, _BATCH // first.shape[1])])


def _scored(baseline: Baseline, model: Transformer, windows: Ints) -> _Scored:
    parts = list(_batches(baseline, model, windows))
    return _Scored(
        np.concatenate([part.scores for part in parts], axis=1),
        np.concatenate([part.tops for part in parts], axis=1),
        np.concatenate([part.shares for part in parts], axis=1),
    )


def _batches(baseline: Baseline, model: Transformer, windows: Ints) -> Iterator[_Scored]:
    step = max(1, _BATCH // windows.shape[1])
    first = windows.shape[1] // 2
    for start in range(0, len(windows), step):
        batch = windows[start : start + step]
        hidden = [m.hidden(batch)[:, first:-1].reshape(-1, m.config.width) for m in (model, baseline)]
        targets = batch[:, first + 1 :].reshape(-1)
        rows = max(1, _LOGITS // model.config.vocab)
        for at in range(0, targets.size, rows):
            some = slice(at, at + rows)
            logs = [log_softmax(model.project(hidden[0][some])), log_softmax(baseline.project(hidden[1][some]))]
            tops = np.stack([log.argmax(axis=-1) for log in logs])
            shares = np.exp(np.stack([log.max(axis=-1) for log in logs]))
            yield _Scored(score(logs, targets[some]), tops, shares)


def _summary(scores: F64) -> dict[str, Any]:
    count = scores.shape[1]
    perplexity, kl = math.exp(min(700.0, float(scores[0].mean()))), float(scores[2].mean())
    return {
        "positions": count,
        "perplexity": perplexity,
        "perplexity_error": perplexity * float(np.std(scores[0] - scores[1])) / math.sqrt(count),
        "baseline_perplexity": math.exp(min(700.0, float(scores[1].mean()))),
        "kl": kl,
        "kl_error": float(np.std(scores[2])) / math.sqrt(count),
        "kl_p99": float(np.percentile(scores[2], 99)),
        "top1": float(scores[3].mean()),
    }


def _worst(scored: Mapping[str, _Scored], windows: Mapping[str, Ints], tokenizer: Tokenizer) -> Iterator[Worst]:
    places = [(float(kl), name, at) for name, each in scored.items() for at, kl in enumerate(each.scores[2])]
    for kl, name, at in sorted(places, key=lambda place: (-place[0], place[1], place[2]))[:WORST]:
        if kl > 0:
            yield _place(kl, name, at, scored[name], windows[name], tokenizer)


def _place(kl: float, name: str, at: int, scored: _Scored, windows: Ints, tokenizer: Tokenizer) -> Worst:
    first = windows.shape[1] // 2
    window, offset = divmod(at, windows.shape[1] - 1 - first)
    position = first + 1 + offset
    row = windows[window]

    def text(*ids: int) -> str:
        return tokenizer.decode([int(each) for each in ids])

    (predicted, expected), (predicted_share, expected_share) = scored.tops[:, at], scored.shares[:, at]
    return Worst(
        name,
        text(*row[max(0, position - _BEFORE) : position]),
        text(row[position]),
        text(expected),
        float(expected_share),
        text(predicted),
        float(predicted_share),
        kl,
    )


__all__ = ["WORST", "Worst", "measure_quality", "noise_floor"]
