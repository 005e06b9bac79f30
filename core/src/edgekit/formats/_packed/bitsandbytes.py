"""bitsandbytes: NF4 and FP4 in blocks of 64, their scales quantized again or not, and the rows of LLM.int8().

    part                                     dtype      shape            holds
    X.weight                                 uint8      [n/2, 1]         4-bit codes row after row, the first one above
    X.weight.absmax                          float32    [blocks]         scale; uint8: codes of `nested_quant_map`
    X.weight.quant_map                       float32    [16]             the levels, which must be the known ones
    X.weight.nested_absmax                   float32    [blocks/256]     scale of 256 scales
    X.weight.nested_quant_map                float32    [256]            levels of the scales
    X.weight.quant_state.bitsandbytes__nf4   uint8      [bytes]          JSON: quant_type, blocksize, shape …
      or ..._fp4

    X.weight                                 int8       [out, in]        codes of LLM.int8()
    X.SCB                                    float32    [out]            largest magnitude of a row

    4 bits    value = level[code] * scale      scale = nested_quant_map[absmax] * nested_absmax + nested_offset
    8 bits    value = (code * SCB) * float32(1 / 127)

Blocks run on over the ends of rows. Where they do not divide a row they are read as groups of the greatest common
divisor of both, which share their block's scale. Another ``bnb_4bit_quant_storage`` holds the same bytes.

Source: bitsandbytes 0.50.2, ``functional.py`` (`QuantState.from_dict`, `dequantize_4bit`, `int8_vectorwise_dequant`);
T. Dettmers et al., "LLM.int8()", NeurIPS 2022 (arXiv:2208.07339).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Literal

import attrs
import numpy as np

from edgekit.errors import InvalidFileError
from edgekit.files.foreign import strict_json
from edgekit.formats._halves import four_bit_floats
from edgekit.formats._packed._scheme import MAX_GROUP, Fields, Packed, Source, encoded
from edgekit.reference._packed import BNB_FP4, NF4
from edgekit.tensor import Tensor
from edgekit.typing import F32, Array

KNOWN = (
    "quant_method",
    "_load_in_4bit",
    "_load_in_8bit",
    "load_in_4bit",
    "load_in_8bit",
    "bnb_4bit_compute_dtype",
    "bnb_4bit_quant_storage",
    "bnb_4bit_quant_type",
    "bnb_4bit_use_double_quant",
    "llm_int8_enable_fp32_cpu_offload",
    "llm_int8_has_fp16_weight",
    "llm_int8_skip_modules",
    "llm_int8_threshold",
)
_STATE = ".weight.quant_state.bitsandbytes__"
_LEVELS = {"nf4": NF4, "fp4": BNB_FP4}
_KINDS: tuple[Literal["nf4", "fp4"], ...] = ("nf4", "fp4")
_STATE_KNOWN = ("quant_type", "blocksize", "dtype", "shape", "nested_blocksize", "nested_dtype", "nested_offset")
#: A quant_state has some 200 bytes.
_STATE_LIMIT = 1 << 16


def read(source: Source) -> Iterator[Packed]:
    """Yield the 4-bit and the 8-bit matrices; see `edgekit.formats._packed.Scheme`."""
    source.fields.only(KNOWN)
    source.fields.choice("llm_int8_has_fp16_weight", (False,), False)
    for kind in _KINDS:
        for module in source.modules(_STATE + kind):
            yield _four_bits(source, module, kind)
    for module in source.modules(".SCB"):
        yield _eight_bits(source, module)
    for module in source.modules(".weight.absmax"):
        if not source.present(f"{module}{_STATE}nf4", f"{module}{_STATE}fp4"):
            source.part(f"{module}{_STATE}nf4", ("uint8",))


def _eight_bits(source: Source, module: str) -> Packed:
    weight = source.part(f"{module}.weight", ("int8",))
    if len(weight.shape) != 2:
        raise source.mismatch(weight.name, weight.shape, "[out, in]")
    scale = source.part(f"{module}.SCB", ("float32",), weight.shape[:1])

    def read(start: int, stop: int) -> Mapping[str, Array]:
        return {"codes": weight.read_rows(start, stop).view(np.uint8), "scale": scale.read()[start:stop, None]}

    tensor = encoded(weight.name, weight.shape, "packed:int8-channel", (weight, scale), read)
    return Packed(tensor, (weight.name, scale.name, *source.present(f"{module}.weight_format")))


@attrs.frozen
class State:
    """What the quant_state of a 4-bit tensor says."""

    shape: tuple[int, ...]
    block: int
    nested_block: int
    offset: np.float32


def _four_bits(source: Source, module: str, kind: Literal["nf4", "fp4"]) -> Packed:
    name, state_name = f"{module}.weight", f"{module}{_STATE}{kind}"
    state = _state(source, source.part(state_name, ("uint8",)), kind)
    size, blocks = math.prod(state.shape), -(-math.prod(state.shape) // state.block)
    weight = source.part(name, ("uint8", "int8", "float16", "bfloat16", "float32"))
    if weight.nbytes != -(-size // 2):
        raise source.mismatch(name, weight.shape, f"{-(-size // 2)} bytes for {size} codes")
    levels = source.part(f"{name}.quant_map", ("float32",), (16,))
    absmax = source.part(f"{name}.absmax", ("float32", "uint8"), (blocks,))
    parts, scales = _scales(source, absmax, state)
    if size and not np.array_equal(levels.read(), _LEVELS[kind]):
        raise InvalidFileError(f"{source.where}: {levels.name} are not the levels of {kind}; fetch the model again")
    nbytes = sum(part.nbytes for part in (weight, *parts))
    tensor = four_bit_floats(name, state.shape, kind, state.block, weight, scales, nbytes)
    return Packed(tensor, (name, state_name, levels.name, *(part.name for part in parts)))


def _state(source: Source, part: Tensor, kind: str) -> State:
    where = Path(f"{source.where}: {part.name}")
    if part.size > _STATE_LIMIT:
        raise source.mismatch(part.name, part.shape, f"at most {_STATE_LIMIT} bytes")
    values = strict_json(part.read().astype(np.uint8).tobytes(), where, "the quant_state")
    if not isinstance(values, dict):
        raise InvalidFileError(f"{where}: it is no JSON object; fetch the model again")
    fields = Fields(values, source.where, part.name)
    fields.only(_STATE_KNOWN)
    fields.choice("quant_type", (kind,), kind)
    shape, offset = values.get("shape"), values.get("nested_offset", 0.0)
    if not (isinstance(shape, list) and shape and all(type(each) is int and 0 < each < 1 << 40 for each in shape)):
        fields.refuse("shape", "a list of sizes is needed")
    if type(offset) not in (int, float) or len(shape) < 2 or shape[-1] > MAX_GROUP:
        fields.refuse("shape" if type(offset) is float else "nested_offset", "a matrix and a finite offset are needed")
    return State(tuple(shape), fields.size("blocksize", 64), fields.size("nested_blocksize", 256), np.float32(offset))


def _scales(source: Source, absmax: Tensor, state: State) -> tuple[tuple[Tensor, ...], Callable[[int, int], F32]]:
    """Return the tensors that hold the scales, and what reads those of some blocks."""
    if absmax.dtype == "float32":
        return (absmax,), lambda first, last: absmax.read()[first:last]
    name = absmax.name.removesuffix("absmax")
    levels = source.part(f"{name}nested_quant_map", ("float32",), (256,))
    outer = source.part(f"{name}nested_absmax", ("float32",), (-(-absmax.size // state.nested_block),))

    def read(first: int, last: int) -> F32:
        scale: F32 = levels.read()[absmax.read()[first:last]]
        scale *= outer.read()[np.arange(first, last) // state.nested_block]
        scale += state.offset
        return scale

    return (absmax, levels, outer), read


__all__ = ["KNOWN", "State", "read"]
