"""Random models of every family: transformers computes the logits, edgekit writes the GGUF file, llama.cpp runs it."""

from __future__ import annotations

import ctypes
import math
from pathlib import Path

import llama_cpp
import numpy as np
import pytest
import torch
import transformers

import edgekit
from edgekit.architectures import Model
from edgekit.architectures.hf import model_from_hf
from edgekit.artifact import Artifact
from edgekit.tensor import Tensor

VOCAB, TOKENS = 96, 40
#: Relative to the largest logit. Both sides compute in float32 and sum in another order: 2.4e-6 measured.
TOLERANCE = 1e-5
#: ggml's GELU is a table over float16. The test puts that table into transformers too, but an argument that
#: differs in its last bit may fall on the table's next entry: 1.1e-4 measured, 2.3e-4 without the table.
GELU_TOLERANCE = 2e-4

_SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "tie_word_embeddings": False,
    "pad_token_id": None,
}
_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
_YARN = {"rope_type": "yarn", "rope_theta": 100.0, "factor": 4.0, "original_max_position_embeddings": 32}
_LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 100.0,
    "long_factor": [1.0 + 0.5 * i for i in range(8)],
    "short_factor": [1.0 + 0.1 * i for i in range(8)],
    "original_max_position_embeddings": 16,
}
_LINEAR = {"rope_type": "linear", "rope_theta": 100.0, "factor": 4.0}
_GEMMA3_ROPE = {
    "full_attention": {"rope_type": "linear", "rope_theta": 1000.0, "factor": 8.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
}

CASES = {
    "llama": ("LlamaConfig", {}),
    "llama-biases": ("LlamaConfig", {"attention_bias": True}),
    "llama-tied": ("LlamaConfig", {"tie_word_embeddings": True}),
    "llama-llama3": ("LlamaConfig", {"rope_parameters": _LLAMA3}),
    "llama-linear": ("LlamaConfig", {"rope_parameters": _LINEAR}),
    "llama-yarn": ("LlamaConfig", {"rope_parameters": _YARN}),
    "mistral-wide-heads": ("MistralConfig", {"head_dim": 32, "sliding_window": None}),
    "qwen2": ("Qwen2Config", {}),
    "qwen2-yarn": ("Qwen2Config", {"rope_parameters": _YARN}),
    "qwen3": ("Qwen3Config", {"head_dim": 32}),
    "phi3": ("Phi3Config", {"sliding_window": None}),
    "phi3-longrope": (
        "Phi3Config",
        {"rope_parameters": _LONGROPE, "sliding_window": None, "original_max_position_embeddings": 16},
    ),
    "llama-longrope": ("LlamaConfig", {"rope_parameters": _LONGROPE}),
    "gemma": ("GemmaConfig", {"head_dim": 32, "tie_word_embeddings": True}),
    "gemma2": ("Gemma2Config", {"head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 8}),
    "gemma3": (
        "Gemma3TextConfig",
        {"head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 8, "rope_parameters": _GEMMA3_ROPE},
    ),
    "gemma3-every-other": (
        "Gemma3TextConfig",
        {
            "head_dim": 32,
            "query_pre_attn_scalar": 32,
            "sliding_window": 8,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
        },
    ),
}


@pytest.fixture(scope="module", autouse=True)
def _quiet():
    torch.set_num_threads(1)
    callback = llama_cpp.llama_log_callback(lambda *_: None)
    llama_cpp.llama_log_set(callback, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    yield
    llama_cpp.llama_log_set(llama_cpp.llama_log_callback(0), ctypes.c_void_p(0))


def random_model(kind: str, changes: dict[str, object]) -> transformers.PreTrainedModel:
    torch.manual_seed(20)
    sizes = dict(_SIZES)
    if kind in ("Gemma2Config", "Gemma3TextConfig"):
        sizes["tie_word_embeddings"] = True
    config = getattr(transformers, kind)(**(sizes | changes), attn_implementation="eager")
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    for name, parameter in model.named_parameters():  # biases and norms are created as constants
        with torch.no_grad():
            spread = 0.3 if name.endswith("norm.weight") else 1 / math.sqrt(parameter.shape[-1])
            parameter.add_(torch.randn_like(parameter) * spread)
    return model


class GgmlGelu(torch.nn.Module):
    """GELU as ggml's CPU backend computes it: from a table over float16 (GGML_GELU_FP16)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.gelu(x.half().float(), approximate="tanh").half().float()


def artifact_of(model: transformers.PreTrainedModel) -> Artifact:
    """As the reader of Hugging Face directories would give it, without the directory."""
    config = model.config.to_dict()
    tensors = {name: Tensor.of(name, p.detach().numpy()) for name, p in model.named_parameters()}

    def load_model() -> Model:
        return model_from_hf(config, tensors)

    return Artifact(Path("random"), "hf", (), config, tensors, load_model, lambda: None)


def llama_logits(path: Path, tokens: list[int]) -> np.ndarray:
    """Logits [tokens, vocabulary] of llama.cpp, one thread, key-value cache in float32."""
    model = llama_cpp.llama_model_load_from_file(str(path).encode(), llama_cpp.llama_model_default_params())
    assert model, f"llama.cpp does not load {path}"
    parameters = llama_cpp.llama_context_default_params()
    parameters.n_ctx, parameters.n_batch, parameters.n_ubatch = 64, 64, 64
    parameters.n_threads = parameters.n_threads_batch = 1
    parameters.type_k = parameters.type_v = 0  # F32
    parameters.flash_attn_type = 0
    context = llama_cpp.llama_init_from_model(model, parameters)
    batch = llama_cpp.llama_batch_init(len(tokens), 0, 1)
    batch.n_tokens = len(tokens)
    for i, token in enumerate(tokens):
        batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.seq_id[i][0], batch.logits[i] = token, i, 1, 0, 1
    assert llama_cpp.llama_decode(context, batch) == 0
    pointer = llama_cpp.llama_get_logits(context)
    logits = np.ctypeslib.as_array(pointer, (len(tokens), VOCAB)).copy()
    llama_cpp.llama_batch_free(batch)
    llama_cpp.llama_free(context)
    llama_cpp.llama_model_free(model)
    return logits


@pytest.mark.parametrize("case", CASES)
def test_llama_cpp_computes_what_transformers_computes(case: str, tmp_path: Path):
    model = random_model(*CASES[case])
    path = tmp_path / "model.gguf"
    edgekit.convert(artifact_of(model), path, dtype="F32")
    tokens = np.random.default_rng(3).integers(0, VOCAB, TOKENS).tolist()
    for layer in model.model.layers if "gemma" in case else ():
        layer.mlp.act_fn = GgmlGelu()
    with torch.no_grad():
        expected = model(torch.tensor([tokens])).logits[0].numpy()
    difference = np.abs(llama_logits(path, tokens) - expected).max() / np.abs(expected).max()
    allowed = GELU_TOLERANCE if "gemma" in case else TOLERANCE
    assert difference < allowed, f"{case}: {difference:.1e} of the largest logit"
