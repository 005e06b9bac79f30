"""edgekit's openvino runtime beside OpenVINO GenAI called directly: the same directory, threads, prompt and tokens.

Both run in each of several processes and take turns; the median counts, and of the processes' ratios the median. Two
pipelines of GenAI itself differ by some percent from one process to the next, by where their weights came to lie. GenAI
is given a streamer, as edgekit gives it one: without, openvino-genai 2026.4.1 is slower by a third. The first token is
timed from nothing loaded, in processes of their own, without and with a directory of compiled models that an earlier
start has filled.

python tests/bench/openvino_runtime.py first DIR [CACHE]    prints the seconds until the first token
python tests/bench/openvino_runtime.py speed DIR            prints the seconds of every round, as JSON
"""

from __future__ import annotations

import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

TOKENS, PROMPT, ROUNDS, PROCESSES = 64, 32, 12, 7
WHO = ("ours", "theirs")
THREADS = 2
NEEDS = ("openvino", "openvino_genai", "openvino_tokenizers", "edgekit_openvino")


def report(quick: bool = False) -> Iterator[str]:
    """Lines of the report, as they come."""
    lacking = [name for name in NEEDS if importlib.util.find_spec(name) is None]
    if lacking:
        yield f"The runtime of OpenVINO is not compared: {', '.join(lacking)} is not installed."
        return
    from llama_model import write_llama

    import edgekit

    with tempfile.TemporaryDirectory() as folder:
        source = write_llama(Path(folder) / "model.gguf")
        yield f"OpenVINO: a random Llama of {source.stat().st_size / 1e6:.0f} MB (F16), {THREADS} threads."
        yield "\n| weights | edgekit.load, tokens/s | LLMPipeline, tokens/s | ratio | first token, s | with the cache, s |"
        yield "|---|---|---|---|---|---|"
        for recipe in ("INT8_ASYM", "INT4_SYM_G64"):
            written = edgekit.quantize(source, recipe, to=Path(folder) / recipe, format="openvino")
            ours, theirs, ratios = speeds(written.path, 1 if quick else PROCESSES)
            cold, warm = starts(written.path, Path(folder) / f"{recipe}-cache")
            yield (
                f"| {recipe} | {ours:.1f} | {theirs:.1f} | **{statistics.median(ratios):.3f}×** "
                f"({ratios[0]:.3f} to {ratios[-1]:.3f}) | {cold:.2f} | {warm:.2f} |"
            )


def speeds(directory: Path, processes: int) -> tuple[float, float, list[float]]:
    """Tokens a second through `edgekit.load` and of `openvino_genai.LLMPipeline`; their ratio in each process, sorted."""
    line = [sys.executable, __file__, "speed", str(directory)]
    found = [
        json.loads(subprocess.run(line, capture_output=True, text=True, check=True).stdout) for _ in range(processes)
    ]
    ours, theirs = (statistics.median([seconds for each in found for seconds in each[who]]) for who in WHO)
    ratios = sorted(statistics.median(each["theirs"]) / statistics.median(each["ours"]) for each in found)
    return TOKENS / ours, TOKENS / theirs, ratios


def seconds_of_rounds(directory: Path) -> dict[str, list[float]]:
    """Seconds of each round, by who; they take turns in being first."""
    import openvino
    import openvino_genai

    import edgekit

    prompt = np.random.default_rng(0).integers(300, 16_000, PROMPT)
    pipeline = openvino_genai.LLMPipeline(str(directory), "CPU", INFERENCE_NUM_THREADS=THREADS)
    config = openvino_genai.GenerationConfig()
    config.max_new_tokens, config.do_sample, config.ignore_eos = TOKENS, False, True
    ids = openvino.Tensor(prompt[None])
    inputs = openvino_genai.TokenizedInputs(ids, openvino.Tensor(np.ones_like(prompt[None])))

    class Streamer(openvino_genai.StreamerBase):  # type: ignore[misc]
        def write(self, token: object) -> object:
            return openvino_genai.StreamingStatus.RUNNING

        def end(self) -> None:
            """Nothing is held back."""

    with edgekit.load(directory, "openvino", threads=THREADS) as model:
        jobs: dict[str, Callable[[], object]] = {
            "ours": lambda: list(model.tokens(prompt.tolist(), max_tokens=TOKENS)),  # type: ignore[attr-defined]
            "theirs": lambda: pipeline.generate(inputs, config, Streamer()),
        }
        spent: dict[str, list[float]] = {who: [] for who in WHO}
        for round_ in range(-1, ROUNDS):  # the first warms up
            for who in WHO if round_ % 2 else reversed(WHO):
                start = time.perf_counter()
                jobs[who]()
                if round_ >= 0:
                    spent[who].append(time.perf_counter() - start)
    return spent


def starts(directory: Path, cache: Path) -> tuple[float, float]:
    """Seconds until the first token of a new process: without a cache, and with one that was filled before."""
    first_token_of_a_process(directory, cache)
    return first_token_of_a_process(directory), first_token_of_a_process(directory, cache)


def first_token_of_a_process(directory: Path, *cache: Path) -> float:
    """What a process of its own prints; the best of three."""
    line = [sys.executable, __file__, "first", str(directory), *map(str, cache)]
    return min(float(subprocess.run(line, capture_output=True, text=True, check=True).stdout) for _ in range(3))


def first_token(directory: Path, cache: Path | None = None) -> float:
    """Seconds from opening the directory to the first token; importing the libraries is not counted."""
    import openvino_genai  # noqa: F401

    import edgekit

    start = time.perf_counter()
    with edgekit.load(directory, "openvino", threads=THREADS, cache_dir=cache) as model:
        next(model.tokens(list(range(300, 300 + PROMPT)), max_tokens=1))  # type: ignore[attr-defined]
    return time.perf_counter() - start


if __name__ == "__main__":
    os.environ["CI"] = "1"
    verb, *paths = sys.argv[1:]
    if verb == "speed":
        print(json.dumps(seconds_of_rounds(Path(paths[0]))))
    else:
        print(f"{first_token(*map(Path, paths)):.3f}")
