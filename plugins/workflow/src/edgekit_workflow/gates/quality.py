"""Gates of quality: how much of the source's quality the artifact keeps, on the texts or samples that are given."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from edgekit.evaluation import Evaluation, evaluate
from edgekit.evaluation.language import tokens_of
from edgekit.runtime import EmbeddingRuntime
from edgekit.runtime.numpy import NumpyRuntime
from edgekit.typing import F32
from edgekit_workflow.gates.classifiers import OF_CLASSIFIERS, classifier_gates
from edgekit_workflow.gates.results import GateResult
from edgekit_workflow.gates.subject import Subject

#: The gates of models that predict next tokens, and of models that embed.
OF_LANGUAGE = ("perplexity_ratio", "kl_divergence", "top1_agreement")
OF_EMBEDDINGS = ("embedding_similarity", "neighbour_agreement")
#: Most passages that are embedded, and the characters of the shortest one.
_PASSAGES, _SHORT = 48, 20


def quality_gates(subject: Subject) -> Iterator[GateResult]:
    """Yield the results of the gates of the category ``quality``: of language or embedding models, or classifiers."""
    if subject.samples is not None:
        names = [name for name in OF_CLASSIFIERS if subject.policy.runs(name)]
        yield from classifier_gates(subject, names) if names else ()
        return
    embeds = subject.models is not None and not subject.models[0].config.causal
    names = [name for name in (OF_EMBEDDINGS if embeds else OF_LANGUAGE) if subject.policy.runs(name)]
    why = _why_not(subject)
    if why:
        yield from (GateResult(name, "quality", None, detail=why) for name in names)
    elif names:
        yield from (_embedding if embeds else _language)(subject, names)


def _why_not(subject: Subject) -> str:
    if subject.models is None:
        return (
            "the family is unsupported: of a classifier give samples of its inputs, of others nothing can be measured"
        )
    return "" if subject.texts else "no text was given to measure on"


def _language(subject: Subject, names: Sequence[str]) -> Iterator[GateResult]:
    baseline, most = subject.shared.baseline, subject.policy.quality.tokens
    found = {
        category: evaluate(subject.artifact, tokens_of(subject.source, text)[:most], baseline=baseline)
        for category, text in subject.texts.items()
    }
    measures: Mapping[str, tuple[Callable[[Evaluation], float], bool]] = {
        "perplexity_ratio": (lambda e: (e.baseline_perplexity or 0.0) / e.perplexity, True),
        "kl_divergence": (lambda e: e.kl_divergence or 0.0, False),
        "top1_agreement": (lambda e: e.top1_agreement or 0.0, True),
    }
    for name in names:
        measure, at_least = measures[name]
        values = {category: measure(evaluation) for category, evaluation in found.items()}
        yield judged(subject, name, values, at_least, "" if at_least else "nats")


def judged(subject: Subject, name: str, values: Mapping[str, float], at_least: bool, unit: str = "") -> GateResult:
    """Return the result of the worst category, with all of them in the detail.

    Args:
        subject: for the limit of that name.
        name: of the gate.
        values: measured, by category.
        at_least: whether the limit is the least that is allowed, or the most.
        unit: of the values.
    """
    limit = float(getattr(subject.policy.quality, name))
    worst = min(values.values()) if at_least else max(values.values())
    passed = worst >= limit if at_least else worst <= limit
    detail = ", ".join(f"{category} {value:.4g}" for category, value in values.items()) if len(values) > 1 else ""
    return GateResult(name, "quality", passed, worst, limit, unit, detail)


def _embedding(subject: Subject, names: Sequence[str]) -> Iterator[GateResult]:
    vectors = {category: _vectors(subject, _passages(text)) for category, text in subject.texts.items()}
    measures = {"embedding_similarity": _similarity, "neighbour_agreement": _agreement}
    for name in names:
        yield judged(subject, name, {c: measures[name](*pair) for c, pair in vectors.items()}, True)


def _passages(text: str) -> list[str]:
    passages = [line.strip() for line in text.splitlines() if len(line.strip()) >= _SHORT]
    return list(dict.fromkeys(passages))[:_PASSAGES] or [text[:200]]


def _vectors(subject: Subject, passages: Sequence[str]) -> tuple[F32, F32]:
    """The embeddings, float32 [passages, width], by the artifact and by the source; cut to the context."""
    most = subject.source.model.config.context
    ids = [tokens_of(subject.source, passage)[:most].tolist() for passage in passages]
    with subject.running() as model:
        if not isinstance(model, EmbeddingRuntime):
            model = NumpyRuntime.open(subject.artifact)
        ours = np.stack([model.embed(each) for each in ids])
    with NumpyRuntime.open(subject.source) as model:
        return ours, np.stack([model.embed(each) for each in ids])


def _similarity(ours: F32, theirs: F32) -> float:
    return float(np.einsum("ij,ij->i", ours.astype(np.float64), theirs).mean())


def _agreement(ours: F32, theirs: F32) -> float:
    """The share of passages whose nearest other passage is the same."""
    if len(ours) < 3:
        return 1.0
    nearest = [(vectors @ vectors.T - 4 * np.eye(len(vectors))).argmax(axis=1) for vectors in (ours, theirs)]
    return float((nearest[0] == nearest[1]).mean())


__all__ = ["OF_EMBEDDINGS", "OF_LANGUAGE", "judged", "quality_gates"]
