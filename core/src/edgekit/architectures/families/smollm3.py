"""SmolLM3."""

from __future__ import annotations

from collections.abc import Mapping

import attrs

from edgekit.architectures._config import LIMITS, ModelConfig, settings
from edgekit.architectures._family import Gguf, Setting
from edgekit.architectures._section import Fields, Section
from edgekit.architectures.decoder import COMMON, Decoder
from edgekit.architectures.mixers import Mixer
from edgekit.architectures.rope import Rope
from edgekit.errors import InvalidFileError, UnsupportedModelError


@attrs.frozen
class Layers:
    """Which layers have rotary embeddings."""

    rotates: tuple[bool, ...]


def _usual(layers: int) -> tuple[bool, ...]:
    """All but every fourth."""
    return tuple((layer + 1) % 4 != 0 for layer in range(layers))


class SmolLm3(Decoder):
    """Llama in which every fourth layer has no positions."""

    name = "smollm3"
    model_types = ("smollm3",)
    hf_class = "SmolLM3ForCausalLM"
    apart = "layers without rotary embeddings"
    defaults = COMMON | {
        "vocab_size": 128_256,
        "hidden_size": 2048,
        "intermediate_size": 11_008,
        "num_hidden_layers": 36,
        "num_attention_heads": 16,
        "num_key_value_heads": 4,
        "max_position_embeddings": 32_768,
        "tie_word_embeddings": True,
        "rope_theta": 2_000_000.0,
        "use_sliding_window": False,
        "no_rope_layers": None,
        "no_rope_layer_interval": 4,
    }
    gguf = Gguf("smollm3", interleaved=True, biases=False, divisors=("rope_freqs.weight",))
    whole_heads = True

    def refuse(self, c: Section) -> None:
        """Windows, which no published model has."""
        super().refuse(c)
        if c.flag("use_sliding_window"):
            c.refuse("use_sliding_window", True, "false for this family")

    def biases(self, c: Section) -> Fields:
        """All of attention's or none, all of the feed-forward network's or none."""
        return {**super().biases(c), "ffn_bias": c.flag("mlp_bias")}

    def own_from_hf(self, c: Section) -> dict[str, object]:
        """The list, or every n-th layer without."""
        layers, listed = c.integer("num_hidden_layers"), c.values["no_rope_layers"]
        if not 1 <= layers <= LIMITS["layers"]:  # check_config says so
            return {"rotates": ()}
        if listed is None:
            every = max(1, c.integer("no_rope_layer_interval"))
            return {"rotates": tuple((layer + 1) % every != 0 for layer in range(layers))}
        if not isinstance(listed, list | tuple) or len(listed) != layers or not all(n in (0, 1) for n in listed):
            raise InvalidFileError(f"{c.where}: no_rope_layers has to be a list of {layers} numbers, 0 or 1")
        return {"rotates": tuple(map(bool, listed))}

    def own_to_hf(self, config: ModelConfig) -> Fields:
        """The list."""
        rotates = settings(Layers, config).rotates
        biases = {"attention_bias": config.qkv_bias, "mlp_bias": config.ffn_bias}
        return {**biases, "no_rope_layers": [int(each) for each in rotates]}

    def tokens(self, config: ModelConfig, layer: int, rope: Rope) -> Mixer:
        """Attention, with positions or without."""
        rotates = settings(Layers, config).rotates
        if len(rotates) != config.layers:
            raise InvalidFileError(f"rotates has {len(rotates)} items for {config.layers} layers")
        return self.attention(config, layer, rope if rotates[layer] else None)

    def gguf_metadata(self, config: ModelConfig) -> Mapping[str, Setting]:
        """llama.cpp leaves every fourth layer without positions, whatever the model does."""
        if settings(Layers, config).rotates != _usual(config.layers):
            raise UnsupportedModelError(
                "the layers of the model without rotary embeddings (no_rope_layers) are not every fourth, and "
                "llama.cpp computes smollm3 files as if they were; choose another format"
            )
        return {}

    def gguf_own(self, config: ModelConfig, own: dict[str, object]) -> dict[str, object]:
        """What llama.cpp computes."""
        return {"rotates": _usual(config.layers)}


__all__ = ["Layers", "SmolLm3"]
