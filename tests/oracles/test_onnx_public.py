"""ONNX models that packages carry: read, run, and quantized as they are.

Magika tells the types of files (one input of 2,048 bytes); Silero's detector of speech has a state, a sample rate and,
in one of its files, branches.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

import edgekit
from edgekit.pipeline.passes import run_pass

FILES = {
    "magika": "models/standard_v3_3/model.onnx",
    "silero_vad": "data/silero_vad.onnx",
}
RANDOM = np.random.default_rng(3)


def path_of(package: str) -> Path:
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        pytest.skip(f"{package} is not installed; pip install --no-deps {package.replace('_', '-')}")
    return Path(spec.origin).parent / FILES[package]


def inputs(package: str) -> dict[str, np.ndarray]:
    if package == "magika":
        return {"bytes": RANDOM.integers(0, 256, (3, 2048)).astype(np.int32)}
    speech = RANDOM.standard_normal((2, 576)).astype(np.float32)
    return {"input": speech, "state": np.zeros((2, 2, 128), np.float32), "sr": np.array(16_000)}


@pytest.mark.parametrize("package", FILES)
def test_models_of_packages(package):
    path, given = path_of(package), inputs(package)
    artifact = edgekit.open(path)
    assert artifact.format == "onnx"
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    expected = dict(zip([each.name for each in session.get_outputs()], session.run(None, given), strict=True))
    with edgekit.load(artifact, "onnxruntime") as model:
        found = model.infer(given)
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-5, atol=1e-6)


def test_the_weights_in_branches_are_read():
    """Silero's weights are constants of two branches, one for each sample rate."""
    path = path_of("silero_vad")
    tensors = edgekit.open(path).tensors
    (choice,) = [node for node in onnx.load(path).graph.node if node.op_type == "If"]
    expected = {
        node.output[0]: onnx.numpy_helper.to_array(node.attribute[0].t)
        for branch in choice.attribute
        for node in branch.g.node
        if node.op_type == "Constant" and node.attribute[0].t.data_type == onnx.TensorProto.FLOAT
    }
    expected = {name: values for name, values in expected.items() if values.size > 1}
    assert len(expected) == 28
    assert tensors.keys() >= expected.keys()
    for name, values in expected.items():
        assert np.array_equal(tensors[name].float32().reshape(values.shape), values), name


def test_the_weights_of_a_classifier_of_files(tmp_path):
    path, given = path_of("magika"), inputs("magika")
    made = run_pass(path, "INT8_DYNAMIC", to=tmp_path / "m")
    assert made.nbytes < 0.6 * path.stat().st_size
    with edgekit.load(path, "onnxruntime") as model, edgekit.load(made, "onnxruntime") as small:
        before, after = (next(iter(each.infer(given).values())) for each in (model, small))
    assert np.array_equal(before.argmax(axis=-1), after.argmax(axis=-1))
