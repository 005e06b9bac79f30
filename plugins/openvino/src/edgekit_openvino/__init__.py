"""OpenVINO and NNCF for edgekit: the IR as a format, compression, calibration, pruning, and the runtime.

This module is light: it names what the plugin brings, and imports none of it.
"""

from __future__ import annotations

import importlib.util

from edgekit.plugin.hookspecs import Register, hookimpl
from edgekit_openvino.modes import NATIVE, attribute

edgekit_api = (1, 0)

#: NNCF's modes; those with groups also as ``<mode>_G64`` and ``_G32``. Each is an attribute of `recipes`.
GROUPED = ("INT4_SYM", "INT4_ASYM", "INT3_SYM", "INT2_SYM", "NF4", "FP4", "FP8_E4M3")
RECIPES = (
    *("INT8_SYM", "INT8_ASYM", "CB4", "NVFP4", "MXFP4", "MXFP8_E4M3"),
    *(f"{mode}{group}" for mode in GROUPED for group in ("", "_G64", "_G32")),
)

#: Of logits against the numpy forward pass, in their standard deviations. By default a device computes in what suits
#: it: bfloat16 on the CPU here, whose eight bits cost 0.03 to 0.13 on the kit's models. With ``exact=True`` it is 1e-5.
TOLERANCE = 0.2


def _installed(package: str) -> bool:
    """Whether a package is installed; without it the plugin registers nothing that needs it."""
    return importlib.util.find_spec(package) is not None


@hookimpl
def edgekit_register_quantizers(register: Register) -> None:
    """Encode with NNCF's own code: exact, and slower than the reference, so only on request."""
    for name in NATIVE if _installed("nncf") else ():
        register(name, f"edgekit_openvino.native:{attribute(name)}", claim="exact", speed=0.1)


@hookimpl
def edgekit_register_formats(register: Register) -> None:
    """Read and write OpenVINO IR; reading needs no library. ONNX files are converted by OpenVINO, graph and all."""
    register("openvino", "edgekit_openvino.format:OpenVinoFormat", takes=(".onnx",))


@hookimpl
def edgekit_register_recipes(register: Register) -> None:
    """NNCF's modes, with its choice of what is backed up."""
    for name in RECIPES:
        register(name, f"edgekit_openvino.recipes:{name}", formats=("openvino",))


@hookimpl
def edgekit_register_passes(register: Register) -> None:
    """Transform whole models with NNCF."""
    if _installed("nncf"):
        register("openvino-compress", "edgekit_openvino.compress:Compress", formats=("openvino",))
        register("openvino-prune", "edgekit_openvino.prune:Prune", formats=("hf", "openvino", "onnx"))
        register("openvino-quantize", "edgekit_openvino.quantize:Quantize", formats=("openvino", "onnx"))


@hookimpl
def edgekit_register_runtimes(register: Register) -> None:
    """Run OpenVINO IR."""
    if _installed("openvino"):
        target = "edgekit_openvino.runtime:open_runtime"
        register("openvino", target, formats=("openvino",), speed=10, tolerance=TOLERANCE)


@hookimpl
def edgekit_register_packagers(register: Register) -> None:
    """Lay models out for OpenVINO Model Server."""
    register("ovms", "edgekit_openvino.ovms:Ovms")


@hookimpl
def edgekit_register_devices(register: Register) -> None:
    """List the devices that the installed library finds."""
    if _installed("openvino"):
        register("openvino", "edgekit_openvino.library:devices")


__all__ = [
    "GROUPED",
    "RECIPES",
    "TOLERANCE",
    "edgekit_api",
    "edgekit_register_devices",
    "edgekit_register_formats",
    "edgekit_register_packagers",
    "edgekit_register_passes",
    "edgekit_register_quantizers",
    "edgekit_register_recipes",
    "edgekit_register_runtimes",
]
