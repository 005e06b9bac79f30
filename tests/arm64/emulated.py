"""An ARM64 Python in a folder, run by qemu: Debian's packages for Python, PyPI's wheels for what it imports.

apt-get downloads with a state folder of its own, so that the system's packages are neither used nor changed; nothing is
installed outside of the folder. It needs a Debian 12 on x86-64 (or another system with its packages and apt-get).
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

VERSION = "3.11"  # Debian 12's
DEBIAN = (
    f"python{VERSION}", f"python{VERSION}-minimal", f"libpython{VERSION}-minimal", f"libpython{VERSION}-stdlib",
    "libc6", "libstdc++6", "libgcc-s1", "zlib1g", "libexpat1", "libssl3", "libbz2-1.0", "liblzma5", "libffi8",
    "libuuid1", "libsqlite3-0", "libcrypt1",
)  # fmt: skip
WHEELS = ("numpy", "llvmlite", "safetensors", "attrs", "pluggy", "click")
PROJECT = ("./core", "./plugins/gguf", "./plugins/numba")
_PLATFORMS = ("manylinux_2_28_aarch64", "manylinux_2_27_aarch64", "manylinux_2_17_aarch64", "manylinux2014_aarch64")


def prepare(folder: Path) -> list[str]:
    """Download and unpack everything into a folder; return the command that runs its Python."""
    root, site, host = folder / "root", folder / "site", folder / "host"
    if not (folder / "ready").exists():
        _debian(folder, root, host)
        _wheels(site)
        (folder / "ready").touch()
    qemu = host / "usr" / "bin" / "qemu-aarch64-static"
    return [str(qemu), "-L", str(root), str(root / "usr" / "bin" / f"python{VERSION}")]


def environment(folder: Path) -> dict[str, str]:
    """Return what the emulated Python needs in its environment."""
    return {
        **os.environ,
        "PYTHONPATH": str(folder / "site"),
        "PYTHONNOUSERSITE": "1",
        "EDGEKIT_NUMBA_CACHE": str(folder / "kernels"),
        "OPENBLAS_NUM_THREADS": "1",
    }


def _debian(folder: Path, root: Path, host: Path) -> None:
    state, debs = folder / "state", folder / "debs"
    for path in (state / "lists" / "partial", folder / "cache" / "archives" / "partial", debs, root, host):
        path.mkdir(parents=True, exist_ok=True)
    (state / "status").touch()
    places = {"Dir::State": state, "Dir::State::status": state / "status", "Dir::Cache": folder / "cache"}
    options = [f"-o{name}={path}" for name, path in places.items()] + ["-oAPT::Sandbox::User=root"]
    arm = [*options, "-oAPT::Architecture=arm64", "-oAPT::Architectures::=arm64"]
    for chosen, packages, into in ((arm, DEBIAN, root), (options, ("qemu-user-static",), host)):
        subprocess.run(["apt-get", *chosen, "update", "-qq"], check=True)
        subprocess.run(["apt-get", *chosen, "download", *packages], check=True, cwd=debs, stdout=subprocess.DEVNULL)
        for deb in debs.glob("*.deb"):
            subprocess.run(["dpkg", "-x", deb, into], check=True)
            deb.unlink()


def _wheels(site: Path) -> None:
    pip = [sys.executable, "-m", "pip", "install", "-q", "--target", str(site), "--no-deps"]
    foreign = [f"--platform={platform}" for platform in _PLATFORMS]
    subprocess.run([*pip, *foreign, f"--python-version={VERSION}", "--only-binary=:all:", *WHEELS], check=True)
    subprocess.run([*pip, *PROJECT], check=True)
