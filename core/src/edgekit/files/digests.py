"""SHA-256 of a model's files, computed in a background thread while the artifact is written."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future
from pathlib import Path

from edgekit.errors import MissingFileError
from edgekit.files.threads import Thread

#: Bytes hashed between checks for cancellation; larger pieces are no faster.
_PIECE = 1 << 18


def sha256(file: Path) -> str:
    """Return the SHA-256 of a file, hex.

    Raises:
        MissingFileError: it does not exist, or cannot be read.
    """
    return _sha256(file, threading.Event())


def _sha256(file: Path, stopped: threading.Event) -> str:
    digest, piece = hashlib.sha256(), memoryview(bytearray(_PIECE))
    try:
        with file.open("rb", buffering=0) as stream:
            while (count := stream.readinto(piece)) and not stopped.is_set():
                digest.update(piece[:count])
    except OSError as error:
        raise MissingFileError(
            f"{file}: cannot be read ({error.strerror}); check that it is there and readable"
        ) from error
    return digest.hexdigest()


class Digests(Mapping[str, str]):
    """SHA-256 (hex) of files by their names, computed in a thread; reading one waits for it.

    Example:
        >>> with closing(Digests([Path("model.gguf")])) as digests:  # doctest: +SKIP
        ...     encode_and_write()
        ...     record(digests["model.gguf"])

    Args:
        files: hashed in this order.
        known: further digests, by name.

    Raises:
        MissingFileError: when the digest of a file that could not be read is asked for.
        MemoryShortageError: there is no memory for the thread.
    """

    def __init__(self, files: Iterable[Path], known: Mapping[str, str] | None = None) -> None:
        self._known = dict(known or {})
        self._coming: dict[Path, Future[str]] = {file: Future() for file in files}
        self._names = {file.name: future for file, future in self._coming.items()}
        self._stopped = threading.Event()
        self._thread = Thread(target=self._run, name="edgekit-sha256")
        self._thread.start()

    def __getitem__(self, name: str) -> str:
        return self._known[name] if name in self._known else self._names[name].result()

    def __iter__(self) -> Iterator[str]:
        return iter({**self._names, **self._known})

    def __len__(self) -> int:
        return len({**self._names, **self._known})

    def close(self) -> None:
        """Stop hashing; waiting for an unfinished digest raises `CancelledError`."""
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        for file, future in self._coming.items():
            try:
                digest = _sha256(file, self._stopped)
            except BaseException as error:  # raised when the digest is read
                future.set_exception(error)
            else:
                if self._stopped.is_set():
                    future.cancel()
                else:
                    future.set_result(digest)


__all__ = ["Digests", "sha256"]
