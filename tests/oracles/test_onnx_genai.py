"""The runtime `onnxruntime-genai`: the numpy pass's tokens, its states, and configurations that it does not pass on.

Run against onnxruntime-genai 0.18.0.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from make_forward_vectors import CONFIGS

import edgekit
from edgekit import sample
from edgekit.architectures.hf import config_from_hf
from edgekit.errors import (
    ContextOverflowError,
    InvalidFileError,
    ResourceError,
    UnsupportedModelError,
    UsageError,
)
from edgekit.testing.models import artifact_of, random_model

pytest.importorskip("onnxruntime_genai")
NAME = "onnxruntime-genai"
PROMPT = "Once upon a time"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample model in float32."""
    return edgekit.quantize(sample.path(), "float:F32", to=tmp_path_factory.mktemp("m") / "m", format="onnx").path


@pytest.fixture
def runtime(model):
    with edgekit.load(model, NAME) as opened:
        yield opened


def test_text_and_logits_are_the_numpy_pass_s(model, runtime):
    with edgekit.load(model, "numpy") as reference:
        assert runtime.generate(PROMPT, max_tokens=40) == reference.generate(PROMPT, max_tokens=40)
        drawn = {"max_tokens": 30, "temperature": 1.0, "seed": 4}
        assert runtime.generate(PROMPT, **drawn) == reference.generate(PROMPT, **drawn)
        assert runtime.generate(PROMPT, regex="[a-f]{8}", max_tokens=20).isalpha()
        ids = np.arange(40).reshape(2, 20)
        expected = reference.logits(ids)
        assert np.abs(runtime.logits(ids) - expected).max() < 1e-4 * expected.std()


@pytest.mark.parametrize("name", CONFIGS)
def test_families(name, tmp_path):
    """The prompt at once, and the rest token by token; longer sequences than some rotations were trained for."""
    config = config_from_hf(CONFIGS[name], "test")
    made = edgekit.convert(artifact_of(random_model(config), tmp_path / "memory"), tmp_path / "m", format="onnx")
    if not (made.path / "genai_config.json").exists():
        pytest.skip("GenAI keeps keys and values alone")
    ids = np.arange(min(config.context, 40)) % config.vocab
    with edgekit.load(made, NAME) as runtime, edgekit.load(made, "numpy") as reference:
        expected = reference.logits(ids)
        assert np.abs(runtime.logits(ids) - expected).max() < 1e-4 * expected.std()
        found = list(runtime.tokens(ids[:5], max_tokens=len(ids) - 5))
        assert found == list(reference.tokens(ids[:5], max_tokens=len(ids) - 5))


def test_offsets_of_k_quants(tmp_path):
    file = edgekit.quantize(sample.path(), "Q4_K_M", to=tmp_path / "m.gguf", format="gguf")
    made = edgekit.convert(file, tmp_path / "m", format="onnx")
    assert made.model.tensors["blk.0.attn_q.weight"].precision.name == "onnx:offset4-g32"
    with edgekit.load(made, NAME) as runtime, edgekit.load(made, "onnxruntime") as other:
        ids = other.prompt_ids(PROMPT)
        assert list(runtime.tokens(ids, max_tokens=24)) == list(other.tokens(ids, max_tokens=24))


def test_only_what_is_new_is_computed(model, runtime):
    """A prompt that differs from the last one in its end, one that is shorter, the same again, and another one."""
    with edgekit.load(model, "numpy") as reference:
        ids = runtime.prompt_ids(PROMPT)
        counts = []
        step = runtime._graph.step
        runtime._graph.step = lambda new: counts.append(new.shape[1]) or step(new)
        for prompt in (ids, [*ids, 7, 8], [*ids, 7, 9, 10], ids[:3], ids[:3], [5, *ids]):
            expected = list(reference.tokens(prompt, max_tokens=1))
            assert list(runtime.tokens(prompt, max_tokens=1)) == expected
    assert counts == [len(ids), 2, 2, 1, 1, len(ids) + 1]


def test_a_generation_goes_on_after_an_end_token(model, runtime):
    (end,) = runtime.tokenizer().end_ids
    prompt = [*runtime.prompt_ids(PROMPT), end]
    with edgekit.load(model, "numpy") as reference:
        assert list(runtime.tokens(prompt, max_tokens=5)) == list(reference.tokens(prompt, max_tokens=5))


def test_two_generations_in_turn(runtime):
    alone = [list(runtime.tokens(prompt, max_tokens=8)) for prompt in ([1, 5, 9], [1, 6])]
    one, other = runtime.tokens([1, 5, 9], max_tokens=8), runtime.tokens([1, 6], max_tokens=8)
    together = list(zip(one, other, strict=True))
    assert [list(each) for each in zip(*together, strict=True)] == alone


def test_options_and_limits(model, runtime):
    with edgekit.load(model, NAME, device="cpu", threads=1, context=20) as small:
        assert (small.description()["device"], small.context) == ("CPU", 20)
        with pytest.raises(ContextOverflowError, match="do not fit the model's context of 20"):
            small.logits(np.zeros(21, np.int64))
        assert len(list(small.tokens([1, 2], max_tokens=18))) == 18
    for options, message in [
        ({"device": "abacus"}, "device 'abacus'; choose auto, cpu, cuda"),
        ({"threads": -1}, "threads -1; choose 0"),
        ({"context": 0}, "context 0; choose 1 or more"),
    ]:
        with pytest.raises(UsageError, match=message):
            edgekit.load(model, NAME, **options)
    with pytest.raises(ResourceError, match=r"ONNX Runtime GenAI cannot run it on QNN .*; choose device=cpu"):
        edgekit.load(model, NAME, device="qnn")
    with pytest.raises(UsageError, match="the vocabulary has"):
        runtime.logits([10**6])
    runtime.close()
    with pytest.raises(UsageError, match="the runtime is closed; open the model again"):
        runtime.logits([1])


def _changed(model: Path, to: Path, change) -> Path:
    shutil.copytree(model, to)
    given = json.loads((to / "genai_config.json").read_text())
    change(given)
    (to / "genai_config.json").write_text(json.dumps(given))
    return to


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda c: c.clear(), InvalidFileError, "it has no model with a decoder"),
        (lambda c: c["model"].update(vocab_size=-1), InvalidFileError, "vocab_size is -1; it must be a positive"),
        (lambda c: c["model"].update(context_length="9"), InvalidFileError, "context_length is '9'; it must be a pos"),
        (lambda c: c["model"].update(vision={"filename": "v.onnx"}), UnsupportedModelError, "it has a vision; edgekit"),
        (lambda c: c["model"]["decoder"].update(filename="../m/model.onnx"), InvalidFileError, r"its graph is '\.\./m"),
        (lambda c: c["model"]["decoder"].update(session_options=[]), InvalidFileError, "session_options is"),
        (
            lambda c: c["model"]["decoder"]["session_options"].update(custom_ops_library="/tmp/x.so"),
            InvalidFileError,
            "session_options has 'custom_ops_library', which may name a file or a library; remove it",
        ),
    ],
)
def test_configurations_of_others_are_checked(change, error, message, model, tmp_path):
    with pytest.raises(error, match=message):
        edgekit.load(_changed(model, tmp_path / "c", change), NAME)


def test_providers_of_a_configuration_are_not_used(model, tmp_path):
    """Their options can name libraries."""

    def change(given):
        given["model"]["decoder"]["session_options"]["provider_options"] = [{"qnn": {"backend_path": "/tmp/x.so"}}]

    with edgekit.load(_changed(model, tmp_path / "c", change), NAME) as runtime:
        assert runtime.description()["device"] == "CPU"


def test_what_genai_cannot_run(model, tmp_path):
    with pytest.raises(UsageError, match=r"no directory with a genai_config\.json; write one with format onnx"):
        edgekit.load(model / "model.onnx", NAME)
    hybrid = shutil.copytree(model, tmp_path / "hybrid")  # test_onnx_graph.py says which have no configuration
    (hybrid / "genai_config.json").unlink()
    with pytest.raises(UsageError, match="or run it with the runtime onnxruntime"):
        edgekit.load(hybrid, NAME)


@pytest.mark.parametrize("name", ["onnxruntime", NAME])
def test_no_identifier_of_the_device_is_written(name, model, tmp_path):
    """Both libraries write one, and a database of events, below the home directory unless their telemetry is off."""
    code = (
        "import sys, edgekit\nwith edgekit.load(sys.argv[1], sys.argv[2]) as m: print(m.generate('Once', max_tokens=3))"
    )
    environment = {key: value for key, value in os.environ.items() if key != "ORT_DISABLE_TELEMETRY"}
    environment |= {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    subprocess.run([sys.executable, "-c", code, str(model), name], env=environment, check=True, capture_output=True)
    assert [path for path in tmp_path.rglob("*") if path.is_file() and "Microsoft" in path.parts] == []
