"""gpt-oss with its experts in MXFP4: every block reaches the GGUF file unchanged."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import family_oracles as oracles
import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file, save_file

import edgekit
from edgekit.architectures.forward import Transformer

_SPEC = importlib.util.spec_from_file_location("family_gpt_oss", Path(__file__).with_name("families") / "gpt_oss.py")
gpt_oss = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(gpt_oss)
EXPERTS, WIDTH, FFN = 8, 64, 64
CONFIG = gpt_oss.BASE | {"intermediate_size": FFN}


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """A directory as OpenAI publishes it: random codes, exponents about 2^-4."""
    folder = tmp_path_factory.mktemp("mxfp4")
    oracles.saved_model(CONFIG, folder)
    tensors, random = load_file(folder / "model.safetensors"), np.random.default_rng(5)
    for name in [n for n in tensors if n.endswith("experts.gate_up_proj") or n.endswith("experts.down_proj")]:
        rows, cols = (2 * FFN, WIDTH) if "gate_up" in name else (WIDTH, FFN)
        del tensors[name]
        tensors[f"{name}_blocks"] = random.integers(0, 256, (EXPERTS, rows, cols // 32, 16), np.uint8)
        tensors[f"{name}_scales"] = random.integers(122, 125, (EXPERTS, rows, cols // 32), np.uint8)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "mxfp4", "modules_to_not_convert": []}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_numpy_and_llama_cpp_compute_what_transformers_computes(packed, tmp_path):
    model = transformers.AutoModelForCausalLM.from_pretrained(
        packed,
        attn_implementation="eager",
        dtype=torch.float32,
        quantization_config=transformers.Mxfp4Config(dequantize=True),
    )
    expected = oracles.transformers_logits(model.float().eval())
    found = Transformer(edgekit.open(packed).model).logits(oracles.TOKENS)
    # transformers decodes to bfloat16, which holds every product of a code and a power of two.
    assert oracles.relative(found, expected) < 1e-4
    artifact = edgekit.convert(packed, tmp_path / "model.gguf")
    kinds = {name: t.precision.name for name, t in artifact.tensors.items() if "_exps.weight" in name}
    assert set(kinds.values()) == {"ggml:MXFP4"}
    assert oracles.relative(Transformer(artifact.model).logits(oracles.TOKENS), expected) < 1e-4


def test_every_block_is_carried_over(packed, tmp_path):
    artifact = edgekit.convert(packed, tmp_path / "model.gguf")
    given = load_file(packed / "model.safetensors")
    for layer in range(CONFIG["num_hidden_layers"]):
        for name, part, first, step in (("gate", "gate_up", 0, 2), ("up", "gate_up", 1, 2), ("down", "down", 0, 1)):
            stored = artifact.tensors[f"blk.{layer}.ffn_{name}_exps.weight"].read().parts["blocks"].reshape(-1, 17)
            prefix = f"model.layers.{layer}.mlp.experts.{part}_proj"
            codes = given[f"{prefix}_blocks"][:, first::step].reshape(-1, 16)
            np.testing.assert_array_equal(stored[:, 0], given[f"{prefix}_scales"][:, first::step].reshape(-1))
            low, high = codes & 15, codes >> 4
            flat = np.stack([low, high], axis=-1).reshape(-1, 32)
            np.testing.assert_array_equal(stored[:, 1:], flat[:, :16] | flat[:, 16:] << 4)


def test_a_ramp_that_llama_cpp_rounds_is_computed_and_noted(tmp_path):
    rope = gpt_oss.ROPE | {"truncate": False}
    model = oracles.saved_model(CONFIG | {"rope_parameters": rope}, tmp_path / "hf")
    found = Transformer(edgekit.open(tmp_path / "hf").model).logits(oracles.TOKENS)
    assert oracles.relative(found, oracles.transformers_logits(model)) < 1e-4
    artifact = edgekit.convert(tmp_path / "hf", tmp_path / "model.gguf", dtype="F32")
    assert artifact.notes["otherwise"] == (
        "llama.cpp rounds the borders of yarn's ramp, which this model does not (truncate: false): its logits "
        "lie up to a hundredth of their standard deviation from transformers'"
    )
    llama = oracles.llama_logits({"it": artifact.path}, tmp_path)["it"]
    assert 1e-5 < oracles.deviations(llama, found) < 1e-2
