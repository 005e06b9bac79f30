"""ONNX Runtime's own weight-only quantizer as an encoder.

It claims to be exact: the bytes are the reference's. It is meant for comparison, and used only on request
(``backend="olive"``).

Source: onnxruntime 1.32.0, `DefaultWeightOnlyQuantizer.qbits_block_quant`; `edgekit.reference.onnx` specifies what it
computes.
"""

from __future__ import annotations

import importlib
from typing import Any, ClassVar

import attrs
import numpy as np

from edgekit.errors import MissingPluginError
from edgekit.numerics.smallfloats import as_float32, float32_to_bfloat16, is_bfloat16
from edgekit.precision import Precision, find_precision
from edgekit.reference import Traits
from edgekit.typing import F32, Array
from edgekit_olive.library import onnxruntime
from edgekit_olive.modes import NATIVE, attribute


@attrs.frozen
class NativeQuantizer:
    """`qbits_block_quant` as an encoder; see `edgekit.encoding.Quantizer`.

    Attributes:
        name: the name of the precision.

    Example:
        >>> NativeQuantizer("onnx:int4-sym-g32").encode(np.ones((1, 64), np.float32))["B"].shape  # doctest: +SKIP
        (1, 2, 16)
    """

    name: str

    claim = "exact"
    traits: ClassVar[Traits] = Traits(source_dtypes=True)

    @property
    def precision(self) -> Precision:
        """The precision that it encodes."""
        return find_precision(self.name)

    def encode(self, x: Array, importance: F32 | None = None) -> dict[str, Array]:
        """Encode rows, which are the columns of MatMulNBits' weight.

        Args:
            x: float32, float16 or bfloat16 [rows, cols]; the scales have its dtype.
            importance: ignored: the quantizer does not weight columns.

        Returns:
            ``B``, ``scales`` and, if the format has them, ``zero_points``, as `edgekit.reference.onnx.encode` returns
            them.

        Raises:
            MissingPluginError: onnxruntime is not installed, or lacks its quantization tools.
        """
        precision = self.precision
        tools = _tools()
        config = tools.DefaultWeightOnlyQuantConfig(
            block_size=precision.block, is_symmetric=precision.symmetric, bits=precision.bits
        )
        quantizer = tools.DefaultWeightOnlyQuantizer(config)
        # The quantizer does not support bfloat16: such rows are widened, and their scales are rounded afterwards.
        rows = as_float32(x) if is_bfloat16(x.dtype) else x
        packed, scales, zero = quantizer.qbits_block_quant(np.ascontiguousarray(rows.T))
        scales = scales.reshape(len(x), -1)
        if is_bfloat16(x.dtype):
            scales = float32_to_bfloat16(scales).view(x.dtype)
        parts: dict[str, Array] = {"B": packed, "scales": scales}
        return parts if precision.symmetric else {**parts, "zero_points": zero.reshape(len(x), -1)}


def _tools() -> Any:
    onnxruntime()
    try:
        return importlib.import_module("onnxruntime.quantization.matmul_nbits_quantizer")
    except ImportError as error:
        raise MissingPluginError(
            f"onnxruntime's quantization tools cannot be imported ({error!s:.200}); pip install edgekit-olive"
        ) from error


def __getattr__(name: str) -> NativeQuantizer:
    """Return the encoder of a precision by its attribute's name, such as ``int4_sym_g32``."""
    for native in NATIVE:
        if attribute(native) == name:
            return NativeQuantizer(native)
    raise AttributeError(name)


__all__ = ["NativeQuantizer"]
