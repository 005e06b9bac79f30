"""Gemma 4: text models with experts or dense, with per-layer embeddings (E2B, E4B), and those of multimodal ones."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

import attrs

from edgekit.architectures._config import LIMITS, ModelConfig, RopeScaling, integer_field, settings
from edgekit.architectures._family import Gguf, Key, Setting
from edgekit.architectures._section import Fields, Section
from edgekit.architectures.blocks import Block, Network
from edgekit.architectures.decoder import COMMON, LAYER, TOP, Decoder, fraction
from edgekit.architectures.links import Link, one
from edgekit.architectures.mixers import ExpertsBeside, Gated, Mixer, Shape
from edgekit.architectures.mixture import MOST
from edgekit.architectures.ops import Attend, Ffn, Ops, Routing, V
from edgekit.architectures.rope import Rope
from edgekit.errors import InvalidFileError, UnsupportedModelError
from edgekit.tensor import AnyTensor

KV_HEADS, FFN, SHARED = "attention.head_count_kv", "feed_forward_length", "attention.shared_kv_layers"
#: Divisor of a frequency that does not turn: llama.cpp's, finite in float32.
STILL = 1e30
_FULL, _SLIDING = "full_attention", "sliding_attention"


@attrs.frozen(kw_only=True)
class Sizes:
    """What is Gemma 4's own; `ModelConfig` has the sizes of layers with a window, but for ``head_dim``.

    Attributes:
        window_head_dim: width of a head in layers with a window.
        global_kv_heads: key heads in layers without one.
        keys_as_values: whether layers without a window have no ``attn_v``.
        shared: how many layers at the end use the keys and values of earlier ones.
        double_wide: whether those have a feed-forward network of twice the width.
        per_layer: width of the embeddings that each layer has of its own; 0: none.
        experts, experts_used, expert_ffn: in a layer, by a token, and the inner width of one; 0 in dense models.
    """

    window_head_dim: int = integer_field(LIMITS["head_dim"], 1)
    global_kv_heads: int = integer_field(LIMITS["kv_heads"], 1)
    keys_as_values: bool = False
    shared: int = integer_field(LIMITS["layers"], default=0)
    double_wide: bool = False
    per_layer: int = integer_field(LIMITS["width"], default=0)
    experts: int = integer_field(MOST, default=0)
    experts_used: int = integer_field(MOST, default=0)
    expert_ffn: int = integer_field(LIMITS["ffn"], default=0)

    def __attrs_post_init__(self) -> None:
        """Refuse sizes that contradict each other."""
        if self.experts and not (1 <= self.experts_used <= self.experts and self.expert_ffn):
            raise InvalidFileError(
                f"each token uses {self.experts_used} of {self.experts} experts of width {self.expert_ffn}; the file "
                "is damaged"
            )


@attrs.frozen
class ScaledBlock(Block):
    """A block whose result is multiplied by a number of its own, ``layer_output_scale``, after its own embedding.

    Attributes:
        per_layer: width of the layer's own embedding; 0 without.
    """

    per_layer: int = 0

    def shapes(self, width: int) -> Iterator[tuple[str, Shape]]:
        """See `Block.shapes`."""
        yield from super().shapes(width)
        if self.per_layer:
            yield "inp_gate.weight", (self.per_layer, width)
            yield "proj.weight", (width, self.per_layer)
            yield "post_norm.weight", (width,)
        yield "layer_output_scale.weight", (1,)

    def forward(self, ops: Ops[V], layer: int, x: V, given: V | None = None) -> V:
        """See `Block.forward`; `given` is the layer's own embedding, [batch, n, per_layer]."""
        x, block = super().forward(ops, layer, x), f"blk.{layer}."
        if given is not None:
            gated = ops.gated("gelu_tanh", ops.product(f"{block}inp_gate", x), given)
            x = ops.add(x, ops.rms_norm(ops.product(f"{block}proj", gated), self.eps, f"{block}post_norm.weight"))
        return ops.multiply(x, ops.vector(f"{block}layer_output_scale.weight"))


@attrs.frozen
class PerLayerNetwork(Network):
    """A decoder whose layers have embeddings of their own.

    Each is a part of a row of ``per_layer_token_embd``, and a normalized part of a product with the common embedding.

    Attributes:
        per_layer: width of a layer's own embedding; 0 without.
    """

    per_layer: int = 0

    def shapes(self) -> Iterator[tuple[str, Shape]]:
        """See `Network.shapes`."""
        inner = self.per_layer * len(self.blocks)
        for name, shape in super().shapes():
            yield name, shape
            if name == "token_embd.weight" and self.per_layer:
                yield "per_layer_token_embd.weight", (self.vocab, inner)
                yield "per_layer_model_proj.weight", (inner, self.width)
                yield "per_layer_proj_norm.weight", (self.per_layer,)

    def states(self, ops: Ops[V]) -> V:
        """See `Network.states`."""
        x = self.embedded(ops)
        given = self._given(ops, x) if self.per_layer else None
        for layer, block in enumerate(self.blocks):
            assert isinstance(block, ScaledBlock)
            x = block.forward(ops, layer, x, None if given is None else given[layer])
        return self.normalized(ops, x)

    def _given(self, ops: Ops[V], x: V) -> list[V]:
        """The embedding of each layer, of all new tokens."""
        count = len(self.blocks)
        product = ops.scale(ops.product("per_layer_model_proj", x), self.width**-0.5)
        normed = ops.rms_norm(ops.heads(product, count), self.eps, "per_layer_proj_norm.weight")
        own = ops.scale(ops.embed("per_layer_token_embd"), math.sqrt(self.per_layer))
        both = ops.scale(ops.add(ops.joined(normed), own), math.sqrt(0.5))
        return ops.split(both, [self.per_layer] * count)


class Gemma4(Decoder):
    """Gemma 4."""

    name = "gemma4"
    model_types = ("gemma4_text", "gemma4")
    hf_class = "Gemma4ForCausalLM"
    apart = "layers with and without a window have heads of their own size; per-layer embeddings, shared keys, experts"
    nested = True
    windows = "types"
    post_norms = True
    defaults = COMMON | {
        "vocab_size": 262_144,
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "num_hidden_layers": 30,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "hidden_activation": "gelu_pytorch_tanh",
        "max_position_embeddings": 131_072,
        "tie_word_embeddings": True,
        "sliding_window": 512,
        "final_logit_softcapping": None,
        "use_bidirectional_attention": None,
        "vocab_size_per_layer_input": 262_144,
        "hidden_size_per_layer_input": 256,
        "attention_k_eq_v": False,
        "num_kv_shared_layers": 0,
        "enable_moe_block": False,
        "use_double_wide_mlp": False,
        "num_experts": None,
        "top_k_experts": None,
        "moe_intermediate_size": None,
        "global_head_dim": 512,
        "num_global_key_value_heads": None,
        "per_layer_config": None,
        "_window_head_dim": None,
    }
    gguf = Gguf(
        "gemma4",
        gelu=True,
        untied=True,
        softcaps=(None, 30.0),
        caps_output=True,
        divisors=("rope_freqs.weight",),
        local_theta=10_000.0,
        states=("attention_scale",),
        per_layer=(KV_HEADS, FFN),
        keys=(
            Key("window_head_dim", "attention.key_length_swa"),
            Key("shared", SHARED, 0),
            Key("per_layer", "embedding_length_per_layer_input", 0),
            Key("experts", "expert_count", 0),
            Key("experts_used", "expert_used_count", 0),
            Key("expert_ffn", "expert_feed_forward_length", 0),
        ),
    )
    layer_names = LAYER | {
        "post_attention_norm": "post_attention_layernorm",
        "ffn_norm": "pre_feedforward_layernorm",
        "post_ffw_norm": "post_feedforward_layernorm",
        "post_ffw_norm_1": "post_feedforward_layernorm_1",
        "post_ffw_norm_2": "post_feedforward_layernorm_2",
        "pre_ffw_norm_2": "pre_feedforward_layernorm_2",
        "ffn_gate_inp": "router.proj",
        "inp_gate": "per_layer_input_gate",
        "proj": "per_layer_projection",
        "post_norm": "post_per_layer_input_norm",
    }

    # config.json.

    def refuse(self, c: Section) -> None:
        """Biases, attention to both sides of text, embeddings of another vocabulary."""
        if c.values["use_bidirectional_attention"] not in (None, "vision"):
            c.refuse("use_bidirectional_attention", c.values["use_bidirectional_attention"], "null and 'vision'")
        if c.flag("attention_bias"):
            c.refuse("attention_bias", True, "false for Gemma 4")
        width, rows = c.integer("hidden_size_per_layer_input"), c.values["vocab_size_per_layer_input"]
        if width and rows != c.integer("vocab_size"):
            c.refuse("vocab_size_per_layer_input", rows, f"the vocabulary's {c.values['vocab_size']}")

    def config_from_hf(self, config: Mapping[str, Any], where: str) -> ModelConfig:
        """``head_dim`` is that of layers with a window there, and `ModelConfig.head_dim` that of the others."""
        c = Section({**self.defaults, **config}, where)
        head_dim, _ = self._global(c)
        both = {"head_dim": head_dim, "_window_head_dim": c.values["head_dim"]}
        return super().config_from_hf({**config, **both}, where)

    def _global(self, c: Section) -> tuple[int, int]:
        """Width and number of key heads in layers without a window."""
        overrides = c.section("per_layer_config")
        if c.values["per_layer_config"] is None:
            same = c.values["num_global_key_value_heads"] is None or not c.flag("attention_k_eq_v")
            return c.integer("global_head_dim"), c.integer("num_" + ("" if same else "global_") + "key_value_heads")
        types = c.values["layer_types"] or []
        full = {layer for layer, name in enumerate(types) if name == _FULL}
        given = list(overrides.values())
        if not given:  # all layers are alike
            return c.integer("head_dim"), c.integer("num_key_value_heads")
        known = isinstance(given[0], Mapping) and set(given[0]) <= {"head_dim", "num_key_value_heads"}
        # transformers writes layers with as many digits as the last one has: "05" of 30.
        layers = {int(layer) for layer in overrides if layer.isascii() and layer.isdigit() and len(layer) < 9}
        if not known or any(each != given[0] for each in given) or layers != full or len(overrides) != len(full):
            c.refuse("per_layer_config", overrides, "head_dim and num_key_value_heads of all layers without a window")
        both = {"head_dim": c.values["head_dim"], "num_key_value_heads": c.values["num_key_value_heads"]}
        found = Section({**both, **given[0]}, c.where)
        return found.integer("head_dim"), found.integer("num_key_value_heads")

    def rope_from_hf(self, c: Section, head_dim: int) -> Fields:
        """Two rotations; in layers without a window a part of the frequencies alone turns."""
        given = c.section("rope_parameters")
        full, sliding = (Section(Section(given, c.where).section(key), c.where) for key in (_FULL, _SLIDING))
        for p, kind, key in ((full, "proportional", _FULL), (sliding, "default", _SLIDING)):
            named = p.values.get("rope_type", kind)
            if named != kind or p.values.get("factor", 1.0) != 1.0:
                c.refuse(f"rope_parameters of {key}", p.values, f"{kind} there")
        numbers = {"rope_theta": 1_000_000.0, "partial_rotary_factor": 0.25, **full.values}
        factor = Section(numbers, c.where).number("partial_rotary_factor")
        turning = int(factor * head_dim // 2)
        if not 0 < turning <= head_dim // 2:
            c.refuse("partial_rotary_factor", factor, "a part of a head that turns")
        return {
            "rope_theta": Section(numbers, c.where).number("rope_theta"),
            "rope_theta_local": Section({"rope_theta": 10_000.0, **sliding.values}, c.where).number("rope_theta"),
            "rotary_dim": head_dim,
            "rope_scaling": _proportional(turning, head_dim, c.integer("max_position_embeddings")),
        }

    def attention_scale(self, c: Section, head_dim: int) -> float:
        """Queries and keys are normalized, and not scaled."""
        return 1.0

    def embedding_scale(self, c: Section, width: int) -> float:
        """The square root of the width."""
        return math.sqrt(max(width, 0))

    def biases(self, c: Section) -> Fields:
        """None."""
        return {}

    def sliding_by_default(self, c: Section, layers: int) -> list[bool]:
        """All but every sixth and the last."""
        return [(layer + 1) % 6 != 0 and layer != layers - 1 for layer in range(layers)]

    def own_from_hf(self, c: Section) -> dict[str, object]:
        """All sizes."""
        moe = c.flag("enable_moe_block")
        keys = {"experts": "num_experts", "experts_used": "top_k_experts", "expert_ffn": "moe_intermediate_size"}
        _, kv_heads = self._global(Section({**c.values, "head_dim": 1}, c.where))
        return {
            "window_head_dim": c.integer("_window_head_dim"),
            "global_kv_heads": kv_heads,
            "keys_as_values": c.flag("attention_k_eq_v"),
            "shared": c.integer("num_kv_shared_layers"),
            "double_wide": c.flag("use_double_wide_mlp") and c.integer("num_kv_shared_layers") > 0,
            "per_layer": c.integer("hidden_size_per_layer_input"),
            **{name: c.integer(key) if moe else 0 for name, key in keys.items()},
        }

    def config_to_hf(self, config: ModelConfig) -> Fields:
        """Both head widths, and both rotations."""
        own, written = settings(Sizes, config), super().config_to_hf(config)
        del written["rope_theta"], written["rope_scaling"], written["hidden_act"]
        divisors = () if config.rope_scaling is None else config.rope_scaling.long_factors
        part = fraction(2 * sum(divisor == 1 for divisor in divisors), config.head_dim)
        full = [layer for layer in range(config.layers) if config.window(layer) is None]
        override = {"head_dim": config.head_dim, "num_key_value_heads": own.global_kv_heads}
        return written | {
            "head_dim": own.window_head_dim,
            "global_head_dim": config.head_dim,
            "num_global_key_value_heads": own.global_kv_heads if own.keys_as_values else None,
            "per_layer_config": {str(layer): override for layer in full},
            "hidden_activation": "gelu_pytorch_tanh",
            "rope_parameters": {
                _FULL: {
                    "rope_type": "proportional",
                    "rope_theta": config.rope_theta,
                    "partial_rotary_factor": part,
                },
                _SLIDING: {"rope_type": "default", "rope_theta": config.rope_theta_local},
            },
            "final_logit_softcapping": config.output_softcap,
            "vocab_size_per_layer_input": config.vocab,
            "hidden_size_per_layer_input": own.per_layer,
            "attention_k_eq_v": own.keys_as_values,
            "num_kv_shared_layers": own.shared,
            "use_double_wide_mlp": own.double_wide,
            "enable_moe_block": own.experts > 0,
            "num_experts": own.experts or None,
            "top_k_experts": own.experts_used or None,
            "moe_intermediate_size": own.expert_ffn or None,
        }

    # Blocks.

    def network(self, config: ModelConfig) -> Network:
        """With embeddings for each layer."""
        own = settings(Sizes, config)
        plain = super().network(config)
        fields = {field.name: getattr(plain, field.name) for field in attrs.fields(Network)}
        alone = not (own.per_layer or own.shared)
        return PerLayerNetwork(**fields | {"alone": alone}, per_layer=own.per_layer)

    def block(self, config: ModelConfig, layer: int, ropes: Mapping[bool, Rope]) -> Block:
        """The norm before the experts is theirs."""
        own, plain = settings(Sizes, config), super().block(config, layer, ropes)
        fields = {field.name: getattr(plain, field.name) for field in attrs.fields(Block)}
        if own.experts:
            fields["channels_norm"] = None
        return ScaledBlock(**fields, per_layer=own.per_layer)

    def tokens(self, config: ModelConfig, layer: int, rope: Rope) -> Mixer:
        """Heads of another size in layers with a window; keys and values of an earlier layer in the last ones."""
        own, slides = settings(Sizes, config), config.window(layer) is not None
        if not 0 <= own.shared < config.layers:
            raise InvalidFileError(f"{own.shared} of {config.layers} layers share keys; at least one has its own")
        mixer = attrs.evolve(
            self.attention(config, layer, rope),
            how=Attend(1.0, config.window(layer)),
            norm="head",
            value_norm=True,
            shares=_source(config, layer, own.shared),
        )
        if not slides:
            return attrs.evolve(mixer, kv_heads=own.global_kv_heads, keys_as_values=own.keys_as_values)
        theta = config.rope_theta if config.rope_theta_local is None else config.rope_theta_local
        return attrs.evolve(mixer, head_dim=own.window_head_dim, rope=_local(theta, own.window_head_dim))

    def channels(self, config: ModelConfig, layer: int) -> Mixer:
        """A dense network, and experts beside it."""
        own = settings(Sizes, config)
        wide = own.double_wide and layer >= config.layers - own.shared
        dense = Gated(config.ffn * (2 if wide else 1), "gelu_tanh")
        if not own.experts:
            return dense
        routing, network = Routing(own.experts_used, "softmax"), Ffn("gelu_tanh", fused=True)
        return ExpertsBeside(config.width, dense, own.experts, own.expert_ffn, routing, network, config.norm_eps)

    # Names.

    def link(self, name: str) -> Link:
        """Tensors that are no ``weight`` of a module there."""
        layer, role = name.split(".")[1], name.split(".", 2)[-1]
        special = {
            "layer_output_scale.weight": "layer_scalar",
            "ffn_gate_inp.scale": "router.scale",
            "ffn_down_exps.scale": "router.per_expert_scale",
            "ffn_gate_up_exps.weight": "experts.gate_up_proj",
            "ffn_down_exps.weight": "experts.down_proj",
        }
        return one(name, f"model.layers.{layer}.{special[role]}") if role in special else super().link(name)

    def hf_name(self, name: str) -> str:
        """Also the embeddings of the layers."""
        stem, _, kind = name.rpartition(".")
        return f"{_TOP[stem]}.{kind}" if stem in _TOP else super().hf_name(name)

    # GGUF.

    def gguf_fits(self, keys: Section) -> bool:
        """With experts or without."""
        return True

    def gguf_metadata(self, config: ModelConfig) -> Mapping[str, Setting]:
        """Arrays for what differs from layer to layer; llama.cpp shares the keys of the last two own layers."""
        own = settings(Sizes, config)
        first = config.layers - own.shared
        for layer in range(first, config.layers):
            expected = first - (1 if config.window(layer) is None else 2)
            if _source(config, layer, own.shared) != expected:
                raise UnsupportedModelError(
                    f"layer {layer} of the model shares the keys and values of layer "
                    f"{_source(config, layer, own.shared)}, and llama.cpp computes gemma4 files with those of layer "
                    f"{expected}; choose another format"
                )
        if config.sliding_window is None:
            raise UnsupportedModelError(
                "no layer of the model has a window, and llama.cpp loads no such gemma4 files; choose another format"
            )
        slides = [config.window(layer) is not None for layer in range(config.layers)]
        wide = [own.double_wide and layer >= first for layer in range(config.layers)]
        further: dict[str, Setting] = {
            **{key: value for key, value in super().gguf_metadata(config).items() if value or "expert" not in key},
            "attention.value_length_swa": own.window_head_dim,
            "rope.dimension_count_swa": own.window_head_dim,
            KV_HEADS: tuple(config.kv_heads if s else own.global_kv_heads for s in slides),
        }
        return further | ({FFN: tuple(config.ffn * (2 if w else 1) for w in wide)} if any(wide) else {})

    def gguf_config(self, config: ModelConfig, keys: Section, tensors: Mapping[str, AnyTensor]) -> ModelConfig:
        """What differs from layer to layer."""
        layers = range(config.layers)
        slides = [config.window(layer) is not None for layer in layers]
        counts = _per_layer(keys, KV_HEADS, config.kv_heads, config.layers)
        widths = _per_layer(keys, FFN, config.ffn, config.layers)
        sliding = {count for count, s in zip(counts, slides, strict=True) if s} or {config.kv_heads}
        full = {count for count, s in zip(counts, slides, strict=True) if not s} or {config.kv_heads}
        shared = Section({SHARED: 0, **keys.values}, keys.where).integer(SHARED)
        ffn = min(widths)
        expected = [ffn * (2 if max(widths) > ffn and layer >= config.layers - shared else 1) for layer in layers]
        if len(sliding) > 1 or len(full) > 1 or list(widths) != expected:
            raise UnsupportedModelError(
                f"{keys.where}: {KV_HEADS} is {counts!r:.60}, {FFN} {widths!r:.60}; edgekit knows one number of key "
                "heads for layers with a window and one for the others, and twice the width in layers that share keys"
            )
        scaling = config.rope_scaling
        if scaling is None or not set(scaling.long_factors) <= {1.0, _STILL32}:
            raise UnsupportedModelError(
                f"{keys.where}: rope_freqs.weight has to hold 1 and 1e30 alone for gemma4 files"
            )
        turning = sum(divisor == 1 for divisor in scaling.long_factors)
        values = {
            **keys.values,
            "expert_feed_forward_length": max(_per_layer(keys, "expert_feed_forward_length", 0, 1)),
        }
        read = attrs.evolve(
            config,
            ffn=ffn,
            kv_heads=sliding.pop(),
            attention_scale=1.0,
            rope_scaling=_proportional(turning, config.head_dim, config.context),
        )
        further = {
            "global_kv_heads": full.pop(),
            "double_wide": max(widths) > ffn,
            "keys_as_values": not any(f"blk.{layer}.attn_v.weight" in tensors for layer in layers if not slides[layer]),
        }
        own = {key.name: values.get(key.key, key.default) for key in self.gguf.keys}
        if own["window_head_dim"] is ...:
            raise InvalidFileError(f"{keys.where}: key 'attention.key_length_swa' is missing; convert the model again")
        return self.checked(attrs.evolve(read, own={**own, **further}), keys.where)


_TOP = TOP | {
    "per_layer_token_embd": "model.embed_tokens_per_layer",
    "per_layer_model_proj": "model.per_layer_model_projection",
    "per_layer_proj_norm": "model.per_layer_projection_norm",
}


def _per_layer(keys: Section, key: str, default: int, layers: int) -> tuple[int, ...]:
    value = keys.values.get(key, default)
    return tuple(value) if isinstance(value, tuple) else (value,) * layers


def _source(config: ModelConfig, layer: int, shared: int) -> int | None:
    """The layer whose keys and values a layer uses: the last of its kind that has its own; None for its own."""
    first = config.layers - shared
    if layer < first:
        return None
    slides = config.window(layer) is not None
    alike = [each for each in range(first) if (config.window(each) is not None) == slides]
    if not alike:
        raise InvalidFileError(f"layer {layer} shares keys, and no layer of its kind has some; the file is damaged")
    return alike[-1]


@cache
def _local(theta: float, dim: int) -> Rope:
    """One object for all layers."""
    return Rope(theta, dim)


def _proportional(turning: int, head_dim: int, context: int) -> RopeScaling:
    """The first frequencies of a head turn, as they would if all did; the others stand still."""
    divisors = (1.0,) * turning + (_STILL32,) * (head_dim // 2 - turning)
    return RopeScaling("longrope", original_context=context, long_factors=divisors, short_factors=divisors)


#: As a file in float32 gives it back.
_STILL32 = 1.0000000150474662e30

__all__ = ["Gemma4", "PerLayerNetwork", "ScaledBlock", "Sizes"]
