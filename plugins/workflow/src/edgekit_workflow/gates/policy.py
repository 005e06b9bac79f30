"""The policy: the limits of the gates, read from a TOML file."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import attrs

from edgekit.errors import InvalidFileError, UsageError, near_names
from edgekit.files.foreign import read_toml
from edgekit_workflow.gates.results import CATEGORIES


def _limit(default: float, doc: str, most: float = float("inf")) -> Any:
    """A field for a number from 0 to `most`."""

    def check(record: object, field: attrs.Attribute[Any], value: object) -> None:
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= most:
            upper = "" if most == float("inf") else f" to {most:g}"
            raise UsageError(f"{field.name} is {value!r:.80}; give a number from 0{upper}")

    return attrs.field(default=default, validator=check, metadata={"doc": doc})


def _count(default: int, doc: str) -> Any:
    """A field for a whole number of at least 1."""

    def check(record: object, field: attrs.Attribute[Any], value: object) -> None:
        if type(value) is not int or value < 1:
            raise UsageError(f"{field.name} is {value!r:.80}; give a whole number of at least 1")

    return attrs.field(default=default, validator=check, metadata={"doc": doc})


@attrs.frozen
class Quality:
    """Limits of quality, measured on the texts or samples that are given."""

    perplexity_ratio: float = _limit(
        0.95, "least perplexity of the source divided by the artifact's, of each text by itself"
    )
    kl_divergence: float = _limit(0.05, "largest mean KL divergence from the source, in nats: 0.05 is -ln 0.95")
    top1_agreement: float = _limit(0.85, "least share of positions at which both find the same token most likely", 1)
    embedding_similarity: float = _limit(0.95, "least mean cosine of embeddings with the source's", 1)
    neighbour_agreement: float = _limit(
        0.8, "least share of texts whose nearest other text is the same as by the source's embeddings", 1
    )
    label_agreement: float = _limit(0.95, "least share of samples to which a classifier gives the source's class", 1)
    class_divergence: float = _limit(0.05, "largest mean KL divergence of a classifier's probabilities, in nats")
    accuracy_ratio: float = _limit(
        0.95, "least accuracy of a classifier divided by the source's, where labels are given"
    )
    tokens: int = _count(4096, "most tokens of each text to measure on")
    samples: int = _count(1000, "most samples to classify")


@attrs.frozen
class Performance:
    """Limits of speed and memory, against the source in F32 on the same runtime."""

    memory_ratio: float = _limit(0.5, "largest bytes of the tensors against the source's in F32")
    speedup: float = _limit(2.0, "least ratio of tokens a second of processor time to those of the source in F32")
    latency_variation: float = _limit(
        0.5, "largest half of the 95 % interval of the speed over the runs, relative to its mean"
    )
    tokens: int = _count(32, "tokens of a run")
    repeats: int = _count(3, "runs to measure, after one to warm up")
    rounds: int = _count(3, "most rounds of them, while the speed varies by more than the limit; the steadiest counts")


@attrs.frozen
class Robustness:
    """What the artifact is run with."""

    repeats: int = _count(2, "how often the same prompt is answered; all answers have to be equal")
    requests: int = _count(
        8, "how many other requests, four at a time, half of them abandoned, must not change an answer"
    )
    tokens: int = _count(8, "tokens of an answer")
    near_tie: float = _limit(
        0.5, "by how many nats a token may be less likely than another and take its place by the runtime's rounding"
    )


@attrs.frozen
class Silent:
    """Limits of faults that raise no error."""

    distance_ratio: float = _limit(
        4.0, "largest error of a tensor against the source's, as a multiple of rounding to nearest in that precision"
    )
    repetition: float = _limit(
        0.3, "largest share of repeated runs of four tokens in generated text, above the source's", 1
    )
    runtime_divergence: float = _limit(
        0.05, "largest mean KL divergence of the runtime from edgekit's own pass over the same artifact, in nats"
    )
    tokens: int = _count(48, "tokens of a text to generate")


@attrs.frozen
class Derivation:
    """How much of the artifact is encoded again from the source and compared."""

    sample: float = _limit(0.01, "share of the rows of each tensor", 1)
    least_rows: int = _count(128, "least number of rows of each tensor: 128 find a change of 5 % of them in 99.8 %")


@attrs.frozen
class Policy:
    """The limits of all gates, and the gates to leave out.

    Attributes:
        skip: names of gates or of categories that do not run.
        quality, performance, robustness, silent, derivation: the limits.

    Example:
        >>> Policy(quality=Quality(perplexity_ratio=0.99)).quality.perplexity_ratio
        0.99
    """

    skip: tuple[str, ...] = attrs.field(default=(), converter=tuple)
    quality: Quality = attrs.field(factory=Quality)
    performance: Performance = attrs.field(factory=Performance)
    robustness: Robustness = attrs.field(factory=Robustness)
    silent: Silent = attrs.field(factory=Silent)
    derivation: Derivation = attrs.field(factory=Derivation)

    @skip.validator
    def _known(self, field: attrs.Attribute[Any], value: tuple[object, ...]) -> None:
        names = (*CATEGORIES, *GATES)
        for name in value:
            if name not in names:
                raise UsageError(f"skip names {name!r:.80}{_meant(str(name), names)}; gates are {', '.join(GATES)}")

    def runs(self, name: str) -> bool:
        """Return whether a gate runs, by its name."""
        return not {name, GATES[name]} & set(self.skip)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data, as the file has it."""
        return {**attrs.asdict(self), "skip": list(self.skip)}


_SECTIONS: dict[str, type[Any]] = {
    "quality": Quality,
    "performance": Performance,
    "robustness": Robustness,
    "silent": Silent,
    "derivation": Derivation,
}

#: The category of each gate.
GATES = {
    "files": "security",
    "hashes": "security",
    "template": "security",
    "signature": "security",
    "licence": "compliance",
    "base_model": "compliance",
    "tensors": "silent",
    "values": "silent",
    "precisions": "silent",
    "configuration": "silent",
    "tokenizer": "silent",
    "chat_template": "silent",
    "runtime": "silent",
    "degenerate": "silent",
    "source": "derivation",
    "codes": "derivation",
    "perplexity_ratio": "quality",
    "kl_divergence": "quality",
    "top1_agreement": "quality",
    "embedding_similarity": "quality",
    "neighbour_agreement": "quality",
    "label_agreement": "quality",
    "class_divergence": "quality",
    "accuracy_ratio": "quality",
    "repeats": "robustness",
    "long_prompts": "robustness",
    "malformed_prompts": "robustness",
    "load": "robustness",
    "end_tokens": "robustness",
    "memory_ratio": "performance",
    "speedup": "performance",
    "latency_variation": "performance",
}


def read_policy(path: str | os.PathLike[str]) -> Policy:
    """Read a policy from a TOML file; what it leaves out keeps its default.

    Raises:
        MissingFileError: it cannot be read.
        InvalidFileError: it is not TOML, has unknown keys, or limits out of range; names them.
    """
    file = Path(path)
    data = read_toml(file, "a policy")
    _refuse_unknown(data, (*_SECTIONS, "skip"), file, "a policy")
    sections = {name: _section(file, name, kind, data[name]) for name, kind in _SECTIONS.items() if name in data}
    skip = data.get("skip", [])
    if not isinstance(skip, list):
        raise InvalidFileError(f"{file}: skip is {skip!r:.80}; write a list of names")
    try:
        return Policy(skip=tuple(skip), **sections)
    except UsageError as error:
        raise InvalidFileError(f"{file}: {error}") from error


def _section(file: Path, name: str, kind: type[Any], data: object) -> Any:
    if not isinstance(data, dict):
        raise InvalidFileError(f"{file}: {name} is {data!r:.80}; write a table")
    _refuse_unknown(data, [field.name for field in attrs.fields(kind)], file, f"the table {name}")
    try:
        return kind(**data)
    except UsageError as error:
        raise InvalidFileError(f"{file}: {name}: {error}") from error


def _refuse_unknown(data: Mapping[str, object], known: Any, file: Path, what: str) -> None:
    for key in data:
        if key not in known:
            raise InvalidFileError(f"{file}: key {key!r:.80}{_meant(key, known)}; {what} has {', '.join(known)}")


def _meant(name: str, known: Any) -> str:
    near = near_names(name, known, 1)
    return f" (did you mean {near[0]}?)" if near else ""


def default_toml() -> str:
    """Return the default policy as a TOML file, with a comment on each limit."""
    return "skip = []  # names of gates, or of categories\n" + "\n".join(_lines())


def _lines() -> Iterator[str]:
    for name, kind in _SECTIONS.items():
        yield f"\n# {kind.__doc__}\n[{name}]"
        yield from (f"# {field.metadata['doc']}\n{field.name} = {field.default}" for field in attrs.fields(kind))
    yield ""


__all__ = [
    "GATES",
    "Derivation",
    "Performance",
    "Policy",
    "Quality",
    "Robustness",
    "Silent",
    "default_toml",
    "read_policy",
]
