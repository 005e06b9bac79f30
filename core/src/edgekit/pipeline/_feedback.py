"""The matrices of a plan, rounded with error feedback before they are written."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping
from concurrent.futures import Executor
from contextlib import closing
from functools import partial
from typing import Any

import attrs
import numpy as np

from edgekit.architectures import Model
from edgekit.bridges import has_levels
from edgekit.encoding._codecs import codec
from edgekit.encoding._importance import fill_importance, stack_of
from edgekit.errors import UsageError
from edgekit.files.atomic import AtomicFile
from edgekit.numerics.smallfloats import bfloat16, float32_to_bfloat16, ml_dtype
from edgekit.pipeline._progress import Progress
from edgekit.pipeline._stream import Piece
from edgekit.pipeline.rounding._kernels import NUMPY, Kernels
from edgekit.pipeline.rounding._walk import Matrix, Walk
from edgekit.pipeline.rounding.calibration import Calibration
from edgekit.plugin._registry import manager
from edgekit.precision import Precision
from edgekit.recipe import Assignment, Slot, quantized
from edgekit.tensor import EncodedTensor, QuantizedTensor
from edgekit.typing import F32, Array, Indices

Pairs = list[tuple[Slot, Assignment]]


@attrs.frozen(eq=False)
class Rounder:
    """Rounds the matrices of a plan.

    Attributes:
        model: the source.
        calibration: of the source.
        pairs: the slots of the target with their precisions.
        backend: as for `edgekit.quantize`.
        pool: computes groups of rows.
        where: prefix of a tensor's name in messages.
        kept: the file in which rounded matrices are kept until the artifact is written, so that an interrupted run
            continues after them; None keeps none.
    """

    model: Model
    calibration: Calibration
    pairs: Pairs
    backend: str | None
    pool: Executor
    where: str
    kept: AtomicFile | None = None

    def rounded(self, progress: Progress | None = None) -> dict[str, Callable[[], QuantizedTensor]]:
        """Round the matrices; return what reads each of them from the file, by its name in the target."""
        chosen = {line.role: (slot, line) for slot, line in self.pairs if self._takes(slot, line)}
        if not chosen:
            return {}
        matrices = {role: self._matrix(slot, line) for role, (slot, line) in chosen.items()}
        kept = dict(self._known(chosen))
        walk = Walk(self.model, self.calibration, matrices, self.pool, fastest(), self._others(chosen), dict(kept))
        for role, tensor in walk.run(progress):
            if role not in kept:
                kept[role] = self._keep(*chosen[role], tensor)
        return {line.name: kept[role] for role, (_, line) in chosen.items() if role in kept}

    def _keep(self, slot: Slot, line: Assignment, tensor: QuantizedTensor) -> Callable[[], QuantizedTensor]:
        """Write a rounded matrix to the file, and return what reads it; its parts are described in the unit's note."""
        if self.kept is None:
            return lambda: tensor
        described = []
        for name, part in tensor.parts.items():
            values = np.ascontiguousarray(part)
            described.append((name, values.dtype.name, list(values.shape)))
            self.kept.write(values.tobytes())
        self.kept.unit_done(json.dumps([line.role, tensor.backend, described]))
        return partial(self._kept_tensor, self.kept.done - 1, slot, line.precision, tensor.backend, described)

    def _known(
        self, chosen: Mapping[str, tuple[Slot, Assignment]]
    ) -> Iterator[tuple[str, Callable[[], QuantizedTensor]]]:
        """Yield the role of each matrix that an interrupted run has kept, and what reads it."""
        notes = [] if self.kept is None else [json.loads(note) for note in self.kept.notes]
        for unit, (role, backend, described) in enumerate(notes):
            slot, line = chosen[role]
            yield role, partial(self._kept_tensor, unit, slot, line.precision, backend, described)

    def _kept_tensor(
        self, unit: int, slot: Slot, precision: Precision, backend: str, described: list[tuple[str, str, list[int]]]
    ) -> QuantizedTensor:
        assert self.kept is not None
        data, at, parts = self.kept.unit(unit), 0, {}
        for name, dtype, shape in described:
            count = math.prod(shape)
            parts[name] = np.frombuffer(data, _dtype(dtype), count, at).reshape(shape)
            at += parts[name].nbytes
        return QuantizedTensor(parts, precision, slot.shape, slot.name, backend)

    def pieces(
        self, encode: Callable[[Pairs], Generator[Piece, None, None]], pairs: Pairs, progress: Progress | None
    ) -> Generator[Piece, None, None]:
        """Yield the tensors of the pairs in their order: the rounded ones, and the others as they are encoded."""
        rounded = self.rounded(progress)
        with closing(encode([(slot, line) for slot, line in pairs if line.name not in rounded])) as others:
            for _, line in pairs:
                if line.name in rounded:
                    yield Piece.whole(attrs.evolve(rounded[line.name](), name=line.name), line)
                    continue
                for piece in others:
                    yield piece
                    if piece.last:
                        break

    def note(self) -> str:
        """What is rounded how, in a sentence."""
        matrices = [
            (slot, line) for slot, line in self.pairs if quantized(line.precision) and not _unchanged(slot, line)
        ]
        done = sum(self._takes(slot, line) for slot, line in matrices)
        nearest = [(slot, line) for slot, line in matrices if not self._takes(slot, line)]
        text = f"{done} matrices rounded with error feedback on {self.calibration.tokens} tokens"
        if not nearest:
            return text
        kinds = Counter(self._why_not(line) for _, line in nearest)
        return f"{text}, {len(nearest)} to nearest ({', '.join(f'{n} {why}' for why, n in sorted(kinds.items()))})"

    def _takes(self, slot: Slot, line: Assignment) -> bool:
        precision = line.precision
        known = any(line.role in names for names in self.calibration.inputs.values())
        same = line.role in self.model.tensors and self.model.tensors[line.role].shape == slot.shape
        return known and same and quantized(precision) and has_levels(precision) and not _unchanged(slot, line)

    def _why_not(self, line: Assignment) -> str:
        if any(stack_of(line.role)[0] in names for names in self.calibration.experts.values()):
            return "of experts"
        if not any(line.role in names for names in self.calibration.inputs.values()):
            return "not calibrated"
        return "stored in another shape" if has_levels(line.precision) else f"in {line.precision}, which has no levels"

    def _matrix(self, slot: Slot, line: Assignment) -> Matrix:
        order = row_order(slot.tensor.float32(), self.model.tensors[line.role].float32())
        return Matrix(self._encoder(slot, line.precision), order)

    def _encoder(self, slot: Slot, precision: Precision) -> Callable[[F32, F32 | None], QuantizedTensor]:
        resolved, name = codec(precision, self.backend), self.where + slot.name

        def encode(rows: F32, importance: F32 | None) -> QuantizedTensor:
            filled = None if importance is None else fill_importance({name: importance}).importance.get(name)
            given = as_source(rows, slot) if resolved.reference.traits.source_dtypes else rows
            parts = resolved.encode_checked(given, filled, name)
            return QuantizedTensor(parts, precision, slot.shape, slot.name, resolved.backend)

        return encode

    def _others(self, chosen: Mapping[str, Any]) -> dict[str, EncodedTensor]:
        """What is quantized without feedback, as the quantized model computes with it."""
        importance = self.calibration.importance()
        others: dict[str, EncodedTensor] = {}
        for slot, line in self.pairs:
            tensor = self.model.tensors.get(line.role)
            if tensor is None or line.role in chosen or not quantized(line.precision) or _unchanged(slot, line):
                continue
            if tensor.shape != slot.shape or len(slot.shape) != 2:
                continue
            encoded = self._encoder(slot, line.precision)(tensor.float32(), importance.get(line.role))
            others[line.role] = _in_memory(line.role, encoded)
        return others


def _dtype(name: str) -> np.dtype[Any]:
    """The dtype of that name, numpy's own or of ml_dtypes, whose names numpy knows only once that is imported."""
    try:
        return np.dtype(name)
    except TypeError:
        return ml_dtype(name, f"parts of type {name} need a package")


def _in_memory(name: str, tensor: QuantizedTensor) -> EncodedTensor:
    sliceable = all(part.ndim and len(part) == tensor.rows for part in tensor.parts.values())

    def read_parts(start: int, stop: int) -> Mapping[str, Array]:
        whole = stop - start == tensor.rows
        return tensor.parts if whole else {n: part[start:stop] for n, part in tensor.parts.items()}

    return EncodedTensor(name, tensor.shape, tensor.precision, tensor.nbytes, read_parts, sliceable)


def _unchanged(slot: Slot, line: Assignment) -> bool:
    """Whether the tensor is copied as it is."""
    return isinstance(slot.tensor, EncodedTensor) and slot.tensor.precision == line.precision


def as_source(rows: F32, slot: Slot) -> Array:
    """The rows in the type of the slot's tensor, for encoders whose scales take it."""
    dtype = "float32" if isinstance(slot.tensor, EncodedTensor) else slot.tensor.dtype
    if dtype == "bfloat16":
        return float32_to_bfloat16(rows).view(bfloat16())
    return rows.astype(np.float16) if dtype == "float16" else rows


def row_order(stored: F32, canonical: F32) -> Indices | None:
    """Which row of `canonical` each row of `stored` is; None if they are the same.

    Raises:
        UsageError: they are no permutation of each other.
    """
    if np.array_equal(stored, canonical):
        return None
    keys = (np.ascontiguousarray(x).view(np.dtype((np.void, x.shape[1] * 4))).reshape(-1) for x in (stored, canonical))
    (ours, by_ours), (theirs, by_theirs) = ((key, np.argsort(key, kind="stable")) for key in keys)
    if not np.array_equal(ours[by_ours], theirs[by_theirs]):
        raise UsageError("the target stores other values than the source has; round to nearest")
    order = np.empty(len(stored), np.intp)
    order[by_ours] = by_theirs
    return order


def fastest() -> Kernels:
    """The fastest installed kernels; all have the same bits."""
    offered = sorted(manager().all("kernels"), key=lambda r: r.options.get("speed", 1))
    known = {field.name for field in attrs.fields(Kernels)}
    return attrs.evolve(NUMPY, **{r.name: r.load() for r in offered if r.name in known})


__all__ = ["Rounder", "as_source", "fastest", "row_order"]
