"""Round trips: writes small models with a format, reads them back, and compares."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import attrs
import numpy as np

from edgekit.architectures import ModelConfig
from edgekit.artifact import Artifact, Format, Layout, RowWriter
from edgekit.errors import EdgekitError
from edgekit.manifest import Manifest
from edgekit.plugin._registry import manager
from edgekit.precision import Precision, find_precision
from edgekit.recipe import Assignment, Plan, Slot
from edgekit.reference import Parts, reference
from edgekit.tensor import EncodedTensor, QuantizedTensor
from edgekit.testing._explain import diagnose, same_parts
from edgekit.testing._kit import fail
from edgekit.testing.models import artifact_of, random_model
from edgekit.tokenizer._record import Tokenizer

Encode = Callable[[Any], Parts]
#: The canonical name of the tensor to quantize; all others stay in float32.
QUANTIZED = "blk.0.ffn_up.weight"


def small_config(width: int = 64, **changes: Any) -> ModelConfig:
    """Return the configuration of a one-layer Llama of that width, with fewer key and value heads than heads."""
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


def random_artifact(
    folder: Path, config: ModelConfig | None = None, seed: int = 0, tokenizer: Tokenizer | None = None
) -> Artifact:
    """Return a small model with random weights, in memory."""
    return artifact_of(random_model(config or small_config(), seed), folder / "source", tokenizer)


def plan_of(layout: Layout, precisions: Mapping[str, Precision] | None = None) -> Plan:
    """Return a plan with the given precisions, by role, and float32 for all other tensors."""
    chosen = precisions or {}
    return Plan("test", tuple(_assign(slot, chosen.get(slot.role)) for slot in layout.slots))


def _assign(slot: Slot, precision: Precision | None) -> Assignment:
    plain = find_precision("float:F32") if len(slot.shape) > 1 else slot.keep
    return Assignment(slot.name, slot.role, slot.shape, precision or plain, "test")


def encoded(slot: Slot, assignment: Assignment, encode: Encode | None = None) -> QuantizedTensor:
    """Return the slot's tensor encoded in its planned precision, by `encode` or else by the reference."""
    x, precision = np.ascontiguousarray(slot.tensor.float32()), assignment.precision
    parts = encode(x) if encode else reference(precision).encode(x, precision)
    return QuantizedTensor(parts, precision, slot.shape, assignment.name)


def write(
    chosen: Format,
    path: Path,
    source: Artifact,
    precisions: Mapping[str, Precision] | None = None,
    manifest: Manifest | None = None,
) -> None:
    """Write a whole artifact with a format."""
    layout = chosen.layout(source)
    plan = plan_of(layout, precisions)
    writer = chosen.writer(path, layout, plan, manifest or Manifest())
    try:
        for slot, assignment in zip(layout.slots, plan, strict=True):
            writer.write(encoded(slot, assignment))
        writer.commit()
    finally:
        writer.close()


def write_in_rows(chosen: Format, path: Path, source: Artifact, precisions: Mapping[str, Precision], step: int) -> bool:
    """Write a whole artifact, each tensor in slices of `step` rows; False where the writer takes whole tensors."""
    layout = chosen.layout(source)
    plan = plan_of(layout, precisions)
    writer = chosen.writer(path, layout, plan, Manifest())
    try:
        if not isinstance(writer, RowWriter):
            return False
        for slot, assignment in zip(layout.slots, plan, strict=True):
            _write_rows(writer, encoded(slot, assignment), step)
        writer.commit()
    finally:
        writer.close()
    return True


def _write_rows(writer: RowWriter, tensor: QuantizedTensor, step: int) -> None:
    """Write a tensor in slices of rows, or as a whole where its rows are not apart."""
    if not tensor.precision.rowwise:
        step = tensor.rows
    for first in range(0, tensor.rows, step):
        last = min(first + step, tensor.rows)
        parts = {key: part[first:last] if part.ndim else part for key, part in tensor.parts.items()}
        shape = tensor.shape if last - first == tensor.rows else (last - first, tensor.shape[-1])
        writer.write_rows(attrs.evolve(tensor, parts=parts, shape=shape), first)


def round_trips(encode: Encode, precision: Precision, cols: int, folder: Path) -> list[str]:
    """Return the names of the installed formats that store the precision; fails if one returns different parts."""
    source, stored = random_artifact(folder, small_config(cols)), []
    for registration in manager().all("formats"):
        suffix = next(iter(registration.options.get("suffixes", ())), "")
        path = folder / f"trip-{registration.name}{suffix}"
        if trip(registration.load(), path, source, precision, encode):
            stored.append(registration.name)
    return stored


def trip(chosen: Format, path: Path, source: Artifact, precision: Precision, encode: Encode | None = None) -> bool:
    """Write one tensor in a precision, read it back and compare; return False if the format refuses the precision."""
    layout = chosen.layout(source)
    plan = plan_of(layout, {QUANTIZED: precision})
    try:
        writer = chosen.writer(path, layout, plan, Manifest())
    except EdgekitError:  # the format cannot store it
        return False
    given: QuantizedTensor | None = None
    try:
        for slot, assignment in zip(layout.slots, plan, strict=True):
            tensor = encoded(slot, assignment, encode if slot.role == QUANTIZED else None)
            given = tensor if slot.role == QUANTIZED else given
            writer.write(tensor)
        writer.commit()
    finally:
        writer.close()
    assert given is not None
    _same_again(chosen, path, given)
    return True


def _same_again(chosen: Format, path: Path, given: QuantizedTensor) -> None:
    tensor = chosen.open(path).tensors[given.name]
    if not isinstance(tensor, EncodedTensor):  # floats are read as a plain tensor
        values = np.ascontiguousarray(tensor.read_rows(0, tensor.rows))
        if values.tobytes() != np.ascontiguousarray(given.parts["values"]).tobytes():
            fail(f"format {chosen.name!r} gives back other values of {given.precision} than it was given")
        return
    actual = {key: np.ascontiguousarray(part) for key, part in tensor.read().parts.items()}
    expected = {key: _carried(part, actual.get(key)) for key, part in given.parts.items()}
    if not same_parts(expected, actual):
        fail(
            f"format {chosen.name!r} gives back other parts of {given.precision} than it was given: "
            f"{diagnose(expected, actual)}"
        )


def _carried(part: Any, restored: Any) -> Any:
    """Return the part in the shape of the restored one if both have the same number of values, else unchanged."""
    if restored is not None and part.size == restored.size and part.dtype.itemsize == restored.dtype.itemsize:
        return np.ascontiguousarray(part).reshape(restored.shape).view(restored.dtype)
    return part
