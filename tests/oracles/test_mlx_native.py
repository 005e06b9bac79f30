"""`mx.quantize` as a backend: the reference's bytes in every mode, group and source type, on weights of this test alone."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

import edgekit
from edgekit.encoding import choose
from edgekit.errors import PluginError, ShapeError
from edgekit.plugin import manager
from edgekit.precision import find_precision
from edgekit.reference import reference
from edgekit.testing import plugin_checks, run_format_checks, run_quantizer_checks, run_runtime_checks
from edgekit_mlx import library, native
from edgekit_mlx.modes import NATIVE
from edgekit_mlx.native import NativeQuantizer

#: A seed that no other test and no stored vector uses.
SEED = 0x31C
DTYPES = (np.dtype(np.float32), np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16))


def weights(shape: tuple[int, int], name: str, dtype: np.dtype) -> np.ndarray:
    """Heavy tails, a magnitude for each row, and what encoders stumble over."""
    rng = np.random.default_rng([SEED, *shape, *name.encode()])
    x = rng.standard_t(3, shape) * np.exp(rng.uniform(-6, 3, (shape[0], 1)))
    x[shape[0] // 2, : shape[1] // 2] = 0
    x[-1] = rng.integers(-16, 17, shape[1]) / 8
    return np.clip(x, -60000, 60000).astype(np.float32).astype(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", NATIVE)
def test_bytes_and_values_are_the_references(name: str, dtype: np.dtype):
    precision, quantizer = find_precision(name), NativeQuantizer(name)
    for shape in ((1, 128), (7, 384), (61, 256)):
        x = weights(shape, name, dtype)
        wanted, got = reference(precision).encode(x, precision), quantizer.encode(x)
        assert wanted.keys() == got.keys()
        for part, array in wanted.items():
            assert (got[part].dtype, got[part].shape) == (array.dtype, array.shape), part
            assert got[part].tobytes() == array.tobytes(), (part, shape)
        decoded = quantizer.decode(got, shape)
        np.testing.assert_array_equal(decoded, reference(precision).decode(wanted, precision, shape))


#: One of each formula.
@pytest.mark.parametrize("kind", ["int1-g128", "int3-g32", "int4-g64", "int8-g64", "mxfp4", "mxfp8", "nvfp4"])
def test_every_kind_of_encoder_conforms(kind: str):
    (own,) = [r for r in manager().all("quantizers") if (r.plugin, r.name) == ("mlx", f"mlx:{kind}")]
    assert [result.message for result in run_quantizer_checks(own, profile="quick") if not result.ok] == []


def test_the_format_conforms():
    assert [result.message for result in run_format_checks("mlx", profile="quick") if not result.ok] == []


def test_the_runtime_conforms():
    assert [result.message for result in run_runtime_checks("mlx", profile="quick") if not result.ok] == []


@plugin_checks("mlx", profile="quick")
def test_the_plugin_conforms(check):
    check()


def test_it_encodes_only_when_it_is_asked_for():
    precision = find_precision("mlx:int4-g64")
    default, asked = choose(precision, None), choose(precision, "mlx")
    assert default is None or default.plugin != "mlx"
    assert asked is not None
    assert asked.options == {"claim": "exact", "speed": 0.5}
    x = weights((3, 128), "asked", DTYPES[0])
    assert edgekit.encode(x, precision, backend="mlx").backend == "mlx"


def test_every_precision_is_registered_once_and_can_be_loaded():
    found = [r for r in manager().all("quantizers") if r.plugin == "mlx"]
    assert [r.name for r in found] == list(NATIVE)
    assert [r.load().precision.name for r in found] == list(NATIVE)
    with pytest.raises(AttributeError, match=r"^int7_g64$"):
        _ = native.int7_g64


def test_rows_that_no_group_divides_are_refused():
    with pytest.raises(ShapeError, match="requires rows that are a multiple of 64"):
        NativeQuantizer("mlx:int4-g64").encode(np.ones((2, 96), np.float32))


def test_the_rule_for_exponents_is_found_out(monkeypatch):
    """MLX before 0.32.4 rounds to the nearest: the encoder refuses then, and says what is installed."""
    assert library.exponent_rounding() == "up"
    assert any("round exponents up" in line for line in library.devices())
    monkeypatch.setattr(native, "exponent_rounding", lambda: "nearest")
    for kind in ("mxfp4", "mxfp8"):
        with pytest.raises(PluginError, match=f"rounds the exponents of {kind} to the nearest"):
            NativeQuantizer(f"mlx:{kind}").encode(np.ones((1, 32), np.float32))
    NativeQuantizer("mlx:nvfp4").encode(np.ones((1, 32), np.float32))


def test_files_of_both_rules_decode_alike():
    """The exponent is stored: what decodes does not depend on how it was chosen."""
    precision = find_precision("mlx:mxfp4")
    x = np.full((1, 32), 7.2, np.float32)
    up = reference(precision).encode(x, precision)
    nearest = {"weight": np.full((1, 4), 0x77777777, np.uint32), "scales": np.full((1, 1), 127, np.uint8)}
    assert up["scales"][0, 0] == 128
    quantizer = NativeQuantizer("mlx:mxfp4")
    for parts, value in ((up, 8.0), (nearest, 6.0)):
        assert np.unique(quantizer.decode(parts, (1, 32))).tolist() == [value]
        assert np.unique(reference(precision).decode(parts, precision, (1, 32))).tolist() == [value]
