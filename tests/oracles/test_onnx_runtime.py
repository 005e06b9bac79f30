"""The runtime `onnxruntime`: text, embeddings, any graph, its options; and ONNX Runtime GenAI on the same directory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import edgekit
from edgekit import sample
from edgekit.architectures.forward import Transformer
from edgekit.errors import ContextOverflowError, ResourceError, UnsupportedModelError, UsageError

PROMPT = "Once upon a time"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return edgekit.quantize(sample.path(), "MATMUL_NBITS_4", to=tmp_path_factory.mktemp("m") / "m", format="onnx").path


@pytest.fixture
def runtime(model):
    """Without rounding of activations, so that its numbers are the numpy pass's."""
    with edgekit.load(model, "onnxruntime", exact=True) as opened:
        yield opened


def test_rounded_activations_cost_little(model, runtime):
    """MatMulNBits at accuracy level 4. Measured: 0.04 standard deviations."""
    ids = runtime.prompt_ids(PROMPT)
    exact = runtime.logits(ids)
    with edgekit.load(model, "onnxruntime") as fast:
        assert 0 < np.abs(fast.logits(ids) - exact).max() < 0.2 * exact.std()


def test_greedy_text_is_the_numpy_pass_s(model, runtime):
    with edgekit.load(model, "numpy") as reference:
        wanted = reference.generate(PROMPT, max_tokens=40)
        assert runtime.generate(PROMPT, max_tokens=40) == wanted
        drawn = {"max_tokens": 30, "temperature": 1.0, "seed": 4}
        assert runtime.generate(PROMPT, **drawn) == runtime.generate(PROMPT, **drawn)
        np.testing.assert_allclose(runtime.embed(PROMPT), reference.embed(PROMPT), atol=1e-5)


def test_a_prompt_that_goes_on_is_not_computed_again(model, runtime):
    ids = runtime.prompt_ids(PROMPT)
    first = list(runtime.tokens(ids, max_tokens=6))
    session = runtime._session("last")
    seen = []
    step = session.step
    session.step = lambda new: seen.append(new.shape[1]) or step(new)
    list(runtime.tokens([*ids, *first[:5], 7, 8], max_tokens=1))
    assert seen == [2]


def test_schemas_hold(runtime):
    assert runtime.generate(PROMPT, regex="[a-f]{8}", temperature=1.0, seed=1).isalpha()


def test_sequences_beyond_the_context(runtime):
    with pytest.raises(ContextOverflowError, match="do not fit the model's context"):
        runtime.logits(np.zeros(runtime.context + 1, np.int64))
    with pytest.raises(UsageError, match="the vocabulary has"):
        runtime.logits([10**6])


def test_any_graph_by_its_inputs(model, runtime):
    ids = np.array([[5, 6, 7]], np.int64)
    given = {"input_ids": ids, "attention_mask": np.ones((1, 3), np.int64), "position_ids": np.arange(3)[None]}
    for name, (_, shape) in runtime.inputs.items():
        if name.startswith("past"):
            given[name] = np.zeros((1, shape[1], 0, shape[3]), np.float32)
    logits = runtime.infer(given)["logits"]
    reference = Transformer(edgekit.open(model).model).logits(ids[0])
    assert np.abs(logits[0] - reference).max() < 1e-4 * reference.std()
    with pytest.raises(UsageError, match="input 'position_ids' is missing; the inputs are input_ids, attention_mask"):
        runtime.infer({"input_ids": ids, "attention_mask": given["attention_mask"]})
    with pytest.raises(UsageError, match="it has no input 'ids'"):
        runtime.infer({**given, "ids": ids})
    with pytest.raises(UsageError, match=r"input 'input_ids' is int32, the graph takes int64; convert it"):
        runtime.infer({**given, "input_ids": ids.astype(np.int32)})
    with pytest.raises(UsageError, match=r"input 'input_ids' has shape \[3\], the graph takes \[any, any\]"):
        runtime.infer({**given, "input_ids": ids[0]})


def test_options(model):
    with edgekit.load(model, "onnxruntime", device="cpu", threads=1, context=20, exact=True) as runtime:
        told = runtime.description()
        assert (told["providers"], told["context"], told["exact"]) == (["CPUExecutionProvider"], 20, True)
    for options, message in [
        ({"device": "abacus"}, "device 'abacus'; choose auto, cuda"),
        ({"threads": -1}, "threads -1; choose 0"),
        ({"exact": "yes"}, "exact 'yes'; choose true or false"),
        ({"context": 0}, "context 0; choose 1 or more"),
    ]:
        with pytest.raises(UsageError, match=message):
            edgekit.load(model, "onnxruntime", **options)
    with pytest.raises(
        ResourceError, match=r"the installed onnxruntime has .*CPUExecutionProvider.*or choose device=cpu"
    ):
        edgekit.load(model, "onnxruntime", device="qnn")


def test_a_closed_runtime(model):
    runtime = edgekit.load(model, "onnxruntime")
    runtime.close()
    runtime.close()
    with pytest.raises(UsageError, match="the runtime is closed; open the model again"):
        runtime.logits([1])


def test_a_graph_of_another_program_is_no_language_model(tmp_path):
    import onnxruntime

    path = Path(onnxruntime.__file__).parent / "datasets" / "sigmoid.onnx"
    with edgekit.load(path, "onnxruntime") as runtime, pytest.raises(UnsupportedModelError, match="run it with infer"):
        runtime.generate([1, 2])


@pytest.mark.parametrize("recipe", ["float:F32", "MATMUL_NBITS_4", "INT8_CHANNEL"])
def test_genai_generates_the_same_tokens(recipe, tmp_path):
    genai = pytest.importorskip("onnxruntime_genai")
    made = edgekit.quantize(sample.path(), recipe, to=tmp_path / "m", format="onnx")
    # Weights in floats, and those that DequantizeLinear decodes, give the numpy pass's tokens; MatMulNBits rounds
    # activations alike in both runtimes.
    with edgekit.load(made, "onnxruntime" if recipe.startswith("MATMUL") else "numpy") as reference:
        ids = reference.prompt_ids(PROMPT)
        wanted = list(reference.tokens(ids, max_tokens=30))
    library = genai.Model(str(made.path))
    parameters = genai.GeneratorParams(library)
    parameters.set_search_options(max_length=len(ids) + 30, do_sample=False)
    generator = genai.Generator(library, parameters)
    generator.append_tokens(ids)
    found = []
    while not generator.is_done():
        generator.generate_next_token()
        found.append(int(generator.get_next_tokens()[0]))
    assert found == wanted[: len(found)]
    assert len(found) >= 29 or found[-1] in edgekit.open(made.path).tokenizer.end_ids


@pytest.mark.parametrize(("recipe", "planned"), [("INT8_CHANNEL", False), ("MATMUL_NBITS_4", True)])
def test_weights_that_are_multiplied_out_are_not_planned_a_second_time(recipe, planned, tmp_path):
    """From the second prompt on a memory pattern would keep the decoded weights twice."""
    made = edgekit.quantize(sample.path(), recipe, to=tmp_path / "m", format="onnx")
    with edgekit.load(made, "onnxruntime") as model:
        assert model._session("last").session.get_session_options().enable_mem_pattern is planned
    portable = edgekit.quantize(sample.path(), "MATMUL_NBITS_4", to=tmp_path / "p", format="onnx-portable")
    with edgekit.load(portable, "onnxruntime") as model:  # its blocks become MatMulNBits
        assert model._session("last").session.get_session_options().enable_mem_pattern
