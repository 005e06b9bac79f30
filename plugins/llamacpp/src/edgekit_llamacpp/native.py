"""ggml's own encoders, called in ``libggml-base`` of the installed llama-cpp-python.

``ggml_quantize_chunk`` encodes rows of float32 to a type's blocks. It needs no model and no initialization; its
only state is the tables of the IQ types (built once, under its own lock). ctypes releases the interpreter's lock during
the call, so that threads encode in parallel.

Input on which the library would abort the process is refused before the call: IQ2_XXS, IQ2_XS and IQ1_S without an
importance matrix, and values for which the searches of the IQ types leave their grids (not finite, or so large that a
sum of squares overflows).

The bytes equal the reference's only if the library was compiled without fused multiply-add (the default on x86-64);
so the first use of a type encodes a few rows with both and refuses a library with other bytes.

Source: ``ggml.h`` and ``ggml-quants.c`` of ggml 0.25.3, llama-cpp-python 0.3.36.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import os
import sys
from pathlib import Path
from typing import Any, NamedTuple

import attrs
import numpy as np

from edgekit.errors import MissingPluginError, NonFiniteError, PluginError, ScaleOverflowError, ShapeError, UsageError
from edgekit.precision import Precision, find_precision, ggml
from edgekit.reference import Traits, reference
from edgekit.typing import F32, U8, Array

#: ggml's number of each type (enum ggml_type).
IDS = {kind: block_type.id for kind, block_type in (ggml.BLOCKS | ggml.GRIDS).items()}
#: Types that abort the process without an importance matrix.
NEED_IMPORTANCE = frozenset({"IQ2_XXS", "IQ2_XS", "IQ1_S"})
#: Types that search a grid, and abort the process if no point is found.
GRIDS = frozenset(ggml.GRIDS)
#: Largest magnitude for those types: the sum of fourth powers over a row is finite in float32.
GRID_LIMIT = 1e8
#: Rows that are encoded with both at the first use of a type.
_PROBE_ROWS = 16
_INSTALL = "pip install llama-cpp-python"


class _Traits(ctypes.Structure):
    """The head of ``struct ggml_type_traits``."""

    _fields_ = (
        ("type_name", ctypes.c_char_p),
        ("blck_size", ctypes.c_int64),
        ("blck_size_interleave", ctypes.c_int64),
        ("type_size", ctypes.c_size_t),
    )


class BlockSize(NamedTuple):
    """Elements and bytes of a block."""

    elements: int
    nbytes: int


@attrs.frozen
class NativeQuantizer:
    """ggml's encoder of one block type; see `edgekit.encoding.Quantizer`.

    Attributes:
        kind: ggml's name of the type.

    Example:
        >>> Q4_K.encode(np.ones((1, 256), np.float32))["blocks"].shape  # doctest: +SKIP
        (1, 144)
    """

    kind: str

    claim = "exact"

    @property
    def precision(self) -> Precision:
        """The number format that it encodes."""
        return find_precision(f"ggml:{self.kind}")

    @property
    def traits(self) -> Traits:
        """Some grid formats refuse rows without an importance matrix."""
        return Traits(needs_importance=self.kind in NEED_IMPORTANCE)

    def encode(self, x: Array, importance: F32 | None = None) -> dict[str, Array]:
        """Encode rows to the bytes that a GGUF file holds.

        Args:
            x: float32 [rows, cols], finite; cols is a multiple of the block.
            importance: mean squared activations [cols], or None.

        Returns:
            ``blocks``, uint8 [rows, bytes per row].

        Raises:
            UsageError: the type needs an importance matrix, and there is none.
            NonFiniteError, ScaleOverflowError: values that would end the process.
            ShapeError: the rows are not a multiple of the block.
            MissingPluginError, PluginError: llama-cpp-python is not installed, or its library's bytes differ.
        """
        _refuse(self.kind, x, importance)
        _probe(self.kind)
        return {"blocks": quantize_chunk(self.kind, x, importance)}


def _refuse(kind: str, x: Array, importance: F32 | None) -> None:
    if kind in NEED_IMPORTANCE and importance is None:
        raise UsageError(
            f"ggml:{kind} cannot be encoded without an importance matrix; make one with `edgekit imatrix` "
            "and pass it on (--imatrix FILE, importance=), or choose ggml:IQ2_S or ggml:Q2_K"
        )
    if kind not in GRIDS:
        return
    largest = max(abs(float(x.max())), abs(float(x.min())))
    if not np.isfinite(largest):
        raise NonFiniteError(f"values that are not finite, which ggml:{kind} cannot encode; mend the weights")
    if largest > GRID_LIMIT:
        raise ScaleOverflowError(
            f"values too large for ggml:{kind}: the largest is {largest:.3g}, at most {GRID_LIMIT:g} is encoded; "
            "rescale the tensor, or choose a precision with a wider scale"
        )


def quantize_chunk(kind: str, x: Array, importance: F32 | None = None) -> U8:
    """Call ``ggml_quantize_chunk``: float32 [rows, cols] to uint8 [rows, bytes per row]; see `NativeQuantizer`."""
    rows = np.ascontiguousarray(x, np.float32)
    block = block_size(kind)
    if rows.ndim != 2 or rows.size == 0 or rows.shape[1] % block.elements:
        raise ShapeError(f"ggml:{kind} needs rows [rows, cols] of a multiple of {block.elements}, got {rows.shape}")
    weights = None if importance is None else np.ascontiguousarray(importance, np.float32)
    if weights is not None and weights.shape != rows.shape[1:]:
        raise UsageError(
            f"importance has shape {weights.shape}; one value for each of {rows.shape[1]} columns is needed"
        )
    # Types with padding do not write it, so it must be zero.
    out = np.zeros((rows.shape[0], rows.shape[1] // block.elements * block.nbytes), np.uint8)
    pointer = None if weights is None else weights.ctypes.data
    written = library().ggml_quantize_chunk(IDS[kind], rows.ctypes.data, out.ctypes.data, 0, *rows.shape, pointer)
    if written != out.nbytes:
        raise PluginError(f"ggml wrote {written} bytes of {kind}, not {out.nbytes}; reinstall llama-cpp-python")
    return out


@functools.cache
def block_size(kind: str) -> BlockSize:
    """The block size of a type, from the library.

    Raises:
        PluginError: the library lacks the type, or its number has another name.
    """
    traits = library().ggml_get_type_traits(IDS[kind]).contents
    if (traits.type_name or b"").decode().upper() != kind:
        raise PluginError(
            f"the installed llama-cpp-python has no type {kind} (its number {IDS[kind]} is {traits.type_name!r}); "
            "install llama-cpp-python 0.3.36 or later"
        )
    return BlockSize(traits.blck_size, traits.type_size)


@functools.cache
def _probe(kind: str) -> None:
    """Encode a few rows with the library and with the reference.

    Raises:
        PluginError: the bytes differ.
    """
    precision = find_precision(f"ggml:{kind}")
    rng = np.random.default_rng(1)
    x = rng.standard_normal((_PROBE_ROWS, 512), np.float32)
    importance = rng.random(512, np.float32)
    for weights in (importance,) if kind in NEED_IMPORTANCE else (None, importance):
        expected = reference(precision).encode(x, precision, weights)["blocks"]
        if not np.array_equal(quantize_chunk(kind, x, weights), expected):
            raise PluginError(
                f"{library_path()} encodes {kind} to other bytes than the reference (it was probably compiled with "
                'fused multiply-add); choose backend="reference", or build llama-cpp-python with -ffp-contract=off'
            )


@functools.cache
def library() -> Any:
    """Return ``libggml-base``, loaded without importing llama_cpp.

    Raises:
        MissingPluginError: llama-cpp-python is not installed, or its library cannot be loaded.
    """
    path = library_path()
    try:
        loaded = ctypes.CDLL(str(path))
        loaded.ggml_quantize_chunk.argtypes = [
            ctypes.c_int,
            *[ctypes.c_void_p] * 2,
            *[ctypes.c_int64] * 3,
            ctypes.c_void_p,
        ]
        loaded.ggml_quantize_chunk.restype = ctypes.c_size_t
        loaded.ggml_get_type_traits.argtypes = [ctypes.c_int]
        loaded.ggml_get_type_traits.restype = ctypes.POINTER(_Traits)
    except (OSError, AttributeError) as error:
        raise MissingPluginError(f"{path} cannot be used: {error}; reinstall llama-cpp-python ({_INSTALL})") from error
    return loaded


def library_path() -> Path:
    """Return the path of the installed ``libggml-base``; ``LLAMA_CPP_LIB_PATH`` overrides it, as for llama_cpp.

    Raises:
        MissingPluginError: it does not exist.
    """
    folder = _library_folder()
    names = {"win32": "ggml-base.dll", "darwin": "libggml-base.dylib"}
    path = folder / names.get(sys.platform, "libggml-base.so")
    if not path.is_file():
        raise MissingPluginError(f"{path} is not there; reinstall llama-cpp-python ({_INSTALL})")
    return path


def _library_folder() -> Path:
    override = os.environ.get("LLAMA_CPP_LIB_PATH")
    if override:
        return Path(override)
    spec = importlib.util.find_spec("llama_cpp")
    if spec is None or spec.origin is None:
        raise MissingPluginError(f"llama-cpp-python is not installed; {_INSTALL}")
    return Path(spec.origin).parent / "lib"


_QUANTIZERS = {kind: NativeQuantizer(kind) for kind in IDS}


def __getattr__(kind: str) -> NativeQuantizer:
    """Return ggml's encoder of a block type, by its name."""
    if kind in _QUANTIZERS:
        return _QUANTIZERS[kind]
    raise AttributeError(f"module {__name__!r} has no attribute {kind!r}; it has {', '.join(_QUANTIZERS)}")


__all__ = [
    "GRIDS",
    "GRID_LIMIT",
    "IDS",
    "NEED_IMPORTANCE",
    "BlockSize",
    "NativeQuantizer",
    "block_size",
    "library",
    "library_path",
    "quantize_chunk",
]
