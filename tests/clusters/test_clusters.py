"""A real cluster of each engine on this machine: equal bytes, and a worker that is killed under way."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import edgekit
from edgekit.errors import ResourceError
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
        killing = Killing(lambda: [worker.pid for worker in dask.workers.values()])
        made = edgekit.quantize(source, RECIPE, to=tmp_path / "b.gguf", executor=workers, progress=killing)
    assert killing.killed
    assert sha256(made.path) == expected


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
