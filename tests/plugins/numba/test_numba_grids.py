"""The kernels of the grid types give the reference's bytes."""

import numpy as np
import pytest

import edgekit
from edgekit.errors import ScaleOverflowError, UsageError
from edgekit.precision import find_precision
from edgekit.reference import ggml, reference
from edgekit_numba import GRIDS, encoders, grid_tables

SHAPE = (7, 1280)  # 35 blocks: whole groups of lanes and a rest

DISTRIBUTIONS = {
    "normal": lambda rng: rng.standard_normal(SHAPE) * 0.02,
    "student t": lambda rng: rng.standard_t(2, SHAPE),
    "constant": lambda rng: np.full(SHAPE, 0.37),
    "zeros of both signs": lambda rng: np.where(rng.random(SHAPE) < 0.5, 0.0, -0.0),
    "sparse": lambda rng: rng.standard_normal(SHAPE) * rng.choice([0.0, -0.0, 1.0], SHAPE, p=[0.4, 0.4, 0.2]),
    "zero sub-blocks": lambda rng: rng.standard_normal(SHAPE) * (rng.random((7, 40)) < 0.5).repeat(32, axis=1),
    "halves": lambda rng: rng.integers(-16, 17, SHAPE) / 2,
    "ternary": lambda rng: rng.integers(-1, 2, SHAPE),
    "subnormal": lambda rng: rng.standard_normal(SHAPE) * 1e-40,
    "all magnitudes": lambda rng: (
        rng.standard_normal(SHAPE) * np.exp2(30 * rng.random((7, 80)).repeat(16, axis=1) - 40)
    ),
    "large": lambda rng: rng.standard_normal(SHAPE) * 1e7,
    "huge": lambda rng: rng.standard_normal(SHAPE) * 1e25,
    "all negative": lambda rng: -np.abs(rng.standard_normal(SHAPE)) - 0.01,
}


def importances(kind, seed):
    rng = np.random.default_rng(seed)
    squares = rng.standard_normal(SHAPE[1]).astype(np.float32) ** 2
    some = [squares, *(np.where(rng.random(SHAPE[1]) < silent, np.float32(0), squares) for silent in (0.5, 0.95))]
    return some if ggml.needs_importance(kind) else [None, *some]


@pytest.mark.parametrize("kind", GRIDS)
def test_bytes_are_the_references(kind):
    precision = find_precision(f"ggml:{kind}")
    for seed, (name, make) in enumerate(DISTRIBUTIONS.items()):
        x = make(np.random.default_rng(seed)).astype(np.float32)
        for number, importance in enumerate(importances(kind, seed)):
            ours = getattr(encoders, kind).encode(x, importance)["blocks"]
            expected = reference(precision).encode(x, precision, importance)["blocks"]
            assert np.array_equal(ours, expected), f"{kind} {name} {number}"


@pytest.mark.parametrize("kind", GRIDS)
def test_ordinary_blocks_are_the_kernels_own_work(kind, monkeypatch):
    x, weights = DISTRIBUTIONS["normal"](np.random.default_rng(1)).astype(np.float32), importances(kind, 1)[-3]
    precision = find_precision(f"ggml:{kind}")
    expected = reference(precision).encode(x, precision, weights)["blocks"]
    monkeypatch.setattr(encoders, "reference", None)
    assert np.array_equal(getattr(encoders, kind).encode(x, weights)["blocks"], expected)
    assert np.array_equal(getattr(encoders, kind).encode_checked(x, weights)["blocks"], expected)
    assert np.array_equal(getattr(encoders, kind).encode_checked(x.astype(np.float16).astype(np.float32), weights)
                          ["blocks"], getattr(encoders, kind).encode(x.astype(np.float16), weights)["blocks"])  # fmt: skip


@pytest.mark.parametrize("kind", GRIDS)
def test_it_is_the_default_and_decodes_as_the_reference(kind):
    x = DISTRIBUTIONS["student t"](np.random.default_rng(2)).astype(np.float32)
    encoded = edgekit.encode(x, f"ggml:{kind}", importance=importances(kind, 2)[-3])
    assert encoded.backend == "numba"
    assert np.array_equal(edgekit.decode(encoded), encoded.dequantize())


@pytest.mark.parametrize("kind", ["IQ2_XS", "IQ2_XXS", "IQ1_S"])
def test_rows_without_an_importance_matrix_are_refused(kind):
    with pytest.raises(UsageError, match=f"^ggml:{kind} cannot be encoded without an importance matrix"):
        edgekit.encode(np.ones((1, 256), np.float32), f"ggml:{kind}", backend="numba")


def test_values_for_which_no_point_is_found_are_refused():
    x = np.full((1, 256), 1e30, np.float32)
    with pytest.raises(ScaleOverflowError, match="too large for ggml:IQ3_S"):
        edgekit.encode(x, "ggml:IQ3_S", backend="numba")


@pytest.mark.parametrize("lanes", [4, 8, 16])
@pytest.mark.parametrize("kind", GRIDS)
def test_tables_hold_every_neighbour_in_order(kind, lanes):
    points, tables = grid_tables.points_of(kind), grid_tables.tables(kind, lanes)
    places = (points.codes.astype(int) << points.bits * np.arange(points.dimensions)).sum(axis=1)
    for place in np.random.default_rng(0).choice(np.flatnonzero(points.count), 50):
        first, chunks = tables.places[place]
        count, start = points.count[place], points.first[place]
        neighbours = tables.neighbours[first : first + chunks].ravel()
        wanted = points.neighbours[start : start + count]
        assert list(neighbours[:count]) == list(places[wanted])
        assert set(neighbours[count:]) <= {neighbours[0]}
        levels = tables.levels[first : first + chunks].swapaxes(1, 2).reshape(-1, points.dimensions)
        codes = points.codes[wanted].astype(int)
        assert np.array_equal(levels[:count], codes - 1 if kind.startswith("IQ1") else 2 * codes + 1)
    assert np.array_equal(tables.places[places, 0], np.arange(len(places)))
    assert not tables.places[places, 1].any()
