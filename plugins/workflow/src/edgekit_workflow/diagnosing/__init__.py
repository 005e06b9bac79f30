"""Looks for the common troubles of deployment: in a model's files, on the machine, and at a running server."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from edgekit_workflow.diagnosing.case import CONTROL_GROUP
from edgekit_workflow.diagnosing.case import Case as Case
from edgekit_workflow.diagnosing.case import Finding as Finding
from edgekit_workflow.diagnosing.case import Trouble as Trouble
from edgekit_workflow.diagnosing.machine import MACHINE_CHECKS
from edgekit_workflow.diagnosing.model import MODEL_CHECKS, opened
from edgekit_workflow.diagnosing.server import server_findings

#: Name of each check -> what it looks for.
CHECKS: Mapping[str, str] = {
    "file": "a file that cannot be read, is damaged, or belongs to a model that is not supported",
    "missing_plugin": "a format or a runtime whose plugin is not installed",
    **{name: (check.__doc__ or "").partition("\n")[0].rstrip(".") for name, check in MODEL_CHECKS.items()},
    **{name: (check.__doc__ or "").partition("\n")[0].rstrip(".") for name, check in MACHINE_CHECKS.items()},
}


def diagnose(
    artifact: str | os.PathLike[str] | None = None,
    *,
    source: str | os.PathLike[str] | None = None,
    runtime: str | None = None,
    context: int | None = None,
    threads: int | None = None,
    host: str = "127.0.0.1",
    port: int | None = None,
    url: str | None = None,
    key: str | None = None,
    group: str | os.PathLike[str] = CONTROL_GROUP,
) -> list[Finding]:
    """Look for the common troubles of deployment.

    Args:
        artifact: path of a model; None checks the machine and the server only.
        source: what the artifact was made from, to compare templates and tokenizers with.
        runtime: name of the runtime; None takes the fastest installed one for the format.
        context: tokens that are to be served; None takes the model's own, at most 4,096.
        threads: of the runtime, as its option; None takes those of the environment's variables.
        host: address to listen on.
        port: to listen on; None leaves that check out.
        url: of a running server; None leaves it out.
        key: the server's API key.
        group: directory of the control group that limits the server (Linux): memory and processors.

    Returns:
        A finding for each check that ran, in order: with the trouble, or without one.
    """
    case = Case(runtime=runtime, context=context, threads=threads, host=host, port=port, group=Path(group))
    found: list[Finding] = []
    if artifact is not None:
        finding, case = opened(case, artifact, source)
        found.append(finding)
        if case.artifact is not None:
            found += _checked(case, MODEL_CHECKS)
    found += _checked(case, MACHINE_CHECKS)
    if url is not None:
        found += server_findings(url, key)
    return found


def _checked(case: Case, checks: Mapping[str, Callable[[Case], Trouble | None]]) -> Iterator[Finding]:
    for name, check in checks.items():
        yield Finding(name, check(case))


__all__ = ["CHECKS", "Case", "Finding", "Trouble", "diagnose"]
