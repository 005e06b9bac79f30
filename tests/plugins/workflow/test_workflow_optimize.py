"""`edgekit optimize`: stages, records, resuming, the choice, and what it refuses."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import attrs
import numpy as np
import pytest
from click.testing import CliRunner

import edgekit
from edgekit import sample
from edgekit.errors import (
    ChangedSourceError,
    InvalidFileError,
    LockedError,
    MissingFileError,
    MissingPluginError,
    QualityGateError,
    UsageError,
)
from edgekit.plugin import build
from edgekit_workflow.commands.optimize import command
from edgekit_workflow.optimize import Settings, optimize, read_settings
from edgekit_workflow.optimize.candidates import Candidates
from edgekit_workflow.optimize.choice import choose
from edgekit_workflow.optimize.pareto import dominates, front
from edgekit_workflow.optimize.records import RunDirectory
from edgekit_workflow.optimize.settings import METHODS, parse_time
from edgekit_workflow.optimize.stages import gated
from edgekit_workflow.optimize.texts import read_texts
from edgekit_workflow.optimize.timing import UNSEEN, Clock, Step


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    file = tmp_path_factory.mktemp("text") / "stories.txt"
    file.write_text(sample.heldout_text()[:9000], "utf-8")
    return file


@pytest.fixture
def settings(text, tmp_path):
    """Of a run that takes a second: two recipes of one format, to nearest, quality alone."""
    return Settings(
        sample.path(),
        tmp_path / "run",
        texts={"stories": text},
        formats=("gguf",),
        recipes=("Q4_0", "Q2_K"),
        methods=("nearest",),
        context=64,
        tokens=256,
        speed=False,
        gates=False,
    )


@pytest.fixture(scope="module")
def finished(text, tmp_path_factory):
    """A run with every method, within a budget."""
    to = tmp_path_factory.mktemp("finished") / "run"
    with_everything = Settings(
        sample.path(),
        to,
        budget=1_200_000,
        texts={"stories": text, "again": text},
        formats=("gguf", "hf"),
        allow=("Q3_K", "Q6_K"),
        context=64,
        tokens=512,
        speed=False,
        gates=False,
    )
    return with_everything, optimize(with_everything)


def artifacts(run: Path) -> dict[str, bytes]:
    """The artifacts of a run and its result, by path."""
    found = (
        f for stage in ("convert", "quantize") for f in (run / stage).rglob("*") if f.is_file() and f.name[0] != "."
    )
    return {f.relative_to(run).as_posix(): f.read_bytes() for f in [*found, run / "result.json"]}


def test_every_method_leaves_an_artifact_with_its_manifest(finished):
    given_, done = finished
    made = {record["name"]: record for record in done.result["quantize"]}
    assert {record["method"] for record in made.values()} == {"nearest", "feedback", "fit"}
    assert {record["format"] for record in made.values()} == {"gguf", "hf"}
    for record in made.values():
        artifact = edgekit.open(given_.to / "quantize" / record["file"])
        assert artifact.manifest is not None
        assert artifact.nbytes == record["nbytes"] <= given_.budget
    assert {record["name"] for record in done.result["convert"]} == {"gguf", "hf"}
    assert "gguf-Q8_0" in done.result["left_out"], "it is larger than the budget"


def test_the_artifacts_are_those_of_quantize(finished, tmp_path):
    given_, _ = finished
    edgekit.quantize(sample.path(), "Q2_K", to=tmp_path / "same.gguf")
    assert (tmp_path / "same.gguf").read_bytes() == (given_.to / "quantize" / "gguf-Q2_K.gguf").read_bytes()


def test_the_divergence_is_that_of_evaluate_on_every_text(finished):
    given_, done = finished
    source = edgekit.open(sample.path())
    texts = read_texts(source, given_.texts, given_.context, given_.tokens, given_.to)
    for record in done.result["quantize"][:3]:
        made = edgekit.open(given_.to / "quantize" / record["file"])
        for category, windows in texts.measuring.items():
            judged = edgekit.evaluate(made, windows.reshape(-1), baseline=source, context=given_.context)
            measured = record["quality"]["categories"][category]
            assert measured["kl"] == pytest.approx(judged.kl_divergence, rel=0.01)
            assert measured["perplexity"] == pytest.approx(judged.perplexity, rel=0.01)
            assert measured["top1"] == pytest.approx(judged.top1_agreement, abs=0.01)
            assert measured["kl_error"] == pytest.approx(judged.kl_divergence_error, rel=0.01)


def test_the_baseline_takes_a_twentieth_of_llamacpps_file_of_logits(finished):
    """`llama-perplexity --kl-divergence-base` writes uint16 [vocabulary + 4] for every scored position."""
    given_, done = finished
    positions = done.result["baseline"]["quality"]["positions"]
    theirs = positions * 2 * (edgekit.open(sample.path()).model.config.vocab + 4)
    ours = sum(len(json.dumps(record["quality"]["categories"])) for record in [done.result["baseline"]])
    kept = [file for file in given_.to.rglob("*") if file.is_file() and file.parent.name == "baseline"]
    assert sum(file.stat().st_size for file in kept if file.name == "source.json") <= max(ours * 4, 0.05 * theirs)
    assert {file.name for file in kept} == {"source.json", "calibration.json"}, "no file of logits"


def test_the_worst_tokens_stand_in_their_text(finished, text):
    _, done = finished
    stories = text.read_text("utf-8").replace("\n", "").replace(" ", "")
    for record in done.result["quantize"]:
        worst = record["quality"]["worst"]
        assert [place["kl"] for place in worst] == sorted((place["kl"] for place in worst), reverse=True)
        assert worst[0]["kl"] >= record["quality"]["kl_p99"]
        for place in worst:
            passage = (place["before"] + place["actual"]).replace("\n", "").replace(" ", "")
            assert passage in stories
            assert 0 < place["expected_share"] <= 1


def test_the_parts_of_a_text_do_not_overlap(text, tmp_path):
    source = edgekit.open(sample.path())
    texts = read_texts(source, {"stories": text}, 64, 8192, tmp_path)
    tokens = source.tokenizer.encode(text.read_text("utf-8"))
    measured = texts.measuring["stories"].reshape(-1)
    joined = np.concatenate([texts.calibration, texts.choosing, measured]).reshape(-1, 64)
    whole = np.asarray(tokens[: joined.size]).reshape(-1, 64)
    assert np.array_equal(joined[:, 1:], whole[:, 1:])
    made = edgekit.calibrate(
        source, [*texts.calibration, *texts.choosing], context=64, holdout=texts.holdout, outputs=False
    )
    assert np.array_equal(made.windows.reshape(-1), texts.calibration)
    assert np.array_equal(made.held_out.reshape(-1), texts.choosing)


def test_without_a_text_the_model_writes_one(settings, monkeypatch):
    monkeypatch.setattr("edgekit_workflow.optimize.texts._SAMPLE", 512)
    alone = attrs.evolve(settings, texts={}, recipes=("Q2_K",))
    done = optimize(alone)
    written = (alone.to / "text.txt").read_bytes()
    assert len(written) > 400
    assert list(done.result["quantize"][0]["quality"]["categories"]) == ["sampled"]
    optimize(alone)
    assert (alone.to / "text.txt").read_bytes() == written


class Killed(BaseException):
    pass


@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
def test_a_run_that_was_cut_off_anywhere_ends_as_an_uninterrupted_one(settings, monkeypatch, before):
    """Before each record in turn, and after each; what has a record is not done again."""
    optimize(settings)
    whole = artifacts(settings.to)
    again = attrs.evolve(settings, to=settings.to.parent / "again" / "run")
    keep, written = RunDirectory.keep, []

    def cut_off(self, stage, name, record, artifact=None):
        new = (stage, name)
        assert new not in written, "it has a record"
        if before and cut:
            raise Killed
        kept = keep(self, stage, name, record, artifact)
        written.append(new)
        if not before:
            raise Killed
        cut.append(new)
        return kept

    monkeypatch.setattr(RunDirectory, "keep", cut_off)
    for _ in range(8):
        cut = []
        try:
            optimize(again)
        except Killed:
            continue
        break
    assert len(written) == 4
    assert artifacts(again.to) == whole


def test_a_killed_process_leaves_what_the_next_one_goes_on_with(settings):
    optimize(settings)
    whole = artifacts(settings.to)
    again = attrs.evolve(settings, to=settings.to.parent / "killed" / "run")
    words = ["optimize", str(again.source), "--to", str(again.to), "--text", f"stories={again.texts['stories']}"]
    words += ["--formats", "gguf", "--recipes", "Q4_0,Q2_K", "--methods", "nearest", "--context", "64"]
    words += ["--tokens", "256", "--no-speed", "--no-gates"]
    with subprocess.Popen([sys.executable, "-m", "edgekit", *words], stderr=subprocess.DEVNULL) as process:
        while process.poll() is None and not (again.to / "quantize" / "gguf-Q4_0.json").exists():
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
    optimize(again)
    assert artifacts(again.to) == whole


def test_a_finished_run_does_nothing_again(settings, monkeypatch):
    optimize(settings)
    before = artifacts(settings.to)
    monkeypatch.setattr(edgekit, "quantize", None)
    monkeypatch.setattr(edgekit, "convert", None)
    optimize(settings)
    assert artifacts(settings.to) == before


def test_an_artifact_that_was_changed_is_made_again(settings):
    optimize(settings)
    before = artifacts(settings.to)
    damaged = settings.to / "quantize" / "gguf-Q2_K.gguf"
    data = bytearray(damaged.read_bytes())
    data[-1] ^= 1
    damaged.write_bytes(data)
    optimize(settings)
    assert artifacts(settings.to) == before


def test_another_budget_uses_the_records_that_there_are(settings, monkeypatch):
    optimize(settings)
    monkeypatch.setattr(edgekit, "quantize", None)
    smaller = optimize(attrs.evolve(settings, budget=800_000))
    assert [record["name"] for record in smaller.result["quantize"]] == ["gguf-Q2_K"]
    assert smaller.result["chosen"] == "gguf-Q2_K"


def test_a_time_limit_leaves_out_what_a_later_run_makes_up_for(settings):
    with pytest.raises(QualityGateError, match=r"^no artifact was made \(.*the time limit of 1e-09 s"):
        optimize(attrs.evolve(settings, time=1e-9))
    done = optimize(settings)
    assert not done.result["left_out"]


def test_a_time_limit_leaves_time_to_judge_what_was_made(settings, monkeypatch):
    """Of ten seconds each candidate takes four and each gate three: there is no time to make and to gate a second one."""
    passed = [0.0]

    def slowly(function, seconds):
        def slow(*given, **options):
            passed[0] += seconds
            return function(*given, **options)

        return slow

    monkeypatch.setattr(edgekit, "quantize", slowly(edgekit.quantize, 4))
    monkeypatch.setattr("edgekit_workflow.optimize.stages.gated", slowly(gated, 3))
    monkeypatch.setattr("edgekit_workflow.optimize.timing.time", SimpleNamespace(monotonic=lambda: passed[0]))
    result = optimize(attrs.evolve(settings, time=10, gates=True)).result
    assert [record["name"] for record in result["quantize"]] == ["gguf-Q4_0"]
    assert [record["name"] for record in result["validate"]] == ["gguf-Q4_0"]
    assert result["left_out"] == {
        "gguf-Q2_K": "quantize: the time limit of 10 s: 3 s were left, and it would take about 4 s, "
        "and the gates that must follow 3 s"
    }
    assert result["not_gated"] == {}


def test_within_half_the_time_something_is_gated_and_the_rest_is_told(settings, tmp_path):
    """The limit is half of what the whole run took; how far it reaches depends on what else the machine does."""
    whole = attrs.evolve(
        settings, formats=("gguf", "hf"), recipes=(), methods=("nearest", "feedback"), gates=True, budget=1_500_000
    )
    begun = time.monotonic()
    optimize(whole)
    limit = (time.monotonic() - begun) / 2
    result = optimize(attrs.evolve(whole, to=tmp_path / "half", time=limit)).result
    gated = {record["name"] for record in result["validate"]}
    made = {record["name"] for record in result["quantize"]}
    assert gated
    assert made == gated | set(result["not_gated"])
    assert all(result["not_gated"].values())
    late = [why for reasons in (result["left_out"], result["not_gated"]) for why in reasons.values()]
    assert any("the time limit" in why for why in late) or len(made) == len(optimize(whole).result["quantize"])


def test_steps_are_predicted_by_those_of_their_kind(monkeypatch):
    passed = [0.0]
    monkeypatch.setattr("edgekit_workflow.optimize.timing.time", SimpleNamespace(monotonic=lambda: passed[0]))
    clock = Clock(100)

    def took(seconds, *step):
        with clock.measuring(Step(*step)):
            passed[0] += seconds

    assert clock.predicted(Step("quantize", "gguf", "nearest", 10)) == 0
    took(2, "quantize", "gguf", "nearest", 10)
    took(3, "quantize", "hf", "nearest", 10)
    assert clock.predicted(Step("quantize", "gguf", "nearest", 20)) == 4
    assert clock.predicted(Step("quantize", "onnx", "nearest", 5)) == 3
    assert clock.predicted(Step("quantize", "gguf", "feedback", 10)) == 3 * UNSEEN["feedback"]
    assert clock.predicted(Step("validate", "gguf")) == 0
    took(7, "quantize", "hf", "feedback", 10)
    assert clock.predicted(Step("quantize", "gguf", "feedback", 10)) == 7
    assert clock.left == 88


def test_a_budget_below_the_smallest_file_says_what_that_is(settings, tmp_path):
    asked = attrs.evolve(settings, budget=1000, recipes=())
    with pytest.raises(UsageError) as raised:
        optimize(asked)
    words = str(raised.value)
    nbytes, recipe = (words.split(" has ")[1].split(" bytes")[0], words.split(" with ")[1].split(")")[0])
    smallest = edgekit.quantize(sample.path(), recipe, to=tmp_path / "smallest.gguf")
    assert f"{smallest.nbytes:,}" == nbytes
    assert words.startswith(f"a budget of 1,000 bytes: the smallest file of {sample.path()} in gguf has")
    assert not asked.to.exists(), "nothing was begun"
    optimize(attrs.evolve(settings, budget=smallest.nbytes, recipes=(recipe,)))


@pytest.mark.parametrize(
    ("changed", "kind", "words"),
    [
        ({"recipes": ("INT4_SYM",)}, UsageError, r"recipes INT4_SYM and formats gguf contradict each other"),
        ({"formats": ("tflite",)}, MissingPluginError, r"no format 'tflite' is installed"),
        ({"runtimes": ("npu",)}, MissingPluginError, r"no runtime 'npu' is installed"),
        ({"context": 4096}, UsageError, r"a window of 4096 tokens; choose between 3 and the model's context of 512"),
        ({"context": 512}, UsageError, r"the text 'stories' has .* three windows of 512 are needed"),
        ({"texts": {"x": Path("nowhere.txt")}}, MissingFileError, r"nowhere.txt: cannot be read"),
    ],
)
def test_what_cannot_be_met_is_refused_before_anything_is_written(settings, text, tmp_path, changed, kind, words):
    if changed.get("context") == 512:
        short = tmp_path / "short.txt"
        short.write_text("Once upon a time. " * 20, "utf-8")
        changed = {**changed, "texts": {"stories": short}}
    with pytest.raises(kind, match=words):
        optimize(attrs.evolve(settings, **changed))
    assert not settings.to.exists()


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (
            {"min_speed": 5.0},
            r"^min_speed 5 asks for a speed, and speed = false measures none; leave out one of the two$",
        ),
        (
            {"methods": ("fit",)},
            r"^methods fit alone, and no budget: fit chooses precisions for a size; give a budget$",
        ),
        ({"methods": ("awq",)}, r"^methods \['awq'\]; choose from nearest, feedback, fit$"),
        ({"priority": "beauty"}, r"^priority 'beauty'; choose quality, speed, size$"),
        ({"min_top1": 95.0}, r"^min_top1 is 95; give a number from 0 to 1$"),
        ({"tokens": 3}, r"^tokens is 3; measure on 16 or more, better thousands$"),
    ],
)
def test_settings_that_contradict_one_another(values, words):
    with pytest.raises(UsageError, match=words):
        Settings(Path("model"), Path("run"), **{"speed": False, **values})


def test_requirements_that_nothing_meets(settings):
    with pytest.raises(QualityGateError, match=r"no artifact of 2 artifacts meets.*gguf-Q4_0 comes nearest: KL diverg"):
        optimize(attrs.evolve(settings, max_kl=1e-9))
    result = json.loads((settings.to / "result.json").read_text())
    assert result["chosen"] is None
    assert set(result["refused"]) == {"gguf-Q4_0", "gguf-Q2_K"}
    kept = optimize(attrs.evolve(settings, max_kl=1.0, min_top1=0.5))
    assert kept.result["chosen"] == "gguf-Q4_0"


def test_the_source_changed_since_the_run_began(settings, tmp_path):
    own = tmp_path / "model"
    shutil.copytree(sample.path(), own)
    asked = attrs.evolve(settings, source=own)
    optimize(asked)
    (own / "generation_config.json").write_text("{}")
    with pytest.raises(ChangedSourceError, match=r"generation_config\.json changed since the run in .* was begun"):
        optimize(asked)
    assert optimize(asked, restart=True).result["chosen"]


def test_the_source_changes_while_the_run_works(settings, tmp_path):
    own = tmp_path / "model"
    shutil.copytree(sample.path(), own)

    def change(done, total, name):
        if name == "gguf-Q2_K" and done < total // 2:
            with (own / "model.safetensors").open("r+b") as file:
                file.seek(-2, os.SEEK_END)
                file.write(b"\0\0")

    with pytest.raises(ChangedSourceError, match=r"model\.safetensors"):
        optimize(attrs.evolve(settings, source=own), progress=change)
    assert not (settings.to / "result.json").exists()


def test_a_directory_of_something_else_is_refused(settings):
    settings.to.mkdir()
    (settings.to / "thesis.tex").write_text("…")
    with pytest.raises(UsageError, match=r"it holds other files and no run of edgekit optimize"):
        optimize(settings)


def test_a_run_that_was_begun_otherwise_is_refused(settings):
    optimize(settings)
    with pytest.raises(
        UsageError, match=r"begun otherwise \(tokens was 256 and is 512\); choose another directory, or"
    ):
        optimize(attrs.evolve(settings, tokens=512))


def test_two_runs_in_one_directory(settings):
    source = edgekit.open(settings.source)
    with RunDirectory(settings.to, source, {"source": {"path": "x", "files": {}}}), pytest.raises(LockedError):
        optimize(settings)


def test_settings_from_a_file(tmp_path):
    file = tmp_path / "workflow.toml"
    file.write_text(
        'source = "model"\nto = "run"\nbudget = "1.2MB"\ntime = "10m"\npriority = "size"\n[text]\nstories = "s.txt"\n'
        '[candidates]\nformats = ["gguf"]\nmethods = ["fit"]\n[require]\nmax_kl = 0.02\n[measure]\ncontext = 64\n'
    )
    assert Settings(**read_settings(file)) == Settings(
        source=tmp_path / "model",
        to=tmp_path / "run",
        budget=1_200_000,
        time=600.0,
        priority="size",
        texts={"stories": tmp_path / "s.txt"},
        formats=("gguf",),
        methods=("fit",),
        max_kl=0.02,
        context=64,
    )


@pytest.mark.parametrize(
    ("content", "kind", "words"),
    [
        ("budgett = 3", InvalidFileError, r"the file's top level has an unknown key 'budgett'; did you mean budget\?$"),
        ("max_kl = 3", InvalidFileError, r"top level has an unknown key 'max_kl'; it belongs to \[require\]$"),
        ("[require]\nmax_kl = '1'", InvalidFileError, r"max_kl is '1'; give int or float$"),
        ("[candidates]\nformats = 'gguf'", InvalidFileError, r"formats is 'gguf'; give a list of texts$"),
        ("[measure]\nspeed = 1", InvalidFileError, r"speed is 1; give bool$"),
        ("text = 3", InvalidFileError, r"text is 3; write a table, \[text\]$"),
        ("budget = '3 elephants'", UsageError, r"size '3 elephants'; write a number and a unit"),
        ("time = 'soon'", UsageError, r"time 'soon'; write a number and a unit, such as 90s, 10m or 1\.5h$"),
        ("a = ", InvalidFileError, r"not TOML"),
    ],
)
def test_files_of_settings_that_are_refused(tmp_path, content, kind, words):
    file = tmp_path / "workflow.toml"
    file.write_text(content)
    with pytest.raises(kind, match=words):
        read_settings(file)


def test_a_file_of_settings_that_nothing_reads(tmp_path):
    with pytest.raises(MissingPluginError, match=r"no installed distribution reads \.yaml files of settings"):
        read_settings(tmp_path / "workflow.yaml")


@pytest.mark.parametrize(("text_", "seconds"), [("90", 90), ("90s", 90), ("10m", 600), ("1.5h", 5400), (7, 7)])
def test_times(text_, seconds):
    assert parse_time(text_) == seconds


@pytest.mark.parametrize("seed", range(40))
def test_the_front_holds_exactly_what_nothing_beats(seed):
    drawn = np.random.default_rng(seed).integers(0, 5, (8, 3)).tolist()
    each = [{"kl": kl, "nbytes": nbytes, "speed": speed} for kl, nbytes, speed in drawn]
    ahead = front(each)
    assert ahead
    for number, point in enumerate(each):
        beaten = any(
            other["kl"] <= point["kl"]
            and other["nbytes"] <= point["nbytes"]
            and other["speed"] >= point["speed"]
            and other != point
            for other in each
        )
        assert (number in ahead) is not beaten


def test_what_was_not_measured_is_not_compared():
    assert dominates({"kl": 1, "speed": None}, {"kl": 2, "speed": 9})


def record(name, kl, nbytes, error=0.0):
    quality = {"kl": kl, "kl_error": error, "top1": 1.0, "perplexity": 2.0, "baseline_perplexity": 2.0}
    return {"name": name, "format": "gguf", "nbytes": nbytes, "quality": quality}


@pytest.mark.parametrize(("priority", "chosen"), [("quality", "good"), ("size", "small"), ("speed", "fast")])
def test_the_priority_decides_among_what_is_on_the_front(priority, chosen):
    made = [record("good", 1e-4, 900), record("small", 1e-2, 300), record("fast", 1e-3, 800), record("bad", 1e-1, 950)]
    speeds = {"good": 10.0, "small": 20.0, "fast": 90.0, "bad": 5.0}
    stages = {
        "baseline": {"noise_floor": 1e-9, "nbytes": 1000},
        "quantize": made,
        "accelerate": [{"name": n, "speed": v, "memory": 1000, "runtime": "r"} for n, v in speeds.items()],
        "validate": [],
    }
    result = choose(stages, Settings(Path("m"), Path("r"), priority=priority))
    assert result["front"] == ["good", "small", "fast"]
    assert result["chosen"] == chosen


def test_noise_does_not_decide():
    """Of two whose divergences differ by less than a standard error, the smaller one is chosen."""
    made = [record("large", 1.00e-3, 900, 1e-4), record("small", 1.05e-3, 500, 1e-4)]
    stages = {"baseline": {"noise_floor": 1e-9, "nbytes": 1000}, "quantize": made, "accelerate": [], "validate": []}
    assert choose(stages, Settings(Path("m"), Path("r")))["chosen"] == "small"


def test_an_artifact_that_fails_a_gate_is_not_chosen():
    failed = {"name": "degenerate", "category": "silent", "passed": False}
    slow = {"name": "speedup", "category": "performance", "passed": False, "measured": 1.07, "required": 2.0}
    stages = {
        "baseline": {"noise_floor": 1e-9, "nbytes": 1000},
        "quantize": [record("babbles", 1e-4, 400), record("slow", 1e-3, 300)],
        "accelerate": [],
        "validate": [{"name": "babbles", "gates": [failed]}, {"name": "slow", "gates": [slow]}],
    }
    result = choose(stages, Settings(Path("m"), Path("r")))
    assert result["chosen"] == "slow"
    assert result["reasons"][-1].endswith("performance speedup: 1.07 (required 2)")
    assert result["refused"] == {"babbles": "failed gates: degenerate"}
    strict = choose(stages, Settings(Path("m"), Path("r"), policy=Path("gates.toml")))
    assert strict["chosen"] is None


def test_speed_and_memory_are_measured_in_processes_of_their_own(settings):
    timed = attrs.evolve(settings, speed=True, recipes=("Q4_0",), runtimes=("numpy",))
    done = optimize(timed)
    speeds = {record["name"]: record for record in done.result["accelerate"]}
    assert set(speeds) == {"gguf", "gguf-Q4_0"}
    for speed in speeds.values():
        assert speed["runtime"] == "numpy"
        assert speed["speed"] > 0
        assert speed["latency"]["p50"] <= speed["latency"]["p99"]
        assert speed["memory"] > speed["memory_before"] > 1e6


def test_the_candidates_alternate_over_formats_with_cheap_methods_first():
    source = edgekit.open(sample.path())
    found = Candidates(source, Settings(sample.path(), Path("run"), budget=1_500_000, formats=("gguf", "hf"))).within()
    assert [c.format for c in found[:3]] == ["gguf", "hf", "gguf"]  # of hf only one recipe is within the budget
    methods = [c.method for c in found]
    assert methods == sorted(methods, key=METHODS.index)
    assert [c.format for c in found if c.method == "feedback"][:2] == ["gguf", "hf"]
    assert len({c.name for c in found}) == len(found)


def test_a_precision_that_a_format_cannot_store_is_left_out():
    source = edgekit.open(sample.path())
    asked = Settings(sample.path(), Path("run"), formats=("gguf", "hf"), recipes=("affine:int4-sym-g32", "Q4_0"))
    found = Candidates(source, asked)
    assert {(c.format, c.recipe) for c in found.all} == {
        ("gguf", "Q4_0"),
        ("hf", "affine:int4-sym-g32"),
        ("hf", "Q4_0"),
    }
    assert found.left_out["gguf-affine-int4-sym-g32"] == ("gguf cannot store token_embd.weight in affine:int4-sym-g32")


def test_on_the_command_line(settings, tmp_path):
    config = tmp_path / "workflow.toml"
    config.write_text(
        f'source = "{settings.source}"\nto = "run"\n[text]\nstories = "{settings.texts["stories"]}"\n'
        '[candidates]\nformats = ["gguf"]\nrecipes = ["Q2_K"]\nmethods = ["nearest"]\n'
        "[measure]\ncontext = 64\ntokens = 128\nspeed = false\ngates = false\n"
    )
    words = [sys.executable, "-m", "edgekit", "optimize", "--config", str(config)]
    done = subprocess.run([*words, "--json"], capture_output=True, text=True, check=True)
    result = json.loads(done.stdout)
    assert result["chosen"] == "gguf-Q2_K"
    assert "--recipes Q2_K" in result["command"]
    assert not math.isnan(result["quantize"][0]["quality"]["kl"])
    failed = subprocess.run([*words, "--max-kl", "1e-9"], capture_output=True, text=True, check=False)
    assert failed.returncode == 7
    assert "gguf-Q2_K comes nearest" in failed.stderr
    nothing = subprocess.run([*words[:4]], capture_output=True, text=True, check=False)
    assert (nothing.returncode, "give a MODEL" in nothing.stderr) == (2, True)


def test_a_workflow_of_olives_takes_no_other_option(tmp_path):
    def refused(message, *options):
        made = CliRunner().invoke(command, [*options, "--olive", str(tmp_path / "w.json")])
        assert isinstance(made.exception, UsageError)
        assert str(made.exception) == f"--olive {tmp_path / 'w.json'}: {message}"

    refused("the file says what to optimize and how; leave out MODEL, --max-kl", "model", "--max-kl", "0.1")
    refused("the file says what to optimize and how; leave out --text", "--text", "a.txt", "--to", "x")
    refused("give --to DIR, the directory of the best model")
    assert not (tmp_path / "x").exists()


def test_without_edgekit_olive_its_workflows_are_refused_with_the_cure(monkeypatch, tmp_path):
    monkeypatch.setattr("edgekit_workflow.commands.optimize.manager", lambda: build([]))
    made = CliRunner().invoke(command, ["--olive", "w.json", "--to", str(tmp_path / "x")])
    assert isinstance(made.exception, MissingPluginError)
    assert "no command 'olive-run' is installed" in str(made.exception)
