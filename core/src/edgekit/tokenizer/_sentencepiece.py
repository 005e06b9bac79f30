"""tokenizer.model: SentencePiece's ModelProto, read without protobuf.

    message        field  number  wire type
    ModelProto     pieces       1  message, repeated
                   trainer      2  message
                   normalizer   3  message
    Piece          piece        1  string
                   score        2  float32
                   type         3  enum: normal 1, unknown 2, control 3, user defined 4, unused 5, byte 6
    TrainerSpec    model_type   3  enum: unigram 1, BPE 2, word 3, char 4
                   unk_id 40, bos_id 41, eos_id 42, pad_id 43    int32; -1 for none
    NormalizerSpec charsmap     2  bytes
                   dummy prefix 3  bool

Every length is checked against the rest of the file. Source: `sentencepiece_model.proto` of SentencePiece 0.2.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

import attrs

from edgekit.errors import InvalidFileError

UNIGRAM, BPE = 1, 2
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_Value = int | float | memoryview


@attrs.frozen
class SentencePiece:
    """The content of a tokenizer.model.

    Attributes:
        pieces: the text, the score and the type (GGUF's and SentencePiece's numbers agree) of each id.
        model_type: `UNIGRAM`, `BPE`, or another number.
        unk, bos, eos, pad: ids, or None.
        add_space_prefix: whether a leading space is added to a text.
        charsmap: whether texts are normalized by a table of characters.
    """

    pieces: tuple[tuple[str, float, int], ...]
    model_type: int = UNIGRAM
    unk: int | None = 0
    bos: int | None = 1
    eos: int | None = 2
    pad: int | None = None
    add_space_prefix: bool = True
    charsmap: bool = False


def parse(content: bytes, path: Path) -> SentencePiece:
    """Parse a tokenizer.model.

    Raises:
        InvalidFileError: it is truncated or malformed; names the file and the offset.
    """
    reader = _Reader(memoryview(content), path)
    pieces: list[tuple[str, float, int]] = []
    trainer: dict[int, int] = {}
    normalizer: dict[int, _Value] = {}
    for field, value, offset in reader.fields(0, len(content)):
        if isinstance(value, memoryview) and field in (1, 2, 3):
            inner = reader.fields(offset, offset + len(value))
            if field == 1:
                pieces.append(_piece(reader, inner, offset))
            elif field == 2:
                trainer.update((number, v) for number, v, _ in inner if isinstance(v, int))
            else:
                normalizer.update((number, v) for number, v, _ in inner)
    if not pieces:
        raise InvalidFileError(f"{path}: holds no pieces; this is not a SentencePiece model")
    return SentencePiece(
        tuple(pieces),
        trainer.get(3, UNIGRAM),
        unk=_id(trainer, 40, 0, len(pieces)),
        bos=_id(trainer, 41, 1, len(pieces)),
        eos=_id(trainer, 42, 2, len(pieces)),
        pad=_id(trainer, 43, -1, len(pieces)),
        add_space_prefix=bool(normalizer.get(3, 1)),
        charsmap=bool(normalizer.get(2, b"")),
    )


def _piece(reader: _Reader, fields: Iterator[tuple[int, _Value, int]], start: int) -> tuple[str, float, int]:
    text, score, kind = "", 0.0, 1
    for number, value, offset in fields:
        if number == 1 and isinstance(value, memoryview):
            text = reader.text(value, offset)
        elif number == 2 and isinstance(value, float):
            score = value
        elif number == 3 and isinstance(value, int):
            kind = value
    if not 1 <= kind <= 6:
        raise reader.broken(f"a piece of type {kind}", start)
    return text, score, kind


def _id(trainer: dict[int, int], field: int, default: int, count: int) -> int | None:
    number = trainer.get(field, default)
    return number if 0 <= number < count else None  # -1 comes as 2**64 - 1


@attrs.frozen
class _Reader:
    """Reads protobuf's wire format, with bounds checks."""

    content: memoryview
    path: Path

    def fields(self, start: int, stop: int) -> Iterator[tuple[int, _Value, int]]:
        """Yield (number, value, offset of the value) of each field of the message in ``start:stop``."""
        while start < stop:
            tag, start = self._varint(start, stop)
            wire, offset = tag & 7, start
            value: _Value
            if wire == _VARINT:
                value, start = self._varint(start, stop)
            elif wire == _BYTES:
                length, offset = self._varint(start, stop)
                value, start = self._take(offset, length, stop)
            elif wire == _FIXED32:
                raw, start = self._take(start, 4, stop)
                value = struct.unpack("<f", raw)[0]
            elif wire == _FIXED64:
                raw, start = self._take(start, 8, stop)
                value = struct.unpack("<d", raw)[0]
            else:
                raise self.broken(f"wire type {wire}", start)
            yield tag >> 3, value, offset

    def text(self, value: memoryview, offset: int) -> str:
        """Decode a string field as UTF-8."""
        try:
            return bytes(value).decode("utf-8")
        except UnicodeDecodeError as error:
            raise self.broken("a piece that is not UTF-8", offset) from error

    def broken(self, fault: str, offset: int) -> InvalidFileError:
        """Return the error for a fault at an offset."""
        return InvalidFileError(
            f"{self.path}: {fault} at byte {offset:,}; this is not a SentencePiece model, or a damaged one"
        )

    def _take(self, start: int, length: int, stop: int) -> tuple[memoryview, int]:
        if length > stop - start:
            raise self.broken(f"a field of {length:,} bytes with {stop - start:,} left", start)
        return self.content[start : start + length], start + length

    def _varint(self, start: int, stop: int) -> tuple[int, int]:
        number = 0
        for index in range(min(10, stop - start)):
            byte = self.content[start + index]
            number |= (byte & 0x7F) << (7 * index)
            if byte < 0x80:
                return number, start + index + 1
        raise self.broken("an endless number", start)


__all__ = ["BPE", "UNIGRAM", "SentencePiece", "parse"]
