"""The grid types IQ1, IQ2 and IQ3 against ggml: every byte of every block, and every decoded bit.

ggml aborts the process on huge values, on some types without an importance matrix, and takes seconds to build the
tables of a type; so these types have distributions of their own.
"""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from edgekit.precision import find_precision
from edgekit.reference import ggml, reference

_spec = importlib.util.spec_from_file_location("ggml_oracle", Path(__file__).parent / "ggml_oracle.py")
oracle = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(oracle)

KINDS = list(ggml.GRIDS)
ROWS, COLS = 8, 1024
SHAPE = (ROWS, COLS)


def _each(rng, size):
    return np.repeat(rng.random((ROWS, COLS // size)), size, axis=1)


DISTRIBUTIONS = {
    "normal": lambda rng: rng.standard_normal(SHAPE) * 0.02,
    "student t": lambda rng: rng.standard_t(2, SHAPE),
    "constant": lambda rng: np.full(SHAPE, 0.37),
    "zeros": lambda rng: np.where(rng.random(SHAPE) < 0.5, 0.0, -0.0),
    "sparse": lambda rng: rng.standard_normal(SHAPE) * rng.choice([0.0, -0.0, 1.0], SHAPE, p=[0.4, 0.4, 0.2]),
    "zero halves of sub-blocks": lambda rng: rng.standard_normal(SHAPE) * (_each(rng, 16) < 0.5),
    "zero sub-blocks": lambda rng: rng.standard_normal(SHAPE) * (_each(rng, 32) < 0.5),
    "halves": lambda rng: rng.integers(-16, 17, SHAPE) / 2,
    "ternary": lambda rng: rng.integers(-1, 2, SHAPE),
    "beside the smallest magnitudes": lambda rng: rng.standard_normal(SHAPE) * 10.0 ** (-6 - 10 * _each(rng, 16)),
    "subnormal": lambda rng: rng.standard_normal(SHAPE) * 1e-40,
    "all magnitudes": lambda rng: rng.standard_normal(SHAPE) * np.exp2(30 * _each(rng, 16) - 20),
    "large": lambda rng: rng.standard_normal(SHAPE) * 1e7,
    "all positive": lambda rng: np.abs(rng.standard_normal(SHAPE)) + 0.01,
    "all negative": lambda rng: -np.abs(rng.standard_normal(SHAPE)) - 0.01,
    "far from zero": lambda rng: rng.standard_normal(SHAPE) - 9,
}


def draw(name, seed):
    return DISTRIBUTIONS[name](np.random.default_rng(seed)).astype(np.float32)


def importances(kind, seed):
    """None, where the type is encoded so; an importance matrix, and two with columns that never fired."""
    rng = np.random.default_rng(seed)
    squares = rng.standard_normal(COLS).astype(np.float32) ** 2
    some = [squares, *(np.where(rng.random(COLS) < silent, np.float32(0), squares) for silent in (0.5, 0.95))]
    return some if ggml.needs_importance(kind) else [None, *some]


def precision(kind):
    return find_precision(f"ggml:{kind}")


def assert_same_values(ours, theirs):
    """Bit for bit; where both are NaN, any NaN."""
    assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
    same = (ours.view(np.uint32) == theirs.view(np.uint32)) | (np.isnan(ours) & np.isnan(theirs))
    assert same.all(), f"{(~same).sum()} of {same.size} values differ"


@pytest.fixture(autouse=True, scope="module")
def _proved_version():
    found = oracle.installed_version()
    assert found == oracle.PROVED, f"proved against llama-cpp-python {oracle.PROVED}, not {found}; prove it again"


@pytest.mark.parametrize("kind", KINDS)
def test_layouts_are_ggmls(kind):
    assert oracle.traits(kind) == (ggml.GRIDS[kind].SIZE, ggml.GRIDS[kind].LAYOUT.itemsize)


@pytest.mark.parametrize("kind", KINDS)
def test_blocks_and_values_are_ggmls(kind):
    size = ggml.GRIDS[kind].LAYOUT.itemsize
    for seed, name in enumerate(DISTRIBUTIONS):
        x = draw(name, seed)
        for number, importance in enumerate(importances(kind, seed)):
            ours = reference(precision(kind)).encode(x, precision(kind), importance)
            theirs = oracle.encode(kind, x, importance)
            differing = (ours["blocks"] != theirs).reshape(-1, size).any(axis=1)
            assert not differing.any(), f"{kind} {name} {number}: {differing.sum()} of {differing.size} blocks differ"
            decoded = reference(precision(kind)).decode(ours, precision(kind), SHAPE)
            assert_same_values(decoded, oracle.decode(kind, theirs))
            bound = reference(precision(kind)).bound(x, ours, precision(kind))
            assert (np.abs(x.astype(np.float64) - decoded) <= bound).all()


@pytest.mark.parametrize("kind", KINDS)
def test_any_bytes_decode_as_in_ggml(kind):
    blocks = np.random.default_rng(10).integers(0, 256, (64, 8 * ggml.GRIDS[kind].LAYOUT.itemsize)).astype(np.uint8)
    ours = ggml.decode({"blocks": blocks}, precision(kind), (64, 8 * ggml.GRIDS[kind].SIZE))
    assert_same_values(ours, oracle.decode(kind, blocks))


@pytest.mark.parametrize("kind", ["IQ3_S", "IQ2_XS", "IQ1_S"])
def test_rows_that_are_one_block(kind):
    for seed in range(20):
        x = np.random.default_rng(seed).standard_normal((1 + seed % 3, 256)).astype(np.float32)
        importance = importances(kind, seed)[-2][:256]
        ours = ggml.encode(x, precision(kind), importance)["blocks"]
        assert np.array_equal(ours, oracle.encode(kind, x, importance))
