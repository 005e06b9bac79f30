"""ggml's own C as the oracle: libggml-base of the llama-cpp-python wheel, through ctypes.

It needs no model, no backend and no initialization. `IQ2_XXS`, `IQ2_XS` and `IQ1_S` abort the process without an
importance matrix, and all grid types (`ggml.GRIDS`) abort on huge values.
"""

import ctypes
import importlib.util
from importlib.metadata import version
from pathlib import Path

import gguf
import numpy as np

from edgekit.reference import ggml

#: The version that the claims hold for, and ggml's number of each type.
PROVED = "0.3.36"
# Q2_0 is newer than the gguf package; its number is ggml.h's.
IDS = {kind.name: kind.value for kind in gguf.GGMLQuantizationType if kind.name in ggml.TYPES | ggml.GRIDS} | {
    "Q2_0": 42
}


class _Traits(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_char_p),
        ("block", ctypes.c_int64),
        ("interleave", ctypes.c_int64),
        ("bytes", ctypes.c_size_t),
        ("quantized", ctypes.c_bool),
        ("to_float", ctypes.c_void_p),
        ("from_float", ctypes.c_void_p),
    )


def _library():
    folder = Path(importlib.util.find_spec("llama_cpp").origin).parent / "lib"
    library = ctypes.CDLL(str(folder / "libggml-base.so"))
    integer, pointer = ctypes.c_int64, ctypes.c_void_p
    library.ggml_quantize_chunk.argtypes = [ctypes.c_int, pointer, pointer, integer, integer, integer, pointer]
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    library.ggml_get_type_traits.argtypes = [ctypes.c_int]
    library.ggml_get_type_traits.restype = ctypes.POINTER(_Traits)
    return library


_LIBRARY = _library()


def installed_version():
    return version("llama-cpp-python")


def traits(kind):
    """Elements and bytes of a block."""
    found = _LIBRARY.ggml_get_type_traits(IDS[kind]).contents
    assert found.name.decode().upper() == kind
    return found.block, found.bytes


def encode(kind, x, importance=None):
    """Rows float32 [rows, cols] as ggml's bytes [rows, bytes]."""
    x = np.ascontiguousarray(x, np.float32)
    block, size = traits(kind)
    out = np.zeros((x.shape[0], x.shape[1] // block * size), np.uint8)
    weights = None if importance is None else np.ascontiguousarray(importance, np.float32)
    written = _LIBRARY.ggml_quantize_chunk(
        IDS[kind], x.ctypes.data, out.ctypes.data, 0, *x.shape, None if weights is None else weights.ctypes.data
    )
    assert written == out.size
    return out


def decode(kind, blocks):
    """Bytes [rows, bytes] as float32 [rows, cols], by ggml's ``to_float``."""
    blocks = np.ascontiguousarray(blocks)
    block, size = traits(kind)
    out = np.empty((blocks.shape[0], blocks.shape[1] // size * block), np.float32)
    to_float = _LIBRARY.ggml_get_type_traits(IDS[kind]).contents.to_float
    function = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)(to_float)
    function(blocks.ctypes.data, out.ctypes.data, out.size)
    return out
