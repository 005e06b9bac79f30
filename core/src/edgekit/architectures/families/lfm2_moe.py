"""LFM2 with experts (8B-A1B)."""

from __future__ import annotations

from collections.abc import Mapping

import attrs

from edgekit.architectures._config import LIMITS, ModelConfig, integer_field, number_field, settings
from edgekit.architectures._family import Gguf, Key, Setting
from edgekit.architectures._section import Fields, Section
from edgekit.architectures.decoder import COMMON, Decoder
from edgekit.architectures.families.lfm2 import CONVOLVES, CONVOLVING, KV_HEADS, NAMES, TAPS, Convolutions, Convolving
from edgekit.architectures.links import Link, one
from edgekit.architectures.mixers import Mixer
from edgekit.architectures.mixture import EXPERT_FFN, KEYS, ExpertSizes, Mixture
from edgekit.architectures.ops import Routing
from edgekit.errors import UnsupportedModelError

#: llama.cpp's number for the sigmoid.
_SIGMOID = 2


@attrs.frozen(kw_only=True, slots=False)
class Sizes(Convolutions, ExpertSizes):
    """Sizes of convolutions and of experts.

    Attributes:
        dense: how many layers at the start have no experts.
        choice_bias: whether a bias is added to the router's scores for the choice.
        weights_scale: multiplies the weights of the chosen experts.
    """

    dense: int = integer_field(LIMITS["layers"])
    choice_bias: bool = True
    weights_scale: float = number_field(default=1.0)


class Lfm2Moe(Convolving, Mixture):
    """LFM2 with experts in all but the first layers."""

    name = "lfm2_moe"
    model_types = ("lfm2_moe",)
    hf_class = "Lfm2MoeForCausalLM"
    apart = "LFM2 with experts in all but the first layers, chosen by a sigmoid with a bias"
    defaults = (
        COMMON
        | CONVOLVING
        | {
            "vocab_size": 65_536,
            "hidden_size": 2048,
            "intermediate_size": 7168,
            "moe_intermediate_size": 1792,
            "num_dense_layers": 2,
            "num_experts_per_tok": 4,
            "num_experts": 32,
            "num_local_experts": None,
            "use_expert_bias": True,
            "routed_scaling_factor": 1.0,
            "norm_topk_prob": True,
        }
    )
    gguf = Gguf(
        "lfm2moe",
        keys=(*KEYS, EXPERT_FFN, CONVOLVES, TAPS, Key("dense", "leading_dense_block_count", 0)),
        per_layer=(KV_HEADS,),
    )
    layer_names = NAMES | {"ffn_gate_inp": "feed_forward.gate"}
    expert_names = {  # noqa: RUF012
        "ffn_gate_exps": "feed_forward.experts.{}.w1",
        "ffn_up_exps": "feed_forward.experts.{}.w3",
        "ffn_down_exps": "feed_forward.experts.{}.w2",
    }
    normalized_key = "norm_topk_prob"

    def convolutions(self, config: ModelConfig) -> Convolutions:
        """Which layers convolve."""
        return settings(Sizes, config)

    def sizes(self, config: ModelConfig) -> ExpertSizes:
        """The experts' sizes."""
        return settings(Sizes, config)

    def kinds(self, c: Section, layers: int) -> list[str]:
        """All attend where nothing is said."""
        return ["full_attention"] * layers if c.values["layer_types"] is None else super().kinds(c, layers)

    def own_from_hf(self, c: Section) -> dict[str, object]:
        """Those of both."""
        own = {**Convolving.own_from_hf(self, c), **Mixture.own_from_hf(self, c)}
        return {
            **own,
            "dense": c.integer("num_dense_layers"),
            "choice_bias": c.flag("use_expert_bias"),
            "weights_scale": c.number("routed_scaling_factor"),
        }

    def own_to_hf(self, config: ModelConfig) -> Fields:
        """Those of both."""
        own = settings(Sizes, config)
        return {
            **super().own_to_hf(config),
            "num_dense_layers": own.dense,
            "use_expert_bias": own.choice_bias,
            "routed_scaling_factor": own.weights_scale,
        }

    def channels(self, config: ModelConfig, layer: int) -> Mixer:
        """Experts, but for the first layers."""
        if layer < settings(Sizes, config).dense:
            return Decoder.channels(self, config, layer)
        return Mixture.channels(self, config, layer)

    def routing(self, sizes: ExpertSizes) -> Routing:
        """A sigmoid."""
        scale = sizes.weights_scale if isinstance(sizes, Sizes) else 1.0
        return Routing(sizes.experts_used, "sigmoid", sizes.normalized, scale)

    def beside(self, config: ModelConfig) -> Fields:
        """The bias of the choice."""
        return {"choice_bias": settings(Sizes, config).choice_bias}

    def link(self, name: str) -> Link:
        """The bias of the choice."""
        if name.endswith("exp_probs_b.bias"):
            return one(name, f"model.layers.{name.split('.')[1]}.feed_forward.expert_bias")
        return super().link(name)

    def gguf_metadata(self, config: ModelConfig) -> Mapping[str, Setting]:
        """With the sigmoid; llama.cpp has no scale, and wants the bias."""
        own = settings(Sizes, config)
        if own.weights_scale != 1:
            raise UnsupportedModelError(
                f"routed_scaling_factor of the model is {own.weights_scale}, and llama.cpp computes lfm2moe files as "
                "if it were 1; choose another format"
            )
        if not own.choice_bias:
            raise UnsupportedModelError(
                "use_expert_bias of the model is false, and llama.cpp loads lfm2moe files only with that bias; "
                "choose another format"
            )
        return {**super().gguf_metadata(config), "expert_gating_func": _SIGMOID}

    def gguf_own(self, config: ModelConfig, own: dict[str, object]) -> dict[str, object]:
        """What llama.cpp computes for all."""
        fixed = {"conv_bias": False, "choice_bias": True, "weights_scale": 1.0}
        return {**super().gguf_own(config, own), **fixed}


__all__ = ["Lfm2Moe", "Sizes"]
