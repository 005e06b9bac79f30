"""Ministral 3 as it is published: the language model of a multimodal checkpoint."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import family_oracles as oracles
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import edgekit
from edgekit.architectures.forward import Transformer
from edgekit.errors import UnsupportedModelError

_SPEC = importlib.util.spec_from_file_location("ministral3", Path(__file__).with_name("families") / "ministral3.py")
MINISTRAL = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(MINISTRAL)


@pytest.mark.parametrize(
    ("decoder", "head"), [("language_model.model.", "language_model."), ("model.language_model.", "")], ids=["4", "5"]
)
def test_the_language_model_is_found(decoder, head, tmp_path):
    folder = tmp_path / "hf"
    model = oracles.saved_model(MINISTRAL.BASE, folder)
    found = load_file(folder / "model.safetensors")
    whole = {
        decoder + name.removeprefix("model.") if name.startswith("model.") else head + name: tensor
        for name, tensor in found.items()
    }
    whole["vision_tower.ln_pre.weight"] = np.ones(8, np.float32)
    save_file(whole, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({"model_type": "mistral3", "text_config": config}))
    logits = Transformer(edgekit.open(folder).model).logits(oracles.TOKENS)
    assert oracles.relative(logits, oracles.transformers_logits(model)) < 1e-4

    config["model_type"] = "mistral"
    (folder / "config.json").write_text(json.dumps({"model_type": "mistral3", "text_config": config}))
    with pytest.raises(UnsupportedModelError, match="model_type of text_config is 'mistral'"):
        edgekit.open(folder).model.config  # noqa: B018
