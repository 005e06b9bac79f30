"""What fitted files lose, beside recipes and single precisions of the same size: the table of docs/how-to/fit.md.

python tests/bench/bench.py --only quality
python tests/bench/bench.py --only fit-smollm2        a language model of 135 million weights at 4.2 bits

Everything is calibrated and chosen on the first half of the sample model's text, and measured on the second: mean KL
divergence from the source in nats, windows of 256 tokens.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import quality

import edgekit
from edgekit import sample
from edgekit.artifact import Artifact
from edgekit.evaluation import Baseline

CONTEXT = 256
RECIPES = ("Q5_K_M", "Q4_K_M", "Q3_K_M", "Q2_K")
#: Precisions for all tensors, with which the fitted file of the same size is compared.
UNIFORM = {"gguf": ("Q3_K", "Q4_K", "Q6_K"), "hf": ("affine:int4-asym-g64",)}


class Bench:
    """The sample model, its two halves of text, and a directory to write to."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.source = folder, edgekit.open(sample.path())
        tokenizer = self.source.tokenizer
        assert tokenizer is not None
        tokens = np.array(tokenizer.encode(sample.heldout_text()))
        self.first, self.second = np.split(tokens, [len(tokens) // 2])
        self.baseline = Baseline(self.source)
        self.calibration = edgekit.calibrate(self.source, self.first, context=CONTEXT, holdout=0)

    def quantized(self, recipe: str, form: str, rounding: str) -> Artifact:
        """The model in a recipe; to nearest with importance, or with error feedback."""
        to = self.folder / f"{recipe.replace(':', '-')}-{rounding}{'.gguf' if form == 'gguf' else ''}"
        return edgekit.quantize(
            self.source, recipe, to=to, format=form, calibration=self.calibration, rounding=rounding
        )

    def fitted(self, recipe: str, form: str, rounding: str) -> Artifact:
        """The model fitted to the size of a recipe."""
        to = self.folder / f"fit-{recipe.replace(':', '-')}-{rounding}{'.gguf' if form == 'gguf' else ''}"
        work = self.folder / f"work-{rounding}"
        return edgekit.fit(
            self.source, self.first, to=to, format=form, like=recipe, rounding=rounding, context=CONTEXT, work=work
        ).artifact

    def divergence(self, artifact: Artifact) -> float:
        """On the second half."""
        found = edgekit.evaluate(artifact, self.second, baseline=self.baseline, context=CONTEXT).kl_divergence
        assert found is not None
        return found


def report(quick: bool, folder: Path | None = None) -> Iterator[str]:
    """Rows of Markdown; quick leaves out the single precisions."""
    with tempfile.TemporaryDirectory() as temporary:
        bench = Bench(folder or Path(temporary))
        yield "| as large as | bytes | with importance | with feedback | fitted, to nearest | fitted, with feedback | ratio |"
        yield "|---|---|---|---|---|---|---|"
        for recipe in RECIPES:
            yield row(bench, recipe, "gguf")
        for form, names in ({} if quick else UNIFORM).items():
            for name in names:
                yield row(bench, name, form)
        start = time.process_time()
        bench.fitted("Q4_0", "gguf", "feedback")
        yield f"\nAnother size, with what is measured of each tensor: {time.process_time() - start:.0f} s of processor time."


def row(bench: Bench, recipe: str, form: str) -> str:
    """The figures of one size; the ratio is that of the last to the first."""
    near, fed = (bench.quantized(recipe, form, rounding) for rounding in ("nearest", "feedback"))
    fitted = [bench.fitted(recipe, form, rounding) for rounding in ("nearest", "feedback")]
    assert all(artifact.nbytes <= near.nbytes for artifact in fitted)
    found = [bench.divergence(artifact) for artifact in (near, fed, *fitted)]
    figures = " | ".join(f"{kl:.2e}" for kl in found)
    return f"| {recipe} | {near.nbytes:,} | {figures} | {found[-1] / found[0]:.2f} |"


def real(quick: bool) -> Iterator[str]:
    """SmolLM2 at 4.2 bits a weight beside single precisions: the second table of docs/how-to/fit.md.

    Calibrated on 12,288 tokens of wikitext, chosen by tokens up to 30,000, measured on those from there on.
    """
    subjects = [] if quick else [subject for subject in quality.subjects(False) if subject.name.startswith("SmolLM2")]
    if not subjects:
        yield "SmolLM2 or its text is not there, or only the quick rows were asked for."
    for subject in subjects:
        yield from _real_rows(subject)


def _real_rows(subject: quality.Subject) -> Iterator[str]:
    tokens, baseline = quality.wikitext(subject.source), Baseline(subject.source)
    calibration = edgekit.calibrate(subject.source, subject.calibration, context=subject.context, holdout=0)

    def row(name: str, artifact: Artifact, nbytes: int, seconds: float) -> str:
        found = edgekit.evaluate(artifact, subject.measured, baseline=baseline, context=subject.context)
        kl = f"{found.kl_divergence:.4f} ± {found.kl_divergence_error:.4f}"
        return f"| {name} | {nbytes:,} | {kl} | {found.perplexity:.2f} | {seconds:.0f} |"

    yield "| SmolLM2-135M | bytes | KL divergence | perplexity | CPU s |"
    yield "|---|---|---|---|---|"
    with tempfile.TemporaryDirectory() as folder:
        for precision in ("affine:int3-asym-g64", "affine:int4-asym-g64"):
            for way, given in (("its own encoder", {}), ("with feedback", {"calibration": calibration})):
                start, to = time.process_time(), f"{folder}/{precision.replace(':', '-')}-{len(given)}"
                made = edgekit.quantize(subject.source, precision, to=to, format="hf", **given)
                yield row(f"`{precision}`, {way}", made, made.nbytes, time.process_time() - start)
        start = time.process_time()
        fitted = edgekit.fit(
            subject.source, tokens[12288:30000], to=f"{folder}/fit", format="hf", bits=4.2, calibration=calibration
        )
        yield row("fitted to 4.2 bits", fitted.artifact, fitted.nbytes, time.process_time() - start)


__all__ = ["real", "report"]
