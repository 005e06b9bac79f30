"""Helpers of the measurements."""

from __future__ import annotations

import math
import os
from typing import Any

from edgekit.artifact import Artifact
from edgekit.pipeline.conversion import open_artifact
from edgekit.pipeline.progress import Progress as Progress
from edgekit.pipeline.progress import Shown as Shown
from edgekit.pipeline.progress import reporting as reporting

#: An artifact, or the path of one.
Source = Artifact | str | os.PathLike[str]


def as_artifact(source: Source) -> Artifact:
    """Return the artifact; a path is opened."""
    return source if isinstance(source, Artifact) else open_artifact(source)


def finite(value: Any) -> Any:
    """Return the value for JSON: a float that is not finite becomes None."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
