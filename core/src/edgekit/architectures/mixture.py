"""What decoders with experts share, beyond `edgekit.architectures.decoder`.

Each layer has a router and experts. A checkpoint has a matrix for each expert, or all of them in one tensor of three
dimensions, gate and up together; both are read, the first is written.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import attrs

from edgekit.architectures._config import ModelConfig, integer_field, settings
from edgekit.architectures._family import Key, Setting
from edgekit.architectures._section import Fields, Section
from edgekit.architectures.decoder import LAYER, Decoder
from edgekit.architectures.links import Link, halves, one, stacked
from edgekit.architectures.mixers import Experts, Mixer
from edgekit.architectures.ops import Ffn, Gate, Routing
from edgekit.errors import InvalidFileError, UnsupportedModelError

#: The largest number of experts that is believed.
MOST = 1 << 12
#: Hugging Face's names of an expert's matrices, after ``model.layers.N.``.
EXPERTS = {
    "ffn_gate_exps": "mlp.experts.{}.gate_proj",
    "ffn_up_exps": "mlp.experts.{}.up_proj",
    "ffn_down_exps": "mlp.experts.{}.down_proj",
}
#: Keys that most architectures have.
KEYS = (Key("experts", "expert_count"), Key("experts_used", "expert_used_count"))
EXPERT_FFN = Key("expert_ffn", "expert_feed_forward_length")


@attrs.frozen(kw_only=True, slots=False)  # a family may derive from it and from another record
class ExpertSizes:
    """Hyper-parameters of experts.

    Attributes:
        experts, experts_used: in a layer, and by a token.
        expert_ffn: the inner width of one.
        normalized: whether the weights of the chosen experts are divided by their sum.
    """

    experts: int = integer_field(MOST, 1)
    experts_used: int = integer_field(MOST, 1)
    expert_ffn: int = integer_field(1 << 22, 1)
    normalized: bool = True

    def __attrs_post_init__(self) -> None:
        """Refuse more used experts than there are."""
        if self.experts_used > self.experts:
            raise InvalidFileError(
                f"each token uses {self.experts_used} experts, but a layer has {self.experts}; the file is damaged"
            )


class Mixture(Decoder):
    """A family whose layers all have experts.

    Attributes:
        expert_names: Hugging Face's names of an expert's matrices; ``{}`` is its number.
        count_keys: config.json's names for the number of experts; the first is written.
        ffn_key: for the inner width of an expert.
        normalized: whether weights of the chosen experts are normalized where config.json has no key for it; llama.cpp
            always computes that.
        normalized_key: the key for it, or an empty string.
    """

    expert_names: Mapping[str, str] = EXPERTS
    layer_names = LAYER | {"ffn_gate_inp": "mlp.gate"}
    count_keys: tuple[str, ...] = ("num_experts", "num_local_experts")
    ffn_key = "moe_intermediate_size"
    normalized = True
    normalized_key = ""

    def own_from_hf(self, c: Section) -> dict[str, object]:
        """The experts' sizes."""
        count = next((key for key in self.count_keys if c.values.get(key) is not None), self.count_keys[0])
        return {
            "experts": c.integer(count),
            "experts_used": c.integer("num_experts_per_tok"),
            "expert_ffn": c.integer(self.ffn_key),
            "normalized": c.flag(self.normalized_key) if self.normalized_key else self.normalized,
        }

    def own_to_hf(self, config: ModelConfig) -> Fields:
        """The experts' sizes."""
        sizes = self.sizes(config)
        written = {
            **super().own_to_hf(config),
            self.count_keys[0]: sizes.experts,
            "num_experts_per_tok": sizes.experts_used,
            self.ffn_key: sizes.expert_ffn,
        }
        return written | ({self.normalized_key: sizes.normalized} if self.normalized_key else {})

    def sizes(self, config: ModelConfig) -> ExpertSizes:
        """The experts' sizes."""
        return settings(ExpertSizes, config)

    def channels(self, config: ModelConfig, layer: int) -> Mixer:
        """A router and its experts."""
        sizes, gate = self.sizes(config), config.activation
        return Experts(sizes.experts, sizes.expert_ffn, self.routing(sizes), self.expert(gate), **self.beside(config))

    def beside(self, config: ModelConfig) -> Fields:
        """Further fields of `Experts`: a shared expert, biases."""
        return {}

    def routing(self, sizes: ExpertSizes) -> Routing:
        """How the router's scores become weights."""
        return Routing(sizes.experts_used, "softmax", sizes.normalized)

    def expert(self, gate: Gate) -> Ffn:
        """What an expert computes."""
        return Ffn(gate)

    def links(self, config: ModelConfig, names: Collection[str]) -> Sequence[Link]:
        """Experts as matrices of their own, or all in one tensor."""
        found: list[Link] = []
        for name, _ in self.network(config).shapes():
            role = name.split(".", 2)[-1].rpartition(".")[0]
            if role not in self.expert_names:
                found.append(self.link(name))
            elif (link := self.expert_link(config, name, role, names)) is not None:
                found.append(link)
        return found

    def expert_link(self, config: ModelConfig, name: str, role: str, names: Collection[str]) -> Link | None:
        """A stack of experts; None for the second half of a tensor that the first one's link covers."""
        layer = name.split(".")[1]
        prefix = f"model.layers.{layer}."
        pattern = f"{prefix}{self.expert_names[role]}.weight"
        label = pattern.replace("{}.", "")
        together = prefix + self.expert_names["ffn_gate_exps"].partition("{}")[0]
        if f"{together}gate_up_proj" not in names:
            return stacked(name, [pattern.format(i) for i in range(self.sizes(config).experts)], label)
        if role == "ffn_down_exps":
            return one(name, f"{together}down_proj")
        up = name.replace("ffn_gate_exps", "ffn_up_exps")
        labels = label, label.replace("gate", "up")
        return halves((name, up), f"{together}gate_up_proj", labels) if role == "ffn_gate_exps" else None

    def gguf_fits(self, keys: Section) -> bool:
        """Files with experts."""
        return bool(keys.values.get("expert_count"))

    def gguf_metadata(self, config: ModelConfig) -> Mapping[str, Setting]:
        """The experts' sizes; what llama.cpp computes otherwise is refused."""
        sizes = self.sizes(config)
        if sizes.normalized != self.normalized:
            architecture = self.gguf.architecture if self.gguf else ""
            raise UnsupportedModelError(
                f"{self.normalized_key} of the model is {sizes.normalized}, and llama.cpp computes {architecture} "
                f"files as if it were {self.normalized}; choose another format"
            )
        return super().gguf_metadata(config)

    def gguf_own(self, config: ModelConfig, own: dict[str, object]) -> dict[str, object]:
        """The experts' inner width where it has no key of its own: that of the feed-forward network."""
        return {"expert_ffn": config.ffn, "normalized": self.normalized, **own}


__all__ = ["EXPERTS", "EXPERT_FFN", "KEYS", "MOST", "ExpertSizes", "Mixture"]
