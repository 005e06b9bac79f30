"""What a conversion to GGUF says of a tokenizer, and what its recipes say of themselves."""

from pathlib import Path

import attrs
import pytest

import edgekit
from edgekit import sample
from edgekit.architectures import Model, ModelConfig
from edgekit.pipeline._recipes import list_recipes
from edgekit.testing.models import artifact_of, random_model
from edgekit_gguf import recipes


@pytest.fixture(scope="module")
def config() -> ModelConfig:
    return attrs.evolve(edgekit.open(sample.path()).model.config, layers=1)


def notes_of(config: ModelConfig, rows: int, tmp_path: Path) -> dict[str, str]:
    """Of a model with the sample's tokenizer and that many rows in its embedding."""
    model: Model = random_model(attrs.evolve(config, vocab=rows))
    source = artifact_of(model, tmp_path / "memory", edgekit.open(sample.path()).tokenizer)
    return dict(edgekit.convert(source, tmp_path / "model.gguf").notes)


def test_tokens_that_are_added_or_dropped_are_counted(config: ModelConfig, tmp_path: Path) -> None:
    tokenizer = edgekit.open(sample.path()).tokenizer
    assert tokenizer is not None
    tokens = len(tokenizer.tokens)
    assert notes_of(config, tokens, tmp_path).keys().isdisjoint({"added_tokens", "dropped_tokens"})
    assert notes_of(config, tokens + 8, tmp_path)["added_tokens"] == (
        f"8 tokens were added ([PAD…], unused) to fill the embedding's {tokens + 8} rows"
    )
    assert notes_of(config, tokens - 3, tmp_path)["dropped_tokens"] == (
        f"3 tokens beyond the embedding's {tokens - 3} rows were dropped"
    )


def test_every_recipe_describes_its_default_and_its_rules() -> None:
    for listed in list_recipes("gguf"):
        clauses = {(clause.tensors, clause.precision) for clause in listed.clauses}
        own = getattr(recipes, listed.name)
        assert any(precision == own.default for _, precision in clauses)
        for kind in ("attn_v", "ffn_down", "attn_output"):
            assert {(kind, rule.type) for rule in getattr(own, kind)} <= clauses
