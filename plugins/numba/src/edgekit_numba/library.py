"""All kernels by name; each is compiled, or read from the cache, when it is first asked for."""

from __future__ import annotations

import ctypes
import importlib
import threading
from collections.abc import Callable
from typing import Any

from edgekit_numba.compiler import Kernel, compiled

#: What kernels say of a block: it is left to the reference, or it holds magnitudes above 65504, or such a scale.
ODD, HUGE = 1, 2

_POINTER, _INTEGER = ctypes.c_void_p, ctypes.c_int64
_PLAIN = (_POINTER, _POINTER, _POINTER, _INTEGER)
_WEIGHTED = (*_PLAIN, _POINTER, _POINTER, _INTEGER, _INTEGER)
_TABLES = (_POINTER, _POINTER, _POINTER)
_DECODE = (_POINTER, _POINTER, _INTEGER)
_GROUPED = (*[_POINTER] * 5, _INTEGER, _INTEGER)
_POWER = (_POINTER, _POINTER, _INTEGER, _INTEGER)
_WIDEN = (_POINTER, _POINTER, _INTEGER)
_PRODUCT = (*(_POINTER, _INTEGER) * 3, _POINTER, _INTEGER, _INTEGER, _INTEGER)

_PLACES = (_POINTER, _POINTER, _INTEGER, *(_POINTER, _INTEGER) * 3)
_FEED = (_INTEGER, _INTEGER, *(_POINTER,) * 3, *(_POINTER, _INTEGER) * 4, *_PLACES)

_KERNELS: dict[str, Kernel] = {}
_LOCK = threading.Lock()

#: The module that writes each kernel; with importance matrices they are other kernels.
_LEGACY = ("Q4_0", "Q4_1", "Q5_0", "Q5_1")
_UNEVEN = ("IQ4_NL", "IQ4_XS")
_TERNARY = ("TQ1_0", "TQ2_0")
_GRIDS = ("IQ3_S", "IQ3_XXS", "IQ2_S")
_GRIDS_WEIGHTED = (*_GRIDS, "IQ2_XS", "IQ2_XXS")  # the last two are not encoded without an importance matrix
_SHIFTED = ("IQ1_M", "IQ1_M_weighted", "IQ1_S_weighted")  # IQ1_S is not encoded without either
_SUPER = ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K")
MODULES = {
    **dict.fromkeys(("Q8_0", "MXFP4", *_LEGACY), "elementwise"),
    **{f"{kind}_weighted": "legacy" for kind in _LEGACY},
    **{name: "superblocks" for kind in _SUPER for name in (kind, f"{kind}_weighted")},
    **{name: "uneven" for kind in _UNEVEN for name in (kind, f"{kind}_weighted")},
    **dict.fromkeys(_TERNARY, "uneven"),
    **dict.fromkeys((*_GRIDS, *(f"{kind}_weighted" for kind in _GRIDS_WEIGHTED)), "grids"),
    **dict.fromkeys(_SHIFTED, "ternary"),
    **{f"{kind}_decode": "decoders" for kind in ("Q8_0", "MXFP4", *_LEGACY, *_SUPER, *_UNEVEN, *_TERNARY)},
    **{f"mlx_int{bits}": "grouped" for bits in (1, 2, 3, 4, 5, 6, 8)},
    **{f"openvino_int{kind}": "grouped" for kind in ("2_sym", "4_sym", "8_sym", "4_asym", "8_asym")},
    **{f"onnx_int{bits}_{kind}": "grouped" for bits in (2, 4, 8) for kind in ("sym", "asym")},
    "row_power": "kernels",
    **dict.fromkeys(("widen_float16", "widen_bfloat16"), "widening"),
    **dict.fromkeys(("product_float32", "product_float64"), "products"),
    "product_int16": "integers",
    **dict.fromkeys(("exponential", "weigh"), "exponentials"),
    **dict.fromkeys(("feed", "descend", "feed_table", "descend_table", "substitute"), "steps"),
    **dict.fromkeys(("largest_rows", "largest_columns", "narrow_rows", "narrow_columns"), "narrowing"),
    **dict.fromkeys(("cut_columns", "totals", "scale_both"), "narrowing"),
}


def kernel(name: str) -> Kernel:
    """The kernel of that name, ready to be called from any thread."""
    loaded = _KERNELS.get(name)
    if loaded is None:
        with _LOCK:  # two threads that come first must not both compile it
            loaded = _KERNELS.get(name) or compiled(name, emitter(name), _arguments(name))
            _KERNELS[name] = loaded
    return loaded


def emitter(name: str) -> Callable[[int], str]:
    """What writes the kernel's LLVM module, for so many lanes."""

    def emit(lanes: int) -> str:
        module: Any = importlib.import_module(f"edgekit_numba.{MODULES[name]}")  # only where it is compiled
        text: str = next(e for e in module.emitters() if e.name == name)(lanes)
        return text

    return emit


def _arguments(name: str) -> tuple[Any, ...]:
    if name == "row_power":
        return _POWER
    if name == "exponential":
        return (_POINTER, _INTEGER)
    if name == "weigh":
        return (_POINTER, _INTEGER, _POINTER, _INTEGER, _INTEGER)
    if name == "substitute":
        return (_INTEGER, _INTEGER, _POINTER, _POINTER, _INTEGER)
    if MODULES[name] == "steps":
        return _FEED if name.startswith("feed") else (*_FEED, _POINTER)
    if MODULES[name] == "narrowing":
        between = {
            "largest": (),
            "narrow": (_POINTER, _INTEGER),
            "cut": (_POINTER, _POINTER, _INTEGER),
            "totals": (_INTEGER, _POINTER),
            "scale": (_POINTER,),
        }[name.partition("_")[0]]
        return (_POINTER, _INTEGER, _POINTER, *between, _INTEGER, _INTEGER)
    if MODULES[name] == "widening":
        return _WIDEN
    if MODULES[name] == "products":
        return (*_PRODUCT, _INTEGER)
    if MODULES[name] == "integers":
        return _PRODUCT
    if MODULES[name] == "grouped":
        return _GROUPED
    if name.endswith("_decode"):
        return _DECODE
    rows = _WEIGHTED if name.endswith("_weighted") else _PLAIN
    return (*rows, *_TABLES) if MODULES[name] in ("grids", "ternary") else rows


__all__ = ["HUGE", "MODULES", "ODD", "emitter", "kernel"]
