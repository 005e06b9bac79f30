"""What is written: read by gguf-py, carried over, resumed, never half."""

from __future__ import annotations

import errno
import json
import os
import re
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import attrs
import gguf
import numpy as np
import pytest

import edgekit
from edgekit.errors import InvalidFileError, LockedError, ResourceError, UnsupportedModelError, UsageError
from edgekit.manifest import Manifest, manifest_path
from edgekit.pipeline import AsIs
from edgekit.precision import find_precision
from edgekit.recipe import Plan, Uniform
from edgekit.tensor import QuantizedTensor
from edgekit_gguf.format import GgufFormat
from edgekit_gguf.recipes import F32, Q8_0
from edgekit_gguf.writer import GgufWriter, file_type

GGUF = GgufFormat()


def test_gguf_py_reads_what_is_written(artifact, llama, tmp_path: Path):
    source = artifact(llama)
    edgekit.quantize(source, "Q8_0", to=tmp_path / "ours.gguf")
    reader = gguf.GGUFReader(tmp_path / "ours.gguf")
    assert reader.get_field("general.architecture").contents() == "llama"
    assert reader.get_field("general.file_type").contents() == 7
    assert reader.get_field("general.quantization_version").contents() == 2
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    embedding = tensors["token_embd.weight"]
    expected = gguf.quantize(source.tensors["token_embd.weight"].read(), gguf.GGMLQuantizationType.Q8_0)
    assert embedding.tensor_type == gguf.GGMLQuantizationType.Q8_0
    np.testing.assert_array_equal(embedding.data, expected)
    norm = tensors["output_norm.weight"]
    np.testing.assert_array_equal(norm.data, source.tensors["output_norm.weight"].read())


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_tensors_come_back(dtype: str, artifact, llama, tmp_path: Path):
    source = artifact(llama)
    back = edgekit.convert(source, tmp_path / "back.gguf", dtype=dtype)
    for name, tensor in source.model.tensors.items():
        rounded = edgekit.encode(tensor.read(), dtype if tensor.read().ndim > 1 else "F32").dequantize()
        np.testing.assert_array_equal(back.model.tensors[name].float32().reshape(tensor.shape), rounded, name)


def test_order_and_padding(artifact, llama, tmp_path: Path):
    config = attrs.evolve(llama, layers=11)
    back = edgekit.convert(artifact(config), tmp_path / "deep.gguf", dtype="F32")
    names = list(back.tensors)
    assert names[:3] == ["output.weight", "output_norm.weight", "token_embd.weight"]
    assert names[3] == "blk.0.attn_k.weight"
    layers = [int(name.split(".")[1]) for name in names[3:]]
    assert layers == sorted(layers)
    assert back.path.stat().st_size % 32 == 0


def test_metadata_of_a_gguf_source_is_carried_over(stories: Path, tmp_path: Path):
    source = edgekit.open(stories)
    small = edgekit.quantize(source, "Q4_K_M", to=tmp_path / "small.gguf")
    carried = dict(small.config)
    assert carried.pop("general.file_type") == 15
    assert carried.pop("general.quantization_version") == 2
    assert carried == dict(source.config)
    assert {key: small.config.typed[key] for key in source.config} == source.config.typed


def test_encoded_tensors_are_carried_over_block_by_block(stories: Path, tmp_path: Path):
    small = edgekit.quantize(stories, "Q4_0", to=tmp_path / "small.gguf")
    again = edgekit.convert(small, tmp_path / "again.gguf")
    assert again.path.read_bytes() == small.path.read_bytes()


def test_the_manifest_lies_beside_the_file(stories: Path, tmp_path: Path):
    small = edgekit.quantize(stories, "Q8_0", to=tmp_path / "small.gguf")
    assert small.manifest is not None
    assert small.manifest.recipe == "Q8_0"
    assert list(small.manifest.sources) == [stories.name]
    assert json.loads(manifest_path(small.path).read_text())["tensors"]["token_embd.weight"]["precision"] == "ggml:Q8_0"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["small.gguf", "small.gguf.edgekit.json"]


@pytest.mark.parametrize("content", [b"\xff", b"{}", b"[" * 100_000, b'{"schema": 1, "recipe": 7}'])
def test_a_damaged_manifest_is_an_error_that_names_it(content: bytes, artifact, llama, tmp_path: Path):
    made = edgekit.convert(artifact(llama), tmp_path / "model.gguf", dtype="F32")
    manifest_path(made.path).write_bytes(content)
    with pytest.raises(InvalidFileError, match=f"^{re.escape(str(manifest_path(made.path)))}: "):
        edgekit.open(made.path)


def test_the_same_input_gives_the_same_bytes(artifact, llama, tmp_path: Path):
    files = [tmp_path / "a.gguf", tmp_path / "b.gguf"]
    for file in files:
        edgekit.quantize(artifact(llama), "Q4_0", to=file)
    assert files[0].read_bytes() == files[1].read_bytes()


def begin(source, path: Path, recipe=F32, manifest: Manifest | None = None) -> tuple[GgufWriter, list[QuantizedTensor]]:
    """A writer, and what it wants."""
    layout = GGUF.layout(source)
    plan = recipe.plan(layout.slots, layout.model.config)
    writer = GGUF.writer(path, layout, plan, manifest or Manifest())
    encoded = [
        attrs.evolve(edgekit.encode(np.asarray(slot.tensor.read(), np.float32), a.precision), name=a.name)
        for slot, a in zip(layout.slots, plan, strict=True)
    ]
    return writer, encoded


def test_an_interrupted_run_goes_on_after_the_last_complete_tensor(artifact, llama, tmp_path: Path):
    source, path = artifact(llama), tmp_path / "model.gguf"
    writer, tensors = begin(source, path)
    for tensor in tensors[:5]:
        writer.write(tensor)
    writer.close(keep=True)
    assert not path.exists()
    writer, _ = begin(source, path)
    assert writer.done == 5
    for tensor in tensors[5:]:
        writer.write(tensor)
    writer.commit()
    writer.close()
    edgekit.convert(source, tmp_path / "whole.gguf", dtype="F32")
    assert path.read_bytes() == (tmp_path / "whole.gguf").read_bytes()


@pytest.mark.parametrize("other", ["recipe", "source"])
def test_another_run_starts_anew(other: str, artifact, llama, tmp_path: Path):
    source, path = artifact(llama), tmp_path / "model.gguf"
    writer, tensors = begin(source, path)
    writer.write(tensors[0])
    writer.close(keep=True)
    manifest = Manifest(sources={"weights": "another hash"}) if other == "source" else Manifest()
    writer, _ = begin(source, path, Q8_0 if other == "recipe" else F32, manifest)
    assert writer.done == 0
    writer.close()
    assert list(tmp_path.iterdir()) == []


def test_what_is_interrupted_leaves_the_old_file_as_it_was(artifact, llama, tmp_path: Path):
    source, path = artifact(llama), tmp_path / "model.gguf"
    path.write_bytes(b"old")
    writer, tensors = begin(source, path)
    writer.write(tensors[0])
    writer.close()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_only_one_writes(artifact, llama, tmp_path: Path):
    writer, _ = begin(artifact(llama), tmp_path / "model.gguf")
    with pytest.raises(LockedError, match="another process is writing"):
        begin(artifact(llama), tmp_path / "model.gguf")
    writer.close()


def test_a_full_disk(artifact, llama, tmp_path: Path):
    """A file size limit stands for the disk: the kernel refuses the write in the same way."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(
            ResourceError, match=r"cannot write .*model.gguf \([\d,]+ bytes at offset [\d,]+\): File too"
        ):
            edgekit.convert(artifact(llama), tmp_path / "model.gguf", dtype="F32")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_is_too_small_is_noticed_before_anything_is_written(artifact, llama, tmp_path: Path):
    config = attrs.evolve(llama, vocab=24)
    source = artifact(config)
    layout = GGUF.layout(source)
    plan = F32.plan(layout.slots, config)
    huge = attrs.evolve(plan.assignments[0], shape=(1 << 40, 64))
    plan = attrs.evolve(plan, assignments=(huge, *plan.assignments[1:]))
    with pytest.raises(ResourceError, match=r"bytes needed, [\d,]+ free; free some space, or choose a target"):
        GGUF.writer(tmp_path / "model.gguf", layout, plan, Manifest())
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_is_not_there(artifact, llama, tmp_path: Path):
    with pytest.raises(ResourceError, match="create the directory first") as caught:
        edgekit.convert(artifact(llama), tmp_path / "none" / "model.gguf", dtype="F32")
    assert isinstance(caught.value.__cause__, OSError)
    assert caught.value.__cause__.errno == errno.ENOENT


@contextmanager
def as_nobody() -> Iterator[None]:
    """Without the superuser's rights, whom permissions do not bind."""
    superuser = os.geteuid() == 0
    if superuser:
        os.seteuid(65534)
    try:
        yield
    finally:
        if superuser:
            os.seteuid(0)


@pytest.mark.skipif(not hasattr(os, "seteuid"), reason="permissions are another matter on Windows")
def test_a_directory_without_permission(artifact, llama, tmp_path: Path):
    source, closed = artifact(llama), tmp_path / "closed"
    edgekit.convert(source, tmp_path / "model.gguf", dtype="F32")  # imports what nobody may not be able to read
    closed.mkdir(mode=0o500)
    message = (
        f"cannot write {closed / 'model.gguf'}: {os.strerror(errno.EACCES)}; "
        "give yourself write permission, or choose another target"
    )
    with as_nobody(), pytest.raises(ResourceError, match=f"^{re.escape(message)}$"):
        edgekit.convert(source, closed / "model.gguf", dtype="F32")
    assert list(closed.iterdir()) == []


def test_the_writer_holds_its_caller_to_the_plan(artifact, llama, tmp_path: Path):
    writer, tensors = begin(artifact(llama), tmp_path / "model.gguf")
    with pytest.raises(UsageError, match=r"of the plan's next tensor are \('output.weight', 'float:F32', 6144\), not"):
        writer.write(tensors[1])
    with pytest.raises(UsageError, match=r"only 0 of 21 tensors were written"):
        writer.commit()
    for tensor in tensors:
        writer.write(tensor)
    with pytest.raises(UsageError, match=r"tensor 'more' is one more than the plan's 21"):
        writer.write(attrs.evolve(tensors[0], name="more"))
    writer.close()


def test_precisions_that_gguf_has_no_type_for(artifact, llama, tmp_path: Path):
    message = r"tensor 'output.weight': GGUF has no type for affine:int4-sym-g32; choose a recipe of GGUF \(Q4_K_M\)"
    with pytest.raises(UsageError, match=message):
        edgekit.quantize(artifact(llama), "affine:int4-sym-g32", to=tmp_path / "model.gguf")
    assert list(tmp_path.iterdir()) == []


def test_integer_tensors_are_refused(builder, tmp_path: Path):
    path = builder(data=bytes(32)).tensor("ids", [8], 26).write(tmp_path / "ids.gguf")
    with pytest.raises(UnsupportedModelError, match="tensor 'ids' holds int32; edgekit writes float32"):
        edgekit.convert(path, tmp_path / "out.gguf")


@pytest.mark.parametrize(
    ("recipe", "number"), [("ggml:Q4_K", 15), ("ggml:Q6_K", 18), ("float:F16", 1), ("ggml:MXFP4", 38), ("ggml:Q8_0", 7)]
)
def test_file_type_of_plans_that_are_no_recipe(recipe: str, number: int, artifact, llama):
    layout = GGUF.layout(artifact(attrs.evolve(llama, width=256, ffn=256, heads=16)))
    assert file_type(Uniform(find_precision(recipe)).plan(layout.slots, None)) == number


def test_file_type_of_other_plans(artifact, llama):
    layout = GGUF.layout(artifact(llama))
    assert file_type(AsIs().plan(layout.slots, None)) == 0
    assert file_type(Plan("nothing", ())) == 0


def test_resuming_checks_the_partial_file(artifact, llama, tmp_path: Path):
    source, path = artifact(llama), tmp_path / "model.gguf"
    writer, tensors = begin(source, path)
    writer.write(tensors[0])
    writer.close(keep=True)
    partial = next(p for p in tmp_path.iterdir() if p.name.endswith(".partial"))
    data = bytearray(partial.read_bytes())
    data[-40] ^= 1
    partial.write_bytes(data)
    writer, _ = begin(source, path)
    assert writer.done == 0
    writer.close()
