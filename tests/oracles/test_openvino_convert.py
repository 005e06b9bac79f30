"""Models that OpenVINO converts itself: ONNX files and torch modules, against ONNX Runtime and torch."""

import os

os.environ["NNCF_CI"] = "1"  # no telemetry

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper

import edgekit
from edgekit.cli import cli
from edgekit.errors import InvalidFileError, MissingFileError, UnsupportedModelError, UsageError
from edgekit_openvino.convert import convert_model

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
EXACT = {"exact": True, "threads": 1}


@pytest.fixture
def exported(tmp_path):
    """A small convolution, as an ONNX file."""
    rng = np.random.default_rng(0)
    weights = {"w": rng.standard_normal((4, 3, 3, 3)), "m": rng.standard_normal((4, 5))}
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("GlobalAveragePool", ["r"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("MatMul", ["f", "m"], ["y"]),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 8, 8])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 5])
    initializers = [numpy_helper.from_array(w.astype(np.float32), name) for name, w in weights.items()]
    graph = helper.make_graph(nodes, "small", [x], [y], initializers)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), tmp_path / "m.onnx")
    return tmp_path / "m.onnx"


def image(n=2):
    return np.random.default_rng(1).standard_normal((n, 3, 8, 8), np.float32)


def test_the_command_line_converts_onnx(exported, tmp_path):
    said = CliRunner().invoke(cli, ["convert", str(exported), "--to", str(tmp_path / "ir"), "--format", "openvino"])
    assert said.exit_code == 0, said.output
    expected = onnxruntime.InferenceSession(exported).run(None, {"x": image()})[0]
    with edgekit.load(tmp_path / "ir", "openvino", **EXACT) as model:
        np.testing.assert_allclose(model.infer({"x": image()})["y"], expected, atol=1e-5)


def test_the_same_bytes_in_another_place(exported, tmp_path):
    contents = []
    for name in ("one", "two"):
        artifact = edgekit.convert(exported, tmp_path / name, format="openvino")
        contents.append({file.name: file.read_bytes() for file in artifact.files})
    assert contents[0] == contents[1]
    assert set(contents[0]) == {"openvino_model.xml", "openvino_model.bin"}


def test_a_recipe_does_not_apply(exported, tmp_path):
    with pytest.raises(UsageError) as caught:
        edgekit.quantize(exported, "INT8_ASYM", to=tmp_path / "ir", format="openvino")
    assert str(caught.value) == (
        f"{exported}: OpenVINO converts it as a whole, so no recipe applies (INT8_ASYM); convert it first, then compress "
        "or quantize the IR with the passes openvino-compress or openvino-quantize"
    )
    assert not (tmp_path / "ir").exists()


def test_a_torch_module(tmp_path):
    torch.manual_seed(0)
    module = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3), torch.nn.SiLU(), torch.nn.Flatten(), torch.nn.Linear(144, 5)
    ).eval()
    artifact = convert_model(module, tmp_path / "ir", example_input=torch.zeros(1, 3, 8, 8))
    with torch.no_grad():
        expected = module(torch.from_numpy(image())).numpy()
    with edgekit.load(artifact, "openvino", **EXACT) as model:
        (name,) = model.inputs
        (found,) = model.infer({name: image()}).values()
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_what_cannot_be_converted(tmp_path):
    (tmp_path / "bad.onnx").write_bytes(b"no model")
    with pytest.raises(InvalidFileError, match=r"bad\.onnx: OpenVINO does not read it: .*; export it again"):
        edgekit.convert(tmp_path / "bad.onnx", tmp_path / "ir", format="openvino")
    assert not (tmp_path / "ir").exists()
    with pytest.raises(MissingFileError):
        convert_model(tmp_path / "none.onnx", tmp_path / "ir")

    class Broken(torch.nn.Module):
        def forward(self, x):
            raise ValueError("not today")

    with pytest.raises(
        UnsupportedModelError, match=r"Broken: OpenVINO cannot convert it: .*trace it with example_input"
    ):
        convert_model(Broken(), tmp_path / "ir", example_input=torch.zeros(1))
