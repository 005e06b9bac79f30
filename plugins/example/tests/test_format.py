"""``.ekx`` files: a model comes back as it was, whatever its precisions; damaged files are refused by name."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import attrs
import numpy as np
import pytest

import edgekit
from edgekit.architectures.hf import config_from_hf
from edgekit.artifact import Artifact
from edgekit.errors import EdgekitError, InvalidFileError, UnsupportedModelError
from edgekit.testing.models import artifact_of, random_model
from edgekit.tokenizer import Tokenizer, TokenType

PRECISIONS = (
    "float:F32",
    "float:BF16",
    "example:log4-g32",
    "ggml:Q8_0",
    "affine:int4-asym-g32",
    "affine:int3-sym-channel",
    "affine:int8-sym-tensor",
    "onnx:int4-asym-g32",
)
CONFIG = config_from_hf(
    {
        "model_type": "llama",
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 80,
        "max_position_embeddings": 64,
    },
    "test",
)


@pytest.fixture
def source(tmp_path: Path) -> Artifact:
    words = ("<unk>", "<s>", "</s>", *(f"w{n}" for n in range(77)))
    types = (TokenType.UNKNOWN, TokenType.CONTROL, TokenType.CONTROL, *[TokenType.NORMAL] * 77)
    tokenizer = Tokenizer("spm", words, types, scores=tuple(map(float, range(80))), bos=1, eos=2, chat_template="…")
    return artifact_of(random_model(CONFIG), tmp_path / "source", tokenizer)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_model_comes_back_as_it_was(source, tmp_path, precision):
    artifact = edgekit.quantize(source, precision, to=tmp_path / "model.ekx")
    again = edgekit.open(tmp_path / "model.ekx")
    assert (again.format, again.model.config) == ("ekx", CONFIG)
    assert attrs.asdict(again.tokenizer) == attrs.asdict(source.tokenizer)
    assert again.manifest == artifact.manifest
    assert list(again.tensors) == list(source.tensors)
    for name, tensor in source.tensors.items():
        stored = again.tensors[name]
        values = tensor.float32()
        expected = edgekit.encode(values, precision).dequantize() if len(tensor.shape) > 1 else values
        assert np.array_equal(stored.float32(), expected.reshape(stored.float32().shape))
        assert np.array_equal(stored.float32(0, 1), stored.float32()[:1])


@pytest.fixture
def small(source, tmp_path) -> bytes:
    edgekit.quantize(source, "ggml:Q8_0", to=tmp_path / "model.ekx")
    return (tmp_path / "model.ekx").read_bytes()


def test_every_cut_is_refused(small, tmp_path):
    path = tmp_path / "cut.ekx"
    for length in [*range(0, 60), *range(60, len(small), 997), len(small) - 1]:
        path.write_bytes(small[:length])
        with pytest.raises(InvalidFileError, match=r"cut\.ekx"):
            edgekit.open(path)


def test_whatever_byte_is_changed_nothing_but_an_edgekit_error_comes(small, tmp_path):
    path, random = tmp_path / "changed.ekx", np.random.default_rng(0)
    header = 8 + int.from_bytes(small[4:8], "little")
    for _ in range(200):
        changed = bytearray(small)
        changed[random.integers(0, header)] = random.integers(0, 256)
        path.write_bytes(changed)
        with contextlib.suppress(EdgekitError):
            for tensor in edgekit.open(path).model.tensors.values():
                tensor.read()


def hostile(small: bytes, path: Path, change) -> Path:
    end = 8 + int.from_bytes(small[4:8], "little")
    header = json.loads(small[8:end])
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(small[:4] + len(text).to_bytes(4, "little") + text + small[end:])
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda h: h["tensors"][0].update(shape=[1 << 40, 64]), "does not fit the"),
        (lambda h: h["tensors"][0].update(shape=[1, 1 << 60]), "does not fit the"),
        (lambda h: h["tensors"][0].update(shape=[-1, 64]), "is not a list of sizes"),
        (lambda h: h["tensors"][0].update(shape=[]), "does not fit the"),
        (lambda h: h["tensors"][0].update(offset=0), "must have exactly name, shape and precision"),
        (lambda h: h["tensors"][0].update(precision="ggml:Q9_9"), "unknown precision"),
        (lambda h: h["tensors"][1].update(name=h["tensors"][0]["name"]), "two tensors have the same name"),
        (lambda h: h["tensors"].pop(), "the tensors end here"),
        (lambda h: h["config"].update(layers="2"), "ModelConfig.layers is '2'"),
        (lambda h: h["config"].pop("layers"), "a ModelConfig must have the keys family"),
        (lambda h: h["tokenizer"].update(bos="<s>"), "Tokenizer.bos is '<s>'"),
        (lambda h: h["tokenizer"]["types"].__setitem__(0, 99), "99 is not a valid TokenType"),
        (lambda h: h.pop("tokenizer"), "must have exactly config, tokenizer and tensors"),
    ],
)
def test_lies_are_refused(small, tmp_path, change, message):
    with pytest.raises(EdgekitError, match=message) as caught:
        edgekit.open(hostile(small, tmp_path / "lie.ekx", change))
    assert "lie.ekx" in str(caught.value)


def test_an_unknown_family_is_refused_when_the_model_is_wanted(small, tmp_path):
    artifact = edgekit.open(hostile(small, tmp_path / "m.ekx", lambda h: h["config"].update(family="mamba")))
    with pytest.raises(UnsupportedModelError, match="'mamba' is of an unsupported family"):
        _ = artifact.model


def test_what_can_only_be_decoded_is_not_written(source, tmp_path):
    (tmp_path / "model.ekx").write_bytes(b"here before")
    with pytest.raises(EdgekitError, match="ggml:IQ1_S"):  # a plugin that encodes it wants an importance matrix
        edgekit.quantize(source, "ggml:IQ1_S", to=tmp_path / "model.ekx", overwrite=True)
    assert (tmp_path / "model.ekx").read_bytes() == b"here before"
    assert [path.name for path in tmp_path.iterdir()] == ["model.ekx"]
