"""What was found instead of a model's weights is named, with a cure."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import edgekit
from edgekit import sample
from edgekit.architectures.found import refuse_other_weights
from edgekit.errors import UnsupportedModelError
from edgekit.files import guard
from edgekit.formats import safetensors

Q = "model.layers.0.self_attn.q_proj"
LORA = f"base_model.model.{Q}.lora_A.weight"
CONFIG = {
    "model_type": "llama",
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "vocab_size": 8,
    "max_position_embeddings": 16,
}
KINDS = {
    "optimum-quanto": [f"{Q}.weight._data", f"{Q}.weight._scale"],
    "bitsandbytes to 4 bits": [f"{Q}.weight", f"{Q}.weight.absmax", f"{Q}.weight.quant_map"],
    "bitsandbytes to 8 bits": [f"{Q}.weight", f"{Q}.SCB"],
    "packed by GPTQ": [f"{Q}.qweight", f"{Q}.qzeros", f"{Q}.scales", f"{Q}.g_idx"],
    "packed by AWQ": [f"{Q}.qweight", f"{Q}.qzeros", f"{Q}.scales"],
    "compressed-tensors": [f"{Q}.weight_packed", f"{Q}.weight_scale", f"{Q}.weight_shape"],
    "FP8": [f"{Q}.weight", f"{Q}.weight_scale_inv"],
    "ModelOpt": [f"{Q}.weight", f"{Q}.weight_scale"],
    "HQQ": [f"{Q}.W_q", f"{Q}.scale"],
    "MXFP4": ["model.layers.0.mlp.experts.up_proj_blocks", "model.layers.0.mlp.experts.up_proj_scales"],
    "it is a LoRA adapter": [LORA, LORA.replace("_A", "_B")],
    "lies unmerged in its weights": [f"{Q}.base_layer.weight", f"{Q}.lora_A.default.weight"],
    "torch.compile wraps": ["_orig_mod.model.norm.weight"],
    "DataParallel or DeepSpeed wraps": ["module.model.norm.weight"],
    "Meta's and Mistral's own files": ["tok_embeddings.weight", "layers.0.attention.wq.weight"],
}
CURES = (
    "full-precision model that it was made from",
    "merge_and_unload()",
    "save_pretrained(NEW)",
    "transformers' form",
)


def put(directory: Path, names: list[str], **config: object) -> Path:
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(CONFIG | config))
    safetensors.write(directory / "model.safetensors", {name: np.ones((8, 8), np.float32) for name in names})
    return directory


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("target", ["q", "q.gguf"])
def test_other_weights_are_named_with_a_cure_and_never_quantized(tmp_path: Path, kind: str, target: str) -> None:
    source = put(tmp_path / "m", [*KINDS[kind], "model.embed_tokens.weight"][: None if "wraps" not in kind else 1])
    if kind == "it is a LoRA adapter":
        source = put(tmp_path / "adapter", KINDS[kind])
    with pytest.raises(UnsupportedModelError) as error:
        edgekit.quantize(source, "Q8_0" if target.endswith("gguf") else "affine:int8-sym-g32", to=tmp_path / target)
    assert kind in str(error.value)
    assert any(cure in str(error.value) for cure in CURES)
    assert "fetch the model again" not in str(error.value)
    assert not (tmp_path / target).exists()


def test_plain_models_are_none_of_them() -> None:
    whole = [
        "model.embed_tokens.weight",
        f"{Q}.weight",
        f"{Q}.bias",
        "model.layers.0.mlp.up_proj.weight",
        "lm_head.weight",
    ]
    refuse_other_weights(whole, "m", CONFIG)
    refuse_other_weights(["bert.encoder.layer.0.attention.self.query.weight"], "m", {"model_type": "bert"})
    refuse_other_weights([], "m")


@pytest.mark.parametrize(
    ("quantization", "named"),
    [
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "weights quantized by bitsandbytes"),
        ({"quant_method": "fp8"}, "weights quantized by fine-grained FP8"),
        ({"quant_method": "brandnew"}, "weights quantized by brandnew"),
        ({"bits": 4}, "quantized weights ({'bits': 4})"),
    ],
)
def test_what_config_json_says_is_named(tmp_path: Path, quantization: dict[str, object], named: str) -> None:
    source = put(tmp_path / "m", ["model.embed_tokens.weight"], quantization_config=quantization)
    with pytest.raises(UnsupportedModelError) as error:
        edgekit.quantize(source, "affine:int8-sym-g32", to=tmp_path / "q")
    assert f"its config.json says that it holds {named}" in str(error.value)


def adapter(directory: Path) -> Path:
    directory.mkdir(exist_ok=True)
    (directory / "adapter_config.json").write_text('{"base_model_name_or_path": "meta/base"}')
    safetensors.write(directory / "adapter_model.safetensors", {LORA: np.ones((4, 8), np.float32)})
    return directory


@pytest.mark.parametrize("config", [False, True])
@pytest.mark.parametrize("file", ["", "adapter_model.safetensors"])
def test_the_directory_of_an_adapter_names_its_base(tmp_path: Path, config: bool, file: str) -> None:
    directory = adapter(tmp_path / "a")
    if config:
        (directory / "config.json").write_text(json.dumps(CONFIG))
    with pytest.raises(
        UnsupportedModelError, match=r"it is a LoRA adapter of meta/base .* merge it into its base model"
    ):
        edgekit.open(directory / file)


#: Without a path: it is written into the manifest, whose bytes must not depend on where the source lies.
ADAPTER_NOTE = "adapter_config.json is left out: the adapter beside the model is not merged into it"


def test_what_a_reader_leaves_out_is_in_the_manifest(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = Path(shutil.copytree(sample.path(), tmp_path / "m"))
    adapter(source)
    caplog.set_level("INFO", logger="edgekit")
    notes: list[str] = []
    made = edgekit.quantize(source, "affine:int8-sym-g32", to=tmp_path / "q", notes=notes)
    assert made.notes["source"] == ADAPTER_NOTE
    assert made.manifest is not None
    assert made.manifest.notes["source"] == ADAPTER_NOTE
    assert ADAPTER_NOTE in caplog.text
    assert notes.count(ADAPTER_NOTE) == 1


def test_an_adapter_beside_a_model_is_left_out_and_said_so(tmp_path: Path) -> None:
    source = put(tmp_path / "m", ["model.embed_tokens.weight"])
    (source / "config.json").write_text(json.dumps(CONFIG | {"model_type": "other"}))
    adapter(source)
    opened, notes = edgekit.open(source), list[str]()
    assert set(opened.tensors) == {"model.embed_tokens.weight"}
    with guard.working(tmp_path / "q", {}, notes=notes), pytest.raises(UnsupportedModelError):
        _ = opened.model
    assert notes == [ADAPTER_NOTE]


def test_what_is_missing_is_no_call_to_download(tmp_path: Path) -> None:
    source = put(tmp_path / "m", ["model.embed_tokens.weight", "lm_head.weight"])
    with pytest.raises(
        ValueError, match=r"are missing: .*; 1 of 11 are there: weights and configuration are of differ"
    ):
        _ = edgekit.open(source).model


def test_a_copy_of_the_embedding_is_said(tmp_path: Path) -> None:
    config = sample.path() / "config.json"
    tensors = edgekit.open(sample.path()).tensors
    arrays = {name: tensor.float32().reshape(tensor.shape) for name, tensor in tensors.items()}
    arrays["lm_head.weight"] = arrays["model.embed_tokens.weight"]
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "config.json").write_bytes(config.read_bytes())
    safetensors.write(tmp_path / "m" / "model.safetensors", arrays)
    opened, notes = edgekit.open(tmp_path / "m"), list[str]()
    with guard.working(tmp_path / "q", {}, notes=notes):
        assert opened.model.config.tied
    assert notes == ["lm_head.weight has the embedding's values, and counts as the same matrix"]
