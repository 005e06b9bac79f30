"""Hugging Face's tensor names, and the family-neutral view of a Hugging Face directory.

===========================  =============================================  =================================
canonical                    Hugging Face                                   families
===========================  =============================================  =================================
token_embd.weight            model.embed_tokens.weight                      all
blk.N.attn_norm.weight       model.layers.N.input_layernorm.weight          all
blk.N.attn_{q,k,v}.*         model.layers.N.self_attn.{q,k,v}_proj.*        all but Phi 3
blk.N.attn_qkv.weight        model.layers.N.self_attn.qkv_proj.weight       Phi 3
blk.N.attn_{q,k}_norm        model.layers.N.self_attn.{q,k}_norm            Qwen 3, Gemma 3
blk.N.attn_output.*          model.layers.N.self_attn.o_proj.*              all
blk.N.post_attention_norm    model.layers.N.post_attention_layernorm        Gemma 2, Gemma 3
blk.N.ffn_norm.weight        model.layers.N.post_attention_layernorm        all but Gemma 2, Gemma 3
blk.N.ffn_norm.weight        model.layers.N.pre_feedforward_layernorm       Gemma 2, Gemma 3
blk.N.ffn_gate.*             model.layers.N.mlp.gate_proj.*                 all but Phi 3
blk.N.ffn_up.*               model.layers.N.mlp.up_proj.*                   all but Phi 3
blk.N.ffn_up.weight          model.layers.N.mlp.gate_up_proj.weight         Phi 3: gate rows, then up rows
blk.N.ffn_down.*             model.layers.N.mlp.down_proj.*                 all
blk.N.post_ffw_norm.weight   model.layers.N.post_feedforward_layernorm      Gemma 2, Gemma 3
output_norm.weight           model.norm.weight                              all
output.weight                lm_head.weight                                 all that are not tied
===========================  =============================================  =================================
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs
import numpy as np

from edgekit.architectures._config import FAMILIES, Model, ModelConfig
from edgekit.architectures._hf_config import config_from_hf
from edgekit.architectures._hf_write import hf_config
from edgekit.architectures._tensors import check_tensors, tensor_shapes
from edgekit.tensor import AnyTensor, Tensor
from edgekit.typing import F32

__all__ = ["config_from_hf", "hf_config", "hf_names", "model_from_hf", "to_hf_value"]

_TOP = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_qkv": "self_attn.qkv_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_POST_NORMS = {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_FUSED = {"ffn_up": "mlp.gate_up_proj"}
_PREFIX, _EMBEDDING, _OUTPUT = "model.", "model.embed_tokens.weight", "lm_head.weight"
#: Elements that are compared at once.
_PIECE = 1 << 20
#: Buffers that old checkpoints carry.
_IGNORED_SUFFIX = ".rotary_emb.inv_freq"
#: Parts of a multimodal checkpoint that are not the language model.
_IGNORED_PREFIXES = ("model.vision_tower.", "model.multi_modal_projector.")
#: Where multimodal checkpoints keep the language model: transformers 4, then 5; the first match counts.
_NESTED = {
    "language_model.model.": "model.",
    "language_model.lm_head.": "lm_head.",
    "model.language_model.": "model.",
    "language_model.": "model.",
    "vision_tower.": "model.vision_tower.",
    "multi_modal_projector.": "model.multi_modal_projector.",
}


def hf_names(config: ModelConfig) -> dict[str, str]:
    """Hugging Face's name of every tensor of such a model, by its canonical name."""
    family = FAMILIES[config.family]
    table = _LAYER | (_POST_NORMS if family.post_norms else {}) | (_FUSED if family.fused else {})
    return {name: _hf_name(name, table) for name in tensor_shapes(config)}


def _hf_name(name: str, table: Mapping[str, str]) -> str:
    stem, _, kind = name.rpartition(".")
    if not stem.startswith("blk."):
        return f"{_TOP[stem]}.{kind}"
    _, layer, role = stem.split(".")
    return f"model.layers.{layer}.{table[role]}.{kind}"


def model_from_hf(config: Mapping[str, Any], tensors: Mapping[str, AnyTensor], where: str = "config.json") -> Model:
    """The family-neutral view of a Hugging Face model; reads values of an output matrix alone.

    Args:
        config: the parsed config.json.
        tensors: by Hugging Face's names.
        where: the file or directory, for messages.

    Returns:
        The model. Where the file has an output matrix that differs from the embedding it is used, even if the
        configuration calls the embedding tied (as transformers does); one that is equal is the embedding. A base model
        (names without ``model.``, as embedding models are published) has no output matrix and counts as tied.

    Raises:
        UnsupportedModelError: an unknown family or feature; raised before the tensors are looked at.
        InvalidFileError: a tensor that is missing, of an odd shape, or that no such model has.
    """
    parsed = config_from_hf(config, where)
    found = _language_model(tensors) if parsed.family == "gemma3" else _model_tensors(tensors)
    base, found = _is_base(found), _prefixed(found)
    parsed = attrs.evolve(parsed, tied=_tied(parsed.tied, base, found))
    if parsed.tied:
        found.pop(_OUTPUT, None)
    names = hf_names(parsed)
    canonical = {name: hf for hf, name in names.items()}
    # A file that calls a tensor by a canonical name does not get it past the table.
    view = {canonical.get(name, f"hf:{name}"): tensor for name, tensor in found.items()}
    check_tensors(parsed, view, where, names)
    offset = FAMILIES[parsed.family].norm_offset
    return Model(parsed, {name: _shifted(name, view[name], offset) for name in names})


def _is_base(tensors: Mapping[str, AnyTensor]) -> bool:
    return _EMBEDDING not in tensors and _EMBEDDING.removeprefix(_PREFIX) in tensors


def _prefixed(tensors: dict[str, AnyTensor]) -> dict[str, AnyTensor]:
    """The tensors of a base model under the names that they have in the whole one."""
    if not _is_base(tensors):
        return tensors
    return {name if name == _OUTPUT else _PREFIX + name: tensor for name, tensor in tensors.items()}


def _tied(said: bool, base: bool, tensors: Mapping[str, AnyTensor]) -> bool:
    """Whether the embedding doubles as the output matrix."""
    output, embedding = tensors.get(_OUTPUT), tensors.get(_EMBEDDING)
    if output is None or embedding is None:
        return said or (base and output is None)
    return equal_values(output, embedding)


def equal_values(a: AnyTensor, b: AnyTensor) -> bool:
    """Whether two tensors have the same values; reads them piece by piece, up to the first difference."""
    if a.shape != b.shape:
        return False
    step = max(1, _PIECE // max(1, a.shape[-1]))
    pieces = ((start, min(start + step, a.rows)) for start in range(0, a.rows, step))
    return all(np.array_equal(a.float32(*piece), b.float32(*piece)) for piece in pieces)


def _model_tensors(tensors: Mapping[str, AnyTensor]) -> dict[str, AnyTensor]:
    return {name: tensor for name, tensor in tensors.items() if not name.endswith(_IGNORED_SUFFIX)}


def _language_model(tensors: Mapping[str, AnyTensor]) -> dict[str, AnyTensor]:
    flat: dict[str, AnyTensor] = {}
    for name, tensor in tensors.items():
        # Two names for one place: the second keeps its own, which no model has.
        flat[name if _flat(name) in flat else _flat(name)] = tensor
    return {name: tensor for name, tensor in flat.items() if not name.startswith(_IGNORED_PREFIXES)}


def _flat(name: str) -> str:
    for prefix, replacement in _NESTED.items():
        if name.startswith(prefix):
            return replacement + name.removeprefix(prefix)
    return name


def to_hf_value(config: ModelConfig, name: str, tensor: AnyTensor) -> AnyTensor:
    """A tensor with the values that Hugging Face stores: Gemma's norms without the one that they multiply with.

    Args:
        config: of the model.
        name: the tensor's canonical name.
        tensor: its canonical values; read when the result is.
    """
    return _shifted(name, tensor, -FAMILIES[config.family].norm_offset)


def _shifted(name: str, tensor: AnyTensor, offset: float) -> AnyTensor:
    if not offset or not name.endswith("_norm.weight"):
        return tensor

    def read_rows(start: int, stop: int) -> F32:
        return tensor.float32(start, stop) + np.float32(offset)

    return Tensor(tensor.name, tensor.shape, "float32", read_rows)
