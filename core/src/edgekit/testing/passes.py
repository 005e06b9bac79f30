"""Checks for passes: the result is a valid model, the source is unchanged, and quality is reported.

A pass implements `edgekit.pipeline.passes.Pass`. The checks run it on a small model in a format that it accepts.
"""

from __future__ import annotations

import hashlib
import math
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
import numpy as np

from edgekit.architectures.forward import Transformer
from edgekit.artifact import Artifact
from edgekit.errors import UsageError
from edgekit.pipeline.passes import Pass
from edgekit.plugin._registry import Registration, manager
from edgekit.testing._kit import Kit, Profile, Result, fail
from edgekit.testing._tokenizers import bpe
from edgekit.testing._trips import random_artifact, small_config, write


@attrs.frozen(eq=False)
class PassSubject:
    """A pass, and the format of the artifacts that it reads and writes.

    Attributes:
        pass_: implements `edgekit.pipeline.passes.Pass`.
        format: name of an installed format.
        options: keyword arguments with which it is run.
        name: its name in messages.
    """

    pass_: Pass
    format: str
    options: Mapping[str, Any]
    name: str

    @property
    def label(self) -> str:
        """The subject's name, for messages."""
        return f"pass {self.name!r}"


KIT: Kit[PassSubject] = Kit("passes")


def adapt(subject: Any, format: str = "hf", options: Mapping[str, Any] | None = None) -> PassSubject:
    """Return the subject for a pass, its class, a registration, or the name of an installed pass.

    Without `options` it is run with those of its attribute ``trial``, if it has one.

    Raises:
        UsageError: the pass has no method `run`.
    """
    if isinstance(subject, str):
        subject = manager().find("passes", subject)
    if isinstance(subject, Registration):
        format = next(iter(subject.options.get("formats", ())), format)
        subject = subject.load()
    made = subject() if isinstance(subject, type) else subject
    if not callable(getattr(made, "run", None)):
        raise UsageError(f"{type(made).__name__} is not a pass: it has no method run(source, to, **options)")
    given = getattr(made, "trial", {}) if options is None else options
    return PassSubject(made, format, given, getattr(made, "name", type(made).__name__))


def run_pass_checks(
    subject: Any,
    *,
    format: str = "hf",
    options: Mapping[str, Any] | None = None,
    expected_failures: Mapping[str, str] | None = None,
    checks: Iterable[str] | None = None,
    profile: str | Profile | None = None,
) -> list[Result]:
    """Run every check on a pass, without pytest.

    Args:
        subject: an object or class as `edgekit.pipeline.passes.Pass`, or the name of an installed one.
        format: name of the format of the artifact on which it is run.
        options: keyword arguments with which it is run; None for those of its attribute ``trial``, if it has one.
        expected_failures: the reason for each check that is expected to fail, by name.
        checks: names of the checks to run; None for all.
        profile: ``quick``, ``default`` or ``deep``; None takes that of EDGEKIT_TEST_PROFILE.
    """
    adapted = adapt(subject, format, options)
    return KIT.run(adapted, adapted.label, expected_failures=expected_failures, checks=checks, profile=profile)


def pass_checks(
    subject: Any,
    *,
    format: str = "hf",
    options: Mapping[str, Any] | None = None,
    expected_failures: Mapping[str, str] | None = None,
    checks: Iterable[str] | None = None,
    profile: str | Profile | None = None,
) -> Callable[[Callable[..., Any]], Any]:
    """Return a pytest decorator that calls the test once per check, passed as the argument ``check``."""
    adapted = adapt(subject, format, options)
    return KIT.parametrize(adapted, adapted.label, expected_failures=expected_failures, checks=checks, profile=profile)


@contextmanager
def _ran(subject: PassSubject) -> Iterator[tuple[Artifact, Artifact, Path]]:
    """Run the pass on a small model; yield the source, the result, and the folder of the result."""
    with tempfile.TemporaryDirectory(prefix="edgekit-check-") as name:
        folder = Path(name)
        source = _source(subject, folder)
        (folder / "out").mkdir()
        result = subject.pass_.run(source, folder / "out" / source.path.name, **subject.options)
        yield source, result, folder / "out"


def _source(subject: PassSubject, folder: Path) -> Artifact:
    registration = manager().find("formats", subject.format)
    path = folder / f"model{next(iter(registration.options.get('suffixes', ())), '')}"
    config = small_config(layers=2, vocab=len(bpe().tokens))
    write(registration.load(), path, random_artifact(folder, config, tokenizer=bpe()))
    artifact: Artifact = registration.load().open(path)
    return artifact


@KIT.check
def check_artifact_valid(subject: PassSubject, profile: Profile) -> None:
    """The result opens as a model with finite tensors, and computes finite logits."""
    with _ran(subject) as (_, result, _):
        again = manager().load("formats", result.format).open(result.path)
        for name, tensor in again.model.tensors.items():
            if not np.isfinite(tensor.float32()).all():
                fail(f"tensor {name} of the result holds a NaN or an infinity")
        logits = Transformer(again.model).logits([1, 2, 3])
        if not np.isfinite(logits).all() or logits.shape[1] != again.model.config.vocab:
            fail("the result computes no finite logits for its vocabulary")


@KIT.check
def check_tokenizer_kept(subject: PassSubject, profile: Profile) -> None:
    """The result has a tokenizer with as many tokens as the model has logits."""
    with _ran(subject) as (source, result, _):
        if source.tokenizer is not None and result.tokenizer is None:
            fail("the tokenizer is gone")
        if result.tokenizer is not None and len(result.tokenizer.tokens) > result.model.config.vocab:
            fail("the tokenizer has more tokens than the model")


@KIT.check
def check_quality_reported(subject: PassSubject, profile: Profile) -> None:
    """The result's manifest records the measured quality: at least one name with a finite number."""
    with _ran(subject) as (_, result, _):
        quality = result.manifest.quality if result.manifest else {}
        numbers = [value for value in _leaves(quality) if isinstance(value, int | float)]
        if not numbers or not all(map(math.isfinite, numbers)):
            fail(f"manifest.quality is {dict(quality)!r}; record what the pass cost, in finite numbers")


def _leaves(data: Any) -> Iterator[Any]:
    if isinstance(data, Mapping):
        for value in data.values():
            yield from _leaves(value)
    else:
        yield data


@KIT.check
def check_source_unwritten(subject: PassSubject, profile: Profile) -> None:
    """The pass changes no file of the source."""
    with tempfile.TemporaryDirectory(prefix="edgekit-check-") as name:
        folder = Path(name)
        source = _source(subject, folder)
        before = _hashes(source)
        subject.pass_.run(source, folder / "out", **subject.options)
        if _hashes(source) != before:
            fail("it wrote to its source")


def _hashes(artifact: Artifact) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in artifact.files}


@KIT.check
def check_deterministic(subject: PassSubject, profile: Profile) -> None:
    """The pass writes the same bytes when it is run twice."""
    with _ran(subject) as (_, one, _), _ran(subject) as (_, two, _):
        if _hashes(one) != _hashes(two):
            fail("run twice on the same source it writes other bytes")


@KIT.check
def check_nothing_left(subject: PassSubject, profile: Profile) -> None:
    """The pass leaves no file beside its result except the manifest."""
    with _ran(subject) as (_, result, folder):
        allowed = {result.path.name, f"{result.path.name}.edgekit.json"}
        extra = sorted(file.name for file in folder.iterdir() if file.name not in allowed)
        if extra:
            fail(f"it leaves {', '.join(extra)} beside its result")


__all__ = ["KIT", "PassSubject", "adapt", "pass_checks", "run_pass_checks"]
