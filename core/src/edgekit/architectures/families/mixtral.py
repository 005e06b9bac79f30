"""Mixtral 8x7B and 8x22B."""

from __future__ import annotations

from collections.abc import Mapping

from edgekit.architectures._config import ModelConfig
from edgekit.architectures._family import Gguf, Setting
from edgekit.architectures._section import Fields, Section
from edgekit.architectures.decoder import COMMON, LAYER
from edgekit.architectures.mixture import KEYS, Mixture
from edgekit.errors import UnsupportedModelError

_ROPE_TENSORS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")


class Mixtral(Mixture):
    """Mistral with experts; its GGUF files say Llama."""

    name = "mixtral"
    model_types = ("mixtral",)
    hf_class = "MixtralForCausalLM"
    apart = "Mistral with experts in every layer"
    defaults = COMMON | {
        "vocab_size": 32_000,
        "intermediate_size": 14_336,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131_072,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1_000_000.0,
        "num_experts_per_tok": 2,
        "num_local_experts": 8,
        "num_experts": None,
    }
    gguf = Gguf("llama", interleaved=True, divisors=_ROPE_TENSORS, keys=KEYS)
    windows = "all"
    attention_biases = False
    layer_names = LAYER | {"ffn_gate_inp": "block_sparse_moe.gate"}
    expert_names = {  # noqa: RUF012
        "ffn_gate_exps": "block_sparse_moe.experts.{}.w1",
        "ffn_up_exps": "block_sparse_moe.experts.{}.w3",
        "ffn_down_exps": "block_sparse_moe.experts.{}.w2",
    }
    count_keys = ("num_local_experts", "num_experts")
    ffn_key = "intermediate_size"

    def biases(self, c: Section) -> Fields:
        """Transformers builds it without, whatever the file says."""
        return {}

    def gguf_metadata(self, config: ModelConfig) -> Mapping[str, Setting]:
        """llama.cpp has no windows for this architecture."""
        if config.sliding_window is not None:
            raise UnsupportedModelError(
                f"sliding_window of the model is {config.sliding_window}, and llama.cpp attends to all tokens in llama "
                "files; choose another format"
            )
        return super().gguf_metadata(config)


__all__ = ["Mixtral"]
