"""Digests of a model's files, computed by threads while the artifact is written.

A digest is text, and says how it was computed:

::

    file           digest
    up to 64 MiB   SHA-256, 64 hexadecimal digits
    larger         sha256-tree-4MiB: and 64 digits

A tree's digits are the SHA-256 of the SHA-256 digests (32 bytes each) of the file's consecutive pieces of 4 MiB, of
which the last may be shorter. Pieces do not depend on each other, so several threads hash them at a time; one alone
would take longer than sixteen cores need to encode the model.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import closing
from pathlib import Path

import attrs

from edgekit.errors import InvalidFileError, MissingFileError
from edgekit.files.foreign import shown
from edgekit.files.workers import Workers, cores

#: Bytes of the largest file whose digest is its plain SHA-256.
WHOLE = 64 << 20
#: Bytes of a tree's pieces.
PIECE = 4 << 20
#: Name of the scheme of larger files; a digest begins with it.
TREE = "sha256-tree-4MiB"
#: Bytes read at a time, between checks for cancellation; with fewer, many threads wait for the interpreter.
_READ = 1 << 19


def sha256(file: Path) -> str:
    """Return the plain SHA-256 of a file, hex, whatever its size.

    Raises:
        MissingFileError: it does not exist, or cannot be read.
    """
    return _sha256(file, threading.Event()).hex()


def digests(files: Iterable[Path]) -> dict[str, str]:
    """Return the digests of files by their names, as manifests record them; every core takes part.

    Raises:
        MissingFileError: one cannot be read.
        MemoryShortageError: there is no memory for a thread.
    """
    with closing(Digests(files, threads=cores())) as computed:
        return dict(computed)


def has_digest(file: Path, digest: str) -> bool:
    """Return whether a file has a digest that was recorded in either scheme.

    Example:
        >>> has_digest(source, artifact.manifest.sources[source.name])  # doctest: +SKIP
        True

    Raises:
        MissingFileError: the file cannot be read.
        InvalidFileError: the digest is of a scheme that this edgekit does not have.
    """
    scheme = digest.rpartition(":")[0]
    if scheme not in ("", TREE):
        raise InvalidFileError(
            f"{file}: its digest was recorded as {shown(scheme)}; this edgekit computes SHA-256 and {TREE}; update "
            "edgekit-core"
        )
    if not scheme:
        return sha256(file) == digest
    with closing(Digests([file], whole=0, threads=cores())) as computed:
        return computed[file.name] == digest


def _sha256(file: Path, stopped: threading.Event, begin: int = 0, length: int | None = None) -> bytes:
    """SHA-256 of a file, or of `length` bytes of it."""
    digest, left = hashlib.sha256(), length
    buffer = memoryview(bytearray(_READ if length is None else min(_READ, length)))
    try:
        with file.open("rb", buffering=0) as stream:
            if begin:
                stream.seek(begin)
            while not stopped.is_set() and (count := stream.readinto(buffer if left is None else buffer[:left])):
                digest.update(buffer[:count])
                left = None if left is None else left - count
    except OSError as error:
        raise MissingFileError(
            f"{file}: cannot be read ({error.strerror}); check that it is there and readable"
        ) from error
    return digest.digest()


@attrs.define(eq=False)
class _Coming:
    """A file's digest that is being computed.

    Attributes:
        file: path.
        size: bytes of a file that is hashed as a tree; None for one that is hashed in one go.
        future: its digest.
        pieces: digests of a tree's pieces, 32 bytes each.
        left: pieces whose digest is missing.
    """

    file: Path
    size: int | None
    future: Future[str] = attrs.field(factory=Future)
    pieces: bytearray = attrs.field(factory=bytearray)
    left: int = 1

    @classmethod
    def of(cls, file: Path, whole: int) -> _Coming:
        try:
            size = os.stat(file).st_size
        except OSError:
            size = 0  # the error is raised when the digest is read
        if size <= whole:
            return cls(file, None)
        count = -(-size // PIECE)
        return cls(file, size, pieces=bytearray(32 * count), left=count)

    def put(self, index: int, digest: bytes) -> None:
        """Note the digest of a piece, or of the whole file; only one thread at a time may."""
        self.left -= 1
        if self.size is None:
            self.future.set_result(digest.hex())
            return
        self.pieces[32 * index : 32 * index + 32] = digest
        if not self.left:
            self.future.set_result(f"{TREE}:{hashlib.sha256(self.pieces).hexdigest()}")


class Digests(Mapping[str, str]):
    """Digests of files by their names, computed by threads; reading one waits for it.

    Example:
        >>> with closing(Digests([Path("model.gguf")])) as digests:  # doctest: +SKIP
        ...     encode_and_write()
        ...     record(digests["model.gguf"])

    Args:
        files: hashed in this order.
        known: further digests, by name.
        whole: bytes of the largest file that is hashed in one go.
        threads: how many at most; None takes one for every two cores, which keeps up with as many cores that encode.
            The digests are the same.

    Raises:
        MissingFileError: when the digest of a file that could not be read is asked for.
        MemoryShortageError: there is no memory for a thread.
    """

    def __init__(
        self,
        files: Iterable[Path],
        known: Mapping[str, str] | None = None,
        whole: int = WHOLE,
        threads: int | None = None,
    ) -> None:
        self._known = dict(known or {})
        self._coming = [_Coming.of(file, whole) for file in files]
        self._names = {coming.file.name: coming.future for coming in self._coming}
        self._stopped, self._changing = threading.Event(), threading.Lock()
        self._left = ((coming, index) for coming in self._coming for index in range(coming.left))
        pieces = sum(coming.left for coming in self._coming)
        most = threads or -(-cores() // 2)
        self._threads = Workers(most, "edgekit-sha256")
        for _ in range(min(pieces, most)):
            self._threads.submit(self._run)

    def __getitem__(self, name: str) -> str:
        return self._known[name] if name in self._known else self._names[name].result()

    def __iter__(self) -> Iterator[str]:
        return iter({**self._names, **self._known})

    def __len__(self) -> int:
        return len({**self._names, **self._known})

    def close(self) -> None:
        """Stop hashing; waiting for an unfinished digest raises `CancelledError`."""
        self._stopped.set()
        self._threads.shutdown(cancel_futures=True)
        for coming in self._coming:
            coming.future.cancel()

    def _run(self) -> None:
        """Hash pieces until none is left."""
        while (job := self._next()) is not None:
            coming, index = job
            try:
                place = () if coming.size is None else (index * PIECE, min(PIECE, coming.size - index * PIECE))
                digest = _sha256(coming.file, self._stopped, *place)
            except BaseException as error:  # raised when the digest is read
                self._failed(coming, error)
            else:
                with self._changing:
                    if not (self._stopped.is_set() or coming.future.done()):
                        coming.put(index, digest)

    def _next(self) -> tuple[_Coming, int] | None:
        with self._changing:
            return None if self._stopped.is_set() else next(self._left, None)

    def _failed(self, coming: _Coming, error: BaseException) -> None:
        with self._changing:
            if not coming.future.done():
                coming.future.set_exception(error)


__all__ = ["PIECE", "TREE", "WHOLE", "Digests", "digests", "has_digest", "sha256"]
