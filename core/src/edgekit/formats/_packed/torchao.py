"""torchao's own safetensors files: 8-bit integers, unpacked integers of fewer bits, and 8-bit floats.

    part                      dtype                    shape                holds
    M._weight_qdata           int8, float8_e4m3fn      [out, in]            codes
    M._weight_scale           float32, bfloat16, …     [out, in / group]    scale
    M._weight_zero_point      int8                     [out, in / group]    zero point; of integers

    of an Int4Tensor:
    M._weight_qdata           int8                     [out, in / 2]        two codes, the even column's in the low bits
    M._weight_scale           bfloat16, …              [in / group, out]    scale
    M._weight_zero_point      as the scale             [in / group, out]    what is added

    the file's metadata       ``M.weight``: JSON with ``_type``, and ``_data`` with ``block_size`` and ``target_dtype``

    Int8Tensor, IntxUnpackedToInt8Tensor   value = (code - zero point) * scale
    Float8Tensor                           value = code * scale
    Int4Tensor                             value = code * scale + zero point

Types whose bytes are in the order of a GPU kernel (Int4TilePackedTo4dTensor) are refused by name, as are those that are
new, and an Int4Tensor whose inputs are multiplied first (``act_pre_scale``). How activations are quantized is not read.

Source: torchao 0.18, ``prototype/safetensors/safetensors_support.py`` and ``quantization/quantize_/workflows``; of
Int4Tensor's values FBGEMM GenAI (now MSLK), ``int4_row_quantize_zp`` and ``pack_int4``, which it calls.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import attrs
import numpy as np

from edgekit.errors import UnsupportedModelError
from edgekit.files.foreign import shown, strict_json
from edgekit.formats._packed import fp8
from edgekit.formats._packed._integers import Integers, integer_tensor, turned
from edgekit.formats._packed._scheme import CURE, Packed, Source, encoded, granularity, groups_of
from edgekit.numerics.bits import pack_lsb
from edgekit.tensor import EncodedTensor, Tensor
from edgekit.typing import I16, Array

KNOWN = (
    "quant_method",
    "quant_type",
    "include_input_output_embeddings",
    "modules_to_not_convert",
    "quant_type_kwargs",
    "untie_embedding_weights",
    "metadata",
)
_BITS = {f"int{bits}": bits for bits in range(1, 9)}
_FLOATS = ("float32", "float16", "bfloat16")
_DATA = {
    "Int8Tensor": ("act_quant_kwargs", "reduce_range", "block_size", "dtype"),
    "IntxUnpackedToInt8Tensor": ("target_dtype", "block_size", "dtype", "activation_quantization"),
    "Float8Tensor": ("block_size", "mm_config", "act_quant_kwargs", "kernel_preference", "dtype"),
    "Int4Tensor": ("block_size", "shape", "activation_dtype"),
}


def read(source: Source) -> Iterator[Packed]:
    """Yield the quantized matrices; see `edgekit.formats._packed.Scheme`."""
    source.fields.only(KNOWN)
    metadata = source.fields.values.get("metadata")
    described = metadata if isinstance(metadata, Mapping) else {}
    for module in source.modules("._weight_qdata"):
        found = _described(source, f"{module}.weight", described)
        yield (_offset if found["kind"] == "Int4Tensor" else _packed)(source, module, found)


def _described(source: Source, name: str, metadata: Mapping[str, object]) -> dict[str, object]:
    """Return what the file says of a tensor: its type and attributes."""
    text = metadata.get(name)
    parsed = strict_json(str(text).encode(), Path(source.where), f"the metadata of {name}") if text else None
    if not isinstance(parsed, dict) or not isinstance(parsed.get("_data"), dict):
        raise UnsupportedModelError(f"{source.where}: the file's metadata does not say what {name} is; {CURE}")
    kind = parsed.get("_type")
    known = _DATA.get(kind) if isinstance(kind, str) else None
    if known is None:
        raise UnsupportedModelError(
            f"{source.where}: {name} is of torchao's {shown(kind)}; read are {', '.join(_DATA)}; {CURE}"
        )
    for key, value in parsed["_data"].items():
        if key not in known and value not in (None, False):
            raise UnsupportedModelError(
                f"{source.where}: {name} has the attribute {shown(key)} ({shown(value)}), which is not understood; "
                f"{CURE}"
            )
    return {"kind": kind, **parsed["_data"]}


def _packed(source: Source, module: str, described: Mapping[str, object]) -> Packed:
    floats = described["kind"] == "Float8Tensor"
    codes = source.part(f"{module}._weight_qdata", ("float8_e4m3fn",) if floats else ("int8",))
    if len(codes.shape) != 2:
        raise source.mismatch(codes.name, codes.shape, "[out, in]")
    scale = source.part(f"{module}._weight_scale", _FLOATS)
    group = _group(source, codes, described)
    names = (codes.name, scale.name, *source.present(f"{module}._weight_zero_point"))
    if floats:
        tensor = fp8.matrix(source, codes, scale, None if group is None else (1, group))
        return Packed(_named(tensor, f"{module}.weight"), names)
    grid = codes.shape[0], groups_of(codes.shape[1], group)
    if scale.shape != grid and scale.size != 1:
        raise source.mismatch(scale.name, scale.shape, grid)
    bits = _bits(source, module, described)
    half = np.uint8(1 << (bits - 1))

    def packed(start: int, stop: int) -> Array:
        return pack_lsb((codes.read_rows(start, stop).view(np.uint8) + half) & np.uint8((1 << bits) - 1), bits)

    zero = _zero(source, module, scale, grid, int(half))
    parts = Integers(bits, group, scale, zero, None, source)
    return Packed(integer_tensor(f"{module}.weight", codes.shape, parts, packed, (codes,)), names)


def _offset(source: Source, module: str, described: Mapping[str, object]) -> Packed:
    """Return an Int4Tensor, whose zero points are floats, in units of values."""
    codes = source.part(f"{module}._weight_qdata", ("int8", "uint8"))
    if len(codes.shape) != 2:
        raise source.mismatch(codes.name, codes.shape, "[out, in / 2]")
    out, cols = codes.shape[0], 2 * codes.shape[1]
    size = described.get("block_size")
    group = size[1] if isinstance(size, list) and len(size) == 2 and size[0] == 1 else None
    if type(group) is not int or not 0 < group <= cols:
        raise UnsupportedModelError(
            f"{source.where}: {codes.name} has block_size {shown(size)}; read is [1, group]; {CURE}"
        )
    if names := source.present(f"{module}._weight_act_pre_scale"):
        raise UnsupportedModelError(f"{source.where}: {names[0]} multiplies the inputs, which is not supported; {CURE}")
    grid = groups_of(cols, group), out
    scale, offset = (source.part(f"{module}._weight_{part}", _FLOATS, grid) for part in ("scale", "zero_point"))
    columns = {"scale": turned(scale), "offset": turned(offset)}

    def read(start: int, stop: int) -> Mapping[str, Array]:
        parts = {name: part.float32(start, stop) for name, part in columns.items()}
        return {"codes": codes.read_rows(start, stop).view(np.uint8), **parts}

    kind, held = f"packed:int4_offset-{granularity(group)}", (codes, scale, offset)
    tensor = encoded(f"{module}.weight", (out, cols), kind, held, read)
    return Packed(tensor, tuple(part.name for part in held))


def _named(tensor: EncodedTensor, name: str) -> EncodedTensor:
    return attrs.evolve(tensor, name=name)


def _bits(source: Source, module: str, described: Mapping[str, object]) -> int:
    given = described.get("target_dtype", {"_data": "int8"})
    kind = given.get("_data") if isinstance(given, Mapping) else None
    bits = _BITS.get(kind) if isinstance(kind, str) else None
    if bits is None:
        raise UnsupportedModelError(
            f"{source.where}: {module}.weight has target_dtype {shown(given)}; read are {', '.join(_BITS)}"
        )
    return bits


def _group(source: Source, codes: Tensor, described: Mapping[str, object]) -> int | None:
    """Return the columns that share a scale; None for a row or all."""
    out, cols = codes.shape
    size = described.get("block_size")
    if size == [1, cols] or size == [out, cols]:
        return None
    if isinstance(size, list) and len(size) == 2 and size[0] == 1 and type(size[1]) is int and 0 < size[1] < cols:
        return size[1]
    raise UnsupportedModelError(
        f"{source.where}: {codes.name} has block_size {shown(size)}; read are [1, group], rows and tensors; {CURE}"
    )


def _zero(source: Source, module: str, scale: Tensor, grid: tuple[int, int], half: int) -> Callable[[], I16] | None:
    names = source.present(f"{module}._weight_zero_point")
    if not names:
        return None
    part = source.part(names[0], ("int8",))
    if part.size != scale.size:
        raise source.mismatch(part.name, part.shape, scale.shape)

    def zeros() -> I16:
        zero = part.read().astype(np.int16).reshape(-1, grid[1] if part.size > 1 else 1)
        return np.broadcast_to(zero + np.int16(half), grid)

    return zeros


__all__ = ["KNOWN", "read"]
