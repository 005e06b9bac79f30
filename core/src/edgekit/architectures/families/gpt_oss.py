"""gpt-oss (20b and 120b), its experts in MXFP4 or in floats.

Hugging Face stacks experts in one tensor. In floats it is [experts, in, out], gate and up in columns that alternate; in
MXFP4 its blocks are of rows [experts, out, in], which alternate. Canonical are two stacks [experts, out, in].
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import attrs
import numpy as np

from edgekit.architectures._config import ModelConfig
from edgekit.architectures._family import Gguf, Setting
from edgekit.architectures._hf_rope import RopeDialect
from edgekit.architectures._section import Fields, Section
from edgekit.architectures.blocks import Block
from edgekit.architectures.decoder import COMMON, LAYER, hf_scaling
from edgekit.architectures.links import Link, Tensors, columns, every_other, mapped, transposed
from edgekit.architectures.mixture import EXPERT_FFN, KEYS, ExpertSizes, Mixture
from edgekit.architectures.ops import Ffn, Gate, Routing
from edgekit.architectures.rope import Rope
from edgekit.errors import UnsupportedModelError
from edgekit.tensor import AnyTensor, EncodedTensor, Tensor
from edgekit.typing import Array

_YARN = {
    "rope_type": "yarn",
    "factor": 32.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "truncate": False,
    "original_max_position_embeddings": 4096,
}


class GptOss(Mixture):
    """gpt-oss: sinks, a window in every other layer, clipped SwiGLU, biases everywhere."""

    name = "gpt_oss"
    model_types = ("gpt_oss",)
    hf_class = "GptOssForCausalLM"
    apart = "attention sinks, experts in MXFP4 with clipped SwiGLU, biases; a window in every other layer"
    defaults = COMMON | {
        "vocab_size": 201_088,
        "hidden_size": 2880,
        "intermediate_size": 2880,
        "num_hidden_layers": 36,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "max_position_embeddings": 131_072,
        "rms_norm_eps": 1e-5,
        "sliding_window": 128,
        "attention_bias": True,
        "rope_theta": 150_000.0,
        "rope_parameters": _YARN,
        "swiglu_alpha": 1.702,
        "swiglu_limit": 7.0,
        "num_experts_per_tok": 4,
        "num_local_experts": 128,
        "num_experts": None,
    }
    gguf = Gguf("gpt-oss", ties=False, window_period=2, keys=(*KEYS, EXPERT_FFN))
    rope = RopeDialect(any_ramp=True)
    windows = "types"
    layer_names = LAYER | {"post_attention_norm": "post_attention_layernorm", "ffn_gate_inp": "mlp.router"}
    count_keys = ("num_local_experts", "num_experts")
    ffn_key = "intermediate_size"

    def refuse(self, c: Section) -> None:
        """Another clipping than that of the models that there are."""
        super().refuse(c)
        for key, value in (("swiglu_alpha", 1.702), ("swiglu_limit", 7.0)):
            if c.number(key) != value:
                c.refuse(key, c.values[key], str(value))

    def sliding_by_default(self, c: Section, layers: int) -> list[bool]:
        """Every other layer."""
        return [(layer + 1) % 2 != 0 for layer in range(layers)]

    def own_to_hf(self, config: ModelConfig) -> Fields:
        """Rotation in transformers 5's terms: without them it takes yarn."""
        scaling = hf_scaling(config.rope_scaling) or {"rope_type": "default"}
        parameters = {**scaling, "rope_theta": config.rope_theta}
        return {**super().own_to_hf(config), "rope_parameters": parameters}

    def block(self, config: ModelConfig, layer: int, ropes: Mapping[bool, Rope]) -> Block:
        """Attention with sinks, then experts."""
        attention = self.attention(config, layer, ropes[config.window(layer) is not None])
        return Block(
            attrs.evolve(attention, sinks=True),
            self.channels(config, layer),
            config.norm_eps,
            channels_norm="post_attention_norm",
        )

    def routing(self, sizes: ExpertSizes) -> Routing:
        """A softmax over the chosen."""
        return Routing(sizes.experts_used, "chosen")

    def expert(self, gate: Gate) -> Ffn:
        """Clipped."""
        return Ffn("clipped")

    def beside(self, config: ModelConfig) -> Fields:
        """Biases of the experts and of the router."""
        return {"bias": True, "router_bias": True}

    # Tensors.

    def link(self, name: str) -> Link:
        """Sinks have no ``weight`` in their name."""
        if name.endswith("attn_sinks.weight"):
            return mapped(name, f"model.layers.{name.split('.')[1]}.self_attn.sinks", _same, _same)
        return super().link(name)

    def links(self, config: ModelConfig, names: Collection[str]) -> Sequence[Link]:
        """Experts in one tensor; their biases in another."""
        found: list[Link] = []
        for name, shape in self.network(config).shapes():
            role = name.split(".", 2)[-1]
            if "_exps." not in role:
                found.append(self.link(name))
            elif not role.startswith("ffn_up"):
                found.append(_experts(name, shape))
        return found

    # GGUF.

    def gguf_metadata(self, config: ModelConfig) -> Mapping[str, Setting]:
        """llama.cpp wants the biases."""
        if not (config.qkv_bias and config.attn_output_bias):
            raise UnsupportedModelError(
                "attention_bias of the model is false, and llama.cpp loads gpt-oss files only with biases; "
                "choose another format"
            )
        return super().gguf_metadata(config)


def _experts(name: str, shape: tuple[int, ...]) -> Link:
    """The link of a canonical stack or its biases: the gate's covers the up projection's."""
    gated, bias = "ffn_gate" in name, name.endswith(".bias")
    hf = f"model.layers.{name.split('.')[1]}.mlp.experts.{'gate_up' if gated else 'down'}_proj{'_bias' if bias else ''}"
    canonical = (name, name.replace("ffn_gate", "ffn_up")) if gated else (name,)
    labels = tuple(f"{hf}.{part}" for part in ("gate", "up")) if gated else (hf,)

    def read(tensors: Tensors) -> Tensors:
        (given,) = tensors
        if bias:
            return tuple(_columns(given, first, shape) for first in (0, 1)) if gated else (given,)
        if isinstance(given, EncodedTensor):
            return tuple(every_other(given, first, shape) for first in (0, 1)) if gated else (given,)
        whole = transposed([given], (given.shape[0], given.shape[2], given.shape[1]), given.name)
        return tuple(every_other(whole, first, shape) for first in (0, 1)) if gated else (whole,)

    def write(tensors: Tensors) -> Tensors:
        experts, *inner = tensors[0].shape
        if bias:
            return (_alternating(tensors, hf),) if gated else tensors
        return (transposed(tensors, (experts, inner[1], inner[0] * len(tensors)), hf),)

    return Link(canonical, (hf,), read, write, canonical[:1], labels)


def _columns(tensor: AnyTensor, first: int, shape: tuple[int, ...]) -> AnyTensor:
    return attrs.evolve(columns(tensor, np.arange(first, 2 * shape[-1], 2)), shape=shape)


def _alternating(tensors: Tensors, name: str) -> AnyTensor:
    """The columns of two tensors, taking turns."""

    def read_rows(start: int, stop: int) -> Array:
        return np.stack([t.float32(start, stop) for t in tensors], axis=-1).reshape(stop - start, -1)

    rows, cols = tensors[0].shape
    return Tensor(name, (rows, 2 * cols), "float32", read_rows)


def _same(tensor: AnyTensor) -> AnyTensor:
    return tensor


__all__ = ["GptOss"]
