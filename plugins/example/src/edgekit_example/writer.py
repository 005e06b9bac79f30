"""Writes an ``.ekx`` file, tensor by tensor; nothing shows before all of it is there.

The header needs only the plan, so it is written first. It is the first unit of the resumable file and each tensor
one more: an interrupted run goes on after the last complete one if its header and manifest are the same.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import attrs
import numpy as np

from edgekit.artifact import Layout
from edgekit.errors import UnsupportedModelError, UsageError
from edgekit.files.atomic import AtomicFile
from edgekit.formats import PartLayout, part_layouts
from edgekit.manifest import Manifest
from edgekit.recipe import Assignment, Plan
from edgekit.tensor import QuantizedTensor
from edgekit_example.container import build_header, little, part_nbytes


class EkxWriter:
    """Writes one file; see `edgekit.artifact.Writer`.

    Raises:
        UsageError: the plan has a precision that cannot be encoded.
        UnsupportedModelError: the layout is of no known family.
        ResourceError: the target cannot be written, or the disk is too small.
        LockedError: another process writes it.
    """

    def __init__(self, path: Path, layout: Layout, plan: Plan, manifest: Manifest) -> None:
        if layout.model is None:
            raise UnsupportedModelError(f"{path}: an .ekx file needs a model of a known family")
        self._path, self._plan = path, plan
        self._parts = [_parts(assignment) for assignment in plan]
        self._manifest = manifest
        tensors = [(a.name, a.shape, a.precision) for a in plan]
        header = build_header(layout.model.config, layout.source.tokenizer, tensors)
        # a function, not its result: the sources are being hashed while the first tensors are encoded
        self._file = AtomicFile(path, fingerprint=lambda: hashlib.sha256(header + self._json()).digest(), manifest=True)
        try:
            self._begin(header)
        except BaseException:
            self._file.close()
            raise

    def _begin(self, header: bytes) -> None:
        nbytes = sum(part_nbytes(part) for parts in self._parts for part in parts.values())
        self._file.reserve(len(header) + nbytes)
        if not self._file.done:
            self._file.write(header)
            self._file.unit_done()

    @property
    def done(self) -> int:
        """Tensors that are complete, those of an interrupted run included."""
        return self._file.done - 1

    def write(self, tensor: QuantizedTensor) -> None:
        """Append the plan's next tensor.

        Raises:
            UsageError: it is not the one that the plan has next.
            ResourceError: the disk is full; the target stays as it was.
        """
        self._check(tensor)
        for key in self._parts[self.done]:
            part = np.ascontiguousarray(tensor.parts[key])
            self._file.write(part.astype(little(part.dtype.name), copy=False).data)
        self._file.unit_done(tensor.name)

    def _check(self, tensor: QuantizedTensor) -> None:
        if self.done >= len(self._plan):
            raise UsageError(f"{self._path}: tensor {tensor.name!r} is one more than the plan's {len(self._plan)}")
        wanted = self._plan.assignments[self.done]
        expected = (wanted.name, wanted.precision, {k: (p.dtype, p.shape) for k, p in self._parts[self.done].items()})
        given = (tensor.name, tensor.precision, {k: (p.dtype.name, p.shape) for k, p in tensor.parts.items()})
        if given != expected:
            raise UsageError(f"{self._path}: the plan's next tensor is {expected}, not {given}")

    def commit(self) -> None:
        """Check that every tensor came, sync, and put the file in its place, its manifest beside it."""
        if self.done != len(self._plan):
            raise UsageError(f"{self._path}: only {self.done} of {len(self._plan)} tensors were written")
        self._file.commit(self._json())

    def _json(self) -> bytes:
        return self._manifest.to_json().encode()

    def close(self, keep: bool = False) -> None:
        """Let go; without `commit` the target stays as it was, and `keep` leaves complete tensors for a resume."""
        self._file.close(keep=keep)


def _parts(assignment: Assignment) -> dict[str, PartLayout]:
    layouts = part_layouts(assignment.precision, assignment.shape)
    if layouts is None:
        raise UsageError(f"tensor {assignment.name!r}: {assignment.precision} can only be decoded; choose another")
    if assignment.precision.convention == "float":  # vectors too are stored in their own shape
        return {key: attrs.evolve(part, shape=(part.shape[0], assignment.shape[-1])) for key, part in layouts.items()}
    return layouts


__all__ = ["EkxWriter"]
