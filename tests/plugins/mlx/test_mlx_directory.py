"""Reading MLX directories without MLX: what they say, and every way in which they contradict themselves."""

from __future__ import annotations

import json
from pathlib import Path

import attrs
import numpy as np
import pytest

import edgekit
from edgekit.architectures import ModelConfig
from edgekit.errors import InvalidFileError, MissingFileError, UnsupportedModelError
from edgekit.formats import safetensors
from edgekit.pipeline import find_recipe
from edgekit.precision import find_precision
from edgekit.recipe import Recipe
from edgekit.reference import reference
from edgekit.tensor import EncodedTensor
from edgekit.testing.models import artifact_of, random_model
from edgekit_mlx.format import MlxFormat
from edgekit_mlx.sections import read_section, section_of

CONFIG = ModelConfig(
    family="llama", layers=2, width=64, heads=4, kv_heads=2, head_dim=16, ffn=128, vocab=64, context=64,
    norm_eps=1e-5, rope_theta=10000.0, attention_scale=0.25, rotary_dim=16,
)  # fmt: skip
MODULE = "model.layers.0.mlp.up_proj"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model of 4 bits in groups of 32, float32 scales."""
    source = artifact_of(random_model(CONFIG), tmp_path / "memory")
    return edgekit.quantize(source, "int4-g32", to=tmp_path / "model", format="mlx").path


def change(model: Path, config=None, tensors=None) -> Path:
    """Rewrite config.json, and arrays of the weights; a value of None removes."""
    if config is not None:
        data = json.loads((model / "config.json").read_text())
        data["quantization"] = config if config != "none" else None
        if config == "none":
            del data["quantization"], data["quantization_config"]
        (model / "config.json").write_text(json.dumps(data))
    if tensors is not None:
        found, metadata = safetensors.open_tensors(model / "model.safetensors")
        arrays = {name: tensor.read() for name, tensor in found.items()} | tensors
        safetensors.write(model / "model.safetensors", {n: a for n, a in arrays.items() if a is not None}, metadata)
    return model


def fault(model: Path) -> str:
    with pytest.raises(InvalidFileError) as caught:
        edgekit.open(model)
    return str(caught.value).removeprefix(f"{model}: module {MODULE}: ")


G32 = {"group_size": 32, "bits": 4, "mode": "affine"}


def test_a_directory_is_more_than_a_hugging_face_one(model):
    artifact = edgekit.open(model)
    assert (artifact.format, len(artifact.tensors)) == ("mlx", 21)
    tensor = artifact.tensors[f"{MODULE}.weight"]
    assert isinstance(tensor, EncodedTensor)
    assert (tensor.precision.name, tensor.shape) == ("mlx:int4-g32", (128, 64))
    x = random_model(CONFIG).tensors["blk.0.ffn_up.weight"].float32()
    wanted = reference(tensor.precision).encode(x, tensor.precision)
    for part, values in tensor.read().parts.items():
        assert values.tobytes() == wanted[part].tobytes()
    np.testing.assert_array_equal(tensor.float32(3, 5), tensor.float32()[3:5])
    assert edgekit.open(model / "model.safetensors").format == "mlx"


def test_floats_that_mlx_wrote_are_recognised_by_their_metadata(tmp_path):
    source = artifact_of(random_model(CONFIG), tmp_path / "memory")
    plain = edgekit.convert(source, tmp_path / "plain", format="mlx")
    assert edgekit.open(plain.path).format == "mlx"
    assert edgekit.open(edgekit.convert(source, tmp_path / "hf").path).format == "hf"


def test_the_default_is_what_most_modules_have():
    names = {"a": "mlx:int4-g64", "b": "mlx:int4-g64", "c": "mlx:mxfp8", "d": "mlx:nvfp4-tensor"}
    section = section_of({path: find_precision(name) for path, name in names.items()})
    assert section == {
        "group_size": 64, "bits": 4, "mode": "affine",
        "c": {"group_size": 32, "bits": 8, "mode": "mxfp8"},
        "d": {"group_size": 16, "bits": 4, "mode": "nvfp4", "global_scale": True},
    }  # fmt: skip
    read = read_section({"quantization": section}, Path("config.json"))
    assert (read.of("a").bits, read.of("c").mode, read.of("d").group) == (4, "mxfp8", 16)


def test_stacked_experts_are_rows(tmp_path, model):
    """[experts, out, in / …]: one tensor, whose rows can be read on their own."""
    precision = find_precision("mlx:int4-g32")
    x = np.random.default_rng(0).standard_normal((3 * 8, 64)).astype(np.float32)
    parts = {k: v.reshape(3, 8, -1) for k, v in reference(precision).encode(x, precision).items()}
    change(model, None, {f"extra.experts.{name}": values for name, values in parts.items()})
    tensor = edgekit.open(model).tensors["extra.experts.weight"]
    assert tensor.shape == (3, 8, 64)
    np.testing.assert_array_equal(tensor.float32(), reference(precision).decode(
        {k: v.reshape(24, -1) for k, v in parts.items()}, precision, (24, 64)))  # fmt: skip
    np.testing.assert_array_equal(tensor.float32(7, 9), tensor.float32()[7:9])


def test_a_global_scale_is_read(model):
    precision = find_precision("mlx:nvfp4-tensor")
    x = np.random.default_rng(0).standard_normal((8, 64)).astype(np.float32)
    parts = reference(precision).encode(x, precision)
    change(model, None, {f"extra.{name}": values for name, values in parts.items()})
    tensor = edgekit.open(model).tensors["extra.weight"]
    assert tensor.precision == precision
    np.testing.assert_array_equal(tensor.float32(), reference(precision).decode(parts, precision, (8, 64)))
    change(model, None, {"extra.global_scale": np.ones(3, np.float32)})
    with pytest.raises(UnsupportedModelError, match="a global scale for each of 3 experts"):
        edgekit.open(model)


def test_small_floats_are_known_by_their_scales(model):
    """As mlx-lm does: a module without an entry, whose scales are bytes, says its format itself."""
    precision = find_precision("mlx:mxfp8")
    x = random_model(CONFIG).tensors["blk.0.ffn_up.weight"].float32()
    parts = reference(precision).encode(x, precision)
    change(model, None, {f"{MODULE}.{name}": parts.get(name) for name in ("weight", "scales", "biases")})
    assert edgekit.open(model).tensors[f"{MODULE}.weight"].precision == precision


CURE = "; take config.json and the weights from one place, or convert the model again"
ROWS = {"weight": (128, 8), "scales": (128, 2), "biases": (128, 2)}


@pytest.mark.parametrize(
    ("config", "tensors", "message"),
    [
        (None, {"scales": None, "biases": None}, "its weight is packed (uint32), and its scales are missing"),
        (None, {"biases": None}, "its scales are those of the affine mode, and its biases are missing"),
        (None, {"weight": np.zeros((128, 64), np.float32)}, "it has scales, and its weight holds float32; packed weights are uint32"),
        (None, {"scales": np.zeros((127, 2), np.float32)}, "its weight has shape [128, 8], its scales [127, 2]"),
        (None, {"scales": np.zeros((128, 2), np.int32)}, "its scales are int32; they are float32, float16, bfloat16 or uint8"),
        (None, {"scales": np.zeros((128, 2), np.uint8)}, "its scales are uint8, as those of mxfp4, mxfp8 and nvfp4, and it has biases, which those have not"),
        (None, {"biases": np.zeros((128, 2), np.float16)}, "its biases are float16 [128, 2], its scales float32 [128, 2]; the two are alike"),
        ("none", {}, "it has scales, and config.json no section 'quantization' that says their format"),
        ({**G32, MODULE: False}, {}, "quantization in config.json says that it is not quantized, and it has scales"),
        ({**G32, MODULE: {"group_size": 32, "bits": 8}}, {}, "config.json says affine of 8 bits in groups of 32; its 1024 words and 256 scales are not that"),
        ({**G32, MODULE: {"group_size": 64, "bits": 4}}, {}, "config.json says affine of 4 bits in groups of 64; its 1024 words and 256 scales are not that"),
        ({**G32, MODULE: {"group_size": 32, "bits": 4, "mode": "mxfp4"}}, {}, "config.json says mxfp4 of 4 bits in groups of 32; its 1024 words and 256 scales are not that"),
    ],
)  # fmt: skip
def test_contradictions_name_the_module(model, config, tensors, message):
    changed = change(model, config, {f"{MODULE}.{name}": value for name, value in tensors.items()})
    if config == "none":  # every module has scales: the first one is named
        assert f": {message}{CURE}" in fault(changed)
    else:
        assert fault(changed) == message + CURE


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ([], "quantization is [], no object with group_size and bits; take config.json and the weights from one place"),
        ({"bits": 4, "group_size": "64"}, "quantization: bits 4 and group_size '64' have to be integers"),
        ({"bits": 7, "group_size": 64}, "quantization: MLX has no affine of 7 bits in groups of 64; take config.json and the weights from one place"),
        ({**G32, "mode": "int"}, "quantization: mode 'int'; MLX has affine, mxfp4, mxfp8, nvfp4"),
        ({**G32, "a.b": {"bits": 4}}, "quantization of a.b: bits 4 and group_size None have to be integers"),
    ],
)  # fmt: skip
def test_malformed_sections_are_refused(model, section, message):
    data = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**data, "quantization": section}))
    with pytest.raises(InvalidFileError) as caught:
        MlxFormat().open(model)
    assert str(caught.value) == f"{model / 'config.json'}: {message}"


def test_a_float_that_is_configured_as_quantized_is_refused(model):
    change(model, {**G32, "model.norm": {"group_size": 32, "bits": 4}})
    assert "says 4 bits for model.norm, whose weight holds float32" in fault(model)


def test_scales_without_a_weight_are_refused(model):
    change(model, None, {"lost.scales": np.zeros((2, 2), np.float32)})
    assert "lost.scales has no lost.weight beside it" in fault(model)


def test_a_model_of_another_size_is_refused(model):
    data = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**data, "intermediate_size": 96}))
    with pytest.raises(InvalidFileError, match=r"has shape \[128, 64\], the configuration asks for \[96, 64\]"):
        _ = edgekit.open(model).model


def test_a_missing_configuration_is_said(model):
    (model / "config.json").unlink()
    with pytest.raises(MissingFileError, match=r"config.json: no such file"):
        MlxFormat().open(model)


def test_precisions_of_others_are_refused_before_anything_is_written(tmp_path):
    source = artifact_of(random_model(CONFIG), tmp_path / "memory")
    with pytest.raises(UnsupportedModelError, match="MLX has its own precisions"):
        edgekit.quantize(source, "ggml:Q4_0", to=tmp_path / "out", format="mlx")
    assert not (tmp_path / "out").exists()


def test_groups_that_do_not_divide_keep_floats_and_say_so(tmp_path):
    source = artifact_of(random_model(attrs.evolve(CONFIG, ffn=96)), tmp_path / "memory")
    said: list[str] = []
    made = edgekit.quantize(source, "int4-g64", to=tmp_path / "out", format="mlx", notes=said)
    down = made.tensors["model.layers.0.mlp.down_proj.weight"]
    assert not isinstance(down, EncodedTensor)
    assert any("2 matrices fell back (2 mlx:int4-g64 → float:F32)" in note for note in said)


def test_recipes_are_described():
    for name in ("4bit", "mixed_3_6"):
        recipe = find_recipe(name, "mlx")
        assert recipe.name == name
        assert any("mlx:int" in clause.precision for clause in recipe.describe())
    with pytest.raises(UnsupportedModelError, match="recipe mixed_3_6 counts layers"):
        find_recipe("mixed_3_6", "mlx").plan([], None)


def test_the_source_keeps_what_only_it_knows(tmp_path, model):
    """Keys of config.json that mlx-lm does not read stay; rope_parameters become the keys that it reads."""
    data = json.loads((model / "config.json").read_text())
    del data["rope_theta"], data["rope_scaling"], data["quantization"], data["quantization_config"]
    data |= {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}, "note": "kept"}
    source = edgekit.convert(artifact_of(random_model(CONFIG), tmp_path / "memory"), tmp_path / "hf")
    (source.path / "config.json").write_text(json.dumps(data))
    made = edgekit.quantize(source.path, Recipe.of({"*": "int4-g32"}), to=tmp_path / "out", format="mlx")
    written = json.loads((made.path / "config.json").read_text())
    assert (written["note"], written["rope_theta"], written["rope_scaling"]) == ("kept", 5e5, None)
    assert "rope_parameters" not in written
    assert written["tie_word_embeddings"] is False
