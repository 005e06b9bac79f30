"""What both kinds of measurement share."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from typing import Any

from edgekit.artifact import Artifact
from edgekit.pipeline.conversion import open_artifact

#: An artifact, or the path of one.
Source = Artifact | str | os.PathLike[str]
#: Called with what is done, of how much, and the name of what comes next.
Progress = Callable[[int, int, str], None]


def as_artifact(source: Source) -> Artifact:
    """An artifact, opened where it is a path."""
    return source if isinstance(source, Artifact) else open_artifact(source)


def finite(value: Any) -> Any:
    """The value as JSON has it: a float that is not finite becomes null."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
