"""A random Llama of 225 MB (F16) as an ONNX decoder: edgekit's writer and graph against onnxruntime-genai's model builder.

python tests/bench/bench.py --only onnx-builder

Building: every run is a process of its own that reads the same Hugging Face directory and writes a directory for
ONNX Runtime GenAI, in float32 and in int4 (symmetric, blocks of 32, everywhere that the builder quantizes). Counted are
processor time of the whole process and its peak memory. The contenders take turns, the best of each counts.

Speed: both int4 directories in one process with one thread, through GenAI alone, the same prompt; processor time. They
take turns token by token, the median over rounds of each token counts. Where a graph's weights lie in memory changes its
speed by up to a quarter: the same directory, opened twice in one process, is 10 to 25 % faster the second time. So each
directory is opened first in half of the processes; the median ratio of either half counts, and their geometric mean.

python tests/bench/onnx_builder.py speed ONE OTHER         prints the seconds of every token in every round, as JSON
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from child import printed

NEEDS = ("onnxruntime_genai", "torch", "transformers", "onnx_ir", "edgekit_olive", "edgekit_gguf")
ENVIRONMENT = {"ORT_DISABLE_TELEMETRY": "1", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
#: edgekit's recipe for the builder's precision.
PRECISIONS = {"fp32": "float:F32", "int4": "onnx:int4-sym-g32"}
TOKENS, PROMPT, ROUNDS = 48, 32, 3
#: Processes of the comparison of speed; each directory is opened first in half of them.
PROCESSES = 16
_EDGEKIT = """
import sys
import edgekit
edgekit.quantize(sys.argv[1], sys.argv[3], to=sys.argv[2], format="onnx")
"""
_BUILDER = """
import runpy, sys
sys.argv = ["builder", "-i", sys.argv[1], "-o", sys.argv[2], "-p", sys.argv[3], "-e", "cpu", "-c", sys.argv[2] + "-cache"]
runpy.run_module("onnxruntime_genai.models.builder", run_name="__main__")
"""
_USED = """
import json, re, resource, time
from pathlib import Path
status = Path("/proc/self/status")
peak = int(re.search(r"VmHWM:\\s*(\\d+) kB", status.read_text())[1]) * 1024 if status.exists() else 0
print(json.dumps({"seconds": time.process_time(), "peak": peak or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}))
"""


def run(program: str, *arguments: str) -> dict[str, float]:
    """Processor seconds of the whole process, and peak memory in bytes."""
    return printed(program + _USED, *arguments, environment=ENVIRONMENT)


def report(quick: bool = False) -> Iterator[str]:
    """Lines of the report, as they come."""
    lacking = [name for name in NEEDS if importlib.util.find_spec(name) is None]
    if lacking:
        yield f"onnxruntime-genai's builder is not compared: {', '.join(lacking)} is not installed."
        return
    rounds = 1 if quick else 3
    yield f"A random Llama of 225 MB (F16) to ONNX; the best of {rounds} in turn, one thread each."
    yield ""
    yield "| precision | by | processor s, whole process | peak MB | builder's time / its | its memory / builder's |"
    yield "|---|---|---|---|---|---|"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = write_source(folder)
        for precision, recipe in PRECISIONS.items():
            jobs = {
                "edgekit": (_EDGEKIT, str(source), str(folder / f"edgekit-{precision}"), recipe),
                "builder": (_BUILDER, str(source), str(folder / f"builder-{precision}"), precision),
            }
            found = [{who: run(*job) for who, job in jobs.items()} for _ in range(rounds)]
            yield from _rows(precision, found)
        yield ""
        yield speeds(folder / "edgekit-int4", folder / "builder-int4", 2 if quick else PROCESSES)


def write_source(folder: Path) -> Path:
    """Write the random Llama as a Hugging Face directory."""
    from llama_model import write_llama

    import edgekit

    gguf = write_llama(folder / "model.gguf")
    edgekit.convert(gguf, folder / "hf", format="hf")
    gguf.unlink()
    return folder / "hf"


def _rows(precision: str, found: list[dict[str, dict[str, float]]]) -> Iterator[str]:
    best = {who: {key: min(each[who][key] for each in found) for key in ("seconds", "peak")} for who in found[0]}
    theirs = best["builder"]
    for who, own in best.items():
        ratios = f"**{theirs['seconds'] / own['seconds']:.2f}×** | **{own['peak'] / theirs['peak']:.2f}**"
        yield f"| {precision} | {who} | {own['seconds']:.2f} | {own['peak'] / 1e6:.0f} | {ratios if who == 'edgekit' else '– | –'} |"


def speeds(ours: Path, theirs: Path, processes: int = PROCESSES) -> str:
    """Return a line with tokens a processor second of both, and the ratio."""
    first = [_seconds(ours, theirs) for _ in range(processes // 2)]
    second = [_seconds(theirs, ours)[::-1] for _ in range(processes // 2)]
    ratios = [statistics.median(other / own for own, other in found) for found in (first, second)]
    own, other = (TOKENS / statistics.median(each) for each in zip(*first, *second, strict=True))
    return (
        f"int4 in GenAI, one thread, medians of {processes} processes: edgekit's graph {own:.1f} tokens a processor "
        f"second, the builder's {other:.1f}; **{math.sqrt(math.prod(ratios)):.3f}×** ({ratios[0]:.3f} where edgekit's is "
        f"opened first, {ratios[1]:.3f} where the builder's is)."
    )


def _seconds(*directories: Path) -> list[float]:
    """Return the processor seconds of `TOKENS` tokens of each directory, opened in this order in one process."""
    line = [sys.executable, "-W", "ignore", __file__, "speed", *map(str, directories)]
    done = subprocess.run(line, capture_output=True, text=True, env=os.environ | ENVIRONMENT, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    rounds = [json.loads(text) for text in done.stdout.splitlines()[-ROUNDS:]]
    return [sum(map(statistics.median, zip(*(each[who] for each in rounds), strict=True))) for who in (0, 1)]


def rounds_of_tokens(*directories: Path) -> Iterator[list[list[float]]]:
    """Yield the processor seconds of each of `TOKENS` tokens after a prompt, of each directory, round by round."""
    import onnxruntime_genai as genai

    models = [_model(genai, directory) for directory in directories]
    for number in range(-1, ROUNDS):  # the first warms up
        generators = [_started(genai, model) for model in models]
        found: list[list[float]] = [[] for _ in models]
        for token in range(TOKENS):
            for who in (0, 1) if (number + token) % 2 else (1, 0):
                start = time.process_time()
                generators[who].generate_next_token()
                found[who].append(time.process_time() - start)
        if number >= 0:
            yield found


def _model(genai, directory: Path):  # type: ignore[no-untyped-def]
    config = genai.Config(str(directory))
    config.overlay(json.dumps({"model": {"decoder": {"session_options": {"intra_op_num_threads": 1}}}}))
    return genai.Model(config)


def _started(genai, model):  # type: ignore[no-untyped-def]
    parameters = genai.GeneratorParams(model)
    length = PROMPT + TOKENS
    parameters.set_search_options(
        max_length=length, min_length=length, do_sample=False, past_present_share_buffer=False
    )
    generator = genai.Generator(model, parameters)
    generator.append_tokens(list(range(300, 300 + PROMPT)))
    return generator


if __name__ == "__main__":
    verb, *paths = sys.argv[1:]
    assert verb == "speed", __doc__
    for each in rounds_of_tokens(*map(Path, paths)):
        print(json.dumps(each))
