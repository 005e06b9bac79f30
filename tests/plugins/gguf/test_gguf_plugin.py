"""The plugin as edgekit meets it: light, registered, and named by the convention."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import edgekit
from edgekit.errors import InvalidFileError, MissingFileError, UsageError
from edgekit.plugin import manager
from edgekit_gguf import RECIPES
from edgekit_gguf.format import GgufFormat
from edgekit_gguf.naming import size_label, suggest_name

GGUF = GgufFormat()


def test_the_module_imports_nothing_heavy():
    code = "import sys, edgekit_gguf; print(*sorted(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"gguf", "numpy", "edgekit_gguf.format", "edgekit_gguf.recipes", "edgekit.reference"} & set(loaded)


def test_reading_and_writing_do_not_import_gguf_py():
    code = "import sys, edgekit_gguf.format, edgekit_gguf.recipes; print('gguf' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


def test_everything_that_is_registered_loads():
    found = {plugin.name: plugin for plugin in manager().plugins}["gguf"]
    assert found.status == "loaded", found.error
    assert found.provides["formats"] == ("gguf",)
    assert found.provides["recipes"] == RECIPES
    assert "precisions" not in found.provides  # the core has all of ggml's
    for role, names in found.provides.items():
        for name in names:
            loaded = manager().load(role, name)
            assert getattr(loaded, "name", None) in (name, None)
            assert role != "precisions" or loaded.precision.name == name


def test_matches(tmp_path: Path):
    (tmp_path / "a.gguf").write_bytes(b"no")
    (tmp_path / "b.bin").write_bytes(b"GGUF....")
    (tmp_path / "c.bin").write_bytes(b"....")
    found = {path.name for path in tmp_path.iterdir() if GGUF.matches(path)}
    assert found == {"a.gguf", "b.bin"}
    assert not GGUF.matches(tmp_path)
    assert not GGUF.matches(tmp_path / "none.gguf")


#: The expression that the specification validates names with, its version made optional as in its examples.
CONVENTION = re.compile(
    r"^(?P<BaseName>[A-Za-z0-9\s.]*(?:-[A-Za-z0-9\s.]*)*?)-(?P<SizeLabel>(?:\d+x)?(?:\d+\.)?\d+[A-Za-z])"
    r"(?:-(?P<FineTune>[A-Za-z0-9\s-]+))?(?:-(?P<Version>v\d+(?:\.\d+)*))?-(?P<Encoding>[\w_]+)\.gguf$"
)


@pytest.mark.parametrize(
    ("model", "parameters", "encoding", "name"),
    [
        ("Qwen2.5 0.5B Instruct", 494_032_768, "Q4_K_M", "Qwen2.5-0.5B-Instruct-Q4_K_M.gguf"),
        ("Mixtral-8x7B-v0.1", 46_700_000_000, "ggml:Q6_K", "Mixtral-8x7B-v0.1-Q6_K.gguf"),
        ("stories", 292_800, "float:F16", "stories-293K-F16.gguf"),
        ("TinyLlama", 1_100_048_384, "BF16", "TinyLlama-1.1B-BF16.gguf"),
    ],
)
def test_names_follow_the_convention(model: str, parameters: int, encoding: str, name: str):
    assert suggest_name(model, parameters, encoding) == name
    match = CONVENTION.match(name)
    assert match is not None
    assert match["Encoding"] == encoding.rpartition(":")[2]


@pytest.mark.parametrize("model", ["", "../../etc/passwd", "a/b\\c:d", "日本", ".hidden"])
def test_names_are_file_names(model: str):
    name = suggest_name(model, 1_000_000_001, "affine:int4-sym-g32")
    assert re.fullmatch(r"[A-Za-z0-9][\w.-]*-1\.0B-int4_sym_g32\.gguf", name)


@pytest.mark.parametrize(
    ("parameters", "label"),
    [
        (999, "1.0K"),
        (292_800, "293K"),
        (494_032_768, "494M"),
        (1_100_048_384, "1.1B"),
        (70_553_706_496, "71B"),
        (2 * 10**12, "2.0T"),
    ],
)
def test_size_labels_are_gguf_pys(parameters: int, label: str):
    from gguf.utility import model_weight_count_rounded_notation

    assert size_label(parameters) == label == model_weight_count_rounded_notation(parameters)


@pytest.fixture
def parts(artifact, llama, tmp_path: Path) -> list[Path]:
    """A model in three files, as gguf-py splits it."""
    import gguf

    source = artifact(llama)
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama", split_max_tensors=8)
    writer.add_block_count(2)
    writer.add_context_length(64)
    writer.add_embedding_length(64)
    writer.add_feed_forward_length(96)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    for name, tensor in source.tensors.items():
        writer.add_tensor(name, tensor.read())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return sorted(tmp_path.glob("m-*.gguf"))


def test_split_files_are_one_model(parts: list[Path], artifact, llama, tmp_path: Path):
    assert [path.name for path in parts] == [f"m-0000{i}-of-00003.gguf" for i in (1, 2, 3)]
    whole = edgekit.open(parts[2])  # any of them will do
    assert whole.files == tuple(parts)
    assert whole.model.config.layers == 2
    joined = edgekit.convert(whole, tmp_path / "joined.gguf")
    assert not [key for key in joined.config if key.startswith("split.")]
    for name, tensor in artifact(llama).tensors.items():
        np.testing.assert_array_equal(joined.tensors[name].read(), tensor.read())


def test_split_files_with_parts_missing_or_misnamed(parts: list[Path], tmp_path: Path):
    parts[1].rename(tmp_path / "elsewhere.gguf")
    with pytest.raises(
        MissingFileError, match=r"parts are missing: m-00002-of-00003.gguf; put all 3 beside each other$"
    ):
        edgekit.open(parts[0])
    with pytest.raises(
        InvalidFileError, match=r"elsewhere.gguf: one of 3 parts, but not named <name>-00001-of-00003.gguf"
    ):
        edgekit.open(tmp_path / "elsewhere.gguf")
    parts[1].write_bytes(parts[2].read_bytes())
    with pytest.raises(InvalidFileError, match=r"tensor '.*' is in another part too; get the files again$"):
        edgekit.open(parts[0])


def test_a_file_of_another_kind_of_model_is_still_shown(builder, tmp_path: Path):
    from edgekit.cli._verbs.inspect import describe

    string = builder.string
    file = builder(data=bytes(64)).pair("general.architecture", 8, string("whisper")).tensor("ids", [16], 26)
    path = file.pair("tokenizer.ggml.model", 8, string("t5")).write(tmp_path / "whisper.gguf")
    report = describe(edgekit.open(path))
    assert report["family"].startswith(f"unknown ({path}: general.architecture is 'whisper'; supported are llama, ")
    assert report["tokenizer"] == f"unknown ({path}: its tokenizer is of model 't5'; supported are llama, gpt2, bert)"
    assert report["tensors"] == [{"name": "ids", "shape": [16], "precision": "int32", "nbytes": 64}]


@pytest.mark.parametrize("number", range(3))
def test_no_part_of_a_split_model_is_a_target(parts: list[Path], tmp_path: Path, number: int):
    before = [part.read_bytes() for part in parts]
    for target in (parts[number], parts[number].parent):
        with pytest.raises(UsageError, match=r"the target (is|holds) the source"):
            edgekit.convert(parts[0], target, format="gguf", overwrite=True)
    assert [part.read_bytes() for part in parts] == before


def test_no_manifest_of_a_source_is_a_target(artifact, llama, tmp_path: Path):
    source = edgekit.convert(artifact(llama), tmp_path / "m.gguf", dtype="F32")
    manifest = tmp_path / "m.gguf.edgekit.json"
    before = manifest.read_bytes()
    with pytest.raises(UsageError, match="the target is the source"):
        edgekit.convert(source, manifest, format="gguf", overwrite=True)
    assert manifest.read_bytes() == before
    assert edgekit.convert(source, tmp_path / "beside.gguf").manifest is not None, "beside the source is no harm"
