"""Adapters: what merging computes, by hand, and what is refused. peft's own merging is in `tests/oracles`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import edgekit
from edgekit.cli import cli
from edgekit.errors import EdgekitError, InvalidFileError, MissingFileError, UnsupportedModelError, UsageError
from edgekit.formats import safetensors
from edgekit.formats.adapters import open_adapter
from edgekit.pipeline.merging import merged

Q, EMBEDDING = "model.layers.0.self_attn.q_proj", "model.embed_tokens"
START = "base_model.model."
CONFIG = {
    "model_type": "llama",
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "vocab_size": 12,
    "max_position_embeddings": 16,
    "tie_word_embeddings": True,
    "_name_or_path": "some/Base-1B",
}
SHAPES = {
    f"{EMBEDDING}.weight": (12, 16),
    "model.norm.weight": (16,),
    "model.layers.0.input_layernorm.weight": (16,),
    "model.layers.0.post_attention_layernorm.weight": (16,),
    **{f"model.layers.0.self_attn.{name}_proj.weight": (16, 16) for name in "qkvo"},
    **{f"model.layers.0.mlp.{name}_proj.weight": (24, 16) for name in ("gate", "up")},
    "model.layers.0.mlp.down_proj.weight": (16, 24),
}
rng = np.random.default_rng(15)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    directory = tmp_path / "base"
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(CONFIG))
    arrays = {name: rng.normal(0, 0.1, shape).astype(np.float32) for name, shape in SHAPES.items()}
    safetensors.write(directory / "model.safetensors", arrays)
    return directory


def matrices(module: str = Q, rank: int = 2, out: int = 16, cols: int = 16) -> dict[str, np.ndarray]:
    a, b = (rng.normal(0, 1, shape).astype(np.float32) for shape in ((rank, cols), (out, rank)))
    return {f"{START}{module}.lora_A.weight": a, f"{START}{module}.lora_B.weight": b}


def adapter(directory: Path, tensors: Mapping[str, np.ndarray] | None = None, **config: object) -> Path:
    directory.mkdir()
    given = {"peft_type": "LORA", "base_model_name_or_path": "some/Base-1B", "r": 2, "lora_alpha": 6} | config
    (directory / "adapter_config.json").write_text(json.dumps(given))
    safetensors.write(directory / "adapter_model.safetensors", matrices() if tensors is None else tensors)
    return directory


def values(artifact: edgekit.Artifact, name: str) -> np.ndarray:
    tensor = artifact.tensors[name]
    return tensor.float32().reshape(tensor.shape).astype(np.float64)


@pytest.mark.parametrize(
    ("config", "scale"),
    [
        ({}, 3.0),
        ({"use_rslora": True}, 6 / np.sqrt(2)),
        ({"alpha_pattern": {"q_proj": 5}}, 2.5),
        ({"alpha_pattern": {"k_proj": 5, "layers.*.q_proj": 1, "q_proj": 7}}, 0.5),
        ({"alpha_pattern": {"proj": 5}}, 3.0),
        ({"r": 8, "rank_pattern": {"q_proj": 2}}, 3.0),
    ],
)
def test_lora(tmp_path: Path, base: Path, config: dict[str, object], scale: float) -> None:
    tensors = matrices()
    found = merged(base, adapter(tmp_path / "a", tensors, **config))
    a, b = (each.astype(np.float64) for each in tensors.values())
    before = edgekit.open(base)
    expected = values(before, f"{Q}.weight") + scale * (b @ a)
    np.testing.assert_allclose(values(found, f"{Q}.weight"), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(
        found.tensors[f"{Q}.weight"].float32(3, 9), found.tensors[f"{Q}.weight"].float32()[3:9]
    )
    unchanged = [name for name in SHAPES if name != f"{Q}.weight"]
    assert all(found.tensors[name] is not None for name in unchanged)
    for name in unchanged:
        np.testing.assert_array_equal(values(found, name), values(before, name))


@pytest.mark.parametrize("stored", ["lora_magnitude_vector", "lora_magnitude_vector.weight"])
def test_dora(tmp_path: Path, base: Path, stored: str) -> None:
    tensors, magnitude = matrices(), rng.uniform(0.5, 2, 16).astype(np.float32)
    whole = {**tensors, f"{START}{Q}.{stored}": magnitude}
    found = merged(base, adapter(tmp_path / "a", whole, use_dora=True))
    a, b = (each.astype(np.float64) for each in tensors.values())
    changed = values(edgekit.open(base), f"{Q}.weight") + 3 * (b @ a)
    expected = magnitude[:, None] * changed / np.linalg.norm(changed, axis=1, keepdims=True)
    np.testing.assert_allclose(values(found, f"{Q}.weight"), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dora", [False, True])
def test_an_embedding(tmp_path: Path, base: Path, dora: bool) -> None:
    a, b = rng.normal(0, 1, (2, 12)).astype(np.float32), rng.normal(0, 1, (16, 2)).astype(np.float32)
    tensors = {f"{START}{EMBEDDING}.lora_embedding_A": a, f"{START}{EMBEDDING}.lora_embedding_B": b}
    magnitude = rng.uniform(0.5, 2, 16).astype(np.float32)
    tensors |= {f"{START}{EMBEDDING}.lora_magnitude_vector": magnitude} if dora else {}
    found = merged(base, adapter(tmp_path / "a", tensors, use_dora=dora))
    expected = values(edgekit.open(base), f"{EMBEDDING}.weight") + 3 * (b.astype(np.float64) @ a).T
    if dora:
        expected *= magnitude / np.linalg.norm(expected, axis=0)
    np.testing.assert_allclose(values(found, f"{EMBEDDING}.weight"), expected, rtol=1e-5, atol=1e-6)


def test_an_output_matrix_of_its_own(tmp_path: Path, base: Path) -> None:
    """Where the embedding was the output matrix, the written configuration says that it no longer is."""
    output = rng.normal(0, 1, (12, 16)).astype(np.float32)
    tensors = {**matrices(), f"{START}lm_head.weight": output}
    written = edgekit.merge(base, adapter(tmp_path / "a", tensors, modules_to_save=["lm_head"]), to=tmp_path / "m")
    np.testing.assert_array_equal(written.tensors["lm_head.weight"].float32(), output)
    assert not json.loads((tmp_path / "m" / "config.json").read_text())["tie_word_embeddings"]
    assert not written.model.config.tied


def test_merging_at_the_command_line(tmp_path: Path, base: Path) -> None:
    """Quantized at once; the manifest has the adapter among its sources, and says what was merged."""
    source = adapter(tmp_path / "a")
    result = CliRunner().invoke(
        cli, ["merge", str(base), str(source), "--to", str(tmp_path / "m"), "--recipe", "affine:int4-sym-g8", "--json"]
    )
    assert result.exit_code == 0, result.output
    manifest = edgekit.open(tmp_path / "m").manifest
    assert manifest is not None
    assert manifest.notes["merged"] == "the LoRA adapter a of some/Base-1B was merged: 1 matrix changed"
    assert {"adapter_model.safetensors", "adapter_config.json", "model.safetensors"} <= set(manifest.sources)
    assert manifest.tensors[f"{Q}.weight"]["precision"] == "affine:int4-sym-g8"
    assert edgekit.open(base).tensors.keys() == SHAPES.keys()


def test_a_merged_model_runs(tmp_path: Path, base: Path) -> None:
    source = adapter(tmp_path / "a")
    edgekit.merge(base, source, to=tmp_path / "m")
    with edgekit.load(merged(base, source), runtime="numpy") as lazy, edgekit.load(tmp_path / "m") as stored:
        np.testing.assert_array_equal(lazy.logits([1, 2, 3]), stored.logits([1, 2, 3]))


REFUSED: dict[str, tuple[dict[str, object], dict[str, np.ndarray] | None, type[EdgekitError], str]] = {
    "another kind": ({"peft_type": "IA3"}, None, UnsupportedModelError, "peft_type is 'IA3'; merged are LORA"),
    "a field": (
        {"use_qalora": True},
        None,
        UnsupportedModelError,
        r"has the field 'use_qalora' \(True\), which is not",
    ),
    "layers copied": ({"layer_replication": [[0, 1]]}, None, UnsupportedModelError, "'layer_replication'"),
    "another rank": ({"r": 4}, None, InvalidFileError, r"q_proj has A \[2, 16\] and B .* says that its rank is 4"),
    "an alpha": ({"lora_alpha": "8"}, None, InvalidFileError, "lora_alpha is '8', a finite number is needed"),
    "an endless pattern": (
        {"alpha_pattern": {"(a+)+b": 3}},
        None,
        UnsupportedModelError,
        r"alpha_pattern has the pattern '\(a\+\)\+b', which is not followed",
    ),
    "no B": (
        {},
        {f"{START}{Q}.lora_A.weight": np.ones((2, 16), np.float32)},
        InvalidFileError,
        "lora_B.weight is miss",
    ),
    "no magnitude": ({"use_dora": True}, None, InvalidFileError, "q_proj.lora_magnitude_vector is missing"),
    "a short magnitude": (
        {"use_dora": True},
        {**matrices(), f"{START}{Q}.lora_magnitude_vector": np.ones(8, np.float32)},
        InvalidFileError,
        r"lora_magnitude_vector has shape \[8\], 16 numbers are needed",
    ),
    "tokens": (
        {},
        {**matrices(), f"{START}{EMBEDDING}.token_adapter.trainable_tokens_delta": np.ones((2, 16), np.float32)},
        UnsupportedModelError,
        "trainable_tokens_delta' is of a kind that is not merged",
    ),
    "another module": (
        {},
        matrices("model.layers.7.self_attn.q_proj"),
        UnsupportedModelError,
        r"adapter, which was trained on some/Base-1B, is of another model than .*base: 1 of the 1 tensors that it changes "
        r"do not exist there \(model.layers.7.self_attn.q_proj.weight\)",
    ),
    "another width": (
        {},
        matrices(out=32),
        UnsupportedModelError,
        r"of another model .*q_proj has shape \[16, 16\], the adapter changes \[32, 16\]",
    ),
    "more tokens": (
        {},
        {**matrices(), f"{START}{EMBEDDING}.weight": np.ones((14, 16), np.float32)},
        UnsupportedModelError,
        r"embed_tokens.weight has shape \[12, 16\], the adapter replaces it by \[14, 16\]; where it adds tokens, resize",
    ),
    "no bias": (
        {},
        {**matrices(), f"{START}{Q}.lora_B.bias": np.ones(16, np.float32)},
        UnsupportedModelError,
        r"q_proj gets a bias \(lora_bias\) where the model has none",
    ),
    "another name": (
        {"base_model_name_or_path": "other/Model-7B"},
        None,
        UsageError,
        r"was trained on other/Model-7B, and .*base says that it is some/Base-1B; .* allow it with allow_other_base=True",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused(tmp_path: Path, base: Path, case: str) -> None:
    config, tensors, kind, message = REFUSED[case]
    with pytest.raises(kind, match=message):
        edgekit.merge(base, adapter(tmp_path / "a", tensors, **config), to=tmp_path / "m")
    assert not (tmp_path / "m").exists()


def test_another_name_is_allowed_where_it_is_asked_for(tmp_path: Path, base: Path) -> None:
    other = adapter(tmp_path / "a", base_model_name_or_path="other/Model-7B")
    edgekit.merge(base, other, to=tmp_path / "m", allow_other_base=True)
    near = adapter(tmp_path / "b", base_model_name_or_path="unsloth/base-1b-unsloth-bnb-4bit")
    edgekit.merge(base, near, to=tmp_path / "n")


def test_what_is_no_adapter(tmp_path: Path, base: Path) -> None:
    with pytest.raises(MissingFileError, match=r"adapter_config.json: no such file; give the directory of an adapter"):
        open_adapter(base)
    source = adapter(tmp_path / "a")
    (source / "adapter_model.safetensors").rename(source / "adapter_model.bin")
    with pytest.raises(InvalidFileError, match="reading a pickle can run any program"):
        open_adapter(source)
    (source / "adapter_model.bin").unlink()
    with pytest.raises(MissingFileError, match="fetch the adapter's weights"):
        open_adapter(source)


def test_a_recipe_and_a_dtype_exclude_each_other(tmp_path: Path, base: Path) -> None:
    with pytest.raises(UsageError, match='a recipe and dtype="F16" exclude each other'):
        edgekit.merge(base, adapter(tmp_path / "a"), to=tmp_path / "m", recipe="affine:int4-sym-g8", dtype="F16")


def test_the_sources_are_no_target(tmp_path: Path, base: Path) -> None:
    source = adapter(tmp_path / "a")
    for target in (base, source / "inside"):
        with pytest.raises(UsageError, match="the target"):
            edgekit.merge(base, source, to=target, overwrite=True)
