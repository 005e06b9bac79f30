"""ONNX and ONNX Runtime for edgekit: the format, MatMulNBits to the bit, and the runtime.

This module registers what the plugin provides by name and imports neither onnx nor the modules behind the names.
"""

from __future__ import annotations

import importlib.util
import json
from importlib.resources import files

from edgekit.plugin.hookspecs import Register, hookimpl
from edgekit_olive.modes import NATIVE, attribute

edgekit_api = (1, 0)

#: Names of the recipes; each is an attribute of `recipes`.
RECIPES = (
    *(f"MATMUL_NBITS_{bits}{group}" for bits in (2, 4, 8) for group in ("", "_G16", "_G64", "_G128")),
    *(f"MATMUL_NBITS_{bits}_ASYM{group}" for bits in (4, 8) for group in ("", "_G16", "_G64", "_G128")),
    *(f"MATMUL_NBITS_{bits}_KQUANT{group}" for bits in (4, 8) for group in ("", "_G16", "_G64", "_G128")),
    *(f"MATMUL_NBITS_{bits}_HQQ{group}" for bits in (2, 4) for group in ("", "_G16", "_G64", "_G128")),
    "INT8_CHANNEL",
)
#: Precisions: the module of each kind, and its widths; with blocks of 16 to 256.
PRECISIONS = {"kquant": (4, 8), "hqq": (2, 4), "offset": (2, 4, 5)}

#: Largest difference of logits from the numpy forward pass, in standard deviations of the logits. By default
#: MatMulNBits rounds activations to 8 bits, 0.12 on a random model of 225 MB in 4 bits; 1e-4 with ``exact=True`` or
#: float weights.
TOLERANCE = 0.2


def _installed(package: str) -> bool:
    """Return whether a package is installed; the plugin registers nothing that needs a missing one."""
    return importlib.util.find_spec(package) is not None


@hookimpl
def edgekit_register_formats(register: Register) -> None:
    """Register the formats that read ONNX files, and write decoders with ONNX Runtime's or with standard operators."""
    register("onnx", "edgekit_olive.format:OnnxFormat")
    register("onnx-portable", "edgekit_olive.format:PortableFormat", refines=("onnx",))


@hookimpl
def edgekit_register_precisions(register: Register) -> None:
    """Register k-quant, HQQ and blocks with offsets for MatMulNBits, ``onnx:kquant4-g32`` and others."""
    for module, widths in PRECISIONS.items():
        for bits in widths:
            for block in (16, 32, 64, 128, 256):
                register(f"onnx:{module}{bits}-g{block}", f"edgekit_olive.{module}:{module}{bits}_g{block}")


@hookimpl
def edgekit_register_quantizers(register: Register) -> None:
    """Register ONNX Runtime's quantizer as a backend: exact, and used only on request."""
    for name in NATIVE if _installed("onnxruntime") else ():
        register(name, f"edgekit_olive.native:{attribute(name)}", claim="exact", speed=0.1)


@hookimpl
def edgekit_register_recipes(register: Register) -> None:
    """Register the recipes in `RECIPES`: one width for all weight matrices."""
    for name in RECIPES:
        register(name, f"edgekit_olive.recipes:{name}", formats=("onnx", "onnx-portable"))


@hookimpl
def edgekit_register_runtimes(register: Register) -> None:
    """Register the runtimes for ONNX models whose packages are installed; GenAI's is used only on request."""
    if _installed("onnxruntime"):
        target = "edgekit_olive.runtime:open_runtime"
        register("onnxruntime", target, formats=("onnx", "onnx-portable"), speed=10, tolerance=TOLERANCE)
    if _installed("onnxruntime_genai"):
        target = "edgekit_olive.genai_runtime:open_runtime"
        register("onnxruntime-genai", target, formats=("onnx",), speed=0.5, tolerance=TOLERANCE)


@hookimpl
def edgekit_register_passes(register: Register) -> None:
    """Register what ONNX Runtime's tools do, and Olive's passes as ``olive:NAME`` if olive-ai is installed."""
    if _installed("onnxruntime"):
        register("INT8_DYNAMIC", "edgekit_olive.int8:Dynamic", formats=("onnx", "onnx-portable"))
        register("INT8_QDQ", "edgekit_olive.int8:Static", formats=("onnx", "onnx-portable"))
        register("ONNX_OPTIMIZE", "edgekit_olive.optimize:Optimize", formats=("onnx", "onnx-portable"))
        register("ONNX_FLOAT16", "edgekit_olive.optimize:Float16", formats=("onnx", "onnx-portable"))
    if _installed("olive"):
        for name, formats in json.loads(files(__name__).joinpath("passes.json").read_text("utf-8")).items():
            register(f"olive:{name}", f"edgekit_olive.passes:{name}", formats=tuple(formats))


@hookimpl
def edgekit_register_packagers(register: Register) -> None:
    """Register the packager for Azure Machine Learning, which runs Olive's workflows there."""
    register("azureml", "edgekit_olive.azure:AzureMl")


@hookimpl
def edgekit_register_commands(register: Register) -> None:
    """Register ``edgekit olive-passes``, which lists passes, and ``edgekit olive-run``, which runs workflow files."""
    register("olive-passes", "edgekit_olive.commands:command_passes")
    register("olive-run", "edgekit_olive.commands:command_run")


@hookimpl
def edgekit_register_devices(register: Register) -> None:
    """Register the list of execution providers of the installed ONNX Runtime."""
    if _installed("onnxruntime"):
        register("onnxruntime", "edgekit_olive.library:devices")


__all__ = [
    "PRECISIONS",
    "RECIPES",
    "TOLERANCE",
    "edgekit_api",
    "edgekit_register_commands",
    "edgekit_register_devices",
    "edgekit_register_formats",
    "edgekit_register_packagers",
    "edgekit_register_passes",
    "edgekit_register_precisions",
    "edgekit_register_quantizers",
    "edgekit_register_recipes",
    "edgekit_register_runtimes",
]
