"""Adapters as GGUF files: names, order and scales. llama.cpp's logits are compared in `tests/oracles/test_adapters.py`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import edgekit
from edgekit import sample
from edgekit.cli import cli
from edgekit.errors import UnsupportedModelError, UsageError
from edgekit.formats import safetensors
from edgekit_gguf.adapter import write_adapter
from edgekit_gguf.reader import read
from edgekit_gguf.rotary import row_order

START = "base_model.model."
Q, DOWN = "model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj"
CONFIG = edgekit.open(sample.path()).model.config
rng = np.random.default_rng(15)


def matrices(module: str, rank: int = 4) -> dict[str, np.ndarray]:
    out, cols = edgekit.open(sample.path()).tensors[f"{module}.weight"].shape
    a, b = rng.normal(0, 1, (rank, cols)), rng.normal(0, 1, (out, rank))
    return {
        f"{START}{module}.lora_A.weight": a.astype(np.float32),
        f"{START}{module}.lora_B.weight": b.astype(np.float32),
    }


def adapter(directory: Path, tensors: dict[str, np.ndarray], **config: object) -> Path:
    directory.mkdir()
    given = {"peft_type": "LORA", "r": 4, "lora_alpha": 6} | config
    (directory / "adapter_config.json").write_text(json.dumps(given))
    safetensors.write(directory / "adapter_model.safetensors", tensors)
    return directory


def test_names_and_order(tmp_path: Path) -> None:
    """Queries and keys have llama.cpp's order of rows in B; A is as it was."""
    tensors = {**matrices(Q), **matrices(DOWN)}
    write_adapter(sample.path(), adapter(tmp_path / "a", tensors), tmp_path / "a.gguf")
    file = read(tmp_path / "a.gguf")
    assert {key: file.metadata[key] for key in ("general.type", "adapter.type", "adapter.lora.alpha")} == {
        "general.type": "adapter",
        "adapter.type": "lora",
        "adapter.lora.alpha": 6.0,
    }
    assert file.metadata["general.architecture"] == "llama"
    order = row_order(len(tensors[f"{START}{Q}.lora_B.weight"]), CONFIG.heads, "to_gguf")
    expected = {
        "blk.0.attn_q.weight.lora_a": tensors[f"{START}{Q}.lora_A.weight"],
        "blk.0.attn_q.weight.lora_b": tensors[f"{START}{Q}.lora_B.weight"][order],
        "blk.1.ffn_down.weight.lora_a": tensors[f"{START}{DOWN}.lora_A.weight"],
        "blk.1.ffn_down.weight.lora_b": tensors[f"{START}{DOWN}.lora_B.weight"],
    }
    found = file.tensors()
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name].float32().reshape(found[name].shape), values)


@pytest.mark.parametrize("config", [{"use_rslora": True}, {"alpha_pattern": {"down_proj": 3}}])
def test_scales_that_one_alpha_cannot_say_are_multiplied_in(tmp_path: Path, config: dict[str, object]) -> None:
    tensors = {**matrices(Q), **matrices(DOWN)}
    write_adapter(sample.path(), adapter(tmp_path / "a", tensors, **config), tmp_path / "a.gguf")
    file = read(tmp_path / "a.gguf")
    assert file.metadata["adapter.lora.alpha"] == 0.0
    scale = np.float32(3 if config.get("use_rslora") else 0.75)
    b = file.tensors()["blk.1.ffn_down.weight.lora_b"].float32()
    np.testing.assert_array_equal(b, tensors[f"{START}{DOWN}.lora_B.weight"] * scale)


@pytest.mark.parametrize(
    ("more", "config", "message"),
    [
        ({f"{START}{DOWN}.lora_magnitude_vector": (1,)}, {"use_dora": True}, "it is DoRA, which llama.cpp's"),
        ({f"{START}model.norm.weight": None}, {}, "it replaces model.norm.weight, which llama.cpp would ignore"),
    ],
)
def test_what_llamacpp_lacks_is_refused(tmp_path: Path, more: dict, config: dict, message: str) -> None:
    tensors = matrices(DOWN)
    for name, size in more.items():
        whole = CONFIG.width if size is None else len(tensors[f"{START}{DOWN}.lora_B.weight"])
        tensors[name] = np.ones(whole, np.float32)
    with pytest.raises(UnsupportedModelError, match=rf"{message}.*; merge it into the model \(`edgekit merge`\)"):
        write_adapter(sample.path(), adapter(tmp_path / "a", tensors, **config), tmp_path / "a.gguf")
    assert not (tmp_path / "a.gguf").exists()


def test_another_model_and_another_format_are_refused(tmp_path: Path, sample_gguf: Path) -> None:
    source = adapter(tmp_path / "a", matrices(DOWN))
    with pytest.raises(UnsupportedModelError, match="this is gguf; give that model's directory"):
        write_adapter(sample_gguf, source, tmp_path / "a.gguf")
    with pytest.raises(UnsupportedModelError, match="adapters are merged into Hugging Face directories, this is gguf"):
        edgekit.merge(sample_gguf, source, to=tmp_path / "m")
    other = adapter(tmp_path / "b", {name.replace("layers.1", "layers.9"): v for name, v in matrices(DOWN).items()})
    with pytest.raises(UnsupportedModelError, match="is of another model than"):
        write_adapter(sample.path(), other, tmp_path / "a.gguf")


def test_the_command_replaces_adapters_and_nothing_else(tmp_path: Path, sample_gguf: Path) -> None:
    source, target = adapter(tmp_path / "a", matrices(DOWN)), tmp_path / "a.gguf"
    arguments = ["adapter", str(sample.path()), str(source), "--to", str(target)]
    for _ in range(2):
        result = CliRunner().invoke(cli, arguments)
        assert result.exit_code == 0, result.output
        assert result.output == f"{target}  1 matrix\n"
    target.write_bytes(sample_gguf.read_bytes())
    with pytest.raises(UsageError, match="exists already and is not an adapter"):
        write_adapter(sample.path(), source, target)
    assert CliRunner().invoke(cli, [*arguments, "--force"]).exit_code == 0


def test_merging_and_converting_at_once(tmp_path: Path) -> None:
    source = adapter(tmp_path / "a", matrices(DOWN))
    whole = edgekit.merge(sample.path(), source, to=tmp_path / "m")
    direct = edgekit.merge(sample.path(), source, to=tmp_path / "m.gguf", recipe="Q8_0")
    again = edgekit.quantize(whole, "Q8_0", to=tmp_path / "again.gguf")
    assert direct.path.read_bytes() == again.path.read_bytes()
