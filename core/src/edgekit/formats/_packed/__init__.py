"""Checkpoints that other libraries quantized, read as encoded tensors: one file a scheme, its source on top.

`SCHEMES` is the table: the ``quant_method`` that config.json names, and the module that reads it. A module has one
function, ``read(source)``, which yields the quantized tensors and the names of the file's tensors that are their parts
(`Scheme`). What its configuration says must be understood in full: a field that is not known is refused by name.

Lattices with groups of neighbours become ``affine`` precisions, MXFP4 becomes ggml's; the rest is of the convention
``packed`` (`edgekit.precision._packed`). All decode to the float32 values that the library computes, and
`edgekit.bridges` carries them over where another format holds the same values.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import cast

from edgekit.errors import InvalidFileError, UnsupportedModelError
from edgekit.files.foreign import shown
from edgekit.formats._packed._scheme import CURE, Fields, Packed, Scheme, Source
from edgekit.tensor import AnyTensor, EncodedTensor, Tensor

#: ``quant_method`` of config.json -> the module that reads it.
SCHEMES = {
    "fp8": "fp8",
    "fbgemm_fp8": "fp8",
    "compressed-tensors": "compressed_tensors",
    "gptq": "gptq",
    "awq": "awq",
    "bitsandbytes": "bitsandbytes",
    "mxfp4": "mxfp4",
    "torchao": "torchao",
    "modelopt": "modelopt",
    "quanto": "quanto",
    "olive": "olive",
}
#: Where config.json says how the weights are quantized; the second is an older name, the third MLX's own.
KEYS = ("quantization_config", "compression_config", "quantization")


def quantization_of(config: Mapping[str, object]) -> Mapping[str, object] | None:
    """Return what a config.json says of its weights' quantization; None if it says nothing."""
    nested = config.get("text_config")
    for values in (config, nested if isinstance(nested, dict) else {}):
        for key in KEYS:
            value = values.get(key)
            if isinstance(value, dict) and value:
                return value
    return None


def without_quantization(config: Mapping[str, object]) -> dict[str, object]:
    """Return a config.json without what it says of quantization, for weights that are decoded or encoded otherwise."""
    kept = {key: value for key, value in config.items() if key not in KEYS}
    nested = kept.get("text_config")
    return kept | {"text_config": without_quantization(nested)} if isinstance(nested, dict) else kept


def with_metadata(config: Mapping[str, object], metadata: Mapping[str, str]) -> dict[str, object]:
    """Return a config.json whose quantization has the files' metadata too, where torchao describes its tensors."""
    section = quantization_of(config)
    if section is None or section.get("quant_method") != "torchao":
        return dict(config)
    return without_quantization(config) | {KEYS[0]: {**section, "metadata": dict(metadata)}}


def unpack(tensors: Mapping[str, AnyTensor], config: Mapping[str, object], where: str) -> dict[str, AnyTensor]:
    """Replace the parts of each quantized tensor by one encoded tensor; reads no values but the order of columns.

    Args:
        tensors: of the checkpoint, in the order of the files.
        config: the parsed config.json.
        where: the directory, for messages.

    Returns:
        The tensors: each quantized one in the place of its first part, the others unchanged. All of them unchanged if
        the configuration names no scheme that is read.

    Raises:
        UnsupportedModelError: a field of the quantization's configuration, or its value, is not understood.
        InvalidFileError: a part is missing, or has the wrong shape or type.
    """
    quantization = quantization_of(config)
    scheme = scheme_of(quantization) if quantization else None
    if scheme is None or quantization is None:
        return dict(tensors)
    plain = {name: tensor for name, tensor in tensors.items() if isinstance(tensor, Tensor)}
    source = Source(plain, Fields(quantization, where), where)
    return _replaced(tensors, list(scheme.read(source)), where)


def scheme_of(quantization: Mapping[str, object]) -> Scheme | None:
    """Return the scheme that a quantization_config names; None if none of that name is read."""
    method = quantization.get("quant_method")
    module = SCHEMES.get(method) if isinstance(method, str) else None
    return cast(Scheme, importlib.import_module(f"{__name__}.{module}")) if module else None


def _replaced(tensors: Mapping[str, AnyTensor], packed: list[Packed], where: str) -> dict[str, AnyTensor]:
    owner: dict[str, EncodedTensor] = {}
    for each in packed:
        twice = [name for name in each.parts if name in owner]
        if twice:
            raise InvalidFileError(f"{where}: {twice[0]} is a part of two quantized tensors; fetch the model again")
        owner |= dict.fromkeys(each.parts, each.tensor)
    replaced: dict[str, AnyTensor] = {}
    for name, tensor in tensors.items():
        entry = owner.get(name, tensor)
        if entry.name in replaced and name not in owner:
            raise InvalidFileError(f"{where}: {name} is there quantized and unquantized; fetch the model again")
        replaced[entry.name if name in owner else name] = entry
    return replaced


def refuse_leftovers(tensors: Mapping[str, AnyTensor], where: str) -> None:
    """Raise if 8-bit floats are left that no scale belongs to, in a checkpoint whose others have one."""
    for name, tensor in tensors.items():
        if isinstance(tensor, Tensor) and tensor.dtype.startswith("float8"):
            raise UnsupportedModelError(f"{where}: {shown(name)} is {tensor.dtype} without a scale; {CURE}")


__all__ = [
    "KEYS",
    "SCHEMES",
    "Fields",
    "Packed",
    "Scheme",
    "Source",
    "quantization_of",
    "refuse_leftovers",
    "scheme_of",
    "unpack",
    "with_metadata",
    "without_quantization",
]
