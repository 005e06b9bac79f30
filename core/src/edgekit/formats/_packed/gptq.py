"""GPTQ: integers of 2, 3, 4 or 8 bits, packed along the inputs, in the layout of AutoGPTQ and GPTQModel.

    part         dtype                        shape                   holds
    X.qweight    int32                        [in * b / 32, out]      codes, LSB first from input to input
    X.qzeros     int32                        [groups, out * b / 32]  zero points, LSB first from output to output
    X.scales     float16, bfloat16, float32   [groups, out]           scale
    X.g_idx      int32                        [in]                    the group of each input

    value = (code - zero point) * scale

    checkpoint_format    zero point
    gptq_v2              stored
    gptq (v1)            one more than stored: 2, 4 and 8 bits by adding 1 to every field of a word, carries included,
                         which undoes what GPTQModel subtracts; 3 bits by adding to every field, modulo 8

With ``desc_act`` the inputs of a group are no neighbours, and `g_idx` lists their groups. With ``sym`` every zero point
is 2^(b-1); the stored ones are read all the same. Codes of 3 bits run on over the ends of words.

``dynamic`` lists regular expressions of modules' names; the first that matches the begin of a name counts. With ``-:``
before it, the module is not quantized; else its bits and group size are the module's.

Source: AutoGPTQ 0.7.1, ``nn_modules/qlinear/qlinear_cuda_old.py`` (`pack`, `forward`); GPTQModel 7.7,
``utils/model.py`` (`convert_gptq_v1_to_v2_format_module`), through which transformers loads either, and
``quantization/config.py`` (`dynamic_get`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from edgekit.errors import UnsupportedModelError
from edgekit.files.foreign import shown
from edgekit.formats._packed._integers import Integers, integer_tensor, turned
from edgekit.formats._packed._scheme import CURE, Fields, Latest, Packed, Source, bytes_of, groups_of
from edgekit.formats._patterns import compiled
from edgekit.numerics.bits import unpack_lsb
from edgekit.typing import I16, I32, U8, Array

KNOWN = (
    "quant_method",
    "bits",
    "group_size",
    "sym",
    "desc_act",
    "checkpoint_format",
    "format",
    "pack_dtype",
    "dynamic",
    "lm_head",
    "modules_in_block_to_quantize",
    # how it was quantized, or is to be run; what is stored does not depend on it
    "act_group_aware",
    "backend",
    "batch_size",
    "block_name_to_quantize",
    "cache_block_outputs",
    "damp_auto_increment",
    "damp_percent",
    "dataset",
    "disable_exllama",
    "exllama_config",
    "is_marlin_format",
    "max_input_length",
    "meta",
    "model_file_base_name",
    "model_name_or_path",
    "model_seqlen",
    "module_name_preceding_first_block",
    "mse",
    "pad_token_id",
    "static_groups",
    "tokenizer",
    "true_sequential",
    "use_cuda_fp16",
    "use_exllama",
    "uses_v2_format",
)
_FLOATS = ("float16", "bfloat16", "float32")
#: What a pattern of ``dynamic`` may set; of these only the first two say how the codes are stored.
_OVERRIDES = ("bits", "group_size", "sym", "desc_act", "act_group_aware", "damp_percent", "mse", "static_groups")


def read(source: Source) -> Iterator[Packed]:
    """Yield the packed matrices; see `edgekit.formats._packed.Scheme`."""
    fields = source.fields
    fields.only(KNOWN)
    usual = _widths(fields, (4, None))
    fields.choice("pack_dtype", ("int32", "torch.int32"), "int32")
    fields.choice("is_marlin_format", (False,), False)
    key = "format" if fields.values.get("checkpoint_format") is None else "checkpoint_format"
    first = fields.choice(key, ("gptq", "gptq_v2"), "gptq") == "gptq"
    rules, latest = list(_rules(source)), Latest()
    for module in source.modules(".qweight"):
        bits, size = _of(source, module, rules, usual)
        yield _packed(source, module, bits, size, first, latest)


def _widths(fields: Fields, usual: tuple[int, int | None]) -> tuple[int, int | None]:
    """Return bits and group size; None for a whole row."""
    given = fields.values.get("group_size")
    size = usual[1] if given is None else None if given == -1 else fields.size("group_size", 128)
    return fields.choice("bits", (2, 3, 4, 8), usual[0]), size


def _rules(source: Source) -> Iterator[tuple[str, Fields | None]]:
    """Yield the patterns of ``dynamic``, without ``-:`` and ``+:``, and what they set; None: not quantized."""
    dynamic = source.fields.values.get("dynamic") or {}
    if not isinstance(dynamic, Mapping):
        source.fields.refuse("dynamic", "patterns with what they set are read")
    for pattern, values in dynamic.items():
        name = f"quantization_config.dynamic.{shown(pattern)}"
        rule = pattern.removeprefix("-:").removeprefix("+:")
        if compiled(rule) is None or not isinstance(values, Mapping):
            raise UnsupportedModelError(
                f"{source.where}: {name} ({shown(values)}) is no pattern that edgekit matches, with an object; {CURE}"
            )
        fields = Fields(values, source.where, name)
        fields.only(_OVERRIDES)
        yield rule, None if pattern.startswith("-:") else fields


def _of(
    source: Source, module: str, rules: list[tuple[str, Fields | None]], usual: tuple[int, int | None]
) -> tuple[int, int | None]:
    """Return bits and group size of a module."""
    for rule, fields in rules:
        pattern = compiled(rule)
        if pattern is None or pattern.match(module) is None:
            continue
        if fields is None:
            raise UnsupportedModelError(
                f"{source.where}: {module} is quantized, and quantization_config.dynamic has {shown('-:' + rule)}, by "
                f"which it is not; {CURE}"
            )
        return _widths(fields, usual)
    return usual


def _packed(source: Source, module: str, bits: int, size: int | None, first: bool, latest: Latest) -> Packed:
    qweight = source.part(f"{module}.qweight", ("int32",))
    if len(qweight.shape) != 2 or qweight.shape[0] * 32 % bits:
        raise source.mismatch(qweight.name, qweight.shape, f"[in * {bits} / 32, out]")
    cols, out = qweight.shape[0] * 32 // bits, qweight.shape[1]
    groups = groups_of(cols, size)
    scales = source.part(f"{module}.scales", _FLOATS, (groups, out))
    qzeros = source.part(f"{module}.qzeros", ("int32",), (groups, -(-out * bits // 32)))
    order = source.present(f"{module}.g_idx")
    index = source.part(order[0], ("int32", "int64"), (cols,)) if order else None

    def codes(start: int, stop: int) -> Array:
        held = latest.get(module, lambda: bytes_of(qweight.read().T))
        return held[start:stop, : -(-cols * bits // 8)]

    def zero() -> I16:
        stored = zero_points(qzeros.read(), bits, first)[:, :out]
        return np.ascontiguousarray(stored.T).astype(np.int16)

    parts = Integers(bits, size, turned(scales), zero, index, source)
    tensor = integer_tensor(f"{module}.weight", (out, cols), parts, codes, (qweight, qzeros))
    return Packed(tensor, (qweight.name, qzeros.name, scales.name, *order))


def zero_points(words: I32, bits: int, first: bool) -> U8:
    """Return the zero points in words [groups, n]; `first` for those of the first version, which are one less."""
    if first and bits != 3:
        ones = np.uint32(0xFFFFFFFF // ((1 << bits) - 1))
        words = (words.view(np.uint32) + ones).view(np.int32)
    fields = unpack_lsb(bytes_of(words), bits, words.shape[1] * 32 // bits)
    return (fields + np.uint8(1)) & np.uint8(7) if first and bits == 3 else fields


__all__ = ["KNOWN", "read", "zero_points"]
