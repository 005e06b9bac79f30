"""The small files of a Hugging Face directory: copied from the source, or generated for a source of another format."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from edgekit.artifact import Layout
from edgekit.files.foreign import strict_json, utf8
from edgekit.formats import _hf_files as files
from edgekit.formats._packed import without_quantization
from edgekit.formats._sentence import module_files
from edgekit.manifest import Manifest
from edgekit.recipe import Plan
from edgekit.tensor import EncodedTensor
from edgekit.tokenizer._record import Tokenizer

_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def small_files(layout: Layout, plan: Plan, manifest: Manifest) -> Iterator[tuple[str, bytes]]:
    """Yield name and content of every file of the directory except weights.

    Configuration and tokenizer are the source's own, byte for byte, where it has a ``config.json`` (without a
    quantization that another library made); else they are generated from the model and its tokenizer. The
    manifest comes last.

    Raises:
        UnsupportedModelError: the source's family or tokenizer is unsupported.
    """
    if any(path.name == files.CONFIG for path in layout.source.files):
        for path in layout.source.files:
            name = files.carried_name(path)
            if name is not None:
                yield name, _own_config(layout, plan, path) if name == files.CONFIG else path.read_bytes()
    else:
        yield from generate(layout, plan)
    yield from module_files(layout)
    yield files.MANIFEST, manifest.to_json().encode()


def _own_config(layout: Layout, plan: Plan, path: Path) -> bytes:
    """Return a config.json as it is; what the artifact says of its changed tensors, if it says anything else.

    The float type that it states is the written one if most elements are written in another type than they had: a
    loader would round them to it.
    """
    content = path.read_bytes()
    config = strict_json(content, path, "the configuration")
    changed = without_quantization(layout.source.config)
    if _dtype(plan) != _stored_dtype(layout):
        changed = _with_dtype(changed, _dtype(plan))
    return content if changed == config else _json(changed)


def _with_dtype(config: Mapping[str, Any], dtype: str) -> dict[str, Any]:
    """Return a configuration that states a float type, wherever it states one."""
    stated = {key: dtype for key in ("torch_dtype", "dtype") if config.get(key) in _DTYPES.values()}
    nested = config.get("text_config")
    return {**config, **stated, **({"text_config": _with_dtype(nested, dtype)} if isinstance(nested, dict) else {})}


def _stored_dtype(layout: Layout) -> str:
    """Return the float type that most elements of the source have; empty if most are quantized."""
    elements: dict[str, int] = {}
    for slot in layout.slots:
        dtype = "" if isinstance(slot.tensor, EncodedTensor) else slot.tensor.dtype
        elements[dtype] = elements.get(dtype, 0) + slot.tensor.size
    return max(elements, key=lambda dtype: elements[dtype], default="")


def generate(layout: Layout, plan: Plan) -> Iterator[tuple[str, bytes]]:
    """``config.json``, ``generation_config.json`` and the tokenizer's two files, as name and content."""
    tokenizer = layout.source.tokenizer
    yield files.CONFIG, _json(_config(layout, plan, tokenizer))
    if tokenizer is not None:
        yield from generation_config(tokenizer)
        yield "tokenizer.json", utf8(tokenizer.to_json(), "the tokenizer")
        yield "tokenizer_config.json", _json(_tokenizer_config(layout, tokenizer))


def _config(layout: Layout, plan: Plan, tokenizer: Tokenizer | None) -> dict[str, Any]:
    from edgekit.architectures.hf import hf_config

    assert layout.model is not None  # a layout under Hugging Face's names has a known family
    # Null where there is none: a family's own defaults may lie beyond the vocabulary.
    ids = {f"{role}_token_id": getattr(tokenizer, role, None) for role in ("bos", "eos", "pad")}
    return {**hf_config(layout.model.config), **ids, "torch_dtype": _dtype(plan)}


def generation_config(tokenizer: Tokenizer) -> Iterator[tuple[str, bytes]]:
    """``generation_config.json`` with every token that ends a text; empty if there are none.

    transformers, OpenVINO GenAI and its model server stop at these, and at no other.
    """
    ends = sorted(tokenizer.end_ids, key=lambda number: (number != tokenizer.eos, number))
    if ends:
        ids = {"bos_token_id": tokenizer.bos, "eos_token_id": ends if len(ends) > 1 else ends[0]}
        given = {role: number for role, number in (ids | {"pad_token_id": tokenizer.pad}).items() if number is not None}
        yield "generation_config.json", _json(given)


def _dtype(plan: Plan) -> str:
    """Return the float type of most elements; quantized tensors decode to float32."""
    elements = dict.fromkeys(_DTYPES, 0)
    for assignment in plan:
        kind = assignment.precision.kind if assignment.precision.convention == "float" else "F32"
        elements[kind] += assignment.size
    return _DTYPES[max(elements, key=lambda kind: elements[kind])]


def _tokenizer_config(layout: Layout, tokenizer: Tokenizer) -> dict[str, Any]:
    assert layout.model is not None
    special = {f"{role}_token": getattr(tokenizer, role) for role in ("bos", "eos", "unk", "pad")}
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **{role: tokenizer.tokens[number] for role, number in special.items() if number is not None},
        **(_bert_tokens(tokenizer) if tokenizer.kind == "wordpiece" else {}),
        "add_bos_token": tokenizer.add_bos,
        "add_eos_token": tokenizer.add_eos,
        "clean_up_tokenization_spaces": False,
        "model_max_length": layout.model.config.context,
        **_templates(tokenizer),
    }


def _bert_tokens(tokenizer: Tokenizer) -> dict[str, str]:
    """The names under which BERT's libraries look for the first and the last token."""
    ids = {"cls_token": tokenizer.bos, "sep_token": tokenizer.eos}
    return {role: tokenizer.tokens[number] for role, number in ids.items() if number is not None}


def _templates(tokenizer: Tokenizer) -> dict[str, Any]:
    """``chat_template``: one source, or a list with names; transformers 4 and 5 read both."""
    default, others = tokenizer.chat_template, tokenizer.chat_templates
    if not others:
        return {} if default is None else {"chat_template": default}
    named = others if default is None else {"default": default, **others}
    return {"chat_template": [{"name": name, "template": source} for name, source in named.items()]}


def _json(content: dict[str, Any]) -> bytes:
    return utf8(json.dumps(content, indent=2, ensure_ascii=False) + "\n", "the configuration")
