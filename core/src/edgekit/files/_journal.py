"""The journal of a file that is being written: what an interrupted run has completed, and for what.

    7a01b6e2f6d1c9b4 {"journal": 2, "name": "model.gguf"}
    0b9f…            {"fingerprint": "…"}
    11f0…            {"at": 4096, "bytes": 2048, "crc": 305419896}      one for each piece of a unit that is under way
    5c44…            {"end": 8192, "crc": 3735928559, "note": "…"}      one for each unit

Each line begins with a checksum of itself and of the checksum before it. So reading
stops before the first line that was changed, lost, duplicated or moved. The line with the fingerprint may be written
late, since it includes the hashes of the sources; a journal without it, or with another fingerprint, is not resumed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, wait
from pathlib import Path
from typing import Any

import attrs

from edgekit.files._swap import clear
from edgekit.files.threads import Thread

VERSION = 2
#: Time limit in seconds for the fingerprint of an interrupted run; without it the units are dropped.
PATIENCE = 2.0
#: Bytes of the longest journal that is read; a model of 100,000 tensors takes a tenth of it.
LIMIT = 256 << 20
#: The fingerprint of the output; a function is called in a thread, since hashing sources takes time.
Fingerprint = bytes | Callable[[], bytes]


@attrs.frozen
class Unit:
    """The end of a unit, the CRC-32 of the file up to there, and the caller's note."""

    end: int
    crc: int
    note: str


@attrs.frozen
class Piece:
    """Bytes that are complete in a unit that is not: the offset of the first, their number, and their CRC-32."""

    at: int
    bytes: int
    crc: int


class Journal:
    """The units that are complete, the pieces of those that are not, and the fingerprint.

    Attributes:
        units: complete units, those of an interrupted run first.
        pieces: how many pieces were recorded after them, those of an interrupted run included.
    """

    def __init__(self, path: Path, name: str, fingerprint: Fingerprint | None) -> None:
        self.units: list[Unit] = []
        self.pieces = 0
        self._path = path
        self._header = {"journal": VERSION, "name": name}
        self._fingerprint = fingerprint
        self._signed: Future[None] = Future()  # done when the fingerprint's line is written
        self._file: Any = None
        self._sum = b""
        self._writing = threading.Lock()

    @property
    def resumable(self) -> bool:
        """Whether a later run may resume this one."""
        return self._fingerprint is not None

    def read(self) -> tuple[list[Unit], list[Piece]]:
        """Return the units of a run with the same fingerprint, and the pieces after them.

        Lines count up to the first whose checksum fails.
        """
        if self._fingerprint is None or self._path.is_symlink() or not self._path.is_file():
            return [], []
        if self._path.stat().st_size > LIMIT:
            return [], []
        header, *lines = list(_checked(self._path.read_bytes())) or [{}]
        fingerprints = [line["fingerprint"] for line in lines if "fingerprint" in line]
        if header != self._header or len(fingerprints) != 1:
            return [], []
        self._fingerprint = _called(self._fingerprint)  # computed only if there is something to resume
        if fingerprints[0] != self._fingerprint.hex():
            return [], []
        return _believed(line for line in lines if "fingerprint" not in line)

    def start(self, units: list[Unit], pieces: Iterable[Piece] = ()) -> None:
        """Start a new journal with the units and the pieces that are intact."""
        pieces = list(pieces)
        self.units, self.pieces = list(units), len(pieces)
        clear(self._path)
        if self._fingerprint is None:
            return
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
        self._file = open(os.open(self._path, flags, 0o666), "wb", buffering=0)  # noqa: SIM115
        self._append(self._header)
        if callable(self._fingerprint):
            Thread(target=self._sign, args=(self._fingerprint,), name="edgekit-fingerprint").start()
        else:
            self._sign(self._fingerprint)
            self._signed.result()
        lines: list[Unit | Piece] = [*units, *pieces]
        self._append(*map(attrs.asdict, lines))

    def add(self, unit: Unit) -> None:
        """Record a complete unit."""
        if self._fingerprint is not None:
            self._append(attrs.asdict(unit))
        self.units.append(unit)

    def add_pieces(self, pieces: Iterable[Piece]) -> None:
        """Record complete pieces of units that are not complete; from any thread."""
        if self._fingerprint is not None:
            self._append(*map(attrs.asdict, pieces))
            self.pieces += 1

    def kept(self) -> bool:
        """Return whether a later run can resume; waits briefly for the fingerprint."""
        if self._fingerprint is None or not (self.units or self.pieces):
            return False
        wait([self._signed], PATIENCE)
        return self._signed.done() and self._signed.exception() is None

    def close(self) -> None:
        """Close the file; nothing is written after this."""
        with self._writing:
            if self._file is not None:
                self._file.close()

    def drop(self) -> None:
        """Close, and remove the file."""
        self.close()
        with contextlib.suppress(OSError):  # a journal without its data is useless
            clear(self._path)
        self._fingerprint = None  # a writer's refers to the writer, which refers to this: a source would stay in memory

    def _append(self, *lines: dict[str, Any]) -> None:
        with self._writing:
            if self._file.closed:
                return
            text = b"".join(map(self._line, lines))
            while text:
                text = text[self._file.write(text) :]

    def _line(self, content: dict[str, Any]) -> bytes:
        text = json.dumps(content).encode()
        self._sum = _sum(self._sum, text)
        return self._sum + b" " + text + b"\n"

    def _sign(self, fingerprint: Fingerprint) -> None:
        try:
            self._append({"fingerprint": _called(fingerprint).hex()})
        except BaseException as error:  # `kept` and `start` ask for it
            self._signed.set_exception(error)
        else:
            self._signed.set_result(None)


def _called(fingerprint: Fingerprint) -> bytes:
    return fingerprint if isinstance(fingerprint, bytes) else fingerprint()


def _sum(before: bytes, text: bytes) -> bytes:
    return hashlib.blake2b(before + text, digest_size=8).hexdigest().encode()


def _checked(journal: bytes) -> Iterator[dict[str, Any]]:
    """Yield the lines' contents up to the first whose checksum fails; a torn last line is skipped."""
    before = b""
    for line in journal.split(b"\n")[:-1]:
        given, _, text = line.partition(b" ")
        before = _sum(before, text)
        if given != before:
            return
        try:
            content = json.loads(text)
        except (ValueError, RecursionError):
            return
        if not isinstance(content, dict):
            return
        yield content


def _believed(lines: Iterable[dict[str, Any]]) -> tuple[list[Unit], list[Piece]]:
    """Return the units and the pieces after them, up to the first line that another version may have written."""
    units: list[Unit] = []
    pieces: list[Piece] = []
    for line in lines:
        kinds, end = {key: type(value) for key, value in line.items()}, units[-1].end if units else 0
        if kinds == {"end": int, "crc": int, "note": str} and line["end"] >= end:
            units.append(Unit(**line))
        elif kinds == {"at": int, "bytes": int, "crc": int} and line["at"] >= end and line["bytes"] > 0:
            pieces.append(Piece(**line))
        else:
            break
    end = units[-1].end if units else 0
    return units, [piece for piece in pieces if piece.at >= end]


__all__ = ["Fingerprint", "Journal", "Piece", "Unit"]
