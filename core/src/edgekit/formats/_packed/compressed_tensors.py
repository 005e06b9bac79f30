"""compressed-tensors (llm-compressor, vLLM): integers and small floats, packed or not.

    format                      X.weight_packed, or X.weight         X.weight_scale              zero point
    pack-quantized              int32 [out, ceil(in * b / 32)]:      [out, groups], [out, 1]     int32, packed along
                                code + 2^(b-1), LSB first                                        the outputs
    int-quantized, naive-…      int8 [out, in]                       [out, groups], …, [1]       int8, as the scale
    float-quantized, naive-…    float8_e4m3fn [out, in]              [out, 1], [1], by blocks    none
    mxfp8-quantized             float8_e4m3fn [out, in]              uint8 [out, in/32]: e8m0    none
    nvfp4-pack-quantized        uint8 [out, in/2], low half first    float8_e4m3fn [out, in/16]  none
    mxfp4-pack-quantized        uint8 [out, in/2], low half first    uint8 [out, in/32]: e8m0    none

    X.weight_global_scale       float32 [1], of NVFP4: what its scales are divided by
    X.weight_shape              int64 [2], of packed integers: out and in
    X.weight_g_idx              int32 [in], of ``actorder: group``: the group of each column

    value = (code - zero point) * scale        NVFP4: code * float32(scale / global scale)

Everything is computed in float32; the library rounds its products to the scale's type. Scales of activations, of keys
and of values (``input_scale``, ``k_scale`` …) do not concern weights and are not read.

Source: compressed-tensors 0.20.0, ``compressors/*/base.py``, ``quantization/quant_args.py`` and
``quantization/lifecycle/forward_helpers.py`` (`_dequantize`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import attrs
import numpy as np

from edgekit.errors import UnsupportedModelError
from edgekit.formats._packed import fp8, mxfp4
from edgekit.formats._packed._integers import Integers, integer_tensor
from edgekit.formats._packed._scheme import CURE, Fields, Packed, Source, bytes_of, encoded, groups_of
from edgekit.formats._patterns import compiled
from edgekit.numerics.bits import unpack_lsb
from edgekit.tensor import EncodedTensor, Tensor
from edgekit.typing import I16, Array

KNOWN = (
    "quant_method",
    "config_groups",
    "format",
    "ignore",
    "global_compression_ratio",
    "kv_cache_scheme",
    "quantization_status",
    "sparsity_config",
    "transform_config",
    "version",
)
#: Of a group, and of the arguments of its weights.
GROUP_KNOWN = ("targets", "weights", "input_activations", "output_activations", "format")
ARGUMENTS_KNOWN = (
    "num_bits",
    "type",
    "symmetric",
    "group_size",
    "strategy",
    "block_structure",
    "dynamic",
    "actorder",
    "scale_dtype",
    "zp_dtype",
    "observer",
    "observer_kwargs",
)
FORMATS = (
    "pack-quantized",
    "int-quantized",
    "float-quantized",
    "naive-quantized",
    "nvfp4-pack-quantized",
    "mxfp4-pack-quantized",
    "mxfp8-quantized",
    "mixed-precision",
)
_FLOATS = ("float32", "float16", "bfloat16")
_OTHERS = ("input_scale", "input_zero_point", "input_global_scale", "output_scale", "output_zero_point")
_OF_CACHE = ("k_scale", "v_scale", "q_scale", "k_zero_point", "v_zero_point")


@attrs.frozen
class Group:
    """The modules of a config group, and how their weights are stored."""

    targets: tuple[str, ...]
    arguments: Fields
    bits: int
    floats: bool
    symmetric: bool


def read(source: Source) -> Iterator[Packed]:
    """Yield the quantized matrices; see `edgekit.formats._packed.Scheme`."""
    source.fields.only(KNOWN)
    source.fields.choice("format", FORMATS, "mixed-precision")
    _refuse_changed(source.fields)
    groups = _groups(source)
    modules = [*source.modules(".weight_packed"), *source.modules(".weight_scale")]
    for module in dict.fromkeys(modules):
        group = _group_of(module, groups, source)
        tensor, parts = _READERS[_kind(source, module, group)](source, module, group)
        unread = source.present(*(f"{module}.{each}" for each in _OTHERS))
        yield Packed(tensor, (*parts, *unread, *_of_cache(source, module)))


def _of_cache(source: Source, module: str) -> tuple[str, ...]:
    """Return the scales of the cache, which belong to the attention above the projection of the keys."""
    above = module.rpartition(".")[0]
    return source.present(*(f"{above}.{each}" for each in _OF_CACHE)) if module.endswith("k_proj") else ()


def _refuse_changed(fields: Fields) -> None:
    """Raise if the weights are transformed, or sparse in a way of their own."""
    if fields.values.get("transform_config"):
        fields.refuse("transform_config", "weights that were rotated are not read")
    sparsity = fields.values.get("sparsity_config")
    if sparsity and not (isinstance(sparsity, dict) and sparsity.get("format", "dense") == "dense"):
        fields.refuse("sparsity_config", "only dense weights are read")


def _groups(source: Source) -> list[Group]:
    groups = source.fields.values.get("config_groups")
    if not isinstance(groups, dict) or not groups:
        source.fields.refuse("config_groups", "an object of groups is needed")
    return [_group(group, f"quantization_config.config_groups.{name}", source) for name, group in groups.items()]


def _group(values: object, name: str, source: Source) -> Group:
    if not isinstance(values, dict) or not isinstance(values.get("weights"), dict):
        raise UnsupportedModelError(f"{source.where}: {name} has no weights; only quantized weights are read; {CURE}")
    fields, arguments = Fields(values, source.where, name), Fields(values["weights"], source.where, f"{name}.weights")
    fields.only(GROUP_KNOWN)
    fields.choice("format", FORMATS, "mixed-precision")
    arguments.only(ARGUMENTS_KNOWN)
    targets = values.get("targets")
    if not isinstance(targets, list) or not all(isinstance(each, str) for each in targets):
        fields.refuse("targets", "a list of modules or classes is needed")
    if arguments.values.get("dynamic"):
        arguments.refuse("dynamic", "read is False")
    return Group(
        tuple(targets),
        arguments,
        arguments.choice("num_bits", range(1, 9), 8),
        arguments.choice("type", ("int", "float"), "int") == "float",
        arguments.choice("symmetric", (True, False), True),
    )


def _group_of(module: str, groups: list[Group], source: Source) -> Group:
    """Return the group of a module: one that names it, else the only one that names its class."""
    named = [group for group in groups if any(_names(target, module) for target in group.targets)]
    classes = [group for group in groups if any(_is_class(target) for target in group.targets)]
    for found in (named, classes, groups if len(groups) == 1 else []):
        if len(found) == 1:
            return found[0]
    raise UnsupportedModelError(
        f"{source.where}: {len(named or classes)} of the {len(groups)} groups of quantization_config.config_groups are "
        f"about {module}; exactly one is needed; {CURE}"
    )


def _names(target: str, module: str) -> bool:
    if target.startswith("re:"):
        pattern = compiled(target.removeprefix("re:"))
        return pattern is not None and pattern.match(module) is not None
    return target == module


def _is_class(target: str) -> bool:
    return not target.startswith("re:") and "." not in target


def _kind(source: Source, module: str, group: Group) -> str:
    packed = source.tensors.get(f"{module}.weight_packed")
    if not group.floats:
        return "packed integers" if packed is not None else "integers"
    if group.bits == 8 and packed is None:
        return "8-bit floats"
    if group.bits != 4 or packed is None:
        group.arguments.refuse("num_bits", "floats of 8 bits, or packed ones of 4, are read")
    return "nvfp4" if source.present(f"{module}.weight_global_scale") else "mxfp4"


def _group_size(group: Group, cols: int) -> int | None:
    """Return the columns that share a scale; None for a whole row."""
    strategy = group.arguments.values.get("strategy")
    size = group.arguments.values.get("group_size")
    if strategy in ("group", "tensor_group") or (strategy is None and type(size) is int and size > 0):
        return group.arguments.size("group_size", 0)
    if strategy not in ("channel", "tensor", None):
        group.arguments.refuse("strategy", "integers by group, channel or tensor are read")
    return None


def _packed_integers(source: Source, module: str, group: Group) -> tuple[EncodedTensor, tuple[str, ...]]:
    packed = source.part(f"{module}.weight_packed", ("int32",))
    shape = _shape(source, source.part(f"{module}.weight_shape", ("int64", "int32"), (2,)))
    words = -(-shape[1] * group.bits // 32)
    if packed.shape != (shape[0], words):
        raise source.mismatch(packed.name, packed.shape, (shape[0], words))
    width = -(-shape[1] * group.bits // 8)

    def codes(start: int, stop: int) -> Array:
        return bytes_of(packed.read_rows(start, stop))[:, :width]

    parts = _integer_parts(source, module, group, shape)
    held = (packed.name, f"{module}.weight_shape")
    return integer_tensor(f"{module}.weight", shape, parts, codes, (packed,)), (*held, *parts.names)


def _shape(source: Source, part: Tensor) -> tuple[int, int]:
    out, cols = (int(each) for each in part.read())
    if not (0 < out < 1 << 31 and 0 < cols < 1 << 20):
        raise source.mismatch(part.name, part.shape, f"sizes of a matrix, not {out} and {cols},")
    return out, cols


def _plain_integers(source: Source, module: str, group: Group) -> tuple[EncodedTensor, tuple[str, ...]]:
    weight = source.part(f"{module}.weight", ("int8",))
    if len(weight.shape) != 2:
        raise source.mismatch(weight.name, weight.shape, "[out, in]")
    wide = attrs.evolve(group, bits=8)

    def codes(start: int, stop: int) -> Array:  # stored as int8, whatever the bits: -128 … 127 become 0 … 255
        return weight.read_rows(start, stop).view(np.uint8) ^ np.uint8(128)

    parts = _integer_parts(source, module, wide, weight.shape)
    return integer_tensor(weight.name, weight.shape, parts, codes, (weight,)), (weight.name, *parts.names)


def _integer_parts(source: Source, module: str, group: Group, shape: tuple[int, ...]) -> Integers:
    out, cols = shape
    size = _group_size(group, cols)
    scale = source.part(f"{module}.weight_scale", _FLOATS)
    groups = groups_of(cols, size)
    if scale.size not in (1, out * groups) or (size is not None and scale.shape != (out, groups)):
        raise source.mismatch(scale.name, scale.shape, (out, groups))
    zero = None if group.symmetric else _zeros(source, module, group, (out, groups), scale)
    order = source.present(f"{module}.weight_g_idx")
    index = source.part(order[0], ("int32", "int64"), (cols,)) if order else None
    return Integers(group.bits, size, scale, zero, index, source)


def _zeros(source: Source, module: str, group: Group, grid: tuple[int, int], scale: Tensor) -> Callable[[], I16]:
    """Return what reads the zero points [out, groups], counted from the lowest code."""
    part = source.part(f"{module}.weight_zero_point", ("int32", "int8"))
    half = np.int16(1 << (group.bits - 1))
    if part.dtype == "int8":
        if part.size != scale.size:
            raise source.mismatch(part.name, part.shape, scale.shape)
        return lambda: np.broadcast_to(part.read().reshape(-1, grid[1] if part.size > 1 else 1) + half, grid)
    if part.shape != (-(-grid[0] * group.bits // 32), grid[1]):
        raise source.mismatch(part.name, part.shape, (-(-grid[0] * group.bits // 32), grid[1]))

    def unpacked() -> I16:
        return unpack_lsb(bytes_of(part.read().T), group.bits, grid[0]).T.astype(np.int16)

    return unpacked


def _eight_bit_floats(source: Source, module: str, group: Group) -> tuple[EncodedTensor, tuple[str, ...]]:
    weight = source.part(f"{module}.weight", ("float8_e4m3fn",))
    scale = source.part(f"{module}.weight_scale", (*_FLOATS, "uint8", "float8_e8m0fnu"))
    strategy = group.arguments.choice("strategy", ("tensor", "channel", "block", "group"), "tensor")
    block = None
    if strategy == "block":
        block = group.arguments.pair("block_structure")
    elif strategy == "group":
        block = 1, group.arguments.size("group_size", 0)
    return fp8.matrix(source, weight, scale, block), (weight.name, scale.name)


def _nvfp4(source: Source, module: str, group: Group) -> tuple[EncodedTensor, tuple[str, ...]]:
    packed = source.part(f"{module}.weight_packed", ("uint8",))
    shape = _shape_of_halves(source, packed)
    size = group.arguments.size("group_size", 16)
    scale = source.part(f"{module}.weight_scale", ("float8_e4m3fn",), (shape[0], groups_of(shape[1], size)))
    overall = source.part(f"{module}.weight_global_scale", ("float32",))
    if overall.size != 1:
        raise source.mismatch(overall.name, overall.shape, "one element")

    def read(start: int, stop: int) -> Mapping[str, Array]:
        scales = scale.float32(start, stop) / overall.float32().reshape(1, 1)
        return {"codes": packed.read_rows(start, stop), "scale": scales}

    parts = (packed, scale, overall)
    tensor = encoded(f"{module}.weight", shape, f"packed:fp4-g{size}", parts, read)
    return tensor, tuple(part.name for part in parts)


def _mxfp4(source: Source, module: str, group: Group) -> tuple[EncodedTensor, tuple[str, ...]]:
    packed = source.part(f"{module}.weight_packed", ("uint8",))
    shape = _shape_of_halves(source, packed)
    if group.arguments.size("group_size", mxfp4.SIZE) != mxfp4.SIZE or shape[1] % mxfp4.SIZE:
        group.arguments.refuse(
            "group_size", f"groups of {mxfp4.SIZE} that divide the rows are read, with scales of e8m0"
        )
    scale = source.part(f"{module}.weight_scale", ("uint8", "float8_e8m0fnu"), (shape[0], shape[1] // mxfp4.SIZE))
    return mxfp4.matrix(f"{module}.weight", shape, packed, scale), (packed.name, scale.name)


def _shape_of_halves(source: Source, packed: Tensor) -> tuple[int, int]:
    if len(packed.shape) != 2:
        raise source.mismatch(packed.name, packed.shape, "[out, in/2]")
    return packed.shape[0], 2 * packed.shape[1]


_READERS = {
    "packed integers": _packed_integers,
    "integers": _plain_integers,
    "8-bit floats": _eight_bit_floats,
    "nvfp4": _nvfp4,
    "mxfp4": _mxfp4,
}

__all__ = ["KNOWN", "read"]
