"""Perplexity of a model on a text, and the distance of its predictions to a baseline's."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from contextlib import closing
from functools import partial
from typing import Any

import attrs
import numpy as np
import numpy.typing as npt

from edgekit.architectures.forward import Transformer
from edgekit.artifact import Artifact
from edgekit.errors import NonFiniteError, UnsupportedModelError, UsageError, counted
from edgekit.evaluation import _afar
from edgekit.evaluation._common import Source, finite
from edgekit.files import _html
from edgekit.files.memory import enough_memory
from edgekit.pipeline import _remote
from edgekit.pipeline._conversion import as_artifact
from edgekit.pipeline._progress import Progress, Shown, reporting
from edgekit.pipeline.rounding._overlap import SHARED, shared_with
from edgekit.tokenizer import Tokenizer, TokenType
from edgekit.typing import F32, F64, Ints

#: A text, or token ids [n].
Text = str | npt.ArrayLike

#: Default number of tokens in a window, as in llama.cpp.
CONTEXT = 512
#: Tokens in a batch: several windows if they are short.
_BATCH = 2048
#: Logits in memory at once: 32 MiB in float64.
_LOGITS = 1 << 22


@attrs.frozen(repr=False)
class Evaluation:
    """Quality of a model on a text, absolute and relative to a baseline.

    Attributes:
        perplexity: exp of the mean negative log-likelihood of the scored tokens.
        tokens: how many tokens were scored.
        context: tokens of a window.
        baseline_perplexity: of the baseline on the same tokens; None without one, as all that follow.
        perplexity_error: standard error of the difference between the two perplexities, the scored tokens taken
            as independent: a difference of less than two of it may be chance.
        kl_divergence: mean over the scored positions, of the baseline's distribution from the artifact's, in nats.
        kl_divergence_p99: its 99th percentile.
        top1_agreement: share of scored positions, 0 to 1.
        noise_floor: the KL divergence, in nats, of the baseline from itself when its products are summed in another
            order, over the first batch of windows (at most 2048 tokens, or one window). A divergence that is no
            larger may be float32's rounding alone.
        kl_divergence_error: standard error of the mean KL divergence, the scored positions taken as independent.
        calibrated: share of the text, 0 to 1, that the artifact was calibrated on, as its manifest says; None if it
            says nothing. The figures flatter an artifact that is measured on its calibration's text.
    """

    perplexity: float
    tokens: int
    context: int
    baseline_perplexity: float | None = None
    perplexity_error: float | None = None
    kl_divergence: float | None = None
    kl_divergence_p99: float | None = None
    top1_agreement: float | None = None
    noise_floor: float | None = None
    kl_divergence_error: float | None = None
    calibrated: float | None = None

    @property
    def is_noise(self) -> bool:
        """Whether the KL divergence is no larger than the noise floor; False without a baseline."""
        return self.noise_floor is not None and (self.kl_divergence or 0.0) <= self.noise_floor

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON; values that are not finite become None."""
        return {name: finite(value) for name, value in attrs.asdict(self).items()}

    def __repr__(self) -> str:
        known = ((name, value) for name, value in attrs.asdict(self).items() if value is not None)
        return f"Evaluation({', '.join(f'{n}={v:.6g}' if isinstance(v, float) else f'{n}={v}' for n, v in known)})"

    def _repr_html_(self) -> str:
        rows = [(name.replace("_", " "), _shown(value)) for name, value in attrs.asdict(self).items()]
        return _html.table("Evaluation", ("measure", "value"), [row for row in rows if row[1]])

    @property
    def is_flattering(self) -> bool:
        """Whether much of the text is the artifact's calibration text."""
        return (self.calibrated or 0.0) > SHARED

    def __str__(self) -> str:
        return f"{self._figures()}{self._warning()}"

    def _warning(self) -> str:
        if not self.is_flattering:
            return ""
        return f"\nit was calibrated on {self.calibrated:.0%} of this text, which flatters it: measure on another"

    def _figures(self) -> str:
        text = f"perplexity {self.perplexity:.4f} over {counted(self.tokens, 'token')} in windows of {self.context}"
        if self.kl_divergence is None:
            return text
        assert self.baseline_perplexity is not None
        difference = f"{self.perplexity - self.baseline_perplexity:+.4f} ± {self.perplexity_error:.4f}"
        return (
            f"{text} (baseline {self.baseline_perplexity:.4f}, difference {difference})\n"
            f"KL divergence {self.kl_divergence:.6f} ± {self.kl_divergence_error:.6f} mean, "
            f"{self.kl_divergence_p99:.6f} p99; top-1 agreement {self.top1_agreement:.2%}\n"
            f"noise floor {self.noise_floor:.1e}{': the divergence is not above it' if self.is_noise else ''}"
        )


def _shown(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else "" if value is None else f"{value}"


class Baseline:
    """A model to compare many others with; its results for each window are cached.

    Args:
        source: the artifact, or its path. Hidden states take ``4 * width`` bytes for every token of the text.
    """

    def __init__(self, source: Source) -> None:
        self.artifact = as_artifact(source)
        self.source = source
        self._model = Transformer(self.artifact.model)
        self._known: dict[bytes, F32] = {}
        self._noise: dict[bytes, float] = {}
        self.config = self._model.config
        self.project = self._model.project

    def hidden(self, tokens: Ints) -> F32:
        """Return `Transformer.hidden` for the tokens, cached."""
        key = tokens.tobytes()
        if key not in self._known:
            self._known[key] = self._model.hidden(tokens)
        return self._known[key]

    def in_halves(self) -> Transformer:
        """Return `Transformer.in_halves` for the tokens, cached."""
        return self._model.in_halves()

    def noise_floor(self, windows: Ints) -> float:
        """Return the `noise_floor` of the model, measured once."""
        key = windows.tobytes()
        if key not in self._noise:
            self._noise[key] = noise_floor(self, windows)
        return self._noise[key]


Judge = Transformer | Baseline


@enough_memory("evaluating a model")
def evaluate(
    artifact: Source,
    text: Text,
    *,
    baseline: Source | Baseline | None = None,
    context: int | None = None,
    executor: Executor | None = None,
    progress: Shown = None,
) -> Evaluation:
    """Perplexity on a text and, with a baseline, KL divergence from it and top-1 agreement.

    As llama.cpp's perplexity tool does it: the tokens are cut into windows of `context` tokens that do not
    overlap, what is left at the end is dropped, the first token of each window becomes BOS where the tokenizer
    adds one, and every window is computed on its own. Of each window the second half is scored: the tokens at
    ``context // 2 + 1`` and later, which have at least half a window before them. A text shorter than one
    window is one window of its own length.

    Args:
        artifact: the model to evaluate.
        text: a text, or token ids [n].
        baseline: the model to compare with; it has to share the vocabulary. A `Baseline` is computed once
            for many artifacts.
        context: tokens of a window; None takes 512, or the model's context where that is less.
        executor: computes the batches of windows, such as `edgekit.pipeline.executors.connected` gives; None computes
            here, and so do threads. The models have to be given by their paths, which the workers open. The bits do
            not depend on how many workers there are, but on their processors, as float32 products do.
        progress: called before each batch of windows; True draws a bar on stderr.

    Returns:
        The measures; they say if the artifact was calibrated on the text (`Evaluation.calibrated`). A baseline costs a
        second forward pass of the text, and the noise floor two of its first batch (one with a `Baseline`, and none for
        the artifacts after the first). Logits of a few positions at a time are held, never those of the text; the KL
        divergence is never negative, and exactly 0 for models that compute the same.

    Raises:
        UsageError: fewer than three tokens, no tokenizer for a text, other vocabularies or tokenizers, or a bad
            `context`; or an executor and an opened artifact.
        UnsupportedModelError: the family is not known.
        NonFiniteError: a model computes a NaN or an infinity; names which.
        PluginError, MissingFileError, ChangedSourceError: a worker has other versions or sees other files.
        ResourceError: the executor lost its workers.
    """
    judged = as_artifact(artifact)
    models = _models(judged, baseline)
    sources = [judged, *([] if baseline is None else [_artifact(baseline)])]
    _refuse_other_tokenizers(sources)
    windows = cut(tokens_of(judged, text), _context(context, models), _bos(judged))
    workers = [] if _remote.elsewhere(executor) is None else list(_workers(executor, artifact, baseline, sources))
    with reporting(progress, "evaluate") as report:
        scores = list(_scores(models, windows, report, workers))
    evaluation = _summary(np.concatenate(scores, axis=1), windows.shape[1], sources)
    evaluation = attrs.evolve(evaluation, calibrated=_calibrated(judged, windows))
    if baseline is None:
        return evaluation
    base, first = models[-1], windows[: _step(windows)]
    if isinstance(base, Baseline):
        noise = base.noise_floor(first)
    else:
        noise = (
            workers[-1].call(partial(_noise_there, workers[-1].source, first)) if workers else noise_floor(base, first)
        )
    return attrs.evolve(evaluation, noise_floor=noise)


def _workers(
    executor: Executor | None, given: Source, baseline: Source | Baseline | None, opened: list[Artifact]
) -> Iterator[_afar.Workers]:
    """Yield how workers elsewhere find each of the models."""
    others = [] if baseline is None else [baseline.source if isinstance(baseline, Baseline) else baseline]
    for path, artifact in zip([given, *others], opened, strict=True):
        if (workers := _afar.Workers.of(executor, path, artifact)) is not None:
            yield workers


def _calibrated(artifact: Artifact, windows: Ints) -> float | None:
    """Return the share of the text that the artifact's manifest says it was calibrated on; None if it says nothing."""
    manifest = artifact.manifest
    return None if manifest is None or not manifest.calibration else shared_with(manifest.calibration, windows)


def noise_floor(model: Judge, windows: Ints) -> float:
    """Return the mean KL divergence, in nats, of a model from itself when its products are summed in another order.

    Args:
        model: the forward pass.
        windows: token ids [count, context], of which the second half of each is scored.
    """
    scores = np.concatenate(list(_score_batch([model.in_halves(), model], windows)), axis=1)
    return float(scores[2].mean())


def tokens_of(artifact: Artifact, text: Text) -> Ints:
    """Return the token ids [n] of a text, with the tokenizer's BOS; ids are returned unchanged.

    Raises:
        UsageError: the artifact has no tokenizer for a text.
    """
    if not isinstance(text, str):
        return np.asarray(text)
    tokenizer = artifact.tokenizer
    if tokenizer is None:
        raise UsageError(f"{artifact.path}: it has no tokenizer to cut the text with; give token ids instead")
    return np.asarray(tokenizer.encode(text), np.int64)


def cut(tokens: Ints, context: int, bos: int | None) -> Ints:
    """Return windows [count, context] of the tokens [n], each beginning with `bos` unless it is None.

    Raises:
        UsageError: not [n], not integers, or fewer than three.
    """
    if tokens.ndim != 1 or tokens.dtype.kind not in "iu":
        raise UsageError(f"tokens have to be integers [n], got {tokens.dtype} {list(tokens.shape)}")
    if tokens.size < 3:
        raise UsageError(f"{tokens.size} tokens are too few to score; give a text of at least three, better thousands")
    length = min(context, tokens.size)
    count = tokens.size // length
    windows = tokens[: count * length].reshape(count, length).copy()
    if bos is not None:
        windows[:, 0] = bos
    return windows


def _models(judged: Artifact, baseline: Source | Baseline | None) -> list[Judge]:
    models: list[Judge] = [Transformer(judged.model)]
    if baseline is not None:
        models.append(baseline if isinstance(baseline, Baseline) else Transformer(as_artifact(baseline).model))
    sizes = {model.config.vocab for model in models}
    if len(sizes) > 1:
        raise UsageError(f"the models have vocabularies of {sizes} tokens; only models of one vocabulary compare")
    return models


def _artifact(baseline: Source | Baseline) -> Artifact:
    return baseline.artifact if isinstance(baseline, Baseline) else as_artifact(baseline)


def _refuse_other_tokenizers(sources: list[Artifact]) -> None:
    """Raise if the baseline maps the same ids to other text; names of special tokens may differ."""
    tokenizers = [_tokenizer(source) for source in sources]
    if len(sources) < 2 or tokenizers[0] is None or tokenizers[1] is None:
        return
    ours, theirs = (_texts(tokenizer) for tokenizer in tokenizers if tokenizer)
    odd = [number for number in ours.keys() & theirs.keys() if ours[number] != theirs[number]]
    if odd:
        first = min(odd)
        raise UsageError(
            f"{sources[0].path} and its baseline {sources[1].path} have different tokenizers: token {first} is "
            f"{ours[first]!r} in the one and {theirs[first]!r} in the other, and {len(odd)} of {len(ours)} differ; "
            "choose a baseline with the same tokenizer, such as the model that this one was made from"
        )


def _tokenizer(source: Artifact) -> Tokenizer | None:
    try:
        return source.tokenizer
    except UnsupportedModelError:
        return None


def _texts(tokenizer: Tokenizer) -> dict[int, str]:
    """Return ids and texts of the tokens of text, with spaces in one notation."""
    kinds = (TokenType.NORMAL, TokenType.BYTE)
    pieces = zip(tokenizer.tokens, tokenizer.types, strict=False)
    return {n: token.replace("▁", " ") for n, (token, kind) in enumerate(pieces) if kind in kinds}


def _context(context: int | None, models: list[Judge]) -> int:
    longest = min(model.config.context for model in models)
    if context is None:
        return min(CONTEXT, longest)
    if not 3 <= context <= longest:
        raise UsageError(f"a window of {context} tokens; choose between 3 and the model's context of {longest}")
    return context


def _bos(artifact: Artifact) -> int | None:
    tokenizer = artifact.tokenizer
    return tokenizer.bos if tokenizer is not None and tokenizer.add_bos else None


def _scores(
    models: list[Judge], windows: Ints, progress: Progress | None, workers: list[_afar.Workers]
) -> Iterator[F64]:
    """Yield rows for each scored position, [rows, positions]: negative log-likelihood, or four rows with a baseline."""
    count = len(windows)
    starts = range(0, count, _step(windows))
    batches = [windows[start : start + starts.step] for start in starts]
    if workers:
        sources = [each.source for each in workers]
        scored = workers[0].in_order(partial(_scores_there, sources, batch) for batch in batches)
    else:
        scored = (np.concatenate(list(_score_batch(models, batch)), axis=1) for batch in batches)
    with closing(scored):
        for start in starts:
            if progress:
                progress(start, count, "evaluation")
            yield next(scored)
    if progress:
        progress(count, count, "")


@functools.lru_cache(maxsize=2)
def _model_there(source: _remote.Source) -> Transformer:
    return Transformer(_afar.model(source))


def _scores_there(sources: list[_remote.Source], batch: Ints) -> F64:
    """Return the scores of a batch of windows; a worker elsewhere does."""
    return np.concatenate(list(_score_batch([_model_there(source) for source in sources], batch)), axis=1)


def _noise_there(source: _remote.Source, windows: Ints) -> float:
    return noise_floor(_model_there(source), windows)


def _step(windows: Ints) -> int:
    """Return the number of windows in a batch."""
    return max(1, _BATCH // int(windows.shape[1]))


def _score_batch(models: Sequence[Judge], batch: Ints) -> Iterator[F64]:
    first = batch.shape[1] // 2
    hidden = [m.hidden(batch)[:, first:-1].reshape(-1, m.config.width) for m in models]
    targets = batch[:, first + 1 :].reshape(-1)
    step = max(1, _LOGITS // models[0].config.vocab)
    for start in range(0, targets.size, step):
        rows = slice(start, start + step)
        yield score([log_softmax(m.project(h[rows])) for m, h in zip(models, hidden, strict=True)], targets[rows])


def score(log_q: list[F64], targets: Ints) -> F64:
    """Return the measurements of each position.

    Args:
        log_q: log-probabilities [positions, vocab] of the artifact and, where there is one, of the baseline.
        targets: the actual tokens [positions].

    Returns:
        float64 [1 or 4, positions]: negative log-likelihood of the artifact; with a baseline also that of
        the baseline, the KL divergence, and 1 where the two agree on the most likely token.
    """
    places = np.arange(targets.size)
    losses = [-log[places, targets] for log in log_q]
    if len(log_q) == 1:
        return np.stack(losses)
    agree = (log_q[0].argmax(axis=-1) == log_q[1].argmax(axis=-1)).astype(np.float64)
    return np.stack([*losses, kl_divergence(log_q[1], log_q[0]), agree])


def log_softmax(logits: npt.NDArray[np.floating]) -> F64:
    """Return log-probabilities over the last dimension, in float64, shifted to avoid overflow."""
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(axis=-1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return shifted


def kl_divergence(log_p: F64, log_q: F64) -> F64:
    """Return Σ p·(log p - log q) over the last dimension, in nats; at least 0, and 0 if the two are equal."""
    divergence: F64 = np.einsum("...i,...i->...", np.exp(log_p), log_p - log_q)
    return np.maximum(divergence, 0.0)  # rounding may leave a sum of -1e-17


def _summary(scores: F64, context: int, sources: list[Artifact]) -> Evaluation:
    for row, source in enumerate(sources):
        if not np.isfinite(scores[row]).all():
            raise _not_finite(source, "baseline" if row else "model")
    if not np.isfinite(scores).all():
        raise _not_finite(sources[0], "model")
    tokens = scores.shape[1]
    perplexity, *rest = (_exp(mean) if row < 2 else mean for row, mean in enumerate(scores.mean(axis=1).tolist()))
    if not rest:
        return Evaluation(perplexity, tokens, context)
    baseline, kl, agreement = rest
    p99 = float(np.percentile(scores[2], 99))
    error = perplexity * float(np.std(scores[0] - scores[1])) / math.sqrt(tokens)
    kl_error = float(np.std(scores[2])) / math.sqrt(tokens)
    return Evaluation(perplexity, tokens, context, baseline, error, kl, p99, agreement, kl_divergence_error=kl_error)


def _not_finite(source: Artifact, which: str) -> NonFiniteError:
    cure = "choose a precision that keeps more" if which == "model" else "choose another baseline"
    return NonFiniteError(
        f"{source.path}: the {which} computes values that are not finite; {cure}, or look for broken scales with "
        "`edgekit compare`"
    )


def _exp(mean: float) -> float:
    return math.exp(mean) if mean < 700 else math.inf


__all__ = [
    "CONTEXT",
    "Baseline",
    "Evaluation",
    "Judge",
    "Text",
    "cut",
    "evaluate",
    "kl_divergence",
    "log_softmax",
    "noise_floor",
    "score",
    "tokens_of",
]
