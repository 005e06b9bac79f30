"""Families, names, configurations and the forward pass, without any framework."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import attrs
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.architectures import FAMILIES, ModelConfig, RopeScaling, check_config, check_tensors, tensor_shapes
from edgekit.architectures import _numerics as numerics
from edgekit.architectures.forward import KVCache, Transformer, attend, silu, visible
from edgekit.architectures.hf import config_from_hf, hf_config, hf_names, model_from_hf, to_hf_value
from edgekit.architectures.rope import frequencies
from edgekit.errors import EdgekitError, InvalidFileError, NonFiniteError, UnsupportedModelError, UsageError
from edgekit.tensor import Tensor
from edgekit.testing.models import random_hf_tensors, random_model

VECTORS = json.loads((Path(__file__).parent / "vectors" / "forward.json").read_text("utf-8"))
CONFIGS = {name: case["config"] for name, case in VECTORS["cases"].items()}
TOKENS = np.array(VECTORS["tokens"])
cases = pytest.mark.parametrize("name", CONFIGS)
LLAMA = CONFIGS["llama"]


def parse(name):
    return config_from_hf(CONFIGS[name], name)


def model(name, **options):
    return Transformer(random_model(parse(name)), **options)


# Known answers


def test_the_vectors_cover_every_family():
    families = {config_from_hf(config, name).family for name, config in CONFIGS.items()}
    others = {path.stem for path in (Path(__file__).parent / "vectors" / "families").glob("*.json")}
    encoders = json.loads((Path(__file__).parent / "vectors" / "encoders.json").read_text("utf-8"))["cases"]
    others |= {config_from_hf(case["config"], name).family for name, case in encoders.items()} - {"qwen3"}
    assert families | others == set(FAMILIES)
    assert not families & others
    assert VECTORS["provenance"]["transformers"]


@cases
def test_logits_are_those_of_transformers(name):
    case = VECTORS["cases"][name]
    found = model(name).logits(TOKENS)
    assert found.dtype == np.float32
    assert found.shape == (TOKENS.size, 40)
    assert np.abs(found[-1] - np.array(case["last"])).max() < 1e-4 * case["scale"]  # measured: below 4e-6


# Properties of the forward pass


# With these the length decides how all positions turn: see test_what_turns_with_the_length_starts_over.
TURN_WITH_LENGTH = ["llama-dynamic", "phi3-longrope-long"]


@pytest.mark.parametrize("name", [name for name in CONFIGS if name not in TURN_WITH_LENGTH])
def test_steps_give_what_the_full_pass_gives(name, rounding):
    network, past = model(name), KVCache()
    full = network.logits(TOKENS)
    allowed = rounding(network.config, full)
    for start, stop in [(0, 9), (9, 10), (10, 11), (11, 24)]:
        np.testing.assert_allclose(network.step(TOKENS[start:stop], past), full[stop - 1], atol=allowed, rtol=0)
    assert past.length == 24


@pytest.mark.parametrize("name", TURN_WITH_LENGTH)
def test_what_turns_with_the_length_starts_over(name, rounding):
    network, past = model(name), KVCache()
    allowed = rounding(network.config, network.logits(TOKENS))
    for stop in range(1, 25):
        found = network.step(TOKENS[stop - 1 : stop], past)
        np.testing.assert_allclose(found, network.logits(TOKENS[:stop])[-1], atol=allowed, rtol=0)
    assert past.length == 24


@cases
def test_a_batch_is_its_sequences(name, rounding):
    network = model(name)
    batch = np.stack([TOKENS, TOKENS[::-1], np.roll(TOKENS, 5)])
    together = network.logits(batch)
    allowed = rounding(network.config, together)
    for row, tokens in zip(together, batch, strict=True):
        np.testing.assert_allclose(row, network.logits(tokens), atol=allowed, rtol=0)
    past = KVCache()
    np.testing.assert_allclose(network.step(batch, past), together[:, -1], atol=allowed, rtol=0)


@cases
def test_nothing_sees_the_future(name):
    network = model(name)
    other = TOKENS.copy()
    other[20:] = (other[20:] + 1) % 40
    a, b = network.logits(TOKENS), network.logits(other)
    np.testing.assert_array_equal(a[:20], b[:20])
    assert np.abs(a[20:] - b[20:]).max() > 0.1


@pytest.mark.parametrize(("name", "reach"), [("mistral-window", 3 * 6), ("phi3", 3 * 8)])
def test_a_window_hides_what_lies_before_it(name, reach):
    """Through three layers of window w a token reaches 3 * (w - 1) positions, and not one more."""
    tokens = np.random.RandomState(2).randint(0, 40, 40)
    other = tokens.copy()
    other[4] = (other[4] + 1) % 40
    changed = np.abs(model(name).logits(tokens) - model(name).logits(other)).max(axis=-1)
    assert (changed[5 + reach :] == 0).all()
    assert changed[4 + reach] > 0


def test_long_sequences_attend_in_blocks():
    random = np.random.RandomState(0)
    q, k, v = (random.standard_normal((1, heads, 300, 8)).astype(np.float32) for heads in (4, 2, 2))
    for window in (None, 1, 50, 200, 1000):
        scores = np.einsum("bhnd,bhmd->bhnm", q * np.float32(0.3), k.repeat(2, axis=1))
        weights = np.where(visible(0, 300, 0, window), np.exp(scores.astype(np.float64)), 0)
        weights /= weights.sum(axis=-1, keepdims=True)
        expected = np.einsum("bhnm,bhmd->bnhd", weights, v.repeat(2, axis=1)).reshape(1, 300, 32)
        np.testing.assert_allclose(attend(q, k, v, 0.3, None, window), expected, atol=1e-5)


def test_silu_of_extremes():
    x = np.array([-1e4, -90, 0, 90, 1e4], np.float32)
    np.testing.assert_allclose(silu(x), [0, 0, 0, 90, 1e4], atol=1e-30)


def test_observe_sees_the_input_of_every_product():
    seen = {}
    network = model("qwen2", observe=seen.setdefault)
    network.logits(TOKENS)
    matrices = [n for n, shape in tensor_shapes(network.config).items() if len(shape) == 2]
    assert set(seen) == set(matrices)  # the embedding is the output matrix here
    for name, x in seen.items():
        assert x.shape == (TOKENS.size, network.model.tensors[name].shape[1])
    again = model("qwen2").hidden(TOKENS)
    np.testing.assert_array_equal(seen["token_embd.weight"], again)


def test_weights_are_read_anew_or_kept(rounding):
    reads = []

    def watched(name, tensor):
        def read_rows(start, stop):
            reads.append((name, stop - start))
            return tensor.read_rows(start, stop)

        return attrs.evolve(tensor, read_rows=read_rows)

    source = random_model(parse("llama"))
    watching = attrs.evolve(source, tensors={n: watched(n, t) for n, t in source.tensors.items()})
    kept, anew = Transformer(watching, cache=True), Transformer(watching, cache=False)
    expected = Transformer(source).logits(TOKENS)
    np.testing.assert_array_equal(kept.logits(TOKENS), expected)
    assert sorted(reads) == sorted((n, t.rows) for n, t in source.tensors.items())
    reads.clear()
    np.testing.assert_array_equal(kept.logits(TOKENS), expected)
    assert not reads
    np.testing.assert_allclose(anew.logits(TOKENS), expected, rtol=0, atol=rounding(anew.config, expected))
    assert max(rows for name, rows in reads if name == "token_embd.weight") == 1, "only the rows of the tokens"


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ([], "tokens have to be integers [n] or [batch, n], at least one; got float64 (0,)"),
        ([[[1]]], "tokens have to be integers [n] or [batch, n], at least one; got int64 (1, 1, 1)"),
        ([1.0], "tokens have to be integers [n] or [batch, n], at least one; got float64 (1,)"),
        (
            [3, 40],
            "tokens lie between 3 and 40, the vocabulary has 0 to 39; use the model's own tokenizer",
        ),
        (
            [-1, 4],
            "tokens lie between -1 and 4, the vocabulary has 0 to 39; use the model's own tokenizer",
        ),
    ],
)
def test_bad_tokens(tokens, message):
    with pytest.raises(UsageError) as caught:
        model("llama").logits(tokens)
    assert str(caught.value) == message


# Rotary frequencies


def rope(**options):
    config = attrs.evolve(parse("llama"), head_dim=64, rotary_dim=64, **options)
    return frequencies(check_config(config, "test"), 100)


def test_plain_frequencies():
    np.testing.assert_allclose(rope(rope_theta=1e4)[[0, 16]], [1, 0.01])
    np.testing.assert_allclose(rope(rope_scaling=RopeScaling("linear", 4.0)), rope() / 4)


def test_llama3_keeps_high_frequencies_and_divides_low_ones():
    scaled = rope(rope_theta=5e5, rope_scaling=RopeScaling("llama3", 8.0, 1.0, 4.0, 8192))
    ratio = scaled / rope(rope_theta=5e5)
    wavelength = 2 * math.pi / rope(rope_theta=5e5)
    np.testing.assert_allclose(ratio[wavelength < 8192 / 4], 1)
    np.testing.assert_allclose(ratio[wavelength > 8192], 1 / 8)
    between = ratio[(wavelength > 8192 / 4) & (wavelength < 8192)]
    assert ((between < 1) & (between > 1 / 8)).all()
    assert (np.diff(between) < 0).all()


def test_yarn_keeps_what_turns_often_and_divides_what_turns_little():
    ratio = rope(rope_scaling=RopeScaling("yarn", 4.0, original_context=4096)) / rope()
    turns = 4096 * rope() / (2 * math.pi)
    np.testing.assert_allclose(ratio[turns > 40], 1)
    np.testing.assert_allclose(ratio[turns < 0.7], 1 / 4)
    assert (np.diff(ratio) <= 1e-12).all()


# Names and tensors


@cases
def test_names_go_both_ways(name):
    config = parse(name)
    names = hf_names(config)
    assert list(names) == list(tensor_shapes(config))
    assert len(set(names.values())) == len(names)
    tensors = random_hf_tensors(config)
    found, made = model_from_hf(CONFIGS[name], tensors), random_model(config)
    assert found.config == made.config
    for canonical, tensor in found.tensors.items():
        np.testing.assert_allclose(tensor.float32(), made.tensors[canonical].float32(), atol=1e-6)
        back = to_hf_value(config, canonical, tensor)
        np.testing.assert_allclose(back.float32(), tensors[names[canonical]].float32(), atol=1e-6)


def test_names_of_a_phi3_stay_fused():
    names = hf_names(parse("phi3"))
    assert names["blk.1.attn_qkv.weight"] == "model.layers.1.self_attn.qkv_proj.weight"
    assert names["blk.1.ffn_up.weight"] == "model.layers.1.mlp.gate_up_proj.weight"
    assert tensor_shapes(parse("phi3"))["blk.1.ffn_up.weight"] == (96, 32)


def unread(name, shape):
    def read_rows(start, stop):
        raise AssertionError(f"{name} was read")

    return Tensor(name, shape, "float32", read_rows)


@cases
def test_the_view_reads_nothing(name):
    """But of an output matrix, which may be the embedding once more."""
    tensors = random_hf_tensors(parse(name))
    compared = ("lm_head.weight", "model.embed_tokens.weight") if "lm_head.weight" in tensors else ()
    given = {n: t if n in compared else unread(n, t.shape) for n, t in tensors.items()}
    assert model_from_hf(CONFIGS[name], given).config == parse(name)


@cases
def test_an_output_matrix_that_equals_the_embedding_is_the_embedding(name):
    tensors = random_hf_tensors(parse(name))
    embedding = tensors["model.embed_tokens.weight"]
    tensors["lm_head.weight"] = Tensor.of("lm_head.weight", embedding.read(), embedding.dtype)
    model = model_from_hf(CONFIGS[name], tensors)
    assert model.config.tied
    assert "output.weight" not in model.tensors
    changed = embedding.read().copy()
    changed.reshape(-1)[-1] += 1
    tensors["lm_head.weight"] = Tensor.of("lm_head.weight", changed, embedding.dtype)
    assert not model_from_hf(CONFIGS[name], tensors).config.tied


@cases
def test_a_base_model_is_read_without_its_prefix(name):
    tensors = random_hf_tensors(parse(name))
    tensors.pop("lm_head.weight", None)
    base = {n.removeprefix("model."): t for n, t in tensors.items()}
    model = model_from_hf(CONFIGS[name], base)
    assert model.config.tied
    named = {"lm_head.weight": tensors["model.embed_tokens.weight"], **tensors}
    np.testing.assert_array_equal(
        Transformer(model).logits(TOKENS), Transformer(model_from_hf(CONFIGS[name], named)).logits(TOKENS)
    )


def test_gemma_norms_are_one_more():
    tensors = random_hf_tensors(parse("gemma"))
    found = model_from_hf(CONFIGS["gemma"], tensors).tensors
    np.testing.assert_array_equal(
        found["blk.0.attn_norm.weight"].read(), tensors["model.layers.0.input_layernorm.weight"].read() + 1
    )
    assert found["token_embd.weight"] is tensors["model.embed_tokens.weight"]


def test_old_buffers_are_ignored_and_an_output_matrix_is_used():
    tensors = random_hf_tensors(parse("qwen2"))
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = Tensor.of("x", np.ones(4, np.float32))
    assert model_from_hf(CONFIGS["qwen2"], tensors).config.tied
    tensors["lm_head.weight"] = Tensor.of("lm_head.weight", np.zeros((40, 32), np.float32))
    untied = model_from_hf(CONFIGS["qwen2"], tensors)
    assert not untied.config.tied
    assert not Transformer(untied).logits(TOKENS).any()


def broken(change):
    tensors = random_hf_tensors(parse("llama"))
    change(tensors)
    with pytest.raises(InvalidFileError) as caught:
        model_from_hf(LLAMA, tensors, "dir")
    return str(caught.value)


def test_missing_tensors_are_named():
    assert broken(lambda t: t.pop("model.layers.2.mlp.up_proj.weight")) == (
        "dir: tensors are missing: model.layers.2.mlp.up_proj.weight; 29 of 30 are there: weights and configuration are of "
        "different models, or were saved in part; take both from one place"
    )

    def drop_layer(tensors):
        for name in [n for n in tensors if ".1." in n]:
            del tensors[name]

    assert broken(drop_layer) == (
        "dir: tensors are missing: model.layers.1.input_layernorm.weight, model.layers.1.self_attn.q_proj.weight, "
        "model.layers.1.self_attn.k_proj.weight, model.layers.1.self_attn.v_proj.weight and 5 more; "
        "21 of 30 are there: weights and configuration are of different models, or were saved in part; take both from "
        "one place"
    )
    assert broken(lambda t: t.pop("lm_head.weight")).startswith("dir: tensors are missing: lm_head.weight;")


def test_odd_tensors_are_named():
    def add(tensors):
        tensors["model.layers.0.mlp.up_proj.weight_scale_inv"] = Tensor.of("odd", np.ones(1, np.float32))

    assert broken(add) == "dir: no llama model has the tensors odd"

    def transpose(tensors):
        name = "model.layers.0.mlp.up_proj.weight"
        tensors[name] = Tensor.of(name, tensors[name].read().T.copy())

    assert broken(transpose) == (
        "dir: tensor model.layers.0.mlp.up_proj.weight has shape [32, 48], the configuration asks for [48, 32]; "
        "the two do not belong together"
    )


def test_a_name_given_twice_is_not_taken_for_another():
    tensors = random_hf_tensors(parse("gemma3"))
    norm = tensors["model.layers.0.self_attn.q_norm.weight"]
    for name in ("blk.0.attn_q_norm.weight", "language_model.model.layers.0.self_attn.q_norm.weight"):
        with pytest.raises(InvalidFileError, match=r"no gemma3 model has the tensors model.layers.0.self_attn.q_norm"):
            model_from_hf(CONFIGS["gemma3"], {**tensors, name: norm}, "dir")
    del tensors["model.layers.0.self_attn.q_norm.weight"]
    with pytest.raises(InvalidFileError, match=r"tensors are missing: model.layers.0.self_attn.q_norm.weight"):
        model_from_hf(CONFIGS["gemma3"], {**tensors, "blk.0.attn_q_norm.weight": norm}, "dir")


def test_check_tensors_without_names_says_the_canonical_ones():
    with pytest.raises(InvalidFileError, match=r"x.gguf: tensors are missing: token_embd.weight, blk.0.attn_norm"):
        check_tensors(parse("llama"), {}, "x.gguf")


# Configurations


@cases
def test_what_is_written_is_read_again(name):
    config = parse(name)
    written = json.loads(json.dumps(hf_config(config)))
    assert config_from_hf(written, "written") == config


def test_a_config_that_hugging_face_cannot_say():
    config = attrs.evolve(parse("llama"), sliding_window=8, output_softcap=3.0)
    with pytest.raises(UnsupportedModelError) as caught:
        hf_config(config)
    assert str(caught.value) == (
        "a config.json of the llama family cannot say this model's sliding_window, output_softcap; "
        "keep it in the format that it is in"
    )
    with pytest.raises(UnsupportedModelError, match="cannot say this model's attn_output_bias"):
        hf_config(attrs.evolve(parse("qwen3"), qkv_bias=True, attn_output_bias=False))


@pytest.mark.parametrize("rotary_dim", range(2, 100, 2))
def test_the_rotating_fraction_survives(rotary_dim):
    config = attrs.evolve(parse("phi3"), head_dim=98, rotary_dim=rotary_dim, attention_scale=98**-0.5)
    assert config_from_hf(hf_config(config), "written").rotary_dim == rotary_dim


def test_windows_of_layers():
    gemma = parse("gemma3")
    assert [gemma.window(layer) for layer in range(4)] == [5, 5, None, 5]
    qwen = parse("qwen2-window")
    assert [qwen.window(layer) for layer in range(3)] == [None, 5, 5]
    assert [parse("llama").window(layer) for layer in range(3)] == [None] * 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"model_type": "mamba"},
            "where: model_type is 'mamba'; edgekit knows "
            + ", ".join(dict.fromkeys(t for f in FAMILIES.values() for t in f.model_types)),
        ),
        (
            {"hidden_act": "relu"},
            "where: hidden_act is 'relu'; edgekit knows silu, gelu_pytorch_tanh, gelu_new",
        ),
        (
            {"rope_scaling": {"type": "proportional", "factor": 2.0}},
            "where: rope_type is 'proportional'; edgekit knows default, linear, dynamic, llama3, longrope and yarn",
        ),
        (
            {"partial_rotary_factor": 0.5},
            "where: partial_rotary_factor is 0.5; edgekit knows 1 for this family",
        ),
        (
            {"quantization_config": {"quant_method": "gptq"}},
            "where: its config.json says that it holds weights quantized by GPTQ (quantization_config), and none of its "
            "tensors is quantized that way; convert the full-precision model that it was made from",
        ),
    ],
)
def test_unknown_features_are_refused(change, message):
    with pytest.raises(UnsupportedModelError) as caught:
        config_from_hf(LLAMA | change, "where")
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("name", "change", "what"),
    [
        ("gemma3", {"attn_logit_softcapping": 30.0}, "attn_logit_softcapping"),
        ("gemma2", {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        ("gemma3", {"rope_parameters": {"rope_type": "default"}}, "rope_parameters"),
        ("qwen3", {"rope_parameters": {"full_attention": {"rope_theta": 5.0}}}, "rope_parameters"),
        ("gemma3", {"rope_parameters": {"sliding_attention": {"rope_type": "linear"}}}, "sliding_attention"),
        ("qwen3-window-yarn", {"layer_types": ["full_attention", "chunked_attention"] * 2}, "layer_types"),
        (
            "qwen3-window-yarn",
            {
                "num_hidden_layers": 4,
                "layer_types": [f"{k}_attention" for k in ("full", "sliding", "full", "full")],
            },
            "layer_types",
        ),
        ("qwen3-window-yarn", {"rope_scaling": {"type": "yarn", "factor": 2.0, "truncate": False}}, "truncate"),
    ],
)
def test_unknown_features_of_families(name, change, what):
    config = CONFIGS[name] | change
    config["num_hidden_layers"] = len(config.get("layer_types") or range(config["num_hidden_layers"]))
    with pytest.raises(UnsupportedModelError, match=what):
        config_from_hf(config, "where")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": "32"}, "where: hidden_size is '32', it has to be an integer; the file is damaged"),
        ({"hidden_size": 32.0}, "where: hidden_size is 32.0, it has to be an integer; the file is damaged"),
        (
            {"num_hidden_layers": True},
            "where: num_hidden_layers is True, it has to be an integer; the file is damaged",
        ),
        (
            {"vocab_size": 0},
            "where: vocab is 0, it has to be between 1 and 16777216; the file is damaged or hostile",
        ),
        (
            {"num_hidden_layers": 10**9},
            "where: layers is 1000000000, it has to be between 1 and 4096; the file is damaged or hostile",
        ),
        (
            {"intermediate_size": -1},
            "where: ffn is -1, it has to be between 1 and 4194304; the file is damaged or hostile",
        ),
        (
            {"num_key_value_heads": 3},
            "where: kv_heads is 3, it has to be a divisor of the 4 heads; the file is damaged or hostile",
        ),
        ({"num_attention_heads": 5}, "where: hidden_size 32 is no multiple of num_attention_heads 5"),
        (
            {"rms_norm_eps": float("nan")},
            "where: rms_norm_eps is nan, it has to be a finite number; the file is damaged",
        ),
        (
            {"rope_theta": 0},
            "where: rope_theta is 0.0, it has to be finite and above 0; the file is damaged or hostile",
        ),
        (
            {"head_dim": 7},
            "where: rotary_dim is 7, it has to be even and at most head_dim, 7; the file is damaged or hostile",
        ),
        (
            {"tie_word_embeddings": 1},
            "where: tie_word_embeddings is 1, it has to be true or false; the file is damaged",
        ),
        ({"rope_scaling": [1]}, "where: rope_scaling is [1], it has to be an object; the file is damaged"),
        (
            {"rope_scaling": {"type": "linear"}},
            "where: factor is None, it has to be a finite number; the file is damaged",
        ),
    ],
)
def test_hostile_values_are_refused(change, message):
    with pytest.raises(InvalidFileError) as caught:
        config_from_hf(LLAMA | change, "where")
    assert str(caught.value) == message


def test_hostile_longrope_factors():
    for factors in ([1.0], [1.0] * 5 + [0.0], [1.0] * 5 + ["x"], 7):
        scaling = CONFIGS["phi3-longrope-long"]["rope_scaling"] | {"long_factor": factors}
        with pytest.raises(InvalidFileError):
            config_from_hf(CONFIGS["phi3-longrope-long"] | {"rope_scaling": scaling}, "where")


junk = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 70),
    st.sampled_from([2**31, 2**63, -(2**64), 10**400]),
    st.floats(),
    st.text(max_size=3),
    st.lists(st.one_of(st.floats(), st.integers(), st.none()), max_size=9),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)
KEYS = sorted({key for config in CONFIGS.values() for key in hf_config(config_from_hf(config, "x")) | config})
ROPE_KEYS = sorted(
    {
        *("type", "rope_type", "rope_theta", "factor", "low_freq_factor", "high_freq_factor", "long_factor"),
        *("short_factor", "original_max_position_embeddings", "attention_factor", "beta_fast", "beta_slow"),
        *("mscale", "mscale_all_dim", "truncate", "partial_rotary_factor"),
    }
)
KINDS = ["default", "linear", "llama3", "longrope", "yarn", "su", "dynamic"]


@settings(deadline=None)
@given(
    st.sampled_from(sorted(CONFIGS)),
    st.dictionaries(st.sampled_from(KEYS), junk, max_size=3),
    st.none() | st.dictionaries(st.sampled_from(ROPE_KEYS), junk | st.floats(0.1, 100), max_size=6),
    st.sampled_from(KINDS),
)
def test_no_config_crashes_the_reader(name, change, scaling, kind):
    change.pop("model_type", None)
    config = CONFIGS[name] | ({} if scaling is None else {"rope_scaling": {"rope_type": kind} | scaling}) | change
    try:
        found = config_from_hf(config, "where")
    except (InvalidFileError, UnsupportedModelError):
        return
    assert isinstance(found, ModelConfig)
    assert check_config(found, "where") is found
    with np.errstate(all="raise", under="ignore"):
        assert np.isfinite(frequencies(found, 100)).all()
    if found.layers < 50:
        assert tensor_shapes(found)["output_norm.weight"] == (found.width,)


@given(junk)
def test_no_model_type_crashes_the_reader(value):
    with pytest.raises(EdgekitError):
        config_from_hf({"model_type": value}, "where")
    if value is not None and not isinstance(value, dict):
        with pytest.raises(EdgekitError):
            config_from_hf({"model_type": "gemma3", "text_config": value}, "where")


def test_keys_of_other_families_change_nothing():
    foreign = {
        "attn_logit_softcapping": 1.0,
        "final_logit_softcapping": 1.0,
        "query_pre_attn_scalar": 7,
        "hidden_activation": "relu",
        "sliding_window": 3,
        "layer_types": ["sliding_attention"] * 3,
        "rope_local_base_freq": 5.0,
        "use_sliding_window": True,
        "text_config": {"hidden_size": 1},
    }
    assert config_from_hf(LLAMA | foreign, "where") == parse("llama")


def test_weights_that_overflow_give_an_error_and_no_warning():
    source = random_model(parse("llama"))
    huge = Tensor.of("output_norm.weight", np.full(source.tensors["output_norm.weight"].shape, 3e38, np.float32))
    network = Transformer(attrs.evolve(source, tensors={**source.tensors, huge.name: huge}))
    assert not np.isfinite(network.logits(TOKENS)).all()
    message = (
        "the model computes values that are not finite; look for broken weights with `edgekit compare`, "
        "or choose a precision that keeps more"
    )
    with pytest.raises(NonFiniteError, match=f"^{re.escape(message)}$"):
        network.step(TOKENS, KVCache())


def slow_delta_rule(q, k, v, decay, beta, s):
    """In float64, token by token, straight from the formula."""
    out = np.empty(v.shape)
    s = s.astype(np.float64)
    for t in range(v.shape[2]):
        s = s * np.exp(decay[:, t, :, None, None].astype(np.float64))
        error = v[:, :, t] - np.einsum("bhkv,bhk->bhv", s, k[:, :, t])
        s = s + np.einsum("bhk,bhv->bhkv", k[:, :, t], beta[:, t, :, None] * error)
        out[:, :, t] = np.einsum("bhkv,bhk->bhv", s, q[:, :, t])
    return out, s


@pytest.mark.parametrize("fading", [0.0, 0.05, 30.0], ids=["none", "slow", "at once"])
@pytest.mark.parametrize("n", [1, 8, 9, 63, 64, 65, 200])
def test_the_delta_rule_in_chunks_is_the_one_token_by_token(n, fading):
    """Whatever the number of tokens, with a state from before; keys that are all alike are the hardest."""
    random = np.random.default_rng(n)
    q, k = (random.standard_normal((2, 3, n, 16)) for _ in range(2))
    k[1] = k[1, :, :1] + 0.01 * k[1]
    q, k = ((x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32) for x in (q, k))
    v, state = (random.standard_normal((2, 3, size, 8)).astype(np.float32) for size in (n, 16))
    decay = (-fading * random.random((2, n, 3))).astype(np.float32)
    beta = random.random((2, n, 3)).astype(np.float32)
    expected, after = slow_delta_rule(q, k, v, decay, beta, state)
    found, s = numerics.delta_rule(q, k, v, decay, beta, state)
    assert (found.dtype, s.dtype) == (np.float32, np.float32)
    # Each of n steps rounds sums of 16 products; an error that a step makes is not enlarged by those after it.
    bound = 16 * n * 2.0**-24 * max(np.abs(state).max(), np.abs(v).max())
    assert np.abs(found - expected).max() < bound
    assert np.abs(s - after).max() < bound
