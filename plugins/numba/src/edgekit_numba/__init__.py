"""Exact vector kernels for edgekit: the reference's bytes, many blocks at a time.

This module is light: it names what the plugin brings, and imports none of it.
"""

from __future__ import annotations

from edgekit.hookspecs import Register, hookimpl

edgekit_api = (1, 0)

#: The block types of ggml that have a kernel; each is an attribute of `edgekit_numba.encoders`.
KINDS = (
    "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K",
    "IQ4_NL", "IQ4_XS", "MXFP4", "TQ1_0", "TQ2_0",
)  # fmt: skip


@hookimpl
def edgekit_register_quantizers(register: Register) -> None:
    """Encoders that give the reference's bytes; the fastest there are."""
    for kind in KINDS:
        register(f"ggml:{kind}", f"edgekit_numba.encoders:{kind}", claim="exact", speed=100)


@hookimpl
def edgekit_register_devices(register: Register) -> None:
    """What the kernels are compiled for."""
    register("numba", "edgekit_numba.warm:devices")


@hookimpl
def edgekit_register_commands(register: Register) -> None:
    """Compile everything ahead of the first use."""
    register("warm", "edgekit_numba.warm:command")
