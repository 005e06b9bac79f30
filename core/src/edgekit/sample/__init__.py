"""The embedded sample model: a small trained Llama that writes short stories, and held-out text.

`model/` is a Hugging Face directory like any other: bfloat16 safetensors, byte-level BPE, tied embeddings.
Every matrix's rows divide by 256, so every number format can encode it without a fallback. `PROVENANCE.md`
describes how it was trained and `report.json` its quality.

    >>> from edgekit import sample
    >>> sorted(file.name for file in sample.path().glob("*.safetensors"))
    ['model.safetensors']
"""

from __future__ import annotations

from pathlib import Path

__all__ = ["heldout_text", "path"]

_HERE = Path(__file__).parent


def path() -> Path:
    """Return the model's directory inside the installed package; treat it as read-only."""
    return _HERE / "model"


def heldout_text() -> str:
    """Return the held-out stories: ASCII, one paragraph a line, a blank line between stories.

    They come from the same grammar as the training text but from another seed; no story is in both.
    """
    return (_HERE / "heldout.txt").read_text(encoding="ascii")
