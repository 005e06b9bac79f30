"""The embedded model is what its page says: small, trained, bfloat16, and divisible by every block."""

import hashlib
import json
import re
from math import prod
from pathlib import Path

import numpy as np
import pytest

from edgekit import sample

FILES = {
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
}
HELDOUT_SHA256 = "16d485a05d49ff8cd5512d424bb0e95072b1d8ee5f5a8c63602269f6002eef8d"


def loaded(name: str):
    return json.loads((sample.path() / name).read_text("utf-8"))


@pytest.fixture(scope="module")
def header() -> dict[str, dict]:
    """The safetensors header, read by hand: 8 bytes of length, then JSON."""
    data = (sample.path() / "model.safetensors").read_bytes()
    length = int.from_bytes(data[:8], "little")
    entries = json.loads(data[8 : 8 + length])
    assert entries.pop("__metadata__") == {"format": "pt"}
    assert max(entry["data_offsets"][1] for entry in entries.values()) == len(data) - 8 - length
    return entries


def weights(header: dict[str, dict], name: str) -> np.ndarray:
    data = (sample.path() / "model.safetensors").read_bytes()
    begin, end = header[name]["data_offsets"]
    origin = 8 + int.from_bytes(data[:8], "little")
    bits = np.frombuffer(data[origin + begin : origin + end], np.uint16)
    return (bits.astype(np.uint32) << 16).view(np.float32).reshape(header[name]["shape"])


def test_the_directory_holds_what_a_hugging_face_model_has():
    assert {file.name for file in sample.path().iterdir()} == FILES


def test_the_files_lie_inside_the_package():
    package = Path(sample.__file__).parent
    assert sample.path().parent == package
    assert {"PROVENANCE.md", "heldout.txt", "report.json"} <= {file.name for file in package.iterdir()}


def test_the_weights_fit_in_four_megabytes():
    assert 3_000_000 < (sample.path() / "model.safetensors").stat().st_size <= 4_000_000


def test_every_tensor_is_bfloat16(header):
    assert {entry["dtype"] for entry in header.values()} == {"BF16"}


def test_every_row_divides_by_256(header):
    assert all(entry["shape"][-1] % 256 == 0 for entry in header.values())


def test_the_tensors_are_those_of_a_llama_with_tied_embeddings(header):
    config = loaded("config.json")
    layers, width, inner = (config[key] for key in ("num_hidden_layers", "hidden_size", "intermediate_size"))
    kv = config["num_key_value_heads"] * config["head_dim"]
    shapes = {"model.embed_tokens.weight": [config["vocab_size"], width], "model.norm.weight": [width]}
    for layer in (f"model.layers.{index}." for index in range(layers)):
        shapes |= {layer + f"{norm}_layernorm.weight": [width] for norm in ("input", "post_attention")}
        shapes |= {layer + f"self_attn.{name}_proj.weight": [width, width] for name in "qo"}
        shapes |= {layer + f"self_attn.{name}_proj.weight": [kv, width] for name in "kv"}
        shapes |= {layer + f"mlp.{name}_proj.weight": [inner, width] for name in ("gate", "up")}
        shapes |= {layer + "mlp.down_proj.weight": [width, inner]}
    assert {name: entry["shape"] for name, entry in header.items()} == shapes
    assert sum(prod(shape) for shape in shapes.values()) == report()["parameters"]


def test_the_weights_are_trained_numbers(header):
    for name in header:
        values = weights(header, name)
        assert np.isfinite(values).all(), name
        # 256 norm weights near 1, where bfloat16 has 128 steps to the next power of two, share values.
        assert np.unique(values).size > (20 if values.ndim == 1 else 500), f"{name} holds hardly any distinct values"


def test_the_tokenizer_knows_every_byte_and_begins_with_bos():
    config, tokenizer = loaded("config.json"), loaded("tokenizer.json")
    vocabulary = tokenizer["model"]["vocab"]
    assert sorted(vocabulary.values()) == list(range(config["vocab_size"]))
    assert sum(len(token) == 1 for token in vocabulary) == 256
    assert (vocabulary["<s>"], vocabulary["</s>"]) == (config["bos_token_id"], config["eos_token_id"])
    assert tokenizer["post_processor"]["single"][0]["SpecialToken"]["id"] == "<s>"
    assert (tokenizer["pre_tokenizer"]["type"], tokenizer["decoder"]["type"]) == ("ByteLevel", "ByteLevel")


def test_the_heldout_text_is_the_one_that_was_measured():
    text = sample.heldout_text()
    assert hashlib.sha256(text.encode()).hexdigest() == HELDOUT_SHA256
    assert text.isascii()
    assert len(text) == report()["heldout"]["bytes"]
    assert len(text.split("\n\n")) == report()["heldout"]["stories"]


def test_the_characters_of_a_heldout_story_come_back():
    """Each story introduces its hero by name and names that hero again: what only attention can know."""
    for story in sample.heldout_text().split("\n\n"):
        names = re.findall(r"named ([A-Z][a-z]+)", story)
        assert len(names) >= 2, story
        assert story.count(names[0]) >= 3, story


def report() -> dict:
    return json.loads((sample.path().parent / "report.json").read_text("utf-8"))


def test_the_report_shows_a_trained_model_whom_lost_bits_hurt():
    found = report()["perplexity"]
    assert found["trained"] < found["untrained"] / 100
    ladder = [found[f"int{bits}-asym-g32"] for bits in range(8, 0, -1)]
    assert ladder[3:] == sorted(ladder[3:])
    # With six bits and more the loss is within the noise of a text of this length: either side of the source's.
    assert ladder[:3] == pytest.approx([found["trained"]] * 3, rel=1e-3)
    assert ladder[-2] > found["trained"] * 1.4


def test_the_provenance_tells_the_figures_of_the_report():
    text = (sample.path().parent / "PROVENANCE.md").read_text("utf-8")
    found = report()
    for figure in (found["perplexity"]["trained"], found["perplexity"]["untrained"], found["training"]["final_loss"]):
        assert str(figure) in text
    assert "Apache-2.0" in text
