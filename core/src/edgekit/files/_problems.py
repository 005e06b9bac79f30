"""Errors of the file system as typed errors, with the path, the need and the cure."""

from __future__ import annotations

import contextlib
import errno
import shutil
from collections.abc import Iterator
from pathlib import Path

from edgekit.errors import EdgekitError, ResourceError

_CURES = {
    errno.ENOSPC: "free some space, or choose a target on another disk",
    errno.EDQUOT: "free some of your quota, or choose a target on another disk",
    errno.EFBIG: "raise the file size limit (ulimit -f), or choose a file system that holds larger files",
    errno.EACCES: "give yourself write permission, or choose another target",
    errno.EPERM: "give yourself write permission, or choose another target",
    errno.EROFS: "choose a target on a file system that is not read-only",
    errno.ENOENT: "create the directory first, or choose another target",
    errno.ENOTDIR: "choose a target inside a directory",
    errno.ENAMETOOLONG: "choose a shorter name",
}


@contextlib.contextmanager
def writing(path: Path, need: str = "") -> Iterator[None]:
    """Turn an `OSError` inside into a `ResourceError` that names the path, the need and the cure."""
    try:
        yield
    except EdgekitError:
        raise
    except OSError as error:
        cure = _CURES.get(error.errno or 0, "choose another target")
        what = f" ({need})" if need else ""
        raise ResourceError(f"cannot write {path}{what}: {error.strerror}; {cure}") from error


def require_space(directory: Path, nbytes: int, target: Path) -> None:
    """Raise `ResourceError` if the disk of `directory` has less than `nbytes` bytes free."""
    with writing(target):
        free = shutil.disk_usage(directory).free
    if free < nbytes:
        raise ResourceError(f"cannot write {target}: {nbytes:,} bytes needed, {free:,} free; {_CURES[errno.ENOSPC]}")


__all__ = ["require_space", "writing"]
