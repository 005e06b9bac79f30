"""ONNX Runtime: blockwise weights for MatMulNBits and for QDQ, and the 8-bit weights of its quantization tool.

    kind              name                                              one scale for        zero point
    int2|int4|int8    int<b>-sym|asym-g<block>                          block of a row       asym: b bits, packed
    qdq_int4          qdq_int4-sym|asym-g<block>                        block of a row       asym: 4 bits, packed
    int8, uint8       int8-sym|asym-channel|tensor[-reduced], uint8-…   row, or tensor       int8, uint8

MatMulNBits blocks are 16, 32, 64, 128 or 256, and 512 for 4 and 8 bits: its quantizer stops at 256, its operator
runs 512 (not for 2 bits). A QDQ block may have any size. A row need not be a multiple of its block.
Source: onnxruntime 1.32.0, by running `DefaultWeightOnlyQuantizer` and the CPU execution provider.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction

from edgekit.precision._record import Granularity, Precision, Spec

CONVENTION = "onnx"

#: kind -> legal blocks of MatMulNBits
_BLOCKS = {
    "int2": (16, 32, 64, 128, 256),
    "int4": (16, 32, 64, 128, 256, 512),
    "int8": (16, 32, 64, 128, 256, 512),
}
_BITS = {"int2": 2, "int4": 4, "int8": 8, "uint8": 8, "qdq_int4": 4}
_WHOLE = ("int8", "uint8")
# For a float16 source; twice as much for float32.
_SCALE_BITS = 16


def resolve(spec: Spec) -> Precision | None:
    """Resolve a name: symmetry and granularity must be stated; only scales of rows or tensors have a reduced range."""
    if spec.symmetric is None or spec.granularity is None:
        return None
    if spec.group is None:
        return _whole(spec.kind, spec.symmetric, spec.granularity, spec.reduced) if spec.kind in _WHOLE else None
    legal = spec.kind == "qdq_int4" or spec.group in _BLOCKS.get(spec.kind, ())
    return _blockwise(spec.kind, spec.symmetric, spec.group) if legal and not spec.reduced else None


def limits(spec: Spec) -> str:
    """Return which bits and blocks the CPU provider computes with, for a name with blocks that is none of them."""
    if spec.group is None or not spec.kind.startswith("int"):
        return ""
    blocks = ", ".join(map(str, _BLOCKS["int2"]))
    return f"MatMulNBits takes 2, 4 or 8 bits in blocks of {blocks}, and 4 or 8 bits in blocks of 512"


def catalogue() -> Iterator[Precision]:
    """Yield every format, QDQ with the block sizes of the 4-bit MatMulNBits as examples."""
    for kind, blocks in {**_BLOCKS, "qdq_int4": _BLOCKS["int4"]}.items():
        for symmetric in (True, False):
            for block in blocks:
                yield _blockwise(kind, symmetric, block)
    for kind in _WHOLE:
        for symmetric in (True, False):
            for reduced in (False, True):
                yield _whole(kind, symmetric, "channel", reduced)
                yield _whole(kind, symmetric, "tensor", reduced)


def _blockwise(kind: str, symmetric: bool, block: int) -> Precision:
    bits = _BITS[kind]
    overhead = _SCALE_BITS if symmetric else _SCALE_BITS + bits
    return Precision(
        CONVENTION,
        kind,
        bits=bits,
        granularity="group",
        block=block,
        symmetric=symmetric,
        scale_dtype="source",
        bits_per_weight=bits + Fraction(overhead, block),
        whole_blocks=False,
        whole_tensor=kind == "qdq_int4",  # stored as [in, out]: neighbours in a byte belong to different rows
        name=f"{CONVENTION}:{kind}-{_symmetry(symmetric)}-g{block}",
    )


def _whole(kind: str, symmetric: bool, granularity: Granularity, reduced: bool) -> Precision:
    return Precision(
        CONVENTION,
        kind,
        bits=8,
        granularity=granularity,
        block=None,
        symmetric=symmetric,
        scale_dtype="source",
        bits_per_weight=Fraction(8),
        whole_blocks=False,
        reduced=reduced,
        name=f"{CONVENTION}:{kind}-{_symmetry(symmetric)}-{granularity}{'-reduced' if reduced else ''}",
    )


def _symmetry(symmetric: bool) -> str:
    return "sym" if symmetric else "asym"


__all__ = ["CONVENTION", "catalogue", "resolve"]
