"""ggml's block types, by the names, numbers and sizes of ``ggml.h``; core and plugins share this table.

Source: ggml 0.25.3 ``ggml-common.h`` (block structs); sizes checked against gguf-py's `GGML_QUANT_SIZES`.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction

import attrs

from edgekit.precision._record import Precision, Spec

CONVENTION = "ggml"


@attrs.frozen
class GgmlType:
    """One of ggml's block types.

    Attributes:
        id: its number (enum ggml_type), as GGUF files store it.
        bits: width of a code, rounded up.
        block: elements in a block.
        size: bytes of a block.
        symmetric: whether a block has no minimum besides the scale.
        scale_dtype: stored type of the outermost scale.
    """

    id: int
    bits: int
    block: int
    size: int
    symmetric: bool
    scale_dtype: str = "float16"

    def precision(self, kind: str) -> Precision:
        """Return the record of the precision ``ggml:<kind>``."""
        return Precision(
            CONVENTION,
            kind,
            bits=self.bits,
            granularity="group",
            block=self.block,
            symmetric=self.symmetric,
            scale_dtype=self.scale_dtype,
            bits_per_weight=Fraction(8 * self.size, self.block),
            name=f"{CONVENTION}:{kind}",
        )


#: The block types whose codes are independent of each other, by ggml's names.
BLOCKS: dict[str, GgmlType] = {
    "Q4_0": GgmlType(2, 4, 32, 18, True),
    "Q4_1": GgmlType(3, 4, 32, 20, False),
    "Q5_0": GgmlType(6, 5, 32, 22, True),
    "Q5_1": GgmlType(7, 5, 32, 24, False),
    "Q8_0": GgmlType(8, 8, 32, 34, True),
    "Q2_K": GgmlType(10, 2, 256, 84, False),
    "Q3_K": GgmlType(11, 3, 256, 110, True),
    "Q4_K": GgmlType(12, 4, 256, 144, False),
    "Q5_K": GgmlType(13, 5, 256, 176, False),
    "Q6_K": GgmlType(14, 6, 256, 210, True),
    "IQ4_NL": GgmlType(20, 4, 32, 18, True),
    "IQ4_XS": GgmlType(23, 4, 256, 136, True),
    "TQ1_0": GgmlType(34, 2, 256, 54, True),
    "TQ2_0": GgmlType(35, 2, 256, 66, True),
    "MXFP4": GgmlType(39, 4, 32, 17, True, "float8_e8m0fnu"),
    "NVFP4": GgmlType(40, 4, 64, 36, True, "float8_e4m3fn"),
    "Q1_0": GgmlType(41, 1, 128, 18, True),
    "Q2_0": GgmlType(42, 2, 64, 18, True),
}
#: The block types whose codes lie on a grid.
GRIDS: dict[str, GgmlType] = {
    "IQ3_S": GgmlType(21, 3, 256, 110, True),
    "IQ3_XXS": GgmlType(18, 3, 256, 98, True),
    "IQ2_S": GgmlType(22, 2, 256, 82, True),
    "IQ2_XS": GgmlType(17, 2, 256, 74, True),
    "IQ2_XXS": GgmlType(16, 2, 256, 66, True),
    "IQ1_M": GgmlType(29, 2, 256, 56, True),
    "IQ1_S": GgmlType(19, 2, 256, 50, True),
}


def resolve(spec: Spec) -> Precision | None:
    """Resolve ``ggml:<TYPE>``."""
    known = BLOCKS.get(spec.kind) or GRIDS.get(spec.kind)
    if known is None or spec != Spec(spec.convention, spec.kind):
        return None
    return known.precision(spec.kind)


def catalogue() -> Iterator[Precision]:
    """Yield every block type."""
    for kind, block_type in (BLOCKS | GRIDS).items():
        yield block_type.precision(kind)


__all__ = ["BLOCKS", "CONVENTION", "GRIDS", "GgmlType", "catalogue", "resolve"]
