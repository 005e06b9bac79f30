"""Array types by element, for signatures of the core and of plugins.

`Array` is an array of any dtype; the others name the dtype. Shapes are in docstrings, in brackets: ``[rows, cols]``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

F16 = npt.NDArray[np.float16]
F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
U8 = npt.NDArray[np.uint8]
U16 = npt.NDArray[np.uint16]
U32 = npt.NDArray[np.uint32]
U64 = npt.NDArray[np.uint64]
I8 = npt.NDArray[np.int8]
I16 = npt.NDArray[np.int16]
I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]
Ints = npt.NDArray[np.integer]
Bools = npt.NDArray[np.bool_]
Indices = npt.NDArray[np.intp]
Array = npt.NDArray[Any]

__all__ = [
    "F16",
    "F32",
    "F64",
    "I8",
    "I16",
    "I32",
    "I64",
    "U8",
    "U16",
    "U32",
    "U64",
    "Array",
    "Bools",
    "Indices",
    "Ints",
]
