"""ONNX files of edgekit and of others: their weights with codes, and everything that is wrong with some.

Run against onnx 1.23.2 and onnxruntime 1.32.0.
"""

from __future__ import annotations

import os
import random
from pathlib import Path

import attrs
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer, QuantFormat
from test_onnx_graph import TOLERANCE, compare

import edgekit
from edgekit.architectures import ModelConfig
from edgekit.architectures.forward import Transformer
from edgekit.errors import EdgekitError, InvalidFileError, MissingFileError, UnsupportedModelError
from edgekit.pipeline.passes import run_pass
from edgekit.tensor import EncodedTensor
from edgekit.testing.models import artifact_of, random_model
from edgekit_olive.format import OnnxFormat

CONFIG = ModelConfig(
    family="llama", layers=2, width=64, heads=4, kv_heads=2, head_dim=16, ffn=128, vocab=64, context=64,
    norm_eps=1e-5, rope_theta=10000.0, attention_scale=0.25, rotary_dim=16,
)  # fmt: skip
RANDOM = np.random.default_rng(8)
WEIGHT = RANDOM.standard_normal((64, 48)).astype(np.float32)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model of 4 bits."""
    source = artifact_of(random_model(CONFIG), tmp_path / "memory")
    return edgekit.quantize(source, "MATMUL_NBITS_4_ASYM", to=tmp_path / "model", format="onnx").path


def small(path: Path, location: str | None = None, **external) -> Path:
    """A graph with one product, its weight beside it if a location is given."""
    weight = numpy_helper.from_array(WEIGHT, "weight")
    if location is not None:
        weight = TensorProto(name="weight", data_type=TensorProto.FLOAT, dims=WEIGHT.shape)
        weight.data_location = TensorProto.EXTERNAL
        for key, value in {"location": location, **external}.items():
            weight.external_data.add(key=key, value=str(value))
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, 64])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, 48])
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "weight"], ["y"], "product")], "g", [x], [y], [weight])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    path.write_bytes(made.SerializeToString())
    return path


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("kind", [QuantFormat.QOperator, QuantFormat.QDQ])
def test_codes_of_onnxruntime_are_read(kind, symmetric, bits, tmp_path):
    """A graph that ONNX Runtime's own tool quantized: every weight as it decodes it."""
    if kind is QuantFormat.QDQ and bits == 8:
        pytest.skip("the tool writes 8-bit QDQ in a layout that the reference does not have")
    tool = MatMulNBitsQuantizer(
        onnx.load(small(tmp_path / "f.onnx")), block_size=32, is_symmetric=symmetric, bits=bits, quant_format=kind
    )
    tool.process()
    tool.model.save_model_to_file(str(tmp_path / "q.onnx"))
    tensors = edgekit.open(tmp_path / "q.onnx").tensors
    (read,) = [tensor for tensor in tensors.values() if isinstance(tensor, EncodedTensor)]
    name = f"int{bits}" if kind is QuantFormat.QOperator else "qdq_int4"
    assert read.precision.name == f"onnx:{name}-{'sym' if symmetric else 'asym'}-g32"
    session = onnxruntime.InferenceSession(str(tmp_path / "q.onnx"), providers=["CPUExecutionProvider"])
    decoded = session.run(None, {"x": np.eye(64, dtype=np.float32)})[0]
    # The operator of 4 bits rounds products once; a row of the identity picks each weight.
    np.testing.assert_allclose(read.float32().T, decoded, atol=1e-2 * np.abs(WEIGHT).max())
    again = edgekit.encode(np.ascontiguousarray(WEIGHT.T), read.precision.name)
    for key, part in again.parts.items():
        assert np.array_equal(np.asarray(read.read().parts[key]).reshape(part.shape), part), key


@pytest.mark.parametrize(("rows", "cols", "block"), [(64, 64, 64), (7, 24, 16), (5, 7, 16), (3, 33, 32), (5, 7, 256)])
@pytest.mark.parametrize("kind", ["fp4", "nf4"])
def test_floats_of_bitsandbytes_are_what_the_operator_computes_with(kind, rows, cols, block, tmp_path):
    """MatMulBnb4 decodes blocks that run over the ends of rows; a product with the identity is the weight."""
    random = np.random.default_rng(rows)
    size = rows * cols
    codes = random.integers(0, 256, -(-size // 2), dtype=np.uint8)
    absmax = random.uniform(-1, 3, -(-size // block)).astype(np.float32)
    path = bnb4(tmp_path / "q.onnx", codes, absmax, K=cols, N=rows, block_size=block, quant_type=int(kind == "nf4"))
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    decoded = session.run(None, {"x": np.eye(cols, dtype=np.float32)})[0]
    read = edgekit.open(path).tensors["weight"]
    assert read.precision.name.startswith("packed:nf4-g" if kind == "nf4" else "packed:bnb_fp4-g")
    assert read.shape == (rows, cols)
    assert np.array_equal(read.float32(), decoded.T)
    assert np.array_equal(read.float32(rows - 1, rows), decoded.T[-1:])


@pytest.mark.parametrize(
    "wrong",
    [
        {"block_size": 0},
        {"block_size": 48},
        {"quant_type": 2},
        {"K": 0},
        {"K": 1 << 40, "N": 1 << 40},
        {"N": -64},
        {"N": 65},
    ],
)
def test_floats_of_bitsandbytes_that_do_not_fit_are_plain_constants(wrong, tmp_path):
    given = {"K": 64, "N": 64, "block_size": 64, "quant_type": 1, **wrong}
    path = bnb4(tmp_path / "q.onnx", np.zeros(2048, np.uint8), np.ones(64, np.float32), **given)
    assert not [tensor for tensor in edgekit.open(path).tensors.values() if isinstance(tensor, EncodedTensor)]


def bnb4(path: Path, codes, absmax, **attributes) -> Path:
    """A graph with one product of MatMulBnb4, as Olive's pass names its constants."""
    constants = [numpy_helper.from_array(codes, "weight.transposed_Bnb4"), numpy_helper.from_array(absmax, "absmax")]
    names = ["x", *(each.name for each in constants)]
    node = helper.make_node("MatMulBnb4", names, ["y"], "product", domain="com.microsoft", **attributes)
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, None]) for name in "xy")
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    made = helper.make_model(helper.make_graph([node], "g", [x], [y], constants), opset_imports=opsets, ir_version=10)
    path.write_bytes(made.SerializeToString())
    return path


def test_a_file_without_a_family_is_read_and_runs(tmp_path):
    for name in ("logreg_iris.onnx", "mul_1.onnx", "sigmoid.onnx"):  # that onnxruntime ships
        path = Path(onnxruntime.__file__).parent / "datasets" / name
        artifact = edgekit.open(path)
        assert artifact.format == "onnx"
        with pytest.raises(UnsupportedModelError, match=r"without config\.json does not say its family"):
            _ = artifact.model
        with edgekit.load(artifact, "onnxruntime") as runtime:
            given = {
                key: np.ones([size or 1 for size in shape], {"float": np.float32}[kind])
                for key, (kind, shape) in runtime.inputs.items()
            }
            wanted = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, given)
            for ours, theirs in zip(runtime.infer(given).values(), wanted, strict=True):
                assert np.array_equal(ours, theirs)


def test_a_model_goes_back_to_hugging_face(model, tmp_path):
    back = edgekit.convert(model, tmp_path / "hf", format="hf")
    for role, tensor in edgekit.open(model).model.tensors.items():
        assert np.array_equal(back.model.tensors[role].float32(), tensor.float32()), role


WIDE = attrs.evolve(
    CONFIG, layers=1, width=256, ffn=256, heads=2, kv_heads=1, head_dim=128, rotary_dim=128, attention_scale=128**-0.5
)
#: ggml's types, and what holds their values in a graph of standard operators and in one with ONNX Runtime's own.
CARRIED = {
    "Q4_0": ("int4-sym-g32", "int4-sym-g32"), "Q8_0": ("int8-sym-g32", "int8-sym-g32"),
    "Q5_0": ("int8-sym-g32", "int8-sym-g32"), "Q3_K": ("int4-sym-g16", "int4-sym-g16"),
    "Q6_K": ("int8-sym-g16", "int8-sym-g16"), "IQ4_NL": ("int8-sym-g32", "int8-sym-g32"),
    "IQ4_XS": ("int8-sym-g32", "int8-sym-g32"), "MXFP4": ("int8-sym-g32", "int8-sym-g32"),
    "NVFP4": ("int8-sym-g16", "int8-sym-g16"), "TQ1_0": ("int4-sym-g256", "int2-sym-g256"),
    "TQ2_0": ("int4-sym-g256", "int4-sym-g256"), "Q1_0": ("int4-sym-g128", "int2-sym-g128"),
    "Q2_0": ("int4-sym-g64", "int4-sym-g64"), "Q4_1": ("", "offset4-g32"), "Q5_1": ("", "offset5-g32"),
    "Q2_K": ("", "offset2-g16"), "Q4_K": ("", "offset4-g32"), "Q5_K": ("", "offset5-g32"),
}  # fmt: skip


@pytest.mark.parametrize("kind", CARRIED)
def test_values_of_gguf_files_are_carried_over(kind, tmp_path):
    """Every value is equal, the embedding's too, and ONNX Runtime computes with it; what became of it is said."""
    source = artifact_of(random_model(WIDE), tmp_path / "memory")
    file = edgekit.quantize(source, f"ggml:{kind}", to=tmp_path / "m.gguf", format="gguf")
    for format, stored in zip(("onnx-portable", "onnx"), CARRIED[kind], strict=True):
        made = edgekit.convert(file, tmp_path / format, format=format)
        for role, tensor in made.model.tensors.items():
            assert np.array_equal(tensor.float32(), file.model.tensors[role].float32()), role
        matrices = [tensor for tensor in made.model.tensors.values() if isinstance(tensor, EncodedTensor)]
        assert {tensor.precision.name for tensor in matrices} == ({f"onnx:{stored}"} if stored else set())
        assert made.manifest is not None
        if stored:
            said = f"9 matrices carried over without changing a value (9 ggml:{kind} → onnx:{stored})"
            assert made.manifest.notes["carried"] == said
        else:
            said = f"9 matrices quantized already (9 ggml:{kind}) were decoded to floats"
            assert made.manifest.notes["decoded"] == said
    if "offset" in stored or kind in ("Q3_K", "Q6_K"):
        compare(made.path, made.model)


#: Recipes of OpenVINO, and what the graph has of the layers' matrices; nothing where they are floats.
OPENVINO = {
    "float:F32": "", "float:F16": "", "INT8_ASYM": "int8-asym-channel", "INT4_SYM_G32": "int4-sym-g32",
    "INT4_ASYM_G32": "int4-asym-g32", "openvino:int4-sym-channel": "int4-sym-g256",
    "openvino:int3-sym-g32": "int4-sym-g32", "openvino:int2-sym-g32": "int2-sym-g32", "MXFP4": "int8-sym-g32",
    "openvino:nf4-g32": "",
}  # fmt: skip


@pytest.mark.parametrize("recipe", OPENVINO)
def test_openvino_s_files_become_graphs(recipe, tmp_path):
    """By the path of the .xml file, floats and compressed weights; what cannot be carried is decoded, and said."""
    pytest.importorskip("openvino")
    source = artifact_of(random_model(WIDE), tmp_path / "memory")
    ir = edgekit.quantize(source, recipe, to=tmp_path / "ir", format="openvino")
    made = edgekit.convert(ir.path / "openvino_model.xml", tmp_path / "m", format="onnx")
    for role, tensor in made.model.tensors.items():
        assert np.array_equal(tensor.float32(), ir.model.tensors[role].float32()), role
    weight = made.model.tensors["blk.0.ffn_up.weight"]
    assert (weight.precision.name if isinstance(weight, EncodedTensor) else "") == (
        f"onnx:{OPENVINO[recipe]}" if OPENVINO[recipe] else ""
    )
    assert ("decoded" in made.notes) == (recipe in ("MXFP4", "openvino:nf4-g32"))  # MXFP4's embedding is mxfp8
    tokens = np.arange(40)
    expected = Transformer(ir.model).logits(tokens)
    with edgekit.load(made, "onnxruntime", exact=True) as runtime:
        assert np.abs(runtime.logits(tokens) - expected).max() < TOLERANCE * expected.std()


@pytest.mark.parametrize("model", ["stories", "sample_gguf"])
def test_k_quants_of_trained_models(model, tmp_path, request):
    """Q4_K and Q6_K of the sample model; where rows are too short for them, what llama.cpp takes instead."""
    path = request.getfixturevalue(model)
    file = edgekit.quantize(path, "Q4_K_M", to=tmp_path / "m.gguf", format="gguf")
    made = edgekit.convert(file, tmp_path / "m", format="onnx")
    assert "decoded" not in made.notes
    assert "requantized" not in made.notes
    for role, tensor in made.model.tensors.items():
        assert np.array_equal(tensor.float32(), file.model.tensors[role].float32()), role
    tokens = np.array(file.tokenizer.encode("Once upon a time there was a little dog."))
    expected = Transformer(file.model).logits(tokens)
    with edgekit.load(made, "onnxruntime", exact=True) as runtime:
        assert np.abs(runtime.logits(tokens) - expected).max() < TOLERANCE * expected.std()


def test_folded_offsets_are_not_left_out(tmp_path):
    """An optimizer folds offsets into other constants: the codes alone are no weights, and the graph runs."""
    source = artifact_of(random_model(WIDE), tmp_path / "memory")
    made = edgekit.quantize(source, "onnx:offset4-g32", to=tmp_path / "m", format="onnx")
    folded = run_pass(made, "ONNX_OPTIMIZE", to=tmp_path / "folded", options={"level": "basic"})
    assert [name for name, tensor in folded.tensors.items() if isinstance(tensor, EncodedTensor)] == []
    tokens = np.arange(20)
    with edgekit.load(folded, "onnxruntime") as runtime, edgekit.load(made, "onnxruntime") as unfolded:
        expected = unfolded.logits(tokens)
        assert np.abs(runtime.logits(tokens) - expected).max() < TOLERANCE * expected.std()


def test_offsets_cannot_be_written_with_standard_operators(tmp_path):
    source = artifact_of(random_model(CONFIG), tmp_path / "memory")
    with pytest.raises(UnsupportedModelError, match="DequantizeLinear takes no offsets; write the format onnx instead"):
        edgekit.quantize(source, "onnx:offset4-g32", to=tmp_path / "m", format="onnx-portable")


def test_the_smallest_and_the_largest_blocks_with_offsets(tmp_path):
    """As a recipe of its own: one block a row, and many."""
    source = artifact_of(random_model(WIDE), tmp_path / "memory")
    for name in ("onnx:offset5-g256", "onnx:offset4-g16"):
        made = edgekit.quantize(source, name, to=tmp_path / name[5:], format="onnx")
        assert {t.precision.name for t in made.model.tensors.values() if isinstance(t, EncodedTensor)} == {name}
        for role, tensor in made.model.tensors.items():
            if isinstance(tensor, EncodedTensor):
                again = edgekit.encode(source.model.tensors[role].float32(), name)
                assert np.array_equal(again.dequantize(), tensor.float32()), role
        compare(made.path, made.model)


@pytest.mark.parametrize(("format", "kind"), [("onnx", "IQ3_S"), ("openvino", "Q4_K")])
def test_what_cannot_be_carried_is_never_decoded_in_silence(format, kind, tmp_path):
    source = artifact_of(random_model(WIDE), tmp_path / "memory")
    file = edgekit.quantize(source, f"ggml:{kind}", to=tmp_path / "m.gguf", format="gguf")
    decoded = edgekit.convert(file, tmp_path / "decoded", format=format)
    assert decoded.notes["decoded"] == f"9 matrices quantized already (9 ggml:{kind}) were decoded to floats"
    again = edgekit.quantize(file, f"{format}:int8-asym-channel", to=tmp_path / "again", format=format)
    assert f"9 ggml:{kind}) were quantized again" in again.notes["requantized"]


# What is wrong with a file.


def test_what_is_no_model(tmp_path):
    path = tmp_path / "m.onnx"
    for content in (b"\x08", b"\x08\x0a", b"\x08\xff\xff\xff", b"\x08" + bytes(1000)):
        path.write_bytes(content)
        with pytest.raises(InvalidFileError, match=r"m\.onnx: not an ONNX model"):
            edgekit.open(path)


@pytest.mark.parametrize("location", ["../weights", "/etc/hostname", "sub/weights", "", "..", "a\\b"])
def test_external_data_stays_in_the_directory(location, tmp_path):
    (tmp_path / "weights").write_bytes(WEIGHT.tobytes())
    (tmp_path / "m").mkdir()
    with pytest.raises(InvalidFileError, match="is not a plain file name"):
        edgekit.open(small(tmp_path / "m" / "m.onnx", location))


@pytest.mark.parametrize("location", ["../weights", "/etc/hostname"])
@pytest.mark.parametrize("where", ["initializer", "node", "outside"])
def test_external_data_of_branches_stays_in_the_directory(where, location, tmp_path):
    with pytest.raises(InvalidFileError, match="is not a plain file name"):
        edgekit.open(branches(tmp_path / "m.onnx", where, location))


def test_constants_of_branches_are_read(tmp_path):
    """Both branches call theirs alike; a value that lies in a file is read from it."""
    artifact = edgekit.open(branches(tmp_path / "m.onnx"))
    assert set(artifact.tensors) == {"weight", "kept", "weight.2", "kept.2"}
    first = artifact.tensors["weight"].float32()
    second = artifact.tensors["weight.2"].float32()
    assert {each.tobytes() for each in (first, second)} == {WEIGHT.tobytes(), (2 * WEIGHT).tobytes()}
    with edgekit.load(artifact, "onnxruntime") as model:
        given = {"x": np.eye(64, dtype=np.float32), "first": np.array(False)}
        assert np.allclose(model.infer(given)["y"], 2 * WEIGHT, rtol=1e-6)
    (tmp_path / "weights").write_bytes(WEIGHT.tobytes())
    beside = edgekit.open(branches(tmp_path / "m.onnx", "node", "weights"))
    assert any(np.array_equal(beside.tensors[name].float32(), WEIGHT) for name in ("weight", "weight.2"))
    assert tmp_path / "weights" in beside.files


def branches(path: Path, where: str = "", location: str = "") -> Path:
    """A graph with a product in each branch of an If; one weight lies in a file, if a location is given."""
    outside = TensorProto(name="weight", data_type=TensorProto.FLOAT, dims=WEIGHT.shape)
    outside.data_location = TensorProto.EXTERNAL
    outside.external_data.add(key="location", value=location)

    def branch(scale: float) -> onnx.GraphProto:
        weight = outside if where == "node" and scale == 1 else numpy_helper.from_array(scale * WEIGHT, "any")
        kept = outside if where == "initializer" and scale == 1 else numpy_helper.from_array(WEIGHT, "kept")
        nodes = [
            helper.make_node("Constant", [], ["weight"], "weight", value=weight),
            helper.make_node("MatMul", ["x", "weight"], [f"y{scale}"], "product"),
        ]
        out = helper.make_tensor_value_info(f"y{scale}", TensorProto.FLOAT, None)
        return helper.make_graph(nodes, f"branch{scale}", [], [out], [kept])

    chosen = helper.make_node("If", ["first"], ["y"], "chosen", then_branch=branch(1), else_branch=branch(2))
    held = [helper.make_node("Constant", [], ["held"], "held", value=outside)] if where == "outside" else []
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, 64])
    first = helper.make_tensor_value_info("first", TensorProto.BOOL, [])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, 48])
    graph = helper.make_graph([*held, chosen], "g", [x, first], [y])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    path.write_bytes(made.SerializeToString())
    return path


def test_links_out_of_the_directory(tmp_path):
    (tmp_path / "weights").write_bytes(WEIGHT.tobytes())
    (tmp_path / "m").mkdir()
    os.symlink(tmp_path / "weights", tmp_path / "m" / "soft")
    os.link(tmp_path / "weights", tmp_path / "m" / "hard")
    with pytest.raises(InvalidFileError, match="the link leads out of the directory"):
        edgekit.open(small(tmp_path / "m" / "a.onnx", "soft"))
    with pytest.raises(InvalidFileError, match="a hard link, whose other name may lie outside"):
        edgekit.open(small(tmp_path / "m" / "b.onnx", "hard"))


def test_external_data_that_is_missing_or_short(tmp_path):
    with pytest.raises(MissingFileError, match="constant weight lies in 'weights', which is not beside the graph"):
        edgekit.open(small(tmp_path / "a.onnx", "weights"))
    (tmp_path / "weights").write_bytes(WEIGHT.tobytes())
    assert edgekit.open(small(tmp_path / "b.onnx", "weights")).tensors["weight"].shape == (64, 48)
    with pytest.raises(InvalidFileError, match=r"constant weight ends at 12,292 of .*weights, which has 12,288 bytes"):
        edgekit.open(small(tmp_path / "c.onnx", "weights", offset=4))
    with pytest.raises(InvalidFileError, match=r"has 12 bytes, FLOAT \[64, 48\] takes 12,288"):
        edgekit.open(small(tmp_path / "d.onnx", "weights", length=12))
    for wrong in ("-1", "many", "9" * 30):
        with pytest.raises(InvalidFileError, match=r"has the offset .*, which is no number of bytes"):
            edgekit.open(small(tmp_path / "e.onnx", "weights", offset=wrong))


def test_an_opset_of_the_future(tmp_path):
    proto = onnx.load(small(tmp_path / "m.onnx"))
    proto.opset_import[0].version = 999
    (tmp_path / "m.onnx").write_bytes(proto.SerializeToString())
    with pytest.raises(UnsupportedModelError, match=r"its opset is 999, the installed onnx knows up to \d+"):
        edgekit.open(tmp_path / "m.onnx")


def test_an_operator_that_is_not_known(tmp_path):
    proto = onnx.load(small(tmp_path / "m.onnx"))
    proto.graph.node[0].op_type = "MatMulOfTomorrow"
    (tmp_path / "m.onnx").write_bytes(proto.SerializeToString())
    artifact = edgekit.open(tmp_path / "m.onnx")
    with pytest.raises(InvalidFileError, match=r"ONNX Runtime refuses it: .*MatMulOfTomorrow"):
        edgekit.load(artifact, "onnxruntime")


@pytest.mark.parametrize(("element", "read"), [(TensorProto.INT8, True), (TensorProto.UNDEFINED, False)])
def test_a_zero_point_of_no_known_type_belongs_to_no_weight(element, read, tmp_path):
    codes = numpy_helper.from_array(np.arange(12, dtype=np.int8).reshape(4, 3), "w")
    scale = numpy_helper.from_array(np.ones(4, np.float32), "scale")
    zero = TensorProto(name="zero", data_type=element, dims=[4], raw_data=bytes(4))
    node = helper.make_node("DequantizeLinear", ["w", "scale", "zero"], ["y"], axis=0)
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [4, 3])
    made = helper.make_model(helper.make_graph([node], "g", [], [y], [codes, scale, zero]))
    (tmp_path / "m.onnx").write_bytes(made.SerializeToString())
    (tensor,) = (tensor for name, tensor in edgekit.open(tmp_path / "m.onnx").tensors.items() if name == "w")
    if read:
        assert tensor.precision.name == "onnx:int8-asym-channel"
        np.testing.assert_array_equal(tensor.float32().ravel(), np.arange(12))
    else:  # integers, then, of which nothing says what they stand for
        assert tensor.dtype == "int8"
        with pytest.raises(EdgekitError, match="w holds int8"):
            tensor.float32()


def test_a_node_without_outputs_decodes_nothing(tmp_path):
    path = small(tmp_path / "m.onnx")
    model = onnx.load(path)
    for kind in ("GatherBlockQuantized", "MatMulNBits", "DequantizeLinear", "Cast"):
        model.graph.node.add(op_type=kind, input=["weight", "weight", "weight"])
        model.graph.node.add(op_type=kind)
    path.write_bytes(model.SerializeToString())
    assert list(edgekit.open(path).tensors) == ["weight"]


@pytest.mark.parametrize("name", ["two\nlines", "long" * 2000])
def test_names_in_messages_are_short_and_in_one_line(name, tmp_path):
    path = small(tmp_path / "m.onnx")
    model = onnx.load(path)
    model.graph.initializer[0].name = name
    model.graph.initializer[0].dims[0] = 7
    path.write_bytes(model.SerializeToString())
    with pytest.raises(InvalidFileError, match=r"constant '.* has 12,288 bytes, FLOAT \[7, 48\] takes 1,344") as raised:
        edgekit.open(path)
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 500


def test_damaged_files_are_refused_or_read(model, tmp_path):
    """Whatever a byte becomes: a result or an error of edgekit's own, of a reasonable length."""
    graph, rng = (model / "model.onnx").read_bytes(), random.Random(5)
    taken = OnnxFormat()
    for _ in range(300):
        damaged = bytearray(graph)
        for _ in range(rng.choice([1, 1, 2, 8])):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        if rng.random() < 0.2:
            del damaged[rng.randrange(len(damaged)) :]
        (model / "model.onnx").write_bytes(bytes(damaged))
        try:
            for tensor in taken.open(model).tensors.values():
                tensor.read()
        except EdgekitError as error:
            assert len(str(error)) < 3000
