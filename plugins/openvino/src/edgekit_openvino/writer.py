"""Writing an IR of a model whose family is known: constants one tensor at a time, the graph at the end."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs

from edgekit.artifact import Layout
from edgekit.errors import UnsupportedModelError, UsageError
from edgekit.files.atomic import ARTIFACT_FILES, AtomicDirectory
from edgekit.formats import generation_config, small_files
from edgekit.formats.safetensors import to_bytes
from edgekit.manifest import Manifest
from edgekit.recipe import Assignment, Plan
from edgekit.tensor import QuantizedTensor
from edgekit_openvino import graph
from edgekit_openvino.elements import storable, stored_parts
from edgekit_openvino.library import openvino
from edgekit_openvino.serialize import Placed, Placeholders, aligned, xml_of
from edgekit_openvino.tokenizer import tokenizer_models

XML, BIN = "openvino_model.xml", "openvino_model.bin"
#: What lies in a directory of this format, and may be replaced in it.
OWNED = (
    *ARTIFACT_FILES,
    *(f"openvino_{what}.{end}" for what in ("model", "tokenizer", "detokenizer") for end in ("xml", "bin")),
)
#: The number of what this edgekit writes; the readers of later ones may need to know.
LAYOUT = "1"


class OpenVinoWriter:
    """Writes one directory; see `edgekit.artifact.Writer`.

    Attributes:
        done: how many tensors of the plan are complete, those of an interrupted run included.
    """

    def __init__(self, path: Path, layout: Layout, plan: Plan, manifest: Manifest) -> None:
        openvino()  # said before any work
        self._layout, self._plan, self._manifest = layout, plan, manifest
        for assignment in plan:
            _refuse_foreign(assignment, path)
        self._directory = AtomicDirectory(path, owned=OWNED)
        try:
            self._file = self._directory.file(BIN, fingerprint=self._fingerprint)
            self._file.reserve(_planned_bytes(plan))
        except BaseException:
            self._directory.close()
            raise
        self.done = self._file.done

    def write(self, tensor: QuantizedTensor) -> None:
        """Append the plan's next tensor, each part of it at an aligned place."""
        expected = self._plan.assignments[self.done]
        if (tensor.name, tensor.precision) != (expected.name, expected.precision):
            raise UsageError(
                f"{self._directory.target}: tensor {tensor.name} in {tensor.precision} came where the plan has "
                f"{expected.name} in {expected.precision}; write in the plan's order"
            )
        offsets = {}
        for key, stored in stored_parts(expected.name, expected.precision, expected.shape).items():
            data = to_bytes(tensor.parts[key])
            if data.nbytes != stored.nbytes:
                raise UsageError(
                    f"{self._directory.target}: part {key} of tensor {tensor.name} has {data.nbytes} bytes, "
                    f"{stored.element} {list(stored.shape)} takes {stored.nbytes}; encode it as {tensor.precision}"
                )
            self._align()
            offsets[key] = self._file.offset
            self._file.write(data)
        self._file.unit_done(json.dumps(offsets))
        self.done += 1

    def commit(self) -> None:
        """Check that every tensor came, write the graph and the other files, and swap the directory in."""
        if self.done != len(self._plan):
            raise UsageError(f"{self._directory.target}: {self.done} of {len(self._plan)} tensors came; write them all")
        others = self._others()
        tokenizer = tokenizer_models(others, self._layout.source.files)
        info = {"layout": LAYOUT, "tokenizer": tokenizer.note}
        xml, small = xml_of(self._build, self._places(), self._file.offset, info)
        self._align()
        self._file.write(small)
        self._file.commit()
        self._directory.write(XML, xml)
        for name, content in (others | dict(tokenizer.files)).items():
            self._directory.write(name, content)
        self._directory.commit()

    def _others(self) -> dict[str, bytes]:
        """The small files; GenAI and the model server read the end tokens from generation_config.json alone."""
        try:
            tokenizer = self._layout.source.tokenizer
        except UnsupportedModelError:  # carried over byte for byte all the same
            tokenizer = None
        made = dict(generation_config(tokenizer)) if tokenizer else {}
        return made | dict(small_files(self._layout, self._plan, self._manifest))

    def close(self, keep: bool = False) -> None:
        """Let go; without a `commit` before it the target stays as it was."""
        self._directory.close(keep)

    def _align(self) -> None:
        self._file.write(bytes(aligned(self._file.offset) - self._file.offset))

    def _places(self) -> dict[str, Placed]:
        """Where the constants of all tensors begin, by their names."""
        places: dict[str, Placed] = {}
        for assignment, note in zip(self._plan, self._file.notes, strict=True):
            offsets = json.loads(note)
            for key, stored in stored_parts(assignment.name, assignment.precision, assignment.shape).items():
                places[stored.name] = Placed(stored, offsets[key])
        return places

    def _build(self, placeholders: Placeholders) -> Any:
        assert self._layout.model is not None  # the format's layout refuses what has no known family
        return decoder(self._layout, self._plan, placeholders)

    def _fingerprint(self) -> bytes:
        slots = [[slot.name, list(slot.shape)] for slot in self._layout.slots]
        text = json.dumps(["openvino", LAYOUT, slots]) + self._manifest.to_json()
        return hashlib.sha256(text.encode()).digest()


def decoder(layout: Layout, plan: Plan, placeholders: Placeholders) -> Any:
    """The decoder of a layout's model with its weights as planned."""
    assert layout.model is not None
    by_role: Mapping[str, Assignment] = {assignment.role: assignment for assignment in plan}

    def weight(role: str) -> Any:
        assignment = by_role[role]
        return placeholders.weight(assignment.name, assignment.precision, assignment.shape)

    # The name is written into the XML: the family's, whatever the source is called.
    model = graph.build(attrs.evolve(layout.model.config, name=""), weight, placeholders.parameters.values)
    graph.name_nodes(model)
    return model


def _refuse_foreign(assignment: Assignment, path: Path) -> None:
    if not storable(assignment.precision):
        raise UnsupportedModelError(
            f"{path}: an IR holds openvino's precisions and F32, F16, BF16; the plan has {assignment.precision} for "
            f"{assignment.name}: choose one of those, such as openvino:int4-sym-g64"
        )


def _planned_bytes(plan: Plan) -> int:
    parts = (stored_parts(a.name, a.precision, a.shape).values() for a in plan)
    return sum(aligned(stored.nbytes) for stored_of in parts for stored in stored_of)


__all__ = ["BIN", "LAYOUT", "OWNED", "XML", "OpenVinoWriter", "decoder"]
