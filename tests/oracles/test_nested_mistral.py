"""Ministral 3 and Mistral Small 3 as they are published: the language model of a multimodal checkpoint."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import family_oracles as oracles
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import edgekit
from edgekit.architectures.forward import Transformer
from edgekit.errors import UnsupportedModelError

FAMILIES = Path(__file__).with_name("families")


@pytest.mark.parametrize("family", ["ministral3", "mistral"])
@pytest.mark.parametrize(
    ("decoder", "head"), [("language_model.model.", "language_model."), ("model.language_model.", "")], ids=["4", "5"]
)
def test_the_language_model_is_found(family, decoder, head, tmp_path):
    folder = tmp_path / "hf"
    model = oracles.saved_model(runpy.run_path(str(FAMILIES / f"{family}.py"))["BASE"], folder)
    found = load_file(folder / "model.safetensors")
    whole = {
        decoder + name.removeprefix("model.") if name.startswith("model.") else head + name: tensor
        for name, tensor in found.items()
    }
    whole["vision_tower.ln_pre.weight"] = np.ones(8, np.float32)
    save_file(whole, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({"model_type": "mistral3", "text_config": config}))
    opened = edgekit.open(folder).model
    assert opened.config.family == family
    logits = Transformer(opened).logits(oracles.TOKENS)
    assert oracles.relative(logits, oracles.transformers_logits(model)) < 1e-4

    config["model_type"] = "qwen2"
    (folder / "config.json").write_text(json.dumps({"model_type": "mistral3", "text_config": config}))
    with pytest.raises(UnsupportedModelError, match="model_type of text_config is 'qwen2'"):
        edgekit.open(folder).model.config  # noqa: B018
