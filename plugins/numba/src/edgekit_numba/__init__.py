"""Exact vector kernels for edgekit: the reference's bytes, many blocks at a time.

This module is light: it registers the plugin's objects by name, and imports none of them.
"""

from __future__ import annotations

from edgekit.plugin.hookspecs import Register, hookimpl

edgekit_api = (1, 0)

#: The block types of ggml that have a kernel; each is an attribute of `edgekit_numba.encoders`.
KINDS = (
    "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K",
    "IQ4_NL", "IQ4_XS", "MXFP4", "TQ1_0", "TQ2_0",
)  # fmt: skip

#: Those whose codes lie on a grid; attributes of `edgekit_numba.encoders`, too.
GRIDS = ("IQ3_S", "IQ3_XXS", "IQ2_S", "IQ2_XS", "IQ2_XXS", "IQ1_M", "IQ1_S")

#: Integers with a scale for each group, or row; attributes of `edgekit_numba.grouped_encoders`.
GROUPED = tuple(
    f"{name}-{size}"
    for names, sizes in (
        ([f"mlx:int{bits}" for bits in (1, 2, 3, 4, 5, 6, 8)], ("g32", "g64", "g128")),
        (["openvino:int4-sym", "openvino:int4-asym", "openvino:int2-sym"], ("g32", "g64", "g128", "channel")),
        (["openvino:int8-sym", "openvino:int8-asym"], ("channel",)),
        ([f"onnx:int{bits}-{kind}" for bits in (2, 4, 8) for kind in ("sym", "asym")], ("g32", "g64", "g128", "g256")),
    )
    for name in names
    for size in sizes
)


@hookimpl
def edgekit_register_quantizers(register: Register) -> None:
    """Register encoders with the reference's bytes, the fastest available."""
    for kind in (*KINDS, *GRIDS):
        register(f"ggml:{kind}", f"edgekit_numba.encoders:{kind}", claim="exact", speed=100)
    for name in GROUPED:
        attribute = name.replace(":", "_").replace("-", "_")
        register(name, f"edgekit_numba.grouped_encoders:{attribute}", claim="exact", speed=100)


@hookimpl
def edgekit_register_kernels(register: Register) -> None:
    """The arithmetic of rounding with error feedback."""
    register("accumulate", "edgekit_numba.accumulating:accumulate", speed=10)
    for name in ("multiply", "exponential", "feed", "descend", "substitute"):
        register(name, f"edgekit_numba.feeding:{name}", speed=10)
    for name in ("weigh", "largest", "narrow", "turn", "units", "scale", "totals"):
        register(name, f"edgekit_numba.scaling:{name}", speed=10)


@hookimpl
def edgekit_register_devices(register: Register) -> None:
    """Register the report of the processor for which kernels are compiled."""
    register("numba", "edgekit_numba.warm:devices")


@hookimpl
def edgekit_register_commands(register: Register) -> None:
    """Register ``edgekit warm``, which compiles all kernels before their first use."""
    register("warm", "edgekit_numba.warm:command")


__all__ = [
    "GRIDS",
    "GROUPED",
    "KINDS",
    "edgekit_api",
    "edgekit_register_commands",
    "edgekit_register_devices",
    "edgekit_register_kernels",
    "edgekit_register_quantizers",
]
