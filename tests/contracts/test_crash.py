"""Every few of the calls at which a run can be cut off; `nox -s crash` tries them all, and races for a minute."""

import importlib.util
import os
import shutil
import sys
import tempfile
from pathlib import Path

import pytest

from edgekit.files import _swap, atomic, guard, pairs

if not hasattr(os, "fork"):
    pytest.skip("runs are cut off in forked children", allow_module_level=True)


def _loaded(name):
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


crash = _loaded("crash")
vanished = _loaded("vanished")  # which imports the one before

#: One call of so many, beginning with another one in each set-up.
EVERY = 6
#: Those that take OpenVINO, which every child imports anew.
SLOW = 23
SETUPS = {setup.name: setup for setup in crash.chosen_setups(None)}
MORE = {setup.name: setup for setup in crash.chosen_setups(None, crash.MORE)}
VANISHED = {setup.name: setup for setup in vanished.chosen_setups()}


@pytest.fixture(scope="module")
def folders():
    """Folders where a sync costs nothing, if there is such a place: a kill loses no more there than elsewhere."""
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    folder = Path(os.path.realpath(tempfile.mkdtemp(dir=memory)))
    for name in ("bench", "vanishing"):
        (folder / name).mkdir()
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def bench(folders):
    return crash.Bench(folders / "bench", [*SETUPS.values(), *MORE.values()])


@pytest.fixture(scope="module")
def vanishing(folders):
    return vanished.Vanishing(folders / "vanishing", list(VANISHED.values()))


def every(name):
    return SLOW if "IR" in name else EVERY


def start(name):
    return 1 + list(SETUPS).index(name)


@pytest.mark.parametrize("name", SETUPS)
def test_a_killed_run_leaves_the_old_or_the_new_and_the_next_one_is_whole(bench, name):
    assert crash.python_kills(bench, SETUPS[name], every(name), start(name)) > 1


@pytest.mark.parametrize("name", SETUPS)
def test_an_error_at_any_call_leaves_the_old_or_the_new(bench, name):
    assert crash.python_errors(bench, SETUPS[name], every(name), start(name)) > 1


@pytest.mark.parametrize("name", SETUPS)
def test_an_interrupt_after_any_call_leaves_the_old_or_the_new(bench, name):
    assert crash.python_interrupts(bench, SETUPS[name], every(name), start(name)) > 1


@pytest.mark.parametrize("name", SETUPS)
def test_a_disk_that_is_full_from_any_write_on_leaves_the_old_or_the_new(bench, name):
    assert crash.python_full(bench, SETUPS[name], every(name), start(name)) > 1


@pytest.mark.parametrize("name", [*SETUPS, *MORE])
def test_runs_that_are_killed_at_random_moments_end_in_the_same_bytes(bench, name):
    assert crash.moments(bench, (SETUPS | MORE)[name], 8) >= 8


@pytest.mark.parametrize("name", VANISHED)
def test_a_source_that_vanishes_is_named_and_the_target_stays(vanishing, name):
    """Before every few of a run's reads, a file is removed, renamed, cut, emptied, replaced or overwritten."""
    codes = vanished.vanished(vanishing, VANISHED[name], 31, 1 + list(VANISHED).index(name))
    assert codes[3] > 10


def test_a_source_that_vanishes_unnoticed_is_found(vanishing, monkeypatch):
    monkeypatch.setattr(guard.Work, "check_sources", lambda self, hashes=True: None)
    with pytest.raises(crash.MixedError, match="before read"):
        vanished.vanished(vanishing, VANISHED["shards"], 5)
    vanishing.settle()


@pytest.mark.parametrize("name", [name for name in SETUPS if "over an older one" in name])
def test_an_interrupt_after_the_commit_point_does_not_undo_it(bench, name):
    """With the calls around the renames; without an exchange of directories there are two of them."""
    prepare = crash.without_exchange if name.startswith("directory") else None
    calls = crash.number_of_calls(bench, SETUPS[name], prepare)
    assert crash.python_interrupts(bench, SETUPS[name], start=calls - 24, prepare=prepare) > 20


@pytest.mark.parametrize("name", [name for name in SETUPS if name == "directory over an older one"])
def test_the_same_without_an_exchange_of_directories(bench, name):
    """Between two renames there is no target, which the next run puts back; a rename that fails is undone."""
    assert crash.python_kills(bench, SETUPS[name], EVERY, prepare=crash.without_exchange) > 1
    assert crash.python_errors(bench, SETUPS[name], EVERY, prepare=crash.without_exchange) > 1


def two_commit_points(partial, target, manifest):
    """The file first, then its manifest."""
    os.replace(partial, target)
    _swap._replace_small(target, pairs.beside(target), pairs.dumped(pairs.sealed(manifest, target)))


def nothing_cleared(entries):
    """What another run has left in the directory stays there."""


@pytest.mark.parametrize(
    ("name", "step", "fault", "message"),
    [
        ("gguf over an older one", "replace_pair", two_commit_points, "neither old nor new"),
        ("directory over an older one", "_clear_all", nothing_cleared, "then Command"),
    ],
)
def test_faults_are_found(bench, monkeypatch, name, step, fault, message):
    if name not in SETUPS:
        pytest.skip("its plugin is not installed")
    monkeypatch.setattr(atomic, step, fault)
    with pytest.raises(crash.MixedError, match=message):
        crash.python_kills(bench, SETUPS[name])


@pytest.mark.parametrize("target", crash.RACES)
def test_four_writers_and_a_reader_meet_whole_models_only(bench, target):
    runs, readings = crash.race(bench, target, crash.RACES[target], seconds=4)
    assert runs > 1
    assert readings > 1


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
@pytest.mark.parametrize("name", [name for name in SETUPS if "over an older one" in name])
def test_what_libraries_write_is_cut_off_too(bench, name):
    try:
        calls = crash.strace_calls(bench, SETUPS[name])
    except crash.MixedError:
        pytest.skip("processes may not be traced here")
    renames = [index for index, (call, _) in enumerate(calls, 1) if call.startswith("rename")]
    assert renames
    assert crash.strace_kills(bench, SETUPS[name], every=len(calls), start=renames[-1]) == 1
