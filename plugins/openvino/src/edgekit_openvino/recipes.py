"""NNCF's recipes: the modes of `nncf.compress_weights`, as it applies them by default.

Weight matrices get the mode's precision; the embedding and the output matrix, the most sensitive, get the backup's:

    mode                                    group             backup
    INT8_SYM, INT8_ASYM                     a row             the mode itself
    INT4_SYM, INT4_ASYM, INT3_SYM, INT2_SYM 128, 64 or 32     INT8_ASYM
    NF4                                     128, 64 or 32     INT8_ASYM
    CB4                                     a row             INT8_ASYM
    NVFP4                                   16                INT8_ASYM
    MXFP4, MXFP8_E4M3                       32                MXFP8_E4M3
    FP4, FP8_E4M3                           128, 64 or 32     FP8_E4M3 of the same group

The group size is part of the name (``INT4_SYM_G64``); without it, it is NNCF's default of 128. A matrix whose number of
columns is not a multiple of the group size gets INT8_ASYM; NNCF raises an error unless the matrix is ignored.

With a ratio below 1 only this share of the weights gets the mode, the rest the backup: `Nncf("INT4_SYM", 64,
ratio=0.8)`. As in NNCF without data, the backup goes first to matrices with the largest int8 error, which is the
largest mean square error of a row.

Source: nncf 3.4.0, `WeightCompression` and `DataFreeCriterion`; compared with it plan by plan.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import attrs
import numpy as np

from edgekit.architectures import ModelConfig
from edgekit.errors import UsageError
from edgekit.precision import Precision, find_precision
from edgekit.recipe import Assignment, Clause, Plan, Slot, fits, is_matrix
from edgekit.typing import F32

#: mode -> (precision without its group, whether it has groups, backup; fp8 as backup has the mode's group)
MODES: dict[str, tuple[str, bool, str]] = {
    "INT8_SYM": ("int8-sym-channel", False, "int8-sym-channel"),
    "INT8_ASYM": ("int8-asym-channel", False, "int8-asym-channel"),
    "INT4_SYM": ("int4-sym", True, "int8-asym-channel"),
    "INT4_ASYM": ("int4-asym", True, "int8-asym-channel"),
    "INT3_SYM": ("int3-sym", True, "int8-asym-channel"),
    "INT2_SYM": ("int2-sym", True, "int8-asym-channel"),
    "NF4": ("nf4", True, "int8-asym-channel"),
    "FP4": ("fp4", True, "fp8"),
    "CB4": ("cb4-channel", False, "int8-asym-channel"),
    "NVFP4": ("nvfp4", False, "int8-asym-channel"),
    "MXFP4": ("mxfp4", False, "mxfp8"),
    "MXFP8_E4M3": ("mxfp8", False, "mxfp8"),
    "FP8_E4M3": ("fp8", True, "fp8"),
}
GROUPS = (128, 64, 32)
#: The precision for matrices that the group size does not divide.
_FALLBACK = find_precision("openvino:int8-asym-channel")
_BACKED_UP = ("token_embd.weight", "output.weight")
_CHUNK = 1 << 22


@attrs.frozen
class Nncf:
    """A mode with its options; see `edgekit.recipe.Recipe`.

    Attributes:
        mode: a key of `MODES`.
        group: number of columns that share a scale, for modes with groups.
        ratio: share of the weights that gets the mode; the rest gets the backup.
        all_layers: whether the embedding and the output matrix get the mode too.
    """

    mode: str
    group: int = 128
    ratio: float = 1.0
    all_layers: bool = False

    def __attrs_post_init__(self) -> None:
        if self.mode not in MODES:
            raise UsageError(f"no mode {self.mode!r} of weight compression; there are: {', '.join(MODES)}")
        if not 0 <= self.ratio <= 1:
            raise UsageError(f"ratio {self.ratio}; choose between 0 and 1")

    @property
    def name(self) -> str:
        """The registered name, followed by options that differ from the defaults."""
        ratio = "" if self.ratio == 1 else f" ratio {self.ratio:g}"
        group = f"_G{self.group}" if MODES[self.mode][1] and self.group != GROUPS[0] else ""
        return f"{self.mode}{group}{ratio}{' all layers' if self.all_layers else ''}"

    @property
    def precision(self) -> Precision:
        """The precision of the matrices that get the mode."""
        stem, grouped, _ = MODES[self.mode]
        return find_precision(f"openvino:{stem}-g{self.group}" if grouped else f"openvino:{stem}")

    @property
    def backup(self) -> Precision:
        """The precision of the embedding, the output matrix, and the matrices beyond the ratio."""
        stem = MODES[self.mode][2]
        return find_precision(f"openvino:{stem}-g{self.group}" if stem == "fp8" else f"openvino:{stem}")

    def plan(self, slots: Sequence[Slot], config: ModelConfig | None, importance: bool = False) -> Plan:
        """Assign a precision to every slot; with a ratio below 1 this reads the matrices."""
        chosen = self._chosen(slots) if self.ratio < 1 else None
        return Plan(self.name, tuple(self._assign(slot, chosen) for slot in slots))

    def describe(self) -> list[Clause]:
        """Return the mode in words; see `edgekit.recipe.Recipe`."""
        backed_up = [] if self.all_layers else [Clause(" and ".join(_BACKED_UP), self.backup.name)]
        ratio = f"the least sensitive {self.ratio:.0%}" if self.ratio < 1 else ""
        rest = [Clause("other weight matrices", self.backup.name)] if ratio else []
        return [
            *backed_up,
            Clause("other weight matrices", self.precision.name, ratio),
            *rest,
            Clause("rows that no block divides", _FALLBACK.name),
            Clause("the rest", "as it is"),
        ]

    def _assign(self, slot: Slot, chosen: set[str] | None) -> Assignment:
        precision, reason = self._choose(slot, chosen)
        asked = None
        if precision is not slot.keep and not fits(precision, slot.shape):
            asked, reason = precision, f"rows of {slot.shape[-1]} are no multiple of {precision.block}"
            precision = _FALLBACK
        return Assignment(slot.name, slot.role, slot.shape, precision, reason, asked)

    def _choose(self, slot: Slot, chosen: set[str] | None) -> tuple[Precision, str]:
        if not is_matrix(slot):
            return slot.keep, "not a weight matrix"
        if slot.role in _BACKED_UP and not self.all_layers:
            return self.backup, "embedding" if slot.role == _BACKED_UP[0] else "output matrix"
        if chosen is not None and slot.name not in chosen:
            return self.backup, f"among the most sensitive {1 - self.ratio:.0%}"
        return self.precision, f"default of {self.name}"

    def _chosen(self, slots: Sequence[Slot]) -> set[str]:
        """Return the names of the matrices that get the mode: the least sensitive ones up to the ratio."""
        judged = [s for s in slots if is_matrix(s) and (self.all_layers or s.role not in _BACKED_UP)]
        judged = [slot for slot in judged if fits(self.precision, slot.shape)]
        total, taken, names = sum(slot.tensor.size for slot in judged), 0, set[str]()
        for slot in sorted(judged, key=lambda slot: -int8_error(slot)):
            taken += slot.tensor.size
            if taken / total >= self.ratio:
                break
            names.add(slot.name)
        return names


def int8_error(slot: Slot) -> float:
    """Return the largest mean square error of a row in INT8_ASYM, with a scale that is not rounded to float16."""
    return max(float(error.max()) for error in _row_errors(slot))


def _row_errors(slot: Slot) -> Iterator[F32]:
    step = max(1, _CHUNK // slot.shape[-1])
    for start in range(0, slot.tensor.rows, step):
        rows = slot.tensor.float32(start, min(start + step, slot.tensor.rows))
        low = np.minimum(rows.min(axis=1, keepdims=True), np.float32(0))
        high = np.maximum(rows.max(axis=1, keepdims=True), np.float32(0))
        scale = np.maximum((high - low) / np.float32(255), np.finfo(np.float32).eps)
        zero = np.clip(-np.rint(low / scale), 0, 255)
        codes = np.clip(np.rint(rows / scale + zero), 0, 255)
        yield np.mean(np.square((codes - zero) * scale - rows), axis=1)


INT8_SYM, INT8_ASYM, CB4, NVFP4 = (Nncf(mode) for mode in ("INT8_SYM", "INT8_ASYM", "CB4", "NVFP4"))
MXFP4, MXFP8_E4M3 = Nncf("MXFP4"), Nncf("MXFP8_E4M3")
INT4_SYM, INT4_SYM_G64, INT4_SYM_G32 = (Nncf("INT4_SYM", group) for group in GROUPS)
INT4_ASYM, INT4_ASYM_G64, INT4_ASYM_G32 = (Nncf("INT4_ASYM", group) for group in GROUPS)
INT3_SYM, INT3_SYM_G64, INT3_SYM_G32 = (Nncf("INT3_SYM", group) for group in GROUPS)
INT2_SYM, INT2_SYM_G64, INT2_SYM_G32 = (Nncf("INT2_SYM", group) for group in GROUPS)
NF4, NF4_G64, NF4_G32 = (Nncf("NF4", group) for group in GROUPS)
FP4, FP4_G64, FP4_G32 = (Nncf("FP4", group) for group in GROUPS)
FP8_E4M3, FP8_E4M3_G64, FP8_E4M3_G32 = (Nncf("FP8_E4M3", group) for group in GROUPS)

__all__ = [
    "CB4",
    "FP4",
    "FP4_G32",
    "FP4_G64",
    "FP8_E4M3",
    "FP8_E4M3_G32",
    "FP8_E4M3_G64",
    "GROUPS",
    "INT2_SYM",
    "INT2_SYM_G32",
    "INT2_SYM_G64",
    "INT3_SYM",
    "INT3_SYM_G32",
    "INT3_SYM_G64",
    "INT4_ASYM",
    "INT4_ASYM_G32",
    "INT4_ASYM_G64",
    "INT4_SYM",
    "INT4_SYM_G32",
    "INT4_SYM_G64",
    "INT8_ASYM",
    "INT8_SYM",
    "MODES",
    "MXFP4",
    "MXFP8_E4M3",
    "NF4",
    "NF4_G32",
    "NF4_G64",
    "NVFP4",
    "Nncf",
    "int8_error",
]
