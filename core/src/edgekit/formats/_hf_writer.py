"""The writer of a Hugging Face directory, one tensor at a time.

The header of a safetensors file precedes the tensors that it describes: space is reserved for it, the tensors are
appended, and the header is filled in at the end, padded with spaces as the format allows.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import attrs

from edgekit.artifact import Artifact, Layout
from edgekit.formats import _hf_files as files
from edgekit.formats._hf_generate import small_files
from edgekit.formats._parts import describe, stored_parts, written_parts
from edgekit.formats.safetensors import Part, build_header, to_bytes
from edgekit.formats.writer import Places, PlannedDirectory
from edgekit.manifest import Manifest
from edgekit.recipe import Assignment, Plan
from edgekit.tensor import Tensor, holds_floats

#: Header bytes reserved for each part of a quantized tensor, whose shape may differ from the estimate.
_SLACK = 64


class HuggingFaceWriter(PlannedDirectory):
    """Writes one directory: the weights first, everything else at `commit`."""

    data = files.WEIGHTS

    def __init__(self, path: Path, layout: Layout, plan: Plan, manifest: Manifest) -> None:
        self._layout = layout
        self._carried = list(_carried_tensors(layout.source))
        planned = _planned(layout, plan)
        self._header = _capacity(plan, planned, self._carried)
        nbytes = self._header + _weights(planned, self._carried)
        identity = json.dumps(["hf", self._header, [[slot.name, list(slot.shape)] for slot in layout.slots]]).encode()
        super().__init__(path, plan, manifest, header=bytes(self._header), nbytes=nbytes, identity=identity)

    def place(self, parts: Mapping[str, Part], assignment: Assignment) -> Places:
        """One part after the other; the note has their names, types and shapes in the file."""
        written = written_parts(parts, assignment.name, assignment.precision, assignment.shape)
        return attrs.evolve(Places.in_order(parts.values(), self.file.offset), note=_note(written))

    def finish(self) -> None:
        """Write the carried tensors, and fill in the header."""
        written = [_parse_note(note) for note in self.notes]
        for tensor in self._carried:
            self.file.write(to_bytes(tensor.read()))
        parts = [part for note in written for part in note.values()] + list(map(_part, self._carried))
        keys = {a.name: tuple(note) for a, note in zip(self.plan, written, strict=True)}
        self.file.overwrite(0, build_header(parts, _metadata(self.plan, keys), self._header))

    def small_files(self) -> Iterator[tuple[str, bytes]]:
        """Configuration, tokenizer and manifest."""
        return small_files(self._layout, self.plan, self.manifest)


def planned_nbytes(layout: Layout, plan: Plan) -> int:
    """Bytes of the weights' file that a plan makes."""
    carried, planned = list(_carried_tensors(layout.source)), _planned(layout, plan)
    return _capacity(plan, planned, carried) + _weights(planned, carried)


def _planned(layout: Layout, plan: Plan) -> list[list[Part]]:
    return [
        stored_parts(slot.tensor, slot.name, assignment.precision)
        for slot, assignment in zip(layout.slots, plan, strict=True)
    ]


def _weights(planned: list[list[Part]], carried: list[Tensor]) -> int:
    return sum(part.nbytes for parts in planned for part in parts) + sum(tensor.nbytes for tensor in carried)


def _capacity(plan: Plan, planned: list[list[Part]], carried: list[Tensor]) -> int:
    """Return the bytes to reserve for the header: exact for plain floats, with slack for quantized tensors."""
    keys = {
        assignment.name: tuple(part.name.removeprefix(assignment.name + ".") for part in parts)
        for assignment, parts in zip(plan, planned, strict=True)
    }
    metadata = _metadata(plan, keys)
    parts = [part for parts in planned for part in parts]
    exact = len(build_header([*parts, *map(_part, carried)], metadata))
    return exact + _SLACK * (len(parts) if len(metadata) > 1 else 0)


def _metadata(plan: Plan, keys: dict[str, tuple[str, ...]]) -> dict[str, str]:
    quantized = {a.name: (a.precision, a.shape, keys[a.name]) for a in plan if a.precision.convention != "float"}
    return {"format": "pt", **describe(quantized)}  # transformers requires "pt"


def _note(parts: dict[str, Part]) -> str:
    return json.dumps({key: [part.name, part.dtype, list(part.shape)] for key, part in parts.items()})


def _parse_note(note: str) -> dict[str, Part]:
    return {key: Part(name, dtype, tuple(shape)) for key, (name, dtype, shape) in json.loads(note).items()}


def _carried_tensors(source: Artifact) -> Iterator[Tensor]:
    """Return the integer tensors of a Hugging Face source."""
    for tensor in source.tensors.values():
        if source.format == "hf" and isinstance(tensor, Tensor) and not holds_floats(tensor):
            yield tensor


def _part(tensor: Tensor) -> Part:
    return Part(tensor.name, tensor.dtype, tensor.shape)
