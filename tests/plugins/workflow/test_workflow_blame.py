"""Blame puts a fault on its side, the weights' or the runtime's, and in its layer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import attrs
import numpy as np
import pytest

import edgekit
from edgekit.architectures import Model
from edgekit.architectures.forward import Transformer
from edgekit.artifact import Artifact
from edgekit.errors import UsageError
from edgekit.runtime.numpy import NumpyRuntime
from edgekit.tensor import Tensor
from edgekit.testing.models import artifact_of, random_model, small_llama
from edgekit_workflow.blame import blame

LAYERS = 6
CONFIG = small_llama(num_hidden_layers=LAYERS, hidden_size=64, intermediate_size=64)
Change = Callable[[dict[str, np.ndarray]], None]


def changed(model: Model, layer: int, change: Change) -> Model:
    """The model with the tensors of one layer changed, by their names there; unchanged without that layer."""
    prefix = f"blk.{layer}."
    values = {
        name.removeprefix(prefix): tensor.float32().reshape(tensor.shape).copy()
        for name, tensor in model.tensors.items()
        if name.startswith(prefix)
    }
    if not values:
        return model
    change(values)
    tensors = {prefix + name: Tensor.of(prefix + name, np.ascontiguousarray(v)) for name, v in values.items()}
    return Model(model.config, {**model.tensors, **tensors})


def replace(name: str, function: Callable[[np.ndarray], np.ndarray]) -> Change:
    return lambda values: values.update({f"{name}.weight": function(values[f"{name}.weight"])})


def swap(one: str, other: str) -> Change:
    return lambda values: values.update(
        {f"{one}.weight": values[f"{other}.weight"], f"{other}.weight": values[f"{one}.weight"]}
    )


def skip(values: dict[str, np.ndarray]) -> None:
    for name in ("attn_output.weight", "ffn_down.weight"):
        values[name] = np.zeros_like(values[name])


def one_value_infinite(values: np.ndarray) -> np.ndarray:
    values[3, 5] = np.inf
    return values


#: What a layer's tensors, or a kernel's reading of them, may suffer.
FAULTS: list[tuple[str, int, Change]] = [
    ("transposed", 0, replace("attn_output", np.transpose)),
    ("gate and up", 1, swap("ffn_gate", "ffn_up")),
    ("zeros", 2, replace("ffn_down", np.zeros_like)),
    ("sign", 3, replace("attn_v", np.negative)),
    ("doubled", 4, replace("ffn_up", lambda v: 2 * v)),
    ("rows moved", 5, replace("attn_q", lambda v: np.roll(v, 16, 0))),
    ("norm less one", 3, replace("ffn_norm", lambda v: v - 1)),
    ("skipped", 2, skip),
    ("columns in pairs", 1, replace("ffn_down", lambda v: v.reshape(len(v), -1, 2)[..., ::-1].reshape(v.shape))),
    ("halves", 4, replace("attn_k", lambda v: np.concatenate([v[16:], v[:16]]))),
]
NAMES = [f"{name} in layer {layer}" for name, layer, _ in FAULTS]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return artifact_of(random_model(CONFIG, 3), tmp_path_factory.mktemp("blame") / "source")


@pytest.fixture(scope="module")
def artifact(source: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return edgekit.quantize(source, "Q8_0", to=tmp_path_factory.mktemp("blame") / "good.gguf")


@pytest.mark.parametrize(("layer", "change"), [fault[1:] for fault in FAULTS], ids=NAMES)
def test_a_fault_of_the_weights(source: Artifact, layer: int, change: Change, tmp_path: Path) -> None:
    model = changed(source.model, layer, change)
    broken = edgekit.quantize(attrs.evolve(source, load_model=lambda: model), "Q8_0", to=tmp_path / "broken.gguf")
    found = blame(broken, source, "numpy")
    assert (found.side, found.weight_fault, found.runtime_fault) == ("weights", layer, None)


@pytest.mark.parametrize(("layer", "change"), [fault[1:] for fault in FAULTS], ids=NAMES)
def test_a_fault_of_the_runtime(source: Artifact, artifact: Artifact, layer: int, change: Change) -> None:
    def faulty(opened: Artifact) -> NumpyRuntime:
        return NumpyRuntime(opened, Transformer(changed(opened.model, layer, change)))

    found = blame(artifact, source, faulty)
    assert (found.side, found.weight_fault, found.runtime_fault) == ("kernels", None, layer)
    assert found.kernels > 10 * found.weights


def test_without_a_fault(source: Artifact, artifact: Artifact) -> None:
    found = blame(artifact, source, "numpy")
    assert (found.side, found.weight_fault, found.runtime_fault) == ("neither", None, None)
    assert [one.index for one in found.layers] == list(range(-1, LAYERS + 1))
    assert found.kernels == 0 < found.weights == pytest.approx(found.total)
    assert "no layer stands out" in str(found)


def test_values_that_are_not_finite_are_a_fault(source: Artifact, artifact: Artifact) -> None:
    def faulty(opened: Artifact) -> NumpyRuntime:
        return NumpyRuntime(opened, Transformer(changed(opened.model, 2, replace("attn_q", one_value_infinite))))

    assert blame(artifact, source, faulty).runtime_fault == 2


def test_another_model_is_refused(artifact: Artifact, tmp_path: Path) -> None:
    other = artifact_of(random_model(small_llama(vocab_size=80), 0), tmp_path / "other")
    with pytest.raises(UsageError, match=r"has layers 6, .* 2; give the model that the artifact was made from"):
        blame(artifact, other)
