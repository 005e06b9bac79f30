"""The vector kernels against ggml itself, on millions of weights and on every instruction set of the processor."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import edgekit_numba
from edgekit.reference.ggml import TYPES
from edgekit_numba import compiler, encoders, library

_HERE = Path(__file__).parent
_spec = importlib.util.spec_from_file_location("ggml_oracle", _HERE / "ggml_oracle.py")
oracle = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(oracle)

KINDS = edgekit_numba.KINDS
ROWS, COLS = 512, 4096  # 2 million weights
CONTRACTED = re.compile(r"^\s+v?fn?m(add|sub|la|ls)", re.MULTILINE)


@pytest.fixture(autouse=True, scope="module")
def _proved_version():
    found = oracle.installed_version()
    assert found == oracle.PROVED, f"proved against llama-cpp-python {oracle.PROVED}, not {found}; prove it again"


def weights(name):
    rng = np.random.default_rng(20)
    draws = {
        "normal": rng.standard_normal,
        "student t": lambda shape: rng.standard_t(2, shape),
        "quarters": lambda shape: rng.integers(-8, 9, shape) / 4,  # ties between the signs in most blocks
    }
    return draws[name]((ROWS, COLS)).astype(np.float32)


def assert_same(kind, x, importance=None):
    ours, theirs = getattr(encoders, kind).encode(x, importance)["blocks"], oracle.encode(kind, x, importance)
    differing = (ours != theirs).reshape(-1, TYPES[kind].LAYOUT.itemsize).any(axis=1)
    assert not differing.any(), f"{kind}: {differing.sum()} of {differing.size} blocks differ"


@pytest.mark.parametrize("name", ["normal", "student t", "quarters"])
@pytest.mark.parametrize("kind", KINDS)
def test_millions_of_weights(kind, name):
    assert_same(kind, weights(name))


@pytest.mark.parametrize("silent", [0, 0.95])
@pytest.mark.parametrize("kind", [kind for kind in KINDS if TYPES[kind].IMPORTANCE != "unused"])
def test_a_million_weights_with_importance(kind, silent):
    """Where most columns never fired, a sub-block hangs on one weight, and its scale may come out negative."""
    x, rng = weights("student t")[:256], np.random.default_rng(21)
    importance = rng.standard_normal(COLS).astype(np.float32) ** 2
    assert_same(kind, x, np.where(rng.random(COLS) < silent, np.float32(0), importance))


@pytest.mark.parametrize("kind", KINDS)
def test_decoded_values_are_ggmls(kind):
    blocks = oracle.encode(kind, weights("student t")[:64])
    ours = getattr(encoders, kind).decode({"blocks": blocks}, (64, COLS))
    assert np.array_equal(ours.view(np.uint32), oracle.decode(kind, blocks).view(np.uint32))


SCRIPT = f"""
import sys
sys.path.insert(0, {str(_HERE)!r})
import edgekit, ggml_oracle, edgekit_numba, numpy as np
from edgekit_numba import compiler, encoders
x = np.random.default_rng(22).standard_t(2, (24, 4096)).astype(np.float32)
importance = np.random.default_rng(23).standard_normal(4096).astype(np.float32) ** 2
for kind in edgekit_numba.KINDS:
    for weights in (None, importance):
        ours = getattr(encoders, kind).encode(x, weights)["blocks"]
        assert (ours == ggml_oracle.encode(kind, x, weights)).all(), kind
    values = getattr(encoders, kind).decode({{"blocks": ours}}, x.shape)
    assert (values == ggml_oracle.decode(kind, ours)).all(), kind
for name in edgekit_numba.GROUPED:
    ours, theirs = (edgekit.encode(x, name, backend=backend).parts for backend in ("numba", "reference"))
    assert all((ours[part] == theirs[part]).all() for part in theirs), name
print(compiler.processor().lanes)
"""


@pytest.mark.parametrize(("cpu", "lanes"), [("haswell", 8), ("x86-64", 4)])
def test_narrower_instruction_sets(cpu, lanes):
    environment = {**os.environ, "NUMBA_CPU_NAME": cpu}
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == lanes


@pytest.mark.parametrize("name", library.MODULES)
def test_no_kernel_is_contracted(name):
    wide = {} if compiler.processor().lanes == 16 else {compiler.Processor("skylake-avx512", "", 16)}
    for target in {compiler.processor(), compiler.Processor("haswell", "", 8), *wide}:
        assembly = compiler.assembly(library.emitter(name), target)
        assert f"{name}:" in assembly
        assert not CONTRACTED.search(assembly), f"{name} on {target.name}"
