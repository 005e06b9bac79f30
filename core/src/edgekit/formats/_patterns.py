"""Regular expressions out of foreign files: matched against names, and refused where they could take forever."""

from __future__ import annotations

import re

#: Characters of a pattern; a list of all modules of a large model in one has a few hundred.
MAX_PATTERN = 1000
#: Parts of a pattern that may repeat without limit. With n of them a name of 60 characters takes up to 60^n / n! steps
MAX_REPEATS = 5
_REPEATS = re.compile(r"(?<!\\)(?:\*|\+|\{\d*,\})")
#: A repeated group may hold a repeated part, which takes exponential time.
_REPEATED_GROUP = re.compile(r"(?<!\\)\)(?:\*|\+|\{)")


def compiled(pattern: str) -> re.Pattern[str] | None:
    """Return a pattern; None if it is none, or could take too long."""
    if len(pattern) > MAX_PATTERN or len(_REPEATS.findall(pattern)) > MAX_REPEATS or _REPEATED_GROUP.search(pattern):
        return None
    try:
        return re.compile(pattern)
    except (re.error, RecursionError, OverflowError):
        return None
