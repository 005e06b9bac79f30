"""MLX for edgekit: model directories, quantization, the runtime, and fine-tuning.

This module is light: it names what the plugin brings, and imports none of it.
"""

from __future__ import annotations

import importlib.util

from edgekit.plugin.hookspecs import Register, hookimpl
from edgekit_mlx.modes import NATIVE, attribute

edgekit_api = (1, 0)

#: Recipes: one width for all matrices in groups of 64, and mlx-lm's mixtures. Each is an attribute of `recipes`.
RECIPES = (
    *("2bit", "3bit", "4bit", "5bit", "6bit", "8bit"),
    *("mixed_2_6", "mixed_3_4", "mixed_3_6", "mixed_4_6"),
)

#: Of logits against the numpy forward pass in float32, in their standard deviations.
TOLERANCE = 1e-4


def _installed(package: str) -> bool:
    """Whether a package is installed; without it the plugin registers nothing that needs it."""
    return importlib.util.find_spec(package) is not None


@hookimpl
def edgekit_register_formats(register: Register) -> None:
    """Read and write MLX model directories; that needs no library."""
    register("mlx", "edgekit_mlx.format:MlxFormat", refines=("hf",))


@hookimpl
def edgekit_register_quantizers(register: Register) -> None:
    """Encode with `mx.quantize`: exact, and no faster than the reference, so only on request."""
    for name in NATIVE if _installed("mlx") else ():
        register(name, f"edgekit_mlx.native:{attribute(name)}", claim="exact", speed=0.5)


@hookimpl
def edgekit_register_recipes(register: Register) -> None:
    """One width for all, and mlx-lm's mixtures."""
    for name in RECIPES:
        register(name, f"edgekit_mlx.recipes:{attribute_of(name)}", formats=("mlx",))


def attribute_of(recipe: str) -> str:
    """The attribute of `edgekit_mlx.recipes` that is a recipe: ``BITS_4`` for ``4bit``."""
    return f"BITS_{recipe[0]}" if recipe.endswith("bit") else recipe.upper()


@hookimpl
def edgekit_register_runtimes(register: Register) -> None:
    """Run MLX models."""
    if _installed("mlx_lm"):
        register("mlx", "edgekit_mlx.runtime:open_runtime", formats=("mlx",), speed=10, tolerance=TOLERANCE)


@hookimpl
def edgekit_register_commands(register: Register) -> None:
    """Train and fuse adapters: ``edgekit finetune``, ``edgekit fuse``."""
    register("finetune", "edgekit_mlx.commands:command_finetune")
    register("fuse", "edgekit_mlx.commands:command_fuse")


@hookimpl
def edgekit_register_devices(register: Register) -> None:
    """List MLX's devices, and which rounding the installed version follows."""
    if _installed("mlx"):
        register("mlx", "edgekit_mlx.library:devices")


__all__ = [
    "RECIPES",
    "TOLERANCE",
    "attribute_of",
    "edgekit_api",
    "edgekit_register_commands",
    "edgekit_register_devices",
    "edgekit_register_formats",
    "edgekit_register_quantizers",
    "edgekit_register_recipes",
    "edgekit_register_runtimes",
]
