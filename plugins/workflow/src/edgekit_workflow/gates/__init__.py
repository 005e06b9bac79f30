"""Gates: whether an artifact may be used in place of its source, with a certificate that says why."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import version
from pathlib import Path

import edgekit
from edgekit.artifact import Artifact
from edgekit.errors import UsageError
from edgekit.evaluation.samples import arrays_of
from edgekit.typing import Array
from edgekit_workflow.gates.derivation import derivation_gates
from edgekit_workflow.gates.performance import performance_gates
from edgekit_workflow.gates.policy import GATES as GATES
from edgekit_workflow.gates.policy import Policy as Policy
from edgekit_workflow.gates.policy import default_toml as default_toml
from edgekit_workflow.gates.policy import read_policy as read_policy
from edgekit_workflow.gates.quality import quality_gates
from edgekit_workflow.gates.results import CATEGORIES as CATEGORIES
from edgekit_workflow.gates.results import Certificate as Certificate
from edgekit_workflow.gates.results import GateResult as GateResult
from edgekit_workflow.gates.robustness import robustness_gates
from edgekit_workflow.gates.security import compliance_gates, security_gates
from edgekit_workflow.gates.silent import silent_gates
from edgekit_workflow.gates.subject import Shared as Shared
from edgekit_workflow.gates.subject import Subject

_BY_CATEGORY: dict[str, Callable[[Subject], Iterator[GateResult]]] = {
    "security": security_gates,
    "compliance": compliance_gates,
    "silent": silent_gates,
    "derivation": derivation_gates,
    "quality": quality_gates,
    "robustness": robustness_gates,
    "performance": performance_gates,
}


def gate(
    artifact: Artifact | str | os.PathLike[str],
    source: Artifact | str | os.PathLike[str],
    *,
    policy: Policy | str | os.PathLike[str] | None = None,
    text: str | Mapping[str, str] | None = None,
    samples: str | os.PathLike[str] | Mapping[str, Array] | None = None,
    full: bool = False,
    runtime: str | None = None,
    signature: tuple[str | os.PathLike[str], str | os.PathLike[str]] | None = None,
    shared: Shared | None = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> Certificate:
    """Hold an artifact to a policy, against the source that it was made from.

    Args:
        artifact: to judge, or its path.
        source: what it was made from, or its path.
        policy: the limits, or the path of a TOML file; None takes the defaults.
        text: to measure quality on: a text, or texts by category; None leaves the gates of quality out.
        samples: of a classifier, to measure its quality on instead: arrays by the names of its inputs, [n, ...] each,
            and the true classes, int [n], as ``labels`` where they are known; or the path of an .npz file of these.
        full: compare every row of every tensor instead of a sample.
        runtime: name of the runtime to run the artifact with; None takes the fastest.
        signature: file of a signature that `model_signing` made of the artifact, and of the public key.
        shared: with other artifacts of the same opened source: ``Shared(source)``; measures it once for all of them.
        progress: called before each category: how many are done, of how many, its name.

    Returns:
        The results of all gates that the policy does not skip. `Certificate.refuse` raises for those that fail.

    Raises:
        UsageError: the artifact is of another model than the source, the samples are not of its inputs, or `shared` is
            of another source.
        InvalidFileError, MissingFileError: about the files, or the policy's.
        ChangedSourceError: a file was changed while the gates ran.

    Example:
        >>> gate("small.gguf", "model").refuse()  # doctest: +SKIP
    """
    texts = {"text": text} if isinstance(text, str) else dict(text or {})
    limits = policy if isinstance(policy, Policy) else Policy() if policy is None else read_policy(policy)
    opened = [a if isinstance(a, Artifact) else edgekit.open(a) for a in (artifact, source)]
    signed = None if signature is None else (Path(signature[0]), Path(signature[1]))
    if shared is not None and shared.source is not opened[1]:
        raise UsageError(f"shared is of {shared.source.path}, not of the opened {opened[1].path}; give Shared(source)")
    subject = Subject(
        opened[0], opened[1], limits, texts, full, runtime, signed, _arrays(samples), shared or Shared(opened[1])
    )
    results: list[GateResult] = []
    for number, (category, gates) in enumerate(_BY_CATEGORY.items()):
        if progress:
            progress(number, len(_BY_CATEGORY), category)
        results += gates(subject)
    subject.refuse_changes()
    ours, theirs = subject.hashes
    versions = {name: version(name) for name in ("edgekit-core", "edgekit-workflow")}
    return Certificate(ours, theirs, limits.to_dict(), tuple(results), versions)


def _arrays(samples: str | os.PathLike[str] | Mapping[str, Array] | None) -> Mapping[str, Array] | None:
    return arrays_of(Path(samples)) if isinstance(samples, str | os.PathLike) else samples


__all__ = [
    "CATEGORIES",
    "GATES",
    "Certificate",
    "GateResult",
    "Policy",
    "Shared",
    "default_toml",
    "gate",
    "read_policy",
]
