"""MLX directories against mlx-lm: it loads what edgekit writes, and edgekit reads what it converts."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
from functools import partial
from pathlib import Path

import attrs
import mlx.core as mx
import mlx_lm
import numpy as np
import pytest
from mlx.utils import tree_flatten
from mlx_lm.convert import convert as mlx_convert
from mlx_lm.convert import mixed_quant_predicate_builder
from mlx_models import BASE, FAMILIES, REFUSED, config_of, write

import edgekit
from edgekit import sample
from edgekit.architectures.forward import Transformer
from edgekit.architectures.hf import config_from_hf
from edgekit.errors import UnsupportedModelError
from edgekit.files.digests import sha256
from edgekit.precision import find_precision
from edgekit.recipe import Recipe
from edgekit.tensor import EncodedTensor
from edgekit.testing.models import artifact_of, random_model
from edgekit_mlx import writer
from edgekit_mlx.library import from_mlx
from edgekit_mlx.modes import NATIVE

TOKENS = np.random.default_rng(3).integers(0, 128, 40)
families = pytest.mark.parametrize("name", FAMILIES)


def quietly(function, *arguments, **options):
    with contextlib.redirect_stdout(io.StringIO()):
        return function(*arguments, **options)


def by_mlx(path: Path):
    """The module as mlx-lm's own loader makes it; without a tokenizer."""
    return mlx_lm.utils.load_model(path)[0]


def logits(module, tokens=TOKENS):
    return np.array(module(mx.array([tokens.tolist()])).astype(mx.float32))[0]


def relative(a, b):
    return np.abs(a - b).max() / np.abs(b).max()


@families
def test_mlx_lm_loads_what_is_written_and_computes_the_same(name, tmp_path):
    artifact = write(name, tmp_path)
    wanted = Transformer(random_model(config_of(name))).logits(TOKENS)
    # Measured: 1e-6 to 4e-6, whatever the family.
    assert relative(logits(by_mlx(artifact.path)), wanted) < 1e-4
    again = edgekit.open(artifact.path)
    assert again.format == "mlx"
    np.testing.assert_array_equal(Transformer(again.model).logits(TOKENS), Transformer(artifact.model).logits(TOKENS))


@families
def test_what_mlx_lm_converts_is_read(name, tmp_path):
    """From a Hugging Face directory: every part of every tensor, as mlx-lm wrote it."""
    source = artifact_of(random_model(config_of(name)), tmp_path / "memory")
    edgekit.convert(source, tmp_path / "hf")
    module, config = quietly(mlx_lm.utils.load_model, tmp_path / "hf")
    module, config = quietly(mlx_lm.utils.quantize_model, module, config, 32, 4)
    mlx_lm.utils.save_model(tmp_path / "theirs", module)
    mlx_lm.utils.save_config(config, tmp_path / "theirs" / "config.json")
    theirs = edgekit.open(tmp_path / "theirs")
    assert theirs.format == "mlx"
    ours = edgekit.quantize(tmp_path / "hf", "int4-g32", to=tmp_path / "ours", format="mlx")
    assert ours.tensors.keys() == theirs.tensors.keys()
    for tensor_name, tensor in theirs.tensors.items():
        mine = ours.tensors[tensor_name]
        assert isinstance(tensor, EncodedTensor) == isinstance(mine, EncodedTensor), tensor_name
        if isinstance(tensor, EncodedTensor):
            for part, values in tensor.read().parts.items():
                assert values.tobytes() == mine.read().parts[part].tobytes(), (tensor_name, part)
        else:
            assert tensor.read().tobytes() == mine.read().tobytes(), tensor_name
    assert theirs.model.config == attrs.evolve(ours.model.config, name=theirs.model.config.name)


@pytest.mark.parametrize("name", NATIVE)
@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_every_format_is_loaded_by_mlx_lm_with_the_same_values(name, dtype, tmp_path):
    config = attrs.evolve(BASE, width=128, head_dim=32, rotary_dim=32, ffn=128, attention_scale=32**-0.5)
    source = edgekit.convert(artifact_of(random_model(config, 7), tmp_path / "memory"), tmp_path / "hf", dtype=dtype)
    artifact = edgekit.quantize(source, find_precision(name), to=tmp_path / "out", format="mlx")
    parameters = dict(tree_flatten(by_mlx(artifact.path).parameters()))
    for tensor in artifact.tensors.values():
        if isinstance(tensor, EncodedTensor):
            parts = tensor.read().parts
            for part, values in parts.items():
                theirs = from_mlx(parameters[f"{tensor.name.removesuffix('weight')}{part}"])
                assert theirs.tobytes() == values.tobytes(), (tensor.name, part)
    assert {t.precision.name for t in artifact.tensors.values() if isinstance(t, EncodedTensor)} == {name}


@pytest.mark.parametrize("recipe", ["mixed_2_6", "mixed_3_4", "mixed_3_6", "mixed_4_6"])
@pytest.mark.parametrize("layers", [3, 10, 16])
def test_mixtures_are_mlx_lms(recipe, layers, tmp_path):
    """Plan by plan; and the files are alike in every byte of every tensor."""
    for family in ("llama", "qwen2", "phi3", "gemma2"):
        folder = tmp_path / f"{family}{layers}"
        config = attrs.evolve(config_of(family), layers=layers)
        folder.mkdir()
        edgekit.convert(artifact_of(random_model(config), folder / "memory"), folder / "hf")
        module, theirs = quietly(mlx_lm.utils.load_model, folder / "hf")
        predicate = mixed_quant_predicate_builder(recipe, module, 64)
        module, theirs = quietly(mlx_lm.utils.quantize_model, module, theirs, 64, 4, quant_predicate=predicate)
        ours = edgekit.quantize(folder / "hf", recipe, to=folder / "out", format="mlx", allow_unquantized=True)
        found = {
            n.removesuffix(".weight"): t.precision.bits for n, t in ours.tensors.items() if hasattr(t, "precision")
        }
        wanted = {path: given["bits"] for path, given in theirs["quantization"].items() if isinstance(given, dict)}
        assert found == wanted
        by_mlx(ours.path)


def test_the_sample_model_as_mlx_lm_converts_it(tmp_path):
    """Tokenizer and all, bfloat16: the same tensors, and mlx-lm continues a text with what edgekit wrote."""
    quietly(mlx_convert, str(sample.path()), str(tmp_path / "theirs"), quantize=True, q_group_size=64, q_bits=4)
    theirs = edgekit.open(tmp_path / "theirs")
    ours = edgekit.quantize(sample.path(), "4bit", to=tmp_path / "ours", format="mlx")
    assert {
        n: t.read().parts["scales"].tobytes() for n, t in theirs.tensors.items() if isinstance(t, EncodedTensor)
    } == {n: t.read().parts["scales"].tobytes() for n, t in ours.tensors.items() if isinstance(t, EncodedTensor)}
    assert (theirs.config["quantization"], theirs.config["quantization_config"]) == (ours.config["quantization"],) * 2
    assert theirs.tokenizer is not None
    texts = []
    for artifact in (theirs, ours):
        module, tokenizer = mlx_lm.load(str(artifact.path))
        texts.append(mlx_lm.generate(module, tokenizer, "Once upon a time", max_tokens=20))
    assert texts[0] == texts[1]


def test_rules_of_ones_own_become_entries(tmp_path):
    artifact = write("llama", tmp_path)
    recipe = Recipe.of({"*v_proj*": "int8-g32", "*down_proj*": "mxfp8", "lm_head.weight": "F32", "*": "int4-g32"})
    small = edgekit.quantize(artifact, recipe, to=tmp_path / "small", format="mlx")
    section = small.config["quantization"]
    assert (section["bits"], section["group_size"], section["mode"]) == (4, 32, "affine")
    assert section["model.layers.1.self_attn.v_proj"] == {"group_size": 32, "bits": 8, "mode": "affine"}
    assert section["model.layers.0.mlp.down_proj"] == {"group_size": 32, "bits": 8, "mode": "mxfp8"}
    assert "lm_head" not in section
    module = by_mlx(small.path)
    assert module.layers[0].mlp.down_proj.mode == "mxfp8"
    wanted = Transformer(small.model).logits(TOKENS)
    # Measured: 3e-7 to 4e-6.
    assert relative(logits(module), wanted) < 1e-4


@pytest.mark.parametrize("limit", [1, 40_000])
def test_shards(limit, tmp_path, monkeypatch):
    monkeypatch.setattr(writer, "SHARD", limit)
    artifact = write("llama", tmp_path)
    files = sorted(path.name for path in artifact.path.glob("*.safetensors"))
    assert len(files) > 1
    assert files[0] == f"model-00001-of-{len(files):05}.safetensors"
    index = json.loads((artifact.path / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == set(files)
    wanted = Transformer(random_model(config_of("llama"))).logits(TOKENS)
    assert relative(logits(by_mlx(artifact.path)), wanted) < 1e-4
    small = edgekit.quantize(artifact.path, "int4-g32", to=tmp_path / "small", format="mlx")
    by_mlx(small.path)
    assert edgekit.open(small.path).model.config.layers == 2


@pytest.mark.parametrize("what", REFUSED)
def test_models_that_mlx_lm_computes_otherwise_are_refused(what, tmp_path):
    changes, why = REFUSED[what]
    source = artifact_of(random_model(attrs.evolve(BASE, **changes)), tmp_path / "memory")
    with pytest.raises(UnsupportedModelError, match=why):
        edgekit.convert(source, tmp_path / "out", format="mlx")
    assert not (tmp_path / "out").exists()


def test_a_window_is_said(tmp_path):
    said: list[str] = []
    source = artifact_of(random_model(config_of("mistral, window")), tmp_path / "memory")
    edgekit.convert(source, tmp_path / "out", format="mlx", notes=said)
    assert any("beyond 48 tokens it computes otherwise" in note for note in said)


def experts(folder: Path):
    sizes = {"num_experts": 4, "num_experts_per_tok": 2, "norm_topk_prob": True}
    hf = {
        "model_type": "qwen3_moe", "vocab_size": 128, "hidden_size": 64, "num_hidden_layers": 2, "head_dim": 16,
        "num_attention_heads": 4, "num_key_value_heads": 2, "moe_intermediate_size": 32, **sizes,
    }  # fmt: skip
    return artifact_of(random_model(config_from_hf(hf, "test")), folder / "experts")


def calibrated(source, to: Path):
    calibration = edgekit.calibrate(source, TEXT, context=24, holdout=0)
    return edgekit.quantize(source, "int4-g32", to=to, format="mlx", calibration=calibration, rounding="feedback")


def fitted(source, to: Path):
    return edgekit.fit(source, TEXT, to=to, format="mlx", bits=5.5, context=24).artifact


def to_gguf_and_back(source, to: Path):
    first = edgekit.quantize(source, Recipe.of({"*": "ggml:Q4_0"}), to=to.with_suffix(".gguf"), overwrite=True)
    return edgekit.convert(edgekit.convert(first, to, format="mlx"), to.with_suffix(".again.gguf"))


TEXT = np.random.default_rng(4).integers(0, 128, 480)
#: Every kind of conversion: float types, modes, mixtures, rules, learned rounding, fits, bridges both ways.
CONVERSIONS = {
    **{dtype: partial(edgekit.convert, format="mlx", dtype=dtype) for dtype in ("F32", "F16", "BF16")},
    **{
        name: lambda source, to, name=name: edgekit.quantize(source, name, to=to, format="mlx", allow_unquantized=True)
        for name in ("4bit", "mixed_3_6", "int1-g32", "int3-g32", "mxfp4", "mxfp8", "nvfp4", "nvfp4-tensor")
    },
    "feedback": calibrated,
    "fit": fitted,
    "gguf": to_gguf_and_back,
}


@pytest.mark.parametrize("model", ["dense", "experts"])
@pytest.mark.parametrize("what", CONVERSIONS)
def test_ten_runs_one_hash(what, model, tmp_path):
    """Learned methods and fine-tuning: test_mlx_learned.py and test_mlx_finetune.py."""
    if model == "experts" and what in ("feedback", "fit"):
        pytest.skip("as of dense models, and slow")
    source = experts(tmp_path) if model == "experts" else artifact_of(random_model(BASE, 2), tmp_path / "memory")
    hashes = set()
    for _ in range(10):
        (tmp_path / "run").mkdir()
        CONVERSIONS[what](source, tmp_path / "run" / "model")
        files = sorted(file for file in (tmp_path / "run").rglob("*") if file.is_file())
        hashes.add(tuple((file.name, sha256(file)) for file in files))
        shutil.rmtree(tmp_path / "run")
    assert len(hashes) == 1
    assert {name for name, _ in hashes.pop()} >= {"config.json", "model.safetensors"}
