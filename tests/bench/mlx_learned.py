"""mlx-lm's learned methods beside error feedback and `fit`: divergence at the same bytes, on the sample model.

python tests/bench/bench.py --only mlx-learned

All learn on the first half of the sample model's text and are measured on the second: mean KL divergence from the
source in nats, windows of 256 tokens. Processor seconds are those of all threads, calibration included.
"""

from __future__ import annotations

import importlib.util
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import fit_quality

import edgekit
from edgekit import sample
from edgekit.artifact import Artifact
from edgekit.pipeline.passes import run_pass

NEEDS = ("mlx", "mlx_lm", "edgekit_mlx")
#: All with 4 bits in groups of 64, the embedding too.
SAME_SIZE = {
    "GPTQ": ("mlx-gptq", {"fallback_bits": 4}),
    # The time of its search grows with tokens times grid.
    "AWQ, 1,536 tokens": ("mlx-awq", {"embed_group": 64, "grid": 8, "samples": 6}),
    "DWQ": ("mlx-dwq", {"rate": 1e-4, "epochs": 4}),
}
DYNAMIC = ("mlx-dynamic", {"target": 5.0})


def report(quick: bool) -> Iterator[str]:
    """Yield the rows of the table; quick ones learn from a tenth of the text."""
    lacking = [name for name in NEEDS if importlib.util.find_spec(name) is None]
    if lacking:
        yield f"mlx-lm's learned methods are not compared: {', '.join(lacking)} is not installed."
        return
    with tempfile.TemporaryDirectory() as folder:
        yield "| 4 bits in groups of 64 | bytes of weights | KL divergence | CPU s |"
        yield "|---|---|---|---|"
        yield from rows(Path(folder), quick)


def rows(folder: Path, quick: bool) -> Iterator[str]:
    """Yield a row for each method."""
    start = time.process_time()
    bench = fit_quality.Bench(folder)
    calibrating = time.process_time() - start
    text = bench.first[: len(bench.first) // 10] if quick else bench.first

    def ours(name: str, rounding: str) -> Callable[[], Artifact]:
        calibration = bench.calibration if rounding == "feedback" else None
        return lambda: edgekit.quantize(
            bench.source, "4bit", to=folder / name, format="mlx", calibration=calibration, rounding=rounding
        )  # type: ignore[arg-type]

    def theirs(name: str, options: dict[str, object]) -> Callable[[], Artifact]:
        given = {"text": text.tolist(), "length": fit_quality.CONTEXT, **options}
        return lambda: run_pass(sample.path(), name, to=folder / name, options=given)

    def fitted(name: str, size: int) -> Callable[[], Artifact]:
        return lambda: edgekit.fit(
            bench.source, bench.first, to=folder / name, format="mlx", size=size, context=fit_quality.CONTEXT,
            work=folder / "work",
        ).artifact  # fmt: skip

    line, nearest = row(bench, "to nearest", ours("nearest", "nearest"))
    yield line
    yield row(bench, "edgekit, error feedback", ours("feedback", "feedback"), calibrating)[0]
    for label, (name, options) in SAME_SIZE.items():
        yield row(bench, f"mlx-lm, {label}", theirs(name, options))[0]
    yield row(bench, "edgekit, fitted to the size of 4 bits", fitted("fit-4", whole(nearest)))[0]
    line, mixed = row(bench, "mlx-lm, dynamic (4 or 5 bits)", theirs(*DYNAMIC))
    yield line
    yield row(bench, "edgekit, fitted to its size", fitted("fit-dynamic", whole(mixed)))[0]


def whole(artifact: Artifact) -> int:
    """Bytes of a directory's files but the manifest, as `fit` counts them."""
    return sum(file.stat().st_size for file in artifact.path.iterdir() if file.name != "edgekit.manifest.json")


def row(bench: fit_quality.Bench, label: str, make: Callable[[], Artifact], spent: float = 0.0) -> tuple[str, Artifact]:
    """The row of a method, and what it made."""
    start = time.process_time()
    made = make()
    seconds = time.process_time() - start + spent
    found = edgekit.evaluate(made, bench.second, baseline=bench.baseline, context=fit_quality.CONTEXT)
    figure = f"{found.kl_divergence:.2g} ± {found.kl_divergence_error or 0:.1g}"
    return f"| {label} | {made.tensor_nbytes:,} | {figure} | {seconds:.0f} |", made
