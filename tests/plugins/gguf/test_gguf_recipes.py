"""Recipes on real and synthetic layouts. That the choices are llama.cpp's is shown in tests/oracles."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import attrs
import numpy as np
import pytest

import edgekit
import edgekit_gguf
from edgekit.architectures import ModelConfig
from edgekit.errors import UnsupportedModelError
from edgekit.precision import find_precision
from edgekit.recipe import Slot
from edgekit.tensor import Tensor
from edgekit_gguf import recipes
from edgekit_gguf.format import GgufFormat
from edgekit_gguf.layout import file_order
from edgekit_gguf.recipes import GgufRecipe

GGUF = GgufFormat()
RECIPES: dict[str, GgufRecipe] = {name: getattr(recipes, name) for name in edgekit_gguf.RECIPES}


@pytest.fixture
def wide(llama: ModelConfig) -> ModelConfig:
    """A model of 16 layers that every block fits."""
    return attrs.evolve(llama, layers=16, width=256, heads=4, kv_heads=4, head_dim=64, ffn=256, rotary_dim=64)


def empty(name: str, *shape: int) -> Slot:
    """A slot of zeros that takes no memory."""
    zeros = Tensor.of(name, np.broadcast_to(np.float32(0), shape))
    return Slot(name, name, zeros, find_precision("float:F32"))


def slots_of(config: ModelConfig, **extra: tuple[int, ...]) -> list[Slot]:
    shapes = edgekit.architectures.tensor_shapes(config) | extra
    return [empty(name, *shape) for name, shape in sorted(shapes.items())]


def chosen(recipe: GgufRecipe, config: ModelConfig, importance: bool = False) -> dict[str, str]:
    slots = sorted(slots_of(config), key=lambda slot: file_order(slot.name))
    return {a.name: a.precision.kind for a in recipe.plan(slots, config, importance)}


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_find_their_names_and_numbers(name: str):
    assert RECIPES[name].name == name
    assert RECIPES[name].file_type >= 0


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_writes_a_model_that_opens(name: str, stories: Path, tmp_path: Path):
    narrow = name == "Q1_0"  # the model's rows of 64 are no multiple of its 128, and it has no fallback but F16
    small = edgekit.quantize(stories, name, to=tmp_path / "small.gguf", allow_unquantized=narrow)
    assert small.config["general.file_type"] == RECIPES[name].file_type
    assert small.manifest is not None
    assert all(line["reason"] for line in small.manifest.tensors.values())
    for tensor in small.model.tensors.values():
        assert np.isfinite(tensor.float32()).all()


def test_a_mixture_read_by_hand(wide: ModelConfig):
    """Q4_K_M of 16 layers: the first two, the last two and every third between have Q6_K."""
    types = chosen(RECIPES["Q4_K_M"], wide)
    more = [layer for layer in range(16) if types[f"blk.{layer}.attn_v.weight"] == "Q6_K"]
    assert more == [0, 1, 4, 7, 10, 13, 14, 15]
    assert more == [layer for layer in range(16) if types[f"blk.{layer}.ffn_down.weight"] == "Q6_K"]
    assert types["output.weight"] == "Q6_K"
    assert types["token_embd.weight"] == "Q4_K"
    assert types["blk.0.attn_norm.weight"] == "F32"
    assert Counter(types.values()) == {"Q4_K": 1 + 5 * 16 + 2 * 8, "Q6_K": 1 + 2 * 8, "F32": 1 + 2 * 16}


def test_reasons_are_in_words(wide: ModelConfig, llama: ModelConfig):
    def reason(recipe: str, name: str, config: ModelConfig) -> str:
        plan = RECIPES[recipe].plan(slots_of(config), config)
        return next(a.reason for a in plan if a.name == name)

    assert reason("Q4_K_M", "output.weight", wide) == "output matrix"
    assert reason("Q4_K_M", "token_embd.weight", attrs.evolve(wide, tied=True)) == "embedding doubles as output matrix"
    assert reason("Q4_K_M", "blk.0.attn_norm.weight", wide) == "a vector"
    assert reason("Q4_K_M", "blk.0.ffn_up.weight", wide) == "default of Q4_K_M"
    assert reason("TQ1_0", "token_embd.weight", wide) == "embedding of a TQ1_0 file"
    first = reason("Q4_K_M", "blk.0.attn_v.weight", wide)
    assert first == "attn_v, number 0 of 16: in the first or last eighth, or every third between"
    assert reason("Q3_K_L", "blk.0.attn_v.weight", wide) == "attn_v"
    fallback = reason("Q4_K_M", "blk.0.ffn_up.weight", llama)
    assert fallback == "default of Q4_K_M; rows of 64 are no multiple of Q4_K's block"
    assert reason("F16", "blk.0.ffn_up.weight", wide) == "every weight matrix"


@pytest.mark.parametrize(
    ("recipe", "fallback"),
    [
        ("Q2_K", "Q4_0"),
        ("Q3_K_S", "Q4_0"),
        ("Q4_K_S", "Q5_0"),
        ("Q5_K_S", "Q5_1"),
        ("Q6_K", "Q8_0"),
        ("IQ4_XS", "IQ4_NL"),
        ("TQ1_0", "Q4_0"),
        ("TQ2_0", "Q4_0"),
        ("Q2_0", "Q4_0"),
        ("Q1_0", "F16"),
    ],
)
def test_fallbacks(recipe: str, fallback: str, llama: ModelConfig):
    assert chosen(RECIPES[recipe], llama)["blk.1.ffn_down.weight"] == fallback
    ragged = attrs.evolve(llama, ffn=100)
    assert chosen(RECIPES[recipe], ragged)["blk.1.ffn_down.weight"] == "F16"


@pytest.mark.parametrize(("recipe", "weighed"), [("Q4_0", "Q4_1"), ("Q5_0", "Q5_1"), ("IQ4_NL", "IQ4_NL")])
def test_importance_changes_the_first_layers(recipe: str, weighed: str, wide: ModelConfig):
    without = "Q5_K" if recipe == "IQ4_NL" else recipe
    name = "blk.1.ffn_down.weight"
    assert chosen(RECIPES[recipe], wide)[name] == without
    assert chosen(RECIPES[recipe], wide, importance=True)[name] == weighed


def test_facts_are_read_off_the_slots_where_there_is_no_configuration(wide: ModelConfig):
    shared = attrs.evolve(wide, kv_heads=1)
    for recipe in RECIPES.values():
        slots = slots_of(shared)
        with_config = [a.precision for a in recipe.plan(slots, shared)]
        assert [a.precision for a in recipe.plan(slots, None)] == with_config


@pytest.mark.parametrize(("recipe", "output"), [("Q4_K_M", "Q5_K"), ("Q3_K_L", "Q3_K"), ("Q6_K", "Q6_K")])
def test_eight_experts(recipe: str, output: str, wide: ModelConfig):
    slots = [*slots_of(wide), *(empty(f"blk.{layer}.ffn_gate_inp.weight", 8, 256) for layer in range(16))]
    types = {a.name: a.precision.kind for a in RECIPES[recipe].plan(slots, wide)}
    assert {types["blk.1.attn_v.weight"], types["blk.1.attn_k.weight"]} == {"Q8_0"}
    assert types["blk.1.attn_output.weight"] == output


def test_the_70b_class(wide: ModelConfig):
    big = attrs.evolve(wide, layers=80, kv_heads=1)
    assert chosen(RECIPES["Q2_K"], big)["blk.1.attn_v.weight"] == "Q5_K"
    assert chosen(RECIPES["Q2_K"], attrs.evolve(big, layers=79))["blk.1.attn_v.weight"] == "Q4_K"


def test_experts_alone_get_mxfp4(wide: ModelConfig):
    slots = [empty("blk.0.ffn_up_exps.weight", 4, 256, 256), empty("blk.0.attn_q.weight", 256, 256)]
    kinds = [a.precision.kind for a in RECIPES["MXFP4_MOE"].plan(slots, wide)]
    assert kinds == ["MXFP4", "Q8_0"]


def test_a_mixture_needs_layers():
    slots = [empty("encoder.weight", 256, 256)]
    with pytest.raises(UnsupportedModelError, match=r"^recipe Q4_K_M depends on the model's layers, .* ggml:Q4_K$"):
        RECIPES["Q4_K_M"].plan(slots, None)
    assert RECIPES["Q6_K"].plan(slots, None).assignments[0].precision.kind == "Q6_K"


@pytest.mark.parametrize(
    "name", ["blk.0.ssm_conv1d.weight", "position_embd.weight", "blk.0.ffn_gate_inp.weight", "blk.0.time_mix_w1.weight"]
)
def test_matrices_that_stay_as_they_are(name: str, wide: ModelConfig):
    slot = attrs.evolve(empty(name, 256, 256), keep=find_precision("float:F16"))
    plan = RECIPES["Q6_K"].plan([slot], wide)
    assert plan.assignments[0].precision.kind == "F16"
    assert plan.assignments[0].reason


def test_what_looks_like_it_but_is_quantized(wide: ModelConfig):
    slots = [empty("blk.0.time_mix_value.weight", 256, 256), empty("blk.0.attn_q.weight", 256, 256)]
    assert {a.precision.kind for a in RECIPES["Q6_K"].plan(slots, wide)} == {"Q6_K"}
    assert RECIPES["Q6_K"].plan([empty("a.weight", 1, 256)], wide).assignments[0].reason == "a vector"
    assert RECIPES["Q6_K"].plan([empty("a.lora", 256, 256)], wide).assignments[0].reason == "no weight"
