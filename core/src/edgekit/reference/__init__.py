"""Reference implementations: every number format in plain numpy, bit by bit as the framework stores it.

One convention a module (ggml: one block type a module). A reference module has three functions, which
`Reference` describes; the public `edgekit.encode` and `edgekit.decode` validate their input and call them.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Protocol, cast

from edgekit.errors import UnknownPrecisionError
from edgekit.precision import Precision, implementation
from edgekit.precision import ggml as _ggml
from edgekit.reference._traits import Traits as Traits
from edgekit.typing import F32, F64, Array

Parts = dict[str, Array]

_MODULES = {
    "float": "edgekit.reference.floats",
    "affine": "edgekit.reference.affine",
    "ggml": "edgekit.reference.ggml",
    "mlx": "edgekit.reference.mlx",
    "openvino": "edgekit.reference.openvino",
    "onnx": "edgekit.reference.onnx",
    "olive": "edgekit.reference.olive",
    "packed": "edgekit.reference._packed",
}


class Reference(Protocol):
    """The interface of a reference implementation: a module or an object with these functions and `traits`."""

    @property
    def traits(self) -> Traits:
        """How the encoder is tested, its error bound, and the input types that it accepts."""
        ...

    def encode(self, x: Array, precision: Precision, importance: F32 | None = None) -> Parts:
        """Encode rows.

        Args:
            x: [rows, cols], C-contiguous, at least 1 x 1. float32, except that a module with
                `Traits.source_dtypes` or `Traits.widens` also gets float16 and bfloat16 (ml_dtypes) arrays.
            precision: of this module's convention; cols is a length that it allows.
            importance: [cols], mean squared activation of each input column, or None.

        Returns:
            The parts under the framework's own names and in its own dtypes and shapes.
        """
        ...

    def decode(self, parts: Mapping[str, Array], precision: Precision, shape: tuple[int, int]) -> F32:
        """Decode parts to float32 [rows, cols], with the framework's own order of operations."""
        ...

    def bound(self, x: Array, parts: Mapping[str, Array], precision: Precision) -> F64:
        """Return an upper bound [rows, cols] of ``|x - decode(parts)|`` for each element, where ``parts = encode(x)``.

        It is computed from x and the stored scales, without decoding.
        """
        ...


def reference(precision: Precision) -> Reference:
    """Return the reference implementation of a precision.

    Raises:
        UnknownPrecisionError: none is registered.
    """
    brought = implementation(precision)
    if brought is not None:
        return cast(Reference, brought)
    module = _MODULES.get(precision.convention)
    if module is None:
        raise UnknownPrecisionError(
            f"no reference implementation is registered for precision {precision.name!r}; "
            "install the plugin that brings it"
        )
    found = importlib.import_module(module)
    if precision.convention == _ggml.CONVENTION and precision.kind in _ggml.GRIDS:
        return cast(Reference, found.grid_reference(precision.kind))
    return cast(Reference, found)


__all__ = ["Parts", "Reference", "Traits", "reference"]
