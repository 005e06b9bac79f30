"""What a mixer is: a record that names its tensors and computes with them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Protocol

from edgekit.architectures.ops import Ops, V

Shape = tuple[int, ...]


class Mixer(Protocol):
    """Half of a block: a token mixer (attention …) or a channel mixer (feed-forward, experts …).

    A frozen record: its attributes say everything that the forward pass and the tensors' shapes depend on.
    """

    #: What messages call it.
    name: ClassVar[str]

    def shapes(self, width: int) -> Iterator[tuple[str, Shape]]:
        """Name (without ``blk.N.``) and shape of each tensor, in the order in which they are met; [out, in]."""
        ...

    def forward(self, ops: Ops[V], layer: int, x: V) -> V:
        """Mix normalized states [batch, n, width]; the block adds the result to what came in."""
        ...


def matrix(name: str, shape: Shape, bias: bool = False) -> Iterator[tuple[str, Shape]]:
    """A weight matrix [..., out, in], and its bias [..., out] if it has one."""
    yield f"{name}.weight", shape
    if bias:
        yield f"{name}.bias", shape[:-1]
