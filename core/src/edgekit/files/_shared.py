"""A file that is being written, as other processes find it: by its path, and by a token behind its content.

Another machine may have something else under the same path. So the file has a random token where no byte of it will
be, and who does not read that token there does not write. The token lies in a page of its own: network file systems
may write back whole pages, and no process ever reads one that holds content.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import attrs

from edgekit.files._problems import writing

#: Bytes of a token, and of the largest page of memory on any platform.
_TOKEN, _PAGE = 32, 1 << 16


def write_there(descriptor: int, offset: int, view: memoryview) -> None:
    """Write all bytes at an offset; no other thread may use the descriptor where there is no `os.pwrite`."""
    while view:
        if hasattr(os, "pwrite"):
            count = os.pwrite(descriptor, view[: 1 << 30], offset)
        else:
            os.lseek(descriptor, offset, os.SEEK_SET)
            count = os.write(descriptor, view[: 1 << 30])
        view, offset = view[count:], offset + count


@attrs.frozen
class SharedFile:
    """A file that is being written and that other processes may write too; made by `AtomicFile.share`.

    Attributes:
        path: absolute.
        named: its name in messages.
        at: offset of the token.
        token: random bytes.
        host: name of the machine of the process that made it.
    """

    path: str
    named: str
    at: int
    token: bytes
    host: str

    @classmethod
    def of(cls, path: Path, named: Path, descriptor: int, nbytes: int) -> SharedFile:
        """Write a token behind the first `nbytes` bytes of a file.

        Raises:
            OSError: it cannot be written.
        """
        made = cls(str(path), str(named), -(-nbytes // _PAGE) * _PAGE, os.urandom(_TOKEN), socket.gethostname())
        write_there(descriptor, made.at, memoryview(made.token))
        return made

    @contextmanager
    def opened(self) -> Iterator[int | None]:
        """Open the file here, to write to its descriptor; None if this process does not see it, or may not write it.

        What was written can be seen from everywhere afterwards: closing a file of NFS sends its content to the server,
        and on other machines than the one that commits the file it is synced as well.

        Raises:
            ResourceError: it cannot be synced.
        """
        descriptor = self._descriptor()
        if descriptor is None:
            yield None
            return
        try:
            yield descriptor
            if socket.gethostname() != self.host:
                with writing(Path(self.named)):
                    os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def put(self, descriptor: int, offset: int, view: memoryview) -> None:
        """Write bytes at their place.

        Raises:
            ResourceError: the disk is full, or another limit was hit.
        """
        with writing(Path(self.named), f"{len(view):,} bytes at offset {offset:,}"):
            write_there(descriptor, offset, view)

    def _descriptor(self) -> int | None:
        flags = os.O_RDWR | getattr(os, "O_BINARY", 0) | getattr(os, "O_NOFOLLOW", 0)
        try:
            descriptor = os.open(self.path, flags)
        except OSError:
            return None
        try:
            os.lseek(descriptor, self.at, os.SEEK_SET)
            if os.read(descriptor, len(self.token)) == self.token:
                return descriptor
        except OSError:
            pass
        os.close(descriptor)
        return None


__all__ = ["SharedFile", "write_there"]
