"""The mean KL divergence that edgekit measures beside that of llama.cpp's own tool, and what both store for it.

python tests/bench/bench.py --only perplexity-tool

`llama-perplexity` is in no wheel. It is compiled from the source distribution of llama-cpp-python that `nox -s bench -- --only
perplexity-tool` downloads and names in EDGEKIT_LLAMA_SOURCES, with the system's cmake and compiler, and kept beside it. The tool runs
on the decoded weights, as edgekit does, and on the quantized file, where its kernels round activations too.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

import attrs
import numpy as np
import quality

import edgekit
from edgekit import sample
from edgekit.evaluation import Baseline
from edgekit.evaluation.language import cut

TOOL = "llama-perplexity"
#: Switched off: what the tool does not need, or what would be fetched.
_OFF = (
    "BUILD_SHARED_LIBS",
    "LLAMA_BUILD_TESTS",
    "LLAMA_BUILD_EXAMPLES",
    "LLAMA_BUILD_SERVER",
    "LLAMA_CURL",
    "LLAMA_OPENSSL",
)
#: The tool ends without waiting for its thread that prints: on a busy machine the summary is lost in four of five runs.
_TRIES = 60
_WANTED = ("Mean", "Minimum")
_FIGURE = re.compile(rf"^({'|'.join(_WANTED)})\s+KLD:\s+(-?[\d.]+)", re.MULTILINE)


@attrs.frozen
class _Subject:
    name: str
    source: Path
    text: str
    context: int
    recipes: tuple[str, ...]


def report(quick: bool) -> Iterator[str]:
    """Yield the lines of two tables: mean divergences, and bytes; `quick` leaves out the larger model."""
    if "EDGEKIT_LLAMA_SOURCES" not in os.environ:
        yield f"{TOOL} is compiled from what `nox -s bench -- --only perplexity-tool` downloads"
        return
    program, sizes = _compiled(Path(os.environ["EDGEKIT_LLAMA_SOURCES"])), []
    yield "| model | recipe | edgekit | tool, decoded weights | ratio | its least at a position | tool, quantized file |"
    yield "|---|---|---|---|---|---|---|"
    for subject in _subjects(quick):
        with tempfile.TemporaryDirectory() as folder:
            bench = _Bench.of(subject, program, Path(folder))
            for recipe in subject.recipes:
                yield bench.row(recipe)
            sizes.append(bench.sizes())
    yield ""
    yield "| model | tokens | the tool's file | edgekit's hidden states | ratio |"
    yield "|---|---|---|---|---|"
    yield from sizes


def _subjects(quick: bool) -> Iterator[_Subject]:
    yield _Subject("sample", sample.path(), sample.heldout_text(), 256, ("Q8_0", "Q4_0", "Q4_K_M", "Q2_K"))
    large = next((each for each in quality.subjects(quick) if each.name == "SmolLM2-135M"), None)
    if large is not None:
        text = (quality.DATA / "wikitext2-test-head.txt").read_text("utf-8")[:4000]
        yield _Subject(large.name, large.source, text, 256, ("Q4_0",))


@attrs.frozen
class _Bench:
    """A model in float32, and the tool's file of its logits."""

    subject: _Subject
    program: Path
    folder: Path
    source: Path
    baseline: Baseline

    @classmethod
    def of(cls, subject: _Subject, program: Path, folder: Path) -> _Bench:
        (folder / "text").write_text(subject.text, "utf-8")
        source = edgekit.convert(subject.source, folder / "source.gguf", dtype="F32").path
        bench = cls(subject, program, folder, source, Baseline(edgekit.open(source)))
        bench.run(source)
        return bench

    def run(self, model: Path, *options: str) -> str:
        """What the tool prints of a model."""
        length = str(self.subject.context)
        line = [self.program, "-m", model, "-f", self.folder / "text", "-c", length, "-b", length]
        line += ["--kl-divergence-base", self.folder / "base", *options]
        done = subprocess.run(line, capture_output=True, text=True, errors="replace", check=False)
        if done.returncode:
            raise SystemExit(done.stderr[-2000:])
        return done.stdout

    def row(self, recipe: str) -> str:
        """The mean divergences of a recipe, in nats."""
        small = edgekit.quantize(self.source, recipe, to=self.folder / f"{recipe}.gguf")
        decoded = edgekit.convert(small.path, self.folder / f"{recipe}-F32.gguf", dtype="F32")
        found = edgekit.evaluate(small, self.subject.text, baseline=self.baseline, context=self.subject.context)
        ours = found.kl_divergence
        assert ours is not None
        (theirs, least), (theirs_small, _) = (self.figures(each.path) for each in (decoded, small))
        figures = f"{ours:.6f} | {theirs:.6f} | {theirs / ours:.4f} | {least:.6f} | {theirs_small:.6f}"
        return f"| {self.subject.name} | `{recipe}` | {figures} |"

    def figures(self, model: Path) -> tuple[float, float]:
        """The tool's divergence of a model from the base, in nats: the mean, and the least of all positions."""
        for _ in range(_TRIES):
            found = dict(_FIGURE.findall(self.run(model, "--kl-divergence")))
            if len(found) == len(_WANTED):
                return float(found["Mean"]), float(found["Minimum"])
        raise SystemExit(f"{TOOL} printed no summary in {_TRIES} runs")

    def sizes(self) -> str:
        """What is stored for a comparison: the tool's file, and hidden states in memory."""
        tokenizer = self.baseline.artifact.tokenizer
        assert tokenizer is not None
        bos = tokenizer.bos if tokenizer.add_bos else None
        windows = cut(np.array(tokenizer.encode(self.subject.text)), self.subject.context, bos)
        file, held = (self.folder / "base").stat().st_size, self.baseline.hidden(windows).nbytes
        return f"| {self.subject.name} | {windows.size} | {file:,} | {held:,} | {held / file:.3f} |"


def _compiled(sources: Path) -> Path:
    """Return the tool, compiled at the first use."""
    kept = sources.with_name(f"{TOOL}-{sources.name.removesuffix('.tar.gz')}")
    if kept.exists():
        return kept
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(sources) as archive:
            root = archive.getmembers()[0].name.split("/")[0]
            archive.extractall(folder, filter="data")
        build = Path(folder) / "build"
        options = ["-DCMAKE_BUILD_TYPE=Release", *(f"-D{name}=OFF" for name in _OFF)]
        _built("cmake", "-S", f"{folder}/{root}/vendor/llama.cpp", "-B", str(build), *options)
        _built("cmake", "--build", str(build), "--target", TOOL, "--parallel", str(os.cpu_count() or 1))
        shutil.copy2(build / "bin" / TOOL, kept)
    return kept


def _built(*line: str) -> None:
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(line)}\n{done.stdout[-2000:]}{done.stderr[-2000:]}")


__all__ = ["report"]
