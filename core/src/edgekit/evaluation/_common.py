"""Helpers of the measurements."""

from __future__ import annotations

import math
import os
from typing import Any

from edgekit.artifact import Artifact

#: An artifact, or the path of one.
Source = Artifact | str | os.PathLike[str]


def finite(value: Any) -> Any:
    """Return the value for JSON: a float that is not finite becomes None."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
