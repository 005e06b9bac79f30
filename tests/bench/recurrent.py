"""The numpy forward pass beside transformers' eager one: a prompt through a model of gated delta nets and attention.

python tests/bench/bench.py --only forward

Both compute in float32 on one thread. transformers takes the chunked form of the gated delta rule, in torch.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import numpy as np
from case import timed

import edgekit
from edgekit.architectures.forward import Transformer

TOKENS, ROUNDS = 512, 5
CONFIG = {
    "vocab_size": 4096, "hidden_size": 512, "intermediate_size": 1024, "num_hidden_layers": 8,
    "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 64, "linear_key_head_dim": 64,
    "linear_value_head_dim": 64, "linear_num_key_heads": 4, "linear_num_value_heads": 8,
    "max_position_embeddings": 2048, "tie_word_embeddings": False, "attn_implementation": "eager",
}  # fmt: skip


def report(quick: bool = False) -> Iterator[str]:
    """The ratio of the medians of interleaved rounds, by processor time, and how far the logits are apart."""
    import torch
    from transformers import AutoModelForCausalLM, Qwen3_5TextConfig

    torch.manual_seed(0)
    torch.set_num_threads(1)
    theirs = AutoModelForCausalLM.from_config(Qwen3_5TextConfig(**CONFIG)).eval()
    ids = np.random.default_rng(0).integers(0, CONFIG["vocab_size"], TOKENS)
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        theirs.save_pretrained(Path(folder))
        ours = Transformer(edgekit.open(folder).model, cache=True)
        given = torch.from_numpy(ids)[None]
        expected, found = theirs(given).logits[0].numpy(), ours.logits(ids)
        apart = float(np.abs(found - expected).max() / np.abs(expected).max())
        seconds: dict[str, list[float]] = {"edgekit": [], "transformers": []}
        for _ in range(2 if quick else ROUNDS):
            seconds["edgekit"].append(timed(lambda: ours.logits(ids)))
            seconds["transformers"].append(timed(lambda: theirs(given)))
    own, peer = median(seconds["edgekit"]), median(seconds["transformers"])
    yield (
        f"Qwen 3.5 of {CONFIG['num_hidden_layers']} layers, width {CONFIG['hidden_size']}, a prompt of {TOKENS} tokens, one "
        f"thread: numpy {own:.2f} s, transformers {peer:.2f} s: **{own / peer:.2f}×** its time; 1.5× is allowed. The logits "
        f"differ by {apart:.0e} of the largest."
    )


__all__ = ["report"]
