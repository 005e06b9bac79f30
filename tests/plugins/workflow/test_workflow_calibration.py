"""The pace of runtimes: fitted to made-up times, from which it has to come back; nothing is timed here."""

from __future__ import annotations

import json

import attrs
import pytest

import edgekit
from edgekit import sample
from edgekit.cli import main
from edgekit.errors import InvalidFileError, UsageError
from edgekit_workflow.calibration import CASES, DEEP, HEADS, SHALLOW, SIZES, Timed, calibrate, fitted
from edgekit_workflow.hardware import machine_of, profile_text, this_machine
from edgekit_workflow.memory import head_positions, kind_of
from edgekit_workflow.pace import Pace
from edgekit_workflow.speed import moved_bytes, pace_of, predicted_speed, stored_tensors

RATES = {"Q8_0": [(3e6, 30e9), (10e6, 20e9), (60e6, 12e9)], "F16": 15e9, "other": 15e9}
TRUE = Pace(2e-4, 3e-5, RATES, [(8, 5e-8), (64, 2e-8)])


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    return int(ended.value.code or 0)


def seconds(pace: Pace, layers: int, moved: dict[str, float], attended: dict[int, float] | None = None) -> float:
    total = sum(moved.values())
    computing = sum(each / pace.rate(kind, total) for kind, each in moved.items())
    attending = sum(count * pace.attending(size) for size, count in (attended or {}).items())
    return pace.overhead + layers * pace.layer + computing + attending


def attended_by(config) -> dict[int, float]:
    """Positions that heads look at in a token of the middle, as models are timed: large ones with fewer tokens."""
    return head_positions(config, 16 + (6 if config.width >= 1024 else 24))


def test_the_constants_come_back_from_exact_times():
    moved = [(2, 1e5, 0, {64: 80}), (12, 6e5, 0, {64: 480}), (12, 6e5, 0, {64: 1920}), (12, 6e5, 0, {8: 15360})]
    moved += [(4, 3e6, 0, {64: 640}), (4, 10e6, 1, {64: 1280}), (4, 60e6, 2, {64: 2560})]
    timed = [
        Timed(layers, {kind: nbytes}, seconds(TRUE, layers, {kind: nbytes}, attended), size, attended)
        for kind in ("Q8_0", "F16")
        for layers, nbytes, size, attended in moved
    ]
    pace = fitted(timed)
    assert (pace.overhead, pace.layer) == pytest.approx((TRUE.overhead, TRUE.layer), rel=1e-6)
    assert [pace.attending(size) for size in (8, 64)] == pytest.approx([5e-8, 2e-8], rel=1e-6)
    for kind in ("Q8_0", "F16"):
        for _, nbytes, _, _ in moved[4:]:
            assert pace.rate(kind, nbytes) == pytest.approx(TRUE.rate(kind, nbytes), rel=1e-6)


def test_a_small_share_of_another_precision_is_counted_with_its_model():
    """Norms in F32: too few bytes to tell their rate."""
    sizes = [(2, 1e5, 0), (12, 6e5, 0), (4, 3e6, 0), (4, 10e6, 1), (4, 60e6, 2)]
    timed = [
        Timed(n, {"Q8_0": nbytes, "F32": 1e3}, seconds(TRUE, n, {"Q8_0": nbytes + 1e3}), s) for n, nbytes, s in sizes
    ]
    pace = fitted(timed)
    assert set(pace.rates) == {"Q8_0", "other"}
    assert pace.rates["other"] == pace.rates["Q8_0"]


def test_between_two_sizes_the_time_lies_between():
    rates = [TRUE.rate("Q8_0", total) for total in (1.0, 3e6, 5e6, 10e6, 30e6, 60e6, 1e12)]
    assert rates == sorted(rates, reverse=True)
    assert (rates[0], rates[1], rates[-1]) == pytest.approx((30e9, 30e9, 12e9))
    assert TRUE.rate("Q4_0", 1e6) == 15e9


def test_a_calibrated_machine_predicts_another_model():
    """The clock is a formula: what is predicted for the sample model, which was not timed, is that formula's time."""
    runtime, true = "numpy", Pace(4e-4, 2e-4, {"other": 11e9}, [(8, 3e-8), (128, 6e-8)])
    timed: list[int] = []

    def clock(artifact, name):
        assert name == runtime
        timed.append(artifact.model.config.width)
        config = artifact.model.config
        return seconds(true, config.layers, moved_bytes(config, stored_tensors(artifact, name)), attended_by(config))

    paces = calibrate([runtime], rounds=2, clock=clock)
    assert timed == 2 * [shape.width for shape in (SHALLOW, DEEP, *HEADS, *SIZES)]
    machine = attrs.evolve(this_machine(bandwidth=False), paces=paces, bandwidth=1e12)
    source = edgekit.open(sample.path())
    moved = moved_bytes(source.model.config, stored_tensors(source, runtime))
    config = source.model.config
    expected = 1 / seconds(true, config.layers, moved, head_positions(config, 100))
    again = machine_of(profile_text(machine), "here", "here.toml")
    for found in (machine, again):
        speed = predicted_speed(config, moved, runtime, found, context=100, threads=1)
        assert speed == pytest.approx(expected, rel=1e-3)


def test_the_fastest_round_counts_and_slow_runtimes_are_spared_the_largest_model():
    true, calls = Pace(1e-3, 1e-4, {"other": 1e9}, 1e-7), dict[str, int]()

    def clock(artifact, name):
        key = artifact.path.name
        calls[key] = calls.get(key, 0) + 1
        config = artifact.model.config
        once = seconds(true, config.layers, moved_bytes(config, stored_tensors(artifact, name)), attended_by(config))
        return once * (1.5 if calls[key] == 1 else 1.0)

    pace = calibrate(["numpy"], rounds=2, clock=clock)["numpy"]
    assert len(calls) == 2 + len(HEADS) + 2, "thin ones, and two of the four sizes"
    assert set(calls.values()) == {2}
    assert (pace.overhead, pace.layer, pace.rate("F32", 1e7)) == pytest.approx((1e-3, 1e-4, 1e9), rel=1e-3)


def test_a_runtime_that_is_not_there_is_refused():
    with pytest.raises(UsageError, match=r"the runtime 'abacus' cannot be calibrated here; choose .*numpy"):
        calibrate(["abacus"])


def test_a_profile_is_written_and_read():
    machine = attrs.evolve(this_machine(bandwidth=False), name="here", paces={"numpy": TRUE})
    again = machine_of(profile_text(machine), "here", "here.toml")
    assert attrs.evolve(again, paces={}) == attrs.evolve(machine, paces={})
    assert again.paces["numpy"].rate("Q8_0", 5e6) == TRUE.rate("Q8_0", 5e6)


@pytest.mark.parametrize(
    ("pace", "message"),
    [
        ("overhead = -1\nlayer = 0\nrates = { other = 1e9 }", "overhead is -1; give seconds from 0 to 60"),
        ("overhead = 0\nlayer = 0\nrates = { F16 = 1e9 }", "rates lack other"),
        ("overhead = 0\nlayer = 0\nrates = { other = [[2, 1e9], [1, 1e9]] }", "the rate of other is"),
        ("overhead = 0\nlayer = 0\nrates = { other = 0 }", "the rate of other is 0; give bytes a second"),
        ("overhead = 0\nlayer = 0\nattention = [[8, -1]]\nrates = { other = 1 }", "attention is"),
        ("overhead = 0\nlayer = 0", "missing 1 required"),
        ("overhead = 0\nlayer = 0\nspeed = 1\nrates = { other = 1 }", "unexpected keyword argument 'speed'"),
    ],
)
def test_a_wrong_pace_is_refused(pace, message):
    with pytest.raises(InvalidFileError, match=message):
        machine_of(profile_text(this_machine(bandwidth=False)) + f"[paces.numpy]\n{pace}\n", "x", "x.toml")


def test_the_command_writes_a_profile_that_recommend_takes(tmp_path, capsys):
    target = tmp_path / "here.toml"
    assert run("profile", "--to", str(target)) == 0
    assert "bandwidth" in capsys.readouterr().out
    written = machine_of(target.read_text("utf-8"), "here", str(target))
    target.write_text(profile_text(attrs.evolve(written, paces={"llamacpp": TRUE})), "utf-8")
    assert run("profile", str(target)) == 0
    assert "200 µs a token, 30 µs a layer" in capsys.readouterr().out
    # 4: what is recommended first is not installed here.
    assert run("recommend", str(sample.path()), "--device", str(target), "--json") in (0, 4)
    told = json.loads(capsys.readouterr().out)
    speeds = [each["tokens_per_second"] for each in told["ranked"] if each["runtime"] == "llamacpp"]
    assert speeds
    assert all(0 < speed < 1 / (TRUE.overhead + 3 * TRUE.layer) for speed in speeds)


def test_the_command_refuses_what_it_cannot_measure(tmp_path, capsys):
    assert run("profile", "apple-m4", "--measure") == 2
    assert "--measure times this machine, not apple-m4" in capsys.readouterr().err
    assert run("profile", "--to", str(tmp_path / "here.json")) == 2
    assert "a profile's file ends in .toml" in capsys.readouterr().err


def test_every_case_is_a_recipe_of_a_known_runtime():
    for runtime, cases in CASES.items():
        assert pace_of(runtime).rates["other"]
        assert cases[0].dtype


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_the_models_to_calibrate_with_have_one_dtype(dtype, tmp_path):
    artifact = edgekit.convert(SHALLOW.artifact(tmp_path / "in-memory", dtype), tmp_path / "model", format="hf")
    assert {kind_of(tensor) for tensor in artifact.tensors.values()} == {dtype}
    values = artifact.model.tensors["blk.0.attn_q.weight"].float32()
    assert 0.9 < values.std() * SHALLOW.width**0.5 < 1.1
