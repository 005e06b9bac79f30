"""Stored tensors as levels under scales: read, given other codes, given other scales."""

from __future__ import annotations

import numpy as np
import pytest

from edgekit import encode
from edgekit.bridges import choices, has_levels, levels, recoded, rescaled
from edgekit.errors import InexactError
from edgekit.precision import catalogue, find_precision

ROWS = np.random.RandomState(0).standard_normal((3, 512)).astype(np.float32)
LEVELED = [p.name for p in catalogue() if p.convention != "float" and has_levels(p)]


def value(known):
    """What the levels say that the codes are worth."""
    group = np.arange(known.codes.shape[1]) // known.group
    found = known.table[known.codes]
    if known.zero is not None:
        found = found - known.zero[:, group]
    found = found * known.scale[:, group]
    return found if known.bias is None else found + known.bias[:, group]


def raw(tensor):
    return {name: (part.dtype.str, part.shape, part.tobytes()) for name, part in tensor.parts.items()}


def test_every_integer_and_small_float_format_has_levels():
    without = {p.name for p in catalogue() if p.convention in ("affine", "ggml", "mlx", "olive", "onnx", "openvino")}
    assert without - set(LEVELED) <= {p.name for p in catalogue() if p.kind.startswith(("IQ1", "IQ2", "IQ3"))}
    with pytest.raises(InexactError, match="float:F32 has no levels under scales"):
        levels(encode(ROWS, "float:F32"))


@pytest.mark.parametrize("name", LEVELED)
def test_levels_are_what_the_format_decodes_to(name):
    tensor = encode(ROWS, name, backend="reference")
    known = levels(tensor)
    decoded = tensor.dequantize()
    assert (np.diff(known.table) > 0).all()
    # The order of two roundings of float32 may differ, of an offset that is several steps large.
    assert np.abs(value(known) - decoded).max() <= 2.0**-20 * np.abs(decoded).max()


@pytest.mark.parametrize("name", LEVELED)
def test_codes_are_put_in_place(name):
    tensor = encode(ROWS, name, backend="reference")
    known = levels(tensor)
    np.testing.assert_array_equal(recoded(tensor, known.codes).dequantize(), tensor.dequantize())
    codes = np.random.RandomState(1).randint(0, len(known.table), ROWS.shape).astype(np.uint8)
    changed = recoded(tensor, codes)
    assert {n: p[:2] for n, p in raw(changed).items()} == {n: p[:2] for n, p in raw(tensor).items()}
    found = levels(changed)
    if find_precision(name).reduced:  # the range is what the codes at hand have
        np.testing.assert_array_equal(
            value(found), known.scale * known.table[codes] if known.zero is None else value(found)
        )
    else:
        np.testing.assert_array_equal(found.codes, codes)
    np.testing.assert_array_equal(found.scale, known.scale)


@pytest.mark.parametrize("name", LEVELED)
def test_scales_are_put_in_place(name):
    tensor = encode(ROWS, name, backend="reference")
    known, possible = levels(tensor), choices(tensor)
    if possible is None:
        assert find_precision(name).granularity == "tensor" or find_precision(name).kind.lower().startswith("nvfp4")
        return
    assert raw(rescaled(tensor, known.scale, known.bias)) == raw(tensor)
    rows, groups = slice(0, len(ROWS)), range(known.scale.shape[1])
    for place in (0, -1):
        scale = np.stack([possible.scale(known.scale[:, g] * np.float32(1.1), rows, g)[place] for g in groups], axis=1)
        bias = None
        if possible.bias is not None:
            assert known.bias is not None
            bias = np.stack([possible.bias(known.bias[:, g] * np.float32(0.9), rows, g)[place] for g in groups], axis=1)
        found = levels(rescaled(tensor, scale, bias))
        np.testing.assert_array_equal(found.scale, scale)
        np.testing.assert_array_equal(found.codes, known.codes)
        if bias is not None:
            np.testing.assert_array_equal(found.bias, bias)


def test_scales_in_the_type_of_the_source():
    tensor = encode(ROWS.astype(np.float16), "mlx:int4-g64")
    assert tensor.parts["scales"].dtype == np.float16
    known, possible = levels(tensor), choices(tensor)
    assert possible is not None
    (near,) = possible.scale(np.float32([0.1234567, 1, 2]), slice(0, 3), 0)
    np.testing.assert_array_equal(near, np.float16([0.1234567, 1, 2]))
    assert raw(recoded(tensor, known.codes)) == raw(tensor)
