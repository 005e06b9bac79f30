"""Llama 4, its text models: chunked attention with positions, full attention without, experts of one weight each."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import cache

import attrs

from edgekit.architectures._config import LIMITS, ModelConfig, integer_field, number_field, settings
from edgekit.architectures._family import Gguf, Key, Setting
from edgekit.architectures._section import Fields, Section
from edgekit.architectures.decoder import COMMON, LAYER, Decoder, layer_types
from edgekit.architectures.links import Link, Tensors, halves, mapped, transposed
from edgekit.architectures.mixers import Experts, Gated, Mixer, Temper
from edgekit.architectures.mixture import EXPERT_FFN, KEYS, ExpertSizes
from edgekit.architectures.ops import Attend, Ffn, Routing
from edgekit.architectures.rope import Rope
from edgekit.errors import InvalidFileError, UnsupportedModelError
from edgekit.tensor import AnyTensor

#: What llama.cpp computes for all files: sizes of chunks and of the steps of the temperature, layers without positions.
CHUNK, STEPS, GROWTH, NO_ROPE = 8192, 8192, 0.1, 4
#: With so many experts llama.cpp normalizes no queries and keys.
_NO_NORM = 128
STEP, WINDOW = "interleave_moe_layer_step", "attention.sliding_window"
_CHUNKED, _FULL = "chunked_attention", "full_attention"


@attrs.frozen(kw_only=True)
class Sizes(ExpertSizes):
    """What is Llama 4's own; `ModelConfig.ffn` is the inner width of dense layers.

    Attributes:
        sparse: which layers have experts.
        rotates: which layers have positions.
        chunked: which layers attend to their own chunk alone.
        chunk: positions of a chunk.
        unit_norm: whether queries and keys are normalized in layers with positions.
        tempered: whether queries grow with their position in layers without.
        growth, steps: by how much, and after how many positions.
    """

    sparse: tuple[bool, ...]
    rotates: tuple[bool, ...]
    chunked: tuple[bool, ...]
    chunk: int = integer_field(LIMITS["context"], 1, default=CHUNK)
    unit_norm: bool = True
    tempered: bool = True
    growth: float = number_field(default=GROWTH)
    steps: int = integer_field(LIMITS["context"], 1, default=STEPS)


class Llama4Text(Decoder):
    """Llama 4."""

    name = "llama4_text"
    model_types = ("llama4_text", "llama4")
    hf_class = "Llama4ForCausalLM"
    apart = "chunked attention with positions, full attention without; experts whose inputs are weighted, one shared"
    nested = True
    defaults = COMMON | {
        "vocab_size": 202_048,
        "hidden_size": 5120,
        "intermediate_size": 8192,
        "intermediate_size_mlp": 16_384,
        "num_hidden_layers": 48,
        "num_attention_heads": 40,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "max_position_embeddings": 131_072,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500_000.0,
        "num_experts_per_tok": 1,
        "num_local_experts": 16,
        "moe_layers": None,
        "interleave_moe_layer_step": 1,
        "use_qk_norm": True,
        "no_rope_layers": None,
        "no_rope_layer_interval": 4,
        "attention_chunk_size": 8192,
        "attn_temperature_tuning": True,
        "floor_scale": 8192,
        "attn_scale": 0.1,
    }
    gguf = Gguf("llama4", biases=False, divisors=("rope_freqs.weight",), keys=(*KEYS, EXPERT_FFN, Key("step", STEP)))
    layer_names = LAYER | {
        "ffn_gate": "feed_forward.gate_proj",
        "ffn_up": "feed_forward.up_proj",
        "ffn_down": "feed_forward.down_proj",
        "ffn_gate_shexp": "feed_forward.shared_expert.gate_proj",
        "ffn_up_shexp": "feed_forward.shared_expert.up_proj",
        "ffn_down_shexp": "feed_forward.shared_expert.down_proj",
        "ffn_gate_inp": "feed_forward.router",
    }

    # config.json.

    def ffn_from_hf(self, c: Section) -> int:
        """That of dense layers."""
        return c.integer("intermediate_size_mlp")

    def own_from_hf(self, c: Section) -> dict[str, object]:
        """All sizes."""
        layers = c.integer("num_hidden_layers")
        if not 1 <= layers <= LIMITS["layers"]:  # check_config says so
            layers = 0
        rotates = _flags(c, "no_rope_layers", layers, max(1, c.integer("no_rope_layer_interval")))
        types = c.values["layer_types"] or [_CHUNKED if each else _FULL for each in rotates]
        types = layer_types(Section({**c.values, "layer_types": types}, c.where), layers, (_CHUNKED, _FULL))
        sparse = c.values["moe_layers"]
        if sparse is None:
            step = max(1, c.integer("interleave_moe_layer_step"))
            sparse = range(step - 1, layers, step)
        elif not isinstance(sparse, list) or any(type(each) is not int for each in sparse):
            raise InvalidFileError(f"{c.where}: moe_layers has to be a list of layers; the file is damaged")
        chunked = tuple(name == _CHUNKED for name in types)
        return {
            "experts": c.integer("num_local_experts"),
            "experts_used": c.integer("num_experts_per_tok"),
            "expert_ffn": c.integer("intermediate_size"),
            "normalized": False,
            "sparse": tuple(layer in sparse for layer in range(layers)),
            "rotates": rotates,
            "chunked": chunked,
            "chunk": c.integer("attention_chunk_size") if any(chunked) else CHUNK,
            "unit_norm": c.flag("use_qk_norm"),
            "tempered": c.flag("attn_temperature_tuning"),
            "growth": c.number("attn_scale"),
            "steps": c.integer("floor_scale"),
        }

    def own_to_hf(self, config: ModelConfig) -> Fields:
        """All sizes."""
        own = settings(Sizes, config)
        return {
            **super().own_to_hf(config),
            "intermediate_size": own.expert_ffn,
            "intermediate_size_mlp": config.ffn,
            "num_local_experts": own.experts,
            "num_experts_per_tok": own.experts_used,
            "moe_layers": [layer for layer, sparse in enumerate(own.sparse) if sparse],
            "no_rope_layers": [int(rotates) for rotates in own.rotates],
            "layer_types": [_CHUNKED if chunked else _FULL for chunked in own.chunked],
            "attention_chunk_size": own.chunk,
            "use_qk_norm": own.unit_norm,
            "attn_temperature_tuning": own.tempered,
            "attn_scale": own.growth,
            "floor_scale": own.steps,
        }

    # Blocks.

    def tokens(self, config: ModelConfig, layer: int, rope: Rope) -> Mixer:
        """In chunks with positions, or full without."""
        own = settings(Sizes, config)
        if any(len(each) != config.layers for each in (own.sparse, own.rotates, own.chunked)):
            raise InvalidFileError(f"the kinds of {config.layers} layers are {own.rotates!r:.60}; the file is damaged")
        rotates, temper = own.rotates[layer], Temper(own.growth, own.steps, 1)
        return attrs.evolve(
            self.attention(config, layer, _neighbours(rope) if rotates else None),
            how=Attend(config.attention_scale, chunk=own.chunk if own.chunked[layer] else None),
            unit_norm=own.unit_norm and rotates,
            temper=temper if own.tempered and not rotates else None,
        )

    def channels(self, config: ModelConfig, layer: int) -> Mixer:
        """Experts, or a dense network."""
        own, gate = settings(Sizes, config), config.activation
        if not own.sparse[layer]:
            return Gated(config.ffn, gate)
        routing = Routing(own.experts_used, "sigmoid", normalized=False)
        shared = Gated(own.expert_ffn, gate, suffix="_shexp")
        return Experts(own.experts, own.expert_ffn, routing, Ffn(gate, weighted_input=True), shared=shared)

    # Tensors.

    def links(self, config: ModelConfig, names: Collection[str]) -> Sequence[Link]:
        """Experts in two tensors [experts, in, out], gate before up."""
        found: list[Link] = []
        for name, shape in self.network(config).shapes():
            role = name.split(".", 2)[-1].removesuffix(".weight")
            prefix = f"model.layers.{name.split('.')[1]}.feed_forward.experts."
            if role == "ffn_gate_exps":
                found.append(_gate_up(name, f"{prefix}gate_up_proj", shape))
            elif role == "ffn_down_exps":
                found.append(_turned(name, f"{prefix}down_proj", shape))
            elif role != "ffn_up_exps":
                found.append(self.link(name))
        return found

    # GGUF.

    def gguf_fits(self, keys: Section) -> bool:
        """By the architecture alone."""
        return True

    def gguf_metadata(self, config: ModelConfig) -> Mapping[str, Setting]:
        """llama.cpp knows one kind of chunks, of temperature, of layers without positions."""
        own, layers = settings(Sizes, config), range(config.layers)
        positions = tuple((layer + 1) % NO_ROPE != 0 for layer in layers)
        computed = {
            "attention_chunk_size": (own.chunk, CHUNK),
            "no_rope_layers": (own.rotates, positions),
            "layer_types": (own.chunked, positions),
            "attn_temperature_tuning": (own.tempered, True),
            "attn_scale": (own.growth, GROWTH),
            "floor_scale": (own.steps, STEPS),
            "use_qk_norm": (own.unit_norm, own.experts != _NO_NORM),
        }
        for key, (given, fixed) in computed.items():
            if given != fixed:
                raise UnsupportedModelError(
                    f"{key} of the model is {given!r:.60}, and llama.cpp computes llama4 files as if it were "
                    f"{fixed!r:.60}; choose another format"
                )
        step = own.sparse.index(True) + 1 if any(own.sparse) else 0
        if own.sparse != tuple(step > 0 and (layer + 1) % step == 0 for layer in layers):
            raise UnsupportedModelError(
                f"moe_layers of the model is {[i for i in layers if own.sparse[i]]!r:.60}, and llama.cpp knows experts "
                "in every n-th layer alone; choose another format"
            )
        sizes = {key.key: config.own[key.name] for key in (*KEYS, EXPERT_FFN)}
        return {**sizes, STEP: step}  # type: ignore[dict-item]

    def gguf_config(self, config: ModelConfig, keys: Section, tensors: Mapping[str, AnyTensor]) -> ModelConfig:
        """What llama.cpp computes for all files."""
        if keys.values.get(WINDOW, CHUNK) != CHUNK:
            raise UnsupportedModelError(
                f"{keys.where}: {WINDOW} is {keys.values[WINDOW]}; edgekit knows llama4 files without"
            )
        values = {key.key: None for key in (*KEYS, EXPERT_FFN)} | {STEP: 0} | dict(keys.values)
        c, layers = Section(values, keys.where), range(config.layers)
        positions = tuple((layer + 1) % NO_ROPE != 0 for layer in layers)
        step, sizes = c.integer(STEP), {key.name: c.integer(key.key) for key in (*KEYS, EXPERT_FFN)}
        own = {
            **sizes,
            "normalized": False,
            "sparse": tuple(step > 0 and (layer + 1) % step == 0 for layer in layers),
            "rotates": positions,
            "chunked": positions,
            "unit_norm": sizes["experts"] != _NO_NORM,
            "chunk": CHUNK,
            "tempered": True,
            "growth": GROWTH,
            "steps": STEPS,
        }
        return self.checked(attrs.evolve(config, sliding_window=None, full_attention_every=0, own=own), keys.where)


def _flags(c: Section, key: str, layers: int, every: int) -> tuple[bool, ...]:
    """A list of 0 and 1 for each layer; without one 0 for every n-th."""
    given = c.values[key]
    if not given:
        return tuple((layer + 1) % every != 0 for layer in range(layers))
    if not isinstance(given, list) or len(given) < layers or any(each not in (0, 1) for each in given):
        raise InvalidFileError(f"{c.where}: {key} has to be a list of {layers} numbers, 0 or 1; the file is damaged")
    return tuple(bool(each) for each in given[:layers])


@cache
def _neighbours(rope: Rope) -> Rope:
    """One object for all layers; its pairs lie beside each other."""
    return attrs.evolve(rope, neighbours=True)


def _gate_up(gate: str, hf: str, shape: tuple[int, ...]) -> Link:
    """Two stacks [experts, ffn, width] of one tensor [experts, width, 2 ffn]."""
    count, ffn, width = shape
    label = f"{hf.removesuffix('gate_up_proj')}"
    both = halves((gate, gate.replace("gate", "up")), hf, (f"{label}gate_proj.weight", f"{label}up_proj.weight"))

    def read(tensors: Tensors) -> Tensors:
        _check(tensors[0], (count, width, 2 * ffn))
        return both.read((transposed(tensors, (count, 2 * ffn, width), tensors[0].name),))

    def write(tensors: Tensors) -> Tensors:
        return (transposed(both.write(tensors), (count, width, 2 * ffn), hf),)

    return attrs.evolve(both, read=read, write=write)


def _turned(name: str, hf: str, shape: tuple[int, ...]) -> Link:
    """A stack whose matrices are transposed."""
    count, out, inner = shape

    def read(tensor: AnyTensor) -> AnyTensor:
        _check(tensor, (count, inner, out))
        return transposed((tensor,), shape, tensor.name)

    return mapped(name, hf, read, lambda tensor: transposed((tensor,), (count, inner, out), hf))


def _check(tensor: AnyTensor, shape: tuple[int, ...]) -> None:
    if tensor.shape != shape:
        raise InvalidFileError(
            f"tensor {tensor.name} has shape {list(tensor.shape)}, the configuration asks for {list(shape)}; the two "
            "do not belong together"
        )


__all__ = ["Llama4Text", "Sizes"]
