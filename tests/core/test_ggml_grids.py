"""The grid types of ggml: what is refused, and what their encoders do that others do not."""

import numpy as np
import pytest

import edgekit
from edgekit.errors import ScaleOverflowError, UsageError
from edgekit.precision import find_precision
from edgekit.reference import ggml, reference
from edgekit.reference.ggml._grids import grid

KINDS = list(ggml.GRIDS)
X = np.random.default_rng(1).standard_normal((4, 512)).astype(np.float32)
ONES = np.ones(512, np.float32)


@pytest.mark.parametrize("kind", KINDS)
def test_better_precisions_have_smaller_errors(kind):
    most = {"IQ3_S": 0.03, "IQ3_XXS": 0.04, "IQ2_S": 0.1, "IQ2_XS": 0.12, "IQ2_XXS": 0.15, "IQ1_M": 0.3, "IQ1_S": 0.4}
    encoded = edgekit.encode(X, f"ggml:{kind}", importance=ONES, backend="reference")
    assert encoded.parts["blocks"].shape == (4, 2 * ggml.GRIDS[kind].LAYOUT.itemsize)
    error = np.square(X - encoded.dequantize()).mean() / np.square(X).mean()
    assert most[kind] / 2 < error < most[kind]


@pytest.mark.parametrize("kind", ["IQ2_XXS", "IQ2_XS", "IQ1_S"])
def test_some_are_not_encoded_without_an_importance_matrix(kind):
    assert reference(find_precision(kind)).traits.needs_importance
    message = (
        rf"^ggml:{kind} cannot be encoded without an importance matrix; make one with `edgekit imatrix` and pass it "
    )
    with pytest.raises(UsageError, match=message):
        edgekit.encode(X, f"ggml:{kind}", backend="reference")


@pytest.mark.parametrize("kind", KINDS)
def test_values_for_which_no_point_is_found_are_refused(kind):
    x = X.copy()
    x[2, 300] = 1e30
    with pytest.raises(ScaleOverflowError, match=f"array holds values too large for ggml:{kind}: "):
        edgekit.encode(x, f"ggml:{kind}", importance=ONES, backend="reference")


@pytest.mark.parametrize("kind", KINDS)
def test_rows_do_not_depend_on_each_other(kind):
    whole = edgekit.encode(X, f"ggml:{kind}", importance=ONES, backend="reference").parts["blocks"]
    for row in range(len(X)):
        alone = edgekit.encode(X[row], f"ggml:{kind}", importance=ONES, backend="reference").parts["blocks"]
        np.testing.assert_array_equal(alone.reshape(-1), whole[row])


def test_iq3_s_misplaces_what_follows_a_sub_block_of_zeros_as_ggml_does():
    x = X[:1, :256].copy()
    x[0, 32:64] = 0
    precision = find_precision("IQ3_S")
    fields = ggml.encode(x, precision)["blocks"].view(ggml.GRIDS["IQ3_S"].LAYOUT)[0]
    full = ggml.encode(X[:1, :256], precision)["blocks"].view(ggml.GRIDS["IQ3_S"].LAYOUT)[0]
    np.testing.assert_array_equal(fields["signs"][0, 4:28], full["signs"][0, 8:])
    assert not fields["signs"][0, 28:].any()
    assert not fields["qs"][0, 56:].any()


@pytest.mark.parametrize(("name", "bits", "top", "distances"), [("IQ2_S", 2, 3, 1), ("IQ3_S", 3, 8, 3)])
def test_neighbours_are_the_nearest_points(name, bits, top, distances):
    known = grid(name, bits, top, distances)
    points = known.codes.astype(int)
    rng = np.random.default_rng(0)
    for place in rng.choice(np.flatnonzero(known.count), 40):
        codes = place >> bits * np.arange(known.dimensions) & (1 << bits) - 1
        squared = np.square(points - codes).sum(axis=1)
        near = np.flatnonzero(np.isin(squared, np.unique(squared)[:distances]))
        wanted = sorted(near, key=lambda point: (squared[point], point))
        first = known.first[place]
        assert list(known.neighbours[first : first + known.count[place]]) == wanted
