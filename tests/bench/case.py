"""One comparison of the benchmark."""

from __future__ import annotations

from collections.abc import Callable

import attrs

Job = Callable[[], object]


@attrs.frozen
class Case:
    """One comparison: edgekit's job and its peers', on the same data."""

    what: str
    precision: str
    nbytes: int
    jobs: dict[str, Job]
