"""Qwen 3.5 and 3.6 with experts (35B-A3B …)."""

from __future__ import annotations

import attrs

from edgekit.architectures._config import ModelConfig, integer_field, settings
from edgekit.architectures._family import Gguf, Key
from edgekit.architectures._section import Fields, Section
from edgekit.architectures.decoder import COMMON
from edgekit.architectures.families.qwen3_5 import DELTA, NAMES, SECTIONS, SSM_KEYS, DeltaHybrid, DeltaSizes
from edgekit.architectures.links import Link, mapped, reshaped
from edgekit.architectures.mixers import Gated, Mixer
from edgekit.architectures.mixture import EXPERT_FFN, KEYS, ExpertSizes, Mixture
from edgekit.tensor import AnyTensor

EXPERT_NAMES = NAMES | {
    "ffn_gate_inp": "mlp.gate",
    "ffn_gate_shexp": "mlp.shared_expert.gate_proj",
    "ffn_up_shexp": "mlp.shared_expert.up_proj",
    "ffn_down_shexp": "mlp.shared_expert.down_proj",
    "ffn_gate_inp_shexp": "mlp.shared_expert_gate",
}
SHARED = Key("shared_ffn", "expert_shared_feed_forward_length")


@attrs.frozen(kw_only=True)
class Sizes(DeltaSizes, ExpertSizes):
    """Sizes of gated delta nets and of experts.

    Attributes:
        shared_ffn: the inner width of the expert that all tokens use.
    """

    shared_ffn: int = integer_field(1 << 22, 1)

    def __attrs_post_init__(self) -> None:
        """Check both."""
        DeltaSizes.__attrs_post_init__(self)
        ExpertSizes.__attrs_post_init__(self)


class DeltaMixture(DeltaHybrid, Mixture):
    """A hybrid of gated delta nets and gated attention whose layers all have experts, one of them shared."""

    layer_names = EXPERT_NAMES

    def delta(self, config: ModelConfig) -> DeltaSizes:
        """The sizes of the gated delta nets."""
        return settings(Sizes, config)

    def sizes(self, config: ModelConfig) -> ExpertSizes:
        """The experts' sizes."""
        return settings(Sizes, config)

    def ffn_from_hf(self, c: Section) -> int:
        """No layer is dense."""
        return c.integer("moe_intermediate_size")

    def own_from_hf(self, c: Section) -> dict[str, object]:
        """Those of both, and the shared expert's width."""
        own = {**DeltaHybrid.own_from_hf(self, c), **Mixture.own_from_hf(self, c)}
        return {**own, "shared_ffn": c.integer("shared_expert_intermediate_size")}

    def own_to_hf(self, config: ModelConfig) -> Fields:
        """Those of both."""
        own = settings(Sizes, config)
        return {**super().own_to_hf(config), "shared_expert_intermediate_size": own.shared_ffn}

    def link(self, name: str) -> Link:
        """The shared expert's gate is a matrix of one row in a checkpoint, a vector in GGUF."""
        if name.endswith("ffn_gate_inp_shexp.weight"):
            return mapped(name, self.hf_name(name), lambda t: reshaped(t, t.shape[-1:]), _row)
        return super().link(name)

    def beside(self, config: ModelConfig) -> Fields:
        """The shared expert, behind a gate."""
        return {
            "shared": Gated(settings(Sizes, config).shared_ffn, config.activation, suffix="_shexp"),
            "shared_gate": True,
        }

    def channels(self, config: ModelConfig, layer: int) -> Mixer:
        """Experts."""
        return Mixture.channels(self, config, layer)


def _row(tensor: AnyTensor) -> AnyTensor:
    return reshaped(tensor, (1, *tensor.shape))


class Qwen35Moe(DeltaMixture):
    """Qwen 3.5 with experts."""

    name = "qwen3_5_moe"
    model_types = ("qwen3_5_moe_text", "qwen3_5_moe")
    hf_class = "Qwen3_5MoeForCausalLM"
    apart = "Qwen 3.5 with experts, one of them shared, in every layer"
    nested = True
    defaults = (
        COMMON
        | DELTA
        | {
            "vocab_size": 248_320,
            "hidden_size": 2048,
            "num_hidden_layers": 40,
            "num_attention_heads": 16,
            "num_key_value_heads": 2,
            "head_dim": 256,
            "max_position_embeddings": 32_768,
            "partial_rotary_factor": 0.25,
            "moe_intermediate_size": 512,
            "shared_expert_intermediate_size": 512,
            "num_experts_per_tok": 8,
            "num_experts": 256,
            "num_local_experts": None,
        }
    )
    gguf = Gguf("qwen35moe", biases=False, keys=(*SSM_KEYS, SECTIONS, *KEYS, EXPERT_FFN, SHARED))


__all__ = ["EXPERT_NAMES", "SHARED", "DeltaMixture", "Qwen35Moe", "Sizes"]
