"""Writes an ``.ekx`` file, tensor by tensor; the target appears only when it is complete.

The header needs only the plan, so it is written first. `edgekit.formats.PlannedFile` has the rest: the plan's order,
that nothing is missing, and that an interrupted run goes on after its last complete tensor.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import attrs

from edgekit.artifact import Layout
from edgekit.errors import UnsupportedModelError, UsageError
from edgekit.formats import PartLayout, Places, PlannedFile, part_layouts
from edgekit.formats.safetensors import Part
from edgekit.manifest import Manifest
from edgekit.recipe import Assignment, Plan
from edgekit_example.container import build_header, part_nbytes


class EkxWriter(PlannedFile):
    """Writes one file; see `edgekit.formats.PlannedFile`.

    Raises:
        UsageError: the plan has a precision that cannot be encoded.
        UnsupportedModelError: the layout is of no known family.
        ResourceError: the target cannot be written, or the disk is too small.
        LockedError: another process writes it.
    """

    def __init__(self, path: Path, layout: Layout, plan: Plan, manifest: Manifest) -> None:
        if layout.model is None:
            raise UnsupportedModelError(f"{path}: an .ekx file needs a model of a known family")
        tensors = [(a.name, a.shape, a.precision) for a in plan]
        header = build_header(layout.model.config, layout.source.tokenizer, tensors)
        sizes = [sum(map(part_nbytes, _parts(assignment).values())) for assignment in plan]
        super().__init__(path, plan, manifest, header=header, nbytes=len(header) + sum(sizes), sizes=sizes)

    def place(self, parts: Mapping[str, Part], assignment: Assignment) -> Places:
        """The tensor's parts in the order in which its precision has them.

        Raises:
            UsageError: the parts are not those of the precision.
        """
        planned = {key: (part.dtype, part.shape) for key, part in _parts(assignment).items()}
        given = {key: (part.dtype, part.shape) for key, part in parts.items()}
        if given != planned:
            raise UsageError(
                f"{self.path}: tensor {assignment.name!r} has the parts {given}, not {planned}; encode it again"
            )
        return Places.in_order([parts[key] for key in planned], self.file.offset)


def _parts(assignment: Assignment) -> dict[str, PartLayout]:
    layouts = part_layouts(assignment.precision, assignment.shape)
    if layouts is None:
        raise UsageError(f"tensor {assignment.name!r}: {assignment.precision} can only be decoded; choose another")
    if assignment.precision.convention == "float":  # vectors too are stored in their own shape
        return {key: attrs.evolve(part, shape=(part.shape[0], assignment.shape[-1])) for key, part in layouts.items()}
    return layouts


__all__ = ["EkxWriter"]
