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

EXPERTS = {
    "ffn_gate_exps": "feed_forward.experts.{}.w1",
    "ffn_up_exps": "feed_forward.experts.{}.w3",
    "ffn_down_exps": "feed_forward.experts.{}.w2",
}
#: llama.cpp's number for sigmoids, and the key.
_SIGMOID, _GATING = 2, "expert_gating_func"


@attrs.frozen(kw_only=True)
class Sizes(Convolutions, ExpertSizes):
    """Sizes of convolutions and experts.

    Attributes:
        dense: how many layers at the start have no experts.
        choice_bias: whether a bias is added to the scores for the choice alone.
        weights_scale: multiplies the experts' weights.
    """

    dense: int = integer_field(LIMITS["layers"])
    choice_bias: bool = True
    weights_scale: float = number_field(default=1.0)


class Lfm2Moe(Convolving, Mixture):
    """LFM2 with experts in all layers but the first."""

    name = "lfm2_moe"
    model_types = ("lfm2_moe",)
    hf_class = "Lfm2MoeForCausalLM"
    apart = "LFM2 with experts in all layers but the first; sigmoids route"
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
        keys=(CONVOLVES, TAPS, *KEYS, EXPERT_FFN, Key("dense", "leading_dense_block_count")),
        per_layer=(KV_HEADS,),
    )
    layer_names = NAMES | {"ffn_gate_inp": "feed_forward.gate"}
    expert_names = EXPERTS
    normalized_key = "norm_topk_prob"

    def sizes(self, config: ModelConfig) -> Sizes:
        """Of experts."""
        return settings(Sizes, config)

    def convolutions(self, config: ModelConfig) -> Sizes:
        """Of convolutions."""
        return settings(Sizes, config)

    def own_from_hf(self, c: Section) -> dict[str, object]:
        """Sizes of both."""
        return {
            **Convolving.own_from_hf(self, c),
            **Mixture.own_from_hf(self, c),
            "dense": c.integer("num_dense_layers"),
            "choice_bias": c.flag("use_expert_bias"),
            "weights_scale": c.number("routed_scaling_factor"),
        }

    def own_to_hf(self, config: ModelConfig) -> Fields:
        """Sizes of both."""
        sizes = self.sizes(config)
        return {
            **super().own_to_hf(config),
            "num_dense_layers": sizes.dense,
            "use_expert_bias": sizes.choice_bias,
            "routed_scaling_factor": sizes.weights_scale,
        }

    def channels(self, config: ModelConfig, layer: int) -> Mixer:
        """Experts but in the first layers."""
        return (
            Decoder.channels(self, config, layer)
            if layer < self.sizes(config).dense
            else super().channels(config, layer)
        )

    def routing(self, sizes: ExpertSizes) -> Routing:
        """Sigmoids; transformers adds 1e-6 to their sum, which this bounds."""
        assert isinstance(sizes, Sizes)
        return Routing(sizes.experts_used, "sigmoid", sizes.normalized, sizes.weights_scale, floor=1e-6)

    def beside(self, config: ModelConfig) -> Fields:
        """The bias of the choice."""
        return {"choice_bias": self.sizes(config).choice_bias}

    def link(self, name: str) -> Link:
        """The bias of the choice has another name."""
        if not name.endswith("exp_probs_b.bias"):
            return super().link(name)
        return one(name, f"model.layers.{name.split('.')[1]}.feed_forward.expert_bias")

    def gguf_metadata(self, config: ModelConfig) -> Mapping[str, Setting]:
        """What llama.cpp computes otherwise is refused."""
        sizes = self.sizes(config)
        if sizes.weights_scale != 1:
            raise UnsupportedModelError(
                f"routed_scaling_factor of the model is {sizes.weights_scale:g}, and llama.cpp computes lfm2moe files "
                "as if it were 1; choose another format"
            )
        if not sizes.choice_bias:
            raise UnsupportedModelError(
                "use_expert_bias of the model is false, and llama.cpp loads lfm2moe files only with that bias; choose "
                "another format"
            )
        return {**super().gguf_metadata(config), _GATING: _SIGMOID}

    def gguf_own(self, config: ModelConfig, own: dict[str, object]) -> dict[str, object]:
        """What llama.cpp computes."""
        return super().gguf_own(config, {"conv_bias": False, "choice_bias": True, "weights_scale": 1.0, **own})


__all__ = ["EXPERTS", "Lfm2Moe", "Sizes"]
