"""The content of a GGUF file for a source: tensors in llama.cpp's order, and the metadata.

llama.cpp's quantizer writes tensors outside the layers first, then layer by layer, each sorted by name
(``weight_name_comparer`` in ``llama-model-loader.h``). edgekit does the same for every source, so that whole files
can be compared. The metadata of a GGUF source is copied; other sources get it from their
configuration and tokenizer. ``general.quantization_version`` and ``general.file_type`` come last, as in its files.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import TypeGuard

import numpy as np

from edgekit.architectures import Model
from edgekit.artifact import Artifact, Layout
from edgekit.errors import UnsupportedModelError, counted
from edgekit.precision import Precision, find_precision
from edgekit.recipe import Slot
from edgekit.tensor import AnyTensor, EncodedTensor, Tensor
from edgekit_gguf.metadata import Metadata, Value, text, u32
from edgekit_gguf.model import config_to_metadata, gguf_of, refuse_no_model, rope_tensors
from edgekit_gguf.naming import size_label
from edgekit_gguf.rotary import reorder
from edgekit_gguf.types import QUANTIZATION_VERSION
from edgekit_gguf.vocab import to_metadata

_LAYER = re.compile(r"blk\.(\d+)\.")
#: Keys that the writer sets, or that do not apply to the written file.
_OURS = (
    "general.quantization_version",
    "general.file_type",
    "general.alignment",
    "split.no",
    "split.count",
    "split.tensors.count",
)
_FLOATS = {"float32": "float:F32", "float16": "float:F16", "bfloat16": "float:BF16"}


def layout(source: Artifact) -> Layout:
    """Return what GGUF stores for a source; see `edgekit.artifact.Format.layout`."""
    if isinstance(source.config, Metadata):
        refuse_no_model(source.path, source.config, source.tensors)
        return Layout(tuple(_as_it_is(source.tensors)), source, _model_if_known(source))
    model = source.model
    translated = Layout(tuple(_translated(model)), source, model, _notes(source, model))
    _described(translated)  # refuses what GGUF cannot express, before a tensor is read
    return translated


def _notes(source: Artifact, model: Model) -> dict[str, str]:
    """Return notes on what llama.cpp computes otherwise, and on a tokenizer of another size than the embedding."""
    return _computed_otherwise(model) | _resized(source, model)


def _computed_otherwise(model: Model) -> dict[str, str]:
    found = [*_otherwise(model)]
    return {"otherwise": "; ".join(found)} if found else {}


def _otherwise(model: Model) -> Iterator[str]:
    config = model.config
    gguf, scaling = gguf_of(config), config.rope_scaling
    if config.activation == "gelu":
        yield (
            "llama.cpp computes GELU by its tanh form, from a table in float16, and this model's is by "
            "the error function: embeddings differ by up to a hundredth"
        )
    if scaling is not None and not scaling.truncate:
        yield (
            "llama.cpp rounds the borders of yarn's ramp, which this model does not (truncate: false): its "
            "logits lie up to a hundredth of their standard deviation from transformers'"
        )
    if scaling is not None and scaling.kind == "yarn" and (scaling.beta_fast, scaling.beta_slow) != (32.0, 1.0):
        yield (
            f"llama.cpp takes yarn's borders for 32 and 1, and this model's are {scaling.beta_fast:g} and "
            f"{scaling.beta_slow:g}: set yarn_beta_fast and yarn_beta_slow when a context is made"
        )
    if gguf.ignores_window and config.sliding_window is not None and config.sliding_window < config.context:
        yield (
            f"llama.cpp attends to all tokens in {gguf.architecture} files, and this model to a window of "
            f"{config.sliding_window}: longer texts have other logits there"
        )


def _resized(source: Artifact, model: Model) -> dict[str, str]:
    if source.tokenizer is None:
        return {}
    tokens, rows = len(source.tokenizer.tokens), model.config.vocab
    if tokens < rows:
        added = counted(rows - tokens, "token was", "tokens were")
        return {"added_tokens": f"{added} added ([PAD…], unused) to fill the embedding's {rows} rows"}
    if tokens > rows:
        beyond = f"beyond the embedding's {rows} rows"
        return {"dropped_tokens": f"{counted(tokens - rows, f'token {beyond} was', f'tokens {beyond} were')} dropped"}
    return {}


def _model_if_known(source: Artifact) -> Model | None:
    try:
        return source.model
    except UnsupportedModelError:
        return None


def _as_it_is(tensors: Mapping[str, AnyTensor]) -> Iterable[Slot]:
    for name in sorted(tensors, key=file_order):
        tensor = tensors[name]
        yield Slot(name, name, tensor, _own_precision(tensor))


def _own_precision(tensor: AnyTensor) -> Precision:
    if isinstance(tensor, EncodedTensor):
        return tensor.precision
    if tensor.dtype not in _FLOATS:
        raise UnsupportedModelError(
            f"tensor {tensor.name!r} holds {tensor.dtype}; edgekit writes float32, float16 and bfloat16 to GGUF"
        )
    return find_precision(_FLOATS[tensor.dtype])


def _translated(model: Model) -> Iterable[Slot]:
    interleaved = gguf_of(model.config).interleaved
    tensors = dict(model.tensors)
    for name, values in rope_tensors(model.config).items():
        tensors[name] = Tensor.of(name, np.array(values, np.float32))
    for name in sorted(tensors, key=file_order):
        tensor = _carried_over(tensors[name])
        keep = tensor.precision if _in_blocks(tensor) else find_precision("float:F32")
        yield Slot(name, name, reorder(name, tensor, model.config, "to_gguf") if interleaved else tensor, keep)


def _carried_over(tensor: AnyTensor) -> AnyTensor:
    """Return the tensor in ggml's blocks if it is encoded otherwise and they can represent it, else unchanged."""
    if isinstance(tensor, Tensor) or tensor.precision.convention == "ggml":
        return tensor
    from edgekit_gguf.bridge import (
        carried_over,
    )  # only here: most sources need no bridge, and importing one takes 10 ms

    return carried_over(tensor)


def _in_blocks(tensor: AnyTensor) -> TypeGuard[EncodedTensor]:
    return isinstance(tensor, EncodedTensor) and tensor.precision.convention == "ggml"


def file_order(name: str) -> tuple[int, bytes]:
    """Sort key of a tensor's name: first those outside the layers, then by layer, then by name."""
    match = _LAYER.match(name)
    return int(match[1]) if match else -1, name.encode()


def file_metadata(laid_out: Layout, file_type: int) -> dict[str, Value]:
    """Return all key-value pairs of the file."""
    source = laid_out.source
    pairs = source.config.without(*_OURS) if isinstance(source.config, Metadata) else _described(laid_out)
    return pairs | {
        "general.quantization_version": u32(QUANTIZATION_VERSION),
        "general.file_type": u32(file_type),
    }


def _described(laid_out: Layout) -> dict[str, Value]:
    model = laid_out.model
    assert model is not None
    general = {"architecture": text(gguf_of(model.config).architecture), "type": text("model")}
    if model.config.name:
        general["name"] = text(model.config.name)
    general["size_label"] = text(size_label(sum(slot.tensor.size for slot in laid_out.slots)))
    return (
        {f"general.{key}": value for key, value in general.items()}
        | config_to_metadata(model.config)
        | to_metadata(laid_out.source.tokenizer, model.config.vocab)
    )


__all__ = ["file_metadata", "file_order", "layout"]
