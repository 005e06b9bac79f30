"""The runtime says what the core's own says; it is chosen by name only."""

from __future__ import annotations

from pathlib import Path

import attrs
import numpy as np
import pytest

import edgekit
from edgekit.architectures.hf import config_from_hf
from edgekit.errors import ContextOverflowError, UsageError
from edgekit.testing.models import artifact_of, random_model
from edgekit.tokenizer import Tokenizer, TokenType

CONFIG = config_from_hf(
    {
        "model_type": "qwen3",
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "vocab_size": 256,
        "max_position_embeddings": 48,
    },
    "test",
)


@attrs.frozen(eq=False)
class Bytes(Tokenizer):
    """A token a byte: characters may come in two pieces."""

    def encode(self, text, add_special=True):
        return list(text.encode())

    def decode(self, ids, skip_special=True):
        return bytes(ids).decode(errors="replace")


@pytest.fixture
def artifact():
    tokenizer = Bytes("bpe", tuple(map(str, range(256))), (TokenType.NORMAL,) * 256)
    return artifact_of(random_model(CONFIG), Path("memory"), tokenizer)


def test_it_says_what_the_core_says(artifact):
    with edgekit.load(artifact, "example") as example, edgekit.load(artifact, "numpy") as judge:
        assert np.array_equal(example.logits([1, 2, 3]), judge.logits([1, 2, 3]))
        for options in ({}, {"temperature": 1.0, "seed": 3}, {"stop": ("a", "Z")}):
            wanted = judge.generate("hello", max_tokens=30, **options)
            assert example.generate("hello", max_tokens=30, **options) == wanted
            assert "".join(example.stream("hello", max_tokens=30, **options)) == wanted


def test_it_refuses_what_does_not_fit(artifact):
    with edgekit.load(artifact, "example") as model:
        with pytest.raises(ContextOverflowError, match="5 tokens of prompt and 44 more do not fit"):
            model.generate("hello", max_tokens=44)
        with pytest.raises(UsageError, match="the vocabulary has 0 to 255"):
            model.logits([256])
        with pytest.raises(UsageError, match="max_tokens -1"):
            model.generate("hello", max_tokens=-1)
    with pytest.raises(UsageError, match="closed"):
        model.logits([1])


def test_the_core_prefers_its_own(artifact):
    with edgekit.load(artifact) as model:
        assert model.name == "numpy"
    # Others may be installed that are faster than the core; this plugin's, which is not, is never chosen by itself.
    assert edgekit.encode(np.ones((1, 32), np.float32), "ggml:Q8_0").backend != "example"
