"""Views of rows as groups, chunks of rows, and reductions over short groups."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from edgekit.numerics.blocks import extremes, groups, reduce_groups, row_chunks, spans

counts, widths = st.integers(1, 40), st.integers(1, 300)


@given(counts, widths, st.integers(1, 5000))
def test_chunks_are_whole_rows_in_order_and_about_as_large_as_asked(rows, cols, elements):
    chunks = list(row_chunks(rows, cols, elements))
    assert [row for chunk in chunks for row in range(rows)[chunk]] == list(range(rows))
    for chunk in chunks:
        assert 1 <= chunk.stop - chunk.start <= max(1, elements // cols)


def test_rows_without_columns_are_one_chunk():
    assert list(row_chunks(3, 0)) == [slice(0, 3)]


@given(widths, st.one_of(st.none(), st.integers(1, 400)))
def test_spans_cover_every_column_once_and_count_the_groups(cols, size):
    found = list(spans(cols, size))
    assert [column for columns, _, _ in found for column in range(cols)[columns]] == list(range(cols))
    numbers = [number for _, run, _ in found for number in range(run.start, run.stop)]
    assert numbers == list(range(-(-cols // (size or cols))))
    for columns, run, width in found:
        assert columns.stop - columns.start == width * (run.stop - run.start)
        assert width == min(size or cols, cols) or columns.stop == cols


@given(counts, st.integers(1, 12), st.integers(1, 20))
def test_groups_are_a_view_in_order(rows, count, size):
    x = np.arange(rows * count * size, dtype=np.float32).reshape(rows, -1)
    cut = groups(x, size)
    assert cut.shape == (rows, count, size)
    assert np.shares_memory(cut, x)
    np.testing.assert_array_equal(cut.reshape(rows, -1), x)


@given(counts, st.integers(1, 300), st.integers(0, 2**32 - 1))
def test_reductions_are_those_of_numpy(count, size, seed):
    x = np.random.default_rng(seed).standard_normal((count, size)).astype(np.float32)
    np.testing.assert_array_equal(reduce_groups(np.maximum, x), x.max(axis=1, keepdims=True))
    np.testing.assert_array_equal(reduce_groups(np.minimum, x), x.min(axis=1, keepdims=True))
    lo, hi = extremes(x.reshape(count, 1, size))
    np.testing.assert_array_equal(lo, x.min(axis=1)[:, None])
    np.testing.assert_array_equal(hi, x.max(axis=1)[:, None])


def test_extremes_let_nan_through():
    x = np.zeros((2, 3, 4), np.float32)
    x[1, 2, 3] = np.nan
    for found in extremes(x):
        assert np.isnan(found).sum() == 1
        assert np.isnan(found[1, 2])
