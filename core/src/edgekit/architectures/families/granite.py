"""Granite 3, dense: Llama with four multipliers."""

from __future__ import annotations

from collections.abc import Mapping

import attrs

from edgekit.architectures._config import ModelConfig, number_field, settings
from edgekit.architectures._family import Gguf, Key, Setting
from edgekit.architectures._section import Fields, Section
from edgekit.architectures.blocks import Block, Network
from edgekit.architectures.decoder import COMMON, Decoder
from edgekit.architectures.rope import Rope
from edgekit.tensor import AnyTensor

MULTIPLIERS: Fields = {
    "embedding_multiplier": 1.0,
    "logits_scaling": 1.0,
    "residual_multiplier": 1.0,
    "attention_multiplier": 1.0,
}
#: Keys of the two multipliers that are the family's own.
MULTIPLIER_KEYS = (Key("residual", "residual_scale", 1.0), Key("logits_divisor", "logit_scale"))
#: Those of fields of `ModelConfig`.
EMBEDDING, ATTENTION = "embedding_scale", "attention.scale"
#: False in a file whose layers have no positions.
ROTATES = "rope.scaling.finetuned"


@attrs.frozen(kw_only=True, slots=False)
class Multipliers:
    """Two of the four multipliers; those of embeddings and attention scores are fields of `ModelConfig`.

    Attributes:
        residual: multiplies what each mixer gives.
        logits_divisor: divides the logits.
    """

    residual: float = number_field()
    logits_divisor: float = number_field()


class Multiplied(Decoder):
    """What the families of Granite share."""

    def attention_scale(self, c: Section, head_dim: int) -> float:
        """Stated."""
        return c.number("attention_multiplier")

    def embedding_scale(self, c: Section, width: int) -> float:
        """Stated."""
        return c.number("embedding_multiplier")

    def multipliers(self, config: ModelConfig) -> Multipliers:
        """The two of the family's own."""
        return settings(Multipliers, config)

    def own_from_hf(self, c: Section) -> dict[str, object]:
        """Two multipliers."""
        return {"residual": c.number("residual_multiplier"), "logits_divisor": c.number("logits_scaling")}

    def own_to_hf(self, config: ModelConfig) -> Fields:
        """All four."""
        own = self.multipliers(config)
        return {
            **super().own_to_hf(config),
            "embedding_multiplier": config.embedding_scale,
            "logits_scaling": own.logits_divisor,
            "residual_multiplier": own.residual,
            "attention_multiplier": config.attention_scale,
        }

    def block(self, config: ModelConfig, layer: int, ropes: Mapping[bool, Rope]) -> Block:
        """What each mixer gives is multiplied."""
        return attrs.evolve(super().block(config, layer, ropes), residual=self.multipliers(config).residual)

    def network(self, config: ModelConfig) -> Network:
        """Logits are divided."""
        return attrs.evolve(super().network(config), logits_scale=1 / self.multipliers(config).logits_divisor)

    def gguf_metadata(self, config: ModelConfig) -> Mapping[str, Setting]:
        """All four multipliers."""
        scales = {EMBEDDING: config.embedding_scale, ATTENTION: config.attention_scale}
        return {**super().gguf_metadata(config), **scales}

    def gguf_config(self, config: ModelConfig, keys: Section, tensors: Mapping[str, AnyTensor]) -> ModelConfig:
        """Without a key, or with 0, embeddings are not scaled, and scores are by the heads' size."""
        fields = {"embedding_scale": EMBEDDING, "attention_scale": ATTENTION}
        scales: Fields = {field: value for field, key in fields.items() if (value := keys.optional_number(key))}
        return super().gguf_config(attrs.evolve(config, **scales), keys, tensors)


class Granite(Multiplied):
    """Granite 3."""

    name = "granite"
    model_types = ("granite",)
    hf_class = "GraniteForCausalLM"
    apart = "multipliers of embeddings, attention scores, residuals and logits"
    defaults = (
        COMMON
        | MULTIPLIERS
        | {
            "vocab_size": 32_000,
            "intermediate_size": 11_008,
            "max_position_embeddings": 2048,
        }
    )
    gguf = Gguf(
        "granite",
        interleaved=True,
        divisors=("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"),
        keys=MULTIPLIER_KEYS,
        states=("attention_scale", "embedding_scale"),
    )

    def biases(self, c: Section) -> Fields:
        """All of attention's or none, all of the feed-forward network's or none."""
        return {**super().biases(c), "ffn_bias": c.flag("mlp_bias")}

    def own_to_hf(self, config: ModelConfig) -> Fields:
        """And the biases."""
        return {**super().own_to_hf(config), "mlp_bias": config.ffn_bias}

    def gguf_fits(self, keys: Section) -> bool:
        """Where layers rotate; transformers' class has no others (see `granite4_dense`)."""
        return super().gguf_fits(keys) and keys.values.get(ROTATES, True) is True


__all__ = ["MULTIPLIERS", "MULTIPLIER_KEYS", "ROTATES", "Granite", "Multiplied", "Multipliers"]
