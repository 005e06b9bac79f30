"""What `nox -s arm64` runs twice, on this processor and on the emulated ARM64, with the same output.

The known answers are given by the reference and by every kernel; whole files follow, by their hashes, and a calibration
and what is rounded with its error feedback. The assembly of some kernels is searched for fused multiply-add. Progress goes to stderr.
"""

from __future__ import annotations

import hashlib
import platform
import re
import sys
import tempfile
from pathlib import Path

import numpy as np

import edgekit
import edgekit_numba
from edgekit import sample
from edgekit.pipeline import rounding
from edgekit.pipeline._feedback import fastest
from edgekit.pipeline.rounding._kernels import NUMPY
from edgekit.pipeline.rounding._matrix import Metric, round_matrix
from edgekit.precision import find_precision
from edgekit.reference import reference
from edgekit.testing import vectors
from edgekit_numba import compiler, encoders, grouped_encoders, library

RECIPES = ("Q8_0", "Q6_K", "Q5_K_M", "Q5_0", "Q4_K_M", "Q4_1", "Q4_0", "IQ4_XS", "Q3_K_M", "Q2_K")
#: Of evenly spaced levels with and without a bias, and of a table; 37 rows fill no whole number of vectors.
ROUNDED = ("ggml:Q4_0", "ggml:Q4_K", "ggml:Q2_K", "ggml:IQ4_NL", "mlx:int4-g64", "openvino:nf4-g64")
ROWS, COLS = 37, 256
INSPECTED = (
    "Q4_0_weighted", "Q4_K", "Q6_K_weighted", "IQ4_XS", "IQ3_XXS", "mlx_int4", "product_float32", "product_float64",
    "feed", "feed_table", "descend", "cut_columns", "totals", "substitute", "exponential",
)  # fmt: skip
FUSED = re.compile(r"\b(fmla|fmls|fmadd|fmsub|fnmadd|fnmsub|vfn?m(add|sub)\w+)\b")


def known_answers() -> None:
    """Hold the reference to all known answers."""
    count = 0
    for name in vectors.names():
        precision = find_precision(name)
        count += vectors.check(lambda x, w=None, p=precision: reference(p).encode(x, p, w), name)
    print(f"reference: {count} known answers")


def kernels() -> None:
    """Hold every kernel that encodes to the known answers."""
    count, known = 0, set(vectors.names())
    blocks = {f"ggml:{kind}": getattr(encoders, kind) for kind in (*edgekit_numba.KINDS, *edgekit_numba.GRIDS)}
    grouped = {n: getattr(grouped_encoders, n.replace(":", "_").replace("-", "_")) for n in edgekit_numba.GROUPED}
    for name, quantizer in (blocks | grouped).items():
        if name in known:
            count += vectors.check(quantizer.encode, name)
            print(name, file=sys.stderr, flush=True)
    print(f"kernels: {count} known answers")


def unfused() -> None:
    """Search the assembly of some kernels for fused multiply-add."""
    for name in INSPECTED:
        found = FUSED.findall(compiler.assembly(library.emitter(name)))
        assert not found, f"{name}: {found[:3]}"
    print(f"assembly: {len(INSPECTED)} kernels without fused multiply-add")


def files() -> None:
    """Convert the sample model with ten recipes; print the hash of each file."""
    with tempfile.TemporaryDirectory() as folder:
        for recipe in RECIPES:
            target = Path(folder) / f"{recipe}.gguf"
            edgekit.quantize(sample.path(), recipe, to=target)
            print(f"{recipe}: {hashlib.sha256(target.read_bytes()).hexdigest()}")


def feedback() -> None:
    """Calibrate the sample model on a few tokens and round it, and matrices in some formats; print hashes."""
    with tempfile.TemporaryDirectory() as folder:
        tokens, target = np.random.RandomState(3).randint(3, 500, 192), Path(folder) / "rounded.gguf"
        calibration = edgekit.calibrate(sample.path(), tokens, context=64, holdout=0)
        edgekit.quantize(sample.path(), "Q4_K_M", to=target, calibration=calibration)
        print(f"calibrated: {calibration.digest}")
        print(f"Q4_K_M with error feedback: {hashlib.sha256(target.read_bytes()).hexdigest()}")
    random = np.random.RandomState(5)
    weights, inputs = (random.standard_normal((rows, COLS)).astype(np.float32) for rows in (ROWS, 2 * COLS))
    inputs[:, 1:] += inputs[:, :1]
    moment = np.zeros((COLS, COLS), np.float32)
    rounding.accumulate(moment, inputs, inputs)  # BLAS would sum in another order
    metric = Metric.of(moment)
    for name in ROUNDED:
        hashes = []
        for used in (NUMPY, fastest()):
            rounded = round_matrix(weights, edgekit.encode(weights, name), metric, kernels=used)
            hashes.append(hashlib.sha256(b"".join(part.tobytes() for part in rounded.parts.values())).hexdigest())
        assert hashes[0] == hashes[1], name
        print(f"{name} with error feedback: {hashes[0]}", flush=True)


def main() -> None:
    """Run everything."""
    target = compiler.processor()
    print(f"{platform.machine()}: {target.instruction_set}, {target.name}", file=sys.stderr)
    for part in (known_answers, kernels, unfused, files, feedback):
        part()


if __name__ == "__main__":
    main()
