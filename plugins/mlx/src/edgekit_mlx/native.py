"""`mx.quantize` and `mx.dequantize` as a backend.

It claims to be exact: the bytes are the reference's. The reference is as fast and edgekit-numba several times faster,
so that this backend is used only on request (``backend="mlx"``), to compare with an installed MLX.

MLX before 0.32.4 rounds the exponents of mxfp4 and mxfp8 differently, and has no 1-bit mode. With such a version the
encoder raises an error instead of returning other bytes than it claims.

Source: mlx 0.32.4; `edgekit.reference.mlx` specifies what it computes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import attrs
import numpy as np

from edgekit.errors import PluginError, ShapeError
from edgekit.precision import Precision, find_precision
from edgekit.recipe import fits
from edgekit.reference import Traits
from edgekit.reference import reference as judge
from edgekit.typing import F32, Array
from edgekit_mlx.library import PROVED, core, exponent_rounding, from_mlx, to_mlx, version
from edgekit_mlx.modes import NATIVE, attribute, mode_of
from edgekit_mlx.worker import shared

_PARTS = ("weight", "scales", "biases")


@attrs.frozen
class NativeQuantizer:
    """`mx.quantize` as an encoder and a decoder; see `edgekit.encoding.Quantizer`.

    Attributes:
        name: the name of the precision.

    Example:
        >>> NativeQuantizer("mlx:int4-g64").encode(np.ones((1, 64), np.float32))["weight"].shape  # doctest: +SKIP
        (1, 8)
    """

    name: str

    claim = "exact"
    traits: ClassVar[Traits] = Traits(source_dtypes=True)

    @property
    def precision(self) -> Precision:
        """The precision that it encodes."""
        return find_precision(self.name)

    def encode(self, x: Array, importance: F32 | None = None) -> dict[str, Array]:
        """Encode rows as `mx.quantize` does, on the CPU.

        Args:
            x: float32, float16 or bfloat16 [rows, cols]; cols must be a multiple of the group size.
            importance: ignored: `mx.quantize` does not weight columns.

        Returns:
            ``weight``, ``scales`` and, for integers, ``biases``, as `edgekit.reference.mlx.encode` returns them.

        Raises:
            ShapeError: the group size does not divide the number of columns.
            PluginError: the installed MLX computes this precision differently.
        """
        precision = self.precision
        if not fits(precision, x.shape):
            raise ShapeError(f"{precision.name} requires rows that are a multiple of {precision.block}, not {x.shape}")
        return shared().run(lambda: self._encode(x, precision))

    def _encode(self, x: Array, precision: Precision) -> dict[str, Array]:
        _refuse_other_rules(precision)
        mx = core()
        rows = _even(x, precision)
        with mx.stream(mx.cpu):
            arrays = mx.quantize(to_mlx(rows), **mode_of(precision))
            return {name: from_mlx(array)[: len(x)] for name, array in zip(_PARTS, arrays, strict=False)}

    def decode(self, parts: Mapping[str, Array], shape: tuple[int, int]) -> F32:
        """Decode as `mx.dequantize` does, to float32 [rows, cols]; affine values are rounded to the scales' dtype."""
        precision = self.precision
        if precision.kind == "nvfp4" and parts["scales"].size % 2:  # as in `encode`
            return judge(precision).decode(parts, precision, shape)
        return shared().run(lambda: self._decode(parts, precision))

    def _decode(self, parts: Mapping[str, Array], precision: Precision) -> F32:
        mx = core()
        with mx.stream(mx.cpu):
            arrays = {name: to_mlx(_typed(part)) for name, part in parts.items()}
            affine = "biases" in parts
            values = mx.dequantize(
                arrays.pop("weight"), **arrays, **mode_of(precision), dtype=None if affine else mx.float32
            )
            return from_mlx(values.astype(mx.float32))


def _typed(part: Array) -> Array:
    """Return a part with bfloat16 bits viewed as bfloat16; other parts unchanged."""
    if part.dtype == np.uint16:
        import ml_dtypes

        return part.view(ml_dtypes.bfloat16)
    return part


def _even(x: Array, precision: Precision) -> Array:
    """Return the rows, with one more appended if nvfp4 has an odd number of groups, which MLX does not accept."""
    odd = precision.kind == "nvfp4" and (x.size // 16) % 2
    return np.concatenate([x, x[:1]]) if odd else x


def _refuse_other_rules(precision: Precision) -> None:
    if precision.kind in ("mxfp4", "mxfp8") and exponent_rounding() == "nearest":
        raise PluginError(
            f"MLX {version()} rounds the exponents of {precision.kind} to the nearest; {precision.name} is what MLX "
            f"{PROVED} computes, which rounds them up: pip install 'mlx>={PROVED}', or choose backend=\"reference\""
        )


def __getattr__(name: str) -> NativeQuantizer:
    """Return the encoder of a precision by its attribute's name, such as ``int4_g64``."""
    for native in NATIVE:
        if attribute(native) == name:
            return NativeQuantizer(native)
    raise AttributeError(name)


__all__ = ["NativeQuantizer"]
