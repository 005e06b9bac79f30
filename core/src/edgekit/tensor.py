"""Tensors that are read on demand, and quantized tensors."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import attrs
import numpy as np

from edgekit.errors import UsageError
from edgekit.files import _html
from edgekit.numerics import smallfloats
from edgekit.precision import Precision, find_precision
from edgekit.precision import _packed as packed
from edgekit.typing import F32, Array

#: Bytes of one element, by the dtype's numpy or ml_dtypes name.
DTYPES: dict[str, int] = {
    "float64": 8,
    "float32": 4,
    "float16": 2,
    "bfloat16": 2,
    "float8_e4m3fn": 1,
    "float8_e5m2": 1,
    "float8_e8m0fnu": 1,
    "int64": 8,
    "int32": 4,
    "int16": 2,
    "int8": 1,
    "uint64": 8,
    "uint32": 4,
    "uint16": 2,
    "uint8": 1,
    "bool": 1,
}
#: The numpy dtype that carries the bits of a dtype that numpy lacks.
_CARRIERS: dict[str, np.dtype[Any]] = {
    "bfloat16": np.dtype(np.uint16),
    "float8_e4m3fn": np.dtype(np.uint8),
    "float8_e5m2": np.dtype(np.uint8),
    "float8_e8m0fnu": np.dtype(np.uint8),
}


def carrier(dtype: str) -> np.dtype[Any]:
    """Return the numpy dtype that represents values of `dtype`: itself, or an unsigned integer of its width."""
    dtype_of_parts = _CARRIERS.get(dtype)
    return np.dtype(dtype) if dtype_of_parts is None else dtype_of_parts


@attrs.frozen(eq=False)
class Tensor:
    """A tensor in a file: its name and shape are known, its values are read on demand.

    Attributes:
        name: its name in the artifact.
        shape: outermost dimension first, as in numpy.
        dtype: numpy's or ml_dtypes' name of the element type (``float32``, ``bfloat16``, ``float8_e4m3fn``).
        read_rows: ``read_rows(start, stop)`` gives [rows, cols] in `carrier(dtype)`, all leading dimensions
            counted together as rows. It may be read-only.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    read_rows: Callable[[int, int], Array] = attrs.field(repr=False)

    @classmethod
    def of(cls, name: str, array: Array, dtype: str | None = None) -> Tensor:
        """Return a tensor of an array in memory; `dtype` names the type if the array only carries its bits."""
        matrix = array.reshape(-1, array.shape[-1] if array.ndim else 1)

        def read_rows(start: int, stop: int) -> Array:
            return matrix[start:stop]

        return cls(name, array.shape, dtype or array.dtype.name, read_rows)

    @property
    def rows(self) -> int:
        """Number of rows: the product of all dimensions but the last; 1 for a vector or a scalar."""
        return math.prod(self.shape[:-1])

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return self.size * DTYPES[self.dtype]

    def read(self) -> Array:
        """Read all values, in `carrier(dtype)`."""
        return self.read_rows(0, self.rows).reshape(self.shape)

    def float32(self, start: int = 0, stop: int | None = None) -> F32:
        """Return rows ``start:stop`` widened to float32 [rows, cols]; float64 is rounded to nearest.

        Raises:
            UsageError: the tensor holds integers.
        """
        return widen(self.read_rows(start, self.rows if stop is None else stop), self.dtype, self.name)


def widen(values: Array, dtype: str, name: str = "tensor") -> F32:
    """Return values in their carrier as float32; `name` is for the error's message."""
    match dtype:
        case "float16":
            return smallfloats.float16_to_float32(values)
        case "float32" | "float64":
            return values.astype(np.float32)
        case "bfloat16":
            return smallfloats.bfloat16_to_float32(values.view(np.uint16))
        case "float8_e4m3fn":
            return smallfloats.float8_e4m3fn_to_float32(values.view(np.uint8))
        case "float8_e8m0fnu":
            return smallfloats.float8_e8m0fnu_to_float32(values.view(np.uint8))
        case "float8_e5m2":  # the upper byte of a float16
            return (values.view(np.uint8).astype(np.uint16) << np.uint16(8)).view(np.float16).astype(np.float32)
    raise UsageError(f"{name} holds {dtype}; only floating point tensors have values to quantize or compute with")


@attrs.frozen(eq=False)
class EncodedTensor:
    """A quantized tensor in a file: like `Tensor`, but it reads the parts of a number format.

    Attributes:
        name: its name in the artifact.
        shape: shape of the decoded tensor, outermost dimension first; the last dimension is a row.
        precision: the number format.
        nbytes: bytes in the file.
        read_parts: ``read_parts(start, stop)`` gives the parts of those rows (all leading dimensions counted
            together). They may be read-only.
        sliceable: False where rows share bytes; then `read_parts` is only asked for all of them, or for `together`.
        together: of a tensor that is not sliceable, the number of rows after which a byte ends: `read_parts` is asked
            for rows from a multiple of it to another one, or to the end. 0 if only for all rows.
        origin: the file's number format, if the codes are converted to `precision` when they are read.
    """

    name: str
    shape: tuple[int, ...]
    precision: Precision
    nbytes: int
    read_parts: Callable[[int, int], Mapping[str, Array]] = attrs.field(repr=False)
    sliceable: bool = True
    origin: Precision | None = attrs.field(default=None, repr=False)
    together: int = 0

    @property
    def rows(self) -> int:
        """Number of encoded rows: the product of all dimensions but the last."""
        return math.prod(self.shape[:-1])

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    def read(self) -> QuantizedTensor:
        """Read the whole tensor, encoded."""
        return QuantizedTensor(self.read_parts(0, self.rows), self.precision, self.shape, self.name, "file")

    def float32(self, start: int = 0, stop: int | None = None) -> F32:
        """Return rows ``start:stop`` decoded, [rows, cols]; all leading dimensions count as rows."""
        stop = self.rows if stop is None else stop
        step = 1 if self.sliceable else self.together or max(1, self.rows)
        first, last = start // step * step, min(-(-stop // step) * step, self.rows)
        shape = (last - first, self.shape[-1])
        rows = QuantizedTensor(self.read_parts(first, last), self.precision, shape, self.name).dequantize()
        return rows[start - first : stop - first]

    def decoded(self) -> Tensor:
        """The tensor as float32, decoded as it is read."""
        return Tensor(self.name, self.shape, "float32", self.float32)


#: A tensor of an artifact.
AnyTensor = Tensor | EncodedTensor
_FLOATS = {"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16"}


def precision_name(tensor: AnyTensor) -> str:
    """Return the name of the number format, or of the float type (``F16``)."""
    return tensor.precision.name if isinstance(tensor, EncodedTensor) else _FLOATS.get(tensor.dtype, tensor.dtype)


@attrs.frozen(eq=False, repr=False)
class QuantizedTensor:
    """A tensor in a number format: the parts as the format's framework stores them.

    Attributes:
        parts: the framework's own part names to arrays (ggml: ``blocks``, uint8 [rows, bytes per row]).
        precision: the number format.
        shape: shape of the tensor that was encoded; its last dimension is a row.
        name: of the tensor; may be empty.
        backend: that encoded it: ``reference``, or the name of a plugin.
    """

    parts: Mapping[str, Array]
    precision: Precision
    shape: tuple[int, ...]
    name: str = ""
    backend: str = "reference"

    def __repr__(self) -> str:
        size = f"{_html.shape(self.shape)}, {self.bits_per_weight:.3f} bits a weight"
        return f"QuantizedTensor({self.name!r}, {self.precision.name}, {size}, by {self.backend})"

    def _repr_html_(self) -> str:
        rows = ((name, _html.shape(part.shape), part.dtype, f"{part.nbytes:,}") for name, part in self.parts.items())
        title = f"{self.name or 'tensor'}: {_html.shape(self.shape)} in {self.precision.name}"
        notes = [f"{self.bits_per_weight:.3f} bits a weight, encoded by {self.backend}"]
        return _html.table(title, ("part", "shape", "dtype", "bytes"), rows, notes)

    @property
    def rows(self) -> int:
        """Number of encoded rows: the product of all dimensions but the last."""
        return math.prod(self.shape[:-1])

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of all parts."""
        return sum(part.nbytes for part in self.parts.values())

    @property
    def bits_per_weight(self) -> float:
        """Bits per weight of the stored parts, scales and zero points included."""
        return 8 * self.nbytes / self.size

    def dequantize(self) -> F32:
        """Decode to float32 in the tensor's shape, with the framework's own order of operations."""
        from edgekit.reference import reference

        # A file's scales may be NaN or infinite. The values show that; numpy's warning would say it again.
        with np.errstate(over="ignore", invalid="ignore"):
            values = reference(self.precision).decode(self.parts, self.precision, (self.rows, self.shape[-1]))
        return values.reshape(self.shape)


def holds_floats(tensor: AnyTensor) -> bool:
    """Return whether the tensor has values that can be quantized."""
    return isinstance(tensor, EncodedTensor) or "float" in tensor.dtype


def kept(tensor: AnyTensor) -> Precision:
    """Return the precision of a tensor that is not quantized: its own; F32 for other floats and read-only formats."""
    if isinstance(tensor, EncodedTensor):
        return find_precision("float:F32") if only_read(tensor.precision) else tensor.precision
    return find_precision({"float16": "float:F16", "bfloat16": "float:BF16"}.get(tensor.dtype, "float:F32"))


def only_read(precision: Precision) -> bool:
    """Whether a precision is one that no format writes: what other tools pack and edgekit decodes."""
    return precision.convention == packed.CONVENTION


__all__ = [
    "DTYPES",
    "AnyTensor",
    "EncodedTensor",
    "QuantizedTensor",
    "Tensor",
    "carrier",
    "holds_floats",
    "kept",
    "only_read",
    "precision_name",
    "widen",
]
