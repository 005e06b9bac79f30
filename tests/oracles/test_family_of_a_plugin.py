"""A family that a plugin brings in one file runs in numpy, in OpenVINO, and through GGUF in llama.cpp."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import sys
from pathlib import Path

os.environ["NNCF_CI"] = "1"  # no telemetry

import pytest

import edgekit
from edgekit import plugin
from edgekit.architectures import FAMILIES
from edgekit.architectures.forward import KVCache, Transformer


def neighbour(name):
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


oracles, cases = neighbour("family_oracles"), neighbour("openvino_cases")
CONFIG = {
    "model_type": "seed_oss",
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}


@pytest.fixture(scope="module", autouse=True)
def installed():
    """The plugin, as if it were installed."""
    neighbour("family_plugin")
    point = importlib.metadata.EntryPoint("seed-oss", "family_plugin", "edgekit")
    plugins = plugin.build([*plugin.entry_points(), (point, "edgekit-seed-oss", "1.0")])
    patch = pytest.MonkeyPatch()
    patch.setattr("edgekit.architectures._families.manager", lambda: plugins)
    yield
    patch.undo()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """transformers' model, and its directory."""
    folder = tmp_path_factory.mktemp("seed_oss")
    return oracles.saved_model(CONFIG, folder), folder


def test_it_is_one_short_file():
    source = Path(__file__).with_name("family_plugin.py").read_text("utf-8")
    assert len(source.splitlines()) <= 120
    assert "seed_oss" in FAMILIES


def test_numpy(model):
    network = Transformer(edgekit.open(model[1]).model)
    expected = oracles.transformers_logits(model[0])
    assert oracles.relative(network.logits(oracles.TOKENS), expected) < 1e-4
    past = KVCache()
    for start, stop in [(0, 16), (16, 17), (17, 24)]:
        found = network.step(oracles.TOKENS[start:stop], past)
        assert oracles.relative(found, expected[stop - 1]) < 1e-4


def test_through_gguf_in_llama_cpp_and_back(model, tmp_path):
    expected = oracles.transformers_logits(model[0])
    file = edgekit.convert(model[1], tmp_path / "model.gguf", dtype="F32")
    assert file.model.config.family == "seed_oss"
    found = oracles.llama_logits({"it": file.path}, tmp_path)["it"]
    assert oracles.deviations(found, expected) < 1e-4
    edgekit.convert(file, tmp_path / "back")
    assert oracles.relative(oracles.loaded_logits(tmp_path / "back"), expected) < 1e-5


def test_openvino(model, tmp_path):
    edgekit.convert(model[1], tmp_path / "ir", format="openvino")
    found = cases.Compiled(tmp_path / "ir" / "openvino_model.xml")(oracles.TOKENS[None])[0]
    assert oracles.relative(found, oracles.transformers_logits(model[0])) < 1e-4
