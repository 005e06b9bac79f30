"""A model as a list of blocks: embeddings, blocks, head. What a family makes of a configuration."""

from __future__ import annotations

from collections.abc import Iterator

import attrs

from edgekit.architectures.mixers import Mixer, Shape
from edgekit.architectures.ops import Call, Ops, Recorder, V


@attrs.frozen
class Block:
    """A token mixer and a channel mixer, each added to what comes in: ``x + residual * post(mixer(norm(x)))``.

    Attributes:
        tokens: the token mixer; None in a layer without one.
        channels: the channel mixer; None in a layer without one.
        eps: epsilon of the norms.
        tokens_norm, tokens_post_norm: RMSNorms before and after the token mixer, by name; None without.
        channels_norm, channels_post_norm: the channel mixer's.
        residual: multiplies what each mixer gives.
    """

    tokens: Mixer | None
    channels: Mixer | None
    eps: float
    tokens_norm: str | None = "attn_norm"
    tokens_post_norm: str | None = None
    channels_norm: str | None = "ffn_norm"
    channels_post_norm: str | None = None
    residual: float = 1.0

    @property
    def halves(self) -> list[tuple[Mixer, str | None, str | None]]:
        """The mixers with the names of the norms before and after them."""
        halves = [
            (self.tokens, self.tokens_norm, self.tokens_post_norm),
            (self.channels, self.channels_norm, self.channels_post_norm),
        ]
        return [(mixer, before, after) for mixer, before, after in halves if mixer is not None]

    def shapes(self, width: int) -> Iterator[tuple[str, Shape]]:
        """Name (without ``blk.N.``) and shape of every tensor."""
        for mixer, before, after in self.halves:
            if before is not None:
                yield f"{before}.weight", (width,)
            yield from mixer.shapes(width)
            if after is not None:
                yield f"{after}.weight", (width,)

    def forward(self, ops: Ops[V], layer: int, x: V) -> V:
        """States [batch, n, width] after the block."""
        for mixer, before, after in self.halves:
            mixed = mixer.forward(ops, layer, self._norm(ops, layer, before, x))
            mixed = self._norm(ops, layer, after, mixed)
            x = ops.add(x, mixed if self.residual == 1 else ops.scale(mixed, self.residual))
        return x

    def _norm(self, ops: Ops[V], layer: int, name: str | None, x: V) -> V:
        return x if name is None else ops.rms_norm(x, self.eps, f"blk.{layer}.{name}.weight")


@attrs.frozen
class Network:
    """A decoder.

    Attributes:
        vocab, width: sizes of the embedding.
        blocks: one a layer.
        eps: epsilon of the last norm.
        tied: whether the embedding doubles as the output matrix.
        embedding_scale: multiplies the embeddings.
        logits_scale: multiplies the logits.
        softcap: soft cap of the logits, or None.
        norm: the last norm's name.
    """

    vocab: int
    width: int
    blocks: tuple[Block, ...]
    eps: float
    tied: bool
    embedding_scale: float = 1.0
    logits_scale: float = 1.0
    softcap: float | None = None
    norm: str = "output_norm"

    def shapes(self) -> Iterator[tuple[str, Shape]]:
        """Name and shape of every tensor, in the order in which the forward pass meets them."""
        yield "token_embd.weight", (self.vocab, self.width)
        for layer, block in enumerate(self.blocks):
            for name, shape in block.shapes(self.width):
                yield f"blk.{layer}.{name}", shape
        yield f"{self.norm}.weight", (self.width,)
        if not self.tied:
            yield "output.weight", (self.vocab, self.width)

    def states(self, ops: Ops[V]) -> V:
        """The normalized states [batch, n, width] of the new tokens."""
        x = self.embedded(ops)
        for layer, block in enumerate(self.blocks):
            x = block.forward(ops, layer, x)
        return self.normalized(ops, x)

    def embedded(self, ops: Ops[V]) -> V:
        """The states before the first block."""
        x = ops.embed("token_embd")
        return x if self.embedding_scale == 1 else ops.scale(x, self.embedding_scale)

    def normalized(self, ops: Ops[V], x: V) -> V:
        """The states after the last block as `logits` takes them."""
        return ops.rms_norm(x, self.eps, f"{self.norm}.weight")

    def logits(self, ops: Ops[V], states: V) -> V:
        """The scores [batch, n, vocab] of every next token."""
        logits = ops.product("token_embd" if self.tied else "output", states)
        if self.logits_scale != 1:
            logits = ops.scale(logits, self.logits_scale)
        return logits if self.softcap is None else ops.softcap(logits, self.softcap)


#: What messages call the part of a model that is no mixer.
OUTSIDE = "embeddings and head"


def calls(network: Network) -> list[Call]:
    """Every operation that a model's forward pass uses, the mixers' first; computes nothing."""
    recorder = Recorder()
    for layer, block in enumerate(network.blocks):
        for mixer, _, _ in block.halves:
            recorder.mixer = mixer.name
            mixer.forward(recorder, layer, object())
    recorder.mixer = OUTSIDE
    network.logits(recorder, network.states(recorder))
    return recorder.calls


__all__ = ["OUTSIDE", "Block", "Network", "calls"]
