"""Checks of the machine: plugins, threads, port and disk."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from edgekit.files.memory import available
from edgekit.plugin import installed
from edgekit_workflow.diagnosing.case import CONTROL_GROUP, Case, Trouble

#: Variables by which libraries are told how many threads to use.
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
#: Free bytes that a disk should have beside a copy of the model.
SPARE = 256 << 20
_LIMITS = (("memory.max", "memory.current"), ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"))


def free_memory(group: Path = CONTROL_GROUP) -> int | None:
    """Return the bytes that this process can take: of the system, its limits and its control group; None if unknown.

    Args:
        group: directory of the control group, of version 2 or 1.
    """
    figures = [figure for figure in (available(), *_within(group)) if figure is not None]
    return min(figures) if figures else None


def _within(group: Path) -> Iterator[int]:
    for names in _LIMITS:
        try:
            most, taken = ((group / name).read_text("ascii").strip() for name in names)
        except OSError:
            continue
        if most.isdigit() and taken.isdigit():
            yield max(0, int(most) - int(taken))


def plugins(case: Case) -> Trouble | None:
    """A plugin that is broken, or written for another version of edgekit."""
    faults = [f"{p.distribution} {p.version}: {p.error}" for p in installed() if p.status in ("failed", "refused")]
    if not faults:
        return None
    return Trouble("; ".join(faults), "upgrade edgekit and its plugins together; `edgekit doctor` shows more")


def usable_processors(group: Path = CONTROL_GROUP) -> int:
    """Return the processors that this process may use: its affinity, and its control group's quota.

    Args:
        group: directory of the control group.
    """
    try:
        allowed = len(os.sched_getaffinity(0))
    except AttributeError:  # macOS, Windows
        allowed = os.cpu_count() or 1
    try:
        quota, period = (group / "cpu.max").read_text("ascii").split()
        return max(1, min(allowed, int(quota) // int(period)))
    except (OSError, ValueError):  # no control groups, or "max"
        return allowed


def threads(case: Case) -> Trouble | None:
    """More threads than processors."""
    usable = usable_processors(case.group)
    told = {f"{name}={value}": int(value) for name in THREAD_VARIABLES if (value := os.environ.get(name, "")).isdigit()}
    if case.threads is not None:
        told["the option threads"] = case.threads
    over = [name for name, count in told.items() if count > usable]
    if not over:
        return None
    return Trouble(
        f"{', '.join(over)}, and this process may use {usable} processors: threads wait for each other",
        f"set it to {usable}, or allow the process more processors (taskset, the container's CPU limit)",
    )


def port(case: Case) -> Trouble | None:
    """A port that another program has."""
    if case.port is None:
        return None
    try:
        family, kind, _, _, address = socket.getaddrinfo(case.host, case.port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as door:
            if os.name == "posix":
                door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            door.bind(address)
            door.listen(1)
    except OSError as error:
        return Trouble(
            f"{case.host}:{case.port} cannot be listened on ({error.strerror})",
            f"end the program that has it (ss -ltnp sport = :{case.port}), or choose another --host or --port",
        )
    return None


def disk(case: Case) -> Trouble | None:
    """A disk without room for another copy of the model."""
    needed = SPARE + (0 if case.artifact is None else case.artifact.nbytes)
    folders = [Path(tempfile.gettempdir())]
    if case.artifact is not None:
        folders.insert(0, case.artifact.path.resolve().parent)
    return next(filter(None, (full(folder, needed) for folder in folders)), None)


def full(folder: Path, needed: int) -> Trouble | None:
    """Return the trouble of a folder whose disk has less than so many bytes free; None if it has."""
    free = shutil.disk_usage(folder).free
    if free >= needed:
        return None
    return Trouble(
        f"{folder}: {free:,} bytes are free on its disk, {needed:,} are needed to convert or update the model",
        "delete what is no longer needed, or put models on another disk (TMPDIR for temporary files)",
    )


#: Name -> check, in the order in which they run.
MACHINE_CHECKS: Mapping[str, Callable[[Case], Trouble | None]] = {
    "plugins": plugins,
    "threads": threads,
    "port": port,
    "disk": disk,
}

__all__ = ["MACHINE_CHECKS", "SPARE", "THREAD_VARIABLES", "free_memory", "full", "usable_processors"]
