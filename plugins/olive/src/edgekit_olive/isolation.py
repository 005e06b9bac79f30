"""Runs Olive in a process of its own: no telemetry, no network, an empty home directory, and a crash becomes an error.

Olive asks for consent after the fact: importing it is quiet, but the first action writes an identifier of the device
below the home directory and sends it, even with OLIVE_DISABLE_TELEMETRY=1, which is read after the first message. A
process that Olive takes for one of a continuous integration (CI=1) sends nothing. The worker refuses every connection
besides, and reports those that were attempted.

Importing Olive takes seconds. Where the system can fork, a process that has imported it waits for jobs, and forks for
each of them; it ends with this process.

Source: olive-ai 0.13.0, ``olive/telemetry/telemetry.py``.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgekit.errors import (
    MissingPluginError,
    NonFiniteError,
    PluginError,
    QualityGateError,
    ResourceError,
    UnsupportedModelError,
    UsageError,
)
from edgekit.files.memory import refuse_shortage

#: Variables that switch off telemetry and downloads, of Olive and of what it imports.
QUIET = {
    "CI": "1",
    "OLIVE_DISABLE_TELEMETRY": "1",
    "ORT_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "DO_NOT_TRACK": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "MPLBACKEND": "agg",
    "PYTHONDONTWRITEBYTECODE": "1",
}
#: Kinds of errors that the worker reports, and the classes that they become.
ERRORS: Mapping[str, type[Exception]] = {
    "usage": UsageError,
    "missing": MissingPluginError,
    "nonfinite": NonFiniteError,
    "goals": QualityGateError,
    "memory": ResourceError,
    "failed": UnsupportedModelError,
}
_LINES = 6
_PYTHON = (sys.executable, "-P", "-m", "edgekit_olive.worker")


def run(job: Mapping[str, Any], work: Path, what: str) -> dict[str, Any]:
    """Run a job in a process of its own.

    Args:
        job: what `edgekit_olive.worker` runs; its paths are absolute.
        work: an existing directory for everything that the process writes.
        what: the job's name, for messages.

    Returns:
        The worker's report.

    Raises:
        PluginError: the process ended without a report; names how, and the last lines of its output.
        UsageError, MissingPluginError, NonFiniteError, ResourceError, UnsupportedModelError: as the worker reports.
    """
    report = work / "report.json"
    (work / "job.json").write_text(json.dumps(job), "utf-8")
    log, home = work / "output.txt", work / "home"
    environment(home)
    command = {"job": str(work / "job.json"), "report": str(report), "log": str(log), "work": str(work)}
    try:
        status = _forking().run(command) if hasattr(os, "fork") else _alone(command, home)
    except OSError as error:
        refuse_shortage(error, f"starting {what}")
        raise ResourceError(f"{what}: its process cannot be started ({error})") from error
    if status or not report.is_file():
        raise _crashed(status, log, what)
    told: dict[str, Any] = json.loads(report.read_text("utf-8"))
    if "error" in told:
        raise ERRORS[told["error"]["kind"]](f"{what}: {told['error']['message']}")
    return told


def _alone(command: Mapping[str, str], home: Path) -> int:
    """Run a job in a process that ends with it; return its exit status."""
    words = [*_PYTHON, command["job"], command["report"]]
    with Path(command["log"]).open("wb") as log:
        streams: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": log}
        return subprocess.run(words, env=environment(home), cwd=command["work"], check=False, **streams).returncode


class Forking:
    """A process that has imported Olive and forks for each job."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._home = tempfile.TemporaryDirectory(prefix="edgekit-olive-")
        self._log = Path(self._home.name) / "output.txt"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [*_PYTHON, "serve"], env=environment(Path(self._home.name) / "home"), cwd=self._home.name,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, start_new_session=True,
            )  # fmt: skip

    def run(self, command: Mapping[str, str]) -> int:
        """Run a job; return its exit status, negative for a signal.

        Raises:
            PluginError: the process that forks has ended, because Olive cannot be imported.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with self._lock:
            try:
                self._process.stdin.write(json.dumps(command).encode() + b"\n")
                self._process.stdin.flush()
                answer = self._process.stdout.readline()
            except BrokenPipeError:
                answer = b""
            except BaseException:  # an interrupt ends the job too
                self.close()
                raise
        if not answer:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout=10)  # its last lines may come after its standard output ends
            shown = _last_lines(self._log)  # `close` removes the file
            self.close()
            raise PluginError(f"Olive cannot be imported; the last lines of its output: {shown}")
        return int(answer)

    def close(self) -> None:
        """End the process and the job that it runs."""
        _forking.cache_clear()
        if self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(BrokenPipeError):
                stream.close() if stream else None
        self._home.cleanup()


@functools.cache
def _forking() -> Forking:
    made = Forking()
    atexit.register(made.close)
    return made


def environment(home: Path) -> dict[str, str]:
    """Return the environment of the process: the caller's, with `QUIET` and another home directory."""
    home.mkdir(exist_ok=True)
    places = {name: str(home) for name in ("HOME", "USERPROFILE", "LOCALAPPDATA", "APPDATA")}
    places |= {"XDG_CACHE_HOME": str(home / ".cache"), "OLIVE_TELEMETRY_CACHE_DIR": str(home / "telemetry")}
    return {**os.environ, **QUIET, **places}


def _crashed(status: int, log: Path, what: str) -> Exception:
    shown = _last_lines(log)
    if status == -getattr(signal, "SIGKILL", 9):
        return ResourceError(
            f"{what}: the system ended its process, most likely for lack of memory; the target is unchanged"
        )
    how = signal.Signals(-status).name if status < 0 else f"exit status {status}"
    return PluginError(
        f"{what}: its process ended without a result ({how}); the target is unchanged. "
        f"The last lines of its output: {shown}"
    )


def _last_lines(log: Path) -> str:
    lines = [line for line in log.read_text("utf-8", "replace").splitlines() if line.strip()] if log.is_file() else []
    return " | ".join(line.strip()[-200:] for line in lines[-_LINES:]) or "nothing"


__all__ = ["ERRORS", "QUIET", "Forking", "environment", "run"]
