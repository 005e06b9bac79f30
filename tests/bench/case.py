"""One comparison of the benchmark."""

from __future__ import annotations

import time
from collections.abc import Callable

import attrs

Job = Callable[[], object]


def timed(job: Job, clock: Callable[[], float] = time.process_time) -> float:
    """Seconds that a job takes."""
    start = clock()
    job()
    return clock() - start


@attrs.frozen
class Case:
    """One comparison: edgekit's job and its peers', on the same data, and what tells how long one takes."""

    what: str
    precision: str
    nbytes: int
    jobs: dict[str, Job]
    clock: Callable[[Job], float] = timed

    def against(self, peer: str) -> Case:
        """The same with that peer alone, where it takes part."""
        return attrs.evolve(self, jobs={name: job for name, job in self.jobs.items() if name in ("edgekit", peer)})
