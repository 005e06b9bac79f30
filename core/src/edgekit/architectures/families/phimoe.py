"""Phi-3.5 MoE.

transformers' class is followed: LayerNorm, and a sparse mixer as router. llama.cpp computes RMSNorm and a softmax over
all experts, another model altogether, so that GGUF is neither written nor read. In sequences longer than the original
context frequencies are divided by the long factors, as the model was trained; transformers 5.23 keeps the short ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NoReturn

import attrs

from edgekit.architectures._config import ModelConfig, number_field, settings
from edgekit.architectures._family import Gguf, Setting
from edgekit.architectures._section import Fields, Section
from edgekit.architectures.blocks import Block, Network
from edgekit.architectures.decoder import COMMON, LAYER
from edgekit.architectures.mixture import KEYS, ExpertSizes, Mixture
from edgekit.architectures.rope import Rope
from edgekit.errors import UnsupportedModelError
from edgekit.tensor import AnyTensor


@attrs.frozen(kw_only=True)
class Sizes(ExpertSizes):
    """Sizes of experts.

    Attributes:
        jitter: how far below the likeliest expert's score others count, relative.
        output_bias: whether the output matrix has a bias.
    """

    jitter: float = number_field(default=0.01)
    output_bias: bool = False


class PhiMoe(Mixture):
    """Phi-3.5 MoE."""

    name = "phimoe"
    model_types = ("phimoe",)
    hf_class = "PhimoeForCausalLM"
    apart = "LayerNorm, a sparse mixer of two experts, longrope; not in GGUF, where llama.cpp computes other models"
    windows = "all"
    defaults = COMMON | {
        "vocab_size": 32_064,
        "intermediate_size": 6400,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131_072,
        "original_max_position_embeddings": None,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1_000_000.0,
        "num_experts_per_tok": 2,
        "num_local_experts": 16,
        "router_jitter_noise": 0.01,
        "lm_head_bias": False,
    }
    gguf = Gguf("phimoe", keys=KEYS)
    layer_names = LAYER | {"ffn_gate_inp": "block_sparse_moe.gate"}
    expert_names = {  # noqa: RUF012
        "ffn_gate_exps": "block_sparse_moe.experts.{}.w1",
        "ffn_up_exps": "block_sparse_moe.experts.{}.w3",
        "ffn_down_exps": "block_sparse_moe.experts.{}.w2",
    }
    count_keys = ("num_local_experts",)
    ffn_key = "intermediate_size"
    normalized = False

    def refuse(self, c: Section) -> None:
        """Other numbers of experts a token, and a tied output matrix with a bias."""
        super().refuse(c)
        if c.integer("num_experts_per_tok") != 2:
            c.refuse("num_experts_per_tok", c.values["num_experts_per_tok"], "2 for its sparse mixer")
        if c.flag("tie_word_embeddings") and c.flag("lm_head_bias"):
            c.refuse("lm_head_bias", True, "false where the embedding is the output matrix")

    def rope_from_hf(self, c: Section, head_dim: int) -> Fields:
        """The two magnitudes of longrope under their own keys."""
        given = c.section("rope_scaling") or c.section("rope_parameters")
        p = Section(given, c.where)
        kind = given.get("rope_type", given.get("type", "default"))
        if kind not in ("default", "longrope"):
            c.refuse("rope_type", kind, "default and longrope for Phi-3.5 MoE")
        if kind == "default":
            return super().rope_from_hf(c, head_dim)
        short, long = p.optional_number("short_mscale"), p.optional_number("long_mscale")
        if short is None or short != long:
            c.refuse("short_mscale and long_mscale", (short, long), "one number for both")
        original = given.get("original_max_position_embeddings") or c.values["original_max_position_embeddings"]
        values = {**c.values, "original_max_position_embeddings": original}
        values["rope_parameters"] = {**given, "attention_factor": short}
        return super().rope_from_hf(Section({**values, "rope_scaling": None}, c.where), head_dim)

    def own_from_hf(self, c: Section) -> dict[str, object]:
        """With the router's jitter."""
        own = {"jitter": c.number("router_jitter_noise"), "output_bias": c.flag("lm_head_bias")}
        return {**super().own_from_hf(c), **own}

    def own_to_hf(self, config: ModelConfig) -> Fields:
        """With the router's jitter, and longrope's magnitudes."""
        own, scaling = settings(Sizes, config), config.rope_scaling
        written = {
            **super().own_to_hf(config),
            "router_jitter_noise": own.jitter,
            "lm_head_bias": own.output_bias,
        }
        if scaling is None:
            return written
        magnitude = scaling.attention_factor
        return written | {
            "original_max_position_embeddings": scaling.original_context,
            "rope_scaling": {
                "rope_type": "longrope",
                "factor": scaling.factor,
                "long_factor": list(scaling.long_factors),
                "short_factor": list(scaling.short_factors),
                "long_mscale": magnitude,
                "short_mscale": magnitude,
                "original_max_position_embeddings": scaling.original_context,
            },
        }

    def sizes(self, config: ModelConfig) -> ExpertSizes:
        """The experts' sizes."""
        return settings(Sizes, config)

    def beside(self, config: ModelConfig) -> Fields:
        """The sparse mixer."""
        return {"jitter": settings(Sizes, config).jitter}

    def block(self, config: ModelConfig, layer: int, ropes: Mapping[bool, Rope]) -> Block:
        """With LayerNorms."""
        return attrs.evolve(super().block(config, layer, ropes), layer_norm=True)

    def network(self, config: ModelConfig) -> Network:
        """With a LayerNorm at the end, and a bias of the output matrix."""
        own = settings(Sizes, config)
        return attrs.evolve(super().network(config), layer_norm=True, output_bias=own.output_bias)

    def gguf_metadata(self, config: ModelConfig) -> Mapping[str, Setting]:
        """llama.cpp computes something else."""
        _refuse("")

    def gguf_config(self, config: ModelConfig, keys: Section, tensors: Mapping[str, AnyTensor]) -> ModelConfig:
        """llama.cpp computes something else."""
        _refuse(f"{keys.where}: ")


def _refuse(where: str) -> NoReturn:
    raise UnsupportedModelError(
        f"{where}llama.cpp computes phimoe files with RMSNorm and a softmax over all experts, which the model was not "
        "trained with (LayerNorm and a sparse mixer): its logits are others; use another format"
    )


__all__ = ["PhiMoe", "Sizes"]
