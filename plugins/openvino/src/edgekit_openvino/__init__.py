"""OpenVINO and NNCF for edgekit: the IR as a format, compression, calibration, pruning, and the runtime.

This module registers what the plugin provides by name and imports neither openvino nor the modules behind the names.
"""

from __future__ import annotations

import importlib.util

from edgekit.plugin.hookspecs import Register, hookimpl
from edgekit_openvino.modes import NATIVE, attribute

edgekit_api = (1, 0)

#: Names of the recipes: NNCF's modes, and those with groups also as ``<mode>_G64`` and ``<mode>_G32``.
GROUPED = ("INT4_SYM", "INT4_ASYM", "INT3_SYM", "INT2_SYM", "NF4", "FP4", "FP8_E4M3")
RECIPES = (
    *("INT8_SYM", "INT8_ASYM", "CB4", "NVFP4", "MXFP4", "MXFP8_E4M3"),
    *(f"{mode}{group}" for mode in GROUPED for group in ("", "_G64", "_G32")),
)

#: Largest difference of logits from the numpy forward pass, in standard deviations of the logits. By default a device
#: chooses its precision: bfloat16 on recent CPUs, which differs by 0.03 to 0.13 on the kit's models. With
#: ``exact=True`` the difference is 1e-5.
TOLERANCE = 0.2


def _installed(package: str) -> bool:
    """Return whether a package is installed; the plugin registers nothing that needs a missing one."""
    return importlib.util.find_spec(package) is not None


@hookimpl
def edgekit_register_quantizers(register: Register) -> None:
    """Register NNCF's encoders as a backend: exact but slower than the reference, so used only on request."""
    for name in NATIVE if _installed("nncf") else ():
        register(name, f"edgekit_openvino.native:{attribute(name)}", claim="exact", speed=0.1)


@hookimpl
def edgekit_register_formats(register: Register) -> None:
    """Register the format of OpenVINO IR, which is read without openvino; openvino converts whole ONNX files."""
    register("openvino", "edgekit_openvino.format:OpenVinoFormat", takes=(".onnx",))


@hookimpl
def edgekit_register_recipes(register: Register) -> None:
    """Register the recipes in `RECIPES`: NNCF's modes, with its choice of matrices that get the backup precision."""
    for name in RECIPES:
        register(name, f"edgekit_openvino.recipes:{name}", formats=("openvino",))


@hookimpl
def edgekit_register_passes(register: Register) -> None:
    """Register the passes that transform whole models with NNCF."""
    if _installed("nncf"):
        register("openvino-compress", "edgekit_openvino.compress:Compress", formats=("openvino",))
        register("openvino-prune", "edgekit_openvino.prune:Prune", formats=("hf", "openvino", "onnx"))
        register("openvino-quantize", "edgekit_openvino.quantize:Quantize", formats=("openvino", "onnx"))


@hookimpl
def edgekit_register_runtimes(register: Register) -> None:
    """Register the runtime for OpenVINO IR, if openvino is installed."""
    if _installed("openvino"):
        target = "edgekit_openvino.runtime:open_runtime"
        register("openvino", target, formats=("openvino",), speed=10, tolerance=TOLERANCE)


@hookimpl
def edgekit_register_packagers(register: Register) -> None:
    """Register the packager for OpenVINO Model Server."""
    register("ovms", "edgekit_openvino.ovms:Ovms")


@hookimpl
def edgekit_register_devices(register: Register) -> None:
    """Register the list of devices that openvino reports."""
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
