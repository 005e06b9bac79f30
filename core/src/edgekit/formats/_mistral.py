"""Mistral's own layout: ``params.json`` and ``consolidated.safetensors``, read as the same model of transformers'.

    Mistral's tensor                        transformers'
    tok_embeddings.weight                   model.embed_tokens.weight
    layers.N.attention.w{q,k}.weight        model.layers.N.self_attn.{q,k}_proj.weight, rows in another order
    layers.N.attention.w{v,o}.weight        model.layers.N.self_attn.{v,o}_proj.weight
    layers.N.feed_forward.w{1,3,2}.weight   model.layers.N.mlp.{gate,up,down}_proj.weight
    layers.N.attention_norm.weight          model.layers.N.input_layernorm.weight
    layers.N.ffn_norm.weight                model.layers.N.post_attention_layernorm.weight
    norm.weight, output.weight              model.norm.weight, lm_head.weight
    X.qscale_weight, X.qscale_act           X.weight_scale, X.input_scale, of a model in FP8

Mistral rotates neighbours of a head, transformers its two halves: row ``2i + j`` of a head there is row
``j * half + i`` here. Experts, vision encoders and YaRN are refused by the names of their fields. The tokenizer is read
where the directory has transformers' files for it; ``tekken.json`` is not.

Source: mistral-inference 1.6, ``src/mistral_inference/args.py`` (`TransformerArgs`), ``transformer_layers.py`` and
``rope.py`` (`apply_rotary_emb`); transformers 4.57, ``models/mistral/convert_mistral_weights_to_hf.py``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import attrs
import numpy as np

from edgekit.errors import InvalidFileError, UnsupportedModelError
from edgekit.files.foreign import shown
from edgekit.tensor import Tensor
from edgekit.typing import Array

PARAMS = "params.json"
WEIGHTS, INDEX = "consolidated.safetensors", "consolidated.safetensors.index.json"
#: Field of params.json -> of config.json.
_FIELDS = {
    "dim": "hidden_size",
    "n_layers": "num_hidden_layers",
    "head_dim": "head_dim",
    "hidden_dim": "intermediate_size",
    "n_heads": "num_attention_heads",
    "n_kv_heads": "num_key_value_heads",
    "norm_eps": "rms_norm_eps",
    "vocab_size": "vocab_size",
    "rope_theta": "rope_theta",
    "sliding_window": "sliding_window",
    "max_seq_len": "max_position_embeddings",
    "max_position_embeddings": "max_position_embeddings",
    "tied_embeddings": "tie_word_embeddings",
}
_NEEDED = ("dim", "n_layers", "head_dim", "hidden_dim", "n_heads", "norm_eps", "vocab_size")
#: Which say how it is run, or nothing that the weights do not say.
_IGNORED = ("max_batch_size", "model_type", "causal", "quantization")
#: What Mistral's code computes with where params.json has no rope_theta, and transformers' converter where no length.
_DEFAULTS = {"rope_theta": 10_000.0, "max_position_embeddings": 32_768, "sliding_window": None, "model_type": "mistral"}
_TOP = {"tok_embeddings": "model.embed_tokens", "norm": "model.norm", "output": "lm_head"}
_LAYER = {
    "attention.wq": "self_attn.q_proj",
    "attention.wk": "self_attn.k_proj",
    "attention.wv": "self_attn.v_proj",
    "attention.wo": "self_attn.o_proj",
    "feed_forward.w1": "mlp.gate_proj",
    "feed_forward.w2": "mlp.down_proj",
    "feed_forward.w3": "mlp.up_proj",
    "attention_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}
_PARTS = {"weight": "weight", "qscale_weight": "weight_scale", "qscale_act": "input_scale"}
_NAME = re.compile(
    r"(?:layers\.(?P<layer>\d{1,6})\.)?(?P<module>[a-z_0-9.]+)\.(?P<part>weight|qscale_weight|qscale_act)"
)


def is_mistral(directory: Path) -> bool:
    """Whether a directory has this layout and not transformers' beside it."""
    native = (directory / PARAMS).is_file() and any((directory / name).is_file() for name in (WEIGHTS, INDEX))
    return native and not any(
        (directory / name).is_file() for name in ("model.safetensors", "model.safetensors.index.json")
    )


def config_of(params: Mapping[str, object], where: str) -> dict[str, object]:
    """Return the config.json of the same model.

    Raises:
        UnsupportedModelError: params.json has a field that is not understood.
        InvalidFileError: it lacks one.
    """
    for key, value in params.items():
        if key not in _FIELDS and key not in _IGNORED and value not in (None, False, [], {}):
            raise UnsupportedModelError(
                f"{where}: {PARAMS} has the field {shown(key)} ({shown(value)}), which is not understood; fetch the "
                "model in transformers' form (config.json and model*.safetensors)"
            )
    missing = [key for key in _NEEDED if params.get(key) is None]
    if missing:
        raise InvalidFileError(f"{where}: {PARAMS} lacks {', '.join(missing)}; fetch it again")
    config = _DEFAULTS | {_FIELDS[key]: value for key, value in params.items() if key in _FIELDS and value is not None}
    quantization = params.get("quantization")
    return config | ({"quantization_config": _quantization(quantization, where)} if quantization else {})


def _quantization(given: object, where: str) -> dict[str, object]:
    known = {"qformat_weight": "fp8_e4m3", "qscheme_act": "TENSOR"}
    if given != known:
        raise UnsupportedModelError(f"{where}: {PARAMS} has quantization {shown(given)}; read is {known}")
    return {"quant_method": "fp8", "activation_scheme": "static"}


def renamed(tensors: Mapping[str, Tensor], config: Mapping[str, object]) -> dict[str, Tensor]:
    """Return the tensors under transformers' names, the rows of queries and keys in its order when they are read.

    A name that Mistral's models do not have is left as it is, and refused with the model.
    """
    heads = {"attention.wq": config.get("num_attention_heads")}
    heads["attention.wk"] = config.get("num_key_value_heads") or heads["attention.wq"]
    translated = {}
    for name, tensor in tensors.items():
        match = _NAME.fullmatch(name)
        table = _LAYER if match and match["layer"] else _TOP
        module = table.get(match["module"]) if match else None
        if match is None or module is None:
            translated[name] = tensor
            continue
        start = f"model.layers.{match['layer']}." if match["layer"] else ""
        hf_name = f"{start}{module}.{_PARTS[match['part']]}"
        rows = heads.get(match["module"]) if match["part"] == "weight" else None
        translated[hf_name] = attrs.evolve(_halves(tensor, rows) if rows else tensor, name=hf_name)
    return translated


def _halves(tensor: Tensor, heads: object) -> Tensor:
    """Return the matrix with the rows of each head by halves, not by neighbours."""
    rows = tensor.shape[0] if len(tensor.shape) == 2 else 0
    if type(heads) is not int or heads < 1 or not rows or rows % (2 * heads):
        return tensor  # its shape is refused with the model
    order = np.arange(rows).reshape(heads, rows // heads // 2, 2).swapaxes(1, 2).reshape(-1)

    def read_rows(start: int, stop: int) -> Array:
        places = order[start:stop]
        first, last = (int(places.min()), int(places.max()) + 1) if len(places) else (0, 0)
        return tensor.read_rows(first, last)[places - first]

    return attrs.evolve(tensor, read_rows=read_rows)
