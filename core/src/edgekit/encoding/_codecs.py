"""`encode`, `decode` and `Codec`: validate, choose a backend, encode, check the result."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol, runtime_checkable

import attrs
import numpy as np
import numpy.typing as npt

from edgekit.encoding._refusals import refuse_nonfinite, refuse_overflow
from edgekit.errors import MemoryShortageError, MissingPluginError, PluginError, ShapeError, UsageError
from edgekit.numerics.smallfloats import bfloat16_to_float32, is_bfloat16
from edgekit.plugin._registry import KNOWN_DISTRIBUTIONS, Registration, manager, skipped
from edgekit.precision import Precision, find_precision, fits
from edgekit.reference import Parts, Reference, Traits, reference
from edgekit.tensor import QuantizedTensor
from edgekit.typing import F32, Array

REFERENCE = "reference"
#: Elements that are copied and encoded at a time where a copy is needed: 16 MiB of float32.
_CHUNK = 1 << 22
_ROLES: dict[type, tuple[bool, bool]] = {}


class Quantizer(Protocol):
    """A backend's encoder of one precision. It may be a `Decoder` and a `CheckedEncoder`, too."""

    @property
    def traits(self) -> Traits:
        """The input types that it accepts beside float32, and what it requires."""
        ...

    def encode(self, x: Array, importance: F32 | None = None) -> Mapping[str, Array]:
        """Encode rows [rows, cols], float32 and C-contiguous, to the precision's parts; as `Reference.encode`."""
        ...


@runtime_checkable
class Decoder(Protocol):
    """A quantizer that also decodes; `edgekit.decode` uses it."""

    def decode(self, parts: Mapping[str, Array], shape: tuple[int, int]) -> F32:
        """Decode to float32 [rows, cols]; as `Reference.decode`."""
        ...


@runtime_checkable
class CheckedEncoder(Protocol):
    """A quantizer that detects unsupported values while it encodes, which saves passes over the rows."""

    def encode_checked(self, x: Array, importance: F32 | None = None) -> Mapping[str, Array] | None:
        """Return the parts if x is finite, no magnitude exceeds 65504 and no scale is infinite; else None."""
        ...


@attrs.frozen
class Codec:
    """The encoder and decoder of a precision, resolved by `codec` once a tensor and called for each chunk of rows.

    It is pickled by its names, so that the worker processes of an executor resolve it themselves.

    Attributes:
        precision: the number format.
        backend: ``"reference"``, or the name of the plugin whose quantizer encodes.
        reference: checks results, and encodes or decodes where the quantizer does not.
        quantizer: the backend's; None for the reference.
        decoder, checker: the quantizer, if it implements `Decoder` or `CheckedEncoder`; else None.
    """

    precision: Precision
    backend: str
    reference: Reference
    quantizer: Quantizer | None = None
    decoder: Decoder | None = None
    checker: CheckedEncoder | None = None

    @property
    def narrow(self) -> bool:
        """Whether float16 and bfloat16 rows are passed to the encoder without widening.

        A reference that widens receives them only if all rows are passed at once: the check for non-finite values and
        the encoder both need float32, and share one copy.
        """
        if self.reference.traits.source_dtypes:
            return True
        if self.quantizer:
            return self.quantizer.traits.widens
        return not self.precision.rowwise and self.reference.traits.widens

    def encode(self, x: Array, importance: F32 | None = None) -> Parts:
        """Encode validated rows [rows, cols]."""
        if self.quantizer is None:
            return self.reference.encode(x, self.precision, importance)
        return dict(self.quantizer.encode(x, importance))

    def encode_checked(self, x: Array, importance: F32 | None = None, name: str = "array", first_row: int = 0) -> Parts:
        """Encode as `encode` does, and refuse non-finite values and overflow; `name` and `first_row` are for messages.

        Raises:
            NonFiniteError, ScaleOverflowError: as `refuse_nonfinite` and `refuse_overflow`.
        """
        checked = self.checker.encode_checked(x, importance) if self.checker else None
        if checked is not None:
            return dict(checked)
        refuse_nonfinite(x, name, first_row)
        parts = self.encode(x, importance)
        refuse_overflow(x, parts, self.precision, name)
        return parts

    def decode(self, parts: Mapping[str, Array], shape: tuple[int, int]) -> F32:
        """Decode to float32 [rows, cols]: by the quantizer where it can, else by the reference."""
        if self.decoder:
            return self.decoder.decode(parts, shape)
        with np.errstate(over="ignore", invalid="ignore"):  # the NaN of a damaged scale is refused later
            return self.reference.decode(parts, self.precision, shape)

    def __reduce__(self) -> tuple[Callable[[str, str], Codec], tuple[str, str]]:
        return _restored, (self.precision.name, self.backend)


def codec(precision: str | Precision, backend: str | None = None) -> Codec:
    """Return the codec of a precision.

    Args:
        precision: a `Precision` or its name.
        backend: ``"reference"``, or the name of an installed plugin; None takes the fastest exact one that loads here.

    Raises:
        UnknownPrecisionError: no such precision.
        MissingPluginError: the named backend is not installed, or does not encode this precision.
    """
    known = find_precision(precision)
    chosen = choose(known, backend)
    if chosen is None:
        return Codec(known, REFERENCE, reference(known))
    loaded: Any = chosen.load()
    decodes, checks = _roles(type(loaded))
    return Codec(
        known,
        chosen.plugin,
        reference(known),
        quantizer=loaded,
        decoder=loaded if decodes else None,
        checker=loaded if checks else None,
    )


def _roles(kind: type) -> tuple[bool, bool]:
    """Return whether a quantizer's class is a `Decoder`, and whether it is a `CheckedEncoder`.

    Python compares a class with a protocol method by method each time, for as long as 16,000 values take to decode.
    """
    if kind not in _ROLES:
        _ROLES[kind] = issubclass(kind, Decoder), issubclass(kind, CheckedEncoder)
    return _ROLES[kind]


def _restored(precision: str, backend: str) -> Codec:
    return codec(precision, backend)


def encode(
    array: npt.ArrayLike,
    precision: str | Precision,
    *,
    importance: npt.ArrayLike | None = None,
    backend: str | None = None,
    strict: bool = True,
) -> QuantizedTensor:
    """Quantize an array.

    Args:
        array: [..., cols], floating point, any strides and byte order; a vector is one row. Leading dimensions
            are rows: the array is [out, in] for every convention. float64 is rounded to float32 first;
            float16 and bfloat16 (ml_dtypes) are widened, except for conventions whose arithmetic depends on
            the source's type (MLX, ONNX Runtime).
            Conversions and copies are made in pieces of 16 MiB; if the precision's rows depend on each other (not
            `Precision.rowwise`), float64 and strided arrays are copied as a whole.
        precision: a `Precision` or its name, for example ``"ggml:Q4_K"`` or ``"affine:int3-asym-g32"``.
        importance: [cols], non-negative: mean squared activation of each input column, for precisions that
            use one (ggml); others ignore it.
        backend: ``"reference"``, or the name of an installed plugin; None takes the fastest exact one.
        strict: False also encodes infinities, and values beyond the range of the scales, to the framework's bytes,
            although they decode to infinities, NaN or zeros; the reference encodes unless a backend is named. NaN is
            always refused. Each convention's page says what its framework does there.

    Returns:
        The parts under the framework's own names, in its own dtypes and shapes.

    Raises:
        UnknownPrecisionError: no such precision.
        ShapeError: 0-d, empty, or rows that the precision's blocks do not divide.
        NonFiniteError: a NaN or an infinity; the message states its index.
        ScaleOverflowError: a scale that its stored type cannot represent, or that overflows in the search.
        MissingPluginError: no such backend.
        UsageError: not floating point, or an importance of the wrong shape or with invalid values.
    """
    resolved = codec(precision, backend if strict else backend or REFERENCE)
    x = _validated(array, resolved.precision)
    weights = _importance(importance, x.shape[-1])
    whole = Parts()
    for rows, first in _in_memory(x, resolved):
        if strict:
            parts = resolved.encode_checked(rows, weights, first_row=first)
        else:
            refuse_nonfinite(rows, first_row=first, infinities=True)
            with np.errstate(all="ignore"):
                parts = resolved.encode(rows, weights)
        whole = put_rows(whole, parts, first, len(rows), x.size // x.shape[-1])
    return QuantizedTensor(whole, resolved.precision, x.shape, backend=resolved.backend)


def decode(tensor: QuantizedTensor, *, backend: str | None = None) -> F32:
    """Decode to float32 in the tensor's shape; the same values as ``tensor.dequantize()``, the reference's.

    Args:
        tensor: what to decode.
        backend: ``"reference"``, or the name of an installed plugin; None takes the fastest exact encoder that
            also decodes.

    Raises:
        MissingPluginError: no such backend.
    """
    resolved = codec(tensor.precision, backend)
    return resolved.decode(tensor.parts, (tensor.rows, tensor.shape[-1])).reshape(tensor.shape)


def choose(precision: Precision, backend: str | None) -> Registration | None:
    """Return the fastest exact quantizer that loads, or the one of the named backend; None for the reference.

    Raises:
        MissingPluginError: the named backend is not installed, or does not encode this precision.
    """
    if backend == REFERENCE:
        return None
    names = (precision.name, precision.name.partition(":")[2])
    quantizers = [r for r in manager().all("quantizers") if r.name in names]
    if backend is None:
        exact = [r for r in quantizers if r.options.get("claim") == "exact" and r.options.get("speed", 1) >= 1]
        exact.sort(key=lambda r: r.options.get("speed", 1), reverse=True)
        return next(filter(_usable, exact), None)
    named = [r for r in quantizers if r.plugin == backend]
    if not named:
        backends = ", ".join([REFERENCE, *(r.plugin for r in quantizers)])
        known = KNOWN_DISTRIBUTIONS.get(backend)
        installed = backend in {p.name for p in manager().plugins}
        cure = f"pip install {known}" if known and not installed else "choose one of these"
        raise MissingPluginError(f"no backend {backend!r} encodes {precision.name} (available: {backends}); {cure}")
    return named[0]


def _usable(registration: Registration) -> bool:
    """Whether it loads; if not, that is reported once, and the next fastest encodes to the same bytes."""
    try:
        registration.load()
    except (PluginError, MemoryShortageError) as error:
        skipped(registration, error)
        return False
    return True


def put_rows(whole: Parts, parts: Parts, first: int, count: int, rows: int) -> Parts:
    """The parts of all `rows`, those of `count` rows from `first` on put in their place; `whole` is for the first {}.

    The first dimension of every part is the rows, unless the part is 0-d.
    """
    if count == rows:
        return parts
    if not first:
        whole = {name: np.empty((rows, *p.shape[1:]), p.dtype) if p.ndim else p for name, p in parts.items()}
    for name, part in parts.items():
        if part.ndim:
            whole[name][first : first + count] = part
    return whole


def _validated(array: npt.ArrayLike, precision: Precision) -> Array:
    """Return the array if it can be encoded; else raise."""
    x = np.asarray(array)
    if x.ndim == 0 or x.size == 0:
        kind = "a 0-d" if x.ndim == 0 else "an empty"
        raise ShapeError(f"cannot quantize {kind} array (shape {x.shape}); at least one row of one element is needed")
    if x.dtype.kind != "f" and not is_bfloat16(x.dtype):
        raise UsageError(f"cannot quantize {x.dtype}; give floating point values (float32, float16, bfloat16)")
    refuse_shape(x.shape, precision)
    return x


def _in_memory(x: Array, resolved: Codec) -> Iterator[tuple[Array, int]]:
    """The array as C-contiguous rows [rows, cols] of the types that encoders take, and the number of the first row.

    Copies are made piece by piece if rows do not depend on each other, so that no copy has the tensor's size.
    """
    keep = resolved.narrow
    count, cols = x.size // x.shape[-1], x.shape[-1]
    as_it_is = x.flags.c_contiguous and _as_source(x[:0], keep).dtype == x.dtype
    step = max(1, _CHUNK // cols) if resolved.precision.rowwise and not as_it_is else count
    for first in range(0, count, step):
        part = x if step >= count else _some_rows(x, first, min(first + step, count))
        yield np.ascontiguousarray(_as_source(part, keep).reshape(-1, cols)), first


def _some_rows(x: Array, start: int, stop: int) -> Array:
    """Return rows of an array of any dimensions and strides; `reshape` might copy the whole array."""
    if x.ndim == 2:
        return x[start:stop]
    return x[np.unravel_index(np.arange(start, stop), x.shape[:-1])]


def refuse_shape(shape: tuple[int, ...], precision: Precision) -> None:
    """Raise if the row length is not a multiple of the precision's block.

    Raises:
        ShapeError: names the block and the row.
    """
    if not fits(precision, shape):
        raise ShapeError(
            f"{precision.name} requires rows that are a multiple of {precision.block}, these have {shape[-1]}; "
            "choose a precision with a smaller block, or pad the rows"
        )


def _as_source(x: Array, keep: bool) -> Array:
    """Return the array in native byte order, as float32; float16 and bfloat16 are preserved if `keep`."""
    native = x.dtype.newbyteorder("=")
    if x.dtype == np.float32 or (keep and (native == np.float16 or is_bfloat16(x.dtype))):
        return x.astype(native, copy=False)
    if is_bfloat16(x.dtype):
        return bfloat16_to_float32(np.ascontiguousarray(x).view(np.uint16))
    with np.errstate(over="ignore"):  # a float64 beyond float32 becomes infinite and is refused later
        return x.astype(np.float32)


def _importance(importance: npt.ArrayLike | None, cols: int) -> F32 | None:
    if importance is None:
        return None
    weights = np.ascontiguousarray(importance, np.float32)
    if weights.shape != (cols,):
        raise UsageError(f"importance has shape {weights.shape}; one value for each of the {cols} columns is needed")
    if not (np.isfinite(weights).all() and (weights >= 0).all()):
        raise UsageError("importance has negative or non-finite values; mean squared activations have none")
    return weights


__all__ = [
    "REFERENCE",
    "CheckedEncoder",
    "Codec",
    "Decoder",
    "Quantizer",
    "choose",
    "codec",
    "decode",
    "encode",
    "put_rows",
    "refuse_shape",
]
