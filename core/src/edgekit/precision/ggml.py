"""ggml's block types, by the names and sizes of ``ggml.h``.

Source: ggml 0.25.3 ``ggml-common.h`` (block structs); sizes checked against gguf-py's `GGML_QUANT_SIZES`.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction

from edgekit.precision._record import Precision, Spec

CONVENTION = "ggml"

#: name -> (bits of a code, elements in a block, bytes of a block, symmetric, stored type of the scale)
BLOCKS: dict[str, tuple[int, int, int, bool, str]] = {
    "Q4_0": (4, 32, 18, True, "float16"),
    "Q4_1": (4, 32, 20, False, "float16"),
    "Q5_0": (5, 32, 22, True, "float16"),
    "Q5_1": (5, 32, 24, False, "float16"),
    "Q8_0": (8, 32, 34, True, "float16"),
    "Q2_K": (2, 256, 84, False, "float16"),
    "Q3_K": (3, 256, 110, True, "float16"),
    "Q4_K": (4, 256, 144, False, "float16"),
    "Q5_K": (5, 256, 176, False, "float16"),
    "Q6_K": (6, 256, 210, True, "float16"),
    "IQ4_NL": (4, 32, 18, True, "float16"),
    "IQ4_XS": (4, 256, 136, True, "float16"),
    "TQ1_0": (2, 256, 54, True, "float16"),
    "TQ2_0": (2, 256, 66, True, "float16"),
    "MXFP4": (4, 32, 17, True, "float8_e8m0fnu"),
    "NVFP4": (4, 64, 36, True, "float8_e4m3fn"),
    "Q1_0": (1, 128, 18, True, "float16"),
    "Q2_0": (2, 64, 18, True, "float16"),
}


def resolve(spec: Spec) -> Precision | None:
    """``ggml:<TYPE>``: the name says everything."""
    if spec.kind not in BLOCKS or spec != Spec(spec.convention, spec.kind):
        return None
    bits, block, size, symmetric, scale_dtype = BLOCKS[spec.kind]
    return Precision(
        CONVENTION,
        spec.kind,
        bits=bits,
        granularity="group",
        block=block,
        symmetric=symmetric,
        scale_dtype=scale_dtype,
        bits_per_weight=Fraction(8 * size, block),
        name=f"{CONVENTION}:{spec.kind}",
    )


def catalogue() -> Iterator[Precision]:
    """Every block type that the core encodes."""
    for kind in BLOCKS:
        precision = resolve(Spec(CONVENTION, kind))
        assert precision is not None
        yield precision
