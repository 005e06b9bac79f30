"""Regular files, opened once and read at offsets.

Files are never mapped into memory: if another process truncates a mapped file, access to the missing part ends the
process with SIGBUS, which Python cannot handle. A plain read returns fewer bytes instead.
"""

from __future__ import annotations

import errno
import os
import stat
import threading
import weakref
from pathlib import Path

from edgekit.errors import EdgekitError, InvalidFileError, MissingFileError, ResourceError
from edgekit.files.buffers import uninitialized
from edgekit.files.memory import is_shortage, shortage
from edgekit.typing import U8

_KINDS = (
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)
#: Bytes of one read; some systems take no more than 2 GiB.
_PIECE = 1 << 30


def refuse_special(path: Path, mode: int) -> None:
    """Raise if a file is not a regular one; `mode` is from `os.stat`.

    Raises:
        InvalidFileError: a directory, a pipe, a socket or a device.
    """
    if not stat.S_ISREG(mode):
        kind = next((name for test, name in _KINDS if test(mode)), "no file")
        raise InvalidFileError(f"{path}: {kind}, not a regular file; give a file of a model")


class reading:  # noqa: N801 - used as a function
    """Turn an `OSError` inside into a typed error that names the path and the cure.

    A class, because from Python 3.12 on an error that a `contextlib.contextmanager` raises for another is in a cycle
    with it. A missing file is often no error to the caller, and everything in the frames of its callers, such as an
    opened model, would stay in memory until the next garbage collection.

    Raises:
        MissingFileError: not there, or not readable.
        MemoryShortageError: memory ran out.
        ResourceError: too many files are open.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if not isinstance(error, OSError) or isinstance(error, EdgekitError):
            return
        if is_shortage(error):
            raise shortage(f"{self._path}: reading it") from error
        if error.errno in (errno.EMFILE, errno.ENFILE):
            raise ResourceError(f"{self._path}: too many files are open; raise the limit (ulimit -n)") from error
        raise MissingFileError(f"{self._path}: cannot be read ({error.strerror}); check that it is there") from error


def open_regular(path: Path) -> int:
    """Return a descriptor for reading a regular file; the caller closes it.

    Opening a pipe blocks, and opening a device may have effects, so the type is checked first. It is checked again
    after opening, since the file may have been replaced in between.

    Raises:
        InvalidFileError: it is not a regular file.
        OSError: it does not exist, or cannot be read.
    """
    refuse_special(path, os.stat(path).st_mode)
    flags = (getattr(os, name, 0) for name in ("O_BINARY", "O_NONBLOCK", "O_NOCTTY", "O_CLOEXEC"))
    descriptor = os.open(path, os.O_RDONLY | sum(flags))
    try:
        refuse_special(path, os.fstat(descriptor).st_mode)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def read_start(path: Path, nbytes: int) -> bytes:
    """Return the first bytes of a regular file, which identify its format; empty if it cannot be read."""
    try:
        descriptor = open_regular(path)
    except (OSError, InvalidFileError):
        return b""
    try:
        return os.read(descriptor, nbytes)
    except OSError:
        return b""
    finally:
        os.close(descriptor)


class Reader:
    """A regular file for reads at offsets; several threads may use it.

    Attributes:
        path: of the file.
        size: bytes that it had when it was opened.

    Raises:
        MissingFileError: it is not there, or cannot be read.
        InvalidFileError: it is a directory, a pipe or a device.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with reading(path):
            self._fd = open_regular(path)
            weakref.finalize(self, os.close, self._fd)
            self.size = os.fstat(self._fd).st_size
        self._seek = threading.Lock()  # only where the system has no positioned reads

    def read(self, begin: int, nbytes: int, name: str) -> U8:
        """Read bytes ``begin : begin + nbytes`` into a new array; `name` is the tensor's, for the error.

        Raises:
            InvalidFileError: the file was truncated after it was opened.
            MemoryShortageError: the bytes do not fit into memory.
        """
        try:
            buffer = uninitialized(nbytes)
        except MemoryError as error:
            raise shortage(f"{self.path}: reading tensor {name}", nbytes) from error
        view, position = buffer.data, begin
        while view:
            count = self._read_into(view, position, f"tensor {name}")
            if count == 0:
                raise InvalidFileError(
                    f"{self.path}: tensor {name!r:.80} is cut off (at byte {position:,}); fetch or convert it again"
                )
            view, position = view[count:], position + count
        return buffer

    def read_bytes(self, begin: int, nbytes: int) -> bytes:
        """Read bytes ``begin : begin + nbytes``, or fewer if the file ends before.

        Raises:
            MemoryShortageError: there is no room for so many bytes.
        """
        try:
            data = bytearray(max(0, min(nbytes, self.size - begin)))
            view, position = memoryview(data), begin
            while view and (count := self._read_into(view, position, "it")):
                view, position = view[count:], position + count
            return bytes(memoryview(data)[: position - begin])
        except MemoryError as error:
            raise shortage(f"{self.path}: reading it", nbytes) from error

    def _read_into(self, view: memoryview, position: int, what: str) -> int:
        try:
            if hasattr(os, "preadv"):
                return os.preadv(self._fd, [view[:_PIECE]], position)
            with self._seek:
                os.lseek(self._fd, position, os.SEEK_SET)
                chunk = os.read(self._fd, min(len(view), _PIECE))
        except OSError as error:
            raise ResourceError(f"{self.path}: reading {what} failed: {error.strerror}") from error
        view[: len(chunk)] = chunk
        return len(chunk)


class Mapped:
    """Files that a library has mapped into memory, kept open to detect truncation before they are used.

    Replacing a file by another of its name is harmless: the mapped content remains.

    Args:
        paths: of the files.
        cure: the advice in the message.

    Raises:
        MissingFileError, InvalidFileError: as `Reader`.
    """

    def __init__(self, paths: tuple[Path, ...], cure: str) -> None:
        self._readers, self._cure = tuple(Reader(path) for path in paths), cure

    def refuse_cut(self) -> None:
        """Raise if a file was truncated.

        A file may still be truncated between this check and the library's access, which ends the process; only a
        separate process protects the caller.

        Raises:
            InvalidFileError: names the file and its two sizes.
        """
        for reader in self._readers:
            size = os.fstat(reader._fd).st_size
            if size < reader.size:
                fault = f"it was cut from {reader.size:,} to {size:,} bytes while it was in use"
                raise InvalidFileError(f"{reader.path}: {fault}; {self._cure}")


__all__ = ["Mapped", "Reader", "open_regular", "read_start", "reading", "refuse_special"]
