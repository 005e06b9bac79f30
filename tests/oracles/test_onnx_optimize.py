"""The passes ONNX_OPTIMIZE and ONNX_FLOAT16: what they change, what they keep, and what they refuse.

Run against onnxruntime 1.32.0.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import edgekit
from edgekit import sample
from edgekit.errors import InvalidFileError, QualityGateError, UnsupportedModelError, UsageError
from edgekit.pipeline.passes import run_pass
from edgekit.testing import pass_checks
from edgekit_olive.int8 import Dynamic, Static
from edgekit_olive.optimize import Float16, Optimize

RANDOM = np.random.default_rng(3)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample model in float32."""
    return edgekit.quantize(sample.path(), "float:F32", to=tmp_path_factory.mktemp("m") / "m", format="onnx").path


def foldable(path: Path, dtype: str = "float32") -> Path:
    """A product with the sum of two constants, and a node that changes nothing."""
    weights = [numpy_helper.from_array(RANDOM.standard_normal((8, 4)).astype(dtype), name) for name in "ab"]
    element = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    nodes = [
        helper.make_node("Add", ["a", "b"], ["sum"], "add"),
        helper.make_node("Identity", ["x"], ["same"], "identity"),
        helper.make_node("MatMul", ["same", "sum"], ["y"], "product"),
    ]
    ports = [helper.make_tensor_value_info(name, element, [None, width]) for name, width in (("x", 8), ("y", 4))]
    graph = helper.make_graph(nodes, "g", ports[:1], ports[1:], weights)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    path.write_bytes(made.SerializeToString())
    return path


def test_constants_are_folded(tmp_path):
    source = foldable(tmp_path / "m.onnx")
    made = run_pass(source, "ONNX_OPTIMIZE", to=tmp_path / "o", options={"level": "basic"})
    quality = made.manifest.quality
    assert quality["operators_before"] == {"Add": 1, "Identity": 1, "MatMul": 1}
    assert quality["operators"] == {"MatMul": 1}
    assert quality["cosine"] == pytest.approx(1, abs=1e-6)
    (folded,) = made.tensors.values()
    parts = [tensor.float32() for tensor in edgekit.open(source).tensors.values()]
    np.testing.assert_array_equal(folded.float32(), parts[0] + parts[1])


def test_operators_of_a_decoder_are_fused_and_it_runs(model, tmp_path):
    made = run_pass(model, "ONNX_OPTIMIZE", to=tmp_path / "o")
    before, after = (made.manifest.quality[key] for key in ("operators_before", "operators"))
    assert before["Sigmoid"] == after["QuickGelu"] == 3
    assert "Sigmoid" not in after
    ids = np.arange(20)
    with edgekit.load(made, "onnxruntime") as runtime, edgekit.load(model, "numpy") as reference:
        expected = reference.logits(ids)
        assert np.abs(runtime.logits(ids) - expected).max() < 1e-4 * expected.std()


def test_a_decoder_in_float16(model, tmp_path):
    """Half the bytes; 10 bits of mantissa cost a thousandth of a logit's deviation, a hundredth is allowed."""
    made = run_pass(model, "ONNX_FLOAT16", to=tmp_path / "o")
    assert made.manifest.quality["size_ratio"] < 0.6
    ids = np.arange(20)
    with edgekit.load(made, "onnxruntime") as runtime, edgekit.load(model, "numpy") as reference:
        expected = reference.logits(ids)
        assert 0 < np.abs(runtime.logits(ids) - expected).max() < 0.05 * expected.std()


def test_mixed_precision(model, tmp_path):
    """The matrices of products stay in float32, the embedding becomes float16.

    The tool adds casts where it knows the types: not behind operators of ONNX Runtime's own.
    """
    portable = edgekit.quantize(sample.path(), "float:F32", to=tmp_path / "p", format="onnx-portable").path
    made = run_pass(portable, "ONNX_FLOAT16", to=tmp_path / "o", options={"operators": ["MatMul", "Transpose"]})
    proto = onnx.load(made.path / "model.onnx")
    kinds = {tensor.name: tensor.data_type for tensor in proto.graph.initializer}
    used = {name for node in proto.graph.node if node.op_type == "Transpose" for name in node.input}
    assert {kinds[name] for name in used & kinds.keys()} == {TensorProto.FLOAT}
    assert TensorProto.FLOAT16 in kinds.values()
    with pytest.raises(UnsupportedModelError, match=r"the changed graph does not run \(.*FusedMatMul"):
        run_pass(model, "ONNX_FLOAT16", to=tmp_path / "f", options={"operators": ["FusedMatMul"]})
    kept = run_pass(foldable(tmp_path / "m.onnx"), "ONNX_FLOAT16", to=tmp_path / "k", options={"ignored": ["add"]})
    names = {tensor.name for tensor in onnx.load(kept.path / "model.onnx").graph.initializer if tensor.data_type == 1}
    assert names == {"a", "b"}


@pytest.mark.parametrize("name", ["INT8_DYNAMIC", "INT8_QDQ"])
def test_decoders_of_fused_operators_in_8_bits(name, model, tmp_path):
    """Measured: cosines of 0.9995 and 0.9999, 28 % of the size."""
    text = tmp_path / "text.txt"
    text.write_text(sample.heldout_text()[:3000], "utf-8")
    options = {} if name == "INT8_DYNAMIC" else {"calibration": str(text), "samples": 4, "context": 32}
    made = run_pass(model, name, to=tmp_path / "o", options=options)
    assert made.manifest.quality["cosine"] > 0.99
    assert made.manifest.quality["size_ratio"] < 0.35


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("ONNX_OPTIMIZE", {"level": "all"}, "level='all'; choose one of basic, extended"),
        ("ONNX_OPTIMIZE", {"least_cosine": 2}, "least_cosine=2; choose a number between -1 and 1"),
        ("ONNX_FLOAT16", {"least_cosine": True}, "least_cosine=True; choose a number between -1 and 1"),
        ("INT8_DYNAMIC", {"least_cosine": "0.9"}, "least_cosine='0.9'; choose a number between -1 and 1"),
        ("INT8_QDQ", {"least_cosine": -2, "calibration": "x"}, "least_cosine=-2; choose a number between -1 and 1"),
    ],
)
def test_options_are_refused_before_any_work(name, options, message, tmp_path):
    with pytest.raises(UsageError, match=message):
        run_pass(foldable(tmp_path / "m.onnx"), name, to=tmp_path / "o", options=options)
    assert not (tmp_path / "o").exists()


def test_what_cannot_be_changed(tmp_path):
    with pytest.raises(UnsupportedModelError, match="it has no floats of 32 bits"):
        run_pass(foldable(tmp_path / "m.onnx", "float16"), "ONNX_FLOAT16", to=tmp_path / "o")
    with pytest.raises(QualityGateError, match=r"ONNX_FLOAT16: the result's outputs have a cosine of .*, below 1"):
        run_pass(foldable(tmp_path / "n.onnx"), "ONNX_FLOAT16", to=tmp_path / "o", options={"least_cosine": 1.0})
    assert not (tmp_path / "o").exists()


def save(path: Path, node: onnx.NodeProto, ir_version: int = 10) -> Path:
    """A graph of one node."""
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 4]) for name in "xy"]
    graph = helper.make_graph([node], "g", ports[:1], ports[1:])
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("my.own", 3)]
    path.write_bytes(helper.make_model(graph, opset_imports=opsets, ir_version=ir_version).SerializeToString())
    return path


def test_an_operator_of_nobodys_is_named_with_what_to_do(tmp_path):
    source = save(tmp_path / "m.onnx", helper.make_node("Frobnicate", ["x"], ["y"], domain="my.own"))
    message = (
        "the operator my.own:Frobnicate is none that the installed ONNX Runtime computes, .* export the model without"
    )
    with pytest.raises(UnsupportedModelError, match=message):
        run_pass(source, "ONNX_OPTIMIZE", to=tmp_path / "o")
    with pytest.raises(InvalidFileError, match=message):
        edgekit.load(source, "onnxruntime")


def test_a_version_of_the_format_that_is_newer_than_onnx_is_refused(tmp_path):
    source = save(tmp_path / "m.onnx", helper.make_node("Relu", ["x"], ["y"]), ir_version=99)
    with pytest.raises(
        UnsupportedModelError, match=r"its IR version is 99, the installed onnx knows up to \d+; pip install"
    ):
        edgekit.open(source)


@pass_checks(Optimize(), format="onnx", profile="quick")
def test_optimize_conforms(check):
    check()


@pass_checks(Float16(), format="onnx", profile="quick")
def test_float16_conforms(check):
    check()


@pass_checks(Dynamic(), format="onnx", profile="quick")
def test_dynamic_conforms(check):
    check()


CALIBRATED = {"calibration": Path(sample.__file__).parent / "heldout.txt", "context": 16, "samples": 4}


@pass_checks(Static(), format="onnx", profile="quick", options=CALIBRATED)
def test_static_conforms(check):
    check()
