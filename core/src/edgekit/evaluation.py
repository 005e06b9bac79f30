"""What quantization cost: error of each tensor, perplexity, KL divergence, top-1 agreement.

(The module is called `evaluation` because `edgekit.evaluate` is the function.)

With p the baseline's distribution over the vocabulary at a position, q the artifact's, and t the token that
comes next: perplexity = exp(mean -log q(t)), KL divergence = Σ p·(log p - log q) in nats, and the top-1
agreement is the share of positions at which both find the same token most likely. For a tensor w that reads
back as v: relative RMS error = sqrt(Σ(w - v)² / Σw²), signal-to-noise ratio = -20·log10 of it.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import attrs
import numpy as np
import numpy.typing as npt

from edgekit.architectures import Model
from edgekit.architectures.forward import Transformer
from edgekit.artifact import Artifact
from edgekit.errors import NonFiniteError, UnsupportedModelError, UsageError
from edgekit.pipeline import open_artifact
from edgekit.tensor import AnyTensor, EncodedTensor

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
Ints = npt.NDArray[np.integer]
#: A text, or token ids [n].
Text = str | npt.ArrayLike
#: An artifact, or the path of one.
Source = Artifact | str | os.PathLike[str]
#: Called with what is done, of how much, and the name of what comes next.
Progress = Callable[[int, int, str], None]

#: Tokens of a window where the caller does not say; llama.cpp's.
CONTEXT = 512
#: Tokens that go through the model at once: several windows where they are short.
_BATCH = 2048
#: Logits in memory at once: 32 MiB in float64.
_LOGITS = 1 << 22
#: Elements of a tensor compared at once.
_CHUNK = 1 << 21

_FLOATS = {"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16"}


@attrs.frozen
class Evaluation:
    """How well a model predicts a text, and how near it is to a baseline.

    Attributes:
        perplexity: exp of the mean negative log-likelihood of the scored tokens.
        tokens: how many tokens were scored.
        context: tokens of a window.
        baseline_perplexity: of the baseline on the same tokens; None without one, as all that follow.
        kl_divergence: mean over the scored positions, of the baseline's distribution from the artifact's, in nats.
        kl_divergence_p99: its 99th percentile.
        top1_agreement: share of scored positions, 0 to 1.
    """

    perplexity: float
    tokens: int
    context: int
    baseline_perplexity: float | None = None
    kl_divergence: float | None = None
    kl_divergence_p99: float | None = None
    top1_agreement: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """For JSON: what is not finite becomes null."""
        return {name: _json(value) for name, value in attrs.asdict(self).items()}

    def __str__(self) -> str:
        text = f"perplexity {self.perplexity:.4f} over {self.tokens} tokens in windows of {self.context}"
        if self.kl_divergence is None:
            return text
        return (
            f"{text} (baseline {self.baseline_perplexity:.4f})\n"
            f"KL divergence {self.kl_divergence:.6f} mean, {self.kl_divergence_p99:.6f} p99; "
            f"top-1 agreement {self.top1_agreement:.2%}"
        )


@attrs.frozen
class TensorError:
    """How far a tensor's values lie from the baseline's.

    Attributes:
        name: canonical, or the files' own where the family is not known.
        precision: the compared tensor's.
        relative_rms: sqrt of the squared errors' sum over the squared values' sum.
        max_abs: largest absolute error.
        snr_db: signal-to-noise ratio in dB; infinite where nothing differs.
    """

    name: str
    precision: str
    relative_rms: float
    max_abs: float
    snr_db: float


@attrs.frozen
class Size:
    """What an artifact weighs.

    Attributes:
        name: of the file or directory.
        format: of the artifact.
        nbytes: on disk, all files.
        tensor_nbytes: of the tensors alone.
        parameters: elements in all tensors.
    """

    name: str
    format: str
    nbytes: int
    tensor_nbytes: int
    parameters: int

    @classmethod
    def of(cls, artifact: Artifact) -> Size:
        """Of an artifact."""
        return cls(artifact.path.name, artifact.format, artifact.nbytes, artifact.tensor_nbytes, artifact.parameters)

    @property
    def bits_per_weight(self) -> float:
        """Average over all tensors, everything included."""
        return 8 * self.tensor_nbytes / max(1, self.parameters)


@attrs.frozen
class Comparison:
    """Two artifacts of one model, side by side. ``print`` shows it as a table.

    Attributes:
        baseline, artifact: sizes of the one compared with, and of the one compared.
        tensors: error of each tensor, in the order of the model.
        relative_rms: over all these tensors together.
        unmatched: tensors that only one of the two has.
        evaluation: on a text, where one was given.
    """

    baseline: Size
    artifact: Size
    tensors: tuple[TensorError, ...] = attrs.field(repr=False)
    relative_rms: float
    unmatched: tuple[str, ...] = ()
    evaluation: Evaluation | None = None

    def to_dict(self) -> dict[str, Any]:
        """For JSON: what is not finite becomes null."""
        return {
            "baseline": _size_dict(self.baseline),
            "artifact": _size_dict(self.artifact),
            "relative_rms": _json(self.relative_rms),
            "tensors": [{k: _json(v) for k, v in attrs.asdict(error).items()} for error in self.tensors],
            "unmatched": list(self.unmatched),
            "evaluation": None if self.evaluation is None else self.evaluation.to_dict(),
        }

    def __str__(self) -> str:
        return "\n".join(_report(self))


def evaluate(
    artifact: Source,
    text: Text,
    *,
    baseline: Source | None = None,
    context: int | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Perplexity on a text and, with a baseline, KL divergence from it and top-1 agreement.

    As llama.cpp's perplexity tool does it: the tokens are cut into windows of `context` tokens that do not
    overlap, what is left at the end is dropped, the first token of each window becomes BOS where the tokenizer
    adds one, and every window is computed on its own. Of each window the second half is scored: the tokens at
    ``context // 2 + 1`` and later, which have at least half a window before them. A text shorter than one
    window is one window of its own length.

    Args:
        artifact: the model to judge.
        text: a text, which the artifact's tokenizer cuts, or token ids [n].
        baseline: the model to compare with; it has to share the vocabulary.
        context: tokens of a window; None takes 512, or the model's context where that is less.
        progress: called before each batch of windows.

    Returns:
        The measures. Logits of a few positions at a time are held, never those of the text; the KL divergence
        is never negative, and exactly 0 for models that compute the same.

    Raises:
        UsageError: fewer than three tokens, no tokenizer for a text, other vocabularies, or a bad `context`.
        UnsupportedModelError: the family is not known.
        NonFiniteError: the model computes a NaN or an infinity.
    """
    judged = as_artifact(artifact)
    reference = None if baseline is None else as_artifact(baseline)
    models = _models(judged, reference)
    windows = cut(tokens_of(judged, text), _context(context, models), _bos(judged))
    scores = list(_scores(models, windows, progress))
    return _summary(np.concatenate(scores, axis=1), windows.shape[1], judged)


def compare(
    baseline: Source,
    artifact: Source,
    text: Text | None = None,
    *,
    context: int | None = None,
    progress: Progress | None = None,
) -> Comparison:
    """Size, error of every tensor and, with a text, perplexity and KL divergence of an artifact against another.

    Args:
        baseline: the one to compare with, usually the one that was quantized.
        artifact: the one to judge. Tensors are matched by their canonical names, so that the formats may
            differ; by the files' own names where the family of either is not known.
        text: as in `evaluate`.
        context: as in `evaluate`.
        progress: called before each tensor, then as in `evaluate`.

    Raises:
        UsageError: the two have no tensor in common, or one of different shapes; and as `evaluate`.
    """
    base, judged = as_artifact(baseline), as_artifact(artifact)
    pairs, unmatched = match(base, judged)
    sums = [_difference(*pair, index, len(pairs), progress) for index, pair in enumerate(pairs.values())]
    errors = tuple(_tensor_error(name, pairs[name][1], s) for name, s in zip(pairs, sums, strict=True))
    evaluation = None
    if text is not None:
        evaluation = evaluate(judged, text, baseline=base, context=context, progress=progress)
    error, signal = (math.fsum(s[i] for s in sums) for i in (0, 1))
    return Comparison(Size.of(base), Size.of(judged), errors, _ratio(error, signal), unmatched, evaluation)


def as_artifact(source: Source) -> Artifact:
    """An artifact, opened where it is a path."""
    return source if isinstance(source, Artifact) else open_artifact(source)


def tokens_of(artifact: Artifact, text: Text) -> Ints:
    """Token ids [n] of a text, with what the artifact's tokenizer adds to every text; ids are passed on.

    Raises:
        UsageError: a text, and the artifact has no tokenizer.
    """
    if not isinstance(text, str):
        return np.asarray(text)
    tokenizer = artifact.tokenizer
    if tokenizer is None:
        raise UsageError(f"{artifact.path}: it has no tokenizer to cut the text with; give token ids instead")
    return np.asarray(tokenizer.encode(text), np.int64)


def cut(tokens: Ints, context: int, bos: int | None) -> Ints:
    """Windows [count, context] of the tokens [n], each beginning with `bos` unless it is None.

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


def _models(judged: Artifact, baseline: Artifact | None) -> list[Transformer]:
    models = [Transformer(artifact.model) for artifact in (judged, baseline) if artifact is not None]
    sizes = {model.config.vocab for model in models}
    if len(sizes) > 1:
        raise UsageError(f"the models have vocabularies of {sizes} tokens; only models of one vocabulary compare")
    return models


def _context(context: int | None, models: list[Transformer]) -> int:
    longest = min(model.config.context for model in models)
    if context is None:
        return min(CONTEXT, longest)
    if not 3 <= context <= longest:
        raise UsageError(f"a window of {context} tokens; choose between 3 and the model's context of {longest}")
    return context


def _bos(artifact: Artifact) -> int | None:
    tokenizer = artifact.tokenizer
    return tokenizer.bos if tokenizer is not None and tokenizer.add_bos else None


def _scores(models: list[Transformer], windows: Ints, progress: Progress | None) -> Iterator[F64]:
    """Rows for each scored position, [rows, positions]: negative log-likelihood, or with a baseline four rows."""
    count, context = windows.shape
    step = max(1, _BATCH // context)
    for start in range(0, count, step):
        if progress:
            progress(start, count, "evaluation")
        yield from _score_batch(models, windows[start : start + step])
    if progress:
        progress(count, count, "")


def _score_batch(models: list[Transformer], batch: Ints) -> Iterator[F64]:
    first = batch.shape[1] // 2
    hidden = [m.hidden(batch)[:, first:-1].reshape(-1, m.config.width) for m in models]
    targets = batch[:, first + 1 :].reshape(-1)
    step = max(1, _LOGITS // models[0].config.vocab)
    for start in range(0, targets.size, step):
        rows = slice(start, start + step)
        yield score([log_softmax(m.project(h[rows])) for m, h in zip(models, hidden, strict=True)], targets[rows])


def score(log_q: list[F64], targets: Ints) -> F64:
    """What each position contributes.

    Args:
        log_q: log-probabilities [positions, vocab] of the artifact and, where there is one, of the baseline.
        targets: the tokens that came [positions].

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
    """Log-probabilities over the last dimension, in float64 and shifted so that nothing overflows."""
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(axis=-1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return shifted


def kl_divergence(log_p: F64, log_q: F64) -> F64:
    """Σ p·(log p - log q) over the last dimension, in nats; at least 0, and 0 where the two are equal."""
    divergence: F64 = np.einsum("...i,...i->...", np.exp(log_p), log_p - log_q)
    return np.maximum(divergence, 0.0)  # rounding may leave a sum of -1e-17


def _summary(scores: F64, context: int, artifact: Artifact) -> Evaluation:
    if not np.isfinite(scores).all():
        raise NonFiniteError(
            f"{artifact.path}: the model computes values that are not finite; "
            "choose a precision that keeps more, or look for broken scales with `edgekit compare`"
        )
    tokens = scores.shape[1]
    perplexity, *rest = (_exp(mean) if row < 2 else mean for row, mean in enumerate(scores.mean(axis=1).tolist()))
    if not rest:
        return Evaluation(perplexity, tokens, context)
    baseline, kl, agreement = rest
    p99 = float(np.percentile(scores[2], 99))
    return Evaluation(perplexity, tokens, context, baseline, kl, p99, agreement)


def _exp(mean: float) -> float:
    return math.exp(mean) if mean < 700 else math.inf


def match(baseline: Artifact, artifact: Artifact) -> tuple[dict[str, tuple[AnyTensor, AnyTensor]], tuple[str, ...]]:
    """Pairs of the two artifacts' floating point tensors by name, and the names that only one has.

    Raises:
        UsageError: nothing in common, or shapes that differ.
    """
    base, judged = _known_tensors(baseline), _known_tensors(artifact)
    if base is None or judged is None:
        base, judged = baseline.tensors, artifact.tensors
    pairs = {name: (base[name], judged[name]) for name in base if name in judged and _is_float(base[name])}
    if not pairs:
        raise UsageError(f"{baseline.path} and {artifact.path} have no tensor in common; compare copies of one model")
    for name, (a, b) in pairs.items():
        if a.shape != b.shape:
            raise UsageError(
                f"tensor {name} has shape {list(a.shape)} in {baseline.path} and {list(b.shape)} in "
                f"{artifact.path}; compare copies of one model"
            )
    return pairs, tuple(sorted(set(base) ^ set(judged)))


def _known_tensors(artifact: Artifact) -> Mapping[str, AnyTensor] | None:
    try:
        model: Model = artifact.model
    except UnsupportedModelError:
        return None
    return model.tensors


def _is_float(tensor: AnyTensor) -> bool:
    return isinstance(tensor, EncodedTensor) or "float" in tensor.dtype


def _difference(
    base: AnyTensor, judged: AnyTensor, index: int, count: int, progress: Progress | None
) -> tuple[float, float, float]:
    """Sum of squared errors, of squared values, and the largest absolute error; a few rows in memory at a time."""
    if progress:
        progress(index, count, judged.name)
    step = max(1, _CHUNK * base.rows // max(1, base.size))
    sums = [_rows_difference(base, judged, i, min(i + step, base.rows)) for i in range(0, base.rows, step)]
    error, signal, largest = zip((0.0, 0.0, 0.0), *sums, strict=True)
    return math.fsum(error), math.fsum(signal), float(np.max(largest))


def _rows_difference(base: AnyTensor, judged: AnyTensor, start: int, stop: int) -> tuple[float, float, float]:
    values = base.float32(start, stop).astype(np.float64)
    error = values - judged.float32(start, stop)
    return float(np.vdot(error, error)), float(np.vdot(values, values)), float(np.abs(error).max(initial=0.0))


def _tensor_error(name: str, tensor: AnyTensor, sums: tuple[float, float, float]) -> TensorError:
    error, signal, largest = sums
    rms = _ratio(error, signal)
    decibel = -20 * math.log10(rms) if rms else math.inf
    return TensorError(name, precision_name(tensor), rms, largest, decibel)


def _ratio(error: float, signal: float) -> float:
    """Relative RMS; infinite where zeros became something else."""
    if error == 0:
        return 0.0
    return math.sqrt(error / signal) if signal else math.inf


def precision_name(tensor: AnyTensor) -> str:
    """The number format's name, or the float type's (``F16``)."""
    return tensor.precision.name if isinstance(tensor, EncodedTensor) else _FLOATS.get(tensor.dtype, tensor.dtype)


def _json(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _size_dict(size: Size) -> dict[str, Any]:
    return attrs.asdict(size) | {"bits_per_weight": size.bits_per_weight}


def _report(comparison: Comparison) -> Iterator[str]:
    yield f"{'':10}{'bytes':>15}{'bits a weight':>15}  artifact"
    for label, size in (("baseline", comparison.baseline), ("compared", comparison.artifact)):
        yield f"{label:10}{size.nbytes:>15,}{size.bits_per_weight:>15.3f}  {size.name} ({size.format})"
    saved = 1 - comparison.artifact.nbytes / max(1, comparison.baseline.nbytes)
    yield f"{abs(saved):.1%} {'smaller' if saved >= 0 else 'larger'}; relative error {comparison.relative_rms:.6f}"
    yield ""
    yield from _table(comparison.tensors)
    if comparison.unmatched:
        yield f"only in one of the two: {', '.join(comparison.unmatched)}"
    if comparison.evaluation is not None:
        yield ""
        yield str(comparison.evaluation)


def _table(errors: tuple[TensorError, ...]) -> Iterator[str]:
    names = max(len("tensor"), *(len(error.name) for error in errors))
    kinds = max(len("precision"), *(len(error.precision) for error in errors))
    yield f"{'tensor':{names}}  {'precision':{kinds}}  {'relative RMS':>12}  {'max error':>10}  {'SNR dB':>7}"
    for e in errors:
        row = f"{e.relative_rms:12.6f}  {e.max_abs:10.3g}  {e.snr_db:7.2f}"
        yield f"{e.name:{names}}  {e.precision:{kinds}}  {row}"
