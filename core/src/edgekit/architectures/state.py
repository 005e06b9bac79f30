"""What a forward pass remembers of the tokens that it has seen: keys and values, and the states of other mixers."""

from __future__ import annotations

import attrs
import numpy as np

from edgekit.typing import F32, Ints


@attrs.define(eq=False)
class KVCache:
    """What was computed for the tokens seen so far; starts empty, grows with each `Transformer.step`.

    Attributes:
        tokens: what was seen, [batch, length].
        layers: for each layer with attention keys (rotated) and values, float32 [batch, kv_heads, length, head_dim].
        states: for each layer that remembers in another way its states, float32 [batch, ...] by name: the last inputs
            of a convolution, the state of a recurrence. They do not grow.
    """

    tokens: Ints | None = None
    layers: dict[int, tuple[F32, F32]] = attrs.field(factory=dict, repr=False)
    states: dict[tuple[int, str], F32] = attrs.field(factory=dict, repr=False)

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

    def forget(self) -> None:
        """Start from nothing."""
        self.tokens = None
        self.layers.clear()
        self.states.clear()


__all__ = ["KVCache"]
