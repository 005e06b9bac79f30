"""Hugging Face directories: read whole or in shards, written in any precision, and nothing leads outside."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import attrs
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file

import edgekit
from edgekit.artifact import Artifact
from edgekit.errors import (
    InvalidFileError,
    LockedError,
    MissingFileError,
    MissingPluginError,
    NonFiniteError,
    ResourceError,
    UnsupportedModelError,
    UsageError,
)
from edgekit.formats import safetensors
from edgekit.formats._parts import part_layouts
from edgekit.formats.hf import HuggingFaceFormat
from edgekit.precision._registry import catalogue
from edgekit.recipe import fits
from edgekit.reference import reference
from edgekit.tensor import EncodedTensor, Tensor
from edgekit.tokenizer import Tokenizer, TokenType

CONFIG = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 48,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
}
Arrays = dict[str, np.ndarray[Any, Any]]


def llama(dtype: Any = np.float32) -> Arrays:
    """Random weights of a small tied Llama."""
    rng = np.random.default_rng(0)
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (48, 64), "model.norm.weight": (64,)}
    for layer in range(2):
        prefix = f"model.layers.{layer}."
        shapes |= {
            prefix + "self_attn.q_proj.weight": (64, 64),
            prefix + "self_attn.k_proj.weight": (32, 64),
            prefix + "self_attn.v_proj.weight": (32, 64),
            prefix + "self_attn.o_proj.weight": (64, 64),
            prefix + "mlp.gate_proj.weight": (96, 64),
            prefix + "mlp.up_proj.weight": (96, 64),
            prefix + "mlp.down_proj.weight": (64, 96),
            prefix + "input_layernorm.weight": (64,),
            prefix + "post_attention_layernorm.weight": (64,),
        }
    return {n: (rng.standard_normal(shape) / 8).astype(np.float32).astype(dtype) for n, shape in shapes.items()}


def put(directory: Path, arrays: Arrays, config: Mapping[str, Any] = CONFIG) -> Path:
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config))
    safetensors.write(directory / "model.safetensors", arrays, {"format": "pt"})
    return directory


def put_shards(directory: Path, arrays: Arrays) -> Path:
    put(directory, arrays)
    (directory / "model.safetensors").unlink()
    names = list(arrays)
    shards = {"model-00001-of-00002.safetensors": names[:9], "model-00002-of-00002.safetensors": names[9:]}
    for file, members in shards.items():
        safetensors.write(directory / file, {name: arrays[name] for name in members})
    weight_map = {name: file for file, members in shards.items() for name in members}
    write_index(directory, weight_map)
    return directory


def write_index(directory: Path, weight_map: object) -> None:
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def weight_map_of(directory: Path) -> dict[str, str]:
    found: dict[str, str] = json.loads((directory / "model.safetensors.index.json").read_text())["weight_map"]
    return found


def names(directory: Path) -> set[str]:
    return {entry.name for entry in directory.iterdir()}


def same_tensors(artifact: Artifact, arrays: Arrays) -> None:
    assert set(artifact.tensors) == set(arrays)
    for name, array in arrays.items():
        tensor = artifact.tensors[name]
        assert isinstance(tensor, Tensor)
        assert (tensor.shape, tensor.dtype) == (array.shape, array.dtype.name)
        np.testing.assert_array_equal(tensor.float32().reshape(array.shape), array.astype(np.float32))


# --- reading ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_one_file(tmp_path: Path, dtype: Any) -> None:
    arrays = llama(dtype)
    artifact = edgekit.open(put(tmp_path / "m", arrays))
    same_tensors(artifact, arrays)
    assert list(artifact.tensors) == list(arrays)
    assert (artifact.format, artifact.config, artifact.manifest) == ("hf", CONFIG, None)
    assert [file.name for file in artifact.files] == ["model.safetensors", "config.json"]
    assert artifact.parameters == sum(array.size for array in arrays.values())
    assert artifact.tokenizer is None


def test_shards_are_one_model(tmp_path: Path) -> None:
    arrays = llama()
    artifact = edgekit.open(put_shards(tmp_path / "m", arrays))
    same_tensors(artifact, arrays)
    assert [file.name for file in artifact.files][:3] == [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
    ]
    whole = edgekit.open(put(tmp_path / "n", arrays))
    assert edgekit.evaluate(artifact, np.arange(40)) == edgekit.evaluate(whole, np.arange(40))


def test_a_file_stands_for_its_directory(tmp_path: Path) -> None:
    arrays = llama()
    same_tensors(edgekit.open(put(tmp_path / "m", arrays) / "model.safetensors"), arrays)
    same_tensors(edgekit.open(put_shards(tmp_path / "n", arrays) / "model-00002-of-00002.safetensors"), arrays)


def test_one_file_of_another_name(tmp_path: Path) -> None:
    directory = put(tmp_path / "m", llama())
    (directory / "model.safetensors").rename(directory / "weights.safetensors")
    same_tensors(edgekit.open(directory), llama())


def test_the_model_is_seen_by_what_its_tensors_are_for(tmp_path: Path) -> None:
    model = edgekit.open(put(tmp_path / "m", llama())).model
    assert (model.config.family, model.config.layers, model.config.tied) == ("llama", 2, True)
    assert model.tensors["blk.1.ffn_up.weight"].name == "model.layers.1.mlp.up_proj.weight"


def test_matches(tmp_path: Path) -> None:
    hf = HuggingFaceFormat()
    directory = put(tmp_path / "m", llama())
    assert hf.matches(directory)
    assert hf.matches(directory / "model.safetensors")
    assert not hf.matches(directory / "config.json")
    assert not hf.matches(tmp_path)
    (directory / "config.json").unlink()
    assert not hf.matches(directory)
    assert not hf.matches(directory / "model.safetensors")


def test_the_hubs_cache_links_to_its_blobs(tmp_path: Path) -> None:
    blobs = tmp_path / "models--x--y" / "blobs"
    snapshot = tmp_path / "models--x--y" / "snapshots" / "abc"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for number, file in enumerate(put(tmp_path / "m", llama()).iterdir()):
        file.rename(blobs / str(number))
        (snapshot / file.name).symlink_to(Path("../../blobs") / str(number))
    same_tensors(edgekit.open(snapshot), llama())


# --- what is refused --------------------------------------------------------------------------------------------


def remove(name: str) -> Callable[[Path], object]:
    return lambda directory: (directory / name).unlink()


def config(text: str) -> Callable[[Path], object]:
    return lambda directory: (directory / "config.json").write_text(text)


def remap(**changes: object) -> Callable[[Path], None]:
    def change(directory: Path) -> None:
        mapping: dict[str, object] = dict(weight_map_of(directory))
        mapping |= {name.replace("__", "."): file for name, file in changes.items()}
        write_index(directory, {name: file for name, file in mapping.items() if file is not None})

    return change


def second_file(directory: Path) -> None:
    (directory / "model.safetensors").rename(directory / "a.safetensors")
    safetensors.write(directory / "b.safetensors", {})


def pickle_only(directory: Path) -> None:
    (directory / "model.safetensors").unlink()
    (directory / "pytorch_model-00001-of-00002.bin").write_bytes(b"\x80\x02")


def link_outside(directory: Path) -> None:
    (directory / "model.safetensors").rename(directory.parent / "elsewhere")
    (directory / "model.safetensors").symlink_to(directory.parent / "elsewhere")


def config_outside(directory: Path) -> None:
    (directory / "config.json").rename(directory.parent / "elsewhere")
    (directory / "config.json").symlink_to("../elsewhere")


INDEX, SHARD = "model.safetensors.index.json", "model-00001-of-00002.safetensors"
BAD: Mapping[str, tuple[bool, Callable[[Path], object], type[Exception], str]] = {
    "config is no JSON": (
        False,
        config("{"),
        InvalidFileError,
        "{d}/config.json: the file is not JSON: Expecting property name enclosed in double quotes "
        "(at byte 1); fetch or convert it again",
    ),
    "config has a key twice": (
        False,
        config('{"a": 1, "a": 2}'),
        InvalidFileError,
        "{d}/config.json: the file: key 'a' comes twice (at byte 0); fetch or convert it again",
    ),
    "config is a list": (
        False,
        config("[]"),
        InvalidFileError,
        "{d}/config.json: holds no JSON object; fetch it again",
    ),
    "config is huge": (
        False,
        config(" " * (5 << 20)),
        InvalidFileError,
        "{d}/config.json: larger than 4,194,304 bytes; this is no config.json of a model",
    ),
    "config leads outside": (
        False,
        config_outside,
        InvalidFileError,
        "{d}/config.json: the link leads out of the directory, to {p}/elsewhere; put the file itself here",
    ),
    "weights lead outside": (
        False,
        link_outside,
        InvalidFileError,
        "{d}/model.safetensors: the link leads out of the directory, to {p}/elsewhere; put the file itself here",
    ),
    "two files and no index": (
        False,
        second_file,
        InvalidFileError,
        f"{{d}}: holds 2 safetensors files and no {INDEX} that says which belong together; "
        "fetch the index, or open one of the files",
    ),
    "a pickle": (
        False,
        pickle_only,
        InvalidFileError,
        "{d}/pytorch_model-00001-of-00002.bin: reading a pickle can run any program hidden in it, so it is never "
        "read; fetch the model's safetensors files, or convert it where you trust it: "
        "transformers' AutoModel.from_pretrained(...).save_pretrained(...)",
    ),
    "the manifest is no manifest": (
        False,
        lambda directory: (directory / "edgekit.manifest.json").write_text("{}"),
        InvalidFileError,
        "{d}/edgekit.manifest.json: not an edgekit manifest ('schema'); delete it to go on without",
    ),
    "the manifest has a field of another type": (
        False,
        lambda directory: (directory / "edgekit.manifest.json").write_text('{"schema": 1, "tensors": []}'),
        InvalidFileError,
        "{d}/edgekit.manifest.json: not an edgekit manifest (tensors is not a mapping); delete it to go on without",
    ),
    "the manifest is no UTF-8": (
        False,
        lambda directory: (directory / "edgekit.manifest.json").write_bytes(b'{"schema": "\xff"}'),
        InvalidFileError,
        "{d}/edgekit.manifest.json: the file is not UTF-8 (at byte 12); fetch or convert it again",
    ),
    "the manifest is nested": (
        False,
        lambda directory: (directory / "edgekit.manifest.json").write_text("[" * 100_000 + "]" * 100_000),
        InvalidFileError,
        "{d}/edgekit.manifest.json: the file is nested too deeply (at byte 0); fetch or convert it again",
    ),
    "a shard is missing": (
        True,
        remove(SHARD),
        MissingFileError,
        f"{{d}}/{SHARD}: the shard is missing; {INDEX} has 9 tensors in it, "
        "such as model.embed_tokens.weight; fetch it",
    ),
    "the index leads outside": (
        True,
        remap(x="../elsewhere.safetensors"),
        InvalidFileError,
        "{d}: '../elsewhere.safetensors' is not a plain file name; files lie in the directory itself",
    ),
    "the index is absolute": (
        True,
        remap(x="/etc/passwd"),
        InvalidFileError,
        "{d}: '/etc/passwd' is not a plain file name; files lie in the directory itself",
    ),
    "the index leads outside on Windows": (
        True,
        remap(x="..\\elsewhere.safetensors"),
        InvalidFileError,
        "{d}: '..\\\\elsewhere.safetensors' is not a plain file name; files lie in the directory itself",
    ),
    "the index names the directory": (
        True,
        remap(x=".."),
        InvalidFileError,
        "{d}: '..' is not a plain file name; files lie in the directory itself",
    ),
    "the index has a tensor too many": (
        True,
        remap(odd=SHARD),
        InvalidFileError,
        f"{{d}}/{SHARD}: lacks tensor odd, which {INDEX} has there; fetch the two again",
    ),
    "the index lacks a tensor": (
        True,
        remap(model__norm__weight=None),
        InvalidFileError,
        f"{{d}}/{SHARD}: holds tensor model.norm.weight, which {INDEX} does not have there; fetch the two again",
    ),
    "the index maps to a number": (
        True,
        remap(x=1),
        InvalidFileError,
        f"{{d}}/{INDEX}: weight_map is no mapping of tensors to files; fetch it again",
    ),
    "the index is empty": (
        True,
        lambda directory: write_index(directory, {}),
        InvalidFileError,
        f"{{d}}/{INDEX}: weight_map is no mapping of tensors to files; fetch it again",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_directories(tmp_path: Path, case: str) -> None:
    sharded, spoil, kind, message = BAD[case]
    directory = (put_shards if sharded else put)(tmp_path / "m", llama())
    spoil(directory)
    with pytest.raises(kind) as caught:
        edgekit.open(directory)
    assert str(caught.value) == message.replace("{d}", str(directory)).replace("{p}", str(tmp_path))
    assert caught.value.exit_code == 3  # type: ignore[attr-defined]


def test_a_pickle_by_its_own_path(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x02")
    with pytest.raises(InvalidFileError, match="reading a pickle can run any program"):
        edgekit.open(tmp_path / "pytorch_model.bin")


def test_config_and_weights_are_both_needed(tmp_path: Path) -> None:
    directory = put(tmp_path / "m", llama())
    (directory / "config.json").unlink()
    with pytest.raises(MissingFileError, match=r"config\.json: no such file; a model needs its configuration"):
        HuggingFaceFormat().open(directory)
    put(directory, llama())
    (directory / "model.safetensors").unlink()
    with pytest.raises(MissingFileError, match=r"holds no \*\.safetensors; fetch the weights"):
        HuggingFaceFormat().open(directory)


def test_an_unknown_family_opens_but_has_no_model(tmp_path: Path) -> None:
    artifact = edgekit.open(put(tmp_path / "m", llama(), {"model_type": "whisper"}))
    with pytest.raises(UnsupportedModelError, match="whisper"):
        _ = artifact.model


def test_a_known_family_with_a_tensor_missing(tmp_path: Path) -> None:
    arrays = llama()
    del arrays["model.norm.weight"]
    source = edgekit.open(put(tmp_path / "m", arrays))
    with pytest.raises(InvalidFileError, match=r"model\.norm\.weight"):
        edgekit.quantize(source, "affine:int8-sym-channel", to=tmp_path / "q")
    assert names(tmp_path) == {"m"}


# --- writing ----------------------------------------------------------------------------------------------------

PRECISIONS = [
    "affine:int4-sym-g32",
    "affine:int3-asym-channel",
    "affine:int2-asym-tensor",
    "ggml:Q8_0",
    "mlx:int4-g32",
    "openvino:int4-asym-g32",
    "openvino:nvfp4",
    "onnx:int4-asym-g32",
    "onnx:qdq_int4-asym-g32",
]


@pytest.mark.parametrize("rows", [1, 3, 13])
def test_the_parts_of_every_precision_are_foreseen(rows: int) -> None:
    checked = 0
    for precision in (p for p in catalogue() if not reference(p).traits.needs_importance):
        for cols in (32, 96, 256) if precision.whole_blocks and precision.block else (5, 96):
            layouts = part_layouts(precision, (rows, cols)) if fits(precision, (rows, cols)) else None
            if layouts is None or precision.convention == "float":
                continue
            parts = edgekit.encode(np.linspace(-1, 1, rows * cols).reshape(rows, cols), precision).parts
            assert {k: (p.dtype.name, p.shape) for k, p in parts.items()} == {
                k: (layout.dtype, layout.shape) for k, layout in layouts.items()
            }, f"{precision.name}, {cols} columns"
            checked += 1
    assert checked > 100


@pytest.mark.parametrize("precision", PRECISIONS)
def test_quantized_tensors_come_back_as_they_were_encoded(tmp_path: Path, precision: str) -> None:
    arrays = llama()
    source = edgekit.open(put(tmp_path / "m", arrays))
    written = edgekit.quantize(source, precision, to=tmp_path / "q")
    assert list(written.tensors) == list(arrays)
    encoded = [tensor for tensor in written.tensors.values() if isinstance(tensor, EncodedTensor)]
    assert {tensor.name for tensor in encoded} == {n for n, a in arrays.items() if a.ndim == 2}
    for tensor in encoded:
        expected = edgekit.encode(arrays[tensor.name], precision)
        assert (tensor.precision, tensor.shape) == (expected.precision, expected.shape)
        assert tensor.nbytes == expected.nbytes
        parts = tensor.read().parts
        assert parts.keys() == expected.parts.keys()
        for key, part in expected.parts.items():
            np.testing.assert_array_equal(parts[key], part, strict=True, err_msg=f"{tensor.name}.{key}")
        values = expected.dequantize()
        np.testing.assert_array_equal(tensor.float32(), values)
        np.testing.assert_array_equal(tensor.float32(5, 9), values[5:9])
        np.testing.assert_array_equal(tensor.float32(7, 8), values[7:8])
    assert written.manifest is not None
    assert written.manifest.tensors["model.embed_tokens.weight"]["precision"] == encoded[0].precision.name


@pytest.mark.parametrize("precision", ["affine:int4-sym-g32", "openvino:nvfp4", "float:F16"])
def test_converting_as_it_is_keeps_every_byte(tmp_path: Path, precision: str) -> None:
    edgekit.quantize(put(tmp_path / "m", llama()), precision, to=tmp_path / "q")
    edgekit.convert(tmp_path / "q", tmp_path / "again")
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "q" / name).read_bytes()


def test_downstream_sees_the_quantized_model(tmp_path: Path) -> None:
    source = edgekit.open(put(tmp_path / "m", llama()))
    small = edgekit.quantize(source, "affine:int8-asym-g32", to=tmp_path / "q")
    comparison = edgekit.compare(source, small)
    assert comparison is not None
    ids = np.arange(40)
    near, far = edgekit.evaluate(small, ids), edgekit.evaluate(source, ids)
    assert near.perplexity == pytest.approx(far.perplexity, rel=0.05)


def test_parts_of_a_bfloat16_source_keep_its_type(tmp_path: Path) -> None:
    written = edgekit.quantize(put(tmp_path / "m", llama(ml_dtypes.bfloat16)), "mlx:int4-g32", to=tmp_path / "q")
    header = safetensors.read_header(tmp_path / "q" / "model.safetensors")
    stored = {entry.name: entry.dtype for entry in header.entries}
    assert stored["model.embed_tokens.weight.scales"] == "bfloat16"
    tensor = written.tensors["model.embed_tokens.weight"]
    assert isinstance(tensor, EncodedTensor)
    assert tensor.read().parts["scales"].dtype == ml_dtypes.bfloat16
    expected = edgekit.encode(llama(ml_dtypes.bfloat16)["model.embed_tokens.weight"], "mlx:int4-g32")
    np.testing.assert_array_equal(tensor.float32(), expected.dequantize())


def test_e4m3_scales_are_stored_as_what_they_are(tmp_path: Path) -> None:
    edgekit.quantize(put(tmp_path / "m", llama()), "openvino:nvfp4", to=tmp_path / "q")
    header = safetensors.read_header(tmp_path / "q" / "model.safetensors")
    assert {e.dtype for e in header.entries if e.name.endswith(".scale")} == {"float8_e4m3fn"}


@pytest.mark.parametrize(("precision", "dtype"), [("int4-sym-g32", "bfloat16"), ("int8-sym-channel", "float32")])
def test_scales_of_a_bfloat16_source_have_the_type_that_the_encoder_gives_them(tmp_path, precision, dtype):
    written = edgekit.quantize(put(tmp_path / "m", llama(ml_dtypes.bfloat16)), f"onnx:{precision}", to=tmp_path / "q")
    parts = written.tensors["model.embed_tokens.weight"].read().parts
    expected = edgekit.encode(llama(ml_dtypes.bfloat16)["model.embed_tokens.weight"], f"onnx:{precision}").parts
    assert {part.dtype.name for key, part in parts.items() if key.startswith("scale")} == {dtype}
    assert all(np.array_equal(parts[key], expected[key]) for key in expected)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_full_precision_files_are_plain(tmp_path: Path, dtype: Any) -> None:
    kind = {"float16": "F16", "bfloat16": "BF16"}[np.dtype(dtype).name]
    written = edgekit.convert(put(tmp_path / "m", llama()), tmp_path / "q", dtype=kind)
    expected = {name: array.astype(dtype if array.ndim > 1 else array.dtype) for name, array in llama().items()}
    same_tensors(written, expected)
    if dtype is np.float16:
        loaded = load_file(tmp_path / "q" / "model.safetensors")
        np.testing.assert_array_equal(loaded["model.norm.weight"], expected["model.norm.weight"], strict=True)
    header = safetensors.read_header(tmp_path / "q" / "model.safetensors")
    assert dict(header.metadata) == {"format": "pt"}
    assert header.entries[0].begin < 8 + len(json.dumps(CONFIG)) * 20
    assert (tmp_path / "q" / "model.safetensors").read_bytes()[header.entries[0].begin - 1] != 0


def test_other_files_are_carried_over_byte_for_byte(tmp_path: Path) -> None:
    directory = put(tmp_path / "m", llama())
    carried = {"generation_config.json": b'{"eos_token_id":2}', "merges.txt": b"#version\na b\n", "vocab.json": b"{}"}
    for name, content in carried.items():
        (directory / name).write_bytes(content)
    (directory / "README.md").write_text("not the model's")
    edgekit.convert(directory, tmp_path / "q")
    assert names(tmp_path / "q") == {"model.safetensors", "config.json", "edgekit.manifest.json", *carried}
    for name in ("config.json", *carried):
        assert (tmp_path / "q" / name).read_bytes() == (directory / name).read_bytes()


@pytest.mark.parametrize("key", ["torch_dtype", "dtype"])
def test_a_configuration_states_the_float_type_that_is_written(key: str, tmp_path: Path) -> None:
    """A loader takes the weights in the type that config.json states, and would round float32 to it."""
    config = {**CONFIG, key: "bfloat16"}
    source = put(tmp_path / "m", llama(dtype=ml_dtypes.bfloat16), config)
    wide = edgekit.convert(source, tmp_path / "f32", dtype="F32")
    assert json.loads((wide.path / "config.json").read_text()) == {**config, key: "float32"}
    half = edgekit.convert(source, tmp_path / "f16", dtype="F16")
    assert half.config[key] == "float16"
    same = edgekit.convert(source, tmp_path / "same")
    assert (same.path / "config.json").read_bytes() == (source / "config.json").read_bytes()
    silent = edgekit.convert(put(tmp_path / "n", llama()), tmp_path / "n16", dtype="F16")
    assert (silent.path / "config.json").read_bytes() == (tmp_path / "n" / "config.json").read_bytes()


def test_an_unknown_family_is_quantized_under_its_own_names(tmp_path: Path) -> None:
    arrays: Arrays = {
        "embeddings.position_ids": np.arange(12)[None],
        "encoder.dense.weight": np.random.default_rng(0).standard_normal((8, 64)).astype(np.float32),
        "encoder.dense.bias": np.ones(8, np.float32),
        "experts.weight": np.random.default_rng(1).standard_normal((2, 3, 64)).astype(np.float32),
    }
    written = edgekit.quantize(
        put(tmp_path / "m", arrays, {"model_type": "whisper"}), "affine:int4-sym-g32", to=tmp_path / "q"
    )
    assert set(written.tensors) == set(arrays)
    np.testing.assert_array_equal(written.tensors["embeddings.position_ids"].read(), arrays["embeddings.position_ids"])  # type: ignore[union-attr]
    experts = written.tensors["experts.weight"]
    assert isinstance(experts, EncodedTensor)
    assert experts.shape == (2, 3, 64)
    expected = edgekit.encode(arrays["experts.weight"], "affine:int4-sym-g32").dequantize()
    np.testing.assert_array_equal(experts.float32(), expected.reshape(6, 64))
    np.testing.assert_array_equal(experts.float32(4, 6), expected.reshape(6, 64)[4:])


def test_same_input_same_bytes(tmp_path: Path) -> None:
    source = put(tmp_path / "m", llama())
    edgekit.quantize(source, "affine:int4-asym-g32", to=tmp_path / "a")
    with ThreadPoolExecutor(3) as pool:
        edgekit.quantize(source, "affine:int4-asym-g32", to=tmp_path / "b", executor=pool)
    for name in names(tmp_path / "a"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name


def test_an_interrupted_run_is_resumed(tmp_path: Path) -> None:
    source = put(tmp_path / "m", llama())
    edgekit.quantize(source, "affine:int4-asym-g32", to=tmp_path / "whole")

    def stop(done: int, total: int, name: str) -> None:
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        edgekit.quantize(source, "affine:int4-asym-g32", to=tmp_path / "q", progress=stop)
    assert not (tmp_path / "q").exists()
    seen: list[int] = []
    edgekit.quantize(
        source, "affine:int4-asym-g32", to=tmp_path / "q", progress=lambda done, total, name: seen.append(done)
    )
    assert seen[0] == 5
    for name in names(tmp_path / "whole"):
        assert (tmp_path / "q" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    assert names(tmp_path) == {"m", "whole", "q"}


KILLED = """
import sys, time, edgekit

def wait(done, total, name):
    if done == 7:
        print("ready", flush=True)
        time.sleep(60)

edgekit.quantize(sys.argv[1], "affine:int4-asym-g32", to=sys.argv[2], progress=wait)
"""


def test_a_killed_run_is_resumed(tmp_path: Path) -> None:
    source = put(tmp_path / "m", llama())
    command = [sys.executable, "-c", KILLED, str(source), str(tmp_path / "q")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        with pytest.raises(LockedError, match="another process is writing"):
            edgekit.quantize(source, "affine:int4-asym-g32", to=tmp_path / "q")
        process.kill()
    assert names(tmp_path) == {"m", ".q.lock", ".q.partial"}
    seen: list[int] = []
    edgekit.quantize(
        source, "affine:int4-asym-g32", to=tmp_path / "q", progress=lambda done, total, name: seen.append(done)
    )
    assert seen[0] == 7
    edgekit.quantize(source, "affine:int4-asym-g32", to=tmp_path / "whole")
    for name in names(tmp_path / "whole"):
        assert (tmp_path / "q" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    assert names(tmp_path) == {"m", "whole", "q"}


def test_another_recipe_does_not_resume(tmp_path: Path) -> None:
    source = put(tmp_path / "m", llama())

    def stop(done: int, total: int, name: str) -> None:
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        edgekit.quantize(source, "affine:int4-asym-g32", to=tmp_path / "q", progress=stop)
    seen: list[int] = []
    edgekit.quantize(
        source, "affine:int5-asym-g32", to=tmp_path / "q", progress=lambda done, total, name: seen.append(done)
    )
    assert seen[0] == 0


def test_a_nan_leaves_nothing_behind(tmp_path: Path) -> None:
    arrays = llama()
    arrays["model.layers.1.mlp.up_proj.weight"][3, 4] = np.nan
    bad = rf"^{re.escape(str(tmp_path))}/m: tensor model\.layers\.1\.mlp\.up_proj\.weight holds nan at row 3, column 4; mend"
    with pytest.raises(NonFiniteError, match=bad):
        edgekit.quantize(put(tmp_path / "m", arrays), "affine:int4-sym-g32", to=tmp_path / "q")
    assert names(tmp_path) == {"m"}


def test_targets_that_cannot_be_written(tmp_path: Path) -> None:
    source = put(tmp_path / "m", llama())
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("mine")
    with pytest.raises(UsageError, match=r"holds thesis\.txt, which is not part of an artifact"):
        edgekit.quantize(source, "affine:int4-sym-g32", to=tmp_path / "mine")
    with pytest.raises(ResourceError, match="create the directory first"):
        edgekit.quantize(source, "affine:int4-sym-g32", to=tmp_path / "none" / "q")
    assert names(tmp_path / "mine") == {"thesis.txt"}
    assert names(tmp_path) == {"m", "mine"}


def test_two_writers(tmp_path: Path) -> None:
    source = put(tmp_path / "m", llama())

    def nested(done: int, total: int, name: str) -> None:
        if done == 1:
            with pytest.raises(LockedError, match="another process is writing"):
                edgekit.quantize(source, "affine:int4-sym-g32", to=tmp_path / "q")

    edgekit.quantize(source, "affine:int4-sym-g32", to=tmp_path / "q", progress=nested)
    assert names(tmp_path) == {"m", "q"}


def test_the_plans_order_is_kept(tmp_path: Path) -> None:
    hf = HuggingFaceFormat()
    layout = hf.layout(edgekit.open(put(tmp_path / "m", llama())))
    plan = edgekit.pipeline.AsIs().plan(layout.slots, None)
    writer = hf.writer(tmp_path / "q", layout, plan, edgekit.manifest.Manifest())
    second = edgekit.encode(llama()["model.norm.weight"], "float:F32")
    with pytest.raises(UsageError, match=r"write in the plan's order"):
        writer.write(second)
    with pytest.raises(UsageError, match=r"only 0 of 20 tensors were written; write them all"):
        writer.commit()
    writer.close()
    assert names(tmp_path) == {"m"}


# --- damaged quantized files ------------------------------------------------------------------------------------


def respell(directory: Path, change: Callable[[dict[str, Any], Arrays], object]) -> None:
    """Rewrite a quantized file with changed metadata or parts."""
    path = directory / "model.safetensors"
    tensors, metadata = safetensors.open_tensors(path)
    arrays = {name: tensor.read() for name, tensor in tensors.items()}
    described = json.loads(metadata["edgekit"])
    change(described["tensors"], arrays)
    safetensors.write(path, arrays, {"edgekit": json.dumps(described)})


NAME = "model.layers.0.mlp.up_proj.weight"
DAMAGE: Mapping[str, tuple[Callable[[dict[str, Any], Arrays], object], str]] = {
    "field missing": (lambda t, a: t[NAME].pop("shape"), "wants exactly precision, shape and parts"),
    "shape of text": (lambda t, a: t[NAME].update(shape=["96", 64]), "shape ['96', 64] is no list of sizes"),
    "shape of nothing": (lambda t, a: t[NAME].update(shape=[0, 64]), "shape [0, 64] is no list of sizes"),
    "shape too large": (
        lambda t, a: t[NAME].update(shape=[1, 1 << 40]),
        "shape [1, 1099511627776] is beyond any model",
    ),
    "parts missing": (
        lambda t, a: t[NAME].update(parts=["codes", "odd"]),
        "its parts ['codes', 'odd'] are not in the file",
    ),
    "parts too few": (
        lambda t, a: t[NAME].update(parts=["codes"]),
        "affine:int4-sym-g32 has the parts codes, scale, not codes",
    ),
    "no number format": (lambda t, a: t[NAME].update(precision="float:F16"), "float:F16 cannot hold rows of 64"),
    "block does not divide": (lambda t, a: t[NAME].update(precision="ggml:Q4_K"), "ggml:Q4_K cannot hold rows of 64"),
    "rows disagree": (
        lambda t, a: t[NAME].update(shape=[95, 64]),
        "part codes has shape [96, 32], affine:int4-sym-g32 takes [95, 32]",
    ),
    "columns disagree": (
        lambda t, a: t[NAME].update(shape=[96, 65]),
        "part codes has shape [96, 32], affine:int4-sym-g32 takes [96, 33]",
    ),
    "part of another type": (
        lambda t, a: a.update({NAME + ".scale": a[NAME + ".scale"].astype(np.float16)}),
        "part scale is float16, affine:int4-sym-g32 has float32",
    ),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_damaged_quantized_tensors(tmp_path: Path, case: str) -> None:
    change, message = DAMAGE[case]
    edgekit.quantize(put(tmp_path / "m", llama()), "affine:int4-sym-g32", to=tmp_path / "q")
    respell(tmp_path / "q", change)
    with pytest.raises(InvalidFileError) as caught:
        edgekit.open(tmp_path / "q")
    where = f"{tmp_path}/q/model.safetensors: quantized tensor {NAME}"
    assert str(caught.value) == f"{where}: {message}; convert the model again"


def test_a_precision_that_nobody_knows(tmp_path: Path) -> None:
    edgekit.quantize(put(tmp_path / "m", llama()), "affine:int4-sym-g32", to=tmp_path / "q")
    respell(tmp_path / "q", lambda tensors, arrays: tensors[NAME].update(precision="other:int4"))
    with pytest.raises(MissingPluginError, match=re.escape(f"{NAME}: unknown precision 'other:int4'")):
        edgekit.open(tmp_path / "q")


def test_metadata_that_is_damaged(tmp_path: Path) -> None:
    directory = put(tmp_path / "m", llama())
    safetensors.write(directory / "model.safetensors", llama(), {"edgekit": "[]"})
    with pytest.raises(InvalidFileError, match="the metadata 'edgekit' lists no tensors"):
        edgekit.open(directory)


def test_quantized_tensors_that_share_a_part(tmp_path: Path) -> None:
    edgekit.quantize(put(tmp_path / "m", llama()), "affine:int4-sym-g32", to=tmp_path / "q")
    respell(tmp_path / "q", lambda tensors, arrays: arrays.update({NAME: np.ones((96, 64), np.float32)}))
    with pytest.raises(InvalidFileError, match="two quantized tensors share a name"):
        edgekit.open(tmp_path / "q")


def test_memory_follows_the_tensor_not_the_model(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    arrays = {f"t{n}.weight": rng.standard_normal((256, 1024)).astype(np.float32) for n in range(40)}
    source = edgekit.open(put(tmp_path / "m", arrays, {"model_type": "whisper"}))
    before = resident()
    edgekit.quantize(source, "affine:int8-sym-channel", to=tmp_path / "q")
    grown = resident() - before
    assert grown < 30 << 20, f"{grown:,} bytes stay resident after 40 MiB of weights were read"


def resident() -> int:
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except FileNotFoundError:
        pytest.skip("this system does not say how much memory is resident")
    return pages * os.sysconf("SC_PAGE_SIZE")


# --- from another format ----------------------------------------------------------------------------------------


def foreign(directory: Path, tokenizer: Tokenizer | None) -> Artifact:
    """The same Llama as another format has it: canonical names only."""
    known = edgekit.open(put(directory, llama()))
    return attrs.evolve(
        known,
        format="other",
        files=(),
        tensors={},
        config={},
        load_model=lambda: known.model,
        load_tokenizer=lambda: tokenizer,
    )


def test_configuration_and_tokenizer_are_generated(tmp_path: Path) -> None:
    letters = ("<unk>", "<s>", "</s>", "▁", "a", "b", "ab")
    kinds = tuple(TokenType(kind) for kind in (2, 3, 3, 1, 1, 1, 1))
    tokenizer = Tokenizer("spm", letters, kinds, (0.0,) * 7, bos=1, eos=2, unk=0, chat_template="{{ x }}")
    written = edgekit.convert(foreign(tmp_path / "m", tokenizer), tmp_path / "q", dtype="BF16")
    assert names(tmp_path / "q") == {
        *("model.safetensors", "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"),
        "edgekit.manifest.json",
    }
    same_tensors(written, {n: a.astype(ml_dtypes.bfloat16 if a.ndim > 1 else a.dtype) for n, a in llama().items()})
    assert written.model.config == edgekit.open(tmp_path / "m").model.config
    assert written.config["torch_dtype"] == "bfloat16"
    assert [written.config[f"{role}_token_id"] for role in ("bos", "eos", "pad")] == [1, 2, None]
    read = written.tokenizer
    assert read is not None
    assert (read.tokens, read.types, read.bos, read.eos, read.unk) == (letters, kinds, 1, 2, 0)
    assert (read.add_bos, read.chat_template) == (True, "{{ x }}")


def test_without_a_tokenizer_there_is_none(tmp_path: Path) -> None:
    written = edgekit.quantize(foreign(tmp_path / "m", None), "affine:int4-sym-g32", to=tmp_path / "q")
    assert names(tmp_path / "q") == {"model.safetensors", "config.json", "edgekit.manifest.json"}
    assert written.tokenizer is None
    assert written.config["torch_dtype"] == "float32"
    assert {t.name for t in written.model.tensors.values()} == set(llama())


def test_a_family_without_names_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    def unknown() -> Any:
        raise UnsupportedModelError("of no family")

    source = attrs.evolve(foreign(tmp_path / "m", None), load_model=unknown)
    with pytest.raises(UnsupportedModelError, match="of no family"):
        edgekit.convert(source, tmp_path / "q")
    assert names(tmp_path) == {"m"}
