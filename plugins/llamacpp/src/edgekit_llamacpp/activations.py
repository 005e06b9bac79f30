"""Measures the inputs of each weight matrix through llama.cpp's evaluation callback.

llama.cpp asks the callback about every node of its graph before computing it, and passes it the requested nodes
afterwards. For a matrix product the first source is the weight, by its name in the file, and the second its input. The
API has no function for a node's sources, so the head of ``struct ggml_tensor`` is read here; its layout is verified on
the first node against the library's functions.

Products with matrices of experts (``GGML_OP_MUL_MAT_ID``) are not measured.

Source: ``ggml.h`` (struct ggml_tensor) of ggml 0.25.3; ``tools/imatrix/imatrix.cpp`` of llama.cpp does the same in C++.
"""

from __future__ import annotations

import ctypes
import functools
import math
from typing import Any

import attrs
import numpy as np

from edgekit.errors import PluginError, ResourceError
from edgekit.pipeline import Progress
from edgekit.typing import F32, F64, Ints
from edgekit_llamacpp import native
from edgekit_llamacpp.library import llama, quiet
from edgekit_llamacpp.model import Loaded, batch_of

_FLOAT32 = 0  # GGML_TYPE_F32
_OUTPUTS = (b"output.weight", b"token_embd.weight")


class _Node(ctypes.Structure):
    """``struct ggml_tensor``."""


_Node._fields_ = (
    ("type", ctypes.c_int),
    ("buffer", ctypes.c_void_p),
    ("ne", ctypes.c_int64 * 4),
    ("nb", ctypes.c_size_t * 4),
    ("op", ctypes.c_int),
    ("op_params", ctypes.c_int32 * 16),
    ("flags", ctypes.c_int32),
    ("src", ctypes.POINTER(_Node) * 10),
    ("view_src", ctypes.c_void_p),
    ("view_offs", ctypes.c_size_t),
    ("data", ctypes.c_void_p),
    ("name", ctypes.c_char * 64),
)


@functools.cache
def _library() -> Any:
    """Return ``libggml-base``, with the functions that inspect a tensor."""
    library = native.library()
    for name, result, arguments in (
        ("ggml_get_name", ctypes.c_char_p, [ctypes.c_void_p]),
        ("ggml_nelements", ctypes.c_int64, [ctypes.c_void_p]),
        ("ggml_nbytes", ctypes.c_size_t, [ctypes.c_void_p]),
        ("ggml_op_name", ctypes.c_char_p, [ctypes.c_int]),
        ("ggml_backend_tensor_get", None, [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t]),
    ):
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library


@attrs.define(eq=False)
class Observer:
    """Sums the squared inputs of weight matrices while a context computes.

    Attributes:
        outputs: whether to measure the output matrix, too.
        sums: float64 [cols] by the matrix's name in the file.
        callback: for ``llama_context_params.cb_eval``; it must live as long as the context.
    """

    outputs: bool = False
    sums: dict[str, F64] = attrs.field(factory=dict)
    callback: Any = attrs.field(init=False, repr=False)
    _checked: bool = attrs.field(default=False, init=False)
    _failure: Exception | None = attrs.field(default=None, init=False)

    def __attrs_post_init__(self) -> None:
        self.callback = llama().ggml_backend_sched_eval_callback(self._called)

    def failed(self) -> None:
        """Raise the exception that the callback stored, since exceptions cannot pass through C.

        Raises:
            PluginError: the installed library lays its tensors out otherwise.
        """
        if self._failure is not None:
            raise self._failure

    def _called(self, address: int, ask: bool, _: object) -> bool:
        try:
            node = _Node.from_address(address)
            if not self._checked:
                _check_layout(node)
                self._checked = True
            weight = self._weight(node)
            if weight and not ask:
                _add(self.sums, weight, _rows(node.src[1].contents, node.src[1]))
            return bool(weight)
        except Exception as error:
            self._failure = self._failure or error
            return False

    def _weight(self, node: _Node) -> str:
        """Name of the weight matrix of a product; empty if it is not measured."""
        if node.op != _product():
            return ""
        name, kind = node.src[0].contents.name, node.src[1].contents.type
        measured = name.startswith(b"blk.") or (self.outputs and name in _OUTPUTS)
        return name.decode() if measured and name.endswith(b".weight") and kind == _FLOAT32 else ""


@functools.cache
def _product() -> int:
    """The number of GGML_OP_MUL_MAT, which changes whenever ggml adds an operation."""
    names = (_library().ggml_op_name(number) for number in range(200))
    return next(number for number, name in enumerate(names) if name == b"MUL_MAT")


def _check_layout(node: _Node) -> None:
    library, address = _library(), ctypes.addressof(node)
    reported = library.ggml_get_name(address), library.ggml_nelements(address)
    if reported != (node.name, math.prod(node.ne)):
        raise PluginError(
            "the installed llama-cpp-python lays out its tensors otherwise than 0.3.36, whose activations can be read; "
            "leave the runtime out, or install 0.3.36"
        )


def _rows(node: _Node, pointer: Any) -> F32:
    """Return a float32 tensor's values [rows, cols], from any device."""
    library = _library()
    data = np.empty(library.ggml_nbytes(pointer), np.uint8)
    library.ggml_backend_tensor_get(pointer, data.ctypes.data, 0, data.nbytes)
    shape, strides = tuple(node.ne)[::-1], tuple(node.nb)[::-1]
    return np.ndarray(shape, np.float32, data.data, strides=strides).reshape(-1, shape[-1])


def _add(sums: dict[str, F64], name: str, x: F32) -> None:
    squares = np.einsum("ij,ij->j", x, x, dtype=np.float64)
    sums[name] = sums[name] + squares if name in sums else squares


def square_sums(loaded: Loaded, windows: Ints, outputs: bool, progress: Progress | None) -> dict[str, F64]:
    """Compute windows of tokens and sum the squared inputs; see `LlamaCppRuntime.square_sums`."""
    observer = Observer(outputs)
    context = loaded.new_context(windows.shape[1], observer=observer.callback)
    try:
        for index, window in enumerate(windows):
            if progress:
                progress(index, len(windows), "calibration")
            loaded.refuse_cut()
            _compute(context, window)
            observer.failed()
    finally:
        with quiet():
            llama().llama_free(context)
    if progress:
        progress(len(windows), len(windows), "")
    return observer.sums


def _compute(context: Any, window: Ints) -> None:
    library = llama()
    library.llama_memory_clear(library.llama_get_memory(context), True)
    # All outputs are needed: the last layer only computes those of the outputs.
    with batch_of([(int(token), place, 0, True) for place, token in enumerate(window)]) as batch:
        code = library.llama_decode(context, batch)
    if code:
        raise ResourceError(f"llama.cpp cannot compute this window (code {code}); choose a shorter context")


__all__ = ["Observer", "square_sums"]
