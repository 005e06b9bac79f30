"""The runtime ``openvino``: the kit's checks, text against the numpy forward pass, GenAI, devices, errors.

Run against openvino and openvino-genai 2026.4.1 on the CPU.
"""

import importlib.util
import json
import sys
from functools import partial
from pathlib import Path

import attrs
import numpy as np
import openvino as ov
import pytest
from click.testing import CliRunner

import edgekit
from edgekit import sample
from edgekit.architectures.hf import config_from_hf
from edgekit.cli import cli
from edgekit.errors import MemoryShortageError, UsageError
from edgekit.testing import runtime_checks
from edgekit.testing._tokenizers import bpe
from edgekit.testing.models import artifact_of, random_model
from edgekit_openvino.format import XML
from edgekit_openvino.pipeline import Pipeline
from edgekit_openvino.runtime import open_runtime
from edgekit_openvino.tokenizer import MODELS, Converted, tokenizer_models

_SPEC = importlib.util.spec_from_file_location("openvino_cases", Path(__file__).with_name("openvino_cases.py"))
cases = importlib.util.module_from_spec(_SPEC)
sys.modules[_SPEC.name] = cases
_SPEC.loader.exec_module(cases)

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
PROMPT = "Once upon a time"


@runtime_checks(partial(open_runtime, exact=True), formats=("openvino",), profile="quick")
def test_kit(check):
    check()


@pytest.fixture(scope="module", params=["INT8_ASYM", "INT4_SYM_G32"])
def small(request, tmp_path_factory):
    """The sample model, compressed."""
    return edgekit.quantize(sample.path(), request.param, to=tmp_path_factory.mktemp("ir") / "ir", format="openvino")


def load(artifact, **options):
    return edgekit.load(artifact, "openvino", **{"exact": True, "threads": 1, **options})


def test_genai_generates_the_text_of_the_numpy_forward_pass(small):
    with edgekit.load(small, "numpy") as model:
        expected = model.generate(PROMPT, max_tokens=40)
    with load(small) as ours:
        assert ours.generate(PROMPT, max_tokens=40) == expected
        assert ours._pipeline is not None
    with load(small, genai=False) as ours:
        assert ours.generate(PROMPT, max_tokens=40) == expected
        assert ours._pipeline is None


def test_llm_pipeline_on_its_own_generates_the_same_text(small):
    """GenAI's own tokenizer, end token and text: what a user of the directory without edgekit gets."""
    import openvino_genai

    pipeline = openvino_genai.LLMPipeline(str(small.path), "CPU", **cases.EXACT)
    with edgekit.load(small, "numpy") as model:
        assert pipeline.generate(PROMPT, max_new_tokens=40, do_sample=False) == model.generate(PROMPT, max_tokens=40)


def test_sampling_is_the_house_s(small):
    options = {"max_tokens": 24, "temperature": 0.8, "top_p": 0.9, "seed": 7}
    with edgekit.load(small, "numpy") as model, load(small) as ours:
        assert ours.generate(PROMPT, **options) == model.generate(PROMPT, **options)


def test_embeddings_are_those_of_the_numpy_forward_pass(small):
    with edgekit.load(small, "numpy") as model, load(small) as ours:
        np.testing.assert_allclose(ours.embed(PROMPT), model.embed(PROMPT), atol=1e-5)


def test_stories(stories, tmp_path):
    artifact = edgekit.quantize(stories, "INT8_ASYM", to=tmp_path / "ir", format="openvino")
    with edgekit.load(artifact, "numpy") as model, load(artifact) as ours:
        assert ours.generate(PROMPT, max_tokens=60) == model.generate(PROMPT, max_tokens=60)


# What GenAI makes of graphs that its paged attention cannot compute.

HARD = ["mistral-window", "qwen2-window", "gemma2", "gemma3", "phi3"]


def random_ir(name, folder):
    tokenizer = bpe()
    config = attrs.evolve(config_from_hf(cases.vectors.CONFIGS[name], "test"), vocab=len(tokenizer.tokens))
    return edgekit.convert(
        artifact_of(random_model(config), folder / "source", tokenizer), folder / "ir", format="openvino"
    )


@pytest.mark.parametrize("name", HARD)
def test_windows_and_soft_caps_through_genai(name, tmp_path):
    artifact = random_ir(name, tmp_path)
    prompt = cases.TOKENS[:20].tolist()
    with edgekit.load(artifact, "numpy") as model:
        expected = list(model.tokens(prompt, max_tokens=24))
    assert list(Pipeline(artifact.path, "CPU", cases.EXACT).greedy(prompt, 24)) == expected


def test_paged_attention_ignores_a_window_it_does_not_recognise(tmp_path, monkeypatch):
    """openvino-genai 2026.4.1: why attention is written out where there is a window."""
    from edgekit_openvino import ops

    monkeypatch.setattr(ops, "_beyond_fused", lambda arguments: False)
    artifact = random_ir("mistral-window", tmp_path)
    prompt = cases.TOKENS[:20].tolist()
    with edgekit.load(artifact, "numpy") as model:
        expected = list(model.tokens(prompt, max_tokens=8))
    assert (
        list(Pipeline(artifact.path, "CPU", cases.EXACT | {"ATTENTION_BACKEND": "SDPA"}).greedy(prompt, 8)) == expected
    )
    assert list(Pipeline(artifact.path, "CPU", cases.EXACT).greedy(prompt, 8)) != expected


@pytest.mark.parametrize("name", ["phi3-longrope-short", "phi3-longrope-long"])
def test_a_sequence_that_outgrows_its_turns_starts_over(name, tmp_path):
    artifact = random_ir(name, tmp_path)
    config = artifact.model.config
    prompt = cases.TOKENS[: config.rope_scaling.original_context - 4].tolist()
    with edgekit.load(artifact, "numpy") as model, load(artifact) as ours:
        assert list(ours.tokens(prompt, max_tokens=12)) == list(model.tokens(prompt, max_tokens=12))
        assert "last" in ours._compiled  # edgekit's own steps, not GenAI's


def test_an_answer_that_is_given_up_ends_the_computation(small):
    with load(small) as ours:
        text = ours.stream(PROMPT, max_tokens=200)
        first = next(text)
        text.close()
        assert ours.generate(PROMPT, max_tokens=40).startswith(first)


# Any graph.


@pytest.fixture
def sums(tmp_path):
    """A graph of two inputs and no model family."""
    op = ov.opset13
    x, y = op.parameter([-1, 3], np.float32, name="x"), op.parameter([3], np.float32, name="y")
    for node, name in ((x, "x"), (y, "y")):
        node.get_output_tensor(0).set_names({name})
    result = op.add(x, y)
    result.get_output_tensor(0).set_names({"sum"})
    ov.save_model(ov.Model([result], [x, y]), tmp_path / "sums.xml", compress_to_fp16=False)
    return edgekit.open(tmp_path / "sums.xml")


def test_infer(sums):
    x, y = np.arange(6, dtype=np.float32).reshape(2, 3), np.ones(3, np.float32)
    with load(sums) as model:
        assert model.inputs == {"x": ("f32", (None, 3)), "y": ("f32", (3,))}
        np.testing.assert_array_equal(model.infer({"x": x, "y": y})["sum"], x + 1)


def test_many_at_a_time_are_what_each_is_alone(sums):
    rng = np.random.default_rng(0)
    batches = [{"x": rng.standard_normal((n, 3), np.float32), "y": np.ones(3, np.float32)} for n in range(1, 20)]
    with load(sums, hint="throughput") as model:
        for found, inputs in zip(model.infer_many(batches, jobs=3), batches, strict=True):
            np.testing.assert_array_equal(found["sum"], inputs["x"] + 1)


def test_many_prompts_at_a_time_have_states_of_their_own(small):
    prompts = [np.arange(3, 3 + n)[None] for n in (4, 9, 2, 7)]

    def inputs(ids):
        n = ids.shape[1]
        return {
            "input_ids": ids,
            "attention_mask": np.ones((1, n), np.int64),
            "position_ids": np.arange(n)[None],
            "beam_idx": np.zeros(1, np.int32),
        }

    with load(small) as model:
        for found, ids in zip(model.infer_many([inputs(ids) for ids in prompts], jobs=2), prompts, strict=True):
            np.testing.assert_allclose(found["logits"], model.logits(ids), atol=1e-4)


INPUTS = {
    "it has no input 'z'; it has x, y": {"x": np.ones((1, 3), np.float32), "z": np.ones(3, np.float32)},
    "input 'y' is missing; the inputs are x, y": {"x": np.ones((1, 3), np.float32)},
    "input 'x' is float64, the graph takes f32; convert it": {"x": np.ones((1, 3)), "y": np.ones(3, np.float32)},
    "input 'x' has shape [1, 4], the graph takes [any, 3]": {"x": np.ones((1, 4), np.float32), "y": np.ones(3, np.float32)},
    "input 'y' has shape [1, 3], the graph takes [3]": {"x": np.ones((1, 3), np.float32), "y": np.ones((1, 3), np.float32)},
}  # fmt: skip


@pytest.mark.parametrize(("message", "inputs"), INPUTS.items(), ids=[m.partition(";")[0] for m in INPUTS])
def test_inputs_that_the_graph_does_not_take(message, inputs, sums):
    with load(sums) as model, pytest.raises(UsageError) as caught:
        model.infer(inputs)
    assert str(caught.value) == f"{sums.path}: {message}"


def test_a_graph_of_no_family_has_no_text(sums):
    with load(sums) as model, pytest.raises(edgekit.errors.UnsupportedModelError) as caught:
        model.logits([1])
    assert str(caught.value) == f"{sums.path}: edgekit does not know it as a language model; run it with infer"


# Options.

OPTIONS = {
    "device 'GPU' is not there; OpenVINO finds CPU, AUTO": {"device": "GPU"},
    "device 'NPU' is not there; OpenVINO finds CPU, AUTO": {"device": "AUTO:NPU,CPU"},
    "hint 'speed'; choose latency or throughput": {"hint": "speed"},
    "precision 'f64'; choose f32 or f16 or bf16": {"precision": "f64"},
    "threads 0; choose 1 or more": {"threads": 0},
    "exact computes in f32, precision is f16; choose one of the two": {"exact": True, "precision": "f16"},
    "runtime 'openvino' has no option 'gpu_layers'; it has device, hint, exact, precision, cache_dir, threads, mmap, genai, "
    "properties": {"gpu_layers": 3},
}  # fmt: skip


@pytest.mark.skipif(ov.Core().available_devices != ["CPU"], reason="messages for a machine with a CPU alone")
@pytest.mark.parametrize(("message", "options"), OPTIONS.items(), ids=[m[:20] for m in OPTIONS])
def test_options_that_are_refused(message, options, sums):
    with pytest.raises(UsageError) as caught:
        edgekit.load(sums, "openvino", **options)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    "options", [{"device": "AUTO"}, {"hint": "throughput"}, {"device": "AUTO:CPU", "hint": "latency"}]
)
def test_devices_and_hints(options, small):
    with load(small, genai=False) as exact, load(small, genai=False, **options) as other:
        np.testing.assert_allclose(other.logits([3, 4, 5]), exact.logits([3, 4, 5]), atol=1e-4)


def test_the_cache_keeps_compiled_models(small, tmp_path):
    with load(small, genai=False, cache_dir=tmp_path / "cache") as model:
        first = model.logits([3, 4, 5])
    kept = sorted(path.name for path in (tmp_path / "cache").iterdir())
    assert kept
    assert all(name.endswith(".blob") for name in kept)
    with load(small, genai=False, cache_dir=tmp_path / "cache") as model:
        np.testing.assert_array_equal(model.logits([3, 4, 5]), first)
    assert sorted(path.name for path in (tmp_path / "cache").iterdir()) == kept


def test_doctor_lists_the_devices():
    said = CliRunner().invoke(cli, ["doctor"]).output
    for device in ov.Core().available_devices:
        assert f"devices of openvino: {device}: " in said


def test_the_written_directory_holds_what_genai_wants(small):
    names = {path.name for path in small.path.iterdir()}
    tokenizers = {f"openvino_{which}.{end}" for which in ("tokenizer", "detokenizer") for end in ("xml", "bin")}
    assert names >= {XML, "openvino_model.bin", "config.json", "tokenizer.json", *tokenizers}
    assert "tokenizer_models" not in small.notes


@pytest.mark.parametrize("limit", ["address space", "killed"])
def test_a_tokenizer_is_not_left_out_for_want_of_memory(tmp_path, monkeypatch, limit):
    """The same command has to write the same files on every machine, or to fail."""
    directory = {path.name: path.read_bytes() for path in Path(str(sample.path())).glob("*.json")}
    program = tmp_path / "python"
    doing = "kill -9 $$" if limit == "killed" else f'ulimit -v 400000; exec "{sys.executable}" "$@"'
    program.write_text(f"#!/bin/sh\n{doing}\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    monkeypatch.setattr("edgekit_openvino.tokenizer._KNOWN", {})
    with pytest.raises(
        MemoryShortageError, match=r"^converting the tokenizer for OpenVINO needs more memory than there"
    ):
        tokenizer_models(directory)


def test_a_tokenizer_that_cannot_be_converted_is_a_note(tmp_path, monkeypatch, caplog):
    """GenAI cannot use the directory; the summary, the manifest and the XML say so, and why."""
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\necho 'ValueError: no such tokenizer' >&2\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    monkeypatch.setattr("edgekit_openvino.tokenizer._KNOWN", {})
    notes: list[str] = []
    caplog.set_level("INFO", logger="edgekit")
    made = edgekit.quantize(
        str(sample.path()), "INT8_SYM", to=tmp_path / "made", format="openvino", backend="reference", notes=notes
    )
    note = (
        "the tokenizer was not converted: ValueError: no such tokenizer; OpenVINO GenAI and the model server cannot use "
        "this directory"
    )
    assert made.notes["tokenizer_models"] == note
    assert json.loads((made.path / "edgekit.manifest.json").read_text())["notes"]["tokenizer_models"] == note
    assert notes[-1] == note
    assert note in caplog.text
    assert 'value="not converted: ValueError: no such tokenizer"' in (made.path / XML).read_text()


def test_a_tokenizer_that_takes_too_long_is_given_up_and_noted(tmp_path, monkeypatch):
    directory = {path.name: path.read_bytes() for path in Path(str(sample.path())).glob("*.json")}
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\nexec sleep 60\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    monkeypatch.setattr("edgekit_openvino.tokenizer._KNOWN", {})
    monkeypatch.setattr("edgekit_openvino.tokenizer.TIMEOUT", 0.2)
    converted = tokenizer_models(directory)
    assert (dict(converted.files), converted.failed) == ({}, True)
    assert converted.note == "not converted: it took more than 0.2 seconds"


def test_a_tokenizer_is_converted_once(small, monkeypatch):
    """Of many artifacts of a model; the manifest, which differs, is not read."""
    directory = {path.name: path.read_bytes() for path in Path(str(sample.path())).glob("*.json")}
    models = Converted({name: (small.path / name).read_bytes() for name in MODELS}, "converted")
    failed = Converted({}, "not converted: no such tokenizer", failed=True)
    outcomes, read = [failed, models, failed, models], []

    def converted(folder):
        read.append({path.name: path.read_bytes() for path in folder.iterdir()})
        return outcomes[len(read) - 1]

    monkeypatch.setattr("edgekit_openvino.tokenizer._KNOWN", {})
    monkeypatch.setattr("edgekit_openvino.tokenizer._converted", converted)
    manifest = "edgekit.manifest.json"
    assert tokenizer_models({**directory, manifest: b"1"}) == failed
    assert tokenizer_models({**directory, manifest: b"1"}) == models  # a failure is not kept
    assert tokenizer_models({**directory, manifest: b"2"}) == models
    assert read == [directory, directory]
    other = {**directory, "tokenizer_config.json": b"{}"}
    assert tokenizer_models(other) == failed
    assert tokenizer_models(directory) == models
    assert tokenizer_models(other) == models
    assert read == [directory, directory, other, other]


def test_an_ir_of_an_ir_takes_the_tokenizer_over(small, tmp_path, monkeypatch):
    """Converting it anew takes a child process and seconds, and would give the same."""
    monkeypatch.setattr("edgekit_openvino.tokenizer._converted", lambda folder: pytest.fail("converted anew"))
    monkeypatch.setattr("edgekit_openvino.tokenizer._KNOWN", {})
    made = edgekit.quantize(small, "INT8_SYM", to=tmp_path / "int8", format="openvino")
    for name in MODELS:
        assert (made.path / name).read_bytes() == (small.path / name).read_bytes(), name
    assert 'value="the source\'s"' in (made.path / XML).read_text()
    partly = tmp_path / "partly"
    partly.mkdir()
    for path in small.path.iterdir():
        if path.name not in MODELS[:1]:
            (partly / path.name).write_bytes(path.read_bytes())
    with pytest.raises(pytest.fail.Exception, match="converted anew"):
        edgekit.quantize(partly, "INT8_SYM", to=tmp_path / "again", format="openvino")
