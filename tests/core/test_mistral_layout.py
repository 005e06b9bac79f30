"""Mistral's params.json and consolidated.safetensors: the same model as transformers' directory of it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import edgekit
from edgekit.errors import InvalidFileError, MissingFileError, UnsupportedModelError
from edgekit.formats import safetensors
from edgekit.formats._mistral import renamed
from edgekit.numerics.smallfloats import E4M3
from edgekit.tensor import EncodedTensor, Tensor

PARAMS = {
    "dim": 32,
    "n_layers": 2,
    "head_dim": 8,
    "hidden_dim": 48,
    "n_heads": 4,
    "n_kv_heads": 2,
    "norm_eps": 1e-5,
    "vocab_size": 40,
    "rope_theta": 1_000_000.0,
    "max_seq_len": 64,
}
CONFIG = {
    "model_type": "mistral",
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "head_dim": 8,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "vocab_size": 40,
    "rope_theta": 1_000_000.0,
    "max_position_embeddings": 64,
    "sliding_window": None,
}
rng = np.random.default_rng(15)


def own_tensors() -> dict[str, np.ndarray]:
    """A random model in Mistral's names and order."""
    shapes: dict[str, tuple[int, ...]] = {
        "tok_embeddings.weight": (40, 32),
        "norm.weight": (32,),
        "output.weight": (40, 32),
    }
    for layer in range(2):
        start = f"layers.{layer}."
        shapes |= {f"{start}attention.wq.weight": (32, 32), f"{start}attention.wo.weight": (32, 32)}
        shapes |= {f"{start}attention.w{name}.weight": (16, 32) for name in "kv"}
        shapes |= {f"{start}feed_forward.w{name}.weight": (48, 32) for name in "13"}
        shapes |= {f"{start}feed_forward.w2.weight": (32, 48)}
        shapes |= {f"{start}{name}_norm.weight": (32,) for name in ("attention", "ffn")}
    return {name: rng.normal(0, 0.3, shape).astype(np.float32) for name, shape in shapes.items()}


def theirs(own: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The same in transformers' form, as its converter makes it (`permute_for_rope`)."""
    names = {
        "tok_embeddings": "model.embed_tokens",
        "attention_norm": "input_layernorm",
        "ffn_norm": "post_attention_layernorm",
        "attention.w": "self_attn.",
        "feed_forward.w1": "mlp.gate_proj",
        "feed_forward.w2": "mlp.down_proj",
        "feed_forward.w3": "mlp.up_proj",
    }
    found = {}
    for name, values in own.items():
        if name == "output.weight":
            found["lm_head.weight"] = values
            continue
        full = name
        for key, value in names.items():
            full = full.replace(key, value)
        for each in "qkvo":
            full = full.replace(f"self_attn.{each}.", f"self_attn.{each}_proj.")
        for key, heads in (("wq", 4), ("wk", 2)):
            if key in name:
                values = values.reshape(heads, 4, 2, 32).swapaxes(1, 2).reshape(-1, 32)
        found[full if full.startswith("model.") else f"model.{full}"] = values
    return found


def put(directory: Path, tensors: dict[str, np.ndarray], params: dict[str, object] | None = None) -> Path:
    directory.mkdir()
    (directory / "params.json").write_text(json.dumps(PARAMS | (params or {})))
    safetensors.write(directory / "consolidated.safetensors", tensors)
    return directory


@pytest.mark.parametrize("file", ["", "consolidated.safetensors"])
def test_it_is_the_same_model(tmp_path: Path, file: str) -> None:
    own = own_tensors()
    source = put(tmp_path / "own", own)
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "config.json").write_text(json.dumps(CONFIG))
    safetensors.write(tmp_path / "hf" / "model.safetensors", theirs(own))
    found, expected = edgekit.open(source / file).model, edgekit.open(tmp_path / "hf").model
    assert found.config == expected.config
    for role, tensor in expected.tensors.items():
        np.testing.assert_array_equal(found.tensors[role].float32(), tensor.float32())
    with edgekit.load(source) as ours, edgekit.load(tmp_path / "hf") as transformers:
        np.testing.assert_array_equal(ours.logits([1, 2, 3]), transformers.logits([1, 2, 3]))


def test_queries_and_keys_meet_as_in_mistrals_own_rotation() -> None:
    """mistral-inference, rope.py: neighbours are complex numbers that are multiplied by e^(i m theta)."""
    own = {f"layers.0.attention.w{name}.weight": rng.normal(0, 1, (8, 16)).astype(np.float32) for name in "qk"}
    given = {name: Tensor.of(name, values) for name, values in own.items()}
    found = renamed(given, {"num_attention_heads": 1, "num_key_value_heads": 1})
    x, angles = rng.normal(0, 1, (5, 16)), np.arange(5)[:, None] * 10_000.0 ** (-np.arange(4) / 4)

    def by_neighbours(matrix: np.ndarray) -> np.ndarray:
        pairs = (x @ matrix.T).reshape(5, 4, 2)
        turned = (pairs[..., 0] + 1j * pairs[..., 1]) * np.exp(1j * angles)
        return np.stack([turned.real, turned.imag], -1).reshape(5, 8)

    def by_halves(matrix: np.ndarray) -> np.ndarray:
        first, second = np.split(x @ matrix.T, 2, axis=1)
        cos, sin = np.cos(angles), np.sin(angles)
        return np.concatenate([first * cos - second * sin, second * cos + first * sin], 1)

    expected = by_neighbours(own["layers.0.attention.wq.weight"]) @ by_neighbours(own["layers.0.attention.wk.weight"]).T
    q, k = (found[f"model.layers.0.self_attn.{name}_proj.weight"].float32() for name in "qk")
    np.testing.assert_allclose(by_halves(q) @ by_halves(k).T, expected, rtol=1e-10)


def test_it_is_written_as_transformers_directory(tmp_path: Path) -> None:
    own = own_tensors()
    written = edgekit.convert(put(tmp_path / "own", own), tmp_path / "m")
    expected = theirs(own)
    assert written.tensors.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_array_equal(written.tensors[name].float32().reshape(values.shape), values)
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    assert config["model_type"] == "mistral"
    assert "no_tokenizer" in written.notes


def test_several_files_with_an_index(tmp_path: Path) -> None:
    own = own_tensors()
    source = put(tmp_path / "own", own)
    (source / "consolidated.safetensors").unlink()
    names = list(own)
    halves = {f"consolidated-0000{i + 1}-of-00002.safetensors": names[i::2] for i in range(2)}
    for file, held in halves.items():
        safetensors.write(source / file, {name: own[name] for name in held})
    index = {"weight_map": {name: file for file, held in halves.items() for name in held}}
    (source / "consolidated.safetensors.index.json").write_text(json.dumps(index))
    assert edgekit.open(source).model.tensors
    (source / "consolidated-00002-of-00002.safetensors").unlink()
    with pytest.raises(MissingFileError, match=r"the shard is missing; consolidated.safetensors.index.json has 10"):
        edgekit.open(source)


def test_8_bit_floats(tmp_path: Path) -> None:
    import ml_dtypes

    own = own_tensors()
    matrix = "layers.1.attention.wq"
    codes = rng.integers(0, 120, (32, 32), np.uint8)
    own |= {
        f"{matrix}.weight": codes.view(ml_dtypes.float8_e4m3fn),
        f"{matrix}.qscale_weight": np.array(0.25, np.float32),
        f"{matrix}.qscale_act": np.array(3, np.float32),
    }
    quantization = {"qformat_weight": "fp8_e4m3", "qscheme_act": "TENSOR"}
    found = edgekit.open(put(tmp_path / "own", own, {"quantization": quantization}))
    tensor = found.model.tensors["blk.1.attn_q.weight"]
    assert isinstance(tensor, EncodedTensor)
    expected = E4M3[codes].reshape(4, 4, 2, 32).swapaxes(1, 2).reshape(32, 32) * np.float32(0.25)
    np.testing.assert_array_equal(tensor.float32(), expected)
    np.testing.assert_array_equal(tensor.float32(5, 19), expected[5:19])
    with pytest.raises(UnsupportedModelError, match=r"params.json has quantization .*int4.*; read is"):
        edgekit.open(put(tmp_path / "int4", own, {"quantization": {"qformat_weight": "int4"}}))


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        (
            {"moe": {"num_experts": 8}},
            UnsupportedModelError,
            r"the field 'moe' .* which is not understood; fetch the model",
        ),
        ({"vision_encoder": {"dim": 8}}, UnsupportedModelError, "the field 'vision_encoder'"),
        ({"yarn": {"factor": 8}}, UnsupportedModelError, "the field 'yarn'"),
        ({"dim": None}, InvalidFileError, "params.json lacks dim; fetch it again"),
    ],
)
def test_what_is_refused(tmp_path: Path, change: dict[str, object], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        edgekit.open(put(tmp_path / "own", own_tensors(), change))


def test_a_tensor_that_no_such_model_has_is_refused(tmp_path: Path) -> None:
    own = own_tensors() | {"layers.0.attention.wx.weight": np.ones((4, 4), np.float32)}
    with pytest.raises(InvalidFileError, match=r"wx.weight"):
        _ = edgekit.open(put(tmp_path / "own", own)).model


def test_transformers_files_beside_it_come_first(tmp_path: Path) -> None:
    source = put(tmp_path / "both", {"tok_embeddings.weight": np.ones((40, 32), np.float32)})
    (source / "config.json").write_text(json.dumps(CONFIG))
    safetensors.write(source / "model.safetensors", theirs(own_tensors()))
    assert "model.embed_tokens.weight" in edgekit.open(source).tensors
