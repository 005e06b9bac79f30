"""Lossless bridges: what is declared exact is exact, exhaustively where that is finite."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import edgekit
from edgekit.bridges import Carry, lattices, relation
from edgekit.errors import InexactError
from edgekit.precision import Precision, catalogue
from edgekit.tensor import QuantizedTensor

LATTICES = lattices(catalogue())
FINITE16 = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
FINITE16 = FINITE16[np.isfinite(FINITE16)]


def q4_0_of_every_scale():
    """Every finite float16 scale with every 4-bit code: [scales, 32], each code twice."""
    blocks = np.empty((FINITE16.size, 18), np.uint8)
    blocks[:, :2] = FINITE16.view(np.uint8).reshape(-1, 2)
    blocks[:, 2:] = np.arange(16, dtype=np.uint8) * 17
    return QuantizedTensor({"blocks": blocks}, Precision.parse("Q4_0"), (FINITE16.size, 32))


def q8_0_of_every_scale():
    """Every finite float16 scale with every 8-bit code: [scales, 256]."""
    blocks = np.empty((FINITE16.size, 8, 34), np.uint8)
    blocks[..., :2] = FINITE16.view(np.uint8).reshape(-1, 1, 2)
    blocks[..., 2:] = np.arange(256, dtype=np.uint8).reshape(8, 32)
    return QuantizedTensor({"blocks": blocks.reshape(FINITE16.size, -1)}, Precision.parse("Q8_0"), (FINITE16.size, 256))


@pytest.mark.parametrize(
    "target",
    ["mlx:int4-g32", "onnx:int4-sym-g32", "onnx:int4-asym-g32", "openvino:int4-sym-g32", "openvino:int4-asym-g32",
     "affine:int4-sym-g32", "affine:int4-asym-g32", "affine:int8-sym-g32", "olive:int4-sym-g32", "ggml:Q5_0", "ggml:Q8_0"],
)  # fmt: skip
def test_q4_0_carries_over_for_every_scale_and_code_and_comes_back(target):
    source = q4_0_of_every_scale()
    assert relation(source.precision, Precision.parse(target)).carry is Carry.EXACT
    carried = edgekit.transcode(source, target)
    assert carried.backend == "bridge"
    np.testing.assert_array_equal(carried.dequantize(), source.dequantize())
    back = edgekit.transcode(carried, "Q4_0")
    nonzero = back.parts["blocks"][:, :2].view(np.uint16)[:, 0] & 0x7FFF != 0
    np.testing.assert_array_equal(back.parts["blocks"][nonzero], source.parts["blocks"][nonzero])


@pytest.mark.parametrize(
    "target", ["mlx:int8-g32", "onnx:int8-sym-g32", "onnx:int8-asym-g32", "affine:int8-sym-g32", "affine:int8-asym-g32"]
)
def test_q8_0_carries_over_for_every_scale_and_code(target):
    source = q8_0_of_every_scale()
    assert relation(source.precision, Precision.parse(target)).carry is Carry.EXACT
    carried = edgekit.transcode(source, target)
    np.testing.assert_array_equal(carried.dequantize(), source.dequantize())
    np.testing.assert_array_equal(edgekit.transcode(carried, "Q8_0").dequantize(), source.dequantize())


@pytest.mark.parametrize("target", ["mlx:mxfp4", "openvino:mxfp4"])
def test_mxfp4_carries_over_for_every_exponent_and_code(target):
    blocks = np.empty((255, 17), np.uint8)
    blocks[:, 0] = np.arange(255)
    blocks[:, 1:] = np.arange(16, dtype=np.uint8) * 17
    source = QuantizedTensor({"blocks": blocks}, Precision.parse("MXFP4"), (255, 32))
    carried = edgekit.transcode(source, target)
    np.testing.assert_array_equal(carried.dequantize(), source.dequantize())
    np.testing.assert_array_equal(edgekit.transcode(carried, "MXFP4").parts["blocks"], blocks)


@pytest.mark.parametrize("source", LATTICES, ids=str)
def test_what_is_declared_is_what_happens(source):
    x = np.random.default_rng(5).standard_normal((2, 512)).astype(np.float32)
    tensor = edgekit.encode(x, source)
    before = tensor.dequantize()
    for target in LATTICES:
        declared = relation(source, target)
        try:
            after = edgekit.transcode(tensor, target).dequantize()
        except InexactError as error:
            assert declared.carry is not Carry.EXACT, f"{source} → {target}: {error}"
            assert f"cannot go from {source} to {target} unchanged: " in str(error)
        else:
            assert declared.carry is not Carry.NO, f"{source} → {target}"
            np.testing.assert_array_equal(after, before, err_msg=f"{source} → {target}")


@given(st.sampled_from(LATTICES), st.sampled_from(LATTICES), st.integers(0, 2**32 - 1))
@settings(max_examples=300, deadline=None)
def test_told_otherwise_it_rounds_within_the_stated_bound_or_requantizes(source, target, seed):
    rng = np.random.default_rng(seed)
    tensor = edgekit.encode((rng.standard_t(3, (2, 512)) * 10.0 ** rng.integers(-3, 4)).astype(np.float32), source)
    before = tensor.dequantize().astype(np.float64)
    after = edgekit.transcode(tensor, target, exact=False)
    assert after.precision == target
    declared = relation(source, target).carry
    if declared is Carry.EXACT:
        np.testing.assert_array_equal(after.dequantize(), before)
    elif declared is Carry.BOUNDED and after.backend == "bridge":
        span = np.abs(before).max() * 4  # values and offsets of a group are no larger than this
        assert np.abs(after.dequantize() - before).max() <= span * 2.0**-11


def test_floats_have_no_bridge_and_say_so():
    tensor = edgekit.encode(np.ones((1, 64), np.float32), "openvino:nf4-g64")
    with pytest.raises(InexactError, match=r"openvino:nf4-g64 is no lattice that has a bridge; exact=False"):
        edgekit.transcode(tensor, "mlx:int4-g64")
    assert edgekit.transcode(tensor, "mlx:int4-g64", exact=False).backend == "reference"


def test_a_scale_that_is_no_float16_is_refused_and_rounded_on_request():
    tensor = edgekit.encode(np.random.default_rng(0).standard_normal((1, 32)).astype(np.float32), "onnx:int4-sym-g32")
    with pytest.raises(InexactError, match="a scale is no float16"):
        edgekit.transcode(tensor, "Q4_0")
    rounded = edgekit.transcode(tensor, "Q4_0", exact=False)
    np.testing.assert_allclose(rounded.dequantize(), tensor.dequantize(), rtol=2**-11)


def test_mlx_scales_of_sixteen_bits_are_no_lattice():
    x = np.random.default_rng(0).standard_normal((1, 32)).astype(ml_dtypes.bfloat16)
    with pytest.raises(InexactError, match="have to be float32"):
        edgekit.transcode(edgekit.encode(x, "mlx:int4-g32"), "affine:int4-asym-g32")


def test_the_same_precision_is_the_same_tensor():
    tensor = edgekit.encode(np.ones((1, 32), np.float32), "Q4_0")
    assert edgekit.transcode(tensor, "ggml:Q4_0") is tensor
