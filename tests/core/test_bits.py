"""Packing: the stream is one little-endian integer, and unpacking inverts it."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.numerics.bits import pack_lsb, unpack_lsb


@st.composite
def coded(draw):
    bits = draw(st.integers(1, 8), label="bits")
    rows, count = draw(st.integers(1, 3), label="rows"), draw(st.integers(1, 70), label="count")
    flat = draw(st.lists(st.integers(0, 2**bits - 1), min_size=rows * count, max_size=rows * count))
    return bits, np.array(flat, np.uint8).reshape(rows, count)


@settings(max_examples=200, deadline=None)
@given(coded())
def test_packed_row_is_one_little_endian_integer(case):
    bits, codes = case
    packed = pack_lsb(codes, bits)
    for row, stream in zip(codes.tolist(), packed, strict=True):
        expected = sum(code << (bits * place) for place, code in enumerate(row))
        assert int.from_bytes(stream.tobytes(), "little") == expected
        assert len(stream) == -(-len(row) * bits // 8)


@settings(max_examples=200, deadline=None)
@given(coded())
def test_unpack_inverts_pack_and_neither_writes_to_its_input(case):
    bits, codes = case
    codes.flags.writeable = False
    packed = pack_lsb(codes, bits)
    packed.flags.writeable = False
    np.testing.assert_array_equal(unpack_lsb(packed, bits, codes.shape[1]), codes)


@pytest.mark.parametrize("bits", range(1, 9))
def test_leading_axes_and_strided_input(bits):
    codes = np.random.default_rng(bits).integers(0, 2**bits, (2, 3, 40), np.uint8)[:, :, ::2]
    flat = pack_lsb(np.ascontiguousarray(codes).reshape(6, 20), bits)
    packed = pack_lsb(codes, bits)
    np.testing.assert_array_equal(packed.reshape(6, -1), flat)
    np.testing.assert_array_equal(unpack_lsb(packed, bits, 20), codes)
