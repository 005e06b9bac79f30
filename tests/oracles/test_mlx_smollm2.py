"""SmolLM2-135M-Instruct: from GGUF to MLX in its own 4 bits, with the same logits, and a chat.

What it learns in a LoRA run of 50 steps takes eight minutes of processor time: ``nox -s bench -- --only mlx-smollm2``.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np

import edgekit
from edgekit.architectures.forward import Transformer
from edgekit.tensor import EncodedTensor

QUESTION = "What is the capital of France?"


def test_from_gguf_to_mlx_and_a_chat(smollm2: Path, tmp_path: Path):
    source = edgekit.open(smollm2)
    made = edgekit.convert(source, tmp_path / "mlx", format="mlx")
    kinds = Counter(t.precision.name for t in made.tensors.values() if isinstance(t, EncodedTensor))
    assert kinds == {"mlx:int4-g32": 210, "mlx:int8-g32": 1}  # Q4_1 and the embedding's Q8_0, code by code
    for role in ("blk.0.attn_q.weight", "blk.29.ffn_down.weight"):
        np.testing.assert_array_equal(made.model.tensors[role].float32(), source.model.tensors[role].float32())
    with edgekit.load(made, "mlx") as model:
        ids = model.encode(model.prompt(QUESTION), special=True)  # type: ignore[attr-defined]
        scores = model.logits(ids[-12:])
        wanted = Transformer(source.model).logits(ids[-12:])
        # Measured: 2e-6.
        assert np.abs(scores - wanted).max() / np.abs(wanted).max() < 1e-4
        assert "Paris" in model.chat(QUESTION, max_tokens=8)
