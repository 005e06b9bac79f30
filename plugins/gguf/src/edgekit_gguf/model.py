"""Reads and writes hyper-parameters in GGUF metadata, and assigns a role to each tensor of a file.

The table `_KEYS` pairs fields of `ModelConfig` with keys under ``<architecture>.``. Without a key:

| what                | in GGUF                                                                              |
|---------------------|--------------------------------------------------------------------------------------|
| tied embeddings     | there is no ``output.weight``                                                        |
| biases              | the tensors are there                                                                |
| Llama 3's scaling   | ``rope_freqs.weight``: a divisor for each frequency                                  |
| long rope           | ``rope_factors_long.weight``, ``rope_factors_short.weight``                          |
| activation, scales  | the architecture decides: what differs from its own is refused                       |

Source: the GGUF specification (``docs/gguf.md``); defaults and decisions as in llama.cpp's loaders
(``llama-model.cpp``, ``models/<architecture>.cpp``), llama-cpp-python 0.3.36.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Literal, NoReturn

import attrs
import numpy as np

from edgekit.architectures import (
    FAMILIES,
    Family,
    Gguf,
    Model,
    ModelConfig,
    Pooling,
    RopeScaling,
    Section,
    Setting,
    check_config,
    check_tensors,
    tensor_shapes,
)
from edgekit.architectures.links import reshaped
from edgekit.architectures.pooled import FIRST
from edgekit.errors import InvalidFileError, UnsupportedModelError
from edgekit.files.foreign import shown
from edgekit.tensor import AnyTensor
from edgekit_gguf.metadata import Metadata, Value, f32, f32s, flag, flags, i32s, text, texts, u32
from edgekit_gguf.rotary import reorder

#: Tensors that hold rotary frequencies' divisors; they are configuration, not weights.
ROPE_FREQS = "rope_freqs.weight"
ROPE_LONG = "rope_factors_long.weight"
ROPE_SHORT = "rope_factors_short.weight"
ROPE_TENSORS = (ROPE_FREQS, ROPE_LONG, ROPE_SHORT)

#: Field of `ModelConfig`, key under the architecture's name.
_COUNTS = (
    ("layers", "block_count"),
    ("context", "context_length"),
    ("width", "embedding_length"),
    ("ffn", "feed_forward_length"),
    ("heads", "attention.head_count"),
    ("kv_heads", "attention.head_count_kv"),
    ("head_dim", "attention.key_length"),
    ("head_dim", "attention.value_length"),
    ("rotary_dim", "rope.dimension_count"),
    ("vocab", "vocab_size"),
)
_REALS = (
    ("rope_theta", "rope.freq_base"),
    ("rope_theta_local", "rope.freq_base_swa"),
    ("attention_softcap", "attn_logit_softcapping"),
    ("output_softcap", "final_logit_softcapping"),
)
_CAUSAL, _POOLING = "attention.causal", "pooling_type"
#: By llama.cpp's numbers; 0 is none, 4 ranks.
_POOLINGS: tuple[Pooling | Literal[""], ...] = ("", "mean", "first", "last")
_WINDOW = "attention.sliding_window"
_PATTERN = "attention.sliding_window_pattern"


def config_to_metadata(config: ModelConfig) -> dict[str, Value]:
    """The architecture's keys.

    Raises:
        UnsupportedModelError: the model has a feature that the architecture cannot express.
    """
    family, gguf = FAMILIES[config.family], gguf_of(config)
    further = {key: _typed(value) for key, value in family.gguf_metadata(config).items()}  # may refuse
    _refuse_what_gguf_cannot_say(config, gguf)
    counts = {key: u32(getattr(config, field)) for field, key in _COUNTS}
    reals = {key: f32(value) for field, key in _REALS if (value := getattr(config, field)) is not None}
    reals[gguf.epsilon] = f32(config.norm_eps)
    pairs = (
        counts
        | reals
        | _pooling_keys(config)
        | _window_keys(config, gguf)
        | _scaling_keys(config.rope_scaling)
        | further
    )
    return {
        key if key.startswith("tokenizer.") else f"{gguf.architecture}.{key}": value
        for key, value in pairs.items()
        if gguf.rotates or not key.startswith("rope.")
    }


def gguf_of(config: ModelConfig) -> Gguf:
    """Return the architecture of GGUF files of the model's family.

    Raises:
        UnsupportedModelError: llama.cpp does not support the family.
    """
    gguf = FAMILIES[config.family].gguf
    if gguf is None:
        raise UnsupportedModelError(
            f"llama.cpp has no architecture for {config.family} models, so that GGUF cannot hold one; "
            "choose another format"
        )
    return gguf


def _pooling_keys(config: ModelConfig) -> dict[str, Value]:
    """How states become an embedding, and the sizes of the matrices after that."""
    keys = {} if config.causal else {_CAUSAL: flag(False)}
    if config.pooling is not None:
        keys[_POOLING] = u32(_POOLINGS.index(config.pooling))
    width = config.width
    for number, rows in enumerate(config.dense, FIRST):
        keys |= {f"dense_{number}_feat_in": u32(width), f"dense_{number}_feat_out": u32(rows)}
        width = rows
    return keys


def _typed(value: Setting) -> Value:
    """Return a family's value with the type that llama.cpp reads."""
    if isinstance(value, tuple):
        kind = type(value[0]) if value else int
        if kind is bool:
            return flags([bool(each) for each in value])
        if kind is str:
            return texts([str(each) for each in value])
        return f32s(value) if kind is float else i32s(value)  # type: ignore[arg-type]
    if isinstance(value, bool):
        return flag(value)
    if isinstance(value, str):
        return text(value)
    return f32(value) if isinstance(value, float) else u32(value)


def _refuse_what_gguf_cannot_say(config: ModelConfig, own: Gguf) -> None:
    expected = {
        "activation": "gelu_tanh" if own.gelu else "silu",
        "attention_scale": _attention_scale(own, config.layers, config.width, config.heads, config.head_dim),
        "embedding_scale": math.sqrt(config.width) if own.gelu else 1.0,
        "tied": config.tied if own.untied else True,
        "attention_softcap": own.softcaps[0] and (config.attention_softcap or own.softcaps[0]),
        "output_softcap": (config.output_softcap or own.softcaps[1]) if own.caps_output else None,
    }
    for field, value in expected.items():
        if field in own.states:
            continue
        given = getattr(config, field)
        if not _same(given, value):
            raise UnsupportedModelError(
                f"{field} of the model is {given}, but GGUF files of {own.architecture} models "
                f"mean {value}, and have no key to say otherwise"
            )
    if config.dense and not (own.dense and len(config.dense) == 2 and config.dense[-1] == config.width):
        raise UnsupportedModelError(
            f"the model has dense matrices after the pooling, to {', '.join(map(str, config.dense))} elements, and "
            "llama.cpp loads such for gemma-embedding files alone: two, the second to the width of the model, "
            f"{config.width}; choose another format"
        )
    if not own.biases and (config.qkv_bias or config.attn_output_bias or config.ffn_bias):
        raise UnsupportedModelError(f"llama.cpp loads no biases of {own.architecture} files; choose another format")
    if config.tied and not own.ties:
        raise UnsupportedModelError(
            f"the embedding of the model doubles as the output matrix, and llama.cpp loads {own.architecture} files "
            "only with an output matrix of their own; choose another format"
        )
    if config.rope_scaling is not None and config.rope_scaling.kind == "dynamic":
        raise UnsupportedModelError("llama.cpp has no dynamic rope scaling, so that GGUF has no key for it")
    divisors = set(rope_tensors(config)) - set(own.divisors)
    if divisors:
        raise UnsupportedModelError(
            f"{config.rope_scaling and config.rope_scaling.kind} rope scaling of a {config.family} model needs "
            f"{', '.join(sorted(divisors))}, which llama.cpp does not load for it"
        )


def _same(given: Any, expected: Any) -> bool:
    if isinstance(given, float) and isinstance(expected, float):
        return math.isclose(given, expected, rel_tol=1e-6)
    return bool(given == expected)


def _attention_scale(own: Gguf, layers: int, width: int, heads: int, head_dim: int) -> float:
    return math.pow(width // heads if layers == own.wide_layers else head_dim, -0.5)


def _window_keys(config: ModelConfig, own: Gguf) -> dict[str, Value]:
    if config.sliding_window is None:
        return {_WINDOW: u32(0)} if own.window or own.names_no_window else {}
    pattern = [config.window(layer) is not None for layer in range(config.layers)]
    if pattern == _periodic(own.window_period, config.layers):
        return {_WINDOW: u32(config.sliding_window)}
    return {_WINDOW: u32(config.sliding_window), _PATTERN: flags(pattern)}


def _periodic(period: int, layers: int) -> list[bool]:
    return [not period or (layer + 1) % period != 0 for layer in range(layers)]


def _scaling_keys(scaling: RopeScaling | None) -> dict[str, Value]:
    if scaling is None or scaling.kind == "llama3" or _is_constant(scaling):
        return {}
    keys = {"type": text(scaling.kind)}
    if scaling.kind in ("linear", "yarn"):
        keys["factor"] = f32(scaling.factor)
    if scaling.kind in ("longrope", "yarn"):
        keys["original_context_length"] = u32(scaling.original_context)
        keys["attn_factor"] = f32(scaling.attention_factor / _own_attention_factor(scaling.kind, scaling.factor))
    if scaling.kind == "yarn":
        keys |= {"yarn_beta_fast": f32(scaling.beta_fast), "yarn_beta_slow": f32(scaling.beta_slow)}
    return {f"rope.scaling.{key}": value for key, value in keys.items()}


def _own_attention_factor(kind: str, factor: float) -> float:
    """Return the attention factor that llama.cpp computes."""
    return 0.1 * math.log(factor) + 1 if kind == "yarn" and factor > 1 else 1.0


def rope_tensors(config: ModelConfig) -> dict[str, tuple[float, ...]]:
    """Return the divisors of rotary frequencies that GGUF stores as tensors: name to values, float32."""
    scaling = config.rope_scaling
    if scaling is None:
        return {}
    if scaling.kind == "llama3":
        return {ROPE_FREQS: _llama3_divisors(scaling, config)}
    if scaling.kind == "longrope" and _is_constant(scaling):
        return {ROPE_FREQS: scaling.long_factors}
    if scaling.kind == "longrope":
        return {ROPE_LONG: scaling.long_factors, ROPE_SHORT: scaling.short_factors}
    return {}


def _is_constant(scaling: RopeScaling) -> bool:
    """Return whether the divisors are constant, as `rope_freqs.weight` is read."""
    same = scaling.long_factors == scaling.short_factors and scaling.attention_factor == 1
    return scaling.kind == "longrope" and same


def _llama3_divisors(scaling: RopeScaling, config: ModelConfig) -> tuple[float, ...]:
    """Keep wavelengths up to context / high, stretch those from context / low on, and blend between them.

    Source: transformers 5.23, ``modeling_rope_utils.py``, `_compute_llama3_parameters`.
    """
    exponents = np.arange(0, config.rotary_dim, 2) / config.rotary_dim
    turns = scaling.original_context / (2 * np.pi * config.rope_theta**exponents)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    smooth = np.clip((turns - low) / (high - low), 0, 1)
    return tuple((1 / ((1 - smooth) / scaling.factor + smooth)).astype(np.float32).tolist())


def load_model(path: Path, metadata: Metadata, tensors: Mapping[str, AnyTensor]) -> Model:
    """Return the family-neutral view of a file.

    Raises:
        UnsupportedModelError: the architecture, or a feature of it, is not supported.
        InvalidFileError: keys or tensors that are missing, of the wrong type, or contradict each other.
    """
    refuse_no_model(path, metadata, tensors)
    keys = _Keys(path, metadata, str(metadata.get("general.architecture", "")))
    family = _family(keys)
    keys = attrs.evolve(keys, per_layer=family.gguf.per_layer if family.gguf else ())
    weights = {name: tensor for name, tensor in tensors.items() if name not in ROPE_TENSORS}
    gguf = family.gguf
    assert gguf is not None  # it was found by its architecture
    config = check_config(_config(keys, family.name, gguf, tensors), str(path))
    config = family.gguf_config(config, keys.section(), tensors)
    weights = _ranked(weights, config)
    check_tensors(config, weights, str(path))
    if gguf.interleaved:
        weights = {name: reorder(name, tensor, config, "from_gguf") for name, tensor in weights.items()}
    return Model(config, weights)


def _ranked(weights: Mapping[str, AnyTensor], config: ModelConfig) -> dict[str, AnyTensor]:
    """The tensors with the outermost dimensions of 1 that ggml does not count, and llama.cpp does not write.

    A vector that its converter wrote as a matrix of one row is a vector again.
    """
    shapes = tensor_shapes(config)

    def ranked(name: str, tensor: AnyTensor) -> AnyTensor:
        shape = shapes.get(name, ())
        if shape and tensor.shape == (1, *shape):
            return reshaped(tensor, shape)
        added = (1,) * (len(shape) - len(tensor.shape))
        return reshaped(tensor, shape) if added and (*added, *tensor.shape) == shape else tensor

    return {name: ranked(name, tensor) for name, tensor in weights.items()}


#: Kinds of GGUF files other than models, by ``general.type``, with their use.
_NO_MODELS = {
    "adapter": "a LoRA adapter, not a model; load its base model with it, "
    "edgekit.load(BASE, runtime='llamacpp', lora=['{path}']), or merge what it was made from (edgekit merge)",
    "mmproj": "the projector of a multimodal model, without its language model; use the file of the language model",
    "imatrix": "an importance matrix, not a model; give it to a quantization with --imatrix",
}


def refuse_no_model(path: Path, metadata: Metadata, tensors: Collection[str]) -> None:
    """Refuse a file that does not hold a model: an adapter, a projector, an importance matrix, a vocabulary.

    Raises:
        UnsupportedModelError: names what the file holds, with a cure.
    """
    kind = metadata.get("general.type")
    if tensors and all(name.endswith((".lora_a", ".lora_b")) for name in tensors):
        kind = "adapter"
    if isinstance(kind, str) and kind in _NO_MODELS:
        raise UnsupportedModelError(f"{path}: it holds {_NO_MODELS[kind].format(path=path.name)}")
    if not tensors:
        what = "a vocabulary and no weights" if "tokenizer.ggml.tokens" in metadata else "metadata and no weights"
        raise UnsupportedModelError(f"{path}: it holds {what} (vocabulary only); use the file of the model itself")


@attrs.frozen
class _Keys:
    """Typed access to the keys of an architecture; every error names the file and the key."""

    path: Path
    metadata: Metadata
    architecture: str
    per_layer: tuple[str, ...] = ()

    def section(self) -> Section:
        """What lies under the architecture's name, numbers as their shortest decimals, for the family to read."""
        prefix = f"{self.architecture}."
        pairs = {key.removeprefix(prefix): value for key, value in self.metadata.items() if key.startswith(prefix)}
        return Section({key: _short(v) if isinstance(v, float) else v for key, v in pairs.items()}, str(self.path))

    def get(self, key: str) -> Any:
        """A value; of an array that has one for each layer, the one that all layers share.

        Where the family has layers of several kinds, the largest of the array.
        """
        value = self.metadata.get(f"{self.architecture}.{key}")
        if isinstance(value, tuple) and key in self.per_layer:
            return max(value, default=0)
        if isinstance(value, tuple) and key != _PATTERN:
            if len(set(value)) != 1:
                self.refuse(key, f"differs from layer to layer: {value[:8]}")
            return value[0]
        return value

    def count(self, key: str, default: int | None = None) -> int:
        """An integer."""
        value = self.get(key)
        if value is None and default is not None:
            return default
        if type(value) is not int:
            self._wrong(key, value, "an integer")
        return value

    def real(self, key: str, default: float | None = None) -> float | None:
        """A number, or the default; a float32 is returned as its shortest decimal (0.00001, not 0.00000999…)."""
        value = self.get(key)
        if value is None:
            return default
        if type(value) not in (int, float):
            self._wrong(key, value, "a number")
        return _short(value)

    def refuse(self, key: str, problem: str) -> NoReturn:
        """Raise `UnsupportedModelError`."""
        raise UnsupportedModelError(f"{self.path}: {self.architecture}.{key} {problem}; edgekit does not support that")

    def _wrong(self, key: str, value: object, expected: str) -> NoReturn:
        problem = "is missing" if value is None else f"is {value!r:.40}"
        # The file is whole, or its reader had said so: who wrote it left the key out.
        cure = "convert the model again" if value is None else "get the file again"
        raise InvalidFileError(f"{self.path}: key '{self.architecture}.{key}' {problem}, it must be {expected}; {cure}")


def _short(value: float) -> float:
    short = float(str(np.float32(value)))
    return short if np.float32(short) == value else float(value)


def _family(keys: _Keys) -> Family:
    named = (family for family in FAMILIES.values() if family.gguf and family.gguf.architecture == keys.architecture)
    fitting = next((family for family in named if family.gguf_fits(keys.section())), None)
    if fitting is None:
        known = dict.fromkeys(family.gguf.architecture for family in FAMILIES.values() if family.gguf)
        if keys.architecture in known:
            keys.refuse("expert_count", f"is {keys.count('expert_count', 0)}")
        raise UnsupportedModelError(
            f"{keys.path}: general.architecture is {shown(keys.architecture)}; supported are {', '.join(known)}"
        )
    return fitting


def _config(keys: _Keys, family: str, own: Gguf, tensors: Mapping[str, AnyTensor]) -> ModelConfig:
    width, heads, layers = keys.count("embedding_length"), keys.count("attention.head_count"), keys.count("block_count")
    if min(width, heads, layers) < 1:
        raise InvalidFileError(f"{keys.path}: {width} wide, {heads} heads, {layers} layers; get the file again")
    head_dim = keys.count("attention.key_length", width // heads)
    if keys.count("attention.value_length", head_dim) != head_dim:
        keys.refuse("attention.value_length", f"is not {head_dim}, as the keys' length is")
    rotary_dim = keys.count("rope.dimension_count", head_dim)
    context = keys.count("context_length")
    return ModelConfig(
        family=family,
        layers=layers,
        width=width,
        heads=heads,
        kv_heads=keys.count("attention.head_count_kv", heads),
        head_dim=head_dim,
        ffn=keys.count("feed_forward_length"),
        vocab=_rows(tensors, "token_embd.weight"),
        context=context,
        norm_eps=_required(keys, own.epsilon),
        rope_theta=keys.real("rope.freq_base", 10000.0) or 0.0,
        rope_theta_local=_local_theta(keys, own),
        attention_scale=_attention_scale(own, layers, width, heads, max(1, head_dim)),
        rotary_dim=rotary_dim,
        activation="gelu_tanh" if own.gelu else "silu",
        tied="output.weight" not in tensors,
        **_biases(tensors),
        rope_scaling=_scaling(keys, tensors, context, rotary_dim),
        **_windows(keys, own, layers),
        attention_softcap=keys.real("attn_logit_softcapping", own.softcaps[0]) if own.softcaps[0] else None,
        output_softcap=(keys.real("final_logit_softcapping", own.softcaps[1]) or None) if own.caps_output else None,
        embedding_scale=math.sqrt(width) if own.gelu else 1.0,
        causal=keys.get(_CAUSAL) is not False,
        pooling=_pooling(keys),
        dense=_dense(tensors),
        name=str(keys.metadata.get("general.name", "")),
    )


def _pooling(keys: _Keys) -> Pooling | None:
    number = keys.count(_POOLING, 0)
    if not 0 <= number < len(_POOLINGS):
        keys.refuse(_POOLING, f"is {number}, neither mean (1), CLS (2) nor last (3)")
    return _POOLINGS[number] or None


def _dense(tensors: Mapping[str, AnyTensor]) -> tuple[int, ...]:
    """Output widths of the matrices after the pooling."""
    numbers = itertools.count(FIRST)
    named = itertools.takewhile(lambda name: name in tensors, (f"dense_{number}.weight" for number in numbers))
    return tuple(_rows(tensors, name) for name in named)


def _required(keys: _Keys, key: str) -> float:
    value = keys.real(key)
    if value is None:
        keys.count(key)  # raises: it is missing
    assert value is not None
    return value


def _rows(tensors: Mapping[str, AnyTensor], name: str) -> int:
    return tensors[name].shape[0] if name in tensors and tensors[name].shape else 1


def _local_theta(keys: _Keys, own: Gguf) -> float | None:
    return None if own.local_theta is None else keys.real("rope.freq_base_swa", own.local_theta)


def _biases(tensors: Mapping[str, AnyTensor]) -> dict[str, Any]:
    def has(*names: str) -> bool:
        return any(f"blk.0.{name}.bias" in tensors for name in names)

    return {
        "qkv_bias": has("attn_q", "attn_qkv"),
        "attn_output_bias": has("attn_output"),
        "ffn_bias": has("ffn_up", "ffn_down"),
    }


def _windows(keys: _Keys, own: Gguf, layers: int) -> dict[str, Any]:
    window = keys.count(_WINDOW, own.window or 0)
    if not window:
        return {}
    pattern = keys.get(_PATTERN)
    if type(pattern) is int:
        return {"sliding_window": window, "full_attention_every": pattern}
    if pattern is None:
        return {"sliding_window": window, "full_attention_every": own.window_period}
    return {"sliding_window": window, **_regular(keys, [bool(windowed) for windowed in pattern][:layers])}


def _regular(keys: _Keys, pattern: list[bool]) -> dict[str, int]:
    """A pattern in the terms of `ModelConfig`: every n-th layer, or the first few, attend to all."""
    layers = len(pattern)
    for period in range(layers + 1):
        if period != 1 and pattern == _periodic(period, layers):
            return {"full_attention_every": period}
    first = pattern.index(True) if True in pattern else layers
    if not all(pattern[first:]):
        keys.refuse(_PATTERN, "is not regular")
    return {"full_attention_first": first}


def _scaling(keys: _Keys, tensors: Mapping[str, AnyTensor], context: int, rotary_dim: int) -> RopeScaling | None:
    original = keys.count("rope.scaling.original_context_length", context)
    kind = keys.get("rope.scaling.type") or "linear"
    factor = keys.real("rope.scaling.factor") or keys.real("rope.scale_linear") or 1.0
    attention = keys.real("rope.scaling.attn_factor", 1.0) or 0.0
    if ROPE_FREQS in tensors:
        divisors = _divisors(tensors[ROPE_FREQS], rotary_dim, keys.path)
        return RopeScaling("longrope", original_context=original, long_factors=divisors, short_factors=divisors)
    if ROPE_LONG in tensors and ROPE_SHORT in tensors:
        long, short = (_divisors(tensors[name], rotary_dim, keys.path) for name in (ROPE_LONG, ROPE_SHORT))
        stretch = context / original if original else 0.0
        return RopeScaling(
            "longrope",
            stretch,
            original_context=original,
            attention_factor=attention,
            long_factors=long,
            short_factors=short,
        )
    match kind:
        case "linear":
            return None if factor == 1 else RopeScaling("linear", factor)
        case "yarn":
            return _yarn(keys, factor, original, attention)
        case "none" | "longrope":
            return None
    keys.refuse("rope.scaling.type", f"is {shown(kind)}")


def _yarn(keys: _Keys, factor: float, original: int, attention: float) -> RopeScaling:
    kind: Literal["yarn"] = "yarn"
    return RopeScaling(
        kind,
        factor,
        original_context=original,
        attention_factor=attention * _own_attention_factor(kind, factor),
        beta_fast=keys.real("rope.scaling.yarn_beta_fast", 32.0) or 0.0,
        beta_slow=keys.real("rope.scaling.yarn_beta_slow", 1.0) or 0.0,
    )


def _divisors(tensor: AnyTensor, rotary_dim: int, path: Path) -> tuple[float, ...]:
    if tensor.size != rotary_dim // 2:
        raise InvalidFileError(
            f"{path}: tensor {tensor.name!r} has {tensor.size} elements for {rotary_dim // 2} frequencies; "
            "get the file again"
        )
    return tuple(tensor.float32().reshape(-1).tolist())


__all__ = [
    "ROPE_FREQS",
    "ROPE_LONG",
    "ROPE_SHORT",
    "ROPE_TENSORS",
    "config_to_metadata",
    "gguf_of",
    "load_model",
    "refuse_no_model",
    "rope_tensors",
]
