"""Writing an IR of a model whose family is known: constants one tensor at a time, the graph at the end."""

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
#: What lies in a directory of this format, and may be replaced in it.
OWNED = (
    *ARTIFACT_FILES,
    *(f"openvino_{what}.{end}" for what in ("model", "tokenizer", "detokenizer") for end in ("xml", "bin")),
)
#: The number of what this edgekit writes; the readers of later ones may need to know.
LAYOUT = "1"


class OpenVinoWriter(PlannedDirectory):
    """Writes one directory; see `edgekit.formats.PlannedDirectory`.

    Raises:
        UnsupportedModelError: the plan has a precision that an IR cannot hold.
        ResourceError: the target cannot be written, or the disk is too small.
        LockedError: another process writes it.
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
        """Each part of the tensor at an aligned place; the note has the places."""
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
        """Build the graph, and write its small constants behind the weights."""
        others = small_ones(self._layout, self.plan, self.manifest)
        tokenizer = tokenizer_models(others, self._layout.source.files)
        if tokenizer.failed:
            self.remarks["tokenizer_models"] = (
                f"the tokenizer was {tokenizer.note}; OpenVINO GenAI and the model server cannot use this directory"
            )
            notes = {**self.manifest.notes, **self.remarks}
            others[pairs.INSIDE] = attrs.evolve(self.manifest, notes=notes).to_json().encode()
        xml, small = graph_of(self._layout, self.plan, self._places(), self.file.offset, tokenizer.note)
        self._align()
        self.file.write(small)
        self._small = {XML: xml, **others, **dict(tokenizer.files)}

    def small_files(self) -> Iterable[tuple[str, bytes]]:
        """The graph, the tokenizer's, and what a Hugging Face directory has besides weights."""
        return self._small.items()

    def _align(self) -> None:
        self.file.write(bytes(aligned(self.file.offset) - self.file.offset))

    def _places(self) -> dict[str, Placed]:
        """Where the constants of all tensors begin, by their names."""
        places: dict[str, Placed] = {}
        for assignment, note in zip(self.plan, self.notes, strict=True):
            offsets = json.loads(note)
            for key, stored in stored_parts(assignment.name, assignment.precision, assignment.shape).items():
                places[stored.name] = Placed(stored, offsets[key])
        return places


def small_ones(layout: Layout, plan: Plan, manifest: Manifest) -> dict[str, bytes]:
    """The small files; GenAI and the model server read the end tokens from generation_config.json alone."""
    try:
        tokenizer = layout.source.tokenizer
    except UnsupportedModelError:  # carried over byte for byte all the same
        tokenizer = None
    made = dict(generation_config(tokenizer)) if tokenizer else {}
    return made | dict(small_files(layout, plan, manifest))


def graph_of(layout: Layout, plan: Plan, places: Mapping[str, Placed], end: int, tokenizer: str) -> tuple[bytes, bytes]:
    """The XML of a plan whose constants lie at those places, and what follows them; `tokenizer` is a note on it."""
    return xml_of(lambda made: decoder(layout, plan, made), places, end, {"layout": LAYOUT, "tokenizer": tokenizer})


def planned_places(plan: Plan) -> tuple[dict[str, Placed], int]:
    """Where the constants of a plan will begin, and where the last one ends."""
    places: dict[str, Placed] = {}
    end = 0
    for assignment in plan:
        for stored in stored_parts(assignment.name, assignment.precision, assignment.shape).values():
            places[stored.name] = Placed(stored, aligned(end))
            end = aligned(end) + stored.nbytes
    return places, end


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
