"""GGUF for edgekit: the format and llama.cpp's recipes.

This module is light: it registers the plugin's objects by name, and imports none of them.
"""

from __future__ import annotations

from edgekit.plugin.hookspecs import Register, hookimpl

edgekit_api = (1, 0)

#: llama.cpp's names of its recipes, in order of size; each is an attribute of `edgekit_gguf.recipes`.
RECIPES = (
    "F32", "BF16", "F16", "Q8_0", "Q6_K", "Q5_1", "Q5_K_M", "Q5_K_S", "Q5_0", "Q4_1", "Q4_K_M", "Q4_K_S", "IQ4_NL",
    "Q4_0", "IQ4_XS", "MXFP4_MOE", "Q3_K_L", "Q3_K_M", "Q3_K_S", "Q2_K", "Q2_K_S", "Q2_0", "TQ2_0", "TQ1_0", "Q1_0",
)  # fmt: skip


@hookimpl
def edgekit_register_formats(register: Register) -> None:
    """Register the format of ``.gguf`` files."""
    register("gguf", "edgekit_gguf.format:GgufFormat", suffixes=(".gguf",))


@hookimpl
def edgekit_register_recipes(register: Register) -> None:
    """Register llama.cpp's mixtures of block types."""
    for name in RECIPES:
        register(name, f"edgekit_gguf.recipes:{name}", formats=("gguf",))


@hookimpl
def edgekit_register_commands(register: Register) -> None:
    """Register ``edgekit adapter`` and ``edgekit imatrix``, which write adapters and importance matrices."""
    register("adapter", "edgekit_gguf.commands:adapter")
    register("imatrix", "edgekit_gguf.commands:imatrix")


__all__ = [
    "RECIPES",
    "edgekit_api",
    "edgekit_register_commands",
    "edgekit_register_formats",
    "edgekit_register_recipes",
]
