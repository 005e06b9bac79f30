"""A real cluster of each engine on this machine: equal bytes, and a worker that is killed under way."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import attrs
import numpy as np
import pytest

import edgekit
from edgekit import sample
from edgekit.errors import ResourceError
from edgekit.files.atomic import AtomicFile
from edgekit.pipeline.executors import RayExecutor, connected

RECIPE = "Q4_K_M"


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def source(write_llama, tmp_path_factory):
    """A random Llama of ten million weights: several chunks a tensor."""
    return write_llama(
        tmp_path_factory.mktemp("source") / "model.gguf",
        layers=4,
        width=512,
        ffn=1536,
        heads=8,
        kv_heads=4,
        vocab=8192,
        context=256,
    )


@pytest.fixture(scope="module")
def expected(source, tmp_path_factory):
    return sha256(edgekit.quantize(source, RECIPE, to=tmp_path_factory.mktemp("here") / "model.gguf").path)


@pytest.fixture
def dask():
    """A scheduler and two worker processes."""
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None, host="127.0.0.1"
    ) as cluster:
        yield cluster


@pytest.fixture
def ray():
    """A cluster on this machine."""
    engine = pytest.importorskip("ray")
    engine.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error")
    yield engine
    engine.shutdown()


class Killing:
    """A progress function that has a worker killed once the first tensors are written."""

    def __init__(self, pids):
        self.pids, self.killed = pids, []

    def __call__(self, done, total, name):
        if done >= 3 and not self.killed:
            self.killed.append(victim := self.pids()[0])
            os.kill(victim, signal.SIGKILL)


def test_dask_writes_the_same_bytes_and_repeats_what_a_killed_worker_had(dask, source, expected, tmp_path):
    address = dask.scheduler_address.replace("tcp:", "dask:")
    with connected(address) as workers:
        made = edgekit.quantize(source, RECIPE, to=tmp_path / "a.gguf", executor=workers)
        assert sha256(made.path) == expected
        assert "sent_back" not in made.run_notes
        killing = Killing(lambda: [worker.pid for worker in dask.workers.values()])
        made = edgekit.quantize(source, RECIPE, to=tmp_path / "b.gguf", executor=workers, progress=killing)
    assert killing.killed
    assert sha256(made.path) == expected


def test_dask_workers_that_do_not_see_the_target_send_back_what_they_encoded(
    dask, source, expected, tmp_path, monkeypatch
):
    """The path that travels is another machine's; a worker is killed as well."""
    share = AtomicFile.share
    monkeypatch.setattr(AtomicFile, "share", lambda self: attrs.evolve(share(self), path="/nowhere/model.partial"))
    killing = Killing(lambda: [worker.pid for worker in dask.workers.values()])
    with connected(dask.scheduler_address.replace("tcp:", "dask:")) as workers:
        made = edgekit.quantize(source, RECIPE, to=tmp_path / "a.gguf", executor=workers, progress=killing)
    assert killing.killed
    assert sha256(made.path) == expected
    assert "wrote for them" in made.run_notes["sent_back"]


TOKENS = np.random.RandomState(3).randint(3, 8000, 5000)
MEASURED = {"context": 128, "allow": ("Q4_0", "Q8_0"), "rounding": "nearest"}


@pytest.fixture(scope="module")
def little(write_llama, tmp_path_factory):
    """A model that is small enough to measure each of its matrices several times."""
    folder = tmp_path_factory.mktemp("little")
    return write_llama(
        folder / "model.gguf", layers=2, width=256, ffn=512, heads=4, kv_heads=4, vocab=8192, context=256
    )


@pytest.fixture(scope="module")
def measured(little):
    """What this process measures."""
    return (
        edgekit.evaluate(little, TOKENS, baseline=little, context=128),
        edgekit.calibrate(little, TOKENS, context=128).digest,
        edgekit.sensitivity(little, TOKENS[:1500], **MEASURED).to_dict(),
    )


def check_measured(little, measured, executor, folder, progress=None):
    """The workers measure the same; `progress` is called by the last."""
    evaluation, digest, sensitivity = measured
    assert edgekit.evaluate(little, TOKENS, baseline=little, context=128, executor=executor) == evaluation
    assert edgekit.calibrate(little, TOKENS, context=128, executor=executor).digest == digest
    made = edgekit.sensitivity(
        little, TOKENS[:1500], to=folder / "values.json", executor=executor, progress=progress, **MEASURED
    )
    assert made.to_dict() == sensitivity


def test_dask_measures_the_same_bits_also_after_a_killed_worker(dask, little, measured, tmp_path):
    killing = Killing(lambda: [worker.pid for worker in dask.workers.values()])
    with connected(dask.scheduler_address.replace("tcp:", "dask:")) as workers:
        check_measured(little, measured, workers, tmp_path, killing)
    assert killing.killed


def test_ray_measures_the_same_bits_also_after_a_killed_worker(ray, little, measured, tmp_path):
    workers = RayExecutor()
    killing = Killing(lambda: [workers.submit(os.getpid).result()])
    check_measured(little, measured, workers, tmp_path, killing)
    assert killing.killed


def test_a_cluster_that_disappears_while_it_measures_is_named(little, tmp_path):
    distributed = pytest.importorskip("distributed")
    cluster = distributed.LocalCluster(
        n_workers=1, threads_per_worker=1, processes=True, dashboard_address=None, host="127.0.0.1"
    )

    def stop(done, total, name):
        if done == 1 and not closing.ident:
            closing.start()
            time.sleep(1)

    closing = threading.Thread(target=cluster.close)
    address = cluster.scheduler_address.replace("tcp:", "dask:")
    with connected(address) as workers, pytest.raises(ResourceError, match="lost its workers"):
        edgekit.sensitivity(little, TOKENS[:1500], executor=workers, progress=stop, **MEASURED)
    closing.join()


def test_the_command_line_takes_a_scheduler_s_address(dask, source, expected, tmp_path):
    address = dask.scheduler_address.replace("tcp:", "dask:")
    command = ["quantize", str(source), RECIPE, "--to", str(tmp_path / "a.gguf"), "--executor", address]
    subprocess.run([sys.executable, "-m", "edgekit", *command], check=True)
    assert sha256(tmp_path / "a.gguf") == expected


def test_a_cluster_that_disappears_is_named_and_the_next_run_goes_on(source, expected, tmp_path):
    distributed = pytest.importorskip("distributed")
    cluster = distributed.LocalCluster(
        n_workers=1, threads_per_worker=1, processes=True, dashboard_address=None, host="127.0.0.1"
    )

    def stop(done, total, name):
        if done == 3:
            closing.start()
            time.sleep(1)

    closing = threading.Thread(target=cluster.close)
    address = cluster.scheduler_address.replace("tcp:", "dask:")
    with connected(address) as workers, pytest.raises(ResourceError, match="lost its workers"):
        edgekit.quantize(source, RECIPE, to=tmp_path / "a.gguf", executor=workers, progress=stop)
    closing.join()
    assert not (tmp_path / "a.gguf").exists()
    assert sha256(edgekit.quantize(source, RECIPE, to=tmp_path / "a.gguf").path) == expected


def test_ray_writes_the_same_bytes_and_repeats_what_a_killed_worker_had(ray, source, expected, tmp_path):
    made = edgekit.quantize(source, RECIPE, to=tmp_path / "a.gguf", executor=RayExecutor())
    assert sha256(made.path) == expected
    assert "sent_back" not in made.run_notes
    workers = RayExecutor()
    killing = Killing(lambda: [workers.submit(os.getpid).result()])
    made = edgekit.quantize(source, RECIPE, to=tmp_path / "b.gguf", executor=workers, progress=killing)
    assert killing.killed
    assert sha256(made.path) == expected


def mpi(*words: str) -> list[str]:
    launcher = Path(sys.executable).with_name("mpiexec")
    if not launcher.exists():
        pytest.skip("mpiexec of the package mpich is not installed")
    return [str(launcher), "-n", "3", sys.executable, "-m", "mpi4py.futures", *words]


def test_mpi_writes_the_same_bytes_also_after_a_killed_rank(source, expected, tmp_path):
    """A lost rank ends an MPI job; the same command goes on where it was."""
    pytest.importorskip("mpi4py")
    target = tmp_path / "a.gguf"
    command = mpi("-m", "edgekit", "quantize", str(source), RECIPE, "--to", str(target), "--executor", "mpi:")
    running = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    ranks: list[int] = []
    while len(ranks) < 3 and running.poll() is None:
        listed = subprocess.run(["pgrep", "-f", str(target)], capture_output=True, text=True, check=False).stdout
        ranks = [int(pid) for pid in listed.split() if int(pid) != running.pid]
    time.sleep(0.5)
    if running.poll() is None:
        os.kill(max(ranks), signal.SIGKILL)
    assert running.wait(60) != 0
    assert not target.exists()
    subprocess.run(command, check=True, timeout=120)
    assert sha256(target) == expected


def test_mpi_measures_the_same_bits(little, tmp_path):
    """The text has to be one here: a process of its own runs the command, and GGUF models of the tests have no text."""
    pytest.importorskip("mpi4py")
    text, files = tmp_path / "text.txt", [tmp_path / f"{name}.json" for name in ("ranks", "here")]
    text.write_text(sample.heldout_text()[:4000])
    common = [str(sample.path()), "--text", str(text), "--context", "64", "--rounding", "nearest", "--allow"]
    common += ["affine:int4-sym-g32,affine:int8-sym-g32", "--to"]
    subprocess.run(
        mpi("-m", "edgekit", "sensitivity", *common, str(files[0]), "--executor", "mpi:"), check=True, timeout=300
    )
    subprocess.run([sys.executable, "-m", "edgekit", "sensitivity", *common, str(files[1])], check=True, timeout=300)
    assert files[0].read_bytes() == files[1].read_bytes()
    said = subprocess.run(
        mpi("-m", "edgekit", "eval", str(sample.path()), str(text), "--context", "64", "--json", "--executor", "mpi:"),
        check=True, timeout=300, capture_output=True, text=True,
    )  # fmt: skip
    here = edgekit.evaluate(sample.path(), text.read_text(), context=64)
    assert json.loads(said.stdout) == json.loads(json.dumps(here.to_dict()))
