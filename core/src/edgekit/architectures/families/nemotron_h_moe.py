"""Nemotron-H with experts (Nemotron 3 Nano, Super)."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import attrs

from edgekit.architectures._config import LIMITS, ModelConfig, integer_field, number_field, settings
from edgekit.architectures._family import Gguf, Key, Setting
from edgekit.architectures._section import Fields, Section
from edgekit.architectures.families.nemotron_h import FFN, KEYS, KV_HEADS, NemotronH, Sizes, kinds_of
from edgekit.architectures.links import Link, one, stacked
from edgekit.architectures.mixers import Experts, Mixer, Plain
from edgekit.architectures.mixture import KEYS as EXPERT_KEYS
from edgekit.architectures.mixture import MOST
from edgekit.architectures.ops import Ffn, Routing
from edgekit.errors import InvalidFileError, UnsupportedModelError
from edgekit.tensor import AnyTensor


@attrs.frozen(kw_only=True)
class MoeSizes(Sizes):
    """Sizes of Mamba's layers and of experts.

    Attributes:
        experts, experts_used: in a layer, and by a token.
        shared_ffn: inner width of the expert that all tokens use; `ModelConfig.ffn` is that of one.
        latent: width that experts work in; 0: the model's own.
        normalized: whether the weights of the chosen experts are divided by their sum.
        weights_scale: multiplies them.
        expert_groups, groups_used: experts are chosen from the best groups.
    """

    experts: int = integer_field(MOST, 1)
    experts_used: int = integer_field(MOST, 1)
    shared_ffn: int = integer_field(LIMITS["ffn"], 1)
    latent: int = integer_field(LIMITS["width"], default=0)
    normalized: bool = True
    weights_scale: float = number_field(default=1.0)
    expert_groups: int = integer_field(MOST, 1, default=1)
    groups_used: int = integer_field(MOST, 1, default=1)

    def __attrs_post_init__(self) -> None:
        """Refuse sizes that contradict each other."""
        Sizes.__attrs_post_init__(self)
        if self.experts_used > self.experts or self.experts % self.expert_groups:
            raise InvalidFileError(
                f"each token uses {self.experts_used} of {self.experts} experts in {self.expert_groups} groups; the "
                "file is damaged"
            )


class NemotronHMoe(NemotronH):
    """Nemotron-H with experts instead of dense networks."""

    name = "nemotron_h_moe"
    apart = "Nemotron-H with experts without gates, one of them shared, chosen by a sigmoid with a bias"
    sizes_kind = MoeSizes
    network_kind = "moe"
    defaults = {  # noqa: RUF012
        **NemotronH.defaults,
        "n_routed_experts": 8,
        "num_local_experts": None,
        "n_shared_experts": 1,
        "moe_intermediate_size": 7688,
        "moe_shared_expert_intermediate_size": 7688,
        "moe_latent_size": None,
        "num_experts_per_tok": 2,
        "routed_scaling_factor": 1.0,
        "n_group": 1,
        "topk_group": 1,
        "norm_topk_prob": True,
    }
    gguf = Gguf(
        "nemotron_h_moe",
        keys=(
            *KEYS,
            *EXPERT_KEYS,
            Key("shared_ffn", "expert_shared_feed_forward_length"),
            Key("latent", "moe_latent_size", 0),
            Key("normalized", "expert_weights_norm", False),
            Key("weights_scale", "expert_weights_scale", 1.0),
        ),
        per_layer=(KV_HEADS, FFN),
    )
    layer_names = {  # noqa: RUF012
        **NemotronH.layer_names,
        "ffn_gate_inp": "mixer.gate",
        "ffn_latent_down": "mixer.fc1_latent_proj",
        "ffn_latent_up": "mixer.fc2_latent_proj",
        "ffn_up_shexp": "mixer.shared_experts.up_proj",
        "ffn_down_shexp": "mixer.shared_experts.down_proj",
        "exp_probs_b.bias": "mixer.gate.e_score_correction_bias",
    }

    def hf_fits(self, config: Mapping[str, Any]) -> bool:
        """Where a layer has experts."""
        return "moe" in kinds_of(config)

    def refuse(self, c: Section) -> None:
        """Biases, which experts have none of."""
        super().refuse(c)
        if c.flag("mlp_bias"):
            c.refuse("mlp_bias", True, "false for models with experts")

    def ffn_from_hf(self, c: Section) -> int:
        """That of an expert."""
        return c.integer("moe_intermediate_size")

    def own_from_hf(self, c: Section) -> dict[str, object]:
        """With the experts'."""
        return {
            **super().own_from_hf(c),
            "experts": c.integer("num_local_experts" if c.values["num_local_experts"] else "n_routed_experts"),
            "experts_used": c.integer("num_experts_per_tok"),
            "shared_ffn": c.integer("moe_shared_expert_intermediate_size"),
            "latent": c.integer("moe_latent_size") if c.values["moe_latent_size"] else 0,
            "normalized": c.flag("norm_topk_prob"),
            "weights_scale": c.number("routed_scaling_factor"),
            "expert_groups": c.integer("n_group"),
            "groups_used": c.integer("topk_group"),
        }

    def config_to_hf(self, config: ModelConfig) -> Fields:
        """With the experts'."""
        own = settings(MoeSizes, config)
        return super().config_to_hf(config) | {
            "moe_intermediate_size": config.ffn,
            "n_routed_experts": own.experts,
            "num_experts_per_tok": own.experts_used,
            "moe_shared_expert_intermediate_size": own.shared_ffn,
            "moe_latent_size": own.latent or None,
            "norm_topk_prob": own.normalized,
            "routed_scaling_factor": own.weights_scale,
            "n_group": own.expert_groups,
            "topk_group": own.groups_used,
        }

    def channels(self, config: ModelConfig, layer: int) -> Mixer:
        """Experts, and one that all tokens use."""
        own = settings(MoeSizes, config)
        routing = Routing(
            own.experts_used,
            "sigmoid",
            own.normalized,
            own.weights_scale,
            groups=own.expert_groups,
            groups_used=own.groups_used,
            floor=1e-20,
        )
        return Experts(
            own.experts,
            config.ffn,
            routing,
            Ffn(None, "relu2"),
            choice_bias=True,
            shared=Plain(own.shared_ffn, "relu2", suffix="_shexp"),
            latent=own.latent,
        )

    def _linked(
        self, config: ModelConfig, own: Sizes, name: str, shape: tuple[int, ...], names: Collection[str]
    ) -> Link:
        """Experts as matrices of their own, or all in one tensor."""
        role = name.split(".", 2)[-1]
        if role not in ("ffn_up_exps.weight", "ffn_down_exps.weight"):
            return super()._linked(config, own, name, shape, names)
        kind = "up_proj" if "up" in role else "down_proj"
        prefix = f"backbone.layers.{name.split('.')[1]}.mixer.experts."
        if f"{prefix}{kind}" in names:
            return one(name, f"{prefix}{kind}")
        each = [f"{prefix}{number}.{kind}.weight" for number in range(shape[0])]
        return stacked(name, each, f"{prefix}{kind}.weight")

    def gguf_metadata(self, config: ModelConfig) -> Mapping[str, Setting]:
        """With the experts'."""
        own = settings(MoeSizes, config)
        if own.expert_groups > 1:
            raise UnsupportedModelError(
                f"n_group of the model is {own.expert_groups}, and edgekit has compared llama.cpp's nemotron_h_moe "
                "files with one group alone; choose another format"
            )
        written = dict(super().gguf_metadata(config))
        if not own.latent:
            del written["moe_latent_size"]
        return written | {"expert_feed_forward_length": config.ffn, "expert_shared_count": 1}

    def gguf_further(self, tensors: Mapping[str, AnyTensor]) -> dict[str, object]:
        """One group."""
        return {"expert_groups": 1, "groups_used": 1}


__all__ = ["MoeSizes", "NemotronHMoe"]
