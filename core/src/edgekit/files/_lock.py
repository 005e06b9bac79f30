"""One lock for a target: ``.NAME.lock`` beside it, taken before any other file is read or changed."""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path
from types import ModuleType

import attrs

from edgekit.errors import LockedError
from edgekit.files._swap import hidden

fcntl: ModuleType | None
try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

_NO_FLOCK = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)


@attrs.frozen
class Lock:
    """An exclusive lock, held until `release` or the process's end.

    The file is removed on release, before the lock is released. A process that has opened it then detects that the name
    refers to another file, or none, and tries again; the file of a killed process is reused by the next one.
    """

    path: Path
    fd: int | None  # holds an flock; None if the file's existence is the lock

    @classmethod
    def beside(cls, target: Path) -> Lock:
        """Take the lock of a target.

        Raises:
            LockedError: another process holds it.
            OSError: the directory does not exist, or cannot be written.
        """
        path = hidden(target, "lock")
        fd = None if fcntl is None else _flocked(path, target)
        if fd is not None:
            return cls(path, fd)
        return cls(_created(hidden(target, "lockfile"), target), None)

    def release(self) -> None:
        """Release the lock."""
        with contextlib.suppress(OSError):
            self.path.unlink(missing_ok=True)
        if self.fd is not None and fcntl is not None:
            with contextlib.suppress(OSError):
                fcntl.flock(self.fd, fcntl.LOCK_UN)  # a forked child may still have the descriptor
            os.close(self.fd)


def _flocked(path: Path, target: Path) -> int | None:
    """Return a descriptor that holds the lock; None on file systems without locks."""
    assert fcntl is not None
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _same(fd, path):
                return fd
        except OSError as error:
            os.close(fd)
            if isinstance(error, BlockingIOError):
                raise LockedError(f"another process is writing {target}; wait for it, or stop it") from error
            if error.errno in _NO_FLOCK:
                path.unlink(missing_ok=True)
                return None
            raise
        os.close(fd)  # its last holder has removed it meanwhile


def _same(fd: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), os.lstat(path))
    except FileNotFoundError:
        return False


def _created(path: Path, target: Path) -> Path:
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    except FileExistsError as error:
        raise LockedError(f"another process is writing {target}; wait for it, or delete {path} if none is") from error
    return path


__all__ = ["Lock"]
