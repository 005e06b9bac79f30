"""Recipes for MatMulNBits: one width for all weight matrices.

    MATMUL_NBITS_4            int4-sym-g32; the embedding and the output matrix int8-sym-g32
    MATMUL_NBITS_8            int8-sym-g32 everywhere
    MATMUL_NBITS_2            int2-asym-g32; the embedding and the output matrix int8-sym-g32

    MATMUL_NBITS_4_KQUANT     kquant4-g32, and _8_KQUANT: scales searched as for llama.cpp's K-quants
    MATMUL_NBITS_4_HQQ        hqq4-g32, and _2_HQQ: zero points in floats, fitted

``…_G16``, ``_G64`` and ``_G128`` have blocks of that size, ``…_ASYM`` zero points. ``INT8_CHANNEL`` stores int8 with
one scale a row, which DequantizeLinear decodes.

A block need not divide a row, so that no matrix falls back to another precision.

Source: onnxruntime 1.32.0, ``matmul_nbits_quantizer.py``, which leaves the embedding in floats; here
GatherBlockQuantized decodes it.
"""

from __future__ import annotations

from collections.abc import Sequence

import attrs

from edgekit.architectures import ModelConfig
from edgekit.errors import UsageError
from edgekit.precision import Precision, find_precision
from edgekit.recipe import Assignment, Clause, Plan, Slot, is_matrix
from edgekit_olive.elements import EMBEDDINGS

BITS = (2, 4, 8)
GROUPS = (16, 32, 64, 128)
_BACKED_UP = ("token_embd.weight", "output.weight")
_BACKUP = find_precision("onnx:int8-sym-g32")


@attrs.frozen
class MatMulNBits:
    """A width with its options; see `edgekit.recipe.Recipe`.

    Attributes:
        bits: 2, 4 or 8.
        group: number of columns that share a scale.
        symmetric: whether there is no zero point.
        algorithm: ``kquant`` or ``hqq`` instead of rounding to nearest, both with zero points; or empty.
    """

    bits: int
    group: int = 32
    symmetric: bool = True
    algorithm: str = ""

    def __attrs_post_init__(self) -> None:
        if self.bits not in BITS:
            raise UsageError(f"MatMulNBits of {self.bits} bits; choose 2, 4 or 8")

    @property
    def name(self) -> str:
        """The name under which the recipe is registered."""
        group = "" if self.group == 32 else f"_G{self.group}"
        if self.algorithm:
            return f"MATMUL_NBITS_{self.bits}_{self.algorithm.upper()}{group}"
        return f"MATMUL_NBITS_{self.bits}{'' if self.symmetric or self.bits == 2 else '_ASYM'}{group}"

    @property
    def precision(self) -> Precision:
        """Of the weight matrices."""
        if self.algorithm:
            return find_precision(f"onnx:{self.algorithm}{self.bits}-g{self.group}")
        return find_precision(f"onnx:int{self.bits}-{'sym' if self.symmetric else 'asym'}-g{self.group}")

    @property
    def backup(self) -> Precision:
        """The precision of the embedding and the output matrix."""
        return self.precision if self.bits == 8 else _BACKUP

    @property
    def _backed_up(self) -> tuple[str, ...]:
        """The roles of matrices in the backup's precision; no operator looks up rows of HQQ's."""
        return (*_BACKED_UP, *EMBEDDINGS) if self.algorithm == "hqq" else _BACKED_UP

    def plan(self, slots: Sequence[Slot], config: ModelConfig | None, importance: bool = False) -> Plan:
        """Choose for every slot."""
        return Plan(self.name, tuple(self._assign(slot) for slot in slots))

    def describe(self) -> list[Clause]:
        """The recipe in words; see `edgekit.recipe.Recipe`."""
        return [
            Clause(" and ".join(_BACKED_UP), self.backup.name),
            Clause("other weight matrices", self.precision.name),
            Clause("the rest", "as it is"),
        ]

    def _assign(self, slot: Slot) -> Assignment:
        precision, reason = slot.keep, "not a weight matrix"
        if is_matrix(slot):
            precision, reason = self.precision, f"default of {self.name}"
            if slot.role in self._backed_up:
                precision, reason = self.backup, "output matrix" if slot.role == _BACKED_UP[1] else "embedding"
        return Assignment(slot.name, slot.role, slot.shape, precision, reason)


@attrs.frozen
class Channel:
    """int8 with one scale per row; see `edgekit.recipe.Recipe`."""

    name: str = "INT8_CHANNEL"

    @property
    def precision(self) -> Precision:
        """Of the weight matrices."""
        return find_precision("onnx:int8-asym-channel")

    def plan(self, slots: Sequence[Slot], config: ModelConfig | None, importance: bool = False) -> Plan:
        """Choose for every slot."""
        return Plan(self.name, tuple(self._assign(slot) for slot in slots))

    def describe(self) -> list[Clause]:
        """The recipe in words; see `edgekit.recipe.Recipe`."""
        return [Clause("weight matrices", self.precision.name), Clause("the rest", "as it is")]

    def _assign(self, slot: Slot) -> Assignment:
        matrix = is_matrix(slot)
        precision, reason = (
            (self.precision, f"default of {self.name}") if matrix else (slot.keep, "not a weight matrix")
        )
        return Assignment(slot.name, slot.role, slot.shape, precision, reason)


INT8_CHANNEL = Channel()
_ALL = [MatMulNBits(bits, group, bits != 2) for bits in BITS for group in GROUPS]
_ALL += [MatMulNBits(bits, group, False) for bits in (4, 8) for group in GROUPS]
_ALL += [MatMulNBits(bits, group, False, "kquant") for bits in (4, 8) for group in GROUPS]
_ALL += [MatMulNBits(bits, group, False, "hqq") for bits in (2, 4) for group in GROUPS]
_BY_NAME = {recipe.name: recipe for recipe in _ALL}


def __getattr__(name: str) -> MatMulNBits:
    """Return a recipe of MatMulNBits by its name."""
    if name in _BY_NAME:
        return _BY_NAME[name]
    raise AttributeError(name)


__all__ = ["BITS", "GROUPS", "INT8_CHANNEL", "Channel", "MatMulNBits"]
