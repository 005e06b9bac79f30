"""Gates of derivation: the artifact was made from this source, and has the codes that the source gives."""

from __future__ import annotations

from collections.abc import Iterator

from edgekit.artifact import Artifact
from edgekit.errors import counted
from edgekit.files.digests import has_digest
from edgekit_workflow.gates.results import GateResult
from edgekit_workflow.gates.silent import listed
from edgekit_workflow.gates.subject import Subject
from edgekit_workflow.gates.tensors import TensorCheck


def derivation_gates(subject: Subject) -> Iterator[GateResult]:
    """Yield the results of the gates of the category ``derivation``."""
    gates = {"source": source, "codes": codes}
    yield from (gate(subject) for name, gate in gates.items() if subject.policy.runs(name))


def source(subject: Subject) -> GateResult:
    """The files of the source are those that the artifact's manifest names."""
    manifest = subject.artifact.manifest
    if manifest is None:
        return GateResult("source", "derivation", None, detail="no manifest says what the artifact was made from")
    given = {name.rpartition("/")[2]: digest for name, digest in subject.hashes[1].items()}
    recorded = manifest.sources
    common = sorted(given.keys() & recorded.keys())
    files = {file.name: file for file in subject.source.files}
    changed = [name for name in common if given[name] != recorded[name] and not has_digest(files[name], recorded[name])]
    if changed:
        detail = (
            f"{listed(changed)} of {subject.source.path.name} changed since the artifact was made, or is another file"
        )
        return GateResult("source", "derivation", False, detail=detail)
    if not common:
        made_of = listed(sorted(name for name in recorded if name not in ("importance", "calibration")))
        return GateResult("source", "derivation", None, detail=f"the artifact was made from other files: {made_of}")
    return GateResult("source", "derivation", True, detail=counted(len(common), "file"))


def codes(subject: Subject) -> GateResult:
    """The compared rows have the codes that the source's rows give in that precision."""
    if subject.incomparable:
        return GateResult("codes", "derivation", None, detail=subject.incomparable)
    checks = [check for check in subject.checks if not check.fault]
    rows, compared = (sum(getattr(check, name) for check in checks) for name in ("rows", "compared"))
    share = compared / max(1, rows)
    why = uncertain(subject.artifact)
    changed = [check for check in checks if not check.exact and (not why or _mostly_equal(check))]
    if changed:
        return GateResult("codes", "derivation", False, measured=share, detail=listed(map(_changed, changed)))
    inexact = sum(not check.exact for check in checks)
    detail = (
        f"of the rows compared; {why}, so that {inexact} tensors were compared by their error alone"
        if inexact
        else ("of the rows compared, every code equal")
    )
    return GateResult("codes", "derivation", True, measured=share, detail=detail)


def uncertain(artifact: Artifact) -> str:
    """Return why rounding to nearest need not give the artifact's codes; empty if it must."""
    manifest = artifact.manifest
    if manifest is None:
        return "no manifest says how the artifact was made"
    if "rounding" in manifest.notes:
        return "it was rounded with error feedback, which cannot be repeated row by row"
    if {"importance", "calibration"} & manifest.sources.keys():
        return "it was encoded with an importance, which the gate does not have"
    return ""


def _mostly_equal(check: TensorCheck) -> bool:
    """Whether other rows show that the tensor was rounded to nearest, so that the rows that differ were changed.

    Of stacked experts those that a calibration never reached are rounded to nearest, and the others are not.
    """
    return 2 * check.equal > check.compared and "_exps" not in check.role


def _changed(check: TensorCheck) -> str:
    rows = counted(check.compared, "row")
    return f"{check.name}, row {check.different}: {check.compared - check.equal} of {rows} compared have other codes"


__all__ = ["derivation_gates", "uncertain"]
