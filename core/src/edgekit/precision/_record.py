"""The record of a precision: one frozen object per number format."""

from __future__ import annotations

import enum
import re
from collections.abc import Sequence
from fractions import Fraction
from typing import Literal

import attrs

Granularity = Literal["element", "group", "channel", "tensor"]


class Tier(enum.StrEnum):
    """The class of a precision by the width of its codes."""

    ULTRA_LOW = "ultra-low"  # 1-2 bit
    LOW = "low"  # 3-4 bit
    MEDIUM = "medium"  # 5-8 bit
    FULL = "full"  # floating point, not quantized

    @classmethod
    def of(cls, bits: int) -> Tier:
        """Return the tier of a code width in bits."""
        if bits <= 2:
            return cls.ULTRA_LOW
        if bits <= 4:
            return cls.LOW
        return cls.MEDIUM if bits <= 8 else cls.FULL


@attrs.frozen
class Spec:
    """The parts of a precision's name, not yet checked by a convention.

    Grammar: ``<convention>:<kind>[-sym|-asym][-g<size>|-channel|-tensor][-reduced]``.
    """

    convention: str | None
    kind: str
    symmetric: bool | None = None
    group: int | None = None
    granularity: Granularity | None = None
    reduced: bool = False

    _PATTERN = re.compile(
        r"(?:(?P<convention>[a-z][a-z0-9_]*):)?(?P<kind>[A-Za-z][A-Za-z0-9_]*)"
        r"(?:-(?P<symmetry>sym|asym))?(?:-(?:g(?P<group>[1-9][0-9]{0,6})|(?P<granularity>channel|tensor)))?"
        r"(?P<reduced>-reduced)?"
    )

    @classmethod
    def parse(cls, name: str) -> Spec | None:
        """Parse a name; None if it does not follow the grammar."""
        match = cls._PATTERN.fullmatch(name)
        if match is None:
            return None
        symmetry, group = match["symmetry"], match["group"]
        return cls(
            convention=match["convention"],
            kind=match["kind"],
            symmetric=None if symmetry is None else symmetry == "sym",
            group=None if group is None else int(group),
            granularity="group" if group else match["granularity"],  # type: ignore[arg-type]
            reduced=match["reduced"] is not None,
        )


@attrs.frozen
class Precision:
    """A number format: how rows of float32 are encoded, and their size.

    Attributes:
        convention: that defines the arithmetic: ``ggml``, ``mlx``, ``openvino``, ``onnx``, ``affine``, ``float``.
        kind: the format inside the convention: ``Q4_K``, ``int4``, ``mxfp4``, ``nf4``, ``F16``.
        bits: width of one code in bits, rounded up; it decides the tier.
        granularity: what shares one scale: each element its own exponent (``element``: plain floats),
            a group of `block` elements along the row, a whole row (``channel``), the whole ``tensor``.
        block: elements that are encoded together along a row (the scale's group, or ggml's super-block);
            None for channel and tensor granularity.
        symmetric: True without a zero point, False with one, None if that does not apply.
        scale_dtype: stored type of the (outermost) scale, by its numpy or ml_dtypes name; None without scales.
            ``"source"`` if the scale has the type of the quantized tensor (MLX).
        bits_per_weight: exact bits per weight, scales and zero points included; for channel and tensor
            granularity the limit for long rows, i.e. the codes alone.
        whole_blocks: True if a row must be a multiple of `block`; False if its last block may be shorter.
        reduced: True for ONNX Runtime's reduced range.
        whole_tensor: True if rows depend on each other although groups or rows have their own scales: an additional
            scale for the whole tensor, arithmetic that depends on the tensor's size, or rows
            that share a byte.
        packed_rows: True if shared bytes are the only reason for `whole_tensor`: each part is the codes of one row
            after the other, so that two, four or eight rows fill whole bytes and can be encoded apart from the others.
    """

    convention: str
    kind: str
    bits: int
    granularity: Granularity
    block: int | None
    symmetric: bool | None
    scale_dtype: str | None
    bits_per_weight: Fraction
    whole_blocks: bool = True
    reduced: bool = False
    whole_tensor: bool = False
    packed_rows: bool = False
    name: str = attrs.field(kw_only=True)

    @property
    def tier(self) -> Tier:
        """Ultra-low (1-2 bit), low (3-4), medium (5-8) or full."""
        return Tier.of(self.bits)

    @property
    def rowwise(self) -> bool:
        """Whether every row is encoded on its own, so that tensors can be encoded in row slices."""
        return self.granularity != "tensor" and not self.whole_tensor

    def __str__(self) -> str:
        return self.name


def fits(precision: Precision, shape: Sequence[int]) -> bool:
    """Return whether tensors of a shape can be encoded: their rows need whole blocks if the format does."""
    row = shape[-1] if shape else 1
    return not (precision.whole_blocks and precision.block and row % precision.block)


def quantized(precision: Precision) -> bool:
    """Return whether a precision is not a plain float type."""
    return precision.convention != "float"
