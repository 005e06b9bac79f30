"""ONNX and ONNX Runtime for edgekit: the format, MatMulNBits to the bit, and the runtime.

This module is light: it names what the plugin brings, and imports none of it.
"""

from __future__ import annotations

import importlib.util

from edgekit.plugin.hookspecs import Register, hookimpl
from edgekit_olive.modes import NATIVE, attribute

edgekit_api = (1, 0)

#: Recipes; each is an attribute of `recipes`.
RECIPES = (
    *(f"MATMUL_NBITS_{bits}{group}" for bits in (2, 4, 8) for group in ("", "_G16", "_G64", "_G128")),
    *(f"MATMUL_NBITS_{bits}_ASYM{group}" for bits in (4, 8) for group in ("", "_G16", "_G64", "_G128")),
    "INT8_CHANNEL",
)

#: Of logits against the numpy forward pass, in their standard deviations: by default MatMulNBits rounds activations to
#: 8 bits, 0.12 on a random model of 225 MB in 4 bits. With ``exact=True``, and for weights in floats, it is 1e-4.
TOLERANCE = 0.2


def _installed(package: str) -> bool:
    """Whether a package is installed; without it the plugin registers nothing that needs it."""
    return importlib.util.find_spec(package) is not None


@hookimpl
def edgekit_register_formats(register: Register) -> None:
    """Read ONNX files; write decoders with ONNX Runtime's operators, or with standard ones."""
    register("onnx", "edgekit_olive.format:OnnxFormat")
    register("onnx-portable", "edgekit_olive.format:PortableFormat", refines=("onnx",))


@hookimpl
def edgekit_register_quantizers(register: Register) -> None:
    """Encode with ONNX Runtime's own quantizer: exact, and only on request."""
    for name in NATIVE if _installed("onnxruntime") else ():
        register(name, f"edgekit_olive.native:{attribute(name)}", claim="exact", speed=0.1)


@hookimpl
def edgekit_register_recipes(register: Register) -> None:
    """One width for all weight matrices."""
    for name in RECIPES:
        register(name, f"edgekit_olive.recipes:{name}", formats=("onnx", "onnx-portable"))


@hookimpl
def edgekit_register_runtimes(register: Register) -> None:
    """Run ONNX models."""
    if _installed("onnxruntime"):
        target = "edgekit_olive.runtime:open_runtime"
        register("onnxruntime", target, formats=("onnx", "onnx-portable"), speed=10, tolerance=TOLERANCE)


@hookimpl
def edgekit_register_devices(register: Register) -> None:
    """List the execution providers of the installed ONNX Runtime."""
    if _installed("onnxruntime"):
        register("onnxruntime", "edgekit_olive.library:devices")


__all__ = [
    "RECIPES",
    "TOLERANCE",
    "edgekit_api",
    "edgekit_register_devices",
    "edgekit_register_formats",
    "edgekit_register_quantizers",
    "edgekit_register_recipes",
    "edgekit_register_runtimes",
]
