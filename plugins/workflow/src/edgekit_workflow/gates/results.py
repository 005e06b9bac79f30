"""Results of gates, and the certificate that states them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

import attrs

from edgekit.errors import QualityGateError, counted

#: The type of the certificate, and of what it states. A reader ignores the fields that it does not know.
STATEMENT = "https://in-toto.io/Statement/v1"
PREDICATE = "https://in-toto.io/attestation/test-result/v0.1"
#: The categories, in the order in which they are checked.
CATEGORIES = ("security", "compliance", "silent", "derivation", "quality", "robustness", "performance")


@attrs.frozen
class GateResult:
    """The result of one gate.

    Attributes:
        name: of the gate, as the policy names it (``perplexity_ratio``).
        category: one of `CATEGORIES`.
        passed: whether the artifact passes; None if the gate could not run here, for the reason in `detail`.
        measured: what was found; None if there is no figure.
        required: the policy's limit; None if the gate has none.
        unit: of both figures; empty for plain ratios.
        detail: what was found, with the tensor, the field or the file concerned.
    """

    name: str
    category: str
    passed: bool | None
    measured: float | None = None
    required: float | None = None
    unit: str = ""
    detail: str = ""

    @property
    def line(self) -> str:
        """The result in one line."""
        figures = "" if self.measured is None else f" {self.measured:.4g}{_unit(self.unit)}"
        if self.measured is not None and self.required is not None:
            figures += f" (required {self.required:.4g}{_unit(self.unit)})"
        return f"{self.category} {self.name}:{figures}{' ' + self.detail if self.detail else ''}".rstrip(":")

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON; figures that are not finite become None."""
        return {name: _finite(value) for name, value in attrs.asdict(self).items()}


def _unit(unit: str) -> str:
    return f" {unit}" if unit else ""


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


@attrs.frozen
class Certificate:
    """What the gates found of an artifact, as an in-toto statement of the type test result.

    It contains no time, no host name and no path.

    Attributes:
        subject: SHA-256 (hex) of every file of the artifact, by name.
        source: SHA-256 of every file of the source, by name.
        policy: the limits, as plain data.
        results: of every gate, in order.
        versions: of the distributions that took part, by name.
    """

    subject: Mapping[str, str]
    source: Mapping[str, str]
    policy: Mapping[str, Any]
    results: tuple[GateResult, ...]
    versions: Mapping[str, str] = attrs.field(factory=dict)

    def __iter__(self) -> Iterator[GateResult]:
        return iter(self.results)

    @property
    def failed(self) -> tuple[GateResult, ...]:
        """The gates that the artifact fails."""
        return tuple(result for result in self.results if result.passed is False)

    @property
    def unknown(self) -> tuple[GateResult, ...]:
        """The gates that could not run."""
        return tuple(result for result in self.results if result.passed is None)

    @property
    def passed(self) -> bool:
        """Whether no gate fails. Those that could not run do not count: see `unknown`."""
        return not self.failed

    def refuse(self) -> None:
        """Raise if a gate fails.

        Raises:
            QualityGateError: a line for each gate that fails.
        """
        if self.failed:
            lines = "\n".join(f"  {result.line}" for result in self.failed)
            raise QualityGateError(
                f"{len(self.failed)} of {counted(len(self.results), 'gate')} failed; mend the artifact, or change the "
                f"limits in a policy:\n{lines}"
            )

    def to_statement(self) -> dict[str, Any]:
        """Return the in-toto statement as plain data: https://in-toto.io/attestation/test-result/v0.1."""
        names = {outcome: [f"{r.category}/{r.name}" for r in self.results if r.passed is outcome] for outcome in _ALL}
        return {
            "_type": STATEMENT,
            "subject": _resources(self.subject),
            "predicateType": PREDICATE,
            "predicate": {
                "result": "FAILED" if self.failed else "WARNED" if self.unknown else "PASSED",
                "configuration": [*_resources(self.source), {"name": "policy", "annotations": dict(self.policy)}],
                "passedTests": names[True],
                "warnedTests": names[None],
                "failedTests": names[False],
                "measurements": [result.to_dict() for result in self.results],
                "versions": dict(self.versions),
            },
        }

    def to_json(self) -> str:
        """Return the statement as deterministic JSON."""
        return json.dumps(self.to_statement(), indent=1, sort_keys=True, allow_nan=False) + "\n"


_ALL = (True, None, False)


def _resources(digests: Mapping[str, str]) -> list[dict[str, Any]]:
    return [{"name": name, "digest": {"sha256": digest}} for name, digest in sorted(digests.items())]


__all__ = ["CATEGORIES", "PREDICATE", "STATEMENT", "Certificate", "GateResult"]
