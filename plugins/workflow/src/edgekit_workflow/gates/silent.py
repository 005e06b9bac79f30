"""Gates against faults that raise no error: an artifact that loads, answers, and is wrong."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import attrs
import numpy as np

from edgekit.architectures import Model
from edgekit.architectures.forward import Transformer
from edgekit.architectures.hf import equal_values
from edgekit.artifact import Artifact
from edgekit.errors import EdgekitError
from edgekit.evaluation.language import kl_divergence, log_softmax
from edgekit.recipe import quantized
from edgekit.runtime import Runtime
from edgekit.runtime.chat import has_template, template_of
from edgekit.runtime.numpy import NumpyRuntime
from edgekit.tensor import EncodedTensor
from edgekit.tokenizer import Tokenizer
from edgekit_workflow.gates.results import GateResult
from edgekit_workflow.gates.subject import Subject
from edgekit_workflow.gates.tensors import TensorCheck, allowed

#: Names that a detail lists before it counts the rest.
SHOWN = 3
#: Texts that tokenizers have to cut alike: scripts, digits, spaces, code, and what looks like a special token.
PROBES = (
    "Once upon a time there was a little dog.", "Hello,  world!\n\n\tIndented 12345 times.", "naïve café – Größe",
    "Привет, мир", "日本語のテキスト", "مرحبا بالعالم", "for i in range(10):\n    print(i ** 2)", "👩‍🚀 x² ≠ y₁",
    " leading and trailing ", "</s><s><|im_end|><|endoftext|>", "don't can't I'll THEY'RE",
)  # fmt: skip


def silent_gates(subject: Subject) -> Iterator[GateResult]:
    """Yield the results of the gates of the category ``silent``."""
    gates = {
        "tensors": tensors,
        "values": values,
        "precisions": precisions,
        "configuration": configuration,
        "tokenizer": tokenizer,
        "chat_template": chat_template,
        "runtime": runtime,
        "degenerate": degenerate,
    }
    yield from (gate(subject) for name, gate in gates.items() if subject.policy.runs(name))


def result(name: str, passed: bool | None, detail: str = "", **figures: Any) -> GateResult:
    """Return a result of this category."""
    return GateResult(name, "silent", passed, detail=detail, **figures)


def listed(names: Iterable[str]) -> str:
    """Return the first names, and how many there are besides."""
    all_names = list(names)
    rest = len(all_names) - SHOWN
    return ", ".join(all_names[:SHOWN]) + (f" and {rest} more" if rest > 0 else "")


def tensors(subject: Subject) -> GateResult:
    """Every tensor that the format stores for the source is there, in its shape."""
    if subject.incomparable:
        return result("tensors", None, subject.incomparable)
    faults = [check for check in subject.checks if check.fault]
    return result("tensors", not faults, listed(f"{check.name} {check.fault}" for check in faults))


def values(subject: Subject) -> GateResult:
    """No tensor is farther from the source's than rounding in its precision explains."""
    if subject.incomparable:
        return result("values", None, subject.incomparable)
    ratio = subject.policy.silent.distance_ratio
    checks = [check for check in subject.checks if not check.fault]
    far = [check for check in checks if _is_far(check, ratio)]
    far.sort(key=lambda check: check.ratio, reverse=True)
    worst = max((check.ratio for check in checks), default=1.0)
    return result("values", not far, listed(map(_distance, far)), measured=worst, required=ratio)


def _is_far(check: TensorCheck, ratio: float) -> bool:
    return check.far is not None or check.error > float(allowed(np.array([check.explained]), ratio)[0])


def _distance(check: TensorCheck) -> str:
    row = "" if check.far is None else f", row {check.far}"
    return f"{check.name}{row}: relative error {check.error:.3g}, rounding to {check.precision} has {check.nearest:.3g}"


def precisions(subject: Subject) -> GateResult:
    """No matrix is in another precision than the manifest states, nor alone in float among quantized ones."""
    odd = [*_other_than_recorded(subject.artifact), *_alone_in_float(subject.artifact)]
    return result("precisions", not odd, listed(odd))


def _other_than_recorded(artifact: Artifact) -> Iterator[str]:
    recorded = artifact.manifest.tensors if artifact.manifest else {}
    for name, tensor in artifact.tensors.items():
        stated = recorded.get(name, {}).get("precision", "")
        if isinstance(tensor, EncodedTensor):
            actual = (tensor.origin or tensor.precision).name
            if stated and stated not in (actual, tensor.precision.name):
                yield f"{name} is in {actual}, the manifest says {stated}"
        elif stated and not stated.startswith("float:"):
            yield f"{name} is in {tensor.dtype}, the manifest says {stated}"


def _alone_in_float(artifact: Artifact) -> Iterator[str]:
    """Matrices in float although those of the same kind in the other layers are quantized, and no manifest says why."""
    if artifact.manifest is not None:
        return
    kinds: dict[str, list[tuple[str, bool]]] = {}
    for name, tensor in artifact.tensors.items():
        if len(tensor.shape) > 1:
            kind = ".".join(part for part in name.split(".") if not part.isdigit())
            is_quantized = isinstance(tensor, EncodedTensor) and quantized(tensor.precision)
            kinds.setdefault(kind, []).append((name, is_quantized))
    for members in kinds.values():
        floats = [name for name, is_quantized in members if not is_quantized]
        if 0 < len(floats) < len(members) / 2:
            yield from (
                f"{name} is in float, {len(members) - len(floats)} of its kind are quantized" for name in floats
            )


def configuration(subject: Subject) -> GateResult:
    """The hyper-parameters are the source's."""
    if subject.models is None:
        return result("configuration", None, "the family is unsupported, so that hyper-parameters cannot be compared")
    ours, theirs = (attrs.asdict(model.config) for model in subject.models)
    if ours["tied"] and not theirs["tied"]:
        theirs["tied"] = _has_copy(subject.models[1])
    odd = [
        f"{name} is {ours[name]!r:.60}, the source's is {theirs[name]!r:.60}"
        for name in theirs
        if name not in ("name", "pooling") and not _same(ours[name], theirs[name])
    ]
    where = f"{subject.artifact.path.name}: " if odd else ""
    return result("configuration", not odd, where + listed(odd))


def _has_copy(model: Model) -> bool:
    """Whether the output matrix has the embedding's values: some formats then store it once."""
    return equal_values(model.tensors["output.weight"], model.tensors["token_embd.weight"])


def _same(one: object, other: object) -> bool:
    """Whether two plain values are the same, numbers within the rounding of float32."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, float) and isinstance(other, float | int):
        return math.isclose(one, other, rel_tol=1e-6)
    return one == other


def tokenizer(subject: Subject) -> GateResult:
    """The tokenizer has the source's tokens, special ids and ends, and cuts texts alike."""
    ours, theirs = subject.tokenizers
    if theirs is None:
        return result("tokenizer", None, "the source has no tokenizer that edgekit reads")
    where = subject.artifact.path.name
    if ours is None:
        return result("tokenizer", False, f"{where}: it has no tokenizer that edgekit reads, the source has one")
    odd = [*_other_ids(ours, theirs), *_other_texts(ours, theirs), *_other_cuts(ours, theirs)]
    return result("tokenizer", not odd, f"{where}: {listed(odd)}" if odd else "")


def _other_ids(ours: Tokenizer, theirs: Tokenizer) -> Iterator[str]:
    names = ["bos", "eos", "add_bos", "add_eos"]
    for name in names:
        one, other = getattr(ours, name), getattr(theirs, name)
        if one != other:
            yield f"{name} is {one}, the source's is {other}"
    lost, new = (sorted(ids) for ids in (theirs.end_ids - ours.end_ids, ours.end_ids - theirs.end_ids))
    if lost:
        yield f"{_named(theirs, lost)} no longer ends a text"
    if new:
        yield f"{_named(ours, new)} ends a text, which the source goes on after"


def _named(tokenizer: Tokenizer, ids: list[int]) -> str:
    return ", ".join(f"token {number} ({tokenizer.tokens[number]!r:.40})" for number in ids)


def _other_texts(ours: Tokenizer, theirs: Tokenizer) -> Iterator[str]:
    """Tokens of text that differ; placeholders and the names of special tokens may."""
    pairs = enumerate(zip(ours.tokens, theirs.tokens, strict=False))
    shared = min(len(ours.tokens), len(theirs.tokens))
    odd = [n for n, (one, other) in pairs if one != other and ours.piece(n) != theirs.piece(n)]
    if odd:
        first = odd[0]
        yield (
            f"token {first} is {ours.tokens[first]!r:.40}, the source's is {theirs.tokens[first]!r:.40} "
            f"({len(odd)} of {shared} differ)"
        )


def _other_cuts(ours: Tokenizer, theirs: Tokenizer) -> Iterator[str]:
    for text in PROBES:
        try:
            one, other = ours.encode(text), theirs.encode(text)
        except EdgekitError:
            continue
        if one != other:
            yield f"{text[:24]!r} is cut into {one[:6]}, by the source into {other[:6]}"
            return


def chat_template(subject: Subject) -> GateResult:
    """The chat template is the source's."""
    ours, theirs = _template(subject.artifact), _template(subject.source)
    if ours == theirs:
        return result("chat_template", True, "" if theirs else "the source has none")
    where = subject.artifact.path.name
    if ours is None or theirs is None:
        which = "the source has one, the artifact none" if ours is None else "the artifact has one, the source none"
        return result("chat_template", False, f"{where}: {which}")
    place = next(
        (n for n, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), min(map(len, (ours, theirs)))
    )
    return result("chat_template", False, f"{where}: it differs from the source's at character {place}")


def _template(artifact: Artifact) -> str | None:
    try:
        return template_of(artifact) if has_template(artifact) else None
    except EdgekitError:
        return None


def runtime(subject: Subject) -> GateResult:
    """The runtime computes what edgekit's own pass over the same artifact computes."""
    if subject.models is None or not subject.models[0].config.causal:
        return result("runtime", None, "the model predicts no next tokens, or its family is unsupported")
    limit = subject.policy.silent.runtime_divergence
    with subject.running() as model:
        if isinstance(model, NumpyRuntime):
            return result("runtime", True, "the runtime is edgekit's own pass")
        measured, name = _divergence(model, subject.models[0]), model.name
    detail = "" if measured <= limit else f"{name} on {subject.artifact.path.name}; see `edgekit blame`"
    return result("runtime", measured <= limit, detail, measured=measured, required=limit, unit="nats")


def _divergence(model: Runtime, judge: Model) -> float:
    tokens = probe_tokens(judge.config.vocab, min(48, judge.config.context))
    ours, theirs = (log_softmax(logits) for logits in (model.logits(tokens), Transformer(judge).logits(tokens)))
    divergence = float(kl_divergence(theirs, ours).mean())
    return divergence if math.isfinite(divergence) else math.inf


def probe_tokens(vocab: int, count: int) -> list[int]:
    """Return token ids that are the same on every machine."""
    ids: list[int] = np.random.RandomState(7).randint(0, vocab, count).tolist()
    return ids


def degenerate(subject: Subject) -> GateResult:
    """What the artifact writes is not more repetitive than what the source writes."""
    if not subject.generates:
        return result("degenerate", None, "the model does not generate text")
    limit, count = subject.policy.silent.repetition, subject.policy.silent.tokens
    prompts = _prompts(subject)
    with subject.running() as model:
        ours = [_repeated(model, prompt, count) for prompt in prompts]
    theirs = _of_source(subject, prompts, count)
    excess = max(0.0, float(np.mean(ours) - np.mean(theirs)))
    detail = (
        ""
        if excess <= limit
        else f"{np.mean(ours):.0%} of its runs of four tokens repeat, the source's {np.mean(theirs):.0%}"
    )
    return result("degenerate", excess <= limit, detail, measured=excess, required=limit)


def _of_source(subject: Subject, prompts: list[str], count: int) -> list[float]:
    """How much of what the source writes after each prompt repeats itself; the same for all artifacts of it."""
    known, key = subject.shared.repetition, (tuple(prompts), count)
    if key not in known:
        with NumpyRuntime.open(subject.source) as model:
            known[key] = [_repeated(model, prompt, count) for prompt in prompts]
    return known[key]


def _prompts(subject: Subject) -> list[str]:
    """Beginnings of the texts, two of each; without any a few words."""
    starts = [text[place : place + 40] for text in subject.texts.values() for place in (0, len(text) // 2)]
    return [start for start in starts[:4] if start.strip()] or ["Once upon a time", "The"]


def _repeated(model: Any, prompt: str, count: int) -> float:
    """Return the share of repeated runs of four tokens in a text drawn at temperature 0.8."""
    tokenizer = model.artifact.tokenizer
    room = min(count, model.context - len(tokenizer.encode(prompt)) - 1)
    text = model.generate(prompt, max_tokens=max(1, room), temperature=0.8, seed=1)
    ids = tokenizer.encode(text, add_special=False)
    runs = Counter(zip(ids, ids[1:], ids[2:], ids[3:], strict=False))
    return 1 - len(runs) / runs.total() if runs else 0.0


__all__ = ["PROBES", "listed", "probe_tokens", "silent_gates"]
