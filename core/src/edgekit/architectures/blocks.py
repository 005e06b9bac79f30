"""A model as a list of blocks: embeddings, blocks, head. What a family makes of a configuration."""

from __future__ import annotations

from collections.abc import Iterator

import attrs

from edgekit.architectures.mixers import Mixer, Shape, matrix
from edgekit.architectures.ops import Call, Ops, Recorder, V
from edgekit.errors import UnsupportedModelError


@attrs.frozen
class Block:
    """A token mixer and a channel mixer, each added to what comes in: ``x + residual * post(mixer(norm(x)))``.

    With `norms_sums` the second norm is of the sum: ``post(x + residual * mixer(norm(x)))`` (BERT).

    Attributes:
        tokens: the token mixer; None in a layer without one.
        channels: the channel mixer; None in a layer without one.
        eps: epsilon of the norms.
        tokens_norm, tokens_post_norm: RMSNorms before and after the token mixer, by name; None without.
        channels_norm, channels_post_norm: the channel mixer's.
        residual: multiplies what each mixer gives.
        layer_norm: whether the norms are LayerNorms with a bias instead of RMSNorms.
        norms_sums: whether the norm after a mixer is of the sum.
    """

    tokens: Mixer | None
    channels: Mixer | None
    eps: float
    tokens_norm: str | None = "attn_norm"
    tokens_post_norm: str | None = None
    channels_norm: str | None = "ffn_norm"
    channels_post_norm: str | None = None
    residual: float = 1.0
    layer_norm: bool = False
    norms_sums: bool = False

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
                yield from norm_shapes(before, width, self.layer_norm)
            yield from mixer.shapes(width)
            if after is not None:
                yield from norm_shapes(after, width, self.layer_norm)

    def forward(self, ops: Ops[V], layer: int, x: V) -> V:
        """States [batch, n, width] after the block."""
        for mixer, before, after in self.halves:
            mixed = mixer.forward(ops, layer, self._norm(ops, layer, before, x))
            if not self.norms_sums:
                mixed = self._norm(ops, layer, after, mixed)
            x = ops.add(x, mixed if self.residual == 1 else ops.scale(mixed, self.residual))
            if self.norms_sums:
                x = self._norm(ops, layer, after, x)
        return x

    def _norm(self, ops: Ops[V], layer: int, name: str | None, x: V) -> V:
        return x if name is None else norm(ops, x, self.eps, f"blk.{layer}.{name}", self.layer_norm)


def norm_shapes(name: str, width: int, layer_norm: bool) -> Iterator[tuple[str, Shape]]:
    """The tensors of an RMSNorm, or of a LayerNorm."""
    yield f"{name}.weight", (width,)
    if layer_norm:
        yield f"{name}.bias", (width,)


def norm(ops: Ops[V], x: V, eps: float, name: str, layer_norm: bool) -> V:
    """An RMSNorm, or a LayerNorm; `name` is without ``.weight``."""
    return ops.layer_norm(x, eps, name) if layer_norm else ops.rms_norm(x, eps, f"{name}.weight")


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
        layer_norm: whether it is a LayerNorm with a bias.
        output_bias: whether the output matrix has a bias.
        predicts: whether it predicts next tokens; an encoder does not, and has states alone.
        alone: whether a block needs nothing but the states before it, so that blocks may be computed one by one.
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
    layer_norm: bool = False
    output_bias: bool = False
    predicts: bool = True
    alone: bool = True

    def shapes(self) -> Iterator[tuple[str, Shape]]:
        """Name and shape of every tensor, in the order in which the forward pass meets them."""
        yield "token_embd.weight", (self.vocab, self.width)
        for layer, block in enumerate(self.blocks):
            for name, shape in block.shapes(self.width):
                yield f"blk.{layer}.{name}", shape
        yield from norm_shapes(self.norm, self.width, self.layer_norm)
        if not self.tied:
            yield from matrix("output", (self.vocab, self.width), self.output_bias)

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
        return norm(ops, x, self.eps, self.norm, self.layer_norm)

    def logits(self, ops: Ops[V], states: V) -> V:
        """The scores [batch, n, vocab] of every next token.

        Raises:
            UnsupportedModelError: the model is an encoder.
        """
        if not self.predicts:
            raise UnsupportedModelError(NO_PREDICTION)
        logits = ops.product("token_embd" if self.tied else "output", states)
        if self.logits_scale != 1:
            logits = ops.scale(logits, self.logits_scale)
        return logits if self.softcap is None else ops.softcap(logits, self.softcap)


@attrs.frozen
class Encoder(Network):
    """An encoder with embeddings of positions and of a text's type, and a LayerNorm after them (BERT).

    Attributes:
        positions: rows of ``position_embd``.
        types: rows of ``token_types``; every token is of type 0.
    """

    positions: int = 0
    types: int = 1
    norm: str = "token_embd_norm"
    layer_norm: bool = True
    predicts: bool = False

    def shapes(self) -> Iterator[tuple[str, Shape]]:
        """See `Network.shapes`."""
        yield "token_embd.weight", (self.vocab, self.width)
        yield "position_embd.weight", (self.positions, self.width)
        yield "token_types.weight", (self.types, self.width)
        yield from norm_shapes(self.norm, self.width, self.layer_norm)
        for layer, block in enumerate(self.blocks):
            for name, shape in block.shapes(self.width):
                yield f"blk.{layer}.{name}", shape

    def embedded(self, ops: Ops[V]) -> V:
        """See `Network.embedded`."""
        x = ops.add(ops.embed("token_embd"), ops.embed_positions("position_embd"))
        return norm(ops, ops.add(x, ops.row("token_types", 0)), self.eps, self.norm, self.layer_norm)

    def normalized(self, ops: Ops[V], x: V) -> V:
        """The states themselves: each block ends with a norm."""
        return x


#: Why an encoder has no logits.
NO_PREDICTION = "the model is an encoder: it makes embeddings of texts, and predicts no next tokens; use embed"
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
    states = network.states(recorder)
    if network.predicts:
        network.logits(recorder, states)
    return recorder.calls


__all__ = ["NO_PREDICTION", "OUTSIDE", "Block", "Encoder", "Network", "calls", "norm", "norm_shapes"]
