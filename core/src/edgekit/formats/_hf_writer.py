"""Writing a Hugging Face directory, one tensor at a time.

The header of a safetensors file comes first, but says what comes after it: room is left for it, the tensors
are appended, and the header is filled in at the end, padded with spaces as the format allows.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

from edgekit.artifact import Artifact, Layout
from edgekit.errors import UsageError
from edgekit.files.atomic import AtomicDirectory
from edgekit.formats import _hf_files as files
from edgekit.formats._hf_generate import small_files
from edgekit.formats._parts import describe, parts_of, stored_parts
from edgekit.formats.safetensors import Part, build_header, to_bytes
from edgekit.manifest import Manifest
from edgekit.recipe import Plan
from edgekit.tensor import QuantizedTensor, Tensor, holds_floats

#: Bytes of header left free for each part of a quantized tensor, whose shape may turn out otherwise.
_SLACK = 64


class HuggingFaceWriter:
    """Writes one directory: the weights first, everything else at `commit`.

    Attributes:
        done: how many tensors of the plan are complete, those of an interrupted run included.
    """

    def __init__(self, path: Path, layout: Layout, plan: Plan, manifest: Manifest) -> None:
        self._layout, self._plan, self._manifest = layout, plan, manifest
        self._carried = list(_carried_tensors(layout.source))
        planned = [
            stored_parts(slot.tensor, slot.name, assignment.precision)
            for slot, assignment in zip(layout.slots, plan, strict=True)
        ]
        self._header = self._capacity(planned)
        self._directory = AtomicDirectory(path)
        try:
            self._file = self._directory.file(files.WEIGHTS, fingerprint=self._fingerprint)
            nbytes = sum(part.nbytes for parts in planned for part in parts)
            self._file.reserve(self._header + nbytes + sum(tensor.nbytes for tensor in self._carried))
            if not self._file.done:
                self._file.write(bytes(self._header))
        except BaseException:
            self._directory.close()
            raise
        self.done = self._file.done

    def write(self, tensor: QuantizedTensor) -> None:
        """Append the plan's next tensor."""
        expected = self._plan.assignments[self.done]
        if (tensor.name, tensor.precision) != (expected.name, expected.precision):
            raise UsageError(
                f"{self._directory.target}: tensor {tensor.name} in {tensor.precision} came where the plan has "
                f"{expected.name} in {expected.precision}; write in the plan's order"
            )
        written = parts_of(tensor, expected.shape)
        for _, array in written.values():
            self._file.write(to_bytes(array))
        self._file.unit_done(_note({key: part for key, (part, _) in written.items()}))
        self.done += 1

    def commit(self) -> None:
        """Check that every tensor came, fill in the header, write the other files, and swap the directory in."""
        if self.done != len(self._plan):
            raise UsageError(f"{self._directory.target}: {self.done} of {len(self._plan)} tensors came; write them all")
        written = [_parse_note(note) for note in self._file.notes]
        for tensor in self._carried:
            self._file.write(to_bytes(tensor.read()))
        parts = [part for note in written for part in note.values()] + list(map(_part, self._carried))
        keys = {a.name: tuple(note) for a, note in zip(self._plan, written, strict=True)}
        self._file.overwrite(0, build_header(parts, self._metadata(keys), self._header))
        self._file.commit()
        for name, content in small_files(self._layout, self._plan, self._manifest):
            self._directory.write(name, content)
        self._directory.commit()

    def close(self, keep: bool = False) -> None:
        """Let go; without a `commit` before it the target stays as it was."""
        self._directory.close(keep)

    def _capacity(self, planned: list[list[Part]]) -> int:
        """Bytes to leave for the header: exactly what plain floats take, and some slack for quantized tensors."""
        keys = {
            assignment.name: tuple(part.name.removeprefix(assignment.name + ".") for part in parts)
            for assignment, parts in zip(self._plan, planned, strict=True)
        }
        metadata = self._metadata(keys)
        parts = [part for parts in planned for part in parts]
        exact = len(build_header([*parts, *map(_part, self._carried)], metadata))
        return exact + _SLACK * (len(parts) if len(metadata) > 1 else 0)

    def _metadata(self, keys: dict[str, tuple[str, ...]]) -> dict[str, str]:
        quantized = {
            a.name: (a.precision, a.shape, keys[a.name]) for a in self._plan if a.precision.convention != "float"
        }
        return {"format": "pt", **describe(quantized)}  # transformers wants to be told "pt"

    def _fingerprint(self) -> bytes:
        text = json.dumps(["hf", self._header, [[s.name, list(s.shape)] for s in self._layout.slots]])
        return hashlib.sha256((text + self._manifest.to_json()).encode()).digest()


def _note(parts: dict[str, Part]) -> str:
    return json.dumps({key: [part.name, part.dtype, list(part.shape)] for key, part in parts.items()})


def _parse_note(note: str) -> dict[str, Part]:
    return {key: Part(name, dtype, tuple(shape)) for key, (name, dtype, shape) in json.loads(note).items()}


def _carried_tensors(source: Artifact) -> Iterator[Tensor]:
    """Integer tensors of a Hugging Face source."""
    for tensor in source.tensors.values():
        if source.format == "hf" and isinstance(tensor, Tensor) and not holds_floats(tensor):
            yield tensor


def _part(tensor: Tensor) -> Part:
    return Part(tensor.name, tensor.dtype, tensor.shape)
