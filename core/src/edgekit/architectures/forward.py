"""The forward pass of every family, in numpy and float32.

A family says which blocks a model is made of, and those compute with `edgekit.architectures.numpy_ops`. Results agree
with transformers (float32, eager attention) within 1e-4 of the largest logit; see docs/reference/architectures.md.
"""

from __future__ import annotations

import attrs
import numpy as np
import numpy.typing as npt

from edgekit.architectures._config import Model, ModelConfig
from edgekit.architectures._families import FAMILIES
from edgekit.architectures._numerics import attend, gelu_tanh, rms_norm, silu, softcap, visible
from edgekit.architectures._weights import Observe, Weights
from edgekit.architectures.blocks import NO_PREDICTION, Network
from edgekit.architectures.numpy_ops import NumpyOps
from edgekit.architectures.pooled import Pooled
from edgekit.architectures.rope import turns_change
from edgekit.architectures.state import KVCache
from edgekit.errors import NonFiniteError, UnsupportedModelError, UsageError
from edgekit.typing import F32, Ints

#: Models that take no more than this in float32 are kept decoded, unless the caller decides.
CACHE_LIMIT = 2 << 30
#: What overflows shows in the result, which whoever uses it refuses; no warning besides.
_quiet = np.errstate(over="ignore", invalid="ignore")


def token_ids(tokens: npt.ArrayLike, vocab: int) -> Ints:
    """Token ids [n] or [batch, n] as an array.

    Raises:
        UsageError: none, no integers, or ids outside a vocabulary of so many tokens.
    """
    ids = np.asarray(tokens)
    if ids.dtype.kind not in "iu" or ids.ndim not in (1, 2) or ids.size == 0:
        raise UsageError(f"tokens have to be integers [n] or [batch, n], at least one; got {ids.dtype} {ids.shape}")
    if ids.min() < 0 or ids.max() >= vocab:
        outside = (
            f"tokens lie between {ids.min()} and {ids.max()}, the vocabulary has 0 to {vocab - 1}; "
            "use the model's own tokenizer"
        )
        raise UsageError(outside, public=outside)
    return ids


@attrs.frozen(eq=False)
class Transformer:
    """A model that computes.

    Attributes:
        model: hyper-parameters and tensors, of an artifact of any format.
        cache: whether decoded weights are kept in memory; None keeps them where all of them together take less
            than `CACHE_LIMIT` bytes in float32. Without, each pass reads them anew, a piece at a time.
        observe: called with the input of every matrix product.
        network: the blocks that the family makes of the configuration.
        weights: the tensors in float32.
        halves: whether each product with a weight matrix is summed in two halves: the same values but for float32's
            rounding, which shows how much of a difference between two models is rounding alone (`in_halves`).

    Example:
        >>> Transformer(artifact.model).logits(np.array([1, 15043, 3186]))  # doctest: +SKIP
    """

    model: Model
    cache: bool | None = None
    observe: Observe | None = None
    halves: bool = False
    network: Network = attrs.field(init=False, repr=False)
    weights: Weights = attrs.field(init=False, repr=False)

    @network.default
    def _network(self) -> Network:
        return FAMILIES[self.config.family].network(self.config)

    @weights.default
    def _weights(self) -> Weights:
        keep = self.cache
        if keep is None:
            keep = 4 * sum(tensor.size for tensor in self.model.tensors.values()) <= CACHE_LIMIT
        return Weights(self.model.tensors, keep, self.observe, self.halves, {})

    @property
    def config(self) -> ModelConfig:
        """The model's hyper-parameters."""
        return self.model.config

    def in_halves(self) -> Transformer:
        """The same model with another order of summation (see `halves`); it shares the weights decoded so far."""
        other = attrs.evolve(self, halves=True, observe=None)
        other.weights.kept.update(self.weights.kept)
        return other

    def logits(self, tokens: npt.ArrayLike) -> F32:
        """The scores of every next token.

        Args:
            tokens: ids, integers [n] or [batch, n]; no padding.

        Returns:
            float32 [n, vocab] or [batch, n, vocab].

        Raises:
            UsageError: no tokens, not integers, or ids outside the vocabulary.
            UnsupportedModelError: the model is an encoder.
        """
        return self.project(self.hidden(tokens))

    @_quiet
    def hidden(self, tokens: npt.ArrayLike) -> F32:
        """The normalized states that `project` makes logits of: float32 [n, width] or [batch, n, width]."""
        ids = token_ids(tokens, self.config.vocab)
        states = self._states(np.atleast_2d(ids), KVCache())
        return states.reshape(*ids.shape, -1)

    @_quiet
    def project(self, hidden: F32) -> F32:
        """Logits, float32 [..., vocab], of hidden states [..., width]."""
        return self.network.logits(self._anew(hidden), hidden)

    def _anew(self, states: F32) -> NumpyOps:
        """The operations for states [..., n, width] of sequences that nothing came before."""
        return self.ops(np.zeros(states.shape[:-1], np.int64), KVCache())

    @_quiet
    def embedded(self, tokens: Ints) -> F32:
        """The states before the first layer, float32 [batch, n, width], of token ids [batch, n]."""
        return self.network.embedded(self.ops(token_ids(tokens, self.config.vocab), KVCache()))

    @_quiet
    def layer(self, index: int, states: F32) -> F32:
        """The states after one layer, of whole sequences: for those who go through a model layer by layer.

        A weight is read after `observe` was called with its input: whoever observes may replace it just before.
        `normalized` of the last layer's states is what `hidden` returns.

        Args:
            index: of the layer, from 0.
            states: float32 [batch, n, width], from `embedded` or from the layer before.

        Raises:
            UnsupportedModelError: layers use what others computed (Gemma 4's shared keys and per-layer embeddings).
        """
        if not self.network.alone:
            raise UnsupportedModelError(
                f"layers of a {self.config.family} model use what others computed, so that none can be computed alone; "
                "choose a method that runs the whole model"
            )
        return self.network.blocks[index].forward(self._anew(states), index, states)

    @_quiet
    def normalized(self, states: F32) -> F32:
        """The states after the last layer as `project` takes them."""
        return self.network.normalized(self._anew(states), states)

    @_quiet
    def embedding(self, tokens: npt.ArrayLike) -> F32:
        """The embedding of a text, float32 [dim], not yet of length 1, of token ids [n]: pooled states (`Pooled`)."""
        return self.pooled(self.hidden(tokens))

    @_quiet
    def pooled(self, states: F32) -> F32:
        """The embedding, float32 [dim], of a text with those normalized states [n, width]."""
        made: F32 = Pooled.of(self.config).forward(self._anew(states[None]), states[None])[0]
        return made

    @_quiet
    def step(self, tokens: npt.ArrayLike, past: KVCache) -> F32:
        """Go on with a sequence: logits after the last of the new tokens.

        Args:
            tokens: the new ids, [n] or [batch, n].
            past: what was seen before; the new tokens are added to it.

        Returns:
            float32 [vocab] or [batch, vocab].

        Raises:
            UsageError, UnsupportedModelError: as `logits`.
            NonFiniteError: broken weights; there is no next token to choose from such scores.
        """
        ids = token_ids(tokens, self.config.vocab)
        if not self.network.predicts:
            raise UnsupportedModelError(NO_PREDICTION)
        new = np.atleast_2d(ids)
        if turns_change(self.config, past.length, past.length + new.shape[1]):  # everything is redone
            assert past.tokens is not None
            new = np.concatenate([past.tokens, new], axis=1)
            past.forget()
        logits = self.project(self._states(new, past)[:, -1])
        if not np.isfinite(logits).all():
            raise NonFiniteError(
                "the model computes values that are not finite; look for broken weights with `edgekit compare`, "
                "or choose a precision that keeps more"
            )
        return logits.reshape(*ids.shape[:-1], -1)

    def _states(self, tokens: Ints, past: KVCache) -> F32:
        states = self.network.states(self.ops(tokens, past))
        past.tokens = tokens if past.tokens is None else np.concatenate([past.tokens, tokens], axis=1)
        return states

    def ops(self, tokens: Ints, past: KVCache) -> NumpyOps:
        """The operations of one step: new tokens [batch, n] after those in `past`, which it adds to."""
        return NumpyOps(self.weights, past, tokens)


__all__ = [
    "CACHE_LIMIT",
    "KVCache",
    "Observe",
    "Transformer",
    "attend",
    "gelu_tanh",
    "rms_norm",
    "silu",
    "softcap",
    "token_ids",
    "visible",
]
