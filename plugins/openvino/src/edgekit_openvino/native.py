"""NNCF as an encoder: `nncf.compress_weights` on a model with one MatMul, whose constants then are the parts.

Supports every mode with a reference precision, at every group size. It claims to be exact: the bytes are the
reference's. edgekit's encoders take a third to a twentieth of its time, so that this backend is used only on request
(``backend="openvino"``), for comparison. NNCF does not initialize the unused bits of a last byte; they are cleared.

Source: nncf 3.4.0 on openvino 2026.4.1; `edgekit.reference.openvino` specifies what it computes.
"""

from __future__ import annotations

from typing import ClassVar

import attrs
import numpy as np

from edgekit.errors import PluginError, ShapeError
from edgekit.formats import part_layouts
from edgekit.precision import Precision, find_precision
from edgekit.recipe import fits
from edgekit.reference import Traits
from edgekit.typing import F32, Array
from edgekit_openvino.library import nncf, openvino
from edgekit_openvino.modes import NATIVE, attribute, group_size, mode_name
from edgekit_openvino.quiet import quiet

_NAME = "weight"
#: The constant of the compressed model that holds each part.
_CONSTANTS = {"scale": "/scale", "zero_point": "/zero_point", "global_scale": "/second_order_scale"}


@attrs.frozen
class NativeQuantizer:
    """`nncf.compress_weights` as an encoder; see `edgekit.encoding.Quantizer`.

    Attributes:
        name: the name of the precision.

    Example:
        >>> NativeQuantizer("openvino:mxfp4").encode(np.ones((1, 64), np.float32))["codes"].shape  # doctest: +SKIP
        (1, 32)
    """

    name: str

    claim = "exact"
    traits: ClassVar[Traits] = Traits()

    @property
    def precision(self) -> Precision:
        """The precision that it encodes."""
        return find_precision(self.name)

    def encode(self, x: Array, importance: F32 | None = None) -> dict[str, Array]:
        """Encode rows to the bytes that an IR holds.

        Args:
            x: float32 [rows, cols]; cols must be a multiple of the group size.
            importance: ignored: NNCF does not weight columns.

        Returns:
            ``codes``, ``scale`` and, if the format has them, ``zero_point`` and ``global_scale``, as
            `edgekit.reference.openvino.encode` returns them.

        Raises:
            ShapeError: the group size does not divide the number of columns.
            MissingPluginError: nncf is not installed.
            PluginError: the compressed model lacks a constant.
        """
        precision = self.precision
        if x.ndim != 2 or not fits(precision, x.shape):
            raise ShapeError(f"{self.name} needs rows [rows, cols] of a multiple of {precision.block}, got {x.shape}")
        layouts = part_layouts(precision, x.shape) or {}
        constants = _compressed(np.ascontiguousarray(x, np.float32), precision)
        parts = {part: _part(constants, part, layout.dtype, layout.shape) for part, layout in layouts.items()}
        return {part: _without_rest(array, part, x, precision) for part, array in parts.items()}


def _compressed(x: F32, precision: Precision) -> dict[str, Array]:
    """Compress a model with one MatMul; return the bytes of its constants, flat, by name."""
    framework, ops = nncf(), openvino().opset13
    options = {} if precision.kind == "int8" else {"all_layers": True, "group_size": group_size(precision)}
    data = ops.parameter([1, x.shape[1]], np.float32)
    model = openvino().Model([ops.matmul(data, ops.constant(x, name=_NAME), False, True)], [data])
    with quiet():
        mode = getattr(framework.CompressWeightsMode, mode_name(precision))
        done = framework.compress_weights(model, mode=mode, **options)
    constants = [op for op in done.get_ops() if op.get_type_name() == "Constant"]
    return {op.get_friendly_name(): np.array(op.data).reshape(-1).view(np.uint8) for op in constants}


def _part(constants: dict[str, Array], part: str, dtype: str, shape: tuple[int, ...]) -> Array:
    codes = f"{_NAME}_nncf_codebook_idxs"  # cb4: the indices; the codebook has the weight's own name
    name = _NAME + _CONSTANTS[part] if part in _CONSTANTS else codes if codes in constants else _NAME
    try:
        return constants[name].view(dtype).reshape(shape)
    except (KeyError, ValueError) as error:
        raise PluginError(
            f"nncf left no constant {name} of {dtype} {shape} ({error}); install nncf 3.4.0, the version that this "
            'plugin knows, or choose backend="reference"'
        ) from error


def _without_rest(array: Array, part: str, x: Array, precision: Precision) -> Array:
    """Return the part with the bits after its last code cleared."""
    count = {"codes": x.size, "zero_point": x.size // (precision.block or x.shape[1])}.get(part, 0)
    rest = 8 * array.nbytes - count * precision.bits
    if precision.bits in (2, 4) and 0 < rest < 8:
        array.reshape(-1).view(np.uint8)[-1] &= (1 << (8 - rest)) - 1
    return array


def __getattr__(name: str) -> NativeQuantizer:
    for precision in NATIVE:
        if attribute(precision) == name:
            return NativeQuantizer(precision)
    raise AttributeError(name)


__all__ = ["NativeQuantizer"]
