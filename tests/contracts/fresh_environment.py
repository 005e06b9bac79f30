"""Fresh virtual environments without a network: the project's wheels, and the dependencies of this environment."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from importlib import metadata
from pathlib import Path

import attrs
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]


def build_wheel(distribution: Path, into: Path) -> Path:
    """Build a wheel in this environment's own hatchling; gives its path."""
    before = set(into.glob("*.whl"))
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", into, cwd=distribution)
    (wheel,) = set(into.glob("*.whl")) - before
    return wheel


@attrs.frozen
class Environment:
    """A virtual environment in which only what was asked for is installed."""

    path: Path

    @classmethod
    def create(cls, path: Path, *requirements: str) -> Environment:
        """An environment with those distributions of the running one, and all that they need."""
        venv.create(path, symlinks=True, with_pip=False)
        self = cls(path)
        for name in sorted(needed(requirements)):
            self._link(name)
        return self

    @property
    def python(self) -> Path:
        return self.path / "bin" / "python"

    @property
    def site(self) -> Path:
        (found,) = (self.path / "lib").glob("python3.*/site-packages")
        return found

    def install(self, *wheels: Path) -> None:
        offline = ("--no-deps", "--no-index", "--no-compile", "--quiet", "--disable-pip-version-check")
        run(sys.executable, "-m", "pip", "--python", self.python, "install", *offline, *wheels)

    def uninstall(self, *names: str) -> None:
        run(sys.executable, "-m", "pip", "--python", self.python, "uninstall", "--yes", "--quiet", *names)

    def run(self, *arguments: object, cwd: Path | None = None, code: int = 0) -> str:
        return run(self.python, *arguments, cwd=cwd or self.path, code=code)

    def _link(self, name: str) -> None:
        distribution = metadata.distribution(name)
        for top in {file.parts[0] for file in distribution.files or () if file.parts[0] not in ("..", "__pycache__")}:
            target = self.site / top
            if not target.exists():
                target.symlink_to(Path(str(distribution.locate_file(top))).resolve())


def needed(requirements: tuple[str, ...]) -> set[str]:
    """Names of those distributions and of all that they need here; the project's own come as wheels."""
    found: dict[str, Requirement] = {}
    waiting = [Requirement(text) for text in requirements]
    while waiting:
        wanted = waiting.pop()
        if wanted.name in found and wanted.extras <= found[wanted.name].extras:
            continue
        found[wanted.name] = wanted
        extras = ["", *wanted.extras]
        declared = map(Requirement, metadata.requires(wanted.name) or ())
        waiting += [r for r in declared if r.marker is None or any(r.marker.evaluate({"extra": e}) for e in extras)]
    return {name for name in found if not name.startswith("edgekit")}


def run(*command: object, cwd: Path | None = None, code: int = 0) -> str:
    """Run a command; gives its stdout."""
    arguments = [str(part) for part in command]
    done = subprocess.run(arguments, cwd=cwd, capture_output=True, text=True, env=clean(), check=False)
    told = f"{done.stdout}\n{done.stderr}"
    assert done.returncode == code, f"exit {done.returncode}, wanted {code}: {command}\n{told}"
    return done.stdout + (done.stderr if code else "")


def clean() -> dict[str, str]:
    """The process's environment without what would reach into a fresh one."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "PIP_", "EDGEKIT_"))}
    return kept | {"EDGEKIT_TEST_PROFILE": "quick", "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
