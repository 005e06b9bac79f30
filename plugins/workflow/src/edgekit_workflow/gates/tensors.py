"""The tensors of an artifact against the source's: encoded again in the artifact's precision, and compared.

The artifact's format says what it would store for the source (`edgekit.artifact.Format.layout`): the names, the order
of rows, the values. A tensor of the artifact states its precision; the source's rows in that precision are what the
artifact's rows have to be if they were rounded to nearest. Rounding with error feedback or with an importance gives
other codes: then the error of the rows is compared with that of rounding to nearest, with error feedback in the
artifact's coarsest precision.
"""

from __future__ import annotations

import itertools
import math
import zlib
from collections.abc import Iterable, Iterator, Mapping

import attrs
import numpy as np

import edgekit
from edgekit.artifact import Artifact
from edgekit.errors import EdgekitError
from edgekit.pipeline import find_format
from edgekit.precision import Precision
from edgekit.recipe import Slot, quantized
from edgekit.tensor import AnyTensor, EncodedTensor, QuantizedTensor, Tensor, holds_floats, kept, precision_name
from edgekit.typing import F32, F64, Array
from edgekit_workflow.gates.policy import Derivation

#: Elements that are encoded at a time: 2 MiB of float32.
_CHUNK = 1 << 19
#: Rows that say how coarse a precision is.
_FEW = 16
#: Bounds of rows, the second one excluded.
Ranges = list[tuple[int, int]]
#: The least relative error that counts as one: float32 values that are computed in another order differ by less.
ROUNDING = 1e-5
#: How far from the error of rounding to nearest to 1, which is the error of zeros, that of rounding may lie.
_NEAREST = 0.5
#: The same where error feedback chose the codes: 2 bits from 512 tokens gave rows of the sample model 0.58 of the way.
_FEEDBACK = 0.75


@attrs.frozen
class TensorCheck:
    """A tensor of the artifact against the source's.

    Attributes:
        name: in the artifact.
        role: canonical name; the artifact's if the family is unsupported.
        precision: the artifact's.
        rows: how many rows the tensor has.
        compared: how many of them were compared.
        equal: how many of these have the codes of rounding to nearest.
        different: number of the first row that has other codes; None if all are equal.
        error: of the artifact's values against the source's, sqrt(Σ(v - w)² / Σw²) over the compared rows; infinite
            if the artifact's are not finite.
        nearest: the same of rounding to nearest.
        explained: the error that is measured against: `nearest`; of a matrix that was rounded with error feedback at
            least that of the artifact's coarsest precision, since its target makes up for the errors of others.
        far: number of the first row whose own error is larger than any rounding's in that precision; None without.
        fault: why the two cannot be compared: a tensor that is missing, or has another shape; else empty.
    """

    name: str
    role: str
    precision: str
    rows: int
    compared: int = 0
    equal: int = 0
    different: int | None = None
    error: float = 0.0
    nearest: float = 0.0
    explained: float = 0.0
    far: int | None = None
    fault: str = ""

    @property
    def exact(self) -> bool:
        """Whether every compared row has the codes of rounding to nearest."""
        return not self.fault and self.equal == self.compared

    @property
    def ratio(self) -> float:
        """The error as a multiple of what rounding explains; 1 if it is within float32's rounding."""
        least = max(self.explained, ROUNDING)
        return 1.0 if self.error <= least else self.error / least


def allowed(nearest: F64, ratio: float = math.inf, share: float = _NEAREST) -> F64:
    """Return the largest error that counts as rounding, for the error of rounding to nearest.

    A share of the way to 1, which is the error of zeros; of whole tensors a multiple of the error too. Rounding with
    error feedback gave up to 2.6 times the error of rounding to nearest of tensors of the sample model, and more of
    rows.

    Args:
        nearest: relative errors, sqrt(Σ(v - w)² / Σw²).
        ratio: the multiple.
        share: of the way.
    """
    least = np.maximum(nearest, ROUNDING)
    return np.maximum(np.minimum(ratio * least, least + share * (1 - least)), least)


def check_tensors(artifact: Artifact, source: Artifact, how: Derivation, full: bool = False) -> Iterator[TensorCheck]:
    """Compare every tensor that the artifact's format stores for the source.

    Args:
        artifact: to judge.
        source: of any format.
        how: how many rows of each tensor.
        full: compare all rows.

    Raises:
        UnsupportedModelError: the artifact's format does not store the source's family.
    """
    layout = find_format(artifact.format, artifact.path).layout(source)
    feedback = artifact.manifest is not None and "rounding" in artifact.manifest.notes
    margin = _Margin(_FEEDBACK, _coarsest(layout.slots, artifact)) if feedback else _Margin(_NEAREST)
    for slot in layout.slots:
        tensor = artifact.tensors.get(slot.name)
        if tensor is None:
            yield TensorCheck(slot.name, slot.role, "", slot.tensor.rows, fault="is missing")
        elif tensor.shape != slot.shape:
            shapes = f"has the shape {list(tensor.shape)}, the source's is {list(slot.shape)}"
            yield TensorCheck(slot.name, slot.role, precision_name(tensor), slot.tensor.rows, fault=shapes)
        else:
            yield _compared(slot, tensor, how, full, margin)


@attrs.frozen
class _Margin:
    """How far a row may lie from the source's.

    Attributes:
        share: of the way from the error of rounding to nearest to that of zeros.
        moved: the error of the coarsest precision; quantized matrices may be moved as far. 0 where none is.
    """

    share: float
    moved: float = 0.0


def _coarsest(slots: Iterable[Slot], artifact: Artifact) -> float:
    """Return the largest error of rounding to nearest in any precision of the artifact, from a few rows each.

    The inputs of a matrix in 8 bits are as far from the original's as the matrices before it are coarse, and its target
    makes up for that: V of the sample model in 8 bits moves by 1.3 times the error of 4 bits if the others have 4, and
    by 0.97 times that of 2 if they have 2.
    """
    first: dict[str, tuple[Slot, EncodedTensor]] = {}
    for slot in slots:
        tensor = artifact.tensors.get(slot.name)
        if isinstance(tensor, EncodedTensor) and quantized(tensor.precision) and tensor.shape == slot.shape:
            first.setdefault(tensor.precision.name, (slot, tensor))
    return max((_rounding_error(slot, tensor) for slot, tensor in first.values()), default=0.0)


def _rounding_error(slot: Slot, tensor: EncodedTensor) -> float:
    rows = min(_FEW, slot.tensor.rows) if _by_rows(tensor) else slot.tensor.rows
    try:
        _, nearest, signal = _Piece.of(slot.tensor, tensor, [(0, rows)]).squares.sum(axis=1)
    except EdgekitError:
        return 0.0  # the check of that tensor says what is wrong
    return float(_relative(nearest, signal))


def _compared(slot: Slot, tensor: AnyTensor, how: Derivation, full: bool, margin: _Margin) -> TensorCheck:
    check = TensorCheck(slot.name, slot.role, precision_name(tensor), slot.tensor.rows)
    try:
        pieces = [_Piece.of(slot.tensor, tensor, ranges) for ranges in _batches(slot, tensor, how, full)]
    except EdgekitError as error:
        return attrs.evolve(check, fault=f"cannot be compared: {error}")
    flags = np.concatenate([piece.equal for piece in pieces])
    numbers = np.concatenate([piece.numbers for piece in pieces])
    errors, nearest, signal = np.concatenate([piece.squares for piece in pieces], axis=1)
    moved = margin.moved if isinstance(tensor, EncodedTensor) and quantized(tensor.precision) else 0.0
    too_far = _relative(errors, signal) > allowed(np.maximum(_relative(nearest, signal), moved), share=margin.share)
    of_tensor = float(_relative(nearest.sum(), signal.sum()))
    return attrs.evolve(
        check,
        compared=flags.size,
        equal=int(flags.sum()),
        different=None if flags.all() else int(numbers[~flags][0]),
        error=float(_relative(errors.sum(), signal.sum())),
        nearest=of_tensor,
        explained=max(of_tensor, moved),
        far=int(numbers[too_far][0]) if too_far.any() else None,
    )


def _relative(error: F64, signal: F64) -> F64:
    """sqrt(error / signal); 0 where both are 0, infinite where only zeros were expected and other values came."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(error == 0, 0.0, np.sqrt(np.where(np.isfinite(error), error / signal, np.inf)))


def _batches(slot: Slot, tensor: AnyTensor, how: Derivation, full: bool) -> Iterator[Ranges]:
    """Yield the bounds of the rows to compare, those of about `_CHUNK` elements together."""
    rows = slot.tensor.rows
    step = max(1, _CHUNK * rows // max(1, slot.tensor.size))
    count = max(math.ceil(how.sample * rows), how.least_rows)
    if not _by_rows(tensor):
        yield [(0, rows)]
    elif full or count >= rows:
        yield from ([(start, min(start + step, rows))] for start in range(0, rows, step))
    else:
        chosen = _sampled(slot.name, rows, count)
        yield from (chosen[start : start + step] for start in range(0, count, step))


def _sampled(name: str, rows: int, count: int) -> Ranges:
    """One row at random of each of `count` equal parts: a run of changed rows that is longer is always found."""
    random = np.random.RandomState(zlib.crc32(name.encode("utf-8", "replace")))
    bounds = np.linspace(0, rows, count + 1).astype(np.int64).tolist()
    return [(row := int(random.randint(first, stop)), row + 1) for first, stop in itertools.pairwise(bounds)]


def _by_rows(tensor: AnyTensor) -> bool:
    return not isinstance(tensor, EncodedTensor) or (tensor.sliceable and tensor.precision.rowwise)


@attrs.frozen
class _Piece:
    """Rows of a tensor, compared: their numbers, whether each is equal, and the sums of squares.

    Attributes:
        squares: float64 [3, rows]: of the artifact's errors, of those of rounding to nearest, and of the values.
    """

    numbers: Array
    equal: Array
    squares: F64

    @classmethod
    def of(cls, source: AnyTensor, tensor: AnyTensor, ranges: Ranges) -> _Piece:
        """Compare rows of the artifact's tensor with the source's."""
        numbers = np.concatenate([np.arange(*bounds) for bounds in ranges])
        if not holds_floats(source):
            same = _rows_equal(_rows(source, ranges), _rows(tensor, ranges), len(numbers))
            return cls(numbers, same, np.zeros((3, len(numbers))))
        again = _encoded(source, kept(tensor), ranges)
        nearest, values = again.dequantize().reshape(len(numbers), -1), _floats(source, ranges)
        if isinstance(tensor, EncodedTensor):
            parts = _parts(tensor, ranges)
            equal = _parts_equal(parts, again.parts, len(numbers))
            unchanged = bool(equal.all())
            stored = nearest if unchanged else attrs.evolve(again, parts=parts).dequantize().reshape(nearest.shape)
        else:
            stored = _floats(tensor, ranges)
            equal = _rows_equal(stored, nearest, len(numbers))
        expected = values.astype(np.float64)
        rounding = _squares(nearest - expected)
        error = rounding if stored is nearest else _squares(stored - expected)
        return cls(numbers, equal, np.stack([error, rounding, _squares(expected)]))


def _squares(values: F64) -> F64:
    """Sums of squares of each row; infinite where a value is not finite."""
    with np.errstate(all="ignore"):
        totals = np.einsum("ij,ij->i", values, values)
    return np.where(np.isfinite(totals), totals, np.inf)


def _floats(tensor: AnyTensor, ranges: Ranges) -> F32:
    return np.concatenate([tensor.float32(start, stop) for start, stop in ranges])


def _rows(tensor: AnyTensor, ranges: Ranges) -> Array:
    if isinstance(tensor, EncodedTensor):
        return _floats(tensor, ranges)
    return np.concatenate([tensor.read_rows(start, stop) for start, stop in ranges])


def _parts(tensor: EncodedTensor, ranges: Ranges) -> dict[str, Array]:
    """The parts of those rows; of a tensor whose rows depend on each other all rows are asked for, at once."""
    pieces = [tensor.read_parts(start, stop) for start, stop in ranges]
    if len(pieces) == 1:
        return dict(pieces[0])
    return {
        name: np.concatenate([piece[name] for piece in pieces]) if part.ndim else part
        for name, part in pieces[0].items()
    }


def _encoded(tensor: AnyTensor, precision: Precision, ranges: Ranges) -> QuantizedTensor:
    """Encode the source's rows as a conversion to nearest would; encoded ones of that precision stay as they are."""
    count = sum(stop - start for start, stop in ranges)
    if isinstance(tensor, EncodedTensor):
        if tensor.precision == precision and (tensor.sliceable or count == tensor.rows):
            return QuantizedTensor(_parts(tensor, ranges), precision, (count, tensor.shape[-1]), tensor.name)
        return edgekit.encode(_floats(tensor, ranges), precision)
    return edgekit.encode(_typed(tensor, ranges), precision)


def _typed(tensor: Tensor, ranges: Ranges) -> Array:
    """Rows in the source's type, which the scales of some conventions take; widened where numpy lacks the type."""
    if tensor.dtype == "bfloat16":
        try:
            import ml_dtypes
        except ImportError:
            return _floats(tensor, ranges)
        return _rows(tensor, ranges).view(ml_dtypes.bfloat16)
    return _rows(tensor, ranges) if tensor.dtype in ("float16", "float32") else _floats(tensor, ranges)


def _parts_equal(stored: Mapping[str, Array], again: Mapping[str, Array], rows: int) -> Array:
    equal = np.full(rows, stored.keys() == again.keys())
    for name in stored.keys() & again.keys():
        equal &= _rows_equal(stored[name], again[name], rows)
    return equal


def _rows_equal(one: Array, other: Array, rows: int) -> Array:
    """Return for each row whether its bytes are equal; of parts that are not stored by rows all or none are."""
    one, other = np.ascontiguousarray(one), np.ascontiguousarray(other)
    if one.nbytes != other.nbytes or not one.ndim or one.shape[0] != rows:
        return np.full(rows, one.tobytes() == other.tobytes())
    left, right = (array.view(np.uint8).reshape(rows, -1) for array in (one.reshape(-1), other.reshape(-1)))
    return np.asarray((left == right).all(axis=1))


__all__ = ["ROUNDING", "TensorCheck", "allowed", "check_tensors"]
