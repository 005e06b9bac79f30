"""AWQ: integers of 4 bits, packed along the outputs and interleaved, in AutoAWQ's layout "gemm".

    part         dtype                        shape              holds
    X.qweight    int32                        [in, out / 8]      codes of eight outputs, in the order below
    X.qzeros     int32                        [groups, out / 8]  zero points, likewise
    X.scales     float16, bfloat16, float32   [groups, out]      scale

    value = (code - zero point) * scale

From the lowest four bits of a word up lie the outputs 0, 2, 4, 6, 1, 3, 5, 7 of its eight. The layouts "gemv" and
"marlin" are others and are not read.

Source: AutoAWQ 0.2.9, ``utils/packing_utils.py`` (`AWQ_ORDER`, `dequantize_gemm`); compressed-tensors 0.20.0,
``entrypoints/convert/converters/autoawq.py``; J. Lin et al., "AWQ", MLSys 2024 (arXiv:2306.00978).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from edgekit.formats._packed._integers import Integers, integer_tensor, turned
from edgekit.formats._packed._scheme import Latest, Packed, Source, bytes_of, groups_of
from edgekit.numerics.bits import pack_lsb, unpack_lsb
from edgekit.typing import I16, I32, U8, Array

KNOWN = (
    "quant_method",
    "bits",
    "group_size",
    "zero_point",
    "version",
    "format",
    "sym",
    # how it was quantized, or is to be run; what is stored does not depend on it
    "backend",
    "do_fuse",
    "exllama_config",
    "fuse_max_seq_len",
    "modules_to_fuse",
    "modules_to_not_convert",
)
BITS = 4
#: Which field of a word holds each of its eight outputs: from the lowest up it holds 0, 2, 4, 6, 1, 3, 5, 7.
FIELDS = np.array([0, 4, 1, 5, 2, 6, 3, 7])
_FLOATS = ("float16", "bfloat16", "float32")


def read(source: Source) -> Iterator[Packed]:
    """Yield the packed matrices; see `edgekit.formats._packed.Scheme`."""
    fields = source.fields
    fields.only(KNOWN)
    fields.choice("bits", (BITS,), BITS)
    for key in ("version", "format"):
        fields.choice(key, ("gemm", "GEMM"), "gemm")
    symmetric = not fields.choice("zero_point", (True, False), True)
    size = None if fields.values.get("group_size") == -1 else fields.size("group_size", 128)
    latest = Latest()
    for module in source.modules(".qweight"):
        yield _packed(source, module, size, symmetric, latest)


def _packed(source: Source, module: str, size: int | None, symmetric: bool, latest: Latest) -> Packed:
    qweight = source.part(f"{module}.qweight", ("int32",))
    if len(qweight.shape) != 2:
        raise source.mismatch(qweight.name, qweight.shape, "[in, out / 8]")
    cols, out = qweight.shape[0], qweight.shape[1] * 32 // BITS
    groups = groups_of(cols, size)
    scales = source.part(f"{module}.scales", _FLOATS, (groups, out))
    names = source.present(f"{module}.qzeros") if symmetric else (f"{module}.qzeros",)
    qzeros = source.part(names[0], ("int32",), (groups, qweight.shape[1])) if names else None

    def codes(start: int, stop: int) -> Array:
        held = latest.get(module, lambda: pack_lsb(np.ascontiguousarray(unpacked(qweight.read()).T), BITS))
        return held[start:stop]

    def zero() -> I16:
        assert qzeros is not None
        return np.ascontiguousarray(unpacked(qzeros.read()).T).astype(np.int16)

    parts = Integers(BITS, size, turned(scales), None if symmetric else zero, None, source)
    tensor = integer_tensor(f"{module}.weight", (out, cols), parts, codes, (qweight,))
    return Packed(tensor, (qweight.name, scales.name, *names))


def unpacked(words: I32) -> U8:
    """Return the fields of words [m, n] in the order of the outputs [m, 8 n]."""
    fields = unpack_lsb(bytes_of(words), BITS, words.shape[1] * 8)
    return fields.reshape(len(words), -1, 8)[..., FIELDS].reshape(len(words), -1)


__all__ = ["BITS", "FIELDS", "KNOWN", "read", "unpacked"]
