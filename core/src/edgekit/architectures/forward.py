"""The forward pass of every family, in numpy and float32.

What differs between families is in `ModelConfig` and in the names of the tensors that are there: a fused
``attn_qkv``, biases, norms of queries and keys, norms after attention and feed-forward. Results agree with
transformers (float32, eager attention) within 1e-4 of the largest logit; see docs/reference/architectures.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import attrs
import numpy as np
import numpy.typing as npt

from edgekit.architectures._config import Model, ModelConfig
from edgekit.architectures.rope import Rotation, rotation, turns_change
from edgekit.errors import NonFiniteError, UsageError
from edgekit.typing import F32, Bools, Ints

#: Called with the canonical name of a weight matrix and its input, float32 [tokens, in], before each product.
Observe = Callable[[str, F32], None]

#: Models that take no more than this in float32 are kept decoded, unless the caller decides.
CACHE_LIMIT = 2 << 30
#: Weights that are decoded at once where they are not kept: 64 MiB of float32.
_CHUNK = 1 << 24
#: Queries that attend at once; the scores of one block are heads x this x keys.
_QUERIES = 128
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
        raise UsageError(
            f"tokens lie between {ids.min()} and {ids.max()}, the vocabulary has 0 to {vocab - 1}; "
            "use the model's own tokenizer"
        )
    return ids


@attrs.define(eq=False)
class KVCache:
    """Keys and values of the tokens seen so far; starts empty, grows with each `Transformer.step`.

    Attributes:
        tokens: what was seen, [batch, length].
        layers: for each layer keys (rotated) and values, float32 [batch, kv_heads, length, head_dim].
    """

    tokens: Ints | None = None
    layers: dict[int, tuple[F32, F32]] = attrs.field(factory=dict, repr=False)

    @property
    def length(self) -> int:
        """How many tokens of each sequence were seen."""
        return 0 if self.tokens is None else self.tokens.shape[1]

    def extend(self, layer: int, keys: F32, values: F32) -> tuple[F32, F32]:
        """Append a layer's keys and values, and return all of them."""
        if layer in self.layers:
            old_keys, old_values = self.layers[layer]
            keys = np.concatenate([old_keys, keys], axis=2)
            values = np.concatenate([old_values, values], axis=2)
        self.layers[layer] = keys, values
        return keys, values


@attrs.frozen(eq=False)
class Transformer:
    """A model that computes.

    Attributes:
        model: hyper-parameters and tensors, of an artifact of any format.
        cache: whether decoded weights are kept in memory; None keeps them where all of them together take less
            than `CACHE_LIMIT` bytes in float32. Without, each pass reads them anew, a piece at a time.
        observe: called with the input of every matrix product.
        halves: whether each product with a weight matrix is summed in two halves: the same values but for float32's
            rounding, which shows how much of a difference between two models is rounding alone (`in_halves`).

    Example:
        >>> Transformer(artifact.model).logits(np.array([1, 15043, 3186]))  # doctest: +SKIP
    """

    model: Model
    cache: bool | None = None
    observe: Observe | None = None
    halves: bool = False
    _kept: dict[str, F32] = attrs.field(factory=dict, init=False, repr=False)
    _keep: bool = attrs.field(init=False, repr=False)

    @_keep.default
    def _default_keep(self) -> bool:
        if self.cache is not None:
            return self.cache
        return 4 * sum(tensor.size for tensor in self.model.tensors.values()) <= CACHE_LIMIT

    @property
    def config(self) -> ModelConfig:
        """The model's hyper-parameters."""
        return self.model.config

    def in_halves(self) -> Transformer:
        """The same model with another order of summation (see `halves`); it shares the weights decoded so far."""
        other = attrs.evolve(self, halves=True, observe=None)
        other._kept.update(self._kept)
        return other

    def logits(self, tokens: npt.ArrayLike) -> F32:
        """The scores of every next token.

        Args:
            tokens: ids, integers [n] or [batch, n]; no padding.

        Returns:
            float32 [n, vocab] or [batch, n, vocab].

        Raises:
            UsageError: no tokens, not integers, or ids outside the vocabulary.
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
        logits = self._product("token_embd" if self.config.tied else "output", hidden)
        return logits if self.config.output_softcap is None else softcap(logits, self.config.output_softcap)

    @_quiet
    def embedded(self, tokens: Ints) -> F32:
        """The states before the first layer, float32 [batch, n, width], of token ids [batch, n]."""
        return self._embed(token_ids(tokens, self.config.vocab))

    @_quiet
    def layer(self, index: int, states: F32) -> F32:
        """The states after one layer, of whole sequences: for those who go through a model layer by layer.

        A weight is read after `observe` was called with its input: whoever observes may replace it just before.
        `normalized` of the last layer's states is what `hidden` returns.

        Args:
            index: of the layer, from 0.
            states: float32 [batch, n, width], from `embedded` or from the layer before.
        """
        turn = rotation(self.config, 0, states.shape[1], self.config.window(index) is not None)
        return self._block(index, states, turn, KVCache())

    @_quiet
    def normalized(self, states: F32) -> F32:
        """The states after the last layer as `project` takes them."""
        return self._norm("output_norm", states)

    @_quiet
    def step(self, tokens: npt.ArrayLike, past: KVCache) -> F32:
        """Go on with a sequence: logits after the last of the new tokens.

        Args:
            tokens: the new ids, [n] or [batch, n].
            past: what was seen before; the new tokens are added to it.

        Returns:
            float32 [vocab] or [batch, vocab].

        Raises:
            UsageError: as `logits`.
            NonFiniteError: broken weights; there is no next token to choose from such scores.
        """
        ids = token_ids(tokens, self.config.vocab)
        new = np.atleast_2d(ids)
        if turns_change(self.config, past.length, past.length + new.shape[1]):  # everything is redone
            assert past.tokens is not None
            new = np.concatenate([past.tokens, new], axis=1)
            past.tokens = None
            past.layers.clear()
        logits = self.project(self._states(new, past)[:, -1])
        if not np.isfinite(logits).all():
            raise NonFiniteError(
                "the model computes values that are not finite; look for broken weights with `edgekit compare`, "
                "or choose a precision that keeps more"
            )
        return logits.reshape(*ids.shape[:-1], -1)

    def _states(self, tokens: Ints, past: KVCache) -> F32:
        start, stop = past.length, past.length + tokens.shape[1]
        turns = {sliding: rotation(self.config, start, stop, sliding) for sliding in (False, True)}
        x = self._embed(tokens)
        for layer in range(self.config.layers):
            x = self._block(layer, x, turns[self.config.window(layer) is not None], past)
        past.tokens = tokens if past.tokens is None else np.concatenate([past.tokens, tokens], axis=1)
        return self._norm("output_norm", x)

    def _embed(self, tokens: Ints) -> F32:
        if self._keep:
            rows = self._weight("token_embd.weight")[tokens]
        else:
            tensor = self.model.tensors["token_embd.weight"]
            ids, places = np.unique(tokens, return_inverse=True)
            rows = np.concatenate([tensor.float32(i, i + 1) for i in ids])[places.reshape(tokens.shape)]
        return rows * np.float32(self.config.embedding_scale)

    def _block(self, layer: int, x: F32, turn: Rotation, past: KVCache) -> F32:
        block = f"blk.{layer}."
        attended = self._attention(layer, self._norm(f"{block}attn_norm", x), turn, past)
        x = x + self._optional_norm(f"{block}post_attention_norm", attended)
        fed = self._feed_forward(block, self._norm(f"{block}ffn_norm", x))
        return x + self._optional_norm(f"{block}post_ffw_norm", fed)

    def _attention(self, layer: int, x: F32, turn: Rotation, past: KVCache) -> F32:
        block, c = f"blk.{layer}.", self.config
        queries, keys, values = self._queries_keys_values(block, x)
        queries = turn(self._optional_norm(f"{block}attn_q_norm", queries))
        keys = turn(self._optional_norm(f"{block}attn_k_norm", keys))
        keys, values = past.extend(layer, keys, values)
        attended = attend(queries, keys, values, c.attention_scale, c.attention_softcap, c.window(layer))
        return self._product(f"{block}attn_output", attended)

    def _queries_keys_values(self, block: str, x: F32) -> list[F32]:
        c = self.config
        if f"{block}attn_qkv.weight" in self.model.tensors:
            borders = [c.heads * c.head_dim, (c.heads + c.kv_heads) * c.head_dim]
            split = np.split(self._product(f"{block}attn_qkv", x), borders, axis=-1)
        else:
            split = [self._product(f"{block}{name}", x) for name in ("attn_q", "attn_k", "attn_v")]
        return [states.reshape(*x.shape[:2], -1, c.head_dim).swapaxes(1, 2) for states in split]

    def _feed_forward(self, block: str, x: F32) -> F32:
        if f"{block}ffn_gate.weight" in self.model.tensors:
            gate, up = self._product(f"{block}ffn_gate", x), self._product(f"{block}ffn_up", x)
        else:
            gate, up = np.split(self._product(f"{block}ffn_up", x), 2, axis=-1)
        activate = silu if self.config.activation == "silu" else gelu_tanh
        return self._product(f"{block}ffn_down", activate(gate) * up)

    def _norm(self, name: str, x: F32) -> F32:
        return rms_norm(x, self.config.norm_eps) * self._weight(f"{name}.weight")

    def _optional_norm(self, name: str, x: F32) -> F32:
        return self._norm(name, x) if f"{name}.weight" in self.model.tensors else x

    def _product(self, name: str, x: F32) -> F32:
        """``x @ weight.T + bias``: [..., in] to [..., out]."""
        rows = x.reshape(-1, x.shape[-1])
        if self.observe is not None:
            self.observe(f"{name}.weight", rows)
        out = np.concatenate([self._times(rows, piece) for piece in self._pieces(f"{name}.weight")], axis=-1)
        if f"{name}.bias" in self.model.tensors:
            out += self._weight(f"{name}.bias")
        return out.reshape(*x.shape[:-1], -1)

    def _times(self, rows: F32, piece: F32) -> F32:
        """``rows @ piece.T`` in one of the two orders of summation."""
        if not self.halves:
            return rows @ piece.T
        half = rows.shape[1] // 2
        return rows[:, :half] @ piece[:, :half].T + rows[:, half:] @ piece[:, half:].T

    def _pieces(self, name: str) -> Iterator[F32]:
        """A weight matrix in float32: whole where it is kept, else some rows at a time."""
        if self._keep:
            yield self._weight(name)
            return
        tensor = self.model.tensors[name]
        step = max(1, _CHUNK // tensor.shape[-1])
        for start in range(0, tensor.rows, step):
            yield tensor.float32(start, min(start + step, tensor.rows))

    def _weight(self, name: str) -> F32:
        """A whole tensor in float32 [rows, cols]; a vector is one row."""
        if name in self._kept:
            return self._kept[name]
        values = self.model.tensors[name].float32()
        if self._keep:
            self._kept[name] = values
        return values


def attend(queries: F32, keys: F32, values: F32, scale: float, cap: float | None, window: int | None) -> F32:
    """Causal attention with grouped queries.

    Args:
        queries: [batch, heads, n, head_dim], of the last n positions.
        keys: [batch, kv_heads, m, head_dim], of all m positions; each serves heads / kv_heads queries.
        values: as `keys`.
        scale: multiplies the scores.
        cap: soft cap of the scores, or None.
        window: how many positions back a query sees, its own included; None for all.

    Returns:
        float32 [batch, n, heads * head_dim].
    """
    batch, heads, n, head_dim = queries.shape
    grouped = queries.reshape(batch, keys.shape[1], -1, n, head_dim)
    offset = keys.shape[2] - n
    attended = []
    for start in range(0, n, _QUERIES):
        block = grouped[..., start : start + _QUERIES, :]
        stop = offset + start + block.shape[-2]
        first = 0 if window is None else max(0, offset + start - window + 1)
        seen = visible(offset + start, stop, first, window)
        scores = _scores(block, keys[:, :, first:stop], scale, cap)
        np.copyto(scores, -np.inf, where=~seen)
        attended.append(_mix(scores, values[:, :, first:stop]))
    joined = np.concatenate(attended, axis=-2).reshape(batch, heads, n, head_dim)
    return joined.swapaxes(1, 2).reshape(batch, n, -1)


def _scores(queries: F32, keys: F32, scale: float, cap: float | None) -> F32:
    """Of grouped queries [batch, kv_heads, group, n, head_dim] with keys: [batch, kv_heads, group, n, m]."""
    # The queries of a group are rows of one product: few large ones suit BLAS better than many small ones.
    rows: F32 = queries.reshape(*queries.shape[:2], -1, queries.shape[-1]) * np.float32(scale)
    scores: F32 = (rows @ keys.swapaxes(-1, -2)).reshape(*queries.shape[:-1], -1)
    return scores if cap is None else softcap(scores, cap)


def _mix(scores: F32, values: F32) -> F32:
    """``softmax(scores) @ values``, overwriting the scores and dividing last, where there is least to divide."""
    scores -= scores.max(axis=-1, keepdims=True)
    weights: F32 = np.exp(scores, out=scores)
    rows = weights.reshape(*scores.shape[:2], -1, scores.shape[-1])
    mixed: F32 = (rows @ values).reshape(*scores.shape[:-1], -1)
    mixed /= weights.sum(axis=-1, keepdims=True)
    return mixed


def visible(start: int, stop: int, first: int, window: int | None) -> Bools:
    """Whether queries at ``start:stop`` see keys at ``first:stop``: [stop - start, stop - first]."""
    back = np.arange(start, stop)[:, None] - np.arange(first, stop)
    return (back >= 0) & (back < (stop if window is None else window))


def rms_norm(x: F32, eps: float) -> F32:
    """Divide by the root of the mean square over the last dimension."""
    normalized: F32 = x / np.sqrt(np.mean(np.square(x), axis=-1, keepdims=True) + np.float32(eps))
    return normalized


def softcap(x: F32, cap: float) -> F32:
    """``cap * tanh(x / cap)``."""
    capped: F32 = np.float32(cap) * np.tanh(x / np.float32(cap))
    return capped


def silu(x: F32) -> F32:
    """Return ``x * sigmoid(x)``."""
    with np.errstate(over="ignore"):  # exp(-x) of a very negative x is infinite, and x / inf is the right -0
        activated: F32 = x / (1 + np.exp(-x))
    return activated


def gelu_tanh(x: F32) -> F32:
    """The tanh approximation of GELU."""
    inner = np.float32(math.sqrt(2 / math.pi)) * (x + np.float32(0.044715) * x**3)
    activated: F32 = np.float32(0.5) * x * (1 + np.tanh(inner))
    return activated


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
