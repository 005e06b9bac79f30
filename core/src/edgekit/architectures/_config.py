"""Hyper-parameters of a decoder-only transformer, the same for every family and every file format."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import attrs

from edgekit.tensor import AnyTensor


@attrs.frozen
class RopeScaling:
    """How rotary frequencies are stretched for long contexts.

    Attributes:
        kind: ``linear``, ``llama3``, ``longrope`` or ``yarn``.
        factor: stretch; positions are divided by it (linear), or frequencies blended (llama3).
        low_freq_factor, high_freq_factor: the blend's borders (llama3).
        original_context: context length in training.
        attention_factor: multiplies queries and keys after rotation (longrope, yarn); 1 where absent.
        long_factors, short_factors: a divisor for each frequency (longrope).
        beta_fast, beta_slow: the ramp's borders (yarn).
    """

    kind: Literal["linear", "llama3", "longrope", "yarn"]
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_context: int = 0
    attention_factor: float = 1.0
    long_factors: tuple[float, ...] = ()
    short_factors: tuple[float, ...] = ()
    beta_fast: float = 32.0
    beta_slow: float = 1.0


@attrs.frozen
class ModelConfig:
    """Everything the forward pass has to know besides the weights.

    Attributes:
        family: one of `FAMILIES` (``llama``, ``mistral``, ``qwen2``, ``qwen3``, ``phi3``, ``gemma``, ``gemma2``, ``gemma3``).
        layers, width, heads, kv_heads, head_dim, ffn, vocab, context: sizes.
        norm_eps: epsilon of RMSNorm.
        rope_theta: base of the rotary frequencies; `rope_theta_local` that of sliding-window layers (Gemma 3).
        rotary_dim: how many of head_dim's elements rotate.
        rope_scaling: None for plain rotary embeddings.
        activation: of the gated feed-forward: ``silu`` (SwiGLU) or ``gelu_tanh`` (GeGLU).
        tied: whether the embedding doubles as the output matrix.
        sliding_window: in tokens; None for full attention.
        full_attention_every: with a sliding window, every n-th layer (n, 2n, …, counted from 1) attends to all;
            0: every layer has the window.
        attention_scale: multiplies q·k; 1/sqrt(head_dim) in most families.
        attention_softcap, output_softcap: ``cap * tanh(x / cap)`` on attention scores and on logits; None without.
        embedding_scale: multiplies the embeddings (Gemma: sqrt(width)).
        name: the model's own name, where it has one.
    """

    family: str
    layers: int
    width: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    vocab: int
    context: int
    norm_eps: float
    rope_theta: float
    attention_scale: float
    rotary_dim: int
    activation: Literal["silu", "gelu_tanh"] = "silu"
    tied: bool = False
    rope_scaling: RopeScaling | None = None
    rope_theta_local: float | None = None
    sliding_window: int | None = None
    full_attention_every: int = 0
    attention_softcap: float | None = None
    output_softcap: float | None = None
    embedding_scale: float = 1.0
    name: str = ""


@attrs.frozen(eq=False)
class Model:
    """The family-neutral view of an artifact: hyper-parameters, and tensors by their canonical names."""

    config: ModelConfig
    tensors: Mapping[str, AnyTensor] = attrs.field(repr=False)


@attrs.frozen
class Family:
    """A model family.

    Attributes:
        name: edgekit's name, which is also GGUF's ``general.architecture`` unless `gguf` says otherwise.
        model_types: ``model_type`` in a Hugging Face config.json.
        gguf: GGUF's architecture name (Mistral files say ``llama``).
        rope_interleaved: whether GGUF files hold Q and K rows permuted so that rotary pairs are neighbours.
        norm_offset: added to Hugging Face norm weights to make them canonical (Gemma: 1).
    """

    name: str
    model_types: tuple[str, ...]
    gguf: str
    rope_interleaved: bool = False
    norm_offset: float = 0.0


FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        Family("llama", ("llama",), "llama", rope_interleaved=True),
        Family("mistral", ("mistral",), "llama", rope_interleaved=True),
        Family("qwen2", ("qwen2",), "qwen2"),
        Family("qwen3", ("qwen3",), "qwen3"),
        Family("phi3", ("phi3",), "phi3"),
        Family("gemma", ("gemma",), "gemma", norm_offset=1.0),
        Family("gemma2", ("gemma2",), "gemma2", norm_offset=1.0),
        Family("gemma3", ("gemma3_text", "gemma3"), "gemma3", norm_offset=1.0),
    )
}
