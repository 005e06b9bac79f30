"""Evaluation, calibration, sensitivity and fit on workers that open the model for themselves: the same bits."""

from __future__ import annotations

import os
import pickle
import signal
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context

import attrs
import numpy as np
import pytest
from click.testing import CliRunner

import edgekit
from edgekit.architectures.hf import config_from_hf
from edgekit.cli import cli
from edgekit.errors import ChangedSourceError, MissingFileError, PluginError, ResourceError, UsageError
from edgekit.evaluation import Baseline, _afar
from edgekit.pipeline import _remote
from edgekit.pipeline.rounding import read_calibration
from edgekit.testing.models import artifact_of, random_model, small_llama

TOKENS = np.random.RandomState(3).randint(0, 50, 4300)
ALLOW = ("affine:int2-asym-g32", "affine:int8-asym-g32")
MIXTURE = config_from_hf(
    {"model_type": "qwen3_moe", "hidden_size": 32, "intermediate_size": 48, "moe_intermediate_size": 32,
     "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "num_experts": 4,
     "num_experts_per_tok": 2, "vocab_size": 50, "max_position_embeddings": 64, "norm_topk_prob": True},
    "test",
)  # fmt: skip


class Here(Executor):
    """Runs each call at once as another process would: arguments and results are pickled, and read-only after it."""

    def __init__(self):
        self.sent = []

    def submit(self, fn, /, *args, **kwargs):
        future = Future()
        self.sent.append(len(data := pickle.dumps((fn, args, kwargs), protocol=5)))
        try:
            fn, args, kwargs = pickle.loads(data)
            buffers = []
            data = pickle.dumps(fn(*args, **kwargs), protocol=5, buffer_callback=buffers.append)
            future.set_result(pickle.loads(data, buffers=[bytes(buffer) for buffer in buffers]))
        except Exception as error:
            future.set_exception(error)
        return future


def written(config, folder):
    return edgekit.convert(artifact_of(random_model(config), folder / "memory"), folder / "model").path


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return written(small_llama(), tmp_path_factory.mktemp("source"))


@pytest.fixture(scope="module")
def small(source, tmp_path_factory):
    return edgekit.quantize(source, ALLOW[0], to=tmp_path_factory.mktemp("small") / "small").path


@pytest.fixture(scope="module")
def processes():
    """Two workers that import edgekit anew, as on another machine."""
    with ProcessPoolExecutor(2, get_context("spawn")) as pool:
        yield pool


@pytest.fixture(autouse=True)
def _opened_anew():
    _afar.model.cache_clear()


def test_an_evaluation_has_the_same_bits_from_any_number_of_workers(source, small, processes):
    alone = edgekit.evaluate(small, TOKENS, context=64)
    compared = edgekit.evaluate(small, TOKENS, baseline=source, context=64)
    pool = Here()
    for executor in (pool, processes):
        assert edgekit.evaluate(small, TOKENS, context=64, executor=executor) == alone
        assert edgekit.evaluate(small, TOKENS, baseline=source, context=64, executor=executor) == compared
    assert len(pool.sent) == 3 + 3 + 1  # batches, then the noise floor
    assert max(pool.sent) < 8 * 2048 + 4000  # the tokens of a batch, the paths and the versions


def test_a_baseline_by_its_path_is_compared_with(source, small):
    base = Baseline(source)
    expected = edgekit.evaluate(small, TOKENS, baseline=source, context=64)
    assert edgekit.evaluate(small, TOKENS, baseline=base, context=64, executor=Here()) == expected


def test_progress_comes_from_the_text_s_order(source):
    lines = []
    edgekit.evaluate(
        source, TOKENS, context=64, executor=Here(), progress=lambda done, total, name: lines.append((done, total))
    )
    assert lines == [(0, 67), (32, 67), (64, 67), (67, 67)]


@pytest.mark.parametrize("config", [small_llama(), MIXTURE], ids=["dense", "experts"])
def test_a_calibration_has_the_same_bits_from_any_number_of_workers(config, processes, tmp_path):
    source = written(config, tmp_path)
    expected = edgekit.calibrate(source, TOKENS, context=64)
    for number, executor in enumerate((Here(), processes)):
        path = tmp_path / f"{number}.safetensors"
        assert edgekit.calibrate(source, TOKENS, context=64, executor=executor).digest == expected.digest
        assert edgekit.calibrate(source, TOKENS, to=path, context=64, executor=executor).digest == expected.digest


def test_an_interrupted_calibration_goes_on_with_workers(source, tmp_path):
    whole = edgekit.calibrate(source, TOKENS, to=tmp_path / "whole.safetensors", context=64)
    path = tmp_path / "cut.safetensors"
    with pytest.raises(ZeroDivisionError):
        edgekit.calibrate(source, TOKENS, to=path, context=64, progress=lambda done, total, what: 1 / (1 - done))
    pool = Here()
    assert edgekit.calibrate(source, TOKENS, to=path, context=64, executor=pool).digest == whole.digest
    assert path.read_bytes() == (tmp_path / "whole.safetensors").read_bytes()


@pytest.mark.parametrize("rounding", ["nearest", "feedback"])
def test_sensitivities_have_the_same_bits_from_any_number_of_workers(source, processes, tmp_path, rounding):
    tokens, options = TOKENS[:900], {"context": 32, "allow": ALLOW, "rounding": rounding}
    expected = edgekit.sensitivity(source, tokens, **options).to_dict()
    pool = Here()
    assert edgekit.sensitivity(source, tokens, executor=pool, **options).to_dict() == expected
    file = tmp_path / "values.json"
    assert edgekit.sensitivity(source, tokens, to=file, executor=processes, **options).to_dict() == expected
    read_calibration(tmp_path / "values.json.calibration.safetensors")


def test_recorded_sensitivities_are_not_measured_again(source, tmp_path):
    tokens, options = TOKENS[:900], {"context": 32, "allow": ALLOW, "rounding": "nearest", "to": tmp_path / "v.json"}
    expected = edgekit.sensitivity(source, tokens, **(options | {"to": None})).to_dict()
    with pytest.raises(ZeroDivisionError):  # after five values: in the middle of a matrix
        edgekit.sensitivity(source, tokens, progress=lambda d, t, what: 1 / (5 - d if "int" in what else 1), **options)
    pool = Here()
    assert edgekit.sensitivity(source, tokens, executor=pool, **options).to_dict() == expected
    matrices = len(expected["measured"]) // len(ALLOW)
    batches = 2  # layers of the calibration, whose text is one batch
    assert len(pool.sent) == batches + matrices - 2


def content(folder):
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir()) if file.is_file()}


def test_a_fit_has_the_same_bytes_from_any_number_of_workers(source, processes, tmp_path):
    options = {"allow": ALLOW, "bits": 5.5, "context": 32, "rounding": "nearest"}
    edgekit.fit(source, TOKENS[:600], to=tmp_path / "a", **options)
    edgekit.fit(source, TOKENS[:600], to=tmp_path / "b", executor=processes, **options)
    assert content(tmp_path / "a") == content(tmp_path / "b")
    searched = [(tmp_path / f"{name}.fit" / f"{name}.search.json").read_bytes() for name in "ab"]
    assert searched[0] == searched[1]


def test_threads_are_what_is_used_anyway(source):
    opened = edgekit.open(source)
    expected = edgekit.evaluate(opened, TOKENS, context=64)
    with ThreadPoolExecutor(2) as pool:
        assert edgekit.evaluate(opened, TOKENS, context=64, executor=pool) == expected
        edgekit.calibrate(opened, TOKENS[:100], context=32, executor=pool)


@pytest.mark.parametrize("verb", ["evaluate", "calibrate", "sensitivity", "fit"])
def test_an_opened_artifact_is_refused(source, verb, tmp_path):
    options = {"to": tmp_path / "a", "bits": 5.5} if verb == "fit" else {}
    with pytest.raises(UsageError, match=r"^.*model: with an executor the workers open .*; give its path instead of"):
        getattr(edgekit, verb)(edgekit.open(source), TOKENS, context=32, executor=Here(), **options)


def test_a_baseline_that_is_an_opened_artifact_is_refused(source):
    for baseline in (edgekit.open(source), Baseline(edgekit.open(source))):
        with pytest.raises(UsageError, match="give its path instead of an opened artifact"):
            edgekit.evaluate(source, TOKENS, baseline=baseline, context=32, executor=Here())


def test_a_calibration_in_memory_is_refused(source):
    calibration = edgekit.calibrate(source, TOKENS[:900], context=32, holdout=0.5)
    with pytest.raises(UsageError, match=r"the workers read the calibration themselves; write it to a file"):
        edgekit.sensitivity(source, allow=ALLOW, calibration=calibration, executor=Here())


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"versions": (("edgekit-core", "0.0.1"),)}, PluginError, r"has edgekit-core .* instead of 0\.0\.1; install"),
        ({"files": (("/nowhere/model", 1, 1),)}, MissingFileError, "cannot read /nowhere/model .*share its directory"),
        ({"files": ((__file__, 1, 1),)}, ChangedSourceError, "sees another file than the caller"),
    ],
)
def test_what_a_worker_refuses(source, monkeypatch, change, error, message):
    known = _remote.Source.of
    monkeypatch.setattr(_remote.Source, "of", lambda *args: attrs.evolve(known(*args), **change))
    for measure in (edgekit.evaluate, edgekit.calibrate, edgekit.sensitivity):
        with pytest.raises(error, match=message):
            measure(source, TOKENS[:900], context=32, executor=Here())


@pytest.mark.parametrize("verb", ["evaluate", "calibrate", "sensitivity"])
def test_a_pool_that_loses_its_workers_is_named(source, verb):
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        os.kill(pool.submit(os.getpid).result(), signal.SIGKILL)
        with pytest.raises(ResourceError, match="the executor lost its workers"):
            getattr(edgekit, verb)(source, TOKENS[:900], context=32, executor=pool)


class ClosedClientError(Exception):
    """As Dask's, whose client closes when the scheduler is gone: nothing can be waited for or cancelled."""


ClosedClientError.__module__ = "distributed.client"


class Gone(Executor):
    def submit(self, fn, /, *args, **kwargs):
        future = Future()
        future.cancel = future.result = lambda: (_ for _ in ()).throw(ClosedClientError("Client is closed"))
        return future


def test_a_cluster_that_is_gone_is_named(source, tmp_path):
    lost = r"^the executor lost its workers \(ClosedClientError: Client is closed\); run the same command again"
    with pytest.raises(ResourceError, match=lost):
        edgekit.quantize(source, ALLOW[0], to=tmp_path / "a", executor=Gone())
    with pytest.raises(ResourceError, match=lost):
        edgekit.evaluate(source, TOKENS, context=64, executor=Gone())
    assert not (tmp_path / "a").exists()


def test_the_commands_take_an_address(tmp_path):
    from edgekit import sample

    text = tmp_path / "text.txt"
    text.write_text(sample.heldout_text()[:600])
    common = ["--context", "32", "--executor", "processes:1"]
    for command in (
        ["eval", str(sample.path()), str(text), "--baseline", str(sample.path())],
        ["calibrate", str(sample.path()), "--text", str(text), "--to", str(tmp_path / "c.safetensors")],
    ):
        ran = CliRunner().invoke(cli, [*command, *common])
        assert ran.exit_code == 0, ran.output
