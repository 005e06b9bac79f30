"""Checkpoints of optimum-quanto: what the library saves, with the values that it decodes."""

from __future__ import annotations

import json
import warnings

import family_oracles as oracles
import numpy as np
import pytest
import torch

import edgekit
from edgekit.tensor import EncodedTensor

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    quanto = pytest.importorskip("optimum.quanto")

CONFIG = {
    "model_type": "llama",
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}


@pytest.mark.parametrize("kind", ["qint8", "qfloat8_e4m3fn"])
def test_every_value_is_the_librarys(kind, tmp_path):
    model = oracles.saved_model(CONFIG, tmp_path / "plain")
    quanto.quantize(model, weights=getattr(quanto, kind))
    quanto.freeze(model)
    wanted = {name: m.weight.dequantize() for name, m in model.named_modules() if hasattr(m, "weight_qtype")}
    model.save_pretrained(tmp_path / "q")
    (tmp_path / "q" / "quanto_qmap.json").write_text(json.dumps(quanto.quantization_map(model)))
    artifact = edgekit.open(tmp_path / "q")
    assert artifact.model.tensors
    assert len(wanted) == 15
    for name, values in wanted.items():
        tensor = artifact.tensors[f"{name}.weight"]
        assert isinstance(tensor, EncodedTensor)
        assert values.dtype == torch.float32
        np.testing.assert_array_equal(tensor.float32(), values.detach().numpy(), err_msg=name)
