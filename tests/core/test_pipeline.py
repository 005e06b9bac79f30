"""read -> plan -> encode -> write: the same bytes from every executor and chunk size, and nothing half-written."""

import hashlib
import json
import os
import shutil
import tempfile
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest

import edgekit
from edgekit.architectures import Model, ModelConfig
from edgekit.errors import (
    InvalidFileError,
    MissingFileError,
    MissingPluginError,
    NonFiniteError,
    ResourceError,
    UnknownRecipeError,
    UsageError,
)
from edgekit.pipeline import _conversion as pipeline
from edgekit.pipeline import _stream
from edgekit.tensor import EncodedTensor, Tensor
from edgekit.testing.models import artifact_of, random_model

CONFIG = ModelConfig(
    family="llama", layers=2, width=64, heads=4, kv_heads=2, head_dim=16, ffn=96, vocab=128, context=64,
    norm_eps=1e-5, rope_theta=10000.0, attention_scale=0.25, rotary_dim=16,
)  # fmt: skip


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pipeline") / "model"
    return edgekit.convert(artifact_of(random_model(CONFIG), folder.with_name("memory")), folder)


def digest(artifact):
    """Of the tensors' file and the manifest."""
    files = [file for file in artifact.path.iterdir() if file.suffix in (".safetensors", ".json")]
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def broken(value):
    """The model with one bad weight in one layer."""
    model = random_model(CONFIG)
    values = model.tensors["blk.1.ffn_up.weight"].float32().copy()
    values[5, 7] = value
    name = "blk.1.ffn_up.weight"
    return Model(CONFIG, {**model.tensors, name: Tensor.of(name, values)})


class Counting(ThreadPoolExecutor):
    """Notes how many jobs were given out and are not yet taken back."""

    def __init__(self):
        super().__init__(1)
        self.under_way, self.most, self.given = 0, 0, 0

    def submit(self, *job):
        self.given += 1
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        future, taken = super().submit(*job), self

        class Taken(type(future)):
            def result(self, timeout=None):
                taken.under_way -= 1
                return super().result(timeout)

        future.__class__ = Taken
        return future


def test_chunks_of_the_next_tensors_are_encoded_meanwhile_and_few_at_once(source, tmp_path, monkeypatch):
    """Threads are not idle at the end of each tensor, and no more than eight jobs a core wait for them."""
    monkeypatch.setattr(_stream, "CHUNK", 256)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    waiting = []
    with Counting() as executor:
        edgekit.quantize(source, "ggml:Q8_0", to=tmp_path / "q", executor=executor,
                         progress=lambda *_: waiting.append(executor.under_way))  # fmt: skip
    assert executor.given > 40
    assert executor.most == 2 * 8 + 1
    assert min(waiting[1:-5]) >= 2 * 4
    assert waiting[-1] == executor.under_way == 0


@pytest.mark.parametrize(
    "recipe",
    ["affine:int4-sym-g32", "affine:int3-asym-tensor", "ggml:Q8_0", "ggml:IQ4_NL", "mlx:int4-g32", "mlx:nvfp4-tensor",
     "openvino:int4-asym-g32", "openvino:nvfp4", "onnx:int4-asym-g32", "onnx:qdq_int4-asym-g32", "olive:int4-asym-g32"],
)  # fmt: skip
def test_the_same_bytes_from_every_executor_and_chunk_size(source, recipe, tmp_path, monkeypatch):
    expected = digest(edgekit.quantize(source, recipe, to=tmp_path / "default"))
    for workers in (1, 2, 8):
        with ThreadPoolExecutor(workers) as executor:
            made = edgekit.quantize(source, recipe, to=tmp_path / f"{workers}", executor=executor)
        assert digest(made) == expected
    for chunk in (64, 1000, 5000):
        monkeypatch.setattr(_stream, "CHUNK", chunk)
        assert digest(edgekit.quantize(source, recipe, to=tmp_path / f"chunk{chunk}")) == expected


def test_the_same_bytes_from_other_processes(source, tmp_path):
    expected = digest(edgekit.quantize(source, "ggml:Q4_0", to=tmp_path / "here"))
    with ProcessPoolExecutor(1, get_context("spawn")) as executor:
        made = edgekit.quantize(source, "ggml:Q4_0", to=tmp_path / "there", executor=executor)
    assert digest(made) == expected


def test_what_was_written_decodes_to_what_encode_gives(source, tmp_path):
    made = edgekit.quantize(source, "affine:int5-asym-g32", to=tmp_path / "out")
    for name, tensor in made.tensors.items():
        if isinstance(tensor, EncodedTensor):
            expected = edgekit.encode(source.tensors[name].float32(), "affine:int5-asym-g32").dequantize()
            np.testing.assert_array_equal(tensor.float32(), expected)


def test_the_manifest_says_what_why_and_from_what(source, tmp_path):
    manifest = edgekit.quantize(source, "ggml:Q8_0", to=tmp_path / "out", backend="reference").manifest
    assert manifest.recipe == "ggml:Q8_0"
    weights = source.path / "model.safetensors"
    assert manifest.sources["model.safetensors"] == hashlib.sha256(weights.read_bytes()).hexdigest()
    assert manifest.tensors["model.norm.weight"]["reason"] == "not a weight matrix"
    line = manifest.tensors["model.layers.0.mlp.up_proj.weight"]
    assert line == {"precision": "ggml:Q8_0", "reason": "weight matrix", "backend": "reference"}
    text = json.dumps(manifest.sources) + manifest.to_json()
    assert str(tmp_path) not in text, "no path of this machine in a manifest"


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_bad_weight_is_refused_and_leaves_nothing(bad, tmp_path):
    artifact = artifact_of(broken(bad), tmp_path / "memory")
    with pytest.raises(NonFiniteError, match=rf"blk.1.ffn_up.weight.* holds {bad} at row 5, column 7"):
        edgekit.quantize(artifact, "ggml:Q8_0", to=tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_bad_weight_can_be_kept_in_float(tmp_path):
    artifact = artifact_of(broken(np.nan), tmp_path / "memory")
    made = edgekit.quantize(artifact, "ggml:Q8_0", to=tmp_path / "out", nonfinite="keep")
    name = "model.layers.1.mlp.up_proj.weight"
    assert isinstance(made.tensors[name], Tensor)
    assert np.isnan(made.tensors[name].float32()[5, 7])
    assert isinstance(made.tensors["model.layers.0.mlp.up_proj.weight"], EncodedTensor)
    assert made.manifest.tensors[name]["reason"].startswith("kept: ")


def test_an_interruption_keeps_what_was_done_and_the_next_run_goes_on(source, tmp_path):
    expected = digest(edgekit.quantize(source, "ggml:Q8_0", to=tmp_path / "straight"))

    def stop(done, total, name):
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        edgekit.quantize(source, "ggml:Q8_0", to=tmp_path / "out", progress=stop)
    assert not (tmp_path / "out").exists()
    seen = []
    resumed = edgekit.quantize(
        source, "ggml:Q8_0", to=tmp_path / "out", progress=lambda done, total, name: seen.append(done)
    )
    assert min(seen) == 5
    assert digest(resumed) == expected


def test_an_error_while_writing_leaves_nothing(source, tmp_path):
    def fail(done, total, name):
        if done == 5:
            raise RuntimeError("the caller's own")

    with pytest.raises(RuntimeError, match="the caller's own"):
        edgekit.quantize(source, "ggml:Q8_0", to=tmp_path / "out", progress=fail)
    assert list(tmp_path.iterdir()) == []


def test_the_source_is_never_the_target(source):
    with pytest.raises(UsageError, match="the target is the source; choose another path"):
        edgekit.quantize(source, "ggml:Q8_0", to=source.path)


def test_an_unknown_recipe_says_what_there_is(source, tmp_path):
    with pytest.raises(UnknownRecipeError, match=r"'Q9' is neither a recipe for hf .* nor a precision"):
        edgekit.quantize(source, "Q9", to=tmp_path / "out")


def test_opening_nothing_or_nonsense(tmp_path):
    with pytest.raises(MissingFileError, match="no such file or directory"):
        edgekit.open(tmp_path / "nothing")
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(InvalidFileError, match="no installed format recognises it"):
        edgekit.open(tmp_path / "notes.txt")


@pytest.mark.skipif(not hasattr(os, "seteuid"), reason="permissions are another matter on Windows")
def test_a_folder_that_may_not_be_entered(source, tmp_path):
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o000)
    superuser = os.geteuid() == 0
    try:
        if superuser:  # whom permissions do not bind
            os.seteuid(65534)
        with pytest.raises(MissingFileError, match=r"closed/m: cannot be read \(.*\); check its permissions$"):
            edgekit.open(closed / "m")
        with pytest.raises(ResourceError, match=r"give yourself write permission, or choose another target$"):
            edgekit.quantize(source, "affine:int4-sym-g32", to=closed / "m")
    finally:
        if superuser:
            os.seteuid(0)
        closed.chmod(0o700)


@pytest.mark.skipif(not hasattr(os, "seteuid"), reason="permissions are another matter on Windows")
@pytest.mark.parametrize("folder", ["m", "m/additional_chat_templates"])
def test_a_folder_that_may_not_be_listed_is_not_an_empty_one(source, folder):
    superuser = os.geteuid() == 0
    with tempfile.TemporaryDirectory() as place:  # not pytest's, which only its user may enter
        shutil.copytree(source.path, Path(place, "m"))
        for each in (Path(place), Path(place, "m")):
            each.chmod(0o755)
        closed = Path(place, folder)
        closed.mkdir(exist_ok=True)
        closed.chmod(0o311)
        try:
            if superuser:  # whom permissions do not bind
                os.seteuid(65534)
            assert (Path(place) / "m" / "config.json").is_file()
            with pytest.raises(MissingFileError, match=rf"{folder}: cannot be read \(Permission denied\)"):
                edgekit.open(Path(place, "m"))
        finally:
            if superuser:
                os.seteuid(0)
            closed.chmod(0o700)


def test_a_missing_format_names_its_distribution(source, tmp_path, monkeypatch):
    from edgekit.plugin import _registry as plugin

    monkeypatch.setattr(pipeline, "manager", lambda: plugin.build([]))
    with pytest.raises(MissingPluginError, match="pip install edgekit-gguf"):
        edgekit.quantize(source, "Q8_0", to=tmp_path / "x.gguf")
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    with pytest.raises(MissingPluginError, match="pip install edgekit-gguf"):
        edgekit.open(tmp_path / "x.gguf")


def test_convert_changes_the_float_type_only(source, tmp_path):
    made = edgekit.convert(source, tmp_path / "f16", dtype="F16")
    name = "model.layers.0.self_attn.q_proj.weight"
    assert made.tensors[name].dtype == "float16"
    np.testing.assert_array_equal(made.tensors[name].read(), source.tensors[name].float32().astype(np.float16))
    again = edgekit.convert(edgekit.quantize(source, "ggml:Q8_0", to=tmp_path / "q8"), tmp_path / "again")
    np.testing.assert_array_equal(
        again.tensors[name].read().parts["blocks"], edgekit.open(tmp_path / "q8").tensors[name].read().parts["blocks"]
    )
