"""File names as the GGUF naming convention has them: ``<BaseName>-<SizeLabel>-<Encoding>.gguf``.

Source: "GGUF Naming Convention" in ggml's ``docs/gguf.md``; the size label's rounding as in gguf-py.
"""

from __future__ import annotations

import re

_SIZE = re.compile(r"(?<![A-Za-z0-9.])(?:\d+x)?\d+(?:\.\d+)?[KMBTkmbt](?![A-Za-z0-9])")
_UNITS = ((1e12, "T"), (1e9, "B"), (1e6, "M"), (0, "K"))


def size_label(parameters: int) -> str:
    """Two significant digits and a unit: 494,032,768 is ``494M``, 1,100,048,384 is ``1.1B``."""
    threshold, unit = next((t, u) for t, u in _UNITS if parameters > t)
    scaled = parameters / (threshold or 1e3)
    digits = len(str(round(scaled)).lstrip("0"))
    return f"{scaled:.{max(0, 2 - digits)}f}{unit}"


def suggest_name(model: str, parameters: int, encoding: str) -> str:
    """A file name by the convention.

    Args:
        model: the model's own name; its words are joined by dashes, its own size label is kept.
        parameters: number of elements, for the size label of a name that has none.
        encoding: the recipe or precision.

    Example:
        >>> suggest_name("Qwen2.5 0.5B Instruct", 494_032_768, "Q4_K_M")
        'Qwen2.5-0.5B-Instruct-Q4_K_M.gguf'
        >>> suggest_name("stories", 292_800, "ggml:Q8_0")
        'stories-293K-Q8_0.gguf'
    """
    base = re.sub(r"[^\w.]+", "-", model, flags=re.ASCII).strip("-.") or "model"
    size = "" if _SIZE.search(base) else f"-{size_label(parameters)}"
    kind = re.sub(r"[^A-Za-z0-9_]+", "_", encoding.rpartition(":")[2])
    return f"{base}{size}-{kind}.gguf"


__all__ = ["size_label", "suggest_name"]
