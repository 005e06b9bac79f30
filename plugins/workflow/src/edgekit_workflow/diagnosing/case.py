"""What is diagnosed, and what is found."""

from __future__ import annotations

from pathlib import Path

import attrs

from edgekit.artifact import Artifact

#: Where Linux shows a container its control group.
CONTROL_GROUP = Path("/sys/fs/cgroup")


@attrs.frozen
class Trouble:
    """Something that is wrong, or may be.

    Attributes:
        what: is wrong, a sentence without its full stop.
        cure: what to do.
        certain: whether it is wrong; False for a remark on what is wrong only for some uses.
    """

    what: str
    cure: str
    certain: bool = True


@attrs.frozen
class Finding:
    """The result of one check: its name, and the trouble that it found; None if there is none."""

    check: str
    trouble: Trouble | None = None


@attrs.frozen
class Case:
    """What is diagnosed; see `edgekit_workflow.diagnosing.diagnose`."""

    artifact: Artifact | None = None
    source: Artifact | None = None
    runtime: str | None = None
    context: int | None = None
    threads: int | None = None
    host: str = "127.0.0.1"
    port: int | None = None
    group: Path = CONTROL_GROUP

    @property
    def model(self) -> Artifact:
        """The artifact, of checks that need one."""
        assert self.artifact is not None
        return self.artifact


__all__ = ["CONTROL_GROUP", "Case", "Finding", "Trouble"]
