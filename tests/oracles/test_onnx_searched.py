"""K-quant and HQQ against onnxruntime's own tools, and their graphs against the numpy pass.

The oracles are whole runs of `MatMulNBitsQuantizer` with `KQuantWeightOnlyQuantConfig` and `HQQWeightOnlyQuantConfig`.
"""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import matmul_nbits_quantizer as tool
from test_onnx_exact import real_weights
from test_onnx_graph import compare

import edgekit
from edgekit import sample
from edgekit.errors import UnsupportedModelError
from edgekit.numerics.bits import unpack_lsb
from edgekit.tensor import EncodedTensor

ROWS, COLS = 24, 256
DISTRIBUTIONS = {
    "normal": lambda rng, shape: rng.standard_normal(shape),
    "student-t(2)": lambda rng, shape: rng.standard_t(2, shape),
    "small": lambda rng, shape: rng.standard_normal(shape) * 1e-3,
}
SOURCES = [np.float32, np.float16]


def rows(distribution, source, cols=COLS):
    rng = np.random.default_rng(sum(map(ord, distribution)))
    return DISTRIBUTIONS[distribution](rng, (ROWS, cols)).astype(source)


def quantized(x, config, **options):
    """The initializers of the tool's MatMulNBits for rows x: codes [rows, blocks, …], scales and zero points."""
    kind = TensorProto.FLOAT16 if x.dtype == np.float16 else TensorProto.FLOAT
    given = helper.make_tensor_value_info("a", kind, [None, x.shape[1]])
    made = helper.make_tensor_value_info("y", kind, [None, x.shape[0]])
    weight = numpy_helper.from_array(np.ascontiguousarray(x.T), "w")
    graph = helper.make_graph([helper.make_node("MatMul", ["a", "w"], ["y"], "m")], "g", [given], [made], [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    quantizer = tool.MatMulNBitsQuantizer(model, algo_config=config, **options)
    quantizer.process()
    arrays = {each.name: numpy_helper.to_array(each) for each in quantizer.model.initializer()}
    (node,) = [node for node in quantizer.model.nodes() if node.op_type == "MatMulNBits"]
    return [arrays[name] for name in node.input[1:4]]


def both_signs(x, block):
    blocks = np.pad(x, ((0, 0), (0, -x.shape[1] % block))).reshape(len(x), -1, block)
    return (blocks.min(axis=2) < 0) & (blocks.max(axis=2) > 0)


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(("block", "cols"), [(16, COLS), (32, 250), (128, COLS)])
def test_k_quant_equals_the_tool(bits, block, cols, source, distribution):
    x = rows(distribution, source, cols)
    parts = edgekit.encode(x, f"onnx:kquant{bits}-g{block}").parts
    config = tool.KQuantWeightOnlyQuantConfig(
        customized_weight_config={"m": {"bits": bits, "group_size": block, "scheme": "asym"}}
    )
    codes, scales, zero_points = quantized(x, config, bits=bits, block_size=block)
    assert both_signs(x, block).all()
    assert (scales.dtype, scales.shape) == (parts["scales"].dtype, parts["scales"].shape)
    assert np.array_equal(scales, parts["scales"])
    assert np.array_equal(codes, parts["B"])
    assert np.array_equal(zero_points, parts["zero_points"])


@pytest.mark.parametrize("bits", [4, 8])
def test_k_quant_of_trained_weights(bits):
    for name, x in real_weights():
        whole = np.ascontiguousarray(x[:, : x.shape[1] // 64 * 64])
        encoded = edgekit.encode(whole, f"onnx:kquant{bits}-g32")
        config = tool.KQuantWeightOnlyQuantConfig(
            customized_weight_config={"m": {"bits": bits, "group_size": 32, "scheme": "asym"}}
        )
        codes, scales, _ = quantized(whole, config, bits=bits, block_size=32)
        mixed = both_signs(whole, 32)
        assert mixed.mean() > 0.99, name
        assert np.array_equal(codes[mixed], encoded.parts["B"][mixed]), name
        assert np.array_equal(scales[mixed], encoded.parts["scales"][mixed]), name


@pytest.mark.parametrize("x", [np.full((3, 64), 7.25), np.zeros((3, 64)), np.linspace(10, 11, 192).reshape(3, 64)])
def test_blocks_of_one_sign_are_rounded_to_nearest(x):
    """The tool clips their zero point to 0 and so loses the offset."""
    x = x.astype(np.float32)
    ours, nearest = (edgekit.encode(x, name).parts for name in ("onnx:kquant4-g32", "onnx:int4-asym-g32"))
    for key, part in nearest.items():
        assert np.array_equal(ours[key], part), key


@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable:UserWarning")  # the tool's own
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("bits", [2, 4])
@pytest.mark.parametrize(("block", "cols"), [(16, COLS), (32, 250), (128, COLS)])
def test_hqq_agrees_with_the_tool(bits, block, cols, source, distribution):
    pytest.importorskip("torch")
    x = rows(distribution, source, cols)
    parts = edgekit.encode(x, f"onnx:hqq{bits}-g{block}").parts
    config = tool.HQQWeightOnlyQuantConfig(block_size=block, bits=bits)
    codes, scales, zero_points = quantized(x, config)
    assert np.array_equal(scales.reshape(parts["scales"].shape), parts["scales"])
    # Means in another order and powers that differ by 1 ULP: measured 3e-6 of a level. Where that moves a value over the
    # middle between two levels in one of the rounds, 3e-4. float16 rounds zero points to its own steps.
    step = 1e-5 if source == np.float32 else 2.0**-9 * 2**bits
    apart = np.abs(zero_points.reshape(parts["zero_points"].shape) - parts["zero_points"])
    assert np.mean(apart <= step) > 0.98
    assert apart.max() < 0.02
    ours, theirs = (unpack_lsb(each.reshape(ROWS, -1), bits, cols).astype(int) for each in (parts["B"], codes))
    # A value as near to the middle between two levels as the zero points differ: about 1e-5 of them.
    assert np.abs(ours - theirs).max() <= 1
    assert np.mean(ours != theirs) < 1e-3


@pytest.mark.parametrize(("searched", "nearest"), [("hqq4-g32", "int4-asym-g32"), ("hqq2-g16", "int2-asym-g16")])
def test_hqq_loses_less_of_trained_weights(searched, nearest):
    for name, x in real_weights():
        errors = [
            float(np.abs(edgekit.decode(edgekit.encode(x, f"onnx:{each}")) - x).mean()) for each in (searched, nearest)
        ]
        assert errors[0] < errors[1], name


RECIPES = {
    "MATMUL_NBITS_4_KQUANT": "onnx:int4-asym-g32",
    "MATMUL_NBITS_8_KQUANT_G64": "onnx:int8-asym-g64",
    "MATMUL_NBITS_4_HQQ": "onnx:hqq4-g32",
    "MATMUL_NBITS_2_HQQ_G16": "onnx:hqq2-g16",
}


@pytest.mark.parametrize("recipe", RECIPES)
def test_graphs_compute_with_the_weights(recipe, tmp_path: Path):
    """Codes come back as they were encoded, k-quant's as the precision whose parts they are."""
    made = edgekit.quantize(sample.path(), recipe, to=tmp_path / "m", format="onnx")
    name = "blk.0.attn_k.weight"
    weight = made.model.tensors[name]
    assert isinstance(weight, EncodedTensor)
    assert weight.precision.name == RECIPES[recipe]
    kind, _, group = recipe.removeprefix("MATMUL_NBITS_").partition("_")[2].partition("_")
    precision = f"onnx:{kind.lower()}{recipe[13]}-{(group or 'G32').lower()}"
    source = edgekit.open(sample.path()).model.tensors[name]
    encoded = edgekit.encode(source.float32().astype(ml_dtypes.bfloat16), precision)
    for key, part in encoded.parts.items():
        assert np.array_equal(weight.read().parts[key], part), key
    compare(made.path, made.model)


def test_float16_scales_are_cast(tmp_path: Path):
    source = edgekit.convert(sample.path(), tmp_path / "half", dtype="F16")
    made = edgekit.quantize(source, "MATMUL_NBITS_4_HQQ", to=tmp_path / "m", format="onnx")
    assert made.model.tensors["blk.0.attn_q.weight"].read().parts["zero_points"].dtype == np.float16
    compare(made.path, made.model)


def test_what_no_operator_takes_is_refused(tmp_path: Path):
    with pytest.raises(
        UnsupportedModelError, match="takes no zero points in floats; choose a recipe that stores the embe"
    ):
        edgekit.quantize(sample.path(), "onnx:hqq4-g32", to=tmp_path / "m", format="onnx")
    with pytest.raises(
        UnsupportedModelError, match="DequantizeLinear takes no zero points in floats; write the format"
    ):
        edgekit.quantize(sample.path(), "MATMUL_NBITS_4_HQQ", to=tmp_path / "m", format="onnx-portable")
    made = edgekit.quantize(sample.path(), "MATMUL_NBITS_4_KQUANT", to=tmp_path / "k", format="onnx-portable")
    compare(made.path, made.model)


def test_products_are_joined_and_read_apart(tmp_path: Path):
    """Queries, keys and values are one product in the graph, and three weights in the file."""
    made = edgekit.quantize(sample.path(), "MATMUL_NBITS_4", to=tmp_path / "m", format="onnx")
    graph = onnx.load(made.path / "model.onnx", load_external_data=False).graph
    layers = made.model.config.layers
    kinds = [node.op_type for node in graph.node]
    assert kinds.count("MatMulNBits") == 5 * layers + 1  # joined, output, gate, up, down; lm_head
    assert "RotaryEmbedding" not in kinds
    attention = [node for node in graph.node if node.op_type == "GroupQueryAttention"]
    for node in attention:
        assert {a.name: a.i for a in node.attribute if a.name.startswith(("do_", "rotary"))} == {
            "do_rotary": 1,
            "rotary_interleaved": 0,
        }
    names = {tensor.name for tensor in graph.initializer}
    for letter in "qkv":
        assert f"model.layers.0.self_attn.{letter}_proj.weight.B" in names
        tensor = made.model.tensors[f"blk.0.attn_{letter}.weight"]
        source = edgekit.open(sample.path()).model.tensors[f"blk.0.attn_{letter}.weight"]
        encoded = edgekit.encode(source.float32().astype(ml_dtypes.bfloat16), "onnx:int4-sym-g32")
        for key, part in encoded.parts.items():
            assert np.array_equal(tensor.read().parts[key], part), (letter, key)
