"""Lossless bridges: what is declared exact is exact, exhaustively where that is finite."""

import attrs
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import edgekit
from edgekit.bridges import Carry, Lattice, first_exact, lattices, relation, transcode, write
from edgekit.bridges._relation import holds
from edgekit.errors import InexactError, ShapeError
from edgekit.precision import catalogue, find_precision
from edgekit.tensor import EncodedTensor, QuantizedTensor

LATTICES = lattices(catalogue())
FINITE16 = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
FINITE16 = FINITE16[np.isfinite(FINITE16)]


def q4_0_of_every_scale():
    """Every finite float16 scale with every 4-bit code: [scales, 32], each code twice."""
    blocks = np.empty((FINITE16.size, 18), np.uint8)
    blocks[:, :2] = FINITE16.view(np.uint8).reshape(-1, 2)
    blocks[:, 2:] = np.arange(16, dtype=np.uint8) * 17
    return QuantizedTensor({"blocks": blocks}, find_precision("Q4_0"), (FINITE16.size, 32))


def q8_0_of_every_scale():
    """Every finite float16 scale with every 8-bit code: [scales, 256]."""
    blocks = np.empty((FINITE16.size, 8, 34), np.uint8)
    blocks[..., :2] = FINITE16.view(np.uint8).reshape(-1, 1, 2)
    blocks[..., 2:] = np.arange(256, dtype=np.uint8).reshape(8, 32)
    return QuantizedTensor({"blocks": blocks.reshape(FINITE16.size, -1)}, find_precision("Q8_0"), (FINITE16.size, 256))


@pytest.mark.parametrize(
    "target",
    ["mlx:int4-g32", "onnx:int4-sym-g32", "onnx:int4-asym-g32", "openvino:int4-sym-g32", "openvino:int4-asym-g32",
     "affine:int4-sym-g32", "affine:int4-asym-g32", "affine:int8-sym-g32", "olive:int4-sym-g32", "ggml:Q5_0", "ggml:Q8_0"],
)  # fmt: skip
def test_q4_0_carries_over_for_every_scale_and_code_and_comes_back(target):
    source = q4_0_of_every_scale()
    assert relation(source.precision, find_precision(target)).carry is Carry.EXACT
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
    assert relation(source.precision, find_precision(target)).carry is Carry.EXACT
    carried = edgekit.transcode(source, target)
    np.testing.assert_array_equal(carried.dequantize(), source.dequantize())
    np.testing.assert_array_equal(edgekit.transcode(carried, "Q8_0").dequantize(), source.dequantize())


@pytest.mark.parametrize("target", ["mlx:mxfp4", "openvino:mxfp4"])
def test_mxfp4_carries_over_for_every_exponent_and_code(target):
    blocks = np.empty((255, 17), np.uint8)
    blocks[:, 0] = np.arange(255)
    blocks[:, 1:] = np.arange(16, dtype=np.uint8) * 17
    source = QuantizedTensor({"blocks": blocks}, find_precision("MXFP4"), (255, 32))
    carried = edgekit.transcode(source, target)
    np.testing.assert_array_equal(carried.dequantize(), source.dequantize())
    np.testing.assert_array_equal(edgekit.transcode(carried, "MXFP4").parts["blocks"], blocks)


def awkward_rows(seed):
    """Normal numbers, ternary ones, a constant, zeros, one-sided, and magnitudes around float16's smallest."""
    normal = np.random.default_rng(seed).standard_normal((6, 512)).astype(np.float32)
    normal[1] = np.clip(np.rint(normal[1]), -1, 1) * np.float32(0.37)
    normal[2], normal[3] = normal[2, 0], np.where(normal[3] > 0, np.float32(0), np.float32(-0.0))
    normal[4] = np.abs(normal[4])
    normal[5] *= np.float32(3e-6)
    return normal


def lattice_of_every_scale(name, columns):
    """Every finite float16 scale with every code of a symmetric format, by the bridge's own writer."""
    precision = find_precision(name)
    have = holds(precision)
    codes = (np.arange(columns) % (have.high - have.low + 1)).astype(np.uint8)
    if have.signs:
        codes = codes // 2 * 2
    zero = np.full((FINITE16.size, columns // (precision.block or columns)), -have.low, np.int16)
    scale = np.repeat(FINITE16.astype(np.float32)[:, None], zero.shape[1], axis=1)
    codes = np.broadcast_to(codes, (FINITE16.size, columns))
    parts = write(Lattice(codes, scale, precision.block or columns, zero=zero), precision)
    tensor = QuantizedTensor(parts, precision, codes.shape)
    levels = codes.astype(np.float32) + np.float32(have.low)
    np.testing.assert_array_equal(tensor.dequantize(), levels * np.repeat(scale, columns // scale.shape[1], axis=1))
    return tensor


@pytest.mark.parametrize(
    ("name", "columns", "targets"),
    [
        ("openvino:int4-sym-g16", 16, ["onnx:int4-sym-g16", "onnx:qdq_int4-asym-g16", "affine:int4-asym-g16"]),
        ("openvino:int4-sym-g32", 32, ["Q4_0", "Q8_0", "mlx:int4-g32", "onnx:qdq_int4-sym-g32", "openvino:int4-asym-g32"]),
        ("openvino:int3-sym-g32", 32, ["mlx:int3-g32", "Q4_0", "affine:int3-sym-g32", "openvino:int4-sym-g32"]),
        ("openvino:int2-sym-g32", 32, ["mlx:int2-g32", "Q5_0", "olive:int2-sym-g32", "openvino:int3-sym-g32"]),
        ("openvino:int8-sym-channel", 256, ["onnx:int8-sym-channel", "onnx:uint8-sym-channel", "affine:int8-sym-channel"]),
        ("ggml:Q2_0", 64, ["mlx:int2-g64", "affine:int2-asym-g64", "openvino:int3-sym-g32", "onnx:int2-asym-g64"]),
        ("ggml:TQ1_0", 256, ["TQ2_0", "Q2_0", "mlx:int2-g128"]),
        ("ggml:TQ2_0", 256, ["Q2_0", "Q4_0"]),
        ("ggml:Q1_0", 128, ["affine:int1-sym-g128", "mlx:int1-g128", "mlx:int2-g32", "Q8_0", "Q2_0"]),
    ],
)  # fmt: skip
def test_every_float16_scale_with_every_code(name, columns, targets):
    source = lattice_of_every_scale(name, columns)
    before = source.dequantize()
    for target in targets:
        assert relation(source.precision, find_precision(target)).carry is Carry.EXACT, target
        np.testing.assert_array_equal(edgekit.transcode(source, target).dequantize(), before, err_msg=target)


def test_iq4_nl_carries_over_to_eight_bits_for_every_scale_and_code():
    blocks = q4_0_of_every_scale().parts["blocks"]
    source = QuantizedTensor({"blocks": blocks}, find_precision("IQ4_NL"), (FINITE16.size, 32))
    for target in ("Q8_0", "mlx:int8-g32", "onnx:int8-sym-g32"):
        assert relation(source.precision, find_precision(target)).carry is Carry.EXACT
        np.testing.assert_array_equal(edgekit.transcode(source, target).dequantize(), source.dequantize())


def nvfp4_of_every_scale():
    """Every scale of ggml's NVFP4 with every element, but for 0xFF, which it reads as 480 and never writes."""
    blocks = np.empty((64, 36), np.uint8)
    blocks[:, :4] = np.minimum(np.arange(256), 254).astype(np.uint8).reshape(64, 4)
    blocks[:, 4:] = np.tile(np.arange(8, dtype=np.uint8) * 17 + 128, 4)  # low nibbles 0-7, high ones 8-15
    return QuantizedTensor({"blocks": blocks}, find_precision("NVFP4"), (64, 64))


@pytest.mark.parametrize("target", ["mlx:nvfp4", "openvino:fp4-g16", "openvino:fp8-g16", "affine:int8-sym-g16"])
def test_nvfp4_carries_over_for_every_scale_and_element(target):
    source = nvfp4_of_every_scale()
    assert np.unique(source.dequantize()).size > 400  # products of a scale and an element
    assert relation(source.precision, find_precision(target)).carry is Carry.EXACT
    carried = edgekit.transcode(source, target)
    np.testing.assert_array_equal(carried.dequantize(), source.dequantize())
    if target != "affine:int8-sym-g16":
        back = edgekit.transcode(carried, "NVFP4")
        np.testing.assert_array_equal(back.parts["blocks"][:, 4:], source.parts["blocks"][:, 4:])
        np.testing.assert_array_equal(back.dequantize(), source.dequantize())


def test_float32_holds_what_every_format_decodes_to():
    x = awkward_rows(8)
    for source in catalogue():
        tensor = edgekit.encode(x, source, importance=np.ones(x.shape[1], np.float32))
        assert relation(source, find_precision("F32")).carry is Carry.EXACT
        np.testing.assert_array_equal(edgekit.transcode(tensor, "F32").parts["values"], tensor.dequantize())


def test_sixteen_bit_floats_take_what_they_hold_and_refuse_or_round_the_rest():
    exact = edgekit.encode(np.array([[1.5, -2.0] * 16], np.float32), "Q8_0")
    assert edgekit.transcode(exact, "F32").backend == "bridge"
    rounded = edgekit.encode(
        np.random.default_rng(0).standard_normal((1, 32)).astype(np.float32), "affine:int8-sym-g32"
    )
    with pytest.raises(InexactError, match="row 0, column 0 would change"):
        edgekit.transcode(rounded, "F16")
    after = edgekit.transcode(rounded, "F16", exact=False)
    np.testing.assert_array_equal(after.parts["values"], rounded.dequantize().astype(np.float16))
    assert relation(find_precision("F16"), find_precision("Q8_0")).carry is Carry.NO


def test_every_ordered_pair_is_declared_with_its_reason():
    known = catalogue()
    for source in known:
        for target in known:
            declared = relation(source, target)
            assert declared.carry in Carry
            assert declared.why, declared


@pytest.mark.parametrize("source", LATTICES, ids=str)
def test_what_is_declared_is_what_happens(source):
    tensor = edgekit.encode(awkward_rows(5), source)
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


#: Formats in which the last group of a row may be shorter.
RAGGED = [p for p in LATTICES if not p.whole_blocks]


@pytest.mark.parametrize("source", RAGGED, ids=str)
def test_rows_with_a_ragged_last_group_carry_over_as_declared(source):
    tensor = edgekit.encode(awkward_rows(6)[:, :200], source)
    before = tensor.dequantize()
    for target in RAGGED:
        declared = relation(source, target)
        try:
            after = edgekit.transcode(tensor, target)
        except InexactError:
            assert declared.carry is not Carry.EXACT, f"{source} → {target}"
        else:
            np.testing.assert_array_equal(after.dequantize(), before, err_msg=f"{source} → {target}")
            shapes = {part: (v.shape, v.dtype) for part, v in edgekit.encode(before, target).parts.items()}
            assert {part: (v.shape, v.dtype) for part, v in after.parts.items()} == shapes, f"{source} → {target}"


def test_blocks_that_do_not_divide_the_rows_are_a_matter_of_shape():
    tensor = edgekit.encode(np.ones((2, 48), np.float32), "affine:int4-sym-channel")
    with pytest.raises(ShapeError, match="ggml:Q4_0 requires rows that are a multiple of 32, these have 48"):
        edgekit.transcode(tensor, "Q4_0")


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
    with pytest.raises(InexactError, match=r"openvino:nf4-g64 is not a lattice with a bridge; exact=False"):
        edgekit.transcode(tensor, "mlx:int4-g64")
    assert edgekit.transcode(tensor, "mlx:int4-g64", exact=False).backend != "bridge"


def test_a_scale_that_is_no_float16_is_refused_and_rounded_on_request():
    tensor = edgekit.encode(np.random.default_rng(0).standard_normal((1, 32)).astype(np.float32), "onnx:int4-sym-g32")
    with pytest.raises(InexactError, match="a scale is not a float16 value"):
        edgekit.transcode(tensor, "Q4_0")
    rounded = edgekit.transcode(tensor, "Q4_0", exact=False)
    np.testing.assert_allclose(rounded.dequantize(), tensor.dequantize(), rtol=2**-11)


def test_mlx_scales_of_sixteen_bits_are_no_lattice():
    x = np.random.default_rng(0).standard_normal((1, 32)).astype(ml_dtypes.bfloat16)
    with pytest.raises(InexactError, match="which must be float32"):
        edgekit.transcode(edgekit.encode(x, "mlx:int4-g32"), "affine:int4-asym-g32")


def test_the_same_precision_is_the_same_tensor():
    tensor = edgekit.encode(np.ones((1, 32), np.float32), "Q4_0")
    assert edgekit.transcode(tensor, "ggml:Q4_0") is tensor


@pytest.mark.parametrize(("cols", "apart"), [(256, True), (64, True), (96, False), (32, False)])
def test_rows_of_codes_of_four_bits_are_carried_apart_where_they_share_no_byte(cols, apart):
    """The zero points of two groups share a byte, so that two rows with an odd number of groups do."""
    x = np.random.default_rng(1).standard_normal((7, cols)).astype(np.float32)
    x = edgekit.encode(x, "affine:int4-asym-g32").dequantize().astype(np.float16).astype(np.float32)
    source = edgekit.encode(x, "affine:int4-asym-g32")
    scale = source.parts["scale"].astype(np.float16).astype(np.float32)
    source = attrs.evolve(source, parts={**source.parts, "scale": scale})

    def read_parts(start, stop):
        return {key: part[start:stop] for key, part in source.parts.items()}

    tensor = EncodedTensor("w", x.shape, source.precision, source.nbytes, read_parts)
    carried = first_exact(tensor, [find_precision("openvino:int4-asym-g32")])
    assert carried is not None
    assert carried.sliceable is apart
    assert carried.together == (0 if apart else 2)
    whole = transcode(source, "openvino:int4-asym-g32").parts
    pieces = [carried.read_parts(a, b) for a, b in ([(0, 1), (1, 5), (5, 7)] if apart else [(0, 2), (2, 6), (6, 7)])]
    for key, part in whole.items():
        assert np.array_equal(np.concatenate([piece[key] for piece in pieces]), part)
    for start, stop in ((0, 7), (1, 4), (3, 7), (6, 7)):
        assert np.array_equal(carried.float32(start, stop), source.dequantize()[start:stop])
