"""Writes GGUF version 3, tensor by tensor; the target appears only when it is complete.

The header depends only on the plan, so that it is written first, complete. Each tensor, including the last, is padded
to a multiple of 32 bytes, as by llama.cpp's quantizer. An interrupted run resumes after the last complete tensor if
the header and the manifest (which has the sources' hashes) are the same.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from edgekit.artifact import Layout
from edgekit.errors import UsageError
from edgekit.formats import Places, PlannedFile
from edgekit.formats.safetensors import Part
from edgekit.manifest import Manifest
from edgekit.recipe import Assignment, Plan
from edgekit_gguf.layout import file_metadata
from edgekit_gguf.metadata import Value, encode_pairs, encode_string
from edgekit_gguf.types import ALIGNMENT, FILE_TYPES, LIKELY_RECIPE, MAGIC, VERSION, TensorType, tensor_type


class GgufWriter(PlannedFile):
    """Writes a GGUF file; see `edgekit.formats.PlannedFile`.

    Raises:
        UsageError: GGUF has no type for a precision of the plan.
        ResourceError: the target cannot be written, or the disk is too small.
        LockedError: another process writes the file.
    """

    def __init__(self, path: Path, layout: Layout, plan: Plan, manifest: Manifest) -> None:
        header, sizes = planned(layout, plan)
        nbytes = len(header) + sum(map(padded, sizes))
        super().__init__(path, plan, manifest, header=header, nbytes=nbytes, sizes=sizes)

    def place(self, parts: Mapping[str, Part], assignment: Assignment) -> Places:
        """Return the bytes of the tensor: its blocks, or the values of a float type, padded to the alignment."""
        (part,) = parts.values()
        begin = self.file.offset
        return Places({part.name: begin}, begin + padded(part.nbytes))


def planned(layout: Layout, plan: Plan) -> tuple[bytes, list[int]]:
    """Return the header, and the number of bytes of each tensor without padding.

    Raises:
        UsageError: GGUF has no type for a precision of the plan.
    """
    types = [_stored_as(assignment) for assignment in plan]
    return encode_header(file_metadata(layout, file_type(plan)), plan, types), list(map(_nbytes, plan, types))


def encode_header(metadata: dict[str, Value], plan: Plan, types: list[TensorType]) -> bytes:
    """Return everything before the tensors' data, including padding."""
    parts = [MAGIC, struct.pack("<IQQ", VERSION, len(plan), len(metadata)), encode_pairs(metadata)]
    offset = 0
    for assignment, stored in zip(plan, types, strict=True):
        parts.append(_encode_info(assignment, stored, offset))
        offset += padded(_nbytes(assignment, stored))
    header = b"".join(parts)
    return header.ljust(padded(len(header)), b"\0")


def _encode_info(assignment: Assignment, stored: TensorType, offset: int) -> bytes:
    innermost_first = list(assignment.shape[::-1])
    while len(innermost_first) > 1 and innermost_first[-1] == 1:  # ggml does not count outermost dimensions of 1
        del innermost_first[-1]
    dimensions = struct.pack(f"<I{len(innermost_first)}Q", len(innermost_first), *innermost_first)
    return encode_string(assignment.name) + dimensions + struct.pack("<IQ", stored.id, offset)


def file_type(plan: Plan) -> int:
    """Return ``general.file_type``: the recipe's, else the one that llama.cpp derives from the most frequent type."""
    if plan.recipe in FILE_TYPES:
        return FILE_TYPES[plan.recipe]
    kinds = Counter(assignment.precision.kind for assignment in plan if len(assignment.shape) > 1)
    likely = max(kinds, key=lambda kind: kinds[kind], default="F32")
    return FILE_TYPES.get(LIKELY_RECIPE.get(likely, likely), FILE_TYPES["F32"])


def _stored_as(assignment: Assignment) -> TensorType:
    stored = tensor_type(assignment.precision)
    if stored is None:
        raise UsageError(
            f"tensor {assignment.name!r}: GGUF has no type for {assignment.precision}; choose a recipe of GGUF "
            "(Q4_K_M), a precision of ggml (ggml:Q4_K), F32, F16 or BF16, or another format"
        )
    return stored


def _nbytes(assignment: Assignment, stored: TensorType) -> int:
    return assignment.size // stored.block * stored.size


def padded(nbytes: int) -> int:
    """Return a number of bytes rounded up to the next multiple of the alignment."""
    return -(-nbytes // ALIGNMENT) * ALIGNMENT


__all__ = ["GgufWriter", "encode_header", "file_type", "padded", "planned"]
