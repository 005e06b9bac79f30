"""llama.cpp for edgekit: ggml's own encoders, and the runtime.

This module is light: it names what the plugin brings, and imports none of it.
"""

from __future__ import annotations

import importlib.util

from edgekit.plugin.hookspecs import Register, hookimpl

edgekit_api = (1, 0)

#: Every block type that ggml encodes; each is an attribute of `edgekit_llamacpp.native`.
KINDS = (
    "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS", "TQ1_0",
    "TQ2_0", "MXFP4", "NVFP4", "Q1_0", "Q2_0", "IQ3_S", "IQ3_XXS", "IQ2_S", "IQ2_XS", "IQ2_XXS", "IQ1_M", "IQ1_S",
)  # fmt: skip


#: Largest difference of a logit from edgekit's own forward pass, in standard deviations of the logits, that the runtime
#: claims. Measured on the conformance kit's models: 0.0103 with keys and values in float16, llama.cpp's default, and
#: 6.5e-6 with ``cache="F32"``.
TOLERANCE = 0.02


def _installed() -> bool:
    """Whether llama-cpp-python is there; without it nothing is offered, so that nothing is chosen that cannot work."""
    return importlib.util.find_spec("llama_cpp") is not None


@hookimpl
def edgekit_register_quantizers(register: Register) -> None:
    """Encode with ggml's own code."""
    for kind in KINDS if _installed() else ():
        register(f"ggml:{kind}", f"edgekit_llamacpp.native:{kind}", claim="exact", speed=10)


@hookimpl
def edgekit_register_runtimes(register: Register) -> None:
    """Run GGUF files."""
    if _installed():
        register("llamacpp", "edgekit_llamacpp.runtime:open_runtime", formats=("gguf",), speed=10, tolerance=TOLERANCE)


@hookimpl
def edgekit_register_devices(register: Register) -> None:
    """Say what the installed build computes on."""
    if _installed():
        register("llamacpp", "edgekit_llamacpp.library:devices")
