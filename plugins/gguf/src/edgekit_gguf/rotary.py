"""The order of Q and K rows in files of the llama architecture.

llama.cpp rotates neighbours there, Hugging Face the two halves of a head. So GGUF files hold each head's rows
interleaved: row ``2i + j`` of a head is row ``j * half + i`` in Hugging Face's order, which is edgekit's own.
Rows move as they are, encoded or not: blocks never span rows. Source: ``LlamaModel.permute`` in llama.cpp's
converter (``conversion/llama.py``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import attrs
import numpy as np

from edgekit.architectures import ModelConfig
from edgekit.tensor import AnyTensor, EncodedTensor
from edgekit.typing import Array, Indices

Direction = Literal["to_gguf", "from_gguf"]
_Order = Indices


def row_order(rows: int, heads: int, direction: Direction) -> _Order:
    """For each row of the result the row to take it from."""
    shape = (heads, 2, rows // heads // 2) if direction == "to_gguf" else (heads, rows // heads // 2, 2)
    return np.arange(rows).reshape(shape).swapaxes(1, 2).reshape(-1)


def reorder(role: str, tensor: AnyTensor, config: ModelConfig, direction: Direction) -> AnyTensor:
    """The tensor with its rows in the other order where `role` is a query's or a key's, else as it is."""
    heads = _heads(role, config)
    if heads is None:
        return tensor
    size = tensor.shape[0]
    order = row_order(size, heads, direction)
    if isinstance(tensor, EncodedTensor):
        return attrs.evolve(tensor, read_parts=_parts_reader(tensor, order))
    if len(tensor.shape) == 1:
        read = tensor.read_rows
        return attrs.evolve(tensor, read_rows=lambda start, stop: read(start, stop)[:, order])
    return attrs.evolve(tensor, read_rows=_rows_reader(tensor.read_rows, order))


def _heads(role: str, config: ModelConfig) -> int | None:
    if role.endswith(("attn_q.weight", "attn_q.bias")):
        return config.heads
    if role.endswith(("attn_k.weight", "attn_k.bias")):
        return config.kv_heads
    return None


def _rows_reader(read: Callable[[int, int], Array], order: _Order) -> Callable[[int, int], Array]:
    def rows(start: int, stop: int) -> Array:
        places, first, last = _span(order, start, stop)
        return read(first, last)[places]

    return rows


def _parts_reader(tensor: EncodedTensor, order: _Order) -> Callable[[int, int], Mapping[str, Array]]:
    def parts(start: int, stop: int) -> Mapping[str, Array]:
        places, first, last = _span(order, start, stop)
        return {name: part[places] for name, part in tensor.read_parts(first, last).items()}

    return parts


def _span(order: _Order, start: int, stop: int) -> tuple[_Order, int, int]:
    """Which of the source's rows ``first:last`` to take: rows never leave their head, so this is not much more."""
    places = order[start:stop]
    if not len(places):
        return places, 0, 0
    first = int(places.min())
    return places - first, first, int(places.max()) + 1


__all__ = ["Direction", "reorder", "row_order"]
