"""The core's own registrations, through the same hooks as plugins."""

from __future__ import annotations

import pkgutil
from pathlib import Path

from edgekit.plugin.hookspecs import Register, hookimpl

edgekit_api = (1, 0)
#: Module and class of each family, in the order in which they are listed.
_FAMILIES = {
    "llama": "Llama",
    "mistral": "Mistral",
    "qwen2": "Qwen2",
    "qwen3": "Qwen3",
    "phi3": "Phi3",
    "gemma": "Gemma",
    "gemma2": "Gemma2",
    "gemma3": "Gemma3",
    "embedding_gemma": "EmbeddingGemma",
    "bert": "Bert",
    "gemma4": "Gemma4",
    "granite": "Granite",
    "granitemoehybrid": "GraniteMoeHybrid",
    "granite4_dense": "Granite4Dense",
    "granite4_moe": "Granite4Moe",
    "lfm2": "Lfm2",
    "ministral3": "Ministral3",
    "qwen3_moe": "Qwen3Moe",
    "mixtral": "Mixtral",
    "llama4_text": "Llama4Text",
    "olmoe": "Olmoe",
    "nemotron_h": "NemotronH",
    "nemotron_h_moe": "NemotronHMoe",
    "phimoe": "PhiMoe",
    "smollm3": "SmolLm3",
    "olmo2": "Olmo2",
    "qwen3_5": "Qwen35",
    "qwen3_5_moe": "Qwen35Moe",
    "qwen3_next": "Qwen3Next",
    "gpt_oss": "GptOss",
    "lfm2_moe": "Lfm2Moe",
}


@hookimpl
def edgekit_register_formats(register: Register) -> None:
    """Register the format of Hugging Face directories."""
    register("hf", "edgekit.formats.hf:HuggingFaceFormat", suffixes=())


@hookimpl
def edgekit_register_families(register: Register) -> None:
    """Register the model families of the core, one module each."""
    for name, family in _FAMILIES.items():
        register(name, f"edgekit.architectures.families.{name}:{family}")


@hookimpl
def edgekit_register_runtimes(register: Register) -> None:
    """Register the numpy runtime, for every format whose model family the core implements."""
    register("numpy", "edgekit.runtime.numpy:NumpyRuntime.open", formats=("*",), speed=1)


@hookimpl
def edgekit_register_commands(register: Register) -> None:
    """Register the commands of the command line, one module each; none is imported here."""
    for module in pkgutil.iter_modules([str(Path(__file__).parents[1] / "cli/_verbs")]):
        register(module.name.replace("_", "-"), f"edgekit.cli._verbs.{module.name}:command")


__all__ = [
    "edgekit_api",
    "edgekit_register_commands",
    "edgekit_register_families",
    "edgekit_register_formats",
    "edgekit_register_runtimes",
]
