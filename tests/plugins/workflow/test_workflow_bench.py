"""What `edgekit bench` measures: every number of a real run, and what it refuses."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest

import edgekit
from edgekit import sample
from edgekit.errors import ContextOverflowError, MissingPluginError, UsageError
from edgekit_workflow import measuring
from edgekit_workflow.bench import BUSY, Interval, measure
from edgekit_workflow.measuring import prompt_of


def test_the_numbers_belong_together():
    artifact = edgekit.open(sample.path())
    measured = measure(artifact, "numpy", prompt_tokens=8, tokens=12, repeats=3, warmup=1)
    assert (measured.runtime, measured.tokens, measured.repeats) == ("numpy", 12, 3)
    assert measured.first_token.low <= measured.first_token.mean <= measured.first_token.high
    assert [len(repeat) for repeat in measured.latencies] == [measured.tokens - 1] * measured.repeats
    assert measured.p50 == pytest.approx(float(np.median(measured.latencies)))
    assert 0 < measured.p50 <= measured.p95 <= measured.p99
    assert measured.p50 < 3 * (1 / measured.tokens_per_second.mean) + measured.p99
    assert measured.load_seconds > 0
    # The model is decoded to float32, and Python is there too.
    assert measured.before > 5e6
    assert measured.peak_memory > measured.before + 4 * artifact.parameters


def test_an_interval_is_students():
    interval = Interval.of([1.0, 2.0, 3.0])  # t with 2 degrees of freedom at 97.5 %: 4.3027; deviation 1
    assert interval.mean == 2.0
    assert interval.high - interval.mean == pytest.approx(4.3027 / 3**0.5, rel=1e-4)
    assert interval.mean - interval.low == pytest.approx(interval.high - interval.mean)
    assert Interval.of([5.0]) == Interval(5.0, 5.0, 5.0)


@pytest.mark.parametrize(("settled", "repeats", "rounds"), [(0.0, 2, 3), (1e9, 2, 1), (0.0, 1, 1)])
def test_a_speed_that_varies_is_measured_again(settled, repeats, rounds):
    """No two repeats take exactly as long; one repeat says nothing of how the speed varies."""
    measured = measure(
        edgekit.open(sample.path()), "numpy", prompt_tokens=4, tokens=3, repeats=repeats, rounds=3, settled=settled
    )
    assert (measured.rounds, measured.repeats, len(measured.latencies)) == (rounds, repeats, repeats)


def test_the_steadiest_round_counts(monkeypatch):
    rounds, prompts, run, drawn = [], [], measuring._round, measuring.prompt_of
    monkeypatch.setattr(measuring, "_round", lambda *given: rounds.append(run(*given)) or rounds[-1])
    monkeypatch.setattr(measuring, "prompt_of", lambda *given: prompts.append(drawn(*given)) or prompts[-1])
    job = {"path": str(sample.path()), "runtime": "numpy", "prompt_tokens": 4, "tokens": 5, "repeats": 2, "warmup": 1}
    result = measuring.measured({**job, "options": {}, "rounds": 3, "deviation": 0.0})
    speeds = [np.array([len(gaps) / cpu for gaps, cpu in zip(r["gaps"], r["cpu"], strict=True)]) for r in rounds]
    deviations = [speed.std(ddof=1) / speed.mean() for speed in speeds]
    assert len(rounds) == result["rounds"] == 3
    assert result["gaps"] == rounds[int(np.argmin(deviations))]["gaps"]
    assert len({tuple(prompt) for prompt in prompts}) == 9  # so that no runtime has kept one from an earlier round


def test_a_busy_machine_is_told():
    spinning = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(os.cpu_count() or 1)]
    try:
        measured = measure(edgekit.open(sample.path()), "numpy", prompt_tokens=4, tokens=16, repeats=2)
    finally:
        for process in spinning:
            process.kill()
            process.wait()
    assert BUSY <= measured.others <= 1
    assert measured.busy == f"the machine was busy: other programs used {measured.others:.0%} of its processors"


def test_own_work_is_not_other_programs(monkeypatch):
    """Of a process that is all that runs, as the system would count it."""
    import psutil

    whole, before = measuring.processors()
    assert whole > before
    times = psutil.cpu_times()
    monkeypatch.setattr(psutil, "cpu_times", lambda: times)
    earlier, used = measuring.processors(), measuring.time.process_time()
    while measuring.time.process_time() < used + 0.05:
        pass
    later = measuring.processors()
    assert later[0] == earlier[0]
    assert earlier[1] - later[1] >= 0.05


def test_each_repeat_has_a_prompt_of_its_own():
    prompts = [prompt_of(number, 16, 512) for number in range(5)]
    assert len({tuple(prompt) for prompt in prompts}) == 5
    assert len({prompt[0] for prompt in prompts}) > 1  # no common prefix that a runtime could keep
    assert prompts[0] == prompt_of(0, 16, 512)
    assert all(0 <= token < 512 for prompt in prompts for token in prompt)


def test_what_is_refused():
    artifact = edgekit.open(sample.path())
    with pytest.raises(UsageError, match=r"^tokens is 1; choose an integer of at least 2$"):
        measure(artifact, tokens=1)
    with pytest.raises(UsageError, match=r"^rounds is 0; choose an integer of at least 1$"):
        measure(artifact, rounds=0)
    with pytest.raises(MissingPluginError, match="no runtime 'nothing' is installed"):
        measure(artifact, "nothing")
    with pytest.raises(ContextOverflowError):
        measure(artifact, "numpy", prompt_tokens=artifact.model.config.context + 1)
    with pytest.raises(UsageError, match="spin"):
        measure(artifact, "numpy", options={"spin": 1})


def test_the_command_prints_json():
    line = [sys.executable, "-m", "edgekit", "bench", str(sample.path()), "--runtime", "numpy", "--json"]
    done = subprocess.run(
        [*line, "--tokens", "4", "--repeats", "2"], capture_output=True, text=True, check=True, timeout=120
    )
    (result,) = json.loads(done.stdout)
    assert result["runtime"] == "numpy"
    assert result["machine"]["cores"] >= 1
    assert result["tokens"] == 4
