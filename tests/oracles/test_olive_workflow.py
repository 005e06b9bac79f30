"""Olive's workflow files: its engine searches, the best model is written and compared, refusals come before any work."""

import json

import numpy as np
import onnx
import onnxruntime
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper

from edgekit.errors import InvalidFileError, MissingPluginError, QualityGateError, UsageError
from edgekit_olive import isolation
from edgekit_olive.commands import command_run, compared
from edgekit_olive.workflow import Candidate, Outcome, run_workflow
from edgekit_workflow.commands.optimize import command as optimize

pytest.importorskip("olive")
SIZE = {"name": "size", "type": "size_on_disk", "sub_types": [{"name": "bytes", "priority": 1}]}
LATENCY = {"name": "latency", "type": "latency", "sub_types": [{"name": "avg", "priority": 2}]}
CPU = {"device": "cpu", "execution_providers": ["CPUExecutionProvider"]}


@pytest.fixture(scope="module", autouse=True)
def one_process():
    yield
    if isolation._forking.cache_info().currsize:
        isolation._forking().close()


@pytest.fixture
def workflow(tmp_path):
    """A graph y = x·W, and a search over two passes by size, then by latency."""
    weight = np.random.default_rng(0).standard_normal((256, 256)).astype(np.float32)
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [4, 256])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [4, 256])
    node = helper.make_node("MatMul", ["x", "w"], ["y"], name="product")
    graph = helper.make_graph([node], "g", [x], [y], [numpy_helper.from_array(weight, "w")])
    (tmp_path / "model").mkdir()
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(made, tmp_path / "model" / "model.onnx")
    return {
        "input_model": {"type": "ONNXModel", "model_path": "model/model.onnx"},
        "systems": {"here": {"type": "LocalSystem", "accelerators": [CPU]}},
        "evaluators": {"measured": {"metrics": [SIZE, LATENCY]}},
        "passes": {"smaller": [{"type": "OnnxFloatToFloat16"}, {"type": "OnnxDynamicQuantization"}]},
        "search_strategy": {"execution_order": "joint", "sampler": "sequential"},
        "evaluator": "measured",
        "target": "here",
        "evaluate_input_model": True,
        "output_dir": "/nowhere",
    }


def saved(tmp_path, workflow):
    (tmp_path / "workflow.json").write_text(json.dumps(workflow))
    return tmp_path / "workflow.json"


def test_a_search_over_passes_by_size(workflow, tmp_path):
    source = (tmp_path / "model" / "model.onnx").read_bytes()
    outcome = run_workflow(saved(tmp_path, workflow), tmp_path / "out")
    assert outcome.before["size-bytes"] == len(source)
    assert len(outcome.candidates) > 2  # the engine searches over options of the passes, too
    assert [candidate.chosen for candidate in outcome.candidates].index(True) == 0
    assert sum(candidate.chosen for candidate in outcome.candidates) == 1
    assert [name.lower() for name in outcome.candidates[0].passes] == ["onnxdynamicquantization"]
    sizes = [candidate.metrics["size-bytes"] for candidate in outcome.candidates]
    assert outcome.candidates[0].frontier
    assert sizes[0] == min(sizes) < 0.3 * len(source)
    assert all(candidate.metrics["latency-avg"] > 0 for candidate in outcome.candidates)
    assert outcome.artifact.manifest.quality["output_error"] < 0.05
    session = onnxruntime.InferenceSession(str(tmp_path / "out" / "model.onnx"), providers=["CPUExecutionProvider"])
    assert session.run(None, {"x": np.ones((4, 256), np.float32)})[0].shape == (4, 256)
    assert (tmp_path / "model" / "model.onnx").read_bytes() == source
    assert sorted(file.name for file in tmp_path.iterdir()) == ["model", "out", "workflow.json"]


def test_passes_in_order_on_the_command_line(workflow, tmp_path):
    workflow["passes"] = {"half": {"type": "OnnxFloatToFloat16"}}
    del workflow["search_strategy"], workflow["evaluator"], workflow["evaluators"], workflow["evaluate_input_model"]
    done = CliRunner().invoke(command_run, [str(saved(tmp_path, workflow)), "--to", str(tmp_path / "out"), "--json"])
    told = json.loads(done.stdout)
    assert [each["chosen"] for each in told["candidates"]] == [True]
    assert told["quality"]["size_ratio"] < 0.6


def test_the_workflow_plugin_hands_files_over(workflow, tmp_path):
    """The table has the source, every candidate with its change from it, and what was chosen."""
    made = CliRunner().invoke(optimize, ["--olive", str(saved(tmp_path, workflow)), "--to", str(tmp_path / "out")])
    assert made.exception is None
    header, _, source, first, *_ = made.stdout.splitlines()
    assert header.split() == ["model", "size-bytes", "latency-avg", "front", "chosen"]
    assert source.startswith("the source")
    assert "(25%)" in first or "(26%)" in first
    assert first.split()[-2:] == ["yes", "yes"]
    assert f"Chosen: {tmp_path / 'out'}" in made.stdout
    assert (tmp_path / "out" / "model.onnx").is_file()


#: Olive's own data set of samples with labels: a script of the user's.
SCRIPT = """
import numpy as np
import torch
from olive.data.registry import Registry

class Samples:
    def __init__(self, data_dir):
        with np.load(data_dir) as file:
            self.x, self.label = file["x"], file["label"]
    def __len__(self):
        return len(self.label)
    def __getitem__(self, index):
        return {"x": self.x[index]}, int(self.label[index])

@Registry.register_dataset()
def classified(data_dir, **_):
    return Samples(data_dir)

@Registry.register_post_process()
def largest(output, **_):
    return torch.as_tensor(output["y"] if isinstance(output, dict) else output).argmax(-1)
"""


@pytest.fixture
def classifier(workflow, tmp_path):
    """A classifier y = x·W into 8 classes, samples that it classifies, and a search over passes with three metrics.

    One weight is so large that one scale for the whole matrix leaves the others few levels, or none; no sample uses it.
    """
    random = np.random.default_rng(0)
    weight = random.standard_normal((256, 8)).astype(np.float32)
    weight[0, 0] = 400
    samples = random.standard_normal((64, 256)).astype(np.float32)
    samples[:, 0] = 0
    np.savez(tmp_path / "samples.npz", x=samples, label=(samples @ weight).argmax(1))
    (tmp_path / "data.py").write_text(SCRIPT)
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 256])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 8])
    node = helper.make_node("MatMul", ["x", "w"], ["y"], name="product")
    graph = helper.make_graph([node], "g", [x], [y], [numpy_helper.from_array(weight, "w")])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(made, tmp_path / "model" / "model.onnx")
    data = {
        "name": "samples",
        "user_script": "data.py",
        "load_dataset_config": {"type": "classified", "params": {"data_dir": "samples.npz"}},
        "pre_process_data_config": {"type": "skip_pre_process"},
        "post_process_data_config": {"type": "largest"},
        "dataloader_config": {"params": {"batch_size": 16}},
    }
    score = {
        "name": "accuracy_score",
        "priority": 3,
        "higher_is_better": True,
        "metric_config": {"task": "multiclass", "num_classes": 8},
    }
    accuracy = {"name": "accuracy", "type": "accuracy", "data_config": "samples", "sub_types": [score]}
    latency = {**LATENCY, "data_config": "samples"}
    whole = {"type": "OnnxDynamicQuantization", "per_channel": False, "reduce_range": False, "quant_preprocess": False}
    return {
        **workflow,
        "data_configs": [data],
        "evaluators": {"measured": {"metrics": [SIZE, latency, accuracy]}},
        "passes": {"smaller": [{"type": "OnnxFloatToFloat16"}, whole]},
    }


def test_a_search_without_a_goal_takes_the_smallest(classifier, tmp_path):
    """Size has the first priority: 8 bits are the smallest, and classify badly."""
    outcome = run_workflow(saved(tmp_path, classifier), tmp_path / "out", least_cosine=-1)
    best = outcome.candidates[0]
    assert [name.lower() for name in best.passes] == ["onnxdynamicquantization"]
    assert best.chosen
    assert best.metrics["accuracy-accuracy_score"] < 0.9
    assert all(each.meets_goals for each in outcome.candidates)


def test_a_goal_of_accuracy_decides(classifier, tmp_path):
    """The engine evaluates every candidate on the samples; those that lose more than the goal allows are not chosen."""
    score = classifier["evaluators"]["measured"]["metrics"][2]["sub_types"][0]
    score["goal"] = {"type": "max-degradation", "value": 0.02}
    made = CliRunner().invoke(
        optimize, ["--olive", str(saved(tmp_path, classifier)), "--to", str(tmp_path / "out"), "--json"]
    )
    assert made.exception is None
    told = json.loads(made.stdout)
    accuracy, size = "accuracy-accuracy_score", "size-bytes"
    assert told["before"][accuracy] == 1
    best, *others = told["candidates"]
    assert [name.lower() for name in best["passes"]] == ["onnxfloattofloat16"]
    assert (best["chosen"], best["frontier"], best["meets_goals"]) == (True, True, True)
    assert best["metrics"][accuracy] >= 0.98
    assert others
    for other in others:
        assert [name.lower() for name in other["passes"]] == ["onnxdynamicquantization"]
        assert [other[key] for key in ("meets_goals", "frontier", "chosen")] == [False, False, False]
        assert other["metrics"][accuracy] < 0.98
        assert other["metrics"][size] < best["metrics"][size]
    session = onnxruntime.InferenceSession(str(tmp_path / "out" / "model.onnx"), providers=["CPUExecutionProvider"])
    with np.load(tmp_path / "samples.npz") as samples:
        chosen = session.run(None, {"x": samples["x"].astype(np.float16)})[0].argmax(1)
        assert np.mean(chosen == samples["label"]) == best["metrics"][accuracy]


def test_the_table_says_which_candidates_miss_a_goal():
    candidate = Candidate(("a", "b"), "CPUExecutionProvider", {"x": 1.0}, True, True, True)
    missing = Candidate(("c",), "CPUExecutionProvider", {"x": 2.0}, False, False, False)
    header, _, source, one, other = compared(Outcome(None, {"x": 4.0}, (candidate, missing))).splitlines()
    assert header.split() == ["model", "x", "goals", "front", "chosen"]
    assert source.split() == ["the", "source", "4"]
    assert one.split() == ["a", "+", "b", "1", "(25%)", "met", "yes", "yes"]
    assert other.split() == ["c", "2", "(50%)", "missed"]


def test_a_goal_that_no_candidate_meets(classifier, tmp_path):
    score = classifier["evaluators"]["measured"]["metrics"][2]["sub_types"][0]
    score["goal"] = {"type": "threshold", "value": 1.5}
    with pytest.raises(QualityGateError, match="no model that Olive's engine made meets the goals of the file"):
        run_workflow(saved(tmp_path, classifier), tmp_path / "out", least_cosine=-1)
    assert not (tmp_path / "out").exists()


def test_refusals(workflow, tmp_path):
    def refused(error, message, **changed):
        with pytest.raises(error, match=message):
            run_workflow(saved(tmp_path, {**workflow, **changed}), tmp_path / "out")

    refused(InvalidFileError, "it has no passes", passes={})
    refused(InvalidFileError, "it has no object input_model", input_model=None)
    refused(UsageError, "which is not on this machine", input_model={"type": "HfModel", "model_path": "org/name"})
    lost = {"type": "HfModel", "model_path": "model", "adapter_path": "gone"}
    refused(UsageError, "has the adapter_path 'gone', which is not on this machine", input_model=lost)
    refused(UsageError, "would run it on another machine", host="azure")
    refused(UsageError, "pass 'a' has the type 'Shrink', which Olive does not have", passes={"a": {"type": "Shrink"}})
    refused(MissingPluginError, "cannot run here: awq is not installed", passes={"a": {"type": "AutoAWQQuantizer"}})
    (tmp_path / "workflow.json").write_text("{")
    with pytest.raises(InvalidFileError):
        run_workflow(tmp_path / "workflow.json", tmp_path / "out")
    assert not (tmp_path / "out").exists()
