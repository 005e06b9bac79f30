"""What every reference quantizer promises, on examples that hypothesis draws over all of them.

python tests/oracles/test_examples.py [--examples N]

An example is a precision of the catalogue, rows that it can hold (distributions, ties, chosen values among equal ones)
and, where ggml uses one, an importance of each column. Each is held to: parts that decode to the rows' own shape, in
float32, within the bound of each element; the same bytes again, from rows that were not written to; the same bytes from
the decoded values, where the format promises that; and the bytes of the framework's own library. NNCF takes a tenth of
a second for a tensor, so it is asked for one in twenty; Olive has a process of its own, in test_olive_exact.py.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import os
import sys
import time
from collections import Counter
from functools import cache
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import hypothesis.strategies as st
import numpy as np
from hypothesis import HealthCheck, given, note, settings

import edgekit
from edgekit.errors import ScaleOverflowError
from edgekit.precision import catalogue, find_precision
from edgekit.reference import ggml, reference
from edgekit.testing import _promises as promises
from edgekit.testing._explain import diagnose, same_parts
from edgekit.testing.strategies import tensors, ties

HERE = Path(__file__).parent
EXAMPLES = 1000
#: One in so many tensors goes to the framework, by convention; every one where the convention is not here.
ASKED = {"openvino": 20}
#: Group sizes and rows that the catalogue lets one name stand for.
OTHERS = ("affine:int5-asym-g7", "affine:int3-sym-g20", "affine:int1-asym-g1", "affine:int4-sym-g100")
#: Between these magnitudes every scale is a normal number of its type, which idempotence needs.
PLAIN = (2.0**-8, 2.0**8)


CONVENTIONS = ("float", "affine", "ggml", "mlx", "openvino", "onnx", "olive")


@cache
def precisions(convention: str) -> list[str]:
    """Every precision of the convention that the core encodes."""
    names = [p.name for p in catalogue() if p.convention == convention]
    if convention == "ggml":  # the grid types have tests of their own: ggml aborts on some examples
        return [name for name in names if name.removeprefix("ggml:") in ggml.TYPES]
    return [*names, *OTHERS] if convention == "affine" else names


@st.composite
def examples(draw):
    """Name, rows, importance of each column or None, and a number that decides whether the framework is asked."""
    name = draw(st.sampled_from(precisions(draw(st.sampled_from(CONVENTIONS)))))
    x = draw(st.one_of(tensors(name), ties(name)))
    importance = None
    kind = ggml.TYPES.get(name.removeprefix("ggml:"))
    if kind is not None and kind.IMPORTANCE != "unused" and draw(st.booleans()):
        rng = np.random.default_rng(draw(st.integers(0, 2**16)))
        importance = (rng.standard_normal(x.shape[1]) ** 2 * (rng.random(x.shape[1]) < 0.7)).astype(np.float32)
    note(f"{name}, importance {importance is not None}")
    return name, x, importance, draw(st.integers(0, 99))


def hold(name: str, x: np.ndarray, importance: np.ndarray | None, number: int, count: Counter) -> None:
    """Hold one example to everything; `count` learns what was compared, by convention."""
    precision = find_precision(name)
    before = x.copy()
    count[precision.convention, "examples"] += 1
    try:
        encoded = edgekit.encode(x, precision, importance=importance, backend="reference")
    except ScaleOverflowError:
        count[precision.convention, "refused"] += 1
        return
    decoded = encoded.dequantize()
    assert encoded.shape == decoded.shape == x.shape
    assert decoded.dtype == np.float32
    assert np.isfinite(decoded).all()
    bound = reference(precision).bound(x, encoded.parts, precision)
    assert (np.abs(x.astype(np.float64) - decoded) <= bound).all(), "beyond the stated bound"
    again = edgekit.encode(x, precision, importance=importance, backend="reference")
    assert same_parts(encoded.parts, again.parts), "the same rows gave other bytes"
    assert x.tobytes() == before.tobytes(), "the input was written to"
    if promises.idempotent(precision) and importance is None and plain(x):
        twice = edgekit.encode(decoded, precision, backend="reference")
        assert np.array_equal(twice.dequantize(), decoded), "decoded values gave other values"  # 0 for -0 is none
        count[precision.convention, "encoded twice"] += 1
    oracle = asked(name)
    taken = precision.convention != "mlx" or x.shape[1] % 32 == 0  # MLX takes no 16 columns, one group of nvfp4
    if oracle is not None and taken and number % ASKED.get(precision.convention, 1) == 0:
        theirs = {part: np.asarray(values) for part, values in oracle(x, importance).items()}
        assert same_parts(theirs, encoded.parts), diagnose(theirs, encoded.parts)
        count[precision.convention, "against the framework"] += 1


def plain(x: np.ndarray) -> bool:
    """Whether all values are zeros, or of a middling magnitude."""
    sizes = np.abs(x[x != 0])
    return sizes.size == 0 or bool(sizes.min() >= PLAIN[0] and sizes.max() <= PLAIN[1])


@cache
def asked(name: str):
    """The framework's own encoder of that precision; None where it has none, or cannot be asked in this process."""
    spec = importlib.util.spec_from_file_location("make_vectors", HERE / "make_vectors.py")
    found = sys.modules.setdefault("make_vectors", importlib.util.module_from_spec(spec))
    if not hasattr(found, "ORACLES"):
        spec.loader.exec_module(found)
    precision = find_precision(name)
    # Equal for some blocks only: tests/oracles/test_onnx_searched.py; no tool makes offsets.
    if precision.kind.startswith(("kquant", "hqq", "offset")):
        return None
    encode, _ = found.ORACLES[precision.convention](precision)
    return encode


def draw(number: int) -> Counter:
    """So many examples; gives how many of each convention were held to what."""
    count: Counter = Counter()
    for name in (name for convention in CONVENTIONS for name in precisions(convention)):
        asked(name)  # imports modules that hold properties of their own, which hypothesis does not want inside one

    @settings(
        max_examples=number,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    @given(example=examples())
    def every_promise(example):
        with np.errstate(all="ignore"), contextlib.redirect_stdout(sys.stderr):  # frameworks' progress bars are no data
            hold(*example, count)

    every_promise()
    return count


def test_every_reference_quantizer_keeps_its_promises():
    count = draw(EXAMPLES)
    for convention in CONVENTIONS:
        assert count[convention, "examples"] > EXAMPLES // 100, convention
        assert count[convention, "against the framework"] > 0 or convention == "olive", convention
        assert count[convention, "refused"] < count[convention, "examples"] / 2, convention
    assert sum(number for (_, what), number in count.items() if what == "encoded twice") > EXAMPLES // 20


def main() -> None:
    """Draw, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=10_000)
    options = parser.parse_args()
    start = time.perf_counter()
    count = draw(options.examples)
    columns = ("examples", "refused", "encoded twice", "against the framework")
    print("".ljust(12) + "".join(column.rjust(len(column) + 3) for column in columns))
    for convention in CONVENTIONS:
        cells = (f"{count[convention, column]:,}".rjust(len(column) + 3) for column in columns)
        print(convention.ljust(12) + "".join(cells))
    drawn, names = sum(count[c, "examples"] for c in CONVENTIONS), sum(len(precisions(c)) for c in CONVENTIONS)
    print(f"\n{drawn:,} examples keep every promise of {names} precisions ({time.perf_counter() - start:.0f} s)")


if __name__ == "__main__":
    main()
