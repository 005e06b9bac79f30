"""8-bit floats: fine-grained FP8 (a scale a block of 128 x 128), and FP8 with a scale a row or a tensor.

    part                         dtype                        shape                       holds
    X.weight                     float8_e4m3fn                [..., out, in]              codes
    X.weight_scale_inv           float32, float16, bfloat16,  [..., ceil(out/r), ceil(in/c)]
                                 float8_e8m0fnu, uint8        or one element              scale; uint8 is e8m0
    X.weight_scale               float32, float16, bfloat16   [out, 1], [out], or one     scale
    X.input_scale, X.activation_scale                                                     of activations: not read

    weight = float32(code) * float32(scale)               "inv" in the name: what was divided by, inverted

Fused experts name their parts ``X.gate_up_proj`` and ``X.gate_up_proj_scale_inv``. r and c are ``weight_block_size``.
Activations are not quantized here, so ``activation_scheme`` changes nothing.

Source: DeepSeek-V3, ``inference/kernel.py`` (`weight_dequant`) and README_WEIGHTS.md; transformers 5.23,
``integrations/finegrained_fp8.py`` (`Fp8Dequantize`) and ``integrations/fbgemm_fp8.py``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from edgekit.formats._packed._scheme import Packed, Source, encoded, groups_of
from edgekit.numerics.smallfloats import float8_e8m0fnu_to_float32
from edgekit.tensor import EncodedTensor, Tensor
from edgekit.typing import F32, Array

KNOWN = (
    "quant_method",
    "activation_scheme",
    "activation_scale_ub",
    "weight_block_size",
    "modules_to_not_convert",
    "modules_to_convert",
    "ignored_layers",
    "fmt",
    "scale_fmt",
    "expert_dtype",
    "dequantize",
)
_SCALES = ("float32", "float16", "bfloat16", "float8_e8m0fnu", "uint8")
_OF_ACTIVATIONS = ("input_scale", "activation_scale", "input_scale_ub")


def read(source: Source) -> Iterator[Packed]:
    """Yield the 8-bit matrices; see `edgekit.formats._packed.Scheme`."""
    source.fields.only(KNOWN)
    source.fields.choice("fmt", ("e4m3", "float8_e4m3fn", "float8_e4m3"), "e4m3")
    source.fields.choice("expert_dtype", ("fp8",), "fp8")
    source.fields.choice("activation_scheme", ("dynamic", "static"), "dynamic")
    # null: a scale is for a tensor or a row
    block = source.fields.pair("weight_block_size") if source.fields.values.get("weight_block_size") else None
    for name, tensor in source.tensors.items():
        if tensor.dtype == "float8_e4m3fn" and not name.endswith("_scale_inv"):
            yield _packed(source, name, block)


def _packed(source: Source, name: str, block: tuple[int, int] | None) -> Packed:
    scale_name = next(iter(source.present(f"{name}_scale_inv", f"{name}_scale")), f"{name}_scale_inv")
    scale = source.part(scale_name, _SCALES)
    weight = source.tensors[name]
    if len(weight.shape) < 2:
        raise source.mismatch(name, weight.shape, "a matrix")
    module = name.rpartition(".")[0]
    unread = source.present(*(f"{module}.{each}" for each in _OF_ACTIVATIONS))
    return Packed(matrix(source, weight, scale, block), (name, scale_name, *unread))


def matrix(source: Source, weight: Tensor, scale: Tensor, block: tuple[int, int] | None) -> EncodedTensor:
    """Return float8_e4m3fn codes and scales of any granularity as one tensor.

    Args:
        source: for messages.
        weight: codes [..., out, in].
        scale: [..., ceil(out / r), ceil(in / c)] for blocks; else [out, 1], [out] or one element.
        block: r and c; None without blocks.
    """
    *leading, out, cols = weight.shape
    if block is not None and scale.size > 1:
        grid = (*leading, groups_of(out, block[0]), groups_of(cols, block[1]))
        if scale.shape != grid:
            raise source.mismatch(scale.name, scale.shape, grid)
        return _by_block(weight, scale, block)
    if scale.size not in (1, weight.rows):
        raise source.mismatch(scale.name, scale.shape, f"[{out}, 1] or one element")

    def read(start: int, stop: int) -> Mapping[str, Array]:
        values = widened(scale).reshape(-1, 1)
        rows = values[start:stop] if scale.size > 1 else np.repeat(values, stop - start, axis=0)
        return {"codes": weight.read_rows(start, stop), "scale": rows}

    return encoded(weight.name, weight.shape, "packed:fp8-channel", (weight, scale), read)


def _by_block(weight: Tensor, scale: Tensor, block: tuple[int, int]) -> EncodedTensor:
    """Return blocks as groups of their columns: each row gets its block's scales."""
    out, blocks = weight.shape[-2], groups_of(weight.shape[-2], block[0])

    def read(start: int, stop: int) -> Mapping[str, Array]:
        rows = np.arange(start, stop)
        of = rows // out * blocks + rows % out // block[0]
        first, last = (int(of[0]), int(of[-1]) + 1) if len(of) else (0, 0)
        return {"codes": weight.read_rows(start, stop), "scale": widened(scale, first, last)[of - first]}

    return encoded(weight.name, weight.shape, f"packed:fp8-g{block[1]}", (weight, scale), read)


def widened(scale: Tensor, start: int = 0, stop: int | None = None) -> F32:
    """Return rows of scales as float32; uint8 holds the exponents of float8_e8m0fnu."""
    if scale.dtype == "uint8":
        return float8_e8m0fnu_to_float32(scale.read_rows(start, scale.rows if stop is None else stop))
    return scale.float32(start, stop)


__all__ = ["KNOWN", "matrix", "read", "widened"]
