"""What the gates judge: an artifact beside its source, and what several gates need of the two, computed once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

import attrs

from edgekit.architectures import Model
from edgekit.artifact import Artifact
from edgekit.errors import ChangedSourceError, EdgekitError, UnsupportedModelError, UsageError
from edgekit.evaluation import Baseline
from edgekit.files.digests import sha256
from edgekit.files.guard import Stamp
from edgekit.runtime import ChattingRuntime, load
from edgekit.tokenizer import Tokenizer
from edgekit.typing import Array
from edgekit_workflow.bench import Measurement
from edgekit_workflow.gates.policy import Performance, Policy
from edgekit_workflow.gates.tensors import TensorCheck, check_tensors


@attrs.frozen(eq=False, slots=False)
class Shared:
    """What the gates of several artifacts measure of their source, once for all of them.

    It holds for the source as it was opened: `Subject.refuse_changes` refuses one that was changed since.

    Attributes:
        source: what they were made from.
        repetition: how much of the source's text after each prompt repeats itself, by the prompts and its tokens.
        speeds: of the source in F32, by format, runtime and the policy that says how it is measured.
    """

    source: Artifact
    repetition: dict[tuple[tuple[str, ...], int], list[float]] = attrs.field(factory=dict)
    speeds: dict[tuple[str, str, Performance], Measurement] = attrs.field(factory=dict)

    @cached_property
    def baseline(self) -> Baseline:
        """The source, with its hidden states cached: ``4 * width`` bytes for every token that it is measured on."""
        return Baseline(self.source)


@attrs.frozen(eq=False, slots=False)
class Subject:
    """An artifact and its source.

    Attributes:
        artifact: to judge.
        source: what it was made from.
        policy: the limits.
        texts: to measure quality on, by category.
        full: whether every row of every tensor is compared.
        runtime: name of the runtime to run the artifact with; None takes the fastest.
        samples: arrays of a classifier's inputs by name, samples in the first dimension, and ``labels``; or None.
        signature: a signature of `model_signing` over the artifact, and the public key to verify it with; or None.
        shared: what is measured of the source once for several artifacts.
    """

    artifact: Artifact
    source: Artifact
    policy: Policy
    texts: Mapping[str, str]
    full: bool = False
    runtime: str | None = None
    signature: tuple[Path, Path] | None = None
    samples: Mapping[str, Array] | None = None
    shared: Shared = attrs.field(default=attrs.Factory(lambda self: Shared(self.source), takes_self=True))

    @cached_property
    def checks(self) -> tuple[TensorCheck, ...]:
        """Every tensor of the artifact against the source's.

        Raises:
            UsageError: most tensors are missing or have other shapes: the artifact is of another model.
        """
        checks = tuple(check_tensors(self.artifact, self.source, self.policy.derivation, self.full))
        faults = [check for check in checks if check.fault]
        if 2 * len(faults) > len(checks):
            raise UsageError(
                f"{self.artifact.path} is not made from {self.source.path}: of {len(checks)} tensors {len(faults)} do "
                f"not match (the first, {faults[0].name}, {faults[0].fault}); give the model that it was made from"
            )
        return checks

    @cached_property
    def incomparable(self) -> str:
        """Why tensors cannot be compared: the graph's family is unknown, so that nothing says what it would store."""
        try:
            self.checks  # noqa: B018
        except UnsupportedModelError as error:
            return f"tensors cannot be compared: {error}"
        return ""

    @cached_property
    def models(self) -> tuple[Model, Model] | None:
        """The family-neutral views of the artifact and of the source; None for an unsupported family."""
        try:
            return self.artifact.model, self.source.model
        except UnsupportedModelError:
            return None

    @cached_property
    def tokenizers(self) -> tuple[Tokenizer | None, Tokenizer | None]:
        """The tokenizers of the artifact and of the source; None where there is none, or one of an unknown kind."""
        return _tokenizer(self.artifact), _tokenizer(self.source)

    @cached_property
    def hashes(self) -> tuple[dict[str, str], dict[str, str]]:
        """SHA-256 (hex) of the files of the artifact and of the source, by name."""
        return hashes(self.artifact), hashes(self.source)

    @property
    def generates(self) -> bool:
        """Whether both predict next tokens and have a tokenizer."""
        return self.models is not None and self.models[0].config.causal and None not in self.tokenizers

    @contextmanager
    def running(self) -> Iterator[ChattingRuntime]:
        """The artifact, loaded with the runtime."""
        with load(self.artifact, self.runtime) as model:
            yield model

    def refuse_changes(self) -> None:
        """Raise if a file of either was changed since it was opened.

        Raises:
            ChangedSourceError: names the file.
        """
        for artifact in (self.artifact, self.source):
            for file, before in artifact.stamps.items():
                after = Stamp.of(file)
                if before is not None and (after is None or not before.same_content(after)):
                    raise ChangedSourceError(f"{file}: it was changed while the gates ran; open it again and repeat")


def _tokenizer(artifact: Artifact) -> Tokenizer | None:
    try:
        return artifact.tokenizer
    except EdgekitError:
        return None


def hashes(artifact: Artifact) -> dict[str, str]:
    """Return the SHA-256 (hex) of every file of an artifact, by its name below the artifact's directory."""
    root = artifact.path if artifact.path.is_dir() else artifact.path.parent
    return {_name(file, root): sha256(file) for file in artifact.files}


def _name(file: Path, root: Path) -> str:
    return file.relative_to(root).as_posix() if file.is_relative_to(root) else file.name


__all__ = ["Shared", "Subject", "hashes"]
