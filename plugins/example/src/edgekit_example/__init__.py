"""The smallest complete edgekit backend: a precision, a quantizer, a format and a runtime.

This module is light: it names what the plugin brings, and imports none of it.
"""

from __future__ import annotations

from edgekit.plugin.hookspecs import Register, hookimpl

edgekit_api = (1, 0)


@hookimpl
def edgekit_register_precisions(register: Register) -> None:
    """A new number format."""
    register("example:log4-g32", "edgekit_example.log4:Log4")


@hookimpl
def edgekit_register_quantizers(register: Register) -> None:
    """An encoder of an existing number format; never the default, because it is slower than the reference."""
    register("ggml:Q8_0", "edgekit_example.q8_0:Q8_0", claim="exact", speed=0)


@hookimpl
def edgekit_register_formats(register: Register) -> None:
    """Read and write ``.ekx`` files."""
    register("ekx", "edgekit_example.format:EkxFormat", suffixes=(".ekx",))


@hookimpl
def edgekit_register_runtimes(register: Register) -> None:
    """Run models of any format; never by default, since the core's own runtime is as fast (speed 1)."""
    register("example", "edgekit_example.runtime:ExampleRuntime.open", formats=("*",), speed=0)


__all__ = [
    "edgekit_api",
    "edgekit_register_formats",
    "edgekit_register_precisions",
    "edgekit_register_quantizers",
    "edgekit_register_runtimes",
]
