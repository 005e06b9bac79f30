"""Pruning with NNCF: torch modules and Hugging Face directories, and what cannot be pruned."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path

import nncf
import numpy as np
import pytest
import torch
from openvino_models import save, tokens_model
from vision import Cnn, images, trained

import edgekit
from edgekit import sample
from edgekit.errors import MissingPluginError, NonFiniteError, UnsupportedModelError, UsageError
from edgekit.pipeline import open_artifact
from edgekit.pipeline.passes import run_pass, unread
from edgekit_openvino.measure import outputs
from edgekit_openvino.models import read_ir
from edgekit_openvino.prune import prune
from edgekit_openvino.quiet import quiet

# torchao asks torch for what it deprecates, transformers and openvino's tracer for what they have replaced.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning",
    "ignore::torch.jit.TracerWarning")  # fmt: skip


@pytest.fixture(scope="module")
def module() -> torch.nn.Module:
    return trained()


@pytest.fixture(scope="module")
def samples() -> list[torch.Tensor]:
    return list(images(16, seed=11)[0].split(1))


def accuracy(module: torch.nn.Module) -> float:
    x, labels = images(300, seed=12)
    with torch.no_grad():
        return float((module(x).argmax(1) == labels).float().mean())


def zeros(module: torch.nn.Module) -> dict[str, float]:
    return {name: float((p == 0).float().mean()) for name, p in module.named_parameters() if p.ndim > 1}


@pytest.mark.parametrize("mode", ["local", "global"])
def test_the_least_weights_become_zero_and_the_module_stays_as_it_is(module, samples, mode: str):
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    pruned = prune(module, samples, ratio=0.4, mode=mode, evaluate=accuracy)
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    assert type(pruned.module) is Cnn
    assert list(pruned.module.state_dict()) == list(before)  # no masks, no hooks
    # kthvalue of a share of all but one: the share is met to within one weight of each tensor.
    assert pruned.quality["sparsity"] == pytest.approx(0.4, abs=0.01)
    assert pruned.tensors == pytest.approx(zeros(pruned.module))
    for name, weight in module.named_parameters():
        if name in pruned.tensors:
            kept = pruned.module.get_parameter(name) != 0
            assert torch.equal(pruned.module.get_parameter(name)[kept], weight[kept])
            if mode == "local":
                assert pruned.tensors[name] == pytest.approx(0.4, abs=0.01)
            assert weight[~kept].abs().max() <= weight[kept].abs().min()
    spread = max(pruned.tensors.values()) - min(pruned.tensors.values())
    assert (spread > 0.1) == (mode == "global")
    assert pruned.quality["metric_float"] == accuracy(module) > 0.95
    assert pruned.quality["metric"] == accuracy(pruned.module)
    assert pruned.quality["drop"] == pruned.quality["metric_float"] - pruned.quality["metric"]
    assert 0 < pruned.quality["output_error"] < 1


def test_fine_tuning_wins_back_what_pruning_cost(module, samples):
    """At four fifths the network is lost; trained with its masks on, it comes back, and the zeros stay."""
    plain = prune(module, samples, ratio=0.8, evaluate=accuracy)
    tuned = prune(module, samples, ratio=0.8, evaluate=accuracy, fine_tune=lambda masked: trained(masked, steps=40))
    assert plain.quality["metric"] < 0.9 < tuned.quality["metric"]
    assert tuned.quality["sparsity"] == plain.quality["sparsity"]
    assert {name: share > 0.75 for name, share in zeros(tuned.module).items()} == dict.fromkeys(tuned.tensors, True)


def test_the_ir_computes_what_the_module_computes(module, samples, tmp_path: Path):
    pruned = prune(module, samples, ratio=0.5, ignored={"types": ["linear"]})
    assert set(pruned.tensors) == {"features.0.weight", "features.3.weight"}
    written = pruned.save(tmp_path / "ir")
    assert written.format == "openvino"
    assert written.manifest is not None
    assert written.manifest.quality == pruned.quality
    assert written.manifest.recipe == "openvino-prune mode=local ratio=0.5"
    x = np.concatenate([s.numpy() for s in samples])
    with torch.no_grad():
        wanted = pruned.module(torch.from_numpy(x)).numpy()
    model = read_ir(written)
    (got,) = outputs(model, [{0: x}])
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)  # float32, another order of sums
    stored = [op.data for op in model.get_ops() if op.get_type_name() == "Constant" and op.data.ndim == 4]
    shares = sorted(float((x == 0).mean()) for x in stored if x.size > 64)
    assert shares == pytest.approx(sorted(pruned.tensors.values()), abs=0.02)  # a batch norm may be folded in


def test_a_hugging_face_directory_keeps_its_names_and_types(tmp_path: Path):
    source = open_artifact(sample.path())
    pruned = run_pass(sample.path(), "openvino-prune", to=tmp_path / "hf", options={"ratio": 0.3})
    assert (pruned.format, pruned.config) == ("hf", source.config)
    assert list(pruned.tensors) == list(source.tensors)
    assert pruned.tokenizer is not None
    assert pruned.manifest is not None
    assert pruned.manifest.quality["sparsity"] == pytest.approx(0.3, abs=0.005)
    assert 0 < pruned.manifest.quality["output_error"] < 0.5
    for name, tensor in source.tensors.items():
        was, now = tensor.read(), pruned.tensors[name].read()
        assert (now.dtype, now.shape) == (was.dtype, was.shape)
        assert np.array_equal(now[now != 0], was[now != 0])
        assert float((now == 0).mean()) == pytest.approx(0.3 if was.ndim > 1 else float((was == 0).mean()), abs=0.01)
    # Its zeros stay zeros in a symmetric format.
    small = edgekit.quantize(pruned, "openvino:int8-sym-channel", to=tmp_path / "int8")
    name = next(name for name, tensor in small.tensors.items() if "q_proj" in name)
    zero = pruned.tensors[name].read() == 0
    assert not small.tensors[name].float32().reshape(zero.shape)[zero].any()


def test_what_nncf_cannot_prune_is_said_before_any_work(module, samples, tmp_path: Path):
    ir = open_artifact(save(tokens_model(1)[0], tmp_path / "ir"))
    (tmp_path / "m.onnx").write_bytes(b"")
    cure = (
        ": NNCF prunes torch modules only, no IR and no ONNX model; prune the module that it was converted from, and "
        "convert again (Pruned.save), or give openvino-prune the Hugging Face directory"
    )
    for source, what in ((ir, f"{ir.path} (openvino)"), (unread(tmp_path / "m.onnx"), f"{tmp_path / 'm.onnx'} (onnx)")):
        with pytest.raises(UnsupportedModelError, match=f"^{re.escape(what + cure)}$"):
            run_pass(source, "openvino-prune", to=tmp_path / "out")
        with pytest.raises(UnsupportedModelError, match=f"^{re.escape(what + cure)}$"):
            prune(source, samples, ratio=0.5)
    with pytest.raises(UnsupportedModelError, match=f"^{re.escape('Model' + cure)}$"):
        prune(tokens_model(1)[0], samples, ratio=0.5)
    with pytest.raises(UnsupportedModelError, match=r"^ReLU has no weights of two dimensions; nothing can be pruned$"):
        prune(torch.nn.ReLU(), samples, ratio=0.5)
    for ratio in (0, 1, 1.5, -0.1, True, "half"):
        with pytest.raises(
            UsageError, match=rf"^ratio={ratio}; choose a share of the weights between 0 and 1, both excl"
        ):
            prune(module, samples, ratio=ratio)
    with pytest.raises(UsageError, match=r"^mode=structured; choose one of local, global$"):
        prune(module, samples, ratio=0.5, mode="structured")
    with pytest.raises(UsageError, match=r"^there are no samples; give at least one, by which the module is traced$"):
        prune(module, [], ratio=0.5)
    with pytest.raises(UsageError, match=r"^samples of type Tensor; give an iterable of samples$"):
        prune(module, samples[0], ratio=0.5)
    with pytest.raises(NonFiniteError, match=r"^sample 1 holds a NaN or an infinity; mend the data, or leave it out$"):
        prune(module, [samples[0], samples[0] * np.nan], ratio=0.5)
    with pytest.raises(UsageError, match=r"^pruning: NNCF refuses: Ignored nodes that matches names \['nothing'\]"):
        prune(module, samples, ratio=0.5, ignored=["nothing"])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("missing", ["torch", "torchao"])
def test_a_missing_package_is_named_with_its_extra(module, samples, missing: str, monkeypatch: pytest.MonkeyPatch):
    """nncf imports torchao when it strips, and does not declare it."""
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == missing else find(name, *more))
    said = f"pruning needs {missing}, which is not installed; pip install 'edgekit-openvino[prune]'"
    with pytest.raises(MissingPluginError, match=f"^{re.escape(said)}$"):
        prune(module, samples, ratio=0.5)


def test_what_surprises_in_nncf_3_4(module, samples, monkeypatch: pytest.MonkeyPatch):
    """Why `prune` copies, why it strips in place, and why it asks for torchao."""
    with quiet():
        given = trained(steps=0)
        masked = nncf.prune(given, nncf.PruneMode.UNSTRUCTURED_MAGNITUDE_LOCAL, ratio=0.5, examples_inputs=samples[0])
        assert masked is given
        native = nncf.strip(masked, example_input=samples[0])
    assert any("binary_mask" in name for name in native.state_dict())
    for name in [name for name in sys.modules if name.startswith(("torchao", "nncf.torch.quantization.strip"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delitem(sys.modules, "nncf.torch.function_hook.strip", raising=False)
    monkeypatch.setitem(sys.modules, "torchao", None)
    with quiet(), pytest.raises(ModuleNotFoundError, match="torchao"):
        nncf.strip(masked, strip_format=nncf.StripFormat.IN_PLACE)
