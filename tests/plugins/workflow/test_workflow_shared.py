"""What several artifacts' gates measure of their source once, and what speeds on a busy machine say."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import attrs
import pytest

import edgekit
from edgekit import sample
from edgekit.artifact import Artifact
from edgekit.errors import ChangedSourceError, UsageError
from edgekit.runtime.numpy import NumpyRuntime
from edgekit_workflow.bench import Interval, Measurement, measure
from edgekit_workflow.gates import GATES, Policy, Shared, gate, performance, silent
from edgekit_workflow.gates.policy import Performance, Quality, Silent
from edgekit_workflow.gates.subject import Subject

ASKED = ("degenerate", "perplexity_ratio", "kl_divergence", "speedup")
#: No limit on the variation: one round, and no figure that a busy machine leaves open.
POLICY = Policy(
    skip=tuple(name for name in GATES if name not in ASKED),
    quality=Quality(tokens=64),
    performance=Performance(tokens=3, repeats=2, latency_variation=1e9),
    silent=Silent(tokens=8),
)
TEXT = sample.heldout_text()[:600]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    directory = tmp_path_factory.mktemp("source") / "model"
    shutil.copytree(sample.path(), directory)
    return edgekit.open(directory)


@pytest.fixture(scope="module")
def artifacts(source: Artifact, tmp_path_factory: pytest.TempPathFactory) -> list[Artifact]:
    folder = tmp_path_factory.mktemp("artifacts")
    return [edgekit.quantize(source, recipe, to=folder / f"{recipe}.gguf") for recipe in ("Q4_0", "Q8_0")]


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[Path]]:
    """The models that were measured, and those whose text was written, as the gates go on."""
    done: dict[str, list[Path]] = {"speed": [], "text": []}

    def measured(artifact: Artifact, *given: object, **options: object) -> Measurement:
        done["speed"].append(artifact.path)
        return measure(artifact, *given, **options)

    def repeated(model: NumpyRuntime, prompt: str, count: int, known=silent._repeated) -> float:
        done["text"].append(model.artifact.path)
        return known(model, prompt, count)

    monkeypatch.setattr(performance, "measure", measured)
    monkeypatch.setattr(silent, "_repeated", repeated)
    return done


def figures(
    artifact: Artifact, source: Artifact, shared: Shared | None, policy: Policy = POLICY, text: str = TEXT
) -> Mapping[str, float | None]:
    """What the gates measure, but for speeds."""
    results = list(gate(artifact, source, policy=policy, text=text, runtime="numpy", shared=shared))
    return {result.name: result.measured for result in results if result.name != "speedup"}


def test_the_source_is_measured_once_with_the_same_figures(
    source: Artifact, artifacts: list[Artifact], work: dict[str, list[Path]]
) -> None:
    shared = Shared(source)
    together = [figures(artifact, source, shared) for artifact in artifacts]
    assert len(work["speed"]) == len(artifacts) + 1
    assert work["text"].count(source.path) == 2  # prompts
    alone = [figures(artifact, source, None) for artifact in artifacts]
    assert together == alone
    assert together[0]["kl_divergence"] != together[1]["kl_divergence"]
    assert len(work["speed"]) == (len(artifacts) + 1) + 2 * len(artifacts)


def test_another_policy_or_text_is_measured_anew(
    source: Artifact, artifacts: list[Artifact], work: dict[str, list[Path]]
) -> None:
    shared, small = Shared(source), artifacts[0]
    figures(small, source, shared)
    before = {kind: len(paths) for kind, paths in work.items()}
    other = attrs.evolve(POLICY, performance=attrs.evolve(POLICY.performance, tokens=4))
    figures(small, source, shared, other)
    assert len(work["speed"]) == before["speed"] + 2  # the source again
    assert len(work["text"]) == before["text"] + 2  # the artifact alone
    asked = attrs.evolve(POLICY, skip=(*POLICY.skip, "speedup"))
    text = sample.heldout_text()[2000:2600]
    assert figures(small, source, shared, asked, text) == figures(small, source, None, asked, text)


def test_shared_is_of_the_opened_source(source: Artifact, artifacts: list[Artifact]) -> None:
    with pytest.raises(UsageError, match=r"^shared is of .*, not of the opened .*; give Shared\(source\)$"):
        gate(artifacts[0], source, policy=POLICY, shared=Shared(edgekit.open(source.path)))


def test_a_source_that_changed_since_is_refused(source: Artifact, artifacts: list[Artifact], tmp_path: Path) -> None:
    shutil.copytree(source.path, tmp_path / "model")
    opened = edgekit.open(tmp_path / "model")
    shared, policy = Shared(opened), attrs.evolve(POLICY, skip=(*POLICY.skip, "speedup"))
    figures(artifacts[0], opened, shared, policy)
    with (tmp_path / "model" / "config.json").open("a") as file:
        file.write("\n")
    with pytest.raises(ChangedSourceError, match=r"config\.json: it was changed while the gates ran"):
        figures(artifacts[1], opened, shared, policy)


@pytest.fixture(scope="module")
def steady(artifacts: list[Artifact]) -> Measurement:
    """Real figures of an artifact, with a speed that varies by a tenth, on a machine that nothing else uses."""
    measured = measure(artifacts[0], "numpy", prompt_tokens=4, tokens=3, repeats=2)
    return attrs.evolve(measured, tokens_per_cpu_second=Interval(100.0, 90.0, 110.0), others=0.0)


@pytest.mark.parametrize(
    ("half", "others", "passed", "detail"),
    [
        (10.0, 0.0, True, "on numpy"),
        (10.0, 0.9, True, "on numpy"),
        (60.0, 0.0, False, "on numpy"),
        (60.0, 0.09, False, "on numpy"),
        (60.0, 0.9, None, "on numpy; the machine was busy: other programs used 90% of its processors"),
    ],
)
def test_a_speed_that_varies_on_a_busy_machine_is_not_judged(
    source: Artifact,
    artifacts: list[Artifact],
    steady: Measurement,
    half: float,
    others: float,
    passed: bool | None,
    detail: str,
) -> None:
    subject = Subject(artifacts[0], source, Policy(), {})
    ours = attrs.evolve(steady, tokens_per_cpu_second=Interval(100.0, 100.0 - half, 100.0 + half), others=others)
    result = performance.latency_variation(subject, ours)
    assert (result.passed, result.detail) == (passed, detail)
    assert result.measured == pytest.approx(half / 100)


@pytest.mark.parametrize(
    ("ours", "theirs", "passed", "kept"),
    [
        # (speed, half of its interval, share of other programs) of the artifact and of the source
        ((250.0, 10.0, 0.9), (100.0, 90.0, 0.9), True, False),
        ((150.0, 10.0, 0.9), (100.0, 10.0, 0.9), False, True),
        ((150.0, 140.0, 0.0), (100.0, 90.0, 0.0), False, True),
        ((150.0, 140.0, 0.9), (100.0, 10.0, 0.0), None, True),
        ((150.0, 10.0, 0.0), (100.0, 90.0, 0.9), None, False),
    ],
)
def test_too_small_a_speedup_fails_unless_it_was_disturbed(
    source: Artifact,
    artifacts: list[Artifact],
    steady: Measurement,
    monkeypatch: pytest.MonkeyPatch,
    ours: tuple[float, float, float],
    theirs: tuple[float, float, float],
    passed: bool | None,
    kept: bool,
) -> None:
    subject = Subject(artifacts[0], source, Policy(), {})

    def figure(mean: float, half: float, others: float) -> Measurement:
        return attrs.evolve(steady, tokens_per_cpu_second=Interval(mean, mean - half, mean + half), others=others)

    monkeypatch.setattr(performance, "measure", lambda *given, **options: figure(*theirs))
    result = performance.speedup(subject, figure(*ours))
    assert (result.passed, "busy" in result.detail) == (passed, passed is None)
    assert bool(subject.shared.speeds) == kept
