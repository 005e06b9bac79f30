"""Converts an answer to a list of blocks (text, reasoning, tool call), the form of the Responses and Messages APIs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Literal

import attrs

from edgekit_serve.generate import Piece, Text
from edgekit_serve.wire import Json

#: The kinds of blocks.
BlockKind = Literal["text", "reasoning", "call"]


@attrs.define
class Block:
    """A block of an answer.

    Attributes:
        kind: text, reasoning or call.
        index: position in the answer, from 0.
        text: the text, or the arguments of a call as JSON.
        name, id: the function's name and the identifier of a call; empty for other kinds.
    """

    kind: BlockKind
    index: int
    text: str = ""
    name: str = ""
    id: str = ""


@attrs.define
class Blocks:
    """The blocks of the part of an answer that has been generated so far.

    Attributes:
        blocks: the blocks in order; only the last can grow.
    """

    blocks: list[Block] = attrs.field(factory=list)

    def add(self, piece: Piece) -> Iterator[tuple[Literal["end", "begin", "more"], Block, str]]:
        """Add a piece, and yield the changes in order: the last block ends, another begins, a block gets more text.

        Each change is its kind, the block, and the added text (empty for the other kinds).
        """
        part = piece.part
        if part is None or (not part.text and part.kind != "call"):
            return
        kind: BlockKind = "call" if part.kind in ("call", "arguments") else part.kind  # type: ignore[assignment]
        if part.kind == "call" or not self.blocks or self.blocks[-1].kind != kind:
            if self.blocks:
                yield "end", self.blocks[-1], ""
            self.blocks.append(Block(kind, len(self.blocks)))
            if piece.call is not None:
                self.blocks[-1].name, self.blocks[-1].id = piece.call.name, piece.call.id
            yield "begin", self.blocks[-1], ""
        if part.kind != "call":
            self.blocks[-1].text += part.text
            yield "more", self.blocks[-1], part.text


def blocks_of(text: Text) -> list[Block]:
    """Return the blocks of a complete answer."""
    arguments, calls = Blocks(), iter(text.calls)
    for part in text.parts:
        for _ in arguments.add(Piece(0, part, call=next(calls) if part.kind == "call" else None)):
            pass
    return arguments.blocks


def arguments_of(block: Block) -> Json:
    """Return the arguments of a call as an object; an empty one if they are incomplete."""
    try:
        arguments = json.loads(block.text or "{}")
    except ValueError:
        return {}
    return arguments if isinstance(arguments, dict) else {}


__all__ = ["Block", "BlockKind", "Blocks", "arguments_of", "blocks_of"]
