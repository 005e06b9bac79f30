"""What other tools pack and no framework here encodes: read, decoded and carried over, never written.

    kind            elements                        scale a group, or a row
    fp8             float8_e4m3fn                   float32
    fp4             float4_e2m1fn                   float32: NVFP4 with its second scale multiplied in
    nf4             bitsandbytes' normal floats     float32
    bnb_fp4         bitsandbytes' 4-bit floats      float32
    int8            bitsandbytes' LLM.int8()        float32, of a row, in units of 1/127
    int<b>          integers, b = 2, 3, 4, 8        float32 and a zero point; the group of each column is listed
    int4_offset     integers of 4 bits, signed      float32 and a float32 offset, which is added

Names: ``packed:fp8-g128``, ``packed:fp8-channel``, ``packed:int4-g128``. Whatever is a lattice with groups of
neighbours (GPTQ, AWQ, compressed-tensors' integers) is ``affine`` instead, which has more bridges.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction

from edgekit.precision._record import Precision, Spec

CONVENTION = "packed"

_BITS = {"fp8": 8, "fp4": 4, "nf4": 4, "bnb_fp4": 4, "int2": 2, "int3": 3, "int4": 4, "int8": 8, "int4_offset": 4}
_SCALE_BITS = 32  # float32
_OFFSET_BITS = {"int4_offset": 32}


def resolve(spec: Spec) -> Precision | None:
    """``packed:<kind>-g<size>`` or ``packed:<kind>-channel``."""
    if spec.convention != CONVENTION or spec.kind not in _BITS or spec.reduced or spec.symmetric is not None:
        return None
    if spec.granularity not in ("group", "channel"):
        return None
    bits, where = _BITS[spec.kind], f"g{spec.group}" if spec.group else "channel"
    scale_bits = _SCALE_BITS + _OFFSET_BITS.get(spec.kind, 0)
    return Precision(
        CONVENTION,
        spec.kind,
        bits=bits,
        granularity=spec.granularity,
        block=spec.group,
        symmetric=None,
        scale_dtype="float32",
        bits_per_weight=bits + (Fraction(scale_bits, spec.group) if spec.group else Fraction(0)),
        whole_blocks=False,
        name=f"{CONVENTION}:{spec.kind}-{where}",
    )


def catalogue() -> Iterator[Precision]:
    """None: nothing can be encoded to them, so none can be chosen."""
    return iter(())


__all__ = ["CONVENTION", "catalogue", "resolve"]
