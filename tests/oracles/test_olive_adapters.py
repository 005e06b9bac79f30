"""Fine-tuning with Olive: what it trains lowers the loss, merges as peft merges, and is extracted from graphs.

The session that runs the frameworks installs datasets and bitsandbytes; without them the passes refuse, by name.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from olive_passes import TUNED
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import load_file

import edgekit
from edgekit import sample
from edgekit.errors import UsageError
from edgekit.pipeline.passes import run_pass
from edgekit_olive import isolation
from edgekit_olive.catalogue import entries

pytest.importorskip("olive")
pytest.importorskip("datasets")

TEXT = "The yardstick is written first. " * 60
TRAINING = {
    "max_steps": 12,
    "per_device_train_batch_size": 4,
    "learning_rate": 5e-3,
    "optim": "adamw_torch",
    "gradient_checkpointing": False,
}
OPTIONS = {
    "context": 32,
    "samples": 16,
    "r": 4,
    "lora_dropout": 0.0,
    "torch_dtype": "float32",
    "training_args": TRAINING,
}


@pytest.fixture(scope="module", autouse=True)
def one_process():
    yield
    if isolation._forking.cache_info().currsize:
        isolation._forking().close()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The sample model in float32, and a text that it has not seen."""
    folder = tmp_path_factory.mktemp("model")
    edgekit.convert(sample.path(), folder / "hf", dtype="F32")
    config = json.loads((folder / "hf" / "config.json").read_text())
    (folder / "hf" / "config.json").write_text(
        json.dumps(config | {"torch_dtype": "float32"})
    )  # Olive loads as it says
    made = edgekit.open(folder / "hf")
    (folder / "text.txt").write_text(TEXT)
    return made, folder / "text.txt"


def loss(artifact):
    """Nats a token."""
    return np.log(edgekit.evaluate(artifact, TEXT, context=32).perplexity)


@pytest.mark.parametrize("name", TUNED)
def test_fine_tuning_lowers_the_loss(name, model, tmp_path):
    if entries()[name].obstacle():
        pytest.skip(entries()[name].obstacle())
    source, text = model
    options = OPTIONS | {"calibration": str(text)}
    if "lora_dropout" not in entries()[name].options:
        del options["lora_dropout"]
    adapter = run_pass(source, f"olive:{name}", to=tmp_path / "adapter", options=options)
    assert (adapter.path / "adapter_model.safetensors").stat().st_size < 0.1 * source.nbytes
    quality = adapter.manifest.quality
    assert quality["output_error"] > 0.001  # it changes something, and
    assert quality["cosine"] > 0.5  # leaves a model
    merged = run_pass(
        source, "olive:MergeAdapterWeights", to=tmp_path / "merged", options={"adapter": str(adapter.path)}
    )
    assert merged.manifest.quality["output_error"] < 1e-5  # than the model with the adapter beside it
    assert loss(merged) < 0.8 * loss(source)
    if json.loads((adapter.path / "adapter_config.json").read_text())["peft_type"] != "LORA":
        return
    ours = edgekit.merge(source, adapter.path, to=tmp_path / "ours", dtype="F32", allow_other_base=True)
    for role, tensor in ours.model.tensors.items():
        np.testing.assert_allclose(tensor.float32(), merged.model.tensors[role].float32(), rtol=2e-6, atol=2e-7)


def adapted(path: Path) -> dict[str, np.ndarray]:
    """A graph y = x·W + (x·A)·B, whose nodes are called as torch's exporter calls those of an adapter."""
    rng = np.random.default_rng(7)
    shapes = {"w": (16, 8), "a": (16, 4), "b": (4, 8)}
    weights = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["base"], "/q_proj/base_layer/MatMul"),
        helper.make_node("MatMul", ["x", "a"], ["inner"], "/q_proj/lora_A/MatMul"),
        helper.make_node("MatMul", ["inner", "b"], ["change"], "/q_proj/lora_B/MatMul"),
        helper.make_node("Add", ["base", "change"], ["y"], "/q_proj/Add"),
    ]
    ports = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [2, width]) for n, width in (("x", 16), ("y", 8))]
    constants = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    graph = helper.make_graph(nodes, "g", ports[:1], ports[1:], constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return weights


def test_adapters_are_extracted_from_a_graph(tmp_path):
    """The result computes the same with the file of weights beside it."""
    weights = adapted(tmp_path / "model.onnx")
    options = {"save_format": "safetensors"}
    made = run_pass(tmp_path / "model.onnx", "olive:ExtractAdapters", to=tmp_path / "out", options=options)
    assert made.manifest.quality["output_error"] < 1e-6
    assert made.notes == {}
    saved = load_file(made.path / "adapter_weights.safetensors")
    assert sorted(value.shape for value in saved.values()) == [(4, 8), (16, 4)]
    for value in saved.values():
        np.testing.assert_array_equal(value, weights["a" if value.shape == (16, 4) else "b"])


def test_adapters_are_checked_before_any_work(model, tmp_path):
    source, _ = model
    graph = tmp_path / "model.onnx"
    adapted(graph)

    def refused(message, name="MergeAdapterWeights", of=source, **options):
        with pytest.raises(UsageError, match=message):
            run_pass(of, f"olive:{name}", to=tmp_path / "out", options=options)

    refused("olive:MergeAdapterWeights needs adapter=, a directory of peft's with adapter_config.json")
    refused(r"adapter='.*' has no adapter_config.json; give a directory of peft's", adapter=str(tmp_path))
    refused("adapter= belongs to a Hugging Face directory, this is onnx", "ExtractAdapters", graph, adapter="x")
    refused("make_inputs=false leaves a graph without weights", "ExtractAdapters", graph, make_inputs=False)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "adapter_config.json").write_text("{}")
    refused("the target is the source", adapter=str(tmp_path / "out"))
