"""EmbeddingGemma: Gemma 3 that attends to both sides."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs

from edgekit.architectures._config import ModelConfig
from edgekit.architectures._family import Gguf, Setting
from edgekit.architectures._section import Fields, Section
from edgekit.architectures.families.gemma3 import Gemma3
from edgekit.errors import UnsupportedModelError
from edgekit.tensor import AnyTensor

_WINDOW, _LOCAL_THETA = "attention.sliding_window", "rope.freq_base_swa"


class EmbeddingGemma(Gemma3):
    """EmbeddingGemma. Files give the width of a window to both sides together; ``sliding_window`` is one side's."""

    name = "embedding_gemma"
    model_types = ("gemma3_text",)
    hf_class = "Gemma3TextModel"
    apart = "Gemma 3 that attends to both sides, for embeddings of texts"
    gguf = Gguf(
        "gemma-embedding",
        gelu=True,
        untied=False,
        biases=False,
        window_period=6,
        local_theta=10_000.0,
        dense=True,
    )
    nested = False
    causal = False

    def hf_fits(self, config: Mapping[str, Any]) -> bool:
        """Where attention reaches to both sides."""
        return bool(config.get("use_bidirectional_attention"))

    def windows_from_hf(self, c: Section) -> Fields:
        """Half of the window, and the query's own position."""
        read = super().windows_from_hf(c)
        return read | ({"sliding_window": _side(read["sliding_window"])} if read else {})

    def windows_to_hf(self, config: ModelConfig) -> Fields:
        """Both sides together."""
        written = super().windows_to_hf(config)
        return written | {"sliding_window": _both(config.sliding_window or 1), "use_bidirectional_attention": True}

    def gguf_metadata(self, config: ModelConfig) -> Mapping[str, Setting]:
        """Both sides together; llama.cpp ends the process where all layers are of one kind."""
        windows = {config.window(layer) for layer in range(config.layers)}
        if len(windows) == 1:
            lacking = "a window" if windows == {None} else "full attention"
            raise UnsupportedModelError(
                f"no layer of the model has {lacking}, and llama.cpp runs no such gemma-embedding files; choose "
                "another format"
            )
        return {**super().gguf_metadata(config), _WINDOW: _both(config.sliding_window or 1)}

    def gguf_config(self, config: ModelConfig, keys: Section, tensors: Mapping[str, AnyTensor]) -> ModelConfig:
        """One side of the window; without a key layers with a window rotate as the others do."""
        window = None if config.sliding_window is None else _side(config.sliding_window)
        local = config.rope_theta_local if _LOCAL_THETA in keys.values else config.rope_theta
        read = attrs.evolve(config, sliding_window=window, rope_theta_local=local, causal=False, tied=True)
        return super().gguf_config(read, keys, tensors)


def _side(window: int) -> int:
    """Positions that a query sees to one side, its own included."""
    return window // 2 + 1


def _both(side: int) -> int:
    return 2 * (side - 1)


__all__ = ["EmbeddingGemma"]
