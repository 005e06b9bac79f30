"""Does an importance matrix lower the KL divergence? Calibrate on one half of a text, measure on the other.

python tests/bench/imatrix.py            prints the table of docs/how-to/importance-matrix.md

Both halves take both parts, so that every figure comes twice. stories260K is measured where the test data is.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import edgekit
from edgekit import sample
from edgekit.evaluation.calibration import importance

DATA = Path(os.environ.get("EDGEKIT_TEST_DATA", Path(__file__).parents[3] / "shared" / "data"))
RECIPES = ("Q4_K_M", "Q3_K_M", "Q2_K")


def main() -> None:
    """Print a row for each model, recipe and direction."""
    print("| model | recipe | measured on | KL without | KL with | change | also for the logits' matrix |")
    print("|---|---|---|---|---|---|---|")
    for name, source, text in subjects():
        for recipe in RECIPES:
            for row in rows(source, text, recipe):
                print(f"| {name} | {recipe} | {row} |", flush=True)


def subjects() -> Iterator[tuple[str, Path, str]]:
    """Models and their texts."""
    yield "sample", sample.path(), sample.heldout_text()
    stories = DATA / "stories260K.gguf"
    if stories.is_file():
        yield "stories260K", stories, (DATA / "stories-sample.txt").read_text("utf-8")
    else:
        print(f"stories260K is left out: no {stories}", file=sys.stderr)


def rows(source: Path, text: str, recipe: str) -> Iterator[str]:
    """The figures of both directions."""
    cut = text.index("\n", len(text) // 2)
    halves = {"second half": (text[:cut], text[cut:]), "first half": (text[cut:], text[:cut])}
    for name, (calibration, held_out) in halves.items():
        plain = divergence(source, recipe, None, held_out)
        weighed = divergence(source, recipe, importance(source, calibration), held_out)
        outputs = divergence(source, recipe, importance(source, calibration, outputs=True), held_out)
        yield f"{name} | {plain:.5f} | {weighed:.5f} | {weighed / plain - 1:+.1%} | {outputs / plain - 1:+.1%}"


def divergence(source: Path, recipe: str, weights: object, text: str) -> float:
    """Mean KL divergence of the quantized model from its source, in nats."""
    with tempfile.TemporaryDirectory() as folder:
        small = edgekit.quantize(source, recipe, to=Path(folder) / "small.gguf", importance=weights)
        found = edgekit.evaluate(small, text, baseline=source, context=256).kl_divergence
    assert found is not None
    return found


if __name__ == "__main__":
    main()
