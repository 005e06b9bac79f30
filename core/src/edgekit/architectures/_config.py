"""Hyper-parameters of a transformer, the same for every family and every file format."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, TypeVar, cast

import attrs

from edgekit.errors import InvalidFileError
from edgekit.tensor import AnyTensor

#: How the states of a text become one vector: their mean, the first one's (CLS), or the last one's.
Pooling = Literal["mean", "first", "last"]


@attrs.frozen
class RopeScaling:
    """How rotary frequencies are stretched for long contexts.

    Attributes:
        kind: ``linear``, ``dynamic``, ``llama3``, ``longrope`` or ``yarn``.
        factor: stretch; positions are divided by it (linear), frequencies blended (llama3, yarn), or the base
            grown with the sequence (dynamic).
        low_freq_factor, high_freq_factor: the blend's borders (llama3).
        original_context: context length in training (dynamic, llama3, longrope, yarn).
        attention_factor: multiplies queries and keys after rotation (longrope, yarn); 1 where absent.
        long_factors, short_factors: a divisor for each frequency (longrope), for sequences longer than
            `original_context` and for the others.
        beta_fast, beta_slow: the ramp's borders, in rotations over `original_context` (yarn).
        truncate: whether the ramp begins and ends at whole elements (yarn); gpt-oss's does not.
    """

    kind: Literal["linear", "dynamic", "llama3", "longrope", "yarn"]
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_context: int = 0
    attention_factor: float = 1.0
    long_factors: tuple[float, ...] = ()
    short_factors: tuple[float, ...] = ()
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True


def _plain(own: Mapping[str, object]) -> dict[str, object]:
    """A copy in which lists, as JSON has them, are tuples."""
    return {name: _frozen(value) for name, value in own.items()}


def _frozen(value: object) -> object:
    return tuple(map(_frozen, value)) if isinstance(value, list | tuple) else value


def integer_field(most: int, least: int = 0, **options: Any) -> Any:
    """A field for an integer of a family's own, checked when the record is made.

    Args:
        most: the largest value that is believed.
        least: the smallest.
        options: of `attrs.field`.
    """

    def check(record: object, field: attrs.Attribute[Any], value: object) -> None:
        if type(value) is not int or not least <= value <= most:
            raise InvalidFileError(
                f"{field.name} is {value!r:.40}, it has to be an integer between {least} and {most}; "
                "the file is damaged or hostile"
            )

    return attrs.field(validator=check, **options)


def number_field(most: float = 1e9, least: float = 0.0, **options: Any) -> Any:
    """As `integer_field`, for a number above `least` and up to `most`."""

    def check(record: object, field: attrs.Attribute[Any], value: object) -> None:
        if type(value) not in (int, float) or not least < cast(float, value) <= most:
            raise InvalidFileError(
                f"{field.name} is {value!r:.40}, it has to be a number above {least:g} and up to {most:g}; "
                "the file is damaged or hostile"
            )

    return attrs.field(validator=check, **options)


Own = TypeVar("Own")


def settings(kind: type[Own], config: ModelConfig) -> Own:
    """The hyper-parameters of a family's own as its record.

    Args:
        kind: the record, a frozen attrs class.
        config: of the model.

    Raises:
        InvalidFileError: one is missing or unknown, or has a value that no model can have.
    """
    fields = {field.name: field for field in attrs.fields(cast(Any, kind))}
    required = {name for name, field in fields.items() if field.default is attrs.NOTHING}
    wrong = sorted((config.own.keys() - fields.keys()) | (required - config.own.keys()))
    if wrong:
        raise InvalidFileError(
            f"a {config.family} model has the hyper-parameters {', '.join(fields)} of its own; "
            f"{', '.join(wrong)} is missing or unknown"
        )
    return kind(**config.own)


@attrs.frozen
class ModelConfig:
    """The hyper-parameters of the forward pass.

    Attributes:
        family: a key of `FAMILIES`.
        layers, width, heads, kv_heads, head_dim, ffn, vocab, context: sizes.
        norm_eps: epsilon of RMSNorm.
        rope_theta: base of the rotary frequencies; `rope_theta_local` that of sliding-window layers (Gemma 3),
            to which `rope_scaling` does not apply.
        rotary_dim: how many of head_dim's elements rotate.
        rope_scaling: None for plain rotary embeddings.
        activation: of the feed-forward: ``silu`` (SwiGLU), ``gelu_tanh`` (GeGLU) or ``gelu`` (BERT: by the error
            function).
        tied: whether the embedding doubles as the output matrix.
        qkv_bias, attn_output_bias, ffn_bias: whether Q, K and V, the attention's output, and the three matrices
            of the feed-forward have biases.
        sliding_window: in tokens, the query's own included; None for full attention.
        full_attention_every: with a sliding window, every n-th layer (n, 2n, …, counted from 1) attends to all;
            0: no such layer.
        full_attention_first: with a sliding window, how many layers at the start attend to all (Qwen 2 and 3).
        attention_scale: multiplies q·k; 1/sqrt(head_dim) in most families.
        attention_softcap, output_softcap: ``cap * tanh(x / cap)`` on attention scores and on logits; None without.
        embedding_scale: multiplies the embeddings (Gemma: sqrt(width)).
        causal: whether a token sees those before it alone; False for encoders, which predict no next token.
        pooling: how states become the embedding of a text, if the model's files say it (sentence-transformers).
        dense: of an embedding model the output widths of the matrices after the pooling, ``dense_2`` and on.
        name: the model's own name, where it has one.
        own: further hyper-parameters that only this family has, plain values by name: what kind each layer is, how many
            experts there are. The family knows them; everyone else stores them and hands them on.
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
    activation: Literal["silu", "gelu_tanh", "gelu"] = "silu"
    tied: bool = False
    qkv_bias: bool = False
    attn_output_bias: bool = False
    ffn_bias: bool = False
    rope_scaling: RopeScaling | None = None
    rope_theta_local: float | None = None
    sliding_window: int | None = None
    full_attention_every: int = 0
    full_attention_first: int = 0
    attention_softcap: float | None = None
    output_softcap: float | None = None
    embedding_scale: float = 1.0
    causal: bool = True
    pooling: Pooling | None = None
    dense: tuple[int, ...] = ()
    name: str = ""
    own: Mapping[str, object] = attrs.field(factory=dict, converter=_plain, hash=False)

    def window(self, layer: int) -> int | None:
        """The sliding window of a layer (counted from 0); None where it attends to all."""
        every = self.full_attention_every
        full = layer < self.full_attention_first or (every and (layer + 1) % every == 0)
        return None if full else self.sliding_window


@attrs.frozen(eq=False)
class Model:
    """The family-neutral view of an artifact: hyper-parameters, and tensors by their canonical names.

    Attributes:
        config: the hyper-parameters.
        tensors: by canonical name.
        roles: what each tensor of the artifact is for, by its own name there: a canonical name, with the expert's
            number where the canonical tensor is a stack.
    """

    config: ModelConfig
    tensors: Mapping[str, AnyTensor] = attrs.field(repr=False)
    roles: Mapping[str, str] = attrs.field(repr=False)

    @roles.default
    def _own_names(self) -> dict[str, str]:
        return {tensor.name: role for role, tensor in self.tensors.items()}


#: The largest sizes that are believed: well above any model's, small enough that no product overflows 64 bits.
LIMITS = {
    "layers": 1 << 12,
    "width": 1 << 20,
    "heads": 1 << 14,
    "kv_heads": 1 << 14,
    "head_dim": 1 << 14,
    "ffn": 1 << 22,
    "vocab": 1 << 24,
    "context": 1 << 30,
    "rotary_dim": 1 << 14,
}
_POSITIVE = (
    "rope_theta",
    "attention_scale",
    "embedding_scale",
    "rope_theta_local",
    "attention_softcap",
    "output_softcap",
)
_POSITIVE_SCALING = (
    "factor",
    "low_freq_factor",
    "high_freq_factor",
    "attention_factor",
    "beta_fast",
    "beta_slow",
)


def check_config(config: ModelConfig, where: str) -> ModelConfig:
    """Refuse hyper-parameters that no model can have; every reader calls this before it believes a file.

    Args:
        config: what the file said, of the right Python types.
        where: the file, for the error's message.

    Returns:
        The same configuration.

    Raises:
        InvalidFileError: names the file, the hyper-parameter, what came and what is allowed.
    """
    for field, limit in LIMITS.items():
        size = getattr(config, field)
        _require(1 <= size <= limit, where, field, size, f"between 1 and {limit}")
    for field in _POSITIVE:
        number = getattr(config, field)
        _require(number is None or 0 < number < math.inf, where, field, number, "finite and above 0")
    _require(0 <= config.norm_eps < 1, where, "norm_eps", config.norm_eps, "at least 0 and below 1")
    _check_attention(config, where)
    if config.rope_scaling is not None:
        _check_scaling(config.rope_scaling, config, where)
    return config


def _check_attention(config: ModelConfig, where: str) -> None:
    heads, kv_heads, window = config.heads, config.kv_heads, config.sliding_window
    _require(heads % kv_heads == 0, where, "kv_heads", kv_heads, f"a divisor of the {heads} heads")
    even = config.rotary_dim % 2 == 0 and config.rotary_dim <= config.head_dim
    _require(even, where, "rotary_dim", config.rotary_dim, f"even and at most head_dim, {config.head_dim}")
    _require(window is None or window > 0, where, "sliding_window", window, "above 0, or null")
    for field in ("full_attention_every", "full_attention_first"):
        count = getattr(config, field)
        _require(0 <= count <= LIMITS["layers"], where, field, count, f"between 0 and {LIMITS['layers']}")


def _check_scaling(scaling: RopeScaling, config: ModelConfig, where: str) -> None:
    for field in _POSITIVE_SCALING:
        number = getattr(scaling, field)
        _require(0 < number < math.inf, where, f"rope scaling's {field}", number, "finite and above 0")
    for field in ("beta_fast", "beta_slow"):
        number = getattr(scaling, field)
        _require(1e-9 <= number <= 1e9, where, f"rope scaling's {field}", number, "between 1e-9 and 1e9")
    if scaling.kind != "linear":
        original = scaling.original_context
        allowed = f"between 2 and {LIMITS['context']}"
        _require(2 <= original <= LIMITS["context"], where, "rope scaling's original_context", original, allowed)
    if scaling.kind == "llama3":
        high, low = scaling.high_freq_factor, scaling.low_freq_factor
        _require(high > low, where, "rope scaling's high_freq_factor", high, f"above low_freq_factor, {low}")
    if scaling.kind == "yarn":
        _require(config.rope_theta > 1, where, "rope_theta", config.rope_theta, "above 1 with yarn scaling")
    if scaling.kind == "longrope":
        _check_factors("long_factors", scaling.long_factors, config, where)
        _check_factors("short_factors", scaling.short_factors, config, where)


def _check_factors(field: str, factors: tuple[float, ...], config: ModelConfig, where: str) -> None:
    count = config.rotary_dim // 2
    _require(len(factors) == count, where, f"number of rope {field}", len(factors), f"{count}, one a frequency")
    for factor in factors:
        _require(0 < factor < math.inf, where, f"rope scaling's {field}", factor, "finite and above 0")


def _require(allowed: bool, where: str, field: str, value: object, what: str) -> None:
    if not allowed:
        raise InvalidFileError(f"{where}: {field} is {value}, it has to be {what}; the file is damaged or hostile")
