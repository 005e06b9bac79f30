"""Hyper-parameters, row order and tokenizers: to GGUF and back."""

from __future__ import annotations

import math
import re
from pathlib import Path

import attrs
import gguf
import numpy as np
import pytest

import edgekit
from edgekit.architectures import ModelConfig, RopeScaling
from edgekit.errors import InvalidFileError, UnsupportedModelError
from edgekit.tokenizer import Tokenizer, TokenType
from edgekit_gguf.format import GgufFormat
from edgekit_gguf.metadata import Metadata, Value, f32s, flag, flags, text, texts, u32
from edgekit_gguf.rotary import reorder, row_order
from edgekit_gguf.types import ValueType
from edgekit_gguf.vocab import from_metadata, to_metadata

GGUF = GgufFormat()
_FACTORS = tuple(float(np.float32(1 + 0.1 * i)) for i in range(8))
_GEMMA = {"activation": "gelu_tanh", "embedding_scale": 8.0, "tied": True}
#: What to change in the small Llama.
MODELS: dict[str, dict[str, object]] = {
    "llama": {"name": "a llama"},
    "llama-tied": {"tied": True},
    "llama-biased": {"qkv_bias": True, "attn_output_bias": True, "ffn_bias": True},
    "llama-linear": {"rope_scaling": RopeScaling("linear", 4.0)},
    "mistral": {"family": "mistral", "sliding_window": 32},
    "qwen2": {"family": "qwen2", "qkv_bias": True, "rope_theta": 1e6},
    "qwen2-windowed": {"family": "qwen2", "qkv_bias": True, "sliding_window": 32, "full_attention_first": 1},
    "qwen2-yarn": {
        "family": "qwen2",
        "qkv_bias": True,
        "rope_scaling": RopeScaling(
            "yarn", 4.0, original_context=32, attention_factor=0.1 * math.log(4) + 1, beta_fast=16.0, beta_slow=2.0
        ),
    },
    "qwen3": {"family": "qwen3", "head_dim": 32, "rotary_dim": 32, "attention_scale": 32**-0.5},
    "phi3": {"family": "phi3", "sliding_window": 64},
    "phi3-longrope": {
        "family": "phi3",
        "rope_scaling": RopeScaling(
            "longrope",
            4.0,
            original_context=32,
            attention_factor=1.25,
            long_factors=_FACTORS,
            short_factors=_FACTORS[::-1],
        ),
    },
    "phi3-partial": {"family": "phi3", "rotary_dim": 12},
    "gemma": {"family": "gemma", **_GEMMA},
    "gemma2": {
        "family": "gemma2",
        **_GEMMA,
        "sliding_window": 32,
        "full_attention_every": 2,
        "attention_softcap": 50.0,
        "output_softcap": 25.0,
    },
    "gemma3": {
        "family": "gemma3",
        **_GEMMA,
        "layers": 7,
        "sliding_window": 32,
        "full_attention_every": 6,
        "rope_theta_local": 10000.0,
        "rope_theta": 1e6,
    },
    "gemma3-untied-thirds": {
        "family": "gemma3",
        **_GEMMA,
        "tied": False,
        "layers": 7,
        "sliding_window": 32,
        "full_attention_every": 3,
        "rope_theta_local": 500.0,
        "output_softcap": 30.0,
    },
    "gemma2-27b": {
        "family": "gemma2",
        **_GEMMA,
        "layers": 46,
        "sliding_window": 32,
        "full_attention_every": 2,
        "attention_softcap": 50.0,
        "output_softcap": 30.0,
        "head_dim": 32,
        "rotary_dim": 32,
    },
}


def rounded(config: ModelConfig) -> ModelConfig:
    """The attention factor of yarn is divided and multiplied again."""
    scaling = config.rope_scaling and attrs.evolve(
        config.rope_scaling, attention_factor=pytest.approx(config.rope_scaling.attention_factor)
    )
    return attrs.evolve(config, rope_scaling=scaling)


@pytest.mark.parametrize("name", MODELS)
def test_models_come_back(name: str, artifact, llama, tmp_path: Path):
    config = attrs.evolve(llama, **MODELS[name])
    source = artifact(config)
    model = edgekit.convert(source, tmp_path / "model.gguf", dtype="F32").model
    assert model.config == rounded(config)
    assert model.tensors.keys() == source.model.tensors.keys()
    for tensor, expected in source.model.tensors.items():
        np.testing.assert_array_equal(model.tensors[tensor].read(), expected.read(), tensor)


def test_llama3_scaling_becomes_divisors(artifact, llama, tmp_path: Path):
    scaling = RopeScaling("llama3", 8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_context=32)
    source = artifact(attrs.evolve(llama, rope_scaling=scaling, rope_theta=500.0))
    back = edgekit.convert(source, tmp_path / "model.gguf", dtype="F32")
    divisors = back.tensors["rope_freqs.weight"].read()
    wavelengths = 2 * np.pi * 500.0 ** (np.arange(0, 16, 2) / 16)
    assert (divisors[wavelengths < 32 / 4] == 1).all()
    assert (divisors[wavelengths > 32 / 1] == 8).all()
    between = divisors[(wavelengths >= 8) & (wavelengths <= 32)]
    assert len(between) > 0
    assert ((between > 1) & (between < 8)).all()
    found = back.model.config.rope_scaling
    assert found is not None
    assert found.long_factors == found.short_factors == tuple(divisors.tolist())
    again = edgekit.convert(artifact(back.model.config), tmp_path / "again.gguf", dtype="F32")
    np.testing.assert_array_equal(again.tensors["rope_freqs.weight"].read(), divisors)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"attention_scale": 0.5},
            "attention_scale of the model is 0.5, but GGUF files of llama models mean 0.25, and",
        ),
        ({"activation": "gelu_tanh"}, "activation of the model is gelu_tanh, but GGUF files of llama models mean silu"),
        ({"output_softcap": 30.0}, "output_softcap of the model is 30.0, but GGUF files of llama models mean None"),
        (
            {"family": "gemma", **_GEMMA, "tied": False},
            "tied of the model is False, but GGUF files of gemma models mean",
        ),
        ({"family": "gemma2", **_GEMMA, "output_softcap": 30.0}, "attention_softcap of the model is None, but GGUF"),
        (
            {"family": "qwen2", "rope_scaling": RopeScaling("llama3", 8.0, original_context=32)},
            "llama3 rope scaling of a qwen2 model needs rope_freqs.weight, which llama.cpp does not load for it",
        ),
        (
            {"rope_scaling": RopeScaling("dynamic", 2.0, original_context=64)},
            "llama.cpp has no dynamic rope scaling, so that GGUF has no key for it",
        ),
    ],
)
def test_what_gguf_cannot_say_is_refused_before_a_tensor_is_read(
    changes, message: str, artifact, llama, tmp_path: Path
):
    source = artifact(attrs.evolve(llama, **changes))
    with pytest.raises(UnsupportedModelError, match=f"^{re.escape(message)}"):
        GGUF.layout(source)


def test_stories(stories: Path):
    source = edgekit.open(stories)
    config = source.model.config
    assert (config.family, config.layers, config.width, config.ffn) == ("llama", 5, 64, 172)
    assert (config.heads, config.kv_heads, config.head_dim, config.vocab) == (8, 4, 8, 512)
    assert config.context == 2048
    assert not config.tied
    tokenizer = source.tokenizer
    assert tokenizer is not None
    assert (tokenizer.kind, len(tokenizer.tokens)) == ("spm", 512)
    assert (tokenizer.bos, tokenizer.eos, tokenizer.unk, tokenizer.pad) == (1, 2, 0, None)
    assert (tokenizer.add_bos, tokenizer.add_eos, tokenizer.add_space_prefix) == (True, False, True)
    assert tokenizer.types[:4] == (TokenType.UNKNOWN, TokenType.CONTROL, TokenType.CONTROL, TokenType.BYTE)


def test_row_order_is_the_published_one():
    rows = np.arange(2 * 8)
    to_gguf = rows[row_order(16, 2, "to_gguf")]
    assert to_gguf.tolist() == [0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15]
    assert to_gguf[row_order(16, 2, "from_gguf")].tolist() == rows.tolist()


@pytest.mark.parametrize("precision", ["ggml:Q8_0", "ggml:Q5_1"])
def test_encoded_rows_move_as_they_are(precision: str, artifact, llama, tmp_path: Path):
    """Reordering and encoding commute, to the bit, and so do row slices."""
    source = artifact(llama)
    small = edgekit.quantize(source, precision, to=tmp_path / "small.gguf")
    for name in ("blk.0.attn_q.weight", "blk.1.attn_k.weight"):
        expected = edgekit.encode(source.tensors[name].read(), precision).parts["blocks"]
        canonical = small.model.tensors[name]
        np.testing.assert_array_equal(canonical.read().parts["blocks"], expected)
        np.testing.assert_array_equal(canonical.read_parts(3, 21)["blocks"], expected[3:21])
        assert (small.tensors[name].read().parts["blocks"] != expected).any()
        back = reorder(name, canonical, llama, "to_gguf")
        np.testing.assert_array_equal(back.read().parts["blocks"], small.tensors[name].read().parts["blocks"])


@pytest.fixture
def rewritten(artifact, llama, tmp_path: Path):
    """Writes a model whose metadata is changed: ``rewritten({key: value or None})``."""

    def write(changes: dict[str, Value | None], config: ModelConfig = llama) -> Path:
        source = edgekit.convert(artifact(config), tmp_path / "source.gguf", dtype="F32")
        pairs = {k: v for k, v in (dict(source.config.typed) | changes).items() if v is not None}
        changed = attrs.evolve(source, config=Metadata(pairs))
        path = tmp_path / "changed.gguf"
        layout = GGUF.layout(changed)
        plan = edgekit.pipeline.AsIs().plan(layout.slots, None)
        writer = GGUF.writer(path, layout, plan, edgekit.manifest.Manifest())
        for slot, assignment in zip(layout.slots, plan, strict=True):
            writer.write(attrs.evolve(edgekit.encode(slot.tensor.read(), assignment.precision), name=slot.name))
        writer.commit()
        return path

    return write


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"llama.block_count": None},
            "key 'llama.block_count' is missing, it must be an integer; convert the model again",
        ),
        ({"llama.block_count": text("2")}, "key 'llama.block_count' is '2', it must be an integer"),
        ({"llama.block_count": u32(0)}, "64 wide, 4 heads, 0 layers; get the file again"),
        ({"llama.attention.layer_norm_rms_epsilon": None}, "key 'llama.attention.layer_norm_rms_epsilon' is missing"),
        ({"llama.rope.freq_base": text("x")}, "key 'llama.rope.freq_base' is 'x', it must be a number"),
        ({"llama.attention.head_count_kv": u32(3)}, "kv_heads is 3, it has to be a divisor of the 4 heads"),
        ({"llama.feed_forward_length": u32(97)}, "tensor blk.0.ffn_gate.weight has shape [96, 64], the configuration"),
        ({"llama.block_count": u32(3)}, "tensors are missing: blk.2.attn_norm.weight"),
        ({"llama.expert_count": u32(8)}, "key 'expert_used_count' is missing"),
        (
            {"llama.expert_count": u32(8), "llama.expert_used_count": u32(2)},
            "tensors are missing: blk.0.ffn_gate_inp.weight",
        ),
    ],
)
def test_contradictions_are_refused(changes, message: str, rewritten):
    path = rewritten(changes)
    with pytest.raises(InvalidFileError, match=re.escape(f"{path}: {message}")):
        _ = edgekit.open(path).model


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"general.architecture": text("mamba")}, "general.architecture is 'mamba'; supported are llama, qwen2, qwen3"),
        ({"llama.attention.value_length": u32(8)}, "llama.attention.value_length is not 16, as the keys' length is"),
        (
            {"llama.rope.scaling.type": text("magic")},
            "llama.rope.scaling.type is 'magic'; edgekit does not support that",
        ),
        (
            {"llama.attention.head_count": Value(ValueType.ARRAY, (4, 2), ValueType.UINT32)},
            "llama.attention.head_count differs from layer to layer: (4, 2)",
        ),
        (
            {
                "llama.block_count": u32(2),
                "llama.attention.sliding_window": u32(8),
                "llama.attention.sliding_window_pattern": flags([True, False]),
            },
            None,
        ),
    ],
)
def test_features_that_are_not_known_are_refused(changes, message: str | None, rewritten):
    path = rewritten(changes)
    if message is None:
        assert edgekit.open(path).model.config.full_attention_every == 2
        return
    with pytest.raises(UnsupportedModelError, match=re.escape(f"{path}: {message}")):
        _ = edgekit.open(path).model


def test_unknown_families_are_still_quantized(rewritten, tmp_path: Path):
    path = rewritten({"general.architecture": text("starcoder")})
    small = edgekit.quantize(path, "Q8_0", to=tmp_path / "small.gguf")
    assert small.tensors["blk.0.attn_q.weight"].precision.name == "ggml:Q8_0"


def test_equal_values_of_all_layers_are_one(rewritten, llama):
    path = rewritten({"llama.attention.head_count_kv": Value(ValueType.ARRAY, (2, 2), ValueType.INT32)})
    assert edgekit.open(path).model.config.kv_heads == 2


def test_old_key_of_linear_scaling(rewritten):
    path = rewritten({"llama.rope.scale_linear": Value(ValueType.FLOAT32, 2.0)})
    assert edgekit.open(path).model.config.rope_scaling == RopeScaling("linear", 2.0)


SPM = Tokenizer(
    "spm",
    ("<unk>", "<s>", "</s>", "<0x0A>", "▁a", "b", "<pad>"),
    (
        TokenType.UNKNOWN,
        TokenType.CONTROL,
        TokenType.CONTROL,
        TokenType.BYTE,
        TokenType.NORMAL,
        TokenType.NORMAL,
        TokenType.USER_DEFINED,
    ),
    scores=(0.0, 0.0, 0.0, 0.0, -1.5, -2.5, -1000.0),
    bos=1,
    eos=2,
    unk=0,
    pad=6,
    add_eos=True,
    add_space_prefix=False,
    chat_template="{{ messages }}",
)
BPE = Tokenizer(
    "bpe",
    ("a", "b", "ab", "Ġ", "<|end|>"),
    (TokenType.NORMAL,) * 4 + (TokenType.CONTROL,),
    merges=("a b", "Ġ a"),
    pre="qwen2",
    eos=4,
    add_bos=False,
    add_space_prefix=False,
)


@pytest.mark.parametrize("tokenizer", [SPM, BPE], ids=["spm", "bpe"])
def test_tokenizers_come_back(tokenizer: Tokenizer):
    pairs = to_metadata(tokenizer, len(tokenizer.tokens))
    assert attrs.asdict(from_metadata(Metadata(pairs), Path("x"))) == attrs.asdict(tokenizer)


def test_vocabularies_are_padded_to_the_matrix(artifact, llama, tmp_path: Path):
    back = edgekit.convert(artifact(llama, SPM), tmp_path / "model.gguf", dtype="F32").tokenizer
    assert back is not None
    assert back.tokens[:7] == SPM.tokens
    assert back.tokens[7:] == tuple(f"[PAD{i}]" for i in range(7, 24))
    assert set(back.types[7:]) == {TokenType.UNUSED}


def test_tokens_without_a_row_are_cut_off():
    back = from_metadata(Metadata(to_metadata(SPM, 5)), Path("x"))
    assert back is not None
    assert (back.tokens, back.scores, back.pad) == (SPM.tokens[:5], SPM.scores[:5], None)


def test_user_defined_pieces_have_real_spaces():
    spaced = attrs.evolve(SPM, tokens=(*SPM.tokens[:6], "▁▁"))
    assert to_metadata(spaced, 7)["tokenizer.ggml.tokens"].data[4:] == ("▁a", "b", "  ")


def test_a_tokenizer_without_a_name_is_refused(artifact, llama):
    with pytest.raises(
        UnsupportedModelError,
        match=r"^the tokenizer cuts words by no rule, which a GGUF file must call by llama.cpp's name, and edgekit has none",
    ):
        GGUF.layout(artifact(llama, attrs.evolve(BPE, pre="")))


def test_code_llama_has_infill_tokens():
    tokens = ("<unk>", "▁<PRE>", "▁<SUF>", "▁<MID>", "▁<EOT>")
    pairs = to_metadata(Tokenizer("spm", tokens, (TokenType.NORMAL,) * 5, scores=(0.0,) * 5), 5)
    found = {key.rpartition(".")[2]: value.data for key, value in pairs.items() if "_token_id" in key}
    assert found == {"prefix_token_id": 1, "suffix_token_id": 2, "middle_token_id": 3, "eot_token_id": 4}


def vocabulary(**changes: Value | None) -> Metadata:
    pairs = to_metadata(SPM, 7) | {f"tokenizer.ggml.{key}": value for key, value in changes.items()}
    return Metadata({key: value for key, value in pairs.items() if value is not None})


def test_what_a_file_leaves_out_gets_llama_cpps_defaults():
    left_out = ("bos_token_id", "eos_token_id", "unknown_token_id", "padding_token_id", "token_type", "scores", "pre")
    bare = vocabulary(**dict.fromkeys((*left_out, "add_bos_token", "add_eos_token", "add_space_prefix")))
    found = from_metadata(bare, Path("x"))
    assert found is not None
    assert (found.bos, found.eos, found.unk, found.pad, found.pre) == (1, 2, 0, None, "default")
    assert (found.add_bos, found.add_eos, found.add_space_prefix) == (True, False, True)
    assert set(found.types) == {TokenType.NORMAL}
    assert set(found.scores) == {0.0}


def test_ids_out_of_range_count_as_absent():
    found = from_metadata(vocabulary(padding_token_id=u32(0xFFFFFFFF), bos_token_id=u32(7)), Path("x"))
    assert found is not None
    assert (found.pad, found.bos) == (None, 1)


def test_no_vocabulary():
    assert from_metadata(Metadata({}), Path("x")) is None
    assert from_metadata(Metadata(to_metadata(None, 9)), Path("x")) is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scores": f32s([0.0])}, "x: key 'tokenizer.ggml.scores' has 1 items for 7 tokens; get the file again"),
        ({"scores": texts(["a"] * 7)}, "x: key 'tokenizer.ggml.scores' is not an array of the right type; get"),
        ({"tokens": u32(1)}, "x: key 'tokenizer.ggml.tokens' is not an array of the right type; get the file again"),
        ({"bos_token_id": text("1")}, "x: key 'tokenizer.ggml.bos_token_id' holds '1', not of type int; get the"),
        ({"add_bos_token": text("1")}, "x: key 'tokenizer.ggml.add_bos_token' holds '1', not of type bool; get"),
    ],
)
def test_broken_tokenizers(changes, message: str):
    with pytest.raises(InvalidFileError, match=f"^{re.escape(message)}"):
        from_metadata(vocabulary(**changes), Path("x"))


def test_tokenizers_of_other_models():
    with pytest.raises(
        UnsupportedModelError, match=r"^x: its tokenizer is of model 't5'; supported are llama, gpt2, bert$"
    ):
        from_metadata(vocabulary(model=text("t5")), Path("x"))


@pytest.mark.parametrize(
    ("general", "names", "message"),
    [
        (
            "adapter",
            ("blk.0.attn_q.weight.lora_a", "blk.0.attn_q.weight.lora_b"),
            "it holds a LoRA adapter, not a model",
        ),
        (None, ("blk.0.attn_q.weight.lora_a", "blk.0.attn_q.weight.lora_b"), "it holds a LoRA adapter, not a model"),
        ("mmproj", ("v.blk.0.attn_q.weight",), "it holds the projector of a multimodal model"),
        ("imatrix", ("blk.0.attn_q.weight.in_sum2",), "it holds an importance matrix, not a model"),
        ("model", (), "it holds metadata and no weights"),
    ],
)
def test_files_that_hold_no_model_say_what_they_hold(tmp_path: Path, general, names, message: str):
    path = tmp_path / "x.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    if general:
        writer.add_type(general)
    for name in names:
        writer.add_tensor(name, np.ones((32, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(UnsupportedModelError, match=message):
        _ = edgekit.open(path).model
    with pytest.raises(UnsupportedModelError, match=message):
        edgekit.quantize(path, "Q8_0", to=tmp_path / "q.gguf")


def test_gemma_4s_merges_say_what_merges_first():
    """llama.cpp's converter writes SentencePiece's pieces with merges, and scores that say nothing."""
    tokens = ("<pad>", "▁", "a", "b", "▁a", "ab", "▁ab")
    given = {"model": text("gemma4"), "tokens": texts(tokens), "merges": texts(("a b", "▁ ab", "▁ a"))}
    habits = {"scores": f32s([-1000.0] * len(tokens)), "add_space_prefix": flag(False)}
    pairs = {f"tokenizer.ggml.{key}": value for key, value in (given | habits).items()}
    found = from_metadata(Metadata(pairs), Path("x"))
    assert (found.kind, found.add_bos, found.add_space_prefix) == ("spm", True, False)
    assert found.scores == (-3, -3, -3, -3, -2, -0.0, -1)
