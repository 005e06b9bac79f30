"""What a checkpoint is that does not hold a model's own weights: told from its tensors' names, each with a cure.

Other tools store weights packed, or only what is to be added to them. What such a file lacks is not missing: saying so
would send people to download it again.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import PurePath
from typing import Any, NoReturn

import attrs

from edgekit.architectures._section import short
from edgekit.errors import UnsupportedModelError

_ORIGINAL = "convert the full-precision model that it was made from"
_DEQUANTIZE = (
    f"{_ORIGINAL}, or write its weights out where that runs: transformers' "
    "AutoModelForCausalLM.from_pretrained(MODEL).dequantize().save_pretrained(NEW)"
)
_MERGE = (
    "merge it into its base model, edgekit merge BASE ADAPTER --to NEW, or with peft's "
    "PeftModel.from_pretrained(BASE, ADAPTER).merge_and_unload()"
)


@attrs.frozen
class _Kind:
    """A kind of checkpoint.

    Attributes:
        what: its name, as an error says it.
        endings: of tensors' names; each has to end one of them.
        cure: what to do.
        read: whether `edgekit.formats._packed` reads it, given the configuration that says how it was packed.
    """

    what: str
    endings: tuple[str, ...]
    cure: str = _ORIGINAL
    read: bool = False


#: The more particular first.
_PACKED = (
    _Kind("weights packed by bitsandbytes to 4 bits", (".absmax", ".quant_map"), read=True),
    _Kind("weights packed by bitsandbytes to 8 bits", (".SCB",), read=True),
    _Kind("weights packed by GPTQ", (".qweight", ".scales", ".g_idx"), read=True),
    _Kind("weights packed by AWQ, or by GPTQ", (".qweight", ".scales"), read=True),
    _Kind(
        "weights quantized by optimum-quanto without the quanto_qmap.json that says how",
        ("._data", "._scale"),
        f"{_ORIGINAL}; where that is gone, each matrix is its _data times its _scale",
    ),
    _Kind("weights packed by compressed-tensors", (".weight_packed", ".weight_scale"), read=True),
    _Kind("8-bit floats with a scale a block (fine-grained FP8)", (".weight_scale_inv",), read=True),
    _Kind(
        "quantized weights with scales beside them (compressed-tensors, ModelOpt or FP8)", (".weight_scale",), read=True
    ),
    _Kind("weights packed by HQQ", (".W_q",)),
    _Kind("weights packed by EETQ", (".weight_scales",)),
    _Kind("weights packed by AQLM", (".codebooks", ".codes")),
    _Kind("weights packed by QuIP#", (".Qidxs",)),
    _Kind("MXFP4 blocks and scales", ("_blocks", "_scales"), read=True),
)
_METHODS = {
    "bitsandbytes": ("bitsandbytes", _DEQUANTIZE),
    "fp8": ("fine-grained FP8", _DEQUANTIZE),
    "mxfp4": ("MXFP4", _DEQUANTIZE),
    "gptq": ("GPTQ", _ORIGINAL),
    "awq": ("AWQ", _ORIGINAL),
    "compressed-tensors": ("compressed-tensors", _ORIGINAL),
    "quanto": ("optimum-quanto", _ORIGINAL),
    "olive": ("Olive", _ORIGINAL),
    "torchao": ("torchao", _ORIGINAL),
    "modelopt": ("NVIDIA ModelOpt", _ORIGINAL),
}
#: Those that `edgekit.formats._packed` reads.
_READ = ("bitsandbytes", "fp8", "mxfp4", "gptq", "awq", "compressed-tensors", "torchao", "modelopt", "olive")
_WRAPPERS = {"_orig_mod.": "torch.compile", "module.": "DataParallel or DeepSpeed"}
_LORA = (
    ".lora_A.",
    ".lora_B.",
    ".lora_embedding_A",
    ".lora_embedding_B",
    ".lora_magnitude_vector",
    ".lora_a",
    ".lora_b",
)


def refuse_other_weights(
    names: Collection[str], where: str, config: Mapping[str, Any] | None = None, base: str | None = None
) -> None:
    """Refuse a checkpoint that holds something else than a model's own weights; looks at names alone.

    Args:
        names: of its tensors.
        where: the file or directory, for the message.
        config: its config.json; a ``quantization_config`` counts.
        base: of an adapter the name of its base model, where a file says it.

    Raises:
        UnsupportedModelError: names what was found, with a cure.
    """
    given = config or {}
    packed = _packed(names, given.get("quantization_config"))
    problem = _lora(names, base) or packed or _configured(given) or _other_names(names)
    if problem:
        raise UnsupportedModelError(f"{where}: {problem}")


def _packed(names: Collection[str], quantization: object) -> str | None:
    for kind in _PACKED:
        examples = [next((name for name in names if name.endswith(ending)), None) for ending in kind.endings]
        if all(examples):
            return f"it holds {kind.what} ({examples[0]}), {_why_not(kind, quantization)}; {kind.cure}"
    return None


def _why_not(kind: _Kind, quantization: object) -> str:
    """Why weights are not read: nothing reads them, or no configuration says how they were packed."""
    if not kind.read:
        return "which edgekit does not read"
    method = quantization.get("quant_method") if isinstance(quantization, Mapping) else None
    if method is None:
        return "and its config.json has no quantization_config that says how; fetch the model's own config.json"
    return f"and the quant_method of its config.json, {short(method)}, is not one that edgekit reads"


def _configured(config: Mapping[str, Any]) -> str | None:
    """What config.json says of weights whose names say nothing."""
    quantization = config.get("quantization_config")
    if not quantization:
        return None
    method = quantization.get("quant_method") if isinstance(quantization, dict) else None
    if method is None and isinstance(quantization, dict) and {"bits", "group_size"} <= quantization.keys():
        return "its config.json says that it holds weights quantized by MLX; pip install edgekit-mlx, which reads them"
    name, cure = _METHODS.get(str(method), (str(method) if isinstance(method, str) else "", _ORIGINAL))
    what = f"weights quantized by {name}" if name else f"quantized weights ({short(quantization)})"
    why = "and none of its tensors is quantized that way" if str(method) in _READ else "which edgekit does not read"
    return f"its config.json says that it holds {what} (quantization_config), {why}; {cure}"


def _lora(names: Collection[str], base: str | None) -> str | None:
    parts = [name for name in names if any(part in name for part in _LORA)]
    if not parts:
        return None
    of = f" of {base}" if base else ""
    if any(not any(part in name for part in (*_LORA, "modules_to_save")) for name in names):
        return (
            f"a LoRA adapter{of} lies unmerged in its weights ({parts[0]}); merge it first: peft's "
            "model.merge_and_unload().save_pretrained(NEW)"
        )
    return f"it is a LoRA adapter{of} ({parts[0]}), not a model; {_MERGE}"


def _other_names(names: Collection[str]) -> str | None:
    for prefix, tool in _WRAPPERS.items():
        if names and all(name.startswith(prefix) for name in names):
            return (
                f"every tensor's name begins with {prefix}, as {tool} wraps a model; save the model inside it "
                f"({'model._orig_mod' if prefix == '_orig_mod.' else 'model.module'}.save_pretrained(NEW))"
            )
    if "tok_embeddings.weight" in names:
        return (
            "its tensors have the names of Meta's and Mistral's own files (tok_embeddings.weight); fetch the same "
            "model in transformers' form, or of Mistral its params.json and consolidated.safetensors alone"
        )
    return None


def refuse_adapter_directory(directory: PurePath, base: str | None, names: Collection[str]) -> NoReturn:
    """Refuse the directory of an adapter, which holds no model.

    Raises:
        UnsupportedModelError: names the base model, with a cure.
    """
    refuse_other_weights(names, str(directory), base=base)
    of = f" of {base}" if base else ""
    raise UnsupportedModelError(f"{directory}: it holds an adapter{of} (adapter_config.json), not a model; {_MERGE}")


__all__ = ["refuse_adapter_directory", "refuse_other_weights"]
