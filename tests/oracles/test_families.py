"""Model families against transformers and llama.cpp: five small random configurations of each (`families/NAME.py`).

A configuration goes from transformers' directory into numpy, into a GGUF file, into llama.cpp, into an IR, and back into a
directory that transformers loads; the logits are the same everywhere.
"""

from __future__ import annotations

import importlib.util
import json
import os
from functools import cache
from pathlib import Path

os.environ["NNCF_CI"] = "1"  # no telemetry

import family_oracles as oracles
import gguf
import numpy as np
import openvino_cases
import pytest

import edgekit
from edgekit.architectures.forward import KVCache, Transformer
from edgekit.errors import EdgekitError, UnsupportedModelError
from edgekit_openvino.format import OpenVinoFormat

#: Relative to the largest logit. Measured: at most 1e-5.
TOLERANCE = 1e-4
#: Standard deviations of llama.cpp's logits from transformers'. ggml's GELU is a table over float16: a hundredth.
LLAMA_CPP, LLAMA_CPP_GELU = 1e-4, 1e-2


def described(path: Path):
    """The module that describes a family's tests."""
    spec = importlib.util.spec_from_file_location(f"family_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


FAMILIES = {path.stem: described(path) for path in sorted(Path(__file__).with_name("families").glob("*.py"))}
CASES = [(family, name) for family, module in FAMILIES.items() for name in module.CONFIGS]
IDS = [f"{family}-{name}" for family, name in CASES]
REFUSED = [(family, *case) for family, module in FAMILIES.items() for case in getattr(module, "REFUSED", ())]
#: Those whose GGUF files llama.cpp would compute otherwise are in `REFUSED`.
NOT_IN_GGUF = {family: getattr(module, "NOT_IN_GGUF", ()) for family, module in FAMILIES.items()}
WITH_GGUF = [family for family, module in FAMILIES.items() if getattr(module, "GGUF", True)]


@pytest.fixture(scope="module")
def case(request, tmp_path_factory):
    """For a family and a case: the directory that transformers wrote, and its logits."""

    @cache
    def made(family: str, name: str):
        folder = tmp_path_factory.mktemp(f"{family}-{name}".replace(".", "_")) / "hf"
        model = oracles.saved_model(FAMILIES[family].CONFIGS[name], folder)
        return folder, oracles.transformers_logits(model)

    return made


@pytest.fixture(scope="module")
def files(case, tmp_path_factory):
    """For a family the GGUF files of its cases in float32, by name."""

    @cache
    def made(family: str):
        folder = tmp_path_factory.mktemp(f"{family}-gguf")
        names = [name for name in FAMILIES[family].CONFIGS if name not in NOT_IN_GGUF[family]]
        return {name: edgekit.convert(case(family, name)[0], folder / f"{name}.gguf", dtype="F32") for name in names}

    return made


def test_there_are_five_configurations_each():
    assert len(FAMILIES) >= 3
    for family, module in FAMILIES.items():
        assert len(module.CONFIGS) >= 5, family


@pytest.mark.parametrize(("family", "name"), CASES, ids=IDS)
def test_numpy_computes_what_transformers_computes(case, family, name):
    folder, expected = case(family, name)
    model = edgekit.open(folder).model
    assert model.config.family == family
    network, past = Transformer(model), KVCache()
    whole = network.logits(oracles.TOKENS)
    assert oracles.relative(whole, expected) < TOLERANCE
    for start, stop in [(0, 9), *((i, i + 1) for i in range(9, 15)), (15, len(oracles.TOKENS))]:
        found = network.step(oracles.TOKENS[start:stop], past)
        assert oracles.relative(found, whole[stop - 1]) < TOLERANCE


@pytest.mark.parametrize("family", WITH_GGUF)
def test_llama_cpp_computes_it_from_the_gguf_file(case, files, family, tmp_path):
    made = files(family)
    found = oracles.llama_logits({name: artifact.path for name, artifact in made.items()}, tmp_path)
    allowed = LLAMA_CPP_GELU if getattr(FAMILIES[family], "GELU", False) else LLAMA_CPP
    off = {name: oracles.deviations(found[name], case(family, name)[1]) for name in made}
    assert max(off.values()) < allowed, off


@pytest.mark.parametrize(("family", "name"), [c for c in CASES if c[0] in WITH_GGUF and c[1] not in NOT_IN_GGUF[c[0]]])
def test_a_gguf_file_is_the_same_model_and_goes_back(case, files, family, name, tmp_path):
    folder, expected = case(family, name)
    source, artifact = edgekit.open(folder).model, files(family)[name]
    model = artifact.model
    assert model.config.family in (family, getattr(FAMILIES[family], "GGUF_READS_AS", family))
    for role, tensor in source.tensors.items():
        np.testing.assert_array_equal(model.tensors[role].float32(), tensor.float32(), err_msg=role)
    assert oracles.relative(Transformer(model).logits(oracles.TOKENS), expected) < TOLERANCE
    edgekit.convert(artifact, tmp_path / "back")
    assert oracles.relative(oracles.loaded_logits(tmp_path / "back"), expected) < TOLERANCE


@pytest.mark.parametrize(("family", "name"), CASES, ids=IDS)
def test_openvino_computes_it_or_says_what_it_lacks(case, family, name, tmp_path):
    folder, expected = case(family, name)
    lacks = getattr(FAMILIES[family], "OPENVINO_LACKS", None)
    if lacks:
        with pytest.raises(UnsupportedModelError, match=f"needs the operation {lacks}, which it lacks"):
            OpenVinoFormat().layout(edgekit.open(folder))  # before a tensor is read
        return
    edgekit.convert(folder, tmp_path / "ir", format="openvino")
    compiled = openvino_cases.Compiled(tmp_path / "ir" / "openvino_model.xml")
    assert oracles.relative(compiled(oracles.TOKENS[None])[0], expected) < TOLERANCE
    compiled.request.reset_state()
    seen = 0
    for size in (9, 1, 1, len(oracles.TOKENS) - 11):
        mask = np.ones((1, seen + size), np.int64)
        logits = compiled(oracles.TOKENS[None, seen : seen + size], mask)
        seen += size
        assert oracles.relative(logits[0, -1], expected[seen - 1]) < TOLERANCE


@pytest.mark.parametrize("family", ["qwen3_5", "granitemoehybrid"])
def test_openvino_loops_over_tokens_are_the_same_every_time_and_ignore_padding(case, family, tmp_path):
    """Names in a loop's body do not count what the process made before; padding leaves a recurrent state at zeros."""
    folder, expected = case(family, "plain")
    for name in ("one", "two"):
        edgekit.convert(folder, tmp_path / name, format="openvino")
    xml = "openvino_model.xml"
    assert (tmp_path / "one" / xml).read_bytes() == (tmp_path / "two" / xml).read_bytes()
    assert b'type="Loop"' in (tmp_path / "one" / xml).read_bytes()
    compiled = openvino_cases.Compiled(tmp_path / "one" / xml)
    n, ids = len(oracles.TOKENS), np.stack([oracles.TOKENS, np.roll(oracles.TOKENS, 5)])
    mask = np.ones((2, n), np.int64)
    mask[1, :5] = 0
    padded = compiled(ids, mask)
    assert oracles.relative(padded[0], expected) < TOLERANCE
    assert oracles.relative(padded[1, 5:], expected[: n - 5]) < TOLERANCE


@pytest.mark.parametrize("family", ["mistral", "phi3", "qwen2", "qwen3"])
def test_a_window_that_llama_cpp_ignores_is_noted(case, family, tmp_path):
    folder, expected = case(family, "window")
    artifact = edgekit.convert(folder, tmp_path / "model.gguf", dtype="F32")
    architecture = FAMILIES[family].BASE["model_type"].replace("mistral", "llama")
    assert artifact.notes["otherwise"] == (
        f"llama.cpp attends to all tokens in {architecture} files, and this model to a window of 8: longer texts have "
        "other logits there"
    )
    found = oracles.llama_logits({"window": artifact.path}, tmp_path)["window"]
    assert oracles.deviations(found[:8], expected[:8]) < LLAMA_CPP
    assert oracles.deviations(found, expected) > 0.1
    assert oracles.relative(Transformer(artifact.model).logits(oracles.TOKENS), expected) < TOLERANCE


@pytest.mark.parametrize(("family", "config", "message"), REFUSED)
def test_what_llama_cpp_would_compute_otherwise_is_refused(family, config, message, tmp_path):
    oracles.saved_model(config, tmp_path / "hf")
    with pytest.raises(EdgekitError) as caught:
        edgekit.convert(tmp_path / "hf", tmp_path / "model.gguf", dtype="F32")
    assert message in str(caught.value)


def test_the_parts_of_a_multimodal_checkpoint_are_counted(tmp_path):
    """Qwen 3.5 as it is published: the text part under another prefix, a vision tower, tensors that predict more."""
    from safetensors.numpy import load_file, save_file

    folder = tmp_path / "hf"
    model = oracles.saved_model(FAMILIES["qwen3_5"].BASE, folder)
    found = load_file(folder / "model.safetensors")
    whole = {name.replace("model.", "model.language_model.", 1): tensor for name, tensor in found.items()}
    whole |= {f"model.visual.blocks.{i}.norm.weight": np.ones(8, np.float32) for i in range(3)}
    whole |= {"mtp.fc.weight": np.ones((8, 16), np.float32)}
    save_file(whole, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({"model_type": "qwen3_5", "text_config": config}))
    notes: list[str] = []
    artifact = edgekit.convert(folder, tmp_path / "model.gguf", dtype="F32", notes=notes)
    assert notes[0] == (
        "3 tensors of model.visual, 1 tensors of mtp are left out: they are not part of the qwen3_5 language model"
    )
    found = Transformer(artifact.model).logits(oracles.TOKENS)
    assert oracles.relative(found, oracles.transformers_logits(model)) < TOLERANCE


def test_a_vector_may_be_stored_as_a_matrix_of_one_row(files, tmp_path):
    """llama.cpp's converter leaves the shared expert's gate as it is; its quantizer, and edgekit, drop the dimension."""
    source = files("qwen3_next")["plain"]
    reader, writer = gguf.GGUFReader(source.path), gguf.GGUFWriter(tmp_path / "wide.gguf", "qwen3next")
    for name, field in reader.fields.items():
        if not name.startswith(("GGUF.", "general.architecture")):
            kind, *element = field.types
            writer.add_key_value(name, field.contents(), kind, sub_type=element[0] if element else None)
    for tensor in reader.tensors:
        wide = tensor.name.endswith("ffn_gate_inp_shexp.weight")
        assert len(tensor.shape) == 1 or not wide
        writer.add_tensor(tensor.name, tensor.data[None] if wide else tensor.data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = Transformer(edgekit.open(tmp_path / "wide.gguf").model).logits(oracles.TOKENS)
    np.testing.assert_array_equal(found, Transformer(source.model).logits(oracles.TOKENS))
