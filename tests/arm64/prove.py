"""What `nox -s arm64` runs twice, on this processor and on the emulated ARM64, with the same output.

The known answers are given by the reference and by every kernel; whole files follow, by their hashes. The assembly of
some kernels is searched for fused multiply-add. Progress goes to stderr.
"""

from __future__ import annotations

import hashlib
import platform
import re
import sys
import tempfile
from pathlib import Path

import edgekit
import edgekit_numba
from edgekit import sample
from edgekit.precision import find_precision
from edgekit.reference import reference
from edgekit.testing import vectors
from edgekit_numba import compiler, encoders, grouped_encoders, library

RECIPES = ("Q8_0", "Q6_K", "Q5_K_M", "Q5_0", "Q4_K_M", "Q4_1", "Q4_0", "IQ4_XS", "Q3_K_M", "Q2_K")
INSPECTED = ("Q4_0_weighted", "Q4_K", "Q6_K_weighted", "IQ4_XS", "IQ3_XXS", "mlx_int4", "product_float32")
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


def main() -> None:
    """Run everything."""
    target = compiler.processor()
    print(f"{platform.machine()}: {target.instruction_set}, {target.name}", file=sys.stderr)
    for part in (known_answers, kernels, unfused, files):
        part()


if __name__ == "__main__":
    main()
