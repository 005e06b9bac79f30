"""Writes an ONNX directory of a supported model family: constants one tensor at a time, the graph last."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path

import attrs

from edgekit.artifact import Layout
from edgekit.errors import UnsupportedModelError, UsageError
from edgekit.files.atomic import ARTIFACT_FILES
from edgekit.formats import Places, PlannedDirectory, small_files
from edgekit.formats.safetensors import Part
from edgekit.manifest import Manifest
from edgekit.precision import Precision
from edgekit.recipe import Assignment, Plan, Slot
from edgekit.typing import Array
from edgekit_olive import dialect, genai, graph
from edgekit_olive.elements import EMBEDDINGS, Stored, can_hold, is_hqq
from edgekit_olive.library import onnx
from edgekit_olive.weights import DATA, Placed, Weight

MODEL = "model.onnx"
#: Files of a directory of this format, which a writer may replace.
OWNED = (*ARTIFACT_FILES, MODEL, DATA, genai.CONFIG)
#: Version of the written layout; part of the fingerprint that a resumed run must match.
LAYOUT = 1
#: Alignment of constants in bytes, so that the runtime can map the file.
ALIGNMENT = 64


class OnnxWriter(PlannedDirectory):
    """Writes an ONNX directory; see `edgekit.formats.PlannedDirectory`.

    Args:
        path: the directory to write.
        layout: the layout of the source.
        plan: the precision of every tensor.
        manifest: the artifact's manifest.
        fused: whether the graph uses ONNX Runtime's own operators.

    Raises:
        UnsupportedModelError: a graph of this dialect cannot store a precision of the plan.
        ResourceError: the target cannot be written, or the disk is too small.
        LockedError: another process writes the directory.
    """

    data = DATA
    owned = OWNED

    def __init__(self, path: Path, layout: Layout, plan: Plan, manifest: Manifest, *, fused: bool) -> None:
        onnx()  # a missing package is reported before any work
        self._layout, self._fused = layout, fused
        for slot, line in zip(layout.slots, plan, strict=True):
            _refuse_foreign(slot, line, path, fused)
        self._parts = [
            dialect.stored(slot, line.precision, fused) for slot, line in zip(layout.slots, plan, strict=True)
        ]
        described = [[part.name, part.element, list(part.shape)] for parts in self._parts for part in parts.values()]
        identity = json.dumps(["onnx", LAYOUT, fused, described]).encode()
        super().__init__(path, plan, manifest, nbytes=data_bytes(self._parts), identity=identity)

    def place(self, parts: Mapping[str, Part], assignment: Assignment) -> Places:
        """Return the aligned position of each part of the tensor, and a note with the positions."""
        expected = self._parts[self.placed]
        for key, stored in expected.items():
            if parts[key].nbytes != stored.nbytes:
                raise UsageError(
                    f"{self.path}: part {key} of tensor {assignment.name} has {parts[key].nbytes} bytes, "
                    f"{stored.element} {list(stored.shape)} takes {stored.nbytes}; "
                    "encode it from the layout's own tensor"
                )
        places = Places.in_order([parts[key] for key in expected], self.file.offset, ALIGNMENT)
        return attrs.evolve(places, note=json.dumps(places.offsets))

    def stored(self, key: str, array: Array, assignment: Assignment) -> Array:
        """Return a part of some rows as the dialect stores it."""
        return self.storing(assignment)(key, array)

    def storing(self, assignment: Assignment) -> Callable[[str, Array], Array]:
        """Return the same as a function that workers of other processes can call."""
        return partial(_outward, precision=assignment.precision, fused=self._fused)

    def small_files(self) -> Iterable[tuple[str, bytes]]:
        """Return the graph, GenAI's configuration, and the files that a Hugging Face directory has besides weights."""
        others = dict(small_files(self._layout, self.plan, self.manifest))
        yield MODEL, graph_of(self._layout, self.plan, self._parts, map(json.loads, self.notes), self._fused)
        if self._fused and genai.runs(self._layout):
            yield genai.CONFIG, genai.config_of(self._layout)
        yield from others.items()


def _outward(key: str, array: Array, *, precision: Precision, fused: bool) -> Array:
    return dialect.outward(array, key, precision, fused)


def graph_of(
    layout: Layout,
    plan: Plan,
    parts: Iterable[Mapping[str, Stored]],
    offsets: Iterable[Mapping[str, int]],
    fused: bool,
) -> bytes:
    """Return the graph of a plan with constants at the given offsets, as the bytes of an `onnx.ModelProto`."""
    assert layout.model is not None
    weights = {}
    for line, stored, places in zip(plan, parts, offsets, strict=True):
        placed = {key: Placed(part, places[key]) for key, part in stored.items()}
        weights[line.role] = Weight(line.name, line.precision, line.shape, placed)
    made: bytes = graph.build(layout.model.config, weights, fused=fused).SerializeToString(deterministic=True)
    return made


def graph_file(path: Path) -> Path:
    """Return the path of a model's graph: the path itself, or that in a directory."""
    return path / MODEL if path.is_dir() else path


def aligned(offset: int) -> int:
    """Return an offset rounded up to the alignment."""
    return -(-offset // ALIGNMENT) * ALIGNMENT


def data_bytes(parts: Iterable[Mapping[str, Stored]]) -> int:
    """Return the bytes of the file with the constants."""
    end = 0
    for stored_of in parts:
        for stored in stored_of.values():
            end = aligned(end) + stored.nbytes
    return end


def planned_offsets(parts: Iterable[Mapping[str, Stored]]) -> list[dict[str, int]]:
    """Return the offsets of a plan's constants in the file, in bytes."""
    end, places = 0, []
    for stored_of in parts:
        place = {}
        for key, stored in stored_of.items():
            place[key] = aligned(end)
            end = aligned(end) + stored.nbytes
        places.append(place)
    return places


def _refuse_foreign(slot: Slot, line: Assignment, path: Path, fused: bool) -> None:
    if not can_hold(line.precision, line.shape):
        raise UnsupportedModelError(
            f"{path}: ONNX Runtime's CPU provider computes with onnx's precisions (MatMulNBits of 2 bits in blocks of "
            f"up to 256, of 4 and 8 bits of up to 512) and F32, F16, BF16; the plan has {line.precision} for "
            f"{line.name}: choose one of those, such as onnx:int4-sym-g32"
        )
    if is_hqq(line.precision) and line.role in EMBEDDINGS:
        raise UnsupportedModelError(
            f"{path}: {line.name} in {line.precision}: GatherBlockQuantized takes no zero points in floats; choose a "
            "recipe that stores the embedding otherwise, such as MATMUL_NBITS_4_HQQ"
        )
    fault = "" if fused else dialect.portable_fault(line.precision, slot.shape)
    if fault:
        raise UnsupportedModelError(f"{path}: {line.name} in {line.precision}: {fault}; write the format onnx instead")


__all__ = [
    "LAYOUT",
    "MODEL",
    "OWNED",
    "OnnxWriter",
    "aligned",
    "data_bytes",
    "graph_file",
    "graph_of",
    "planned_offsets",
]
