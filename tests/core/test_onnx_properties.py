"""ONNX Runtime's and Olive's conventions: against slow second implementations, and the properties they share.

The slow ones follow the libraries' own loops, one number at a time. Python computes in float64, which is wide enough
that rounding each result to float32 equals computing in float32.
"""

import math
import struct

import ml_dtypes
import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edgekit.encoding import encode
from edgekit.errors import ScaleOverflowError, UnknownPrecisionError
from edgekit.numerics import blocks as _blocks
from edgekit.precision import catalogue, find_precision
from edgekit.reference import reference
from edgekit.reference.onnx import int8, matmul_nbits, qdq_int4

LARGEST = float(np.finfo(np.float32).max)
FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)
SOURCES = st.sampled_from([np.float32, np.float16, ml_dtypes.bfloat16])
CATALOGUE = [p for p in catalogue() if p.convention in ("onnx", "olive") and (p.block or 0) <= 64]
BLOCKWISE = [p for p in CATALOGUE if p.convention == "onnx" and p.block]
OLIVE = [p for p in CATALOGUE if p.convention == "olive"]


@st.composite
def matrices(draw, multiple=1, sources=SOURCES):
    """Finite rows of a source type: any bit patterns, smooth values at any magnitude, or a grid full of ties."""
    shape = draw(st.tuples(st.integers(1, 3), st.integers(1, 90 // multiple).map(lambda n: n * multiple)))
    kind = draw(st.sampled_from(["any", "normal", "positive", "grid"]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    if kind == "any":
        values = draw(hnp.arrays(np.float32, shape, elements=FLOATS))
    elif kind == "grid":
        values = rng.integers(-16, 17, shape) / 2
    else:
        values = rng.standard_normal(shape) * 10.0 ** draw(st.integers(-44, 38))
        values = np.abs(values) if kind == "positive" else values
    return cast(values, draw(sources))


def cast(values, source):
    with np.errstate(over="ignore"):
        x = np.clip(values, -LARGEST, LARGEST).astype(np.float32).astype(source)
    finite = np.isfinite(x.astype(np.float32))
    return np.where(finite, x, np.ones_like(x))


@st.composite
def cases(draw, precisions=tuple(CATALOGUE)):
    precision = draw(st.sampled_from(precisions))
    return precision, draw(matrices(multiple=precision.block if precision.whole_blocks and precision.block else 1))


def f32(value):
    try:
        return struct.unpack("f", struct.pack("f", value))[0]
    except OverflowError:
        return math.copysign(math.inf, value)


def roundf(value):
    return math.copysign(math.floor(abs(value) + 0.5), value) if math.isfinite(value) else value


def store(value, dtype):
    """Round to the type that stores a scale."""
    with np.errstate(over="ignore"):
        return np.float32(value).astype(dtype)


def finite_scales(parts):
    return all(np.isfinite(part.astype(np.float32)).all() for part in parts.values() if part.dtype.kind not in "iu")


# --- the slow implementations ---


def slow_grid(values, bits, symmetric, dtype):
    """Scale as stored, its reciprocal, zero point."""
    low, high = LARGEST, -LARGEST
    for value in values:
        low = min(low, value)
        high = max(high, value)
    if symmetric:
        exact, zero_point = f32((high if abs(high) > abs(low) else low) / -(2.0 ** (bits - 1))), 2 ** (bits - 1)
    else:
        low, high = min(low, 0.0), max(high, 0.0)
        exact = f32(f32(high - low) / (2**bits - 1))
        position = f32(0.0 - f32(low / exact)) if exact else low
        zero_point = int(roundf(min(max(position, 0.0), 2.0**bits - 1)))
    stored = store(exact, dtype)
    used = exact if stored.dtype == ml_dtypes.bfloat16 else float(stored)
    return stored, (f32(1.0 / used) if used else 0.0), zero_point


def slow_matmul_nbits(row, bits, block, symmetric, dtype):
    """Bytes, scales and packed zero points of one row, the way the kernel's loops leave them."""
    lanes, values = 8 // bits, [float(v) for v in row]
    blocks = -(-len(values) // block)
    out = bytearray(blocks * block * bits // 8)
    grids = [slow_grid(values[g * block : (g + 1) * block], bits, symmetric, dtype) for g in range(blocks)]
    for start in range(0, len(values), lanes * block):
        held = [0] * lanes  # one byte's codes; where the row ends inside a byte, older ones are still there
        for i in range(start, min(start + lanes * block, len(values)), lanes):
            for lane, value in enumerate(values[i : i + lanes]):
                _, reciprocal, zero_point = grids[(i + lane) // block]
                q = roundf(f32(f32(value * reciprocal) + zero_point))
                held[lane] = 0 if math.isnan(q) else int(min(max(q, 0), 2**bits - 1))
            out[i // lanes] = sum(code << bits * lane for lane, code in enumerate(held))
    points = [grid[2] for grid in grids] + [2 ** (bits - 1)] * (-blocks % lanes)
    packed = [sum(p << bits * n for n, p in enumerate(points[g : g + lanes])) for g in range(0, blocks, lanes)]
    return bytes(out), [grid[0] for grid in grids], packed


def slow_qdq_code(value, grid, symmetric):
    q = roundf(f32(value * grid[1]))
    q = int(q) if math.isfinite(q) else -(2**31)
    return min(max(q, -8), 7) & 15 if symmetric else min(max(q + grid[2], 0), 15)


def nibbles(codes):
    codes = [*codes, 0]
    return [low | high << 4 for low, high in zip(codes[::2], codes[1::2], strict=False)]


def slow_int8(values, kind, symmetric, reduced, dtype):
    """Codes, scale, zero point of one channel."""
    low, high = min(0.0, *values), max(0.0, *values)
    if reduced:
        qmin, qmax = (-64, 64) if kind == "int8" else (0, 127)
    else:
        qmin, qmax = (-127 if symmetric else -128, 127) if kind == "int8" else (0, 255)
    if symmetric:
        low, high = min(low, -high), max(high, -low)
    scale = (high - low) / (qmax - qmin)
    stored = store(f32(scale), dtype) if dtype != np.float16 else np.float16(scale)
    if stored == 0 or (dtype != np.float16 and scale < np.finfo(np.float32).tiny):
        stored, zero_point = np.ones((), dtype)[()], 0
    else:
        zero_point = round((qmin + qmax) / 2) if symmetric else round(qmin - low / scale)
    first, last = (-128, 127) if kind == "int8" else (0, 255)
    codes = [min(max(round(f32(v / float(stored))) + zero_point, first), last) for v in values]
    return codes, stored, zero_point


def slow_olive(values, bits, symmetric, dtype):
    """Codes, scale and zero point of one group; None where the library refuses it."""

    def t(value):
        return float(store(f32(value), dtype))

    top, low, high = 2**bits - 1, min(0.0, *values), max(0.0, *values)
    if symmetric:
        high = max(-low, high)
        low = -high if low < 0 else low
    if low == high == 0:
        low, high = -1.0, 1.0
    scale, zero_point = t(t(high - low) / top), 2 ** (bits - 1)
    if not scale or not math.isfinite(scale):
        return None
    if not symmetric:
        zero_point = min(max(round(-t(low / scale)), 0), top)
    return [min(max(round(t(t(v / scale) + zero_point)), 0), top) for v in values], scale, zero_point


# --- against them ---

NIBBLE_EXAMPLE = np.array([[-0.5, 1.5, -3.5, 4.0, 7.5, -7.5, 0.25]], np.float32)


@settings(max_examples=150, deadline=None)
@given(cases(tuple(p for p in BLOCKWISE if p.kind != "qdq_int4")))
@example((find_precision("onnx:int4-asym-g16"), NIBBLE_EXAMPLE))
@example((find_precision("onnx:int4-asym-g16"), np.array([[15, 0.49999997, 7.5]], np.float32)))
@example((find_precision("onnx:int2-sym-g16"), np.cos(np.arange(65, dtype=np.float32))[None]))
@example((find_precision("onnx:int4-sym-g16"), np.cos(np.arange(33, dtype=np.float32))[None]))
@example((find_precision("onnx:int4-sym-g16"), np.array([[0, 3e-40, -1e-40, 1e-45]], np.float32)))
def test_matmul_nbits_agrees_with_the_kernels_loops(case):
    precision, x = case
    parts = reference(precision).encode(x, precision)
    for number, row in enumerate(x):
        out, scales, points = slow_matmul_nbits(row, precision.bits, precision.block, precision.symmetric, x.dtype)
        assert parts["B"][number].tobytes() == out
        assert parts["scales"][number].tobytes() == b"".join(scale.tobytes() for scale in scales)
        assert precision.symmetric or parts["zero_points"][number].tolist() == points
    assert ("zero_points" in parts) is not precision.symmetric


@settings(max_examples=150, deadline=None)
@given(cases(tuple(p for p in BLOCKWISE if p.kind == "qdq_int4")))
@example((find_precision("onnx:qdq_int4-asym-g16"), NIBBLE_EXAMPLE))
@example((find_precision("onnx:qdq_int4-sym-g16"), np.array([[0, 3e-40, -1e-40, 1e-45]], np.float32)))
def test_qdq_int4_agrees_with_the_kernels_loops(case):
    precision, x = case
    parts = reference(precision).encode(x, precision)
    rows, cols = x.shape
    size, symmetric = precision.block, precision.symmetric
    grids = [
        [slow_grid([float(v) for v in row[g : g + size]], 4, symmetric, x.dtype) for row in x]
        for g in range(0, cols, size)
    ]
    codes = [slow_qdq_code(float(x[r, k]), grids[k // size][r], symmetric) for k in range(cols) for r in range(rows)]
    assert parts["codes"].tolist() == nibbles(codes)[: -(-len(codes) // 2)]
    assert parts["scale"].tobytes() == b"".join(grid[0].tobytes() for line in grids for grid in line)
    if not symmetric:
        points = [grid[2] for line in grids for grid in line]
        assert parts["zero_point"].tolist() == nibbles(points)[: -(-len(points) // 2)]


@settings(max_examples=150, deadline=None)
@given(cases(tuple(p for p in CATALOGUE if p.convention == "onnx" and not p.block)))
@example((find_precision("onnx:int8-sym-tensor"), np.array([[1e-38, -2e-38]], np.float32)))
@example((find_precision("onnx:uint8-asym-channel"), np.array([[1e-7, -6e-8], [-1, 1]], np.float16)))
def test_int8_agrees_with_the_slow_implementation(case):
    precision, x = case
    parts = reference(precision).encode(x, precision)
    dtype = np.float16 if x.dtype == np.float16 else np.float32
    channels = x if precision.granularity == "channel" else x.reshape(1, -1)
    for number, channel in enumerate(channels):
        values = [float(value) for value in channel]
        codes, scale, zero_point = slow_int8(values, precision.kind, precision.symmetric, precision.reduced, dtype)
        assert parts["codes"].reshape(len(channels), -1)[number].tolist() == codes
        assert parts["scale"].reshape(-1)[number] == scale
        assert parts["zero_point"].reshape(-1)[number] == zero_point
    assert parts["scale"].dtype == dtype
    assert parts["scale"].shape == parts["zero_point"].shape == (() if precision.granularity == "tensor" else (len(x),))
    assert parts["codes"].dtype == parts["zero_point"].dtype == precision.kind


@settings(max_examples=150, deadline=None)
@given(cases(tuple(OLIVE)))
def test_olive_agrees_with_the_slow_implementation(case):
    precision, x = case
    parts = reference(precision).encode(x, precision)
    size, bits = precision.block or x.shape[1], precision.bits
    for number, row in enumerate(x):
        groups = [row[g : g + size].astype(np.float64).tolist() for g in range(0, len(row), size)]
        slow = [slow_olive(values, bits, precision.symmetric, x.dtype) for values in groups]
        assume(None not in slow)
        stream = sum(code << bits * place for place, code in enumerate(c for codes, _, _ in slow for c in codes))
        assert int.from_bytes(parts["qweight"][number].tobytes(), "little") == stream
        assert parts["scales"][number].astype(np.float64).tolist() == [scale for _, scale, _ in slow]
        if not precision.symmetric:
            stream = sum(point << bits * place for place, (_, _, point) in enumerate(slow))
            assert int.from_bytes(parts["qzeros"][number].tobytes(), "little") == stream
    assert parts["scales"].dtype == x.dtype
    assert ("qzeros" in parts) is not precision.symmetric


# --- what they share ---


@settings(max_examples=400, deadline=None)
@given(cases())
def test_decodes_within_its_bound(case):
    precision, x = case
    module = reference(precision)
    parts = module.encode(x, precision)
    assume(finite_scales(parts))
    decoded = module.decode(parts, precision, x.shape)
    assert (decoded.shape, decoded.dtype) == (x.shape, np.float32)
    limit = module.bound(x, parts, precision)
    assert limit.shape == x.shape
    assert (np.abs(x.astype(np.float64) - decoded) <= limit).all()


@pytest.mark.parametrize("precision", CATALOGUE, ids=str)
def test_bound_covers_the_rounding_of_narrow_scales(precision):
    module = reference(precision)
    for dtype in (np.float16, ml_dtypes.bfloat16):
        x = np.random.default_rng(3).standard_normal((16, 512)).astype(dtype)
        parts = module.encode(x, precision)
        error = np.abs(x.astype(np.float64) - module.decode(parts, precision, x.shape))
        assert (error <= module.bound(x, parts, precision)).all()


@pytest.mark.parametrize("precision", [p for p in CATALOGUE if p.convention == "onnx"], ids=str)
def test_bound_is_half_a_step_on_ordinary_weights(precision):
    x = np.random.default_rng(1).standard_normal((4, 256)).astype(np.float32)
    module = reference(precision)
    parts = module.encode(x, precision)
    limit = module.bound(x, parts, precision)
    step = np.abs(parts["scales" if "scales" in parts else "scale"]).max()
    inside = limit <= step / 2 * 1.001
    # A symmetric block lacks the level opposite to its extreme: few values lie beyond the last one.
    assert inside.mean() > (0.9 if precision.bits > 2 else 0.75)
    assert limit.max() <= step * 1.001


@settings(max_examples=150, deadline=None)
@given(cases())
def test_same_bytes_for_every_chunking_and_row_slice(case):
    precision, x = case
    module = reference(precision)
    whole = module.encode(x, precision)
    decoded = module.decode(whole, precision, x.shape)
    before = x.copy()
    x.flags.writeable = False
    small = lambda rows, cols: _blocks.row_chunks(rows, cols, elements=1)  # noqa: E731
    with pytest.MonkeyPatch.context() as patch:
        for owner in (matmul_nbits, qdq_int4, int8, reference(OLIVE[0])):
            patch.setattr(owner, "row_chunks", small)
        patch.setattr(qdq_int4, "_SLAB", 1)
        again = module.encode(x, precision)
        np.testing.assert_array_equal(module.decode(whole, precision, x.shape), decoded)
    assert x.tobytes() == before.tobytes()
    assert {part: values.tobytes() for part, values in whole.items()} == {p: v.tobytes() for p, v in again.items()}
    if precision.rowwise:
        slices = [module.encode(x[r : r + 1], precision) for r in range(len(x))]
        for part, values in whole.items():
            assert np.concatenate([s[part] for s in slices]).tobytes() == values.tobytes()


@settings(max_examples=100, deadline=None)
@given(st.sampled_from([p for p in BLOCKWISE if p.symmetric]), matrices(sources=st.just(np.float32)))
def test_symmetric_blocks_encode_their_decoded_values_to_the_same_bytes(precision, x):
    module = reference(precision)
    first = module.encode(x, precision)
    scale = np.abs(first.get("scales", first.get("scale")))
    assume((scale >= np.finfo(np.float32).tiny).all())
    again = module.encode(module.decode(first, precision, x.shape), precision)
    for part, values in first.items():
        assert again[part].tobytes() == values.tobytes()


def test_matmul_nbits_and_qdq_part_on_ties_only():
    x = np.array([[-2.5, -1.5, 0.0, 12.5, 2.25, -2.0, 1.25, 0.75] * 2], np.float32)
    one = encode(x, "onnx:int4-asym-g16")
    other = encode(x, "onnx:qdq_int4-asym-g16")
    assert one.parts["scales"].tolist() == other.parts["scale"].tolist() == [[1.0]]
    ties = (x % 1 == 0.5) & (x < 0)
    differs = one.dequantize() != other.dequantize()
    assert differs.any()
    assert not differs[~ties].any()


@pytest.mark.parametrize(
    ("name", "shapes"),
    [
        ("onnx:int4-asym-g32", {"B": (3, 3, 16), "scales": (3, 3), "zero_points": (3, 2)}),
        ("onnx:int2-sym-g16", {"B": (3, 5, 4), "scales": (3, 5)}),
        ("onnx:int8-asym-g64", {"B": (3, 2, 64), "scales": (3, 2), "zero_points": (3, 2)}),
        ("onnx:qdq_int4-asym-g32", {"codes": (105,), "scale": (3, 3), "zero_point": (5,)}),
        ("onnx:int8-sym-tensor", {"codes": (3, 70), "scale": (), "zero_point": ()}),
        ("onnx:uint8-asym-channel-reduced", {"codes": (3, 70), "scale": (3,), "zero_point": (3,)}),
        ("olive:int4-asym-channel", {"qweight": (3, 35), "scales": (3, 1), "qzeros": (3, 1)}),
    ],
)
def test_shapes_of_parts(name, shapes):
    x = np.random.default_rng(2).standard_normal((3, 70)).astype(np.float32)
    parts = encode(x, name).parts
    assert {part: values.shape for part, values in parts.items()} == shapes


@pytest.mark.parametrize(
    "name",
    [
        "onnx:int4-sym-g24",
        "onnx:int4-sym-g1024",
        "onnx:int2-sym-g512",
        "onnx:int3-sym-g32",
        "onnx:int4-g32",
        "onnx:int4-sym-channel",
        "onnx:uint8-sym-g32",
        "onnx:int8-sym-g32-reduced",
        "onnx:qdq_int4-sym-tensor",
        "olive:int4-sym-g8",
        "olive:int4-sym-g48",
        "olive:int4-sym-tensor",
        "olive:int4-g32",
        "olive:int3-sym-g32",
        "olive:int4-sym-channel-reduced",
    ],
)
def test_illegal_combinations_are_unknown(name):
    with pytest.raises(UnknownPrecisionError):
        find_precision(name)


@pytest.mark.parametrize("name", ["onnx:int4-asym-g32", "onnx:qdq_int4-asym-g32", "olive:int4-sym-g32"])
def test_a_range_beyond_float32_is_refused(name):
    x = np.zeros((1, 32), np.float32)
    x[0, :2] = LARGEST, -LARGEST
    with pytest.raises(ScaleOverflowError, match="exceeds the range of float32"):
        encode(x, name)


def test_blocks_whose_scale_has_no_reciprocal_still_decode_near_zero():
    x = (np.arange(-16, 16) * 1e-42).astype(np.float32)[None]
    for name in ("int2-sym-g16", "int4-asym-g16", "int8-sym-g16", "qdq_int4-sym-g16", "qdq_int4-asym-g16"):
        tensor = encode(x, f"onnx:{name}")
        assert np.abs(tensor.dequantize()).max() < 1e-40
