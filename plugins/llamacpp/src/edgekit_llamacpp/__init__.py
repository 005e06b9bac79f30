"""llama.cpp for edgekit: ggml's own encoders, and the runtime.

This module is light: it registers the plugin's objects by name, and imports none of them.
"""

from __future__ import annotations

import importlib.util

from edgekit.plugin.hookspecs import Register, hookimpl
from edgekit.precision.ggml import BLOCKS, GRIDS

edgekit_api = (1, 0)

#: Every block type that ggml encodes; each is an attribute of `edgekit_llamacpp.native`.
KINDS = tuple(BLOCKS | GRIDS)
#: Those that edgekit's reference encodes faster, 1.3 to 4 times on [256, 4096]; the fastest is used by default.
SLOWER = ("Q8_0", "IQ4_NL", "IQ4_XS", "TQ2_0", "NVFP4", "Q1_0", "Q2_0")

#: Largest difference of a logit from edgekit's own forward pass, in standard deviations of the logits, that the runtime
#: claims. Measured on the conformance kit's models: 0.0103 with keys and values in float16, llama.cpp's default, and
#: 6.5e-6 with ``cache="F32"``.
TOLERANCE = 0.02


def _installed() -> bool:
    """Return whether llama-cpp-python is installed; without it the plugin registers nothing."""
    return importlib.util.find_spec("llama_cpp") is not None


@hookimpl
def edgekit_register_quantizers(register: Register) -> None:
    """Register encoders that call ggml's own code."""
    for kind in KINDS if _installed() else ():
        speed = 0.5 if kind in SLOWER else 10
        register(f"ggml:{kind}", f"edgekit_llamacpp.native:{kind}", claim="exact", speed=speed)


@hookimpl
def edgekit_register_runtimes(register: Register) -> None:
    """Register the runtime of GGUF files."""
    if _installed():
        target, how = "edgekit_llamacpp.runtime:open_runtime", {"speed": 10, "tolerance": TOLERANCE}
        register("llamacpp", target, formats=("gguf",), parallel="sequences", adapters="adapters", **how)


@hookimpl
def edgekit_register_devices(register: Register) -> None:
    """Register the report of the installed build's devices."""
    if _installed():
        register("llamacpp", "edgekit_llamacpp.devices:devices")


__all__ = [
    "KINDS",
    "SLOWER",
    "TOLERANCE",
    "edgekit_api",
    "edgekit_register_devices",
    "edgekit_register_quantizers",
    "edgekit_register_runtimes",
]
