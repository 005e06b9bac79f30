"""Answers as a list of blocks, one for each run of text, of reasoning, and each call: how the newer APIs have them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Literal

import attrs

from edgekit_serve.generate import Piece, Text
from edgekit_serve.wire import Json

#: What a block is.
BlockKind = Literal["text", "reasoning", "call"]


@attrs.define
class Block:
    """A block of an answer.

    Attributes:
        kind: what it is.
        index: its place, from 0.
        text: of it, or the arguments of a call.
        name, id: of a call.
    """

    kind: BlockKind
    index: int
    text: str = ""
    name: str = ""
    id: str = ""


@attrs.define
class Blocks:
    """The blocks of an answer as far as it has come.

    Attributes:
        blocks: in order; the last is open.
    """

    blocks: list[Block] = attrs.field(factory=list)

    def add(self, piece: Piece) -> Iterator[tuple[Literal["end", "begin", "more"], Block, str]]:
        """Yield what a piece does: ends the open block, begins another, adds to it."""
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
    """The blocks of a whole answer."""
    arguments, calls = Blocks(), iter(text.calls)
    for part in text.parts:
        for _ in arguments.add(Piece(0, part, call=next(calls) if part.kind == "call" else None)):
            pass
    return arguments.blocks


def arguments_of(block: Block) -> Json:
    """The arguments of a call as an object; empty where they were cut off."""
    try:
        arguments = json.loads(block.text or "{}")
    except ValueError:
        return {}
    return arguments if isinstance(arguments, dict) else {}


__all__ = ["Block", "BlockKind", "Blocks", "arguments_of", "blocks_of"]
