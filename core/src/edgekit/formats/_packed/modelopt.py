"""NVIDIA ModelOpt: 8-bit floats with a scale a tensor or a row, and NVFP4.

    quant_algo                   X.weight                            X.weight_scale              X.weight_scale_2
    FP8                          float8_e4m3fn [out, in]             float32, one element        none
    FP8_PER_CHANNEL_PER_TOKEN    float8_e4m3fn [out, in]             float32 [out]               none
    NVFP4, W4A16_NVFP4           uint8 [out, in/2], low half first   float8_e4m3fn [out, in/16]  float32, one element

    FP8: value = float32(code) * scale        NVFP4: value = code * (float32(scale) * scale 2)

``MIXED_PRECISION`` has matrices of several kinds, which their own types tell; ``exclude_modules`` and ``ignore`` name
those that are plain floats. Scales of activations and of the cache are not read. The configuration is in config.json,
or in hf_quant_config.json beside it, under ``quantization``.

Source: TensorRT-Model-Optimizer, ``modelopt/torch/quantization/qtensor/nvfp4_tensor.py`` (`dequantize`),
``fp8_tensor.py`` and ``modelopt/torch/export/quant_utils.py``; vLLM, ``quantization/modelopt.py``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from edgekit.formats._packed import fp8
from edgekit.formats._packed._scheme import Packed, Source, encoded, groups_of
from edgekit.tensor import Tensor
from edgekit.typing import Array

KNOWN = (
    "quant_method",
    "quant_algo",
    "config_groups",
    "ignore",
    "exclude_modules",
    "group_size",
    "kv_cache_quant_algo",
    "kv_cache_scheme",
    "producer",
    "quantized_layers",
)
ALGORITHMS = ("FP8", "FP8_PER_CHANNEL_PER_TOKEN", "NVFP4", "W4A16_NVFP4", "MIXED_PRECISION")
_SIZE = 16
_UNREAD = ("input_scale", "k_scale", "v_scale", "output_scale")


def read(source: Source) -> Iterator[Packed]:
    """Yield the quantized matrices; see `edgekit.formats._packed.Scheme`."""
    source.fields.only(KNOWN)
    source.fields.choice("quant_algo", ALGORITHMS, "MIXED_PRECISION")
    if source.fields.size("group_size", _SIZE) != _SIZE:
        source.fields.refuse("group_size", f"groups of {_SIZE} are read")
    for module in source.modules(".weight_scale"):
        weight = source.part(f"{module}.weight", ("float8_e4m3fn", "uint8"))
        if len(weight.shape) != 2:
            raise source.mismatch(weight.name, weight.shape, "a matrix")
        unread = source.present(*(f"{module}.{each}" for each in _UNREAD))
        kind = _nvfp4 if weight.dtype == "uint8" else _fp8
        packed = kind(source, module, weight)
        yield Packed(packed.tensor, (*packed.parts, *unread))


def _fp8(source: Source, module: str, weight: Tensor) -> Packed:
    scale = source.part(f"{module}.weight_scale", ("float32",))
    return Packed(fp8.matrix(source, weight, scale, None), (weight.name, scale.name))


def _nvfp4(source: Source, module: str, packed: Tensor) -> Packed:
    shape = packed.shape[0], 2 * packed.shape[1]
    grid = (shape[0], groups_of(shape[1], _SIZE))
    scale = source.part(f"{module}.weight_scale", ("float8_e4m3fn",), grid)
    overall = source.part(f"{module}.weight_scale_2", ("float32",))
    if overall.size != 1:
        raise source.mismatch(overall.name, overall.shape, "one element")

    def read_parts(start: int, stop: int) -> Mapping[str, Array]:
        scales = scale.float32(start, stop) * overall.float32().reshape(1, 1)
        return {"codes": packed.read_rows(start, stop), "scale": scales}

    parts = (packed, scale, overall)
    tensor = encoded(packed.name, shape, f"packed:fp4-g{_SIZE}", parts, read_parts)
    return Packed(tensor, tuple(part.name for part in parts))


__all__ = ["KNOWN", "read"]
