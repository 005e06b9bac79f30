"""Guarantees of formats beyond an error bound; tests check the reference for each of them.

idempotent   encoding decoded values gives the same bytes, on rows whose scales are normal numbers
signs        no value is decoded with the opposite sign: zero is a level
order        within a block with one scale, a larger value is never decoded to a smaller one
"""

from __future__ import annotations

from edgekit.precision import Precision

_WITH_MINIMUM = {"Q4_1", "Q5_1", "Q2_K", "Q4_K", "Q5_K"}
_NO_ZERO_LEVEL = {"IQ4_NL", "IQ4_XS"}
_SUB_BLOCKS = {"Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_XS", "NVFP4"}
_SETTLED = {"Q4_0", "Q5_0", "Q8_0", "TQ2_0", "MXFP4", "Q2_0", "Q1_0"}


def idempotent(precision: Precision) -> bool:
    """Return whether encoding the decoded values gives the same bytes."""
    match precision.convention:
        case "float":
            return True
        case "affine":
            return precision.symmetric is True
        case "ggml":
            return precision.kind in _SETTLED
        case "openvino":
            return precision.kind in ("nf4", "cb4")
        case "onnx":
            return precision.symmetric is True and precision.kind != "uint8"
    return False


def signs(precision: Precision) -> bool:
    """Return whether no value is decoded with the opposite sign."""
    if precision.convention == "ggml":
        return precision.kind in _known_ggml() - _WITH_MINIMUM - _NO_ZERO_LEVEL
    if precision.convention == "mlx":
        return not precision.kind.startswith("int")
    if precision.kind.startswith(("hqq", "offset")):  # no level need be zero
        return False
    return _of_the_core(precision)


def order(precision: Precision) -> bool:
    """Return whether, within a block, a larger value is never decoded to a smaller one."""
    if precision.convention == "ggml":
        return precision.kind in _known_ggml() - _SUB_BLOCKS
    return _of_the_core(precision)


def _known_ggml() -> set[str]:
    from edgekit.reference.ggml import TYPES

    return set(TYPES)


def _of_the_core(precision: Precision) -> bool:
    return precision.convention in ("float", "affine", "mlx", "openvino", "onnx", "olive")
