"""Qwen 3 with experts (30B-A3B, 235B-A22B)."""

from __future__ import annotations

from edgekit.architectures._config import ModelConfig
from edgekit.architectures._family import Gguf
from edgekit.architectures._section import Fields, Section
from edgekit.architectures.decoder import COMMON
from edgekit.architectures.mixture import EXPERT_FFN, KEYS, Mixture


class Qwen3Moe(Mixture):
    """Qwen 3 whose layers all have experts."""

    name = "qwen3_moe"
    model_types = ("qwen3_moe",)
    hf_class = "Qwen3MoeForCausalLM"
    apart = "Qwen 3 with experts in every layer"
    defaults = COMMON | {
        "vocab_size": 151_936,
        "hidden_size": 2048,
        "intermediate_size": 6144,
        "num_hidden_layers": 24,
        "num_key_value_heads": 4,
        "max_position_embeddings": 32_768,
        "use_sliding_window": False,
        "decoder_sparse_step": 1,
        "mlp_only_layers": None,
        "moe_intermediate_size": 768,
        "num_experts_per_tok": 8,
        "num_experts": 128,
        "num_local_experts": None,
        "norm_topk_prob": False,
    }
    gguf = Gguf("qwen3moe", biases=False, keys=(*KEYS, EXPERT_FFN))
    qk_norm = True
    count_keys = ("num_local_experts", "num_experts")
    normalized_key = "norm_topk_prob"

    def refuse(self, c: Section) -> None:
        """Layers without experts, and windows."""
        super().refuse(c)
        if c.values["mlp_only_layers"]:
            c.refuse("mlp_only_layers", c.values["mlp_only_layers"], "experts in every layer")
        if c.integer("decoder_sparse_step") != 1:
            c.refuse("decoder_sparse_step", c.values["decoder_sparse_step"], "1: experts in every layer")
        if c.flag("use_sliding_window"):
            c.refuse("use_sliding_window", True, "false for this family")

    def own_to_hf(self, config: ModelConfig) -> Fields:
        """The number of experts under the name that transformers 4 reads, too."""
        return {**super().own_to_hf(config), "num_experts": self.sizes(config).experts}


__all__ = ["Qwen3Moe"]
