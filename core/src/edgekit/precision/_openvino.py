"""OpenVINO: the number formats of `nncf.compress_weights`.

    kind            name                                       scale               zero point
    int8            int8-sym-channel, int8-asym-channel        float16             asym: uint8
                    int8-sym-g<size> (not NNCF's)              float16             -
    int4            int4-sym|asym-g<size>|channel              float16             asym: 4 bits
    int3, int2      int3-sym-g<size>|channel                   float16             one for the tensor
    nf4, cb4, fp4   nf4-g<size>|channel                        float16             -
    fp8             fp8-g<size>|channel                        float16             -
    mxfp4, mxfp8    mxfp4, mxfp8 (group 32)                    float8_e8m0fnu      -
    nvfp4           nvfp4 (group 16)                           float8_e4m3fn, and one float32 for the tensor

Any group size that divides the row is legal. NNCF has no int8 with groups (the IR has: what a GGUF file's Q8_0
becomes, code by code), no int3 or int2 asym, and no 5, 6 or 7 bits; its FP8 is e4m3.
Source: nncf 3.4.0 `CompressWeightsMode` and its checks of `group_size`.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction

from edgekit.precision._record import Precision, Spec

CONVENTION = "openvino"

#: name -> bits of a code
_INTEGERS = {"int8": 8, "int4": 4, "int3": 3, "int2": 2}
_GROUPED_FLOATS = {"nf4": 4, "cb4": 4, "fp4": 4, "fp8": 8}
#: name -> (bits of a code, group size, stored type of the scale)
_FIXED = {
    "mxfp4": (4, 32, "float8_e8m0fnu"),
    "mxfp8": (8, 32, "float8_e8m0fnu"),
    "nvfp4": (4, 16, "float8_e4m3fn"),
}
_SCALE_BITS = {"float16": 16, "float8_e8m0fnu": 8, "float8_e4m3fn": 8}
# Encoded differently in tensors of at least 10,000 elements, or (nvfp4) with a scale for the whole tensor.
_SIZE_DEPENDENT = ("fp4", "fp8", "mxfp4", "mxfp8", "nvfp4")


def resolve(spec: Spec) -> Precision | None:
    """Resolve a name: symmetry and granularity must be stated if there is a choice, else left out."""
    if spec.reduced or spec.granularity == "tensor":
        return None
    if spec.kind in _INTEGERS:
        return _integer(spec)
    if spec.symmetric is not None:
        return None
    if spec.kind in _GROUPED_FLOATS and spec.granularity is not None:
        return _precision(spec.kind, _GROUPED_FLOATS[spec.kind], spec.group, None, "float16")
    if spec.kind in _FIXED and spec.granularity is None:
        bits, group, scale_dtype = _FIXED[spec.kind]
        return _precision(spec.kind, bits, group, None, scale_dtype)
    return None


def catalogue() -> Iterator[Precision]:
    """Yield every format, with group sizes 32, 64 and 128 as examples."""
    names = ["int8-sym-channel", "int8-asym-channel"]
    for stem in ("int4-sym", "int4-asym", "int3-sym", "int2-sym", *_GROUPED_FLOATS):
        names += [f"{stem}-g32", f"{stem}-g64", f"{stem}-g128", f"{stem}-channel"]
    for name in (*names, *_FIXED):
        spec = Spec.parse(f"{CONVENTION}:{name}")
        precision = resolve(spec) if spec else None
        assert precision is not None
        yield precision


def _integer(spec: Spec) -> Precision | None:
    if spec.symmetric is None or spec.granularity is None:
        return None
    legal = spec.symmetric or spec.kind == "int4" or (spec.kind == "int8" and spec.granularity == "channel")
    return _precision(spec.kind, _INTEGERS[spec.kind], spec.group, spec.symmetric, "float16") if legal else None


def _precision(kind: str, bits: int, group: int | None, symmetric: bool | None, scale_dtype: str) -> Precision:
    overhead = _SCALE_BITS[scale_dtype] + (bits if symmetric is False else 0)
    sign = "" if symmetric is None else "-sym" if symmetric else "-asym"
    where = "" if kind in _FIXED else f"-g{group}" if group else "-channel"
    shared = not _rows_are_whole_bytes(kind, bits, group, symmetric)
    return Precision(
        CONVENTION,
        kind,
        bits=bits,
        granularity="group" if group else "channel",
        block=group,
        symmetric=symmetric is not False,
        scale_dtype=scale_dtype,
        bits_per_weight=bits + (Fraction(overhead, group) if group else Fraction(0)),
        whole_tensor=kind in _SIZE_DEPENDENT or shared,
        packed_rows=kind not in _SIZE_DEPENDENT and shared,
        name=f"{CONVENTION}:{kind}{sign}{where}",
    )


def _rows_are_whole_bytes(kind: str, bits: int, group: int | None, symmetric: bool | None) -> bool:
    """Return whether every part of every row starts at a byte boundary, for rows of any length.

    Packed zero points do not, nor do the codes of an odd row; int3 and int2 have one zero point for all rows.
    """
    if bits == 8:
        return True
    return kind not in ("int3", "int2") and symmetric is not False and group is not None and group * bits % 8 == 0


__all__ = ["CONVENTION", "catalogue", "resolve"]
