"""Writes an IR of a supported model family: constants one tensor at a time, the graph last."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import attrs

from edgekit.artifact import Layout
from edgekit.errors import UnsupportedModelError, UsageError
from edgekit.files import pairs
from edgekit.files.atomic import ARTIFACT_FILES
from edgekit.formats import Places, PlannedDirectory, generation_config, small_files
from edgekit.formats.safetensors import Part
from edgekit.manifest import Manifest
from edgekit.recipe import Assignment, Plan
from edgekit_openvino import graph
from edgekit_openvino.elements import storable, stored_parts
from edgekit_openvino.library import openvino
from edgekit_openvino.serialize import ALIGNMENT, Placed, Placeholders, aligned, xml_of
from edgekit_openvino.tokenizer import tokenizer_models

XML, BIN = "openvino_model.xml", "openvino_model.bin"
#: Files of a directory of this format, which a writer may replace.
OWNED = (
    *ARTIFACT_FILES,
    *(f"openvino_{what}.{end}" for what in ("model", "tokenizer", "detokenizer") for end in ("xml", "bin")),
)
#: Version of the written layout, for later readers.
LAYOUT = "1"


class OpenVinoWriter(PlannedDirectory):
    """Writes an IR as a directory; see `edgekit.formats.PlannedDirectory`.

    Raises:
        UnsupportedModelError: an IR cannot store a precision of the plan.
        ResourceError: the target cannot be written, or the disk is too small.
        LockedError: another process writes the directory.
    """

    data = BIN
    owned = OWNED

    def __init__(self, path: Path, layout: Layout, plan: Plan, manifest: Manifest) -> None:
        openvino()  # a missing package is reported before any work
        for assignment in plan:
            _refuse_foreign(assignment, path)
        self._layout = layout
        identity = json.dumps(["openvino", LAYOUT, [[slot.name, list(slot.shape)] for slot in layout.slots]]).encode()
        super().__init__(path, plan, manifest, nbytes=_planned_bytes(plan), identity=identity)

    def place(self, parts: Mapping[str, Part], assignment: Assignment) -> Places:
        """Return the aligned position of each part of the tensor, and a note with the positions."""
        expected = stored_parts(assignment.name, assignment.precision, assignment.shape)
        for key, stored in expected.items():
            if parts[key].nbytes != stored.nbytes:
                raise UsageError(
                    f"{self.path}: part {key} of tensor {assignment.name} has {parts[key].nbytes} bytes, "
                    f"{stored.element} {list(stored.shape)} takes {stored.nbytes}; encode it as {assignment.precision}"
                )
        places = Places.in_order([parts[key] for key in expected], self.file.offset, ALIGNMENT)
        return attrs.evolve(places, note=json.dumps(places.offsets))

    def finish(self) -> None:
        """Build the graph, and write its small constants after the weights."""
        others = small_ones(self._layout, self.plan, self.manifest)
        tokenizer = tokenizer_models(others, self._layout.source.files)
        if tokenizer.failed:
            self.remarks["tokenizer_models"] = said = (
                f"the tokenizer was {tokenizer.note}; OpenVINO GenAI and the model server cannot use this directory"
            )
            notes = {**self.manifest.notes, "tokenizer_models": said}
            others[pairs.INSIDE] = attrs.evolve(self.manifest, notes=notes).to_json().encode()
        xml, small = graph_of(self._layout, self.plan, self._places(), self.file.offset, tokenizer.note)
        self._align()
        self.file.write(small)
        self._small = {XML: xml, **others, **dict(tokenizer.files)}

    def small_files(self) -> Iterable[tuple[str, bytes]]:
        """Return the graph, the tokenizer models, and the files that a Hugging Face directory has besides weights."""
        return self._small.items()

    def _align(self) -> None:
        self.file.write(bytes(aligned(self.file.offset) - self.file.offset))

    def _places(self) -> dict[str, Placed]:
        """Return the positions of the constants of all tensors, by name."""
        places: dict[str, Placed] = {}
        for assignment, note in zip(self.plan, self.notes, strict=True):
            offsets = json.loads(note)
            for key, stored in stored_parts(assignment.name, assignment.precision, assignment.shape).items():
                places[stored.name] = Placed(stored, offsets[key])
        return places


def small_ones(layout: Layout, plan: Plan, manifest: Manifest) -> dict[str, bytes]:
    """Return the small files; with generation_config.json, from which GenAI and the server read the end tokens."""
    try:
        tokenizer = layout.source.tokenizer
    except UnsupportedModelError:  # copied byte for byte nevertheless
        tokenizer = None
    made = dict(generation_config(tokenizer)) if tokenizer else {}
    return made | dict(small_files(layout, plan, manifest))


def graph_of(layout: Layout, plan: Plan, places: Mapping[str, Placed], end: int, tokenizer: str) -> tuple[bytes, bytes]:
    """Return the XML of a plan, and the bytes of the small constants after the weights.

    Args:
        layout: the model's layout.
        plan: the precisions.
        places: positions of the weights' constants in the .bin, by name.
        end: end of the last of them in bytes.
        tokenizer: the note on the tokenizer, which the XML records.
    """
    return xml_of(lambda made: decoder(layout, plan, made), places, end, {"layout": LAYOUT, "tokenizer": tokenizer})


def planned_places(plan: Plan) -> tuple[dict[str, Placed], int]:
    """Return the positions of a plan's constants by name, and the end of the last one in bytes."""
    places: dict[str, Placed] = {}
    end = 0
    for assignment in plan:
        for stored in stored_parts(assignment.name, assignment.precision, assignment.shape).values():
            places[stored.name] = Placed(stored, aligned(end))
            end = aligned(end) + stored.nbytes
    return places, end


def decoder(layout: Layout, plan: Plan, placeholders: Placeholders) -> Any:
    """Return the decoder of a layout's model with weights in the planned precisions."""
    assert layout.model is not None
    by_role: Mapping[str, Assignment] = {assignment.role: assignment for assignment in plan}

    def weight(role: str) -> Any:
        assignment = by_role[role]
        return placeholders.weight(assignment.name, assignment.precision, assignment.shape)

    # The name is written into the XML: it is the family's and does not depend on the source's file name.
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


__all__ = [
    "BIN",
    "LAYOUT",
    "OWNED",
    "XML",
    "OpenVinoWriter",
    "decoder",
    "graph_of",
    "planned_places",
    "small_ones",
]
