"""Through a file and back: one tensor's parts, in every installed format that stores their precision."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import attrs
import numpy as np

from edgekit.architectures import ModelConfig
from edgekit.artifact import Artifact, Format, Layout
from edgekit.errors import EdgekitError
from edgekit.manifest import Manifest
from edgekit.plugin import manager
from edgekit.precision import Precision
from edgekit.recipe import Assignment, Plan
from edgekit.reference import Parts, reference
from edgekit.tensor import EncodedTensor, QuantizedTensor
from edgekit.testing._explain import diagnose, same_parts
from edgekit.testing._kit import fail
from edgekit.testing.models import artifact_of, random_model

Encode = Callable[[Any], Parts]
#: The canonical name of the tensor that is quantized; all others stay as they are.
QUANTIZED = "blk.0.ffn_up.weight"


def small_config(width: int = 64, **changes: Any) -> ModelConfig:
    """A one-layer Llama whose rows have that length."""
    config = ModelConfig(
        family="llama",
        layers=1,
        width=width,
        heads=4,
        kv_heads=2,
        head_dim=16,
        ffn=64,
        vocab=48,
        context=64,
        norm_eps=1e-5,
        rope_theta=10000.0,
        attention_scale=0.25,
        rotary_dim=16,
    )
    return attrs.evolve(config, **changes)


def round_trips(encode: Encode, precision: Precision, cols: int, folder: Path) -> list[str]:
    """The formats that stored the parts and gave them back; fails where one gave back others."""
    artifact = artifact_of(random_model(small_config(cols)), folder / "source")
    stored = []
    for registration in manager().all("formats"):
        chosen: Format = registration.load()
        suffix = next(iter(registration.options.get("suffixes", ())), "")
        if _trip(chosen, encode, precision, artifact, folder / f"trip-{registration.name}{suffix}"):
            stored.append(registration.name)
    return stored


def _trip(chosen: Format, encode: Encode, precision: Precision, artifact: Artifact, path: Path) -> bool:
    layout = chosen.layout(artifact)
    plan = Plan("one tensor", tuple(_assign(layout, precision)))
    try:
        writer = chosen.writer(path, layout, plan, Manifest())
    except EdgekitError:  # the format has no type for it
        return False
    written: Mapping[str, Any] = {}
    try:
        for slot, assignment in zip(layout.slots, plan, strict=True):
            x = np.ascontiguousarray(slot.tensor.float32())
            wanted = assignment.precision
            parts = encode(x) if slot.role == QUANTIZED else reference(wanted).encode(x, wanted)
            written = parts if slot.role == QUANTIZED else written
            writer.write(QuantizedTensor(parts, wanted, slot.shape, assignment.name))
        writer.commit()
    finally:
        writer.close()
    _same_again(chosen, path, layout, written)
    return True


def _assign(layout: Layout, precision: Precision) -> list[Assignment]:
    return [
        Assignment(s.name, s.role, s.shape, precision if s.role == QUANTIZED else s.keep, "test") for s in layout.slots
    ]


def _same_again(chosen: Format, path: Path, layout: Layout, written: Mapping[str, Any]) -> None:
    name = next(slot.name for slot in layout.slots if slot.role == QUANTIZED)
    tensor = chosen.open(path).tensors[name]
    if not isinstance(tensor, EncodedTensor):  # plain floats come back as such
        values = np.ascontiguousarray(tensor.read_rows(0, tensor.rows))
        if values.tobytes() != np.ascontiguousarray(written["values"]).tobytes():
            fail(f"format {chosen.name!r} gives back other values than it was given")
        return
    found = {key: np.ascontiguousarray(part) for key, part in tensor.read().parts.items()}
    wanted = {key: _carried(part, found.get(key)) for key, part in written.items()}
    if not same_parts(wanted, found):
        fail(f"format {chosen.name!r} gives back other parts than it was given: {diagnose(wanted, found)}")


def _carried(part: Any, found: Any) -> Any:
    """The part in the shape in which the file has it, where it holds as many values."""
    if found is not None and part.size == found.size and part.dtype.itemsize == found.dtype.itemsize:
        return np.ascontiguousarray(part).reshape(found.shape).view(found.dtype)
    return part
