"""Whole processes side by side: the time by the clock from start to end, start-up included, and the peak memory."""

from __future__ import annotations

import os
import re
import resource
import statistics
import subprocess
import sys
import sysconfig
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import attrs

_CHILD = """
import sys
sys.path.insert(0, sys.argv[1])
import {module}
{module}.{function}(*sys.argv[2:])
import processes
print(processes.peak_memory())
"""


@attrs.frozen
class Cost:
    """What a process took: seconds of each run by the clock, and the most bytes resident in any."""

    seconds: Sequence[float]
    peak: int

    @property
    def typical(self) -> float:
        """The median of the seconds."""
        return statistics.median(self.seconds)


def peak_memory() -> int:
    """The most bytes that this process had resident; Linux's VmHWM begins anew with the program, ru_maxrss does not."""
    status = Path("/proc/self/status")
    if status.exists():
        return int(re.search(r"VmHWM:\s*(\d+) kB", status.read_text())[1]) * 1024  # type: ignore[index]
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def alternate(jobs: Mapping[str, Sequence[str]], rounds: int) -> dict[str, Cost]:
    """Run every job in a fresh process, in turn, `rounds` times after one that warms the file cache.

    Args:
        jobs: names to ``module.function`` in this folder and its arguments, texts.
        rounds: how often.
    """
    runs: dict[str, list[tuple[float, int]]] = {name: [] for name in jobs}
    for _ in range(rounds + 1):
        for name, job in jobs.items():
            runs[name].append(_run(*job))
    return {
        name: Cost([seconds for seconds, _ in found[1:]], max(peak for _, peak in found[1:]))
        for name, found in runs.items()
    }


def _run(job: str, *arguments: str) -> tuple[float, int]:
    module, _, function = job.partition(".")
    code = _CHILD.format(module=module, function=function)
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", code, str(Path(__file__).parent), *arguments],
        stdout=subprocess.PIPE, text=True, check=True, env={**os.environ, "PYTHONWARNINGS": "ignore"},
    )  # fmt: skip
    return time.perf_counter() - start, int(done.stdout.split()[-1])


def forget_fresh_libraries() -> None:
    """Have the system read the installed libraries from the disk again (Linux).

    What was just written lies in the page cache in large pieces, and a process that maps a library is charged with all of
    each piece that it touches: a minute after ``pip install`` LLVM counts for 100 MB, later for 42 MB.
    """
    if not hasattr(os, "posix_fadvise"):
        return
    for library in Path(sysconfig.get_path("platlib")).rglob("*.so*"):
        with library.open("rb") as file:
            os.fsync(file.fileno())  # only what is on the disk can be let go
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
