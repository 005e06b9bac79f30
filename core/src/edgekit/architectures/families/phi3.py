"""Phi 3, 3.5 and 4 (dense)."""

from __future__ import annotations

from edgekit.architectures._config import ModelConfig
from edgekit.architectures._family import Gguf
from edgekit.architectures._hf_rope import RopeDialect
from edgekit.architectures._section import Fields, Section
from edgekit.architectures.decoder import COMMON, LAYER, Decoder, fraction


class Phi3(Decoder):
    """Phi 3: Q, K and V in one matrix, gate and up in another; a part of each head rotates."""

    name = "phi3"
    model_types = ("phi3",)
    hf_class = "Phi3ForCausalLM"
    apart = "Q, K, V in one matrix, gate and up in another; part of a head rotates; longrope"
    defaults = COMMON | {
        "vocab_size": 32_064,
        "hidden_size": 3072,
        "intermediate_size": 8192,
        "max_position_embeddings": 4096,
        "original_max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
    }
    gguf = Gguf(
        "phi3",
        divisors=("rope_factors_long.weight", "rope_factors_short.weight"),
        names_no_window=True,
        ignores_window=True,
    )
    rope = RopeDialect(partial=True, longrope_names=("su", "yarn"))  # its older names
    layer_names = LAYER | {"ffn_up": "mlp.gate_up_proj"}
    fused = True
    windows = "all"

    def biases(self, c: Section) -> Fields:
        """Transformers builds it without, whatever the file says."""
        return {}

    def own_to_hf(self, config: ModelConfig) -> Fields:
        """How much rotates."""
        scaling = config.rope_scaling
        original = {} if scaling is None else {"original_max_position_embeddings": scaling.original_context}
        return {"partial_rotary_factor": fraction(config.rotary_dim, config.head_dim), **original}


__all__ = ["Phi3"]
