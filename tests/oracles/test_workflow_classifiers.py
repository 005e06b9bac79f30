"""The gates on classifiers: an image network as IR, and a text classifier as ONNX, against what they were made from."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from openvino_models import save
from vision import SIDE, images, trained

import edgekit
from edgekit.errors import InvalidFileError, QualityGateError, UsageError
from edgekit.pipeline.passes import run_pass
from edgekit_openvino.library import openvino
from edgekit_openvino.quiet import quiet
from edgekit_workflow.gates import Certificate, Policy, gate

WORDS, WIDTH, CLASSES, LENGTH = 64, 32, 3, 12


def ir_of(network: torch.nn.Module, folder: Path) -> Path:
    with quiet():
        example = torch.zeros(1, 1, SIDE, SIDE)
        return save(openvino().convert_model(network, example_input=example, input=[-1, 1, SIDE, SIDE]), folder)


@pytest.fixture(scope="module")
def network() -> torch.nn.Module:
    return trained()


@pytest.fixture(scope="module")
def image_model(network, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ir_of(network, tmp_path_factory.mktemp("vision") / "ir")


@pytest.fixture(scope="module")
def labelled() -> dict[str, np.ndarray]:
    x, labels = images(120, seed=5)
    return {"x": x.numpy(), "labels": labels.numpy()}


def outcome(certificate: Certificate) -> dict[str, tuple[bool | None, float | None]]:
    return {r.name: (r.passed, r.measured) for r in certificate if r.category == "quality"}


def test_a_quantized_image_network_passes(image_model: Path, labelled, tmp_path: Path):
    calibration = list(images(60, seed=21)[0].numpy()[:, None])
    small = run_pass(image_model, "openvino-quantize", to=tmp_path / "int8", options={"calibration": calibration})
    certificate = gate(small, image_model, samples=labelled)
    certificate.refuse()
    found = outcome(certificate)
    assert list(found) == ["label_agreement", "class_divergence", "accuracy_ratio"]
    assert found["label_agreement"][1] >= 0.97
    assert 0 <= found["class_divergence"][1] < 0.05
    compared = {r.name: r for r in certificate if r.name in ("tensors", "values", "codes")}
    assert all(r.passed is None and "does not say its family" in r.detail for r in compared.values())


@pytest.mark.parametrize("fault", ["two classes swapped", "a layer of zeros", "not a number"])
def test_a_broken_image_network_is_refused(fault: str, network, image_model: Path, labelled, tmp_path: Path):
    broken = trained(steps=0)
    broken.load_state_dict(network.state_dict())
    with torch.no_grad():
        if fault == "two classes swapped":
            broken.classifier.weight[[0, 1]] = broken.classifier.weight[[1, 0]]
            broken.classifier.bias[[0, 1]] = broken.classifier.bias[[1, 0]]
        elif fault == "a layer of zeros":
            broken.features[3].weight.zero_()
        else:
            broken.classifier.bias[2] = float("nan")
    certificate = gate(ir_of(broken.eval(), tmp_path / "broken"), image_model, samples=labelled)
    failed = {result.name: result for result in certificate.failed}
    assert {"label_agreement", "class_divergence"} <= set(failed), fault
    assert failed["label_agreement"].measured < 0.95
    with pytest.raises(QualityGateError, match="label_agreement"):
        certificate.refuse()
    if fault == "two classes swapped":
        assert failed["label_agreement"].detail in ("of class 0 0%", "of class 1 0%")


def text_model(path: Path, rounding: int = 0, probabilities: bool = False) -> Path:
    """Scores of ids [n, any]: the mean of embeddings, and a linear layer; weights rounded to so many bits."""
    random = np.random.RandomState(3)
    weights = {"table": random.standard_normal((WORDS, WIDTH)), "head": 3 * random.standard_normal((WIDTH, CLASSES))}
    if rounding:
        steps = {name: np.abs(each).max() / (2 ** (rounding - 1) - 1) for name, each in weights.items()}
        weights = {name: np.round(each / steps[name]) * steps[name] for name, each in weights.items()}
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["rows"]),
        helper.make_node("ReduceMean", ["rows"], ["mean"], axes=[1], keepdims=0),
        helper.make_node("MatMul", ["mean", "head"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["share"], axis=1),
    ]
    out = "share" if probabilities else "logits"
    graph = helper.make_graph(
        nodes if probabilities else nodes[:3],
        "text",
        [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["n", "length"])],
        [helper.make_tensor_value_info(out, TensorProto.FLOAT, ["n", CLASSES])],
        [numpy_helper.from_array(each.astype(np.float32), name) for name, each in weights.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


def ids(count: int = 200) -> np.ndarray:
    return np.random.RandomState(4).randint(0, WORDS, (count, LENGTH))


def test_a_text_classifier(tmp_path: Path):
    source = text_model(tmp_path / "source.onnx")
    fine = gate(text_model(tmp_path / "eight.onnx", 8), source, samples={"input_ids": ids()})
    found = outcome(fine)
    assert found["label_agreement"][0]
    assert found["class_divergence"][0]
    assert found["accuracy_ratio"] == (None, None), "no labels"
    coarse = outcome(gate(text_model(tmp_path / "two.onnx", 2), source, samples={"input_ids": ids()}))
    assert coarse["label_agreement"][0] is False
    assert coarse["class_divergence"][1] > 10 * found["class_divergence"][1]


def test_probabilities_and_logits_are_the_same_divergence(tmp_path: Path):
    pairs = [
        (text_model(tmp_path / f"{kind}-4.onnx", 4, kind), text_model(tmp_path / f"{kind}.onnx", 0, kind))
        for kind in (False, True)
    ]
    measured = [outcome(gate(*pair, samples={"input_ids": ids()}))["class_divergence"][1] for pair in pairs]
    assert measured[0] == pytest.approx(measured[1], rel=1e-3)
    assert measured[0] > 0


def test_the_divergence_is_what_the_definition_says(tmp_path: Path):
    source, small = text_model(tmp_path / "a.onnx"), text_model(tmp_path / "b.onnx", 4)
    shares = []
    for path in (source, small):
        with edgekit.load(path, "onnxruntime") as model:
            logits = model.infer({"input_ids": ids()})["logits"].astype(np.float64)
        shares.append(np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True))
    expected = (shares[0] * np.log(shares[0] / shares[1])).sum(axis=1).mean()
    found = outcome(gate(small, source, samples={"input_ids": ids()}))
    assert found["class_divergence"][1] == pytest.approx(expected, rel=1e-4)
    same = (shares[0].argmax(axis=1) == shares[1].argmax(axis=1)).mean()
    assert found["label_agreement"][1] == pytest.approx(same)


def test_limits_and_samples_of_the_policy(tmp_path: Path):
    source, small = text_model(tmp_path / "a.onnx"), text_model(tmp_path / "b.onnx", 8)
    (tmp_path / "gates.toml").write_text("[quality]\nclass_divergence = 0.0\nsamples = 7\n")
    certificate = gate(small, source, policy=tmp_path / "gates.toml", samples={"input_ids": ids()})
    assert [result.name for result in certificate.failed if result.category == "quality"] == ["class_divergence"]
    skipping = Policy(skip=("quality",))
    assert outcome(gate(small, source, policy=skipping, samples={"input_ids": ids()})) == {}


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        ({}, "samples of .. rows; give one array for each input"),
        ({"input_ids": ids(3), "labels": np.array([0, 1])}, "labels are int64 .2.; give a class from 0 to 2 for each"),
        ({"input_ids": ids(3), "labels": np.array([0, 1, 3])}, "give a class from 0 to 2 for each of the 3 samples"),
        ({"ids": ids(3)}, "input"),
        ({"input_ids": ids(3).astype(np.int32)}, "convert it"),
    ],
)
def test_wrong_samples_are_refused(samples, message: str, tmp_path: Path):
    source = text_model(tmp_path / "a.onnx")
    with pytest.raises(UsageError, match=message):
        gate(source, source, samples=samples)


def test_the_command_line(image_model: Path, labelled, tmp_path: Path):
    np.savez(tmp_path / "labelled.npz", **labelled)
    command = [sys.executable, "-m", "edgekit", "gate", str(image_model), "--against", str(image_model), "--samples"]
    done = subprocess.run([*command, str(tmp_path / "labelled.npz")], capture_output=True, text=True, check=False)
    assert done.returncode == 7, "a model in float takes all of its memory"
    lines = {line.split()[1]: line.split()[2:4] for line in done.stdout.splitlines() if line.startswith("quality")}
    assert lines["label_agreement"] == ["passed", "1"]
    assert lines["accuracy_ratio"] == ["passed", "1"]
    with pytest.raises(InvalidFileError, match=r"write it with numpy\.savez"):
        gate(image_model, image_model, samples=tmp_path / "none.npz")
