"""NNCF's compression modes and edgekit's precisions; imports no framework."""

from __future__ import annotations

from edgekit.errors import UsageError
from edgekit.precision import Precision

#: NNCF's `CompressWeightsMode` by the kind of a precision; for integers the symmetry is appended.
_FLOAT_MODES = {
    "nf4": "NF4",
    "cb4": "CB4",
    "fp4": "FP4",
    "fp8": "FP8_E4M3",
    "mxfp4": "MXFP4",
    "mxfp8": "MXFP8_E4M3",
    "nvfp4": "NVFP4",
}
_GROUPED = ("int4-sym", "int4-asym", "int3-sym", "int2-sym", "nf4", "cb4", "fp4", "fp8")
_SIZES = ("g16", "g32", "g64", "g128", "g256", "channel")

NATIVE = (
    "openvino:int8-sym-channel",
    "openvino:int8-asym-channel",
    *(f"openvino:{kind}-{size}" for kind in _GROUPED for size in _SIZES),
    "openvino:mxfp4",
    "openvino:mxfp8",
    "openvino:nvfp4",
)
"""Precisions that NNCF encodes, with the usual group sizes; each is an attribute of `edgekit_openvino.native`."""


def attribute(name: str) -> str:
    """Return the attribute of `edgekit_openvino.native` that encodes a precision, such as ``int4_sym_g64``."""
    return name.partition(":")[2].replace("-", "_")


def mode_name(precision: Precision) -> str:
    """Return the name of NNCF's mode for a precision, such as ``INT4_SYM``.

    Raises:
        UsageError: NNCF has no mode for it.
    """
    if precision.convention != "openvino":
        raise UsageError(f"{precision.name} is none of NNCF's formats; choose one whose name begins with openvino:")
    if precision.kind in _FLOAT_MODES:
        return _FLOAT_MODES[precision.kind]
    return f"{precision.kind}_{'sym' if precision.symmetric else 'asym'}".upper()


def group_size(precision: Precision) -> int:
    """Return NNCF's ``group_size`` for a precision; -1 for one scale per row."""
    return precision.block or -1


INT8 = ("INT8_SYM", "INT8_ASYM")
MODES = (
    *INT8, "INT4_SYM", "INT4_ASYM", "INT3_SYM", "INT2_SYM", "NF4", "CB4", "FP4", "FP8_E4M3", "MXFP4", "MXFP8_E4M3",
    "NVFP4", "CODEBOOK", "ADAPTIVE_CODEBOOK",
)  # fmt: skip
"""NNCF's modes of compression, by name."""
BACKUPS = ("none", "int8_sym", "int8_asym", "mxfp8_e4m3", "fp8_e4m3")
"""What layers get that the mode is not for."""
SENSITIVITIES = (
    "weight_quantization_error", "hessian_input_activation", "mean_activation_variance", "max_activation_variance",
    "mean_activation_magnitude",
)  # fmt: skip
"""How those layers are chosen."""
FALLBACKS = ("error", "ignore", "adjust")
"""What becomes of rows that the group size does not divide."""

__all__ = ["BACKUPS", "FALLBACKS", "INT8", "MODES", "NATIVE", "SENSITIVITIES", "attribute", "group_size", "mode_name"]
