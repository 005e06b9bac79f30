"""Workers that read the source for themselves: equal bytes, and what is refused there."""

from __future__ import annotations

import os
import pickle
import signal
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor
from multiprocessing import get_context

import attrs
import pytest

import edgekit
from edgekit.architectures import ModelConfig
from edgekit.encoding import codec
from edgekit.errors import (
    ChangedSourceError,
    LockedError,
    MissingFileError,
    NonFiniteError,
    PluginError,
    ResourceError,
    UsageError,
)
from edgekit.files import _swap
from edgekit.files.atomic import AtomicFile
from edgekit.pipeline import _remote
from edgekit.pipeline._conversion import laid_out
from edgekit.pipeline._placed import FarRows, Sent, sees
from edgekit.pipeline.executors import connected
from edgekit.testing.models import artifact_of, random_model


class Here(Executor):
    """Runs each call at once, in the caller's thread: no pool of threads, as far as edgekit can tell."""

    def __init__(self):
        self.given, self.results = [], []

    def submit(self, fn, /, *args, **kwargs):
        future = Future()
        try:
            result = fn(*args, **kwargs)
            future.set_result(result)
            if fn is not sees:  # jobs alone
                self.given.append(args)
                self.results.append(result)
        except Exception as error:
            future.set_exception(error)
        return future


CONFIG = ModelConfig(
    family="llama", layers=2, width=64, heads=4, kv_heads=2, head_dim=16, ffn=96, vocab=128, context=64,
    norm_eps=1e-5, rope_theta=10000.0, attention_scale=0.25, rotary_dim=16,
)  # fmt: skip
RECIPE = "affine:int4-sym-g32"


@pytest.fixture
def source(tmp_path):
    _remote.tensors.cache_clear()
    return edgekit.convert(artifact_of(random_model(CONFIG), tmp_path / "memory"), tmp_path / "source").path


def written(path):
    return [(path / name).read_bytes() for name in ("model.safetensors", "edgekit.manifest.json")]


def test_workers_read_a_source_that_is_given_by_its_path_and_write_the_target(source, tmp_path):
    expected = written(edgekit.quantize(source, RECIPE, to=tmp_path / "threads").path)
    pool, notes = Here(), []
    assert written(edgekit.quantize(source, RECIPE, to=tmp_path / "far", executor=pool, notes=notes).path) == expected
    assert all(isinstance(job, FarRows) for (job,) in pool.given)
    assert max(len(pickle.dumps(job)) for (job,) in pool.given) < 2000
    assert all(at > 0 and nbytes > 0 for written_pieces in pool.results for at, nbytes, _ in written_pieces)
    assert not any("wrote for them" in note for note in notes)


def test_workers_write_from_where_their_jobs_were_pickled(source, tmp_path):
    expected = written(edgekit.quantize(source, RECIPE, to=tmp_path / "threads").path)

    class Pickled(Here):
        def submit(self, fn, /, *args):
            return super().submit(*pickle.loads(pickle.dumps((fn, *args))))

    made = edgekit.quantize(source, RECIPE, to=tmp_path / "far", executor=Pickled())
    assert written(made.path) == expected


def test_workers_on_another_machine_sync_what_they_wrote(source, tmp_path, monkeypatch):
    expected = written(edgekit.quantize(source, RECIPE, to=tmp_path / "threads").path)
    share, sync, synced = AtomicFile.share, os.fsync, []
    monkeypatch.setattr(AtomicFile, "share", lambda self: attrs.evolve(share(self), host="elsewhere"))
    monkeypatch.setattr(
        os, "fsync", lambda descriptor: (synced.append(os.readlink(f"/proc/self/fd/{descriptor}")), sync(descriptor))
    )
    pool = Here()
    assert written(edgekit.quantize(source, RECIPE, to=tmp_path / "far", executor=pool).path) == expected
    assert sum(path.endswith(".partial") and "model.safetensors" in path for path in synced) > len(pool.given)


def missing(file, folder):
    return attrs.evolve(file, path=str(folder / "nothing"))


def another(file, folder):
    copy = folder / "copy"
    copy.write_bytes(b"what is on another machine" + bytes(file.at))
    return attrs.evolve(file, path=str(copy))


def no_file(file, folder):
    return attrs.evolve(file, path=str(folder))


@pytest.mark.parametrize("seen", [missing, another, no_file])
def test_workers_that_do_not_see_the_target_send_back_what_they_encoded(source, tmp_path, seen, monkeypatch):
    expected = written(edgekit.quantize(source, RECIPE, to=tmp_path / "threads").path)
    share = AtomicFile.share
    monkeypatch.setattr(AtomicFile, "share", lambda self: seen(share(self), tmp_path))
    pool, notes = Here(), []
    made = edgekit.quantize(source, RECIPE, to=tmp_path / "far", executor=pool, notes=notes)
    assert written(made.path) == expected
    assert all(isinstance(result, Sent) for result in pool.results)
    assert sum("wrote for them; share its directory" in note for note in notes) == 1
    assert made.run_notes["sent_back"] in notes
    if seen is another:
        assert (tmp_path / "copy").read_bytes().strip(b"\0") == b"what is on another machine"


def test_the_rows_of_an_opened_artifact_are_sent(source, tmp_path):
    expected = written(edgekit.quantize(source, RECIPE, to=tmp_path / "threads").path)
    pool = Here()
    made = edgekit.quantize(edgekit.open(source), RECIPE, to=tmp_path / "sent", executor=pool)
    assert written(made.path) == expected
    assert not any(isinstance(rows, _remote.RemoteRows) for (rows,) in pool.given)


def test_processes_by_their_address_write_the_same_bytes(source, tmp_path):
    expected = written(edgekit.quantize(source, RECIPE, to=tmp_path / "threads").path)
    with connected("processes:2") as pool:
        assert written(edgekit.quantize(source, RECIPE, to=tmp_path / "far", executor=pool).path) == expected


def refused(source, change, error, message):
    """What a worker says of a source that differs from the caller's."""
    known = _remote.Source.of(edgekit.open(source), "hf", ["reference"], laid_out)
    rows = _remote.RemoteRows(change(known), "model.norm.weight", 0, 1)
    with pytest.raises(error, match=message) as caught:
        rows.read(codec("float:F32"))
    again = pickle.loads(pickle.dumps(caught.value))  # as it comes back from another process
    assert str(again) == str(caught.value)


def test_a_worker_with_another_version_is_refused(source):
    def older(known):
        return attrs.evolve(known, versions=(("edgekit-core", "0.0.1"), ("edgekit-none", "1.0")))

    refused(
        source, older, PluginError, r"edgekit-core .* instead of 0\.0\.1, edgekit-none not installed instead of 1\.0"
    )


def test_a_worker_that_does_not_see_the_source_says_how_to_share_it(source):
    def elsewhere(known):
        return attrs.evolve(known, files=(("/nowhere/model.safetensors", 1, 1),))

    refused(source, elsewhere, MissingFileError, "cannot read /nowhere/model.safetensors .*share its directory")


def test_a_worker_that_sees_another_file_refuses_it(source):
    def other(known):
        return attrs.evolve(known, files=tuple((file, size + 1, time) for file, size, time in known.files))

    refused(source, other, ChangedSourceError, "sees another file than the caller")


def test_a_second_coordinator_of_one_target_is_refused(source, tmp_path):
    expected = written(edgekit.quantize(source, RECIPE, to=tmp_path / "threads").path)
    target, refusals = tmp_path / "far", []

    def meanwhile(done, total, name):
        if done == 3:
            with pytest.raises(LockedError) as caught:
                edgekit.quantize(source, RECIPE, to=target, executor=Here())
            refusals.append(caught.value.exit_code)

    assert written(edgekit.quantize(source, RECIPE, to=target, executor=Here(), progress=meanwhile).path) == expected
    assert refusals == [6]


@pytest.mark.parametrize("missing", ["_fallocate", "_renameat2", "_sync_file_range", "_fstatfs"])
def test_a_file_system_that_cannot_allot_or_exchange_gets_the_same_bytes(source, tmp_path, missing, monkeypatch):
    expected = written(edgekit.quantize(source, RECIPE, to=tmp_path / "threads").path)
    monkeypatch.setattr(_swap, missing, lambda: None)
    for _ in range(2):  # the second replaces the first
        assert written(edgekit.quantize(source, RECIPE, to=tmp_path / "far", executor=Here()).path) == expected


def test_an_error_of_the_work_is_raised_as_it_is(source, tmp_path):
    weights = source / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-4:] = b"\x00\x00\xc0\x7f"  # a NaN in float32
    weights.write_bytes(content)
    with pytest.raises(NonFiniteError):
        edgekit.quantize(source, RECIPE, to=tmp_path / "far", executor=Here())


def test_a_pool_that_loses_its_workers_is_named_and_the_next_run_writes_the_same_bytes(source, tmp_path):
    expected = written(edgekit.quantize(source, RECIPE, to=tmp_path / "threads").path)
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        worker = pool.submit(os.getpid).result()
        os.kill(worker, signal.SIGKILL)
        with pytest.raises(ResourceError, match=r"lost its workers .*run the same command again"):
            edgekit.quantize(source, RECIPE, to=tmp_path / "far", executor=pool)
    assert not (tmp_path / "far").exists()
    assert written(edgekit.quantize(source, RECIPE, to=tmp_path / "far").path) == expected


def test_an_interrupted_run_goes_on_in_the_file_that_was_shared(source, tmp_path):
    """The token lies behind the content still, and there is another in the next run."""
    expected = written(edgekit.quantize(source, RECIPE, to=tmp_path / "threads").path)

    def interrupt(done, total, name):
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        edgekit.quantize(source, RECIPE, to=tmp_path / "far", executor=Here(), progress=interrupt)
    assert (tmp_path / ".far.partial" / ".model.safetensors.partial").stat().st_size > 1 << 16
    pool, notes = Here(), []
    assert written(edgekit.quantize(source, RECIPE, to=tmp_path / "far", executor=pool, notes=notes).path) == expected
    assert not pool.given  # every row was written, and is not encoded again
    assert not any("started anew" in note for note in notes)


def test_what_a_pool_wrote_before_it_lost_its_workers_is_kept(source, tmp_path):
    expected = written(edgekit.quantize(source, RECIPE, to=tmp_path / "threads").path)

    class Short(Here):
        def submit(self, fn, /, *args):
            if len(self.given) == 5:
                raise BrokenExecutor("gone")
            return super().submit(fn, *args)

    with pytest.raises(ResourceError, match=r"what is complete is kept"):
        edgekit.quantize(source, RECIPE, to=tmp_path / "far", executor=Short())
    pool = Here()
    assert written(edgekit.quantize(source, RECIPE, to=tmp_path / "far", executor=pool).path) == expected
    whole = Here()
    edgekit.quantize(source, RECIPE, to=tmp_path / "anew", executor=whole)
    assert len(pool.given) == len(whole.given) - 5


@pytest.mark.parametrize(
    "address", ["", "threads", "processes:0", "processes:x", "dask", "dask:8786", "ray:x", "mpi:3"]
)
def test_an_unknown_address_is_refused(address):
    with pytest.raises(UsageError, match="dask://HOST:PORT"), connected(address):
        pass
