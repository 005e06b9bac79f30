"""MLX for edgekit: model directories, quantization, the runtime, and fine-tuning.

This module registers what the plugin provides by name and imports neither mlx nor the modules behind the names.
"""

from __future__ import annotations

import importlib.util

from edgekit.plugin.hookspecs import Register, hookimpl
from edgekit_mlx.modes import NATIVE, attribute

edgekit_api = (1, 0)

#: Names of the recipes: one width for all matrices in groups of 64, and mlx-lm's mixtures of two widths.
RECIPES = (
    *("2bit", "3bit", "4bit", "5bit", "6bit", "8bit"),
    *("mixed_2_6", "mixed_3_4", "mixed_3_6", "mixed_4_6"),
)

#: Passes, and their classes in `learned`.
PASSES = {"mlx-gptq": "Gptq", "mlx-awq": "Awq", "mlx-dwq": "Dwq", "mlx-dynamic": "Dynamic"}

#: Largest difference of logits from the numpy forward pass in float32, in standard deviations of the logits.
TOLERANCE = 1e-4


def _installed(package: str) -> bool:
    """Return whether a package is installed; the plugin registers nothing that needs a missing one."""
    return importlib.util.find_spec(package) is not None


@hookimpl
def edgekit_register_formats(register: Register) -> None:
    """Register the format of MLX model directories; reading and writing them does not need mlx."""
    register("mlx", "edgekit_mlx.format:MlxFormat", refines=("hf",))


@hookimpl
def edgekit_register_quantizers(register: Register) -> None:
    """Register `mx.quantize` as a backend: exact but slower than the reference, so used only on request."""
    for name in NATIVE if _installed("mlx") else ():
        register(name, f"edgekit_mlx.native:{attribute(name)}", claim="exact", speed=0.5)


@hookimpl
def edgekit_register_recipes(register: Register) -> None:
    """Register the recipes in `RECIPES`."""
    for name in RECIPES:
        register(name, f"edgekit_mlx.recipes:{attribute_of(name)}", formats=("mlx",))


def attribute_of(recipe: str) -> str:
    """Return the attribute of `edgekit_mlx.recipes` that holds a recipe: ``BITS_4`` for ``4bit``."""
    return f"BITS_{recipe[0]}" if recipe.endswith("bit") else recipe.upper()


@hookimpl
def edgekit_register_runtimes(register: Register) -> None:
    """Register the runtime for MLX models, if mlx-lm is installed."""
    if _installed("mlx_lm"):
        target = "edgekit_mlx.runtime:open_runtime"
        register("mlx", target, formats=("mlx",), speed=10, tolerance=TOLERANCE, adapters="adapters")


@hookimpl
def edgekit_register_passes(register: Register) -> None:
    """Register mlx-lm's learned methods of quantization."""
    if _installed("mlx_lm"):
        for name, attribute in PASSES.items():
            register(name, f"edgekit_mlx.learned:{attribute}", formats=("hf", "gguf", "mlx"))


@hookimpl
def edgekit_register_commands(register: Register) -> None:
    """Register the commands ``edgekit finetune`` and ``edgekit fuse``, which train and fuse adapters."""
    register("finetune", "edgekit_mlx.commands:command_finetune")
    register("fuse", "edgekit_mlx.commands:command_fuse")


@hookimpl
def edgekit_register_devices(register: Register) -> None:
    """Register the list of MLX's devices, with the rounding rule of the installed version."""
    if _installed("mlx"):
        register("mlx", "edgekit_mlx.library:devices")


__all__ = [
    "PASSES",
    "RECIPES",
    "TOLERANCE",
    "attribute_of",
    "edgekit_api",
    "edgekit_register_commands",
    "edgekit_register_devices",
    "edgekit_register_formats",
    "edgekit_register_passes",
    "edgekit_register_quantizers",
    "edgekit_register_recipes",
    "edgekit_register_runtimes",
]
