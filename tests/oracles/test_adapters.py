"""Adapters against peft: what is merged equals `merge_and_unload`, and llama.cpp computes the same with the GGUF adapter."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import pytest
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM
from transformers.pytorch_utils import Conv1D

import edgekit
from edgekit_gguf.adapter import write_adapter

torch.set_num_threads(1)
transformers.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()

#: peft asks transformers by an old name; and says where its merging changes a tied matrix.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning:peft.*"),
]
TOKENS = list(range(3, 27))
SIZES = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 96,
    "max_position_embeddings": 64,
}
PLAIN = {"r": 4, "lora_alpha": 8}
CASES: dict[str, dict[str, Any]] = {
    "lora": {"target_modules": ["q_proj", "v_proj"]},
    "rslora": {"use_rslora": True, "target_modules": "all-linear"},
    "patterns": {
        "target_modules": "all-linear",
        "rank_pattern": {"layers.0.*q_proj": 2, "up_proj": 6},
        "alpha_pattern": {"down_proj": 3},
    },
    "dora": {"use_dora": True, "target_modules": ["q_proj", "k_proj", "down_proj"]},
    "embedding": {"target_modules": ["embed_tokens", "q_proj", "lm_head"]},
    "embedding-dora": {"use_dora": True, "target_modules": ["embed_tokens", "q_proj"]},
    "saved": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head", "embed_tokens"]},
    "biases": {"target_modules": ["q_proj", "v_proj"], "lora_bias": True},
}
#: With a bias in the layers that get one.
BASES = {"biases": (Qwen2Config, Qwen2ForCausalLM)}


@pytest.fixture(scope="module", autouse=True)
def _quiet() -> Iterator[None]:
    silent = llama_cpp.llama_log_callback(lambda *_: None)
    llama_cpp.llama_log_set(silent, ctypes.c_void_p(0))
    yield
    llama_cpp.llama_log_set(llama_cpp.llama_log_callback(0), ctypes.c_void_p(0))


def trained(directory: Path, case: str, dtype: torch.dtype) -> tuple[Path, Path, Any]:
    """A random model, an adapter of it whose matrices are random too, and what peft merges."""
    torch.manual_seed(0)
    config, model = BASES.get(case, (LlamaConfig, LlamaForCausalLM))
    base, adapter = directory / "base", directory / "adapter"
    model(config(**SIZES, tie_word_embeddings=False)).to(dtype).save_pretrained(base)
    adapted = get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype=dtype), LoraConfig(**PLAIN | CASES[case]))
    with torch.no_grad():
        for values in adapted.parameters():
            if values.requires_grad:
                values.add_(torch.randn_like(values) * 0.05)
    adapted.save_pretrained(adapter)
    return base, adapter, PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=dtype), adapter)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["F32", "BF16"])
@pytest.mark.parametrize("case", CASES)
def test_merging_equals_peft(tmp_path: Path, case: str, dtype: torch.dtype) -> None:
    """In float32 up to the rounding of sums of 96; in bfloat16 peft rounds an embedding's change once more."""
    base, adapter, adapted = trained(tmp_path, case, dtype)
    before = {name: values.float() for name, values in AutoModelForCausalLM.from_pretrained(base).state_dict().items()}
    whole = adapted.merge_and_unload()
    theirs = whole.state_dict()
    ours = edgekit.merge(base, adapter, to=tmp_path / "merged")
    assert ours.tensors.keys() == theirs.keys()
    changed = 0
    for name, values in theirs.items():
        mine, expected = ours.tensors[name].float32().reshape(values.shape), values.float().numpy()
        change = np.abs(expected - before[name].numpy())
        changed += bool(change.max())
        unit = 2.0**-20 if dtype is torch.float32 else 2.0**-7
        np.testing.assert_array_less(np.abs(mine - expected), unit * (np.abs(expected) + change) + 1e-12, err_msg=name)
    assert changed >= 3
    assert ours.notes["merged"].startswith(f"the {'DoRA' if 'dora' in case else 'LoRA'} adapter adapter of ")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=dtype)
    with torch.no_grad():
        difference = again(torch.tensor([TOKENS])).logits - whole(torch.tensor([TOKENS])).logits
    assert difference.abs().max() < (1e-4 if dtype is torch.float32 else 0.2)


def test_a_matrix_that_is_stored_turned(tmp_path: Path) -> None:
    """GPT-2's layers hold [in, out]; its family is not known, so the directory's own names are kept."""
    torch.manual_seed(0)
    sizes = {"n_embd": 32, "n_layer": 1, "n_head": 2, "vocab_size": 64, "n_positions": 32}
    transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes)).save_pretrained(tmp_path / "base")
    for number, dora in enumerate((False, True)):
        base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
        config = LoraConfig(**PLAIN, target_modules=["c_attn", "c_proj"], fan_in_fan_out=True, use_dora=dora)
        adapted = get_peft_model(base, config)
        assert isinstance(adapted.base_model.model.transformer.h[0].attn.c_attn.base_layer, Conv1D)
        with torch.no_grad():
            for values in adapted.parameters():
                if values.requires_grad:
                    values.add_(torch.randn_like(values) * 0.05)
        adapted.save_pretrained(tmp_path / f"adapter{number}")
        theirs = adapted.merge_and_unload().state_dict()
        ours = edgekit.merge(tmp_path / "base", tmp_path / f"adapter{number}", to=tmp_path / f"merged{number}")
        for name, tensor in ours.tensors.items():
            expected = theirs[name].numpy() if name in theirs else theirs[f"transformer.{name}"].numpy()
            mine = tensor.float32().reshape(tensor.shape)
            np.testing.assert_allclose(mine, expected, rtol=2.0**-19, atol=1e-7, err_msg=name)


@pytest.mark.parametrize("case", ["lora", "rslora", "patterns", "embedding"])
def test_llamacpp_computes_the_same_with_the_adapter(tmp_path: Path, case: str) -> None:
    """As with the merged model: 2e-6 standard deviations of the logits measured, sums in another order."""
    base, adapter, adapted = trained(tmp_path, case, torch.float32)
    edgekit.convert(base, tmp_path / "base.gguf")
    edgekit.merge(base, adapter, to=tmp_path / "merged.gguf")
    write_adapter(base, adapter, tmp_path / "adapter.gguf")
    together = logits(tmp_path / "base.gguf", tmp_path / "adapter.gguf")
    merged, alone = logits(tmp_path / "merged.gguf"), logits(tmp_path / "base.gguf")
    assert np.abs(together - alone).max() > merged.std() / 2
    assert np.abs(together - merged).max() < 2e-5 * merged.std()
    with torch.no_grad():
        theirs = adapted(torch.tensor([TOKENS])).logits[0].numpy()
    assert np.abs(together - theirs).max() < 5e-5 * merged.std()


def logits(model: Path, adapter: Path | None = None) -> np.ndarray:
    loaded = llama_cpp.Llama(
        str(model),
        lora_path=None if adapter is None else str(adapter),
        logits_all=True,
        verbose=False,
        n_ctx=64,
        type_k=0,
        type_v=0,
        flash_attn=False,
    )
    loaded.eval(TOKENS)
    found = np.array(loaded.scores[: len(TOKENS)])
    loaded.close()
    return found
