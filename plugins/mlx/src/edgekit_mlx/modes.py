"""MLX's quantization modes and edgekit's precisions; imports no framework.

mode     bits                group         precision
affine   1 2 3 4 5 6 8       32 64 128     mlx:int<bits>-g<group>
mxfp4    4                   32            mlx:mxfp4
mxfp8    8                   32            mlx:mxfp8
nvfp4    4                   16            mlx:nvfp4, or mlx:nvfp4-tensor with a global scale
"""

from __future__ import annotations

from typing import Any

from edgekit.errors import UnknownPrecisionError
from edgekit.precision import Precision, find_precision

BITS = (1, 2, 3, 4, 5, 6, 8)
GROUPS = (32, 64, 128)
#: mode -> (bits, group), for the modes with a fixed width and group size.
FLOATS = {"mxfp4": (4, 32), "mxfp8": (8, 32), "nvfp4": (4, 16)}
MODES = ("affine", *FLOATS)

NATIVE = (*(f"mlx:int{bits}-g{group}" for bits in BITS for group in GROUPS), *(f"mlx:{mode}" for mode in FLOATS))
"""What `mx.quantize` encodes without a scale for the tensor; each is an attribute of `edgekit_mlx.native`."""


def attribute(name: str) -> str:
    """Return the attribute of `edgekit_mlx.native` that encodes a precision: ``int4_g64`` for ``mlx:int4-g64``."""
    return name.partition(":")[2].replace("-", "_")


def mode_of(precision: Precision) -> dict[str, Any]:
    """Return ``group_size``, ``bits`` and ``mode`` of a precision, as in config.json and `mx.quantize`."""
    mode = precision.kind if precision.kind in FLOATS else "affine"
    return {"group_size": precision.block, "bits": precision.bits, "mode": mode}


def precision_of(mode: str, bits: int, group: int, *, for_tensor: bool = False) -> Precision | None:
    """Return the precision of a mode, a width and a group size; None if MLX does not have it.

    Args:
        mode: ``affine``, ``mxfp4``, ``mxfp8`` or ``nvfp4``.
        bits: bits per code.
        group: number of columns that share a scale.
        for_tensor: whether the tensor also has a global scale.
    """
    if mode != "affine":
        known = FLOATS.get(mode) == (bits, group) and (mode == "nvfp4" or not for_tensor)
        return find_precision(f"mlx:{mode}{'-tensor' if for_tensor else ''}") if known else None
    if for_tensor:
        return None
    try:
        return find_precision(f"mlx:int{bits}-g{group}")
    except UnknownPrecisionError:
        return None


__all__ = ["BITS", "FLOATS", "GROUPS", "MODES", "NATIVE", "attribute", "mode_of", "precision_of"]
