"""The precisions that ONNX Runtime's own quantizer encodes; imports no framework."""

from __future__ import annotations

#: Each is an attribute of `edgekit_olive.native`. The quantizer has no blocks of 512.
NATIVE = tuple(
    f"onnx:int{bits}-{kind}-g{block}"
    for bits in (2, 4, 8)
    for kind in ("sym", "asym")
    for block in (16, 32, 64, 128, 256)
)


def attribute(name: str) -> str:
    """Return the attribute of `edgekit_olive.native` that encodes a precision, such as ``int4_sym_g32``."""
    return name.partition(":")[2].replace("-", "_")


__all__ = ["NATIVE", "attribute"]
