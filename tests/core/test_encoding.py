"""`edgekit.encode`: which arrays it takes, and what it refuses, the same for every convention."""

import tracemalloc

import attrs
import numpy as np
import pytest

import edgekit
from edgekit.encoding import _codecs as encoding
from edgekit.errors import (
    MissingPluginError,
    NonFiniteError,
    ScaleOverflowError,
    ShapeError,
    UnknownPrecisionError,
    UsageError,
)
from edgekit.plugin import Manager, Registration, _registry
from edgekit.precision import catalogue, find_precision
from edgekit.reference import Traits, reference

try:
    import ml_dtypes
except ImportError:
    ml_dtypes = None

RNG = np.random.default_rng(11)
X = RNG.standard_normal((3, 512)).astype(np.float32)
ALL = pytest.mark.parametrize(
    "precision", [p for p in catalogue() if not reference(p).traits.needs_importance], ids=str
)


def same(a, b):
    assert a.parts.keys() == b.parts.keys()
    for part in a.parts:
        assert a.parts[part].dtype == b.parts[part].dtype
        left, right = (np.atleast_1d(each.parts[part]).view(np.uint8) for each in (a, b))
        np.testing.assert_array_equal(left, right, err_msg=part)


@ALL
def test_strides_byte_order_and_memory_do_not_matter(precision, tmp_path):
    expected = edgekit.encode(X, precision)
    wide = np.empty((3, 1024), np.float32)
    wide[:, ::2] = X
    mapped = np.memmap(tmp_path / "x", np.float32, "w+", shape=X.shape)
    mapped[:] = X
    readonly = X.copy()
    readonly.flags.writeable = False
    for variant in (wide[:, ::2], np.asfortranarray(X), X.astype(">f4"), mapped, readonly, X.astype(np.float64)):
        same(edgekit.encode(variant, precision), expected)


@ALL
def test_the_input_is_never_written(precision):
    x = X.copy()
    edgekit.encode(x, precision)
    np.testing.assert_array_equal(x, X)


@ALL
def test_leading_dimensions_are_rows_and_the_shape_comes_back(precision):
    cube = RNG.standard_normal((2, 3, 512)).astype(np.float32)
    encoded = edgekit.encode(cube, precision)
    same(encoded, edgekit.encode(cube.reshape(6, 512), precision))
    assert encoded.shape == (2, 3, 512)
    decoded = encoded.dequantize()
    assert (decoded.shape, decoded.dtype) == ((2, 3, 512), np.float32)
    assert edgekit.encode(cube[0, 0], precision).dequantize().shape == (512,)


@ALL
@pytest.mark.parametrize("shape", [(), (0,), (0, 256), (4, 0)])
def test_0d_and_empty_arrays_are_refused(precision, shape):
    with pytest.raises(ShapeError, match=r"cannot quantize an? (0-d|empty) array"):
        edgekit.encode(np.zeros(shape, np.float32), precision)


@ALL
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_are_refused_with_their_index(precision, bad):
    x = X.copy()
    x[1, 70] = bad
    with pytest.raises(NonFiniteError, match=rf"array holds {bad} at row 1, column 70; .*nonfinite=\"keep\""):
        edgekit.encode(x, precision)


@ALL
def test_huge_values_never_become_a_silent_nan(precision):
    x = np.full((1, 512), 3e38, np.float32)
    x[0, ::3] = -3e38
    try:
        decoded = edgekit.encode(x, precision).dequantize()
    except ScaleOverflowError as error:
        assert "too large" in str(error)
    else:  # a microscaling value may round up to 2**128, which is infinite in float32, as in its framework
        assert not np.isnan(decoded).any()


@ALL
@pytest.mark.parametrize("size", [1e10, 3e18, 3e38])
def test_huge_values_are_never_silently_lost(precision, size):
    if not precision.rowwise:
        pytest.skip("one number for the whole tensor: a row alone says nothing")
    x = np.full((1, 512), size, np.float32)
    x[0, ::3] *= -0.25  # two ends alike are ties to 0 for one bit
    try:
        decoded = edgekit.encode(x, precision).dequantize()
    except ScaleOverflowError as error:
        assert "rescale the tensor" in str(error)
    else:
        assert np.abs(decoded).max() > size * 2.0**-20


@ALL
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_the_largest_float16_and_what_is_just_above_it(precision, dtype):
    for size in (65504, 65519, 65520, 70000) if dtype is np.float32 else (60000, 65504):
        x = np.full((2, 512), size, dtype)
        x[:, ::3] *= -1
        try:
            decoded = edgekit.encode(x, precision).dequantize()
        except ScaleOverflowError as error:
            assert "the range of" in str(error)
        else:
            assert not np.isnan(decoded).any()


@ALL
@pytest.mark.parametrize("cols", [1, 31, 33, 511, 513])
def test_rows_that_no_block_divides_are_refused_or_have_a_ragged_tail(precision, cols):
    x = RNG.standard_normal((3, cols)).astype(np.float32)
    if precision.whole_blocks and precision.block and cols % precision.block:
        with pytest.raises(ShapeError) as refused:
            edgekit.encode(x, precision)
        assert str(refused.value) == (
            f"{precision} requires rows that are a multiple of {precision.block}, these have {cols}; "
            "choose a precision with a smaller block, or pad the rows"
        )
    else:
        decoded = edgekit.encode(x, precision).dequantize()
        assert decoded.shape == x.shape
        assert np.isfinite(decoded).all()


@ALL
def test_not_strict_gives_the_references_bytes_for_whatever_is_no_nan(precision):
    x = np.stack([X[0] * np.float32(1e9), np.sign(X[0]) * np.float32(3.4e38), X[0] * np.float32(1e-41)])
    x[0, 300] = np.inf
    encoded = edgekit.encode(x, precision, strict=False)
    with np.errstate(all="ignore"):
        expected = reference(precision).encode(x, precision)
    assert encoded.backend == "reference"
    same(encoded, attrs.evolve(encoded, parts=expected))
    x[2, 7] = np.nan
    with pytest.raises(NonFiniteError, match="array holds nan at row 2, column 7"):
        edgekit.encode(x, precision, strict=False)


def test_what_is_said_of_an_overflow():
    def refused(values, name):
        with pytest.raises(ScaleOverflowError) as found:
            edgekit.encode(np.resize(np.array(values, np.float32), (1, 256)), name)
        return str(found.value)

    cure = "rescale the tensor, or choose a precision with a wider scale (affine: float32)"
    assert refused([1e9, -1e9], "ggml:Q8_0") == (
        f"array holds values too large for ggml:Q8_0: its scale d exceeds the range of float16; {cure}"
    )
    assert refused([1e9, -1e9], "openvino:int4-sym-g32") == (
        f"array holds values too large for openvino:int4-sym-g32: its scale exceeds the range of float16; {cure}"
    )
    assert refused([3e38, -3e38], "mlx:int4-g32") == (
        f"array holds values too large for mlx:int4-g32: its scales exceeds the range of float32; {cure}"
    )
    assert refused([1e7, -1e7], "openvino:nvfp4") == (
        f"array holds values too large for openvino:nvfp4: its scale exceeds the range of float16; {cure}"
    )
    assert refused([1e19, -1e19], "mlx:nvfp4") == (
        f"array holds values too large for mlx:nvfp4: a row would decode to less than a millionth of itself; {cure}"
    )
    for name in ("mlx:mxfp4", "mlx:mxfp8", "openvino:mxfp4", "openvino:mxfp8"):
        assert refused([3.4e38, -3.4e38], name) == (
            f"array holds values too large for {name}: a value would decode to infinity; {cure}"
        )
    assert refused([1e-38], "mlx:mxfp4") == (
        f"array holds values too small for mlx:mxfp4: its scales is below the range of float8_e8m0fnu; {cure}"
    )
    with pytest.raises(ScaleOverflowError, match="its values exceeds the range of float16"):
        edgekit.encode(np.full((1, 4), 7e4, np.float32), "F16")


def test_coarse_levels_of_huge_values_are_no_overflow():
    """One bit, asymmetric: 0 and s. Halves of s are ties to the even code, so both ends become 0, at any size."""
    for size in (1.0, 1e9, 1e38):
        x = np.resize(np.array([size, -size], np.float32), (1, 32))
        np.testing.assert_array_equal(edgekit.encode(x, "affine:int1-asym-g32").dequantize(), 0)


#: One of each way of going through a tensor.
PATHS = [
    "ggml:MXFP4", "mlx:int4-g64", "mlx:nvfp4-tensor", "onnx:int4-asym-g32", "onnx:qdq_int4-asym-g32",
    "onnx:int8-asym-tensor", "openvino:int4-sym-g64", "openvino:nvfp4", "olive:int4-asym-g32",
    "affine:int3-sym-channel", "affine:int1-sym-tensor",
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "scale"), [(name, 1.0) for name in PATHS] + [("ggml:Q4_K", 1e5), ("mlx:int4-g64", 1e5)]
)
def test_looking_at_the_values_costs_no_memory_of_their_size(name, scale):
    x = np.resize((X * scale).astype(np.float32), (2048, 4096))  # 34 MB
    edgekit.encode(x[:1], name, backend="reference")
    tracemalloc.start()
    try:
        output = edgekit.encode(x, name, backend="reference").nbytes
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < output + 16e6  # promised are 64 MB beyond input and output


@pytest.mark.parametrize("backend", ["reference", None])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", [*PATHS, "openvino:int4-asym-g64", "ggml:Q4_K"])
def test_widening_costs_no_memory_of_the_tensors_size(name, dtype, backend):
    if dtype == "bfloat16" and ml_dtypes is None:
        pytest.skip("ml_dtypes is not installed")
    narrow = X.astype(np.float16 if dtype == "float16" else ml_dtypes.bfloat16)
    x = np.resize(narrow, (4096, 4096))  # 34 MB, 67 MB when widened
    edgekit.encode(x[:1], name, backend=backend)
    tracemalloc.start()
    try:
        output = edgekit.encode(x, name, backend=backend).nbytes
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < output + 48e6  # promised are 64 MB beyond input and output


@ALL
def test_what_is_copied_piece_by_piece_is_encoded_as_a_whole(precision, monkeypatch):
    wide = np.zeros((5, 7, 1024), np.float32)
    wide[..., ::2] = RNG.standard_normal((5, 7, 512))
    strided = wide[..., ::2].transpose(1, 0, 2)
    half = strided.astype(np.float16)
    cases = [
        (strided, np.ascontiguousarray(strided)),
        (strided.astype(">f4"), np.ascontiguousarray(strided)),
        (half.astype(np.float64), half.astype(np.float32, order="C")),
        (half, np.ascontiguousarray(half)),
    ]
    if ml_dtypes is not None:
        cases.append((half.astype(ml_dtypes.bfloat16), np.ascontiguousarray(half.astype(ml_dtypes.bfloat16))))
    wanted = [edgekit.encode(contiguous, precision) for _, contiguous in cases]
    monkeypatch.setattr(encoding, "_CHUNK", 2000)
    for (given, _), whole in zip(cases, wanted, strict=True):
        same(edgekit.encode(given, precision), whole)
        same(edgekit.encode(given, precision, backend="reference"), whole)
    assert edgekit.encode(strided, precision).shape == (7, 5, 512)


def test_errors_of_pieces_name_the_tensors_row(monkeypatch):
    monkeypatch.setattr(encoding, "_CHUNK", 2000)
    x = np.ones((64, 512), np.float16)
    x[37, 3] = np.inf
    for strict, bad in ((True, np.inf), (False, np.nan)):
        x[37, 3] = bad
        with pytest.raises(NonFiniteError, match=rf"array holds {bad} at row 37, column 3;"):
            edgekit.encode(x, "ggml:Q4_K", strict=strict)


@ALL
def test_zeros_stay_zeros(precision):
    x = np.zeros((2, 512), np.float32)
    x[1] = -0.0
    np.testing.assert_array_equal(edgekit.encode(x, precision).dequantize(), 0)


@ALL
def test_measured_bits_are_the_stated_bits(precision):
    # Where the scale takes the source's type, what is stated is for a source of 16 bits.
    dtype = np.float16 if precision.scale_dtype == "source" else np.float32
    x = RNG.standard_normal((128, 4096)).astype(dtype)
    measured = edgekit.encode(x, precision).bits_per_weight
    slack = 0 if precision.granularity in ("group", "element") else 64 / 4096  # a scale a row, or less
    slack += 64 / x.size if precision.whole_tensor else 0  # a number for the whole tensor
    assert float(precision.bits_per_weight) <= measured <= float(precision.bits_per_weight) + slack


@ALL
def test_row_slices_equal_the_whole(precision):
    if not precision.rowwise:
        pytest.skip("one scale for the whole tensor: rows are not independent")
    x = RNG.standard_normal((5, 512)).astype(np.float32)
    whole, parts = edgekit.encode(x, precision).parts, [edgekit.encode(x[i : i + 1], precision).parts for i in range(5)]
    for part in whole:
        np.testing.assert_array_equal(whole[part], np.concatenate([p[part] for p in parts]))


@pytest.mark.parametrize("dtype", [np.int32, np.uint8, bool, np.complex64])
def test_only_floats_are_quantized(dtype):
    with pytest.raises(UsageError, match="give floating point values"):
        edgekit.encode(np.ones((1, 32), dtype), "Q4_0")


def test_float64_beyond_float32_is_refused():
    with pytest.raises(NonFiniteError, match="inf"):
        edgekit.encode(np.full((1, 32), 1e300), "Q4_0")


def test_importance_has_to_fit():
    for bad in (np.ones(31), -np.ones(32), np.full(32, np.nan)):
        with pytest.raises(UsageError, match="importance has"):
            edgekit.encode(np.ones((1, 32), np.float32), "Q4_0", importance=bad)


def test_an_unknown_backend_names_what_there_is():
    """And no distribution that is made of the name: somebody else may publish one."""
    with pytest.raises(
        MissingPluginError, match=r"no backend 'cuda' encodes ggml:Q4_0 \(available: reference.*\); "
    ) as told:
        edgekit.encode(np.ones((1, 32), np.float32), "Q4_0", backend="cuda")
    assert str(told.value).endswith("; choose one of these")


def test_a_known_backend_that_is_not_installed_says_what_to_install(monkeypatch):
    monkeypatch.setattr("edgekit.encoding._codecs.manager", lambda: _registry.build([]))
    for backend in ("numba", "llamacpp", "openvino"):
        with pytest.raises(MissingPluginError) as told:
            edgekit.encode(np.ones((1, 32), np.float32), "Q4_0", backend=backend)
        assert str(told.value) == (
            f"no backend {backend!r} encodes ggml:Q4_0 (available: reference); pip install edgekit-{backend}"
        )


def test_an_installed_backend_is_not_to_be_installed_again(monkeypatch):
    """It does not encode that precision; or it is broken, which `edgekit doctor` says."""
    failed = _registry.PluginInfo("numba", "edgekit-numba", "1", status="failed", error="it is broken")
    monkeypatch.setattr("edgekit.encoding._codecs.manager", lambda: _registry.Manager([failed]))
    with pytest.raises(MissingPluginError, match=r"\(available: reference\); choose one of these$"):
        edgekit.encode(np.ones((1, 32), np.float32), "Q4_0", backend="numba")


def test_an_unknown_precision_is_refused():
    with pytest.raises(UnknownPrecisionError, match="did you mean"):
        edgekit.encode(np.ones((1, 32), np.float32), "Q4_00")


def test_decode_is_dequantize():
    encoded = edgekit.encode(X, "Q8_0")
    np.testing.assert_array_equal(edgekit.decode(encoded), encoded.dequantize())


@pytest.mark.parametrize(
    ("speeds", "chosen"),
    [
        ({}, None),
        ({"slow": 0, "slower": 0.5}, None),
        ({"slow": 0, "even": 1}, "even"),
        ({"even": 1, "fast": 9, "fastest": 10}, "fastest"),
    ],
)
def test_the_fastest_exact_backend_does_the_work_unless_the_reference_is_faster(monkeypatch, speeds, chosen):
    """The reference has speed 1; who is slower is used only when asked for."""
    target = f"{__name__}:VOUCHING"
    found = [
        Registration("quantizers", "ggml:Q8_0", target, name, name, {"claim": "exact", "speed": speed})
        for name, speed in speeds.items()
    ]
    options = {"claim": "half a step", "speed": 99}
    bounded = Registration("quantizers", "ggml:Q8_0", target, "bounded", "bounded", options)
    monkeypatch.setattr(encoding, "manager", lambda: Manager(registrations=[bounded, *found]))
    precision = find_precision("ggml:Q8_0")
    assert getattr(encoding.choose(precision, None), "plugin", None) == chosen
    for name in (*speeds, "bounded"):
        assert encoding.choose(precision, name).plugin == name


class Vouching:
    """A backend that checks for itself; it vouches for rows of at most one."""

    traits = Traits()

    def __init__(self):
        self.calls = []

    def encode(self, x, importance=None):
        self.calls.append("encode")
        precision = find_precision("ggml:Q8_0")
        return reference(precision).encode(x, precision, importance)

    def encode_checked(self, x, importance=None):
        self.calls.append("encode_checked")
        return {"blocks": np.zeros((len(x), 34), np.uint8)} if (np.abs(x) <= 1).all() else None


VOUCHING = Vouching()


@pytest.fixture
def vouching(monkeypatch):
    found = Registration(
        "quantizers", "ggml:Q8_0", f"{__name__}:VOUCHING", "own", "own", {"claim": "exact", "speed": 9}
    )
    monkeypatch.setattr(encoding, "manager", lambda: Manager(registrations=[found]))
    monkeypatch.setattr(VOUCHING, "calls", [])
    return VOUCHING.calls


def test_rows_that_a_backend_vouches_for_are_not_looked_at_again(vouching, monkeypatch):
    monkeypatch.setattr(encoding, "refuse_nonfinite", None)
    monkeypatch.setattr(encoding, "refuse_overflow", None)
    encoded = edgekit.encode(np.ones((2, 32), np.float32), "ggml:Q8_0")
    assert vouching == ["encode_checked"]
    assert encoded.backend == "own"
    assert not encoded.parts["blocks"].any()


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e38])
def test_rows_that_a_backend_does_not_vouch_for_are_refused_as_ever(vouching, bad):
    x = np.ones((2, 32), np.float32)
    x[1, 3] = bad
    with pytest.raises((NonFiniteError, ScaleOverflowError)) as found:
        edgekit.encode(x, "ggml:Q8_0", backend="own")
    with pytest.raises(type(found.value)) as wanted:
        edgekit.encode(x, "ggml:Q8_0", backend="reference")
    assert str(found.value) == str(wanted.value)


def test_rows_that_are_large_but_fit_are_encoded_all_the_same(vouching):
    x = np.full((1, 32), 7, np.float32)
    encoded = edgekit.encode(x, "ggml:Q8_0")
    assert vouching == ["encode_checked", "encode"]
    assert np.array_equal(encoded.parts["blocks"], edgekit.encode(x, "ggml:Q8_0", backend="reference").parts["blocks"])
