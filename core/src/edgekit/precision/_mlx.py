"""MLX: the number formats of `mx.quantize`.

    kind     name                        group          scale           bias
    int<b>   int<b>-g32|g64|g128         32, 64, 128    source's type   source's type     b = 1, 2, 3, 4, 5, 6, 8
    mxfp4    mxfp4                       32             float8_e8m0fnu  -
    mxfp8    mxfp8                       32             float8_e8m0fnu  -
    nvfp4    nvfp4                       16             float8_e4m3fn   -
    nvfp4    nvfp4-tensor                16             float8_e4m3fn, and one float32 for the tensor

MLX has no 7 bits. ``nvfp4-tensor`` is its nvfp4 with the optional `global_scale`, the largest magnitude of
the tensor, as mlx-lm passes it. Source: `mlx.core.quantize` of MLX 0.32.4.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction

from edgekit.precision._record import Precision, Spec

CONVENTION = "mlx"

_INTEGERS = {f"int{bits}": bits for bits in (1, 2, 3, 4, 5, 6, 8)}
_GROUPS = (32, 64, 128)
#: name -> (bits of a code, group size, stored type of the scale)
_FLOATS = {
    "mxfp4": (4, 32, "float8_e8m0fnu"),
    "mxfp8": (8, 32, "float8_e8m0fnu"),
    "nvfp4": (4, 16, "float8_e4m3fn"),
}
# Scale and bias of a group, for a float16 or bfloat16 source; twice as much for float32.
_AFFINE_OVERHEAD = 16 + 16


def resolve(spec: Spec) -> Precision | None:
    """Resolve ``mlx:int<b>-g<size>``, ``mlx:mxfp4``, ``mlx:mxfp8``, ``mlx:nvfp4`` and ``mlx:nvfp4-tensor``."""
    if spec.reduced or spec.symmetric is not None:
        return None
    if spec.kind in _INTEGERS and spec.group in _GROUPS:
        return _integer(spec.kind, spec.group)
    if spec.kind in _FLOATS and spec.granularity is None:
        return _float(spec.kind, for_tensor=False)
    if spec.kind == "nvfp4" and spec.granularity == "tensor":
        return _float(spec.kind, for_tensor=True)
    return None


def catalogue() -> Iterator[Precision]:
    """Yield every width with every group size, then the small floats."""
    for kind in _INTEGERS:
        for group in _GROUPS:
            yield _integer(kind, group)
    for kind in _FLOATS:
        yield _float(kind, for_tensor=False)
    yield _float("nvfp4", for_tensor=True)


def _integer(kind: str, group: int) -> Precision:
    return Precision(
        CONVENTION,
        kind,
        bits=_INTEGERS[kind],
        granularity="group",
        block=group,
        symmetric=False,
        scale_dtype="source",
        bits_per_weight=_INTEGERS[kind] + Fraction(_AFFINE_OVERHEAD, group),
        name=f"{CONVENTION}:{kind}-g{group}",
    )


def _float(kind: str, *, for_tensor: bool) -> Precision:
    bits, group, scale_dtype = _FLOATS[kind]
    return Precision(
        CONVENTION,
        kind,
        bits=bits,
        granularity="group",
        block=group,
        symmetric=True,
        scale_dtype=scale_dtype,
        bits_per_weight=bits + Fraction(8, group),
        whole_tensor=for_tensor,
        name=f"{CONVENTION}:{kind}{'-tensor' if for_tensor else ''}",
    )


__all__ = ["CONVENTION", "catalogue", "resolve"]
