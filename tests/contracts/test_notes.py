"""Nothing of note happens in silence: what a conversion says, and what it refuses."""

import json
import logging
import shutil

import numpy as np
import pytest

import edgekit
from edgekit.architectures import ModelConfig
from edgekit.architectures.hf import config_from_hf
from edgekit.encoding._importance import fill_importance
from edgekit.errors import UsageError
from edgekit.manifest import Manifest
from edgekit.pipeline import AsIs, summary_line
from edgekit.recipe import Recipe
from edgekit.testing.models import artifact_of, random_model

WIDE = ModelConfig(
    family="llama", layers=2, width=320, heads=5, kv_heads=5, head_dim=64, ffn=512, vocab=256, context=64,
    norm_eps=1e-5, rope_theta=10000.0, attention_scale=0.125, rotary_dim=64,
)  # fmt: skip


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A model whose width of 320 no block of 256 divides, and without tokenizer."""
    folder = tmp_path_factory.mktemp("notes")
    return edgekit.convert(artifact_of(random_model(WIDE), folder / "memory"), folder / "model")


def test_what_fell_back_is_counted_with_the_bits_that_it_costs(source, tmp_path):
    made = edgekit.quantize(source, "Q4_K_M", to=tmp_path / "out.gguf")
    names = {name: tensor.precision.kind for name, tensor in made.tensors.items() if hasattr(tensor, "precision")}
    assert names["blk.0.attn_q.weight"] == "Q5_0"  # as llama.cpp falls back
    bits = 8 * made.tensor_nbytes / made.parameters
    # All but the embedding's and ffn_down's rows of 512 are 320 wide: 5 matrices a layer, of them attn_v one, the output
    # matrix and the embedding.
    wide = [name for name, tensor in made.tensors.items() if len(tensor.shape) > 1 and tensor.shape[-1] == 320]
    more = [name for name in wide if names[name] == "Q8_0"]
    asked = {"Q5_0": 4.5, "Q8_0": 6.5625}  # of Q4_K and Q6_K, which fell back to these
    sizes = {name: tensor.size for name, tensor in made.tensors.items()}
    saved = sum(sizes[n] * ({"Q5_0": 5.5, "Q8_0": 8.5}[names[n]] - asked[names[n]]) for n in wide)
    wished = bits - saved / made.parameters
    assert made.notes["fell_back"] == (
        f"{len(wide)} matrices fell back ({len(wide) - len(more)} ggml:Q4_K → ggml:Q5_0, {len(more)} ggml:Q6_K → "
        f"ggml:Q8_0): {bits:.2f} bits a weight instead of {wished:.2f}"
    )
    assert bits > 5.5


def test_nothing_fell_back_where_all_fit(source, tmp_path):
    made = edgekit.quantize(source, "Q8_0", to=tmp_path / "out.gguf")
    assert "fell_back" not in made.notes
    bits = 8 * made.tensor_nbytes / made.parameters
    assert made.notes["precisions"] == f"21 tensors: 16 ggml:Q8_0, 5 float:F32; {bits:.2f} bits a weight"


def test_quantizing_twice_is_said(source, tmp_path):
    first = edgekit.quantize(source, "Q8_0", to=tmp_path / "q8.gguf")
    assert "requantized" not in first.notes
    second = edgekit.quantize(first, "Q4_0", to=tmp_path / "q4.gguf")
    # The output matrix stays: Q4_0 files have it in Q6_K, whose fallback for its rows of 320 is the Q8_0 that it has.
    assert second.notes["requantized"] == (
        "15 matrices quantized already (15 ggml:Q8_0) were quantized again; start from the full precision"
    )
    assert "requantized" not in edgekit.convert(first, tmp_path / "copy.gguf").notes
    assert "requantized" not in edgekit.convert(first, tmp_path / "f16.gguf", dtype="F16").notes


def test_a_missing_tokenizer_is_said(source, tmp_path):
    sample = edgekit.open(edgekit.sample.path())
    assert "no_tokenizer" not in edgekit.convert(sample, tmp_path / "with.gguf").notes
    for to in ("without.gguf", "without"):
        assert edgekit.convert(source, tmp_path / to).notes["no_tokenizer"] == (
            "the model has no tokenizer, so it takes token ids only"
        )


def test_tokens_that_other_files_name_are_counted(tmp_path):
    folder = shutil.copytree(edgekit.sample.path(), tmp_path / "model")
    tokens = len(edgekit.open(folder).tokenizer.tokens)
    assert "merged_tokens" not in edgekit.convert(folder, tmp_path / "plain").notes
    (folder / "added_tokens.json").write_text(json.dumps({"<|im_start|>": tokens, "<|im_end|>": tokens + 1}))
    assert edgekit.convert(folder, tmp_path / "merged").notes["merged_tokens"] == (
        "2 tokens that the vocabulary lacks were taken from tokenizer_config.json or added_tokens.json"
    )


def test_one_of_a_kind_is_one(tmp_path):
    folder = shutil.copytree(edgekit.sample.path(), tmp_path / "model")
    tokens = len(edgekit.open(folder).tokenizer.tokens)
    (folder / "added_tokens.json").write_text(json.dumps({"<|im_start|>": tokens}))
    assert edgekit.convert(folder, tmp_path / "merged").notes["merged_tokens"] == (
        "1 token that the vocabulary lacks was taken from tokenizer_config.json or added_tokens.json"
    )
    assert edgekit.convert(folder, tmp_path / "merged.gguf").notes["dropped_tokens"] == (
        f"1 token beyond the embedding's {tokens} rows was dropped"
    )


@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
@pytest.mark.parametrize("value", [-1, 99_999, "</s>", 1.5, True])
def test_an_end_token_that_does_not_exist_is_said(name, value, tmp_path):
    folder = shutil.copytree(edgekit.sample.path(), tmp_path / "model")
    tokenizer = edgekit.open(folder).tokenizer
    config = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps({**config, "eos_token_id": [tokenizer.eos, value]}))
    count = len(tokenizer.tokens)
    note = f"{name}: the end token {value!r} is left out, as no token of the {count} has that id"
    made = edgekit.convert(folder, tmp_path / "made.gguf")
    assert made.notes["tokenizer"] == note
    assert made.tokenizer.end_ids == tokenizer.end_ids
    (folder / name).write_text(json.dumps({**config, "eos_token_id": None}))
    assert "tokenizer" not in edgekit.convert(folder, tmp_path / "none.gguf").notes


def test_a_replaced_target_is_said(source, tmp_path):
    for to in ("out.gguf", "out"):
        assert "replaced" not in edgekit.quantize(source, "ggml:Q8_0", to=tmp_path / to).notes
        again = edgekit.quantize(source, "ggml:Q8_0", to=tmp_path / to)
        assert again.notes["replaced"] == "what was at the target before is replaced"


def test_a_directory_that_only_edgekit_reads_says_so(source, tmp_path):
    assert (
        edgekit.quantize(source, "ggml:Q4_0", to=tmp_path / "q")
        .notes["only_edgekit"]
        .startswith("only edgekit reads this directory: its ggml tensors lie there in parts")
    )
    assert "only_edgekit" not in edgekit.convert(source, tmp_path / "f16", dtype="F16").notes
    assert "only_edgekit" not in edgekit.quantize(source, "ggml:Q4_0", to=tmp_path / "q.gguf").notes


def test_the_notes_are_in_the_manifest_the_log_and_the_callers_list(source, tmp_path, caplog, capfd):
    told: list[str] = []
    with caplog.at_level(logging.INFO, "edgekit"):
        made = edgekit.quantize(source, "Q4_K_M", to=tmp_path / "out.gguf", notes=told)
    written = json.loads((tmp_path / "out.gguf.edgekit.json").read_bytes())["notes"]
    assert written == dict(made.notes)
    assert set(told) == set(made.notes.values())
    assert [record.message for record in caplog.records] == [f"{tmp_path / 'out.gguf'}: {summary_line(made.notes)}"]
    assert capfd.readouterr() == ("", ""), "the library prints nothing"


def test_the_line_begins_with_what_matters_most():
    notes = {"zebra": "z", "no_tokenizer": "t", "fell_back": "f", "precisions": "p"}
    assert summary_line(notes) == "p; f; t; z"
    assert summary_line({}) == ""


def test_a_manifest_whose_notes_are_no_text_is_refused(tmp_path):
    with pytest.raises(TypeError, match="notes holds values that are not text"):
        Manifest(notes={"a": 3})


# -- unquantized ----------------------------------------------------------------------------------------------------


def test_less_than_half_is_an_error_unless_allowed(source, tmp_path):
    message = (
        r"model: ggml:Q4_K quantizes 2 of 16 matrices, 16\.7% of the weights \(.*: rows of 320 are no multiple of 256\); "
        r"take a recipe, which falls back by itself \(Q4_K_M, Q4_K_S\), a precision with a smaller block, or allow it "
        r"with allow_unquantized=True"
    )
    with pytest.raises(UsageError, match=message):
        edgekit.quantize(source, "Q4_K", to=tmp_path / "out.gguf")
    assert list(tmp_path.iterdir()) == []
    made = edgekit.quantize(source, "Q4_K", to=tmp_path / "out.gguf", allow_unquantized=True)
    assert "14 matrices fell back (14 ggml:Q4_K → float:F32)" in made.notes["fell_back"]


def test_nothing_to_quantize_is_an_error_unless_allowed(tmp_path):
    from safetensors.numpy import save_file

    folder = tmp_path / "vectors"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "nothing-known"}')
    save_file({"a.weight": np.ones(64, np.float32)}, folder / "model.safetensors")
    with pytest.raises(UsageError, match="finds no weight matrix to quantize; convert the model, or allow it"):
        edgekit.quantize(folder, "ggml:Q8_0", to=tmp_path / "out")
    edgekit.quantize(folder, "ggml:Q8_0", to=tmp_path / "out", allow_unquantized=True)
    edgekit.convert(folder, tmp_path / "same")


def test_matrices_that_no_recipe_names_count_as_asked_for(tmp_path):
    from safetensors.numpy import save_file

    folder = tmp_path / "experts"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "nothing-known"}')
    fused, small = np.ones((4, 64, 64), np.float32), np.ones((64, 64), np.float32)
    save_file({"experts.gate_up_proj": fused, "router.weight": small}, folder / "model.safetensors")
    with pytest.raises(UsageError, match=r"quantizes 1 of 2 matrices, 20\.0% .*not a weight matrix"):
        edgekit.quantize(folder, "ggml:Q8_0", to=tmp_path / "out")
    made = edgekit.quantize(folder, Recipe.of({"experts.*": "ggml:Q8_0"}, "ggml:Q8_0"), to=tmp_path / "out")
    assert made.tensors["experts.gate_up_proj"].precision.name == "ggml:Q8_0"


@pytest.mark.parametrize("recipe", ["F16", AsIs(), "float:BF16", Recipe.of({"*attn*": "Q8_0"})])
def test_recipes_that_ask_for_little_are_carried_out(recipe, source, tmp_path):
    assert edgekit.quantize(source, recipe, to=tmp_path / "out").notes["precisions"]


# -- importance -----------------------------------------------------------------------------------------------------


def relative_error(x, tensor):
    return float(np.sqrt(np.mean((tensor.dequantize() - x) ** 2) / np.mean(x**2)))


FILLS = {
    "zero": lambda s: np.where(np.arange(s.size) < 256, 0, s),
    "all zero": lambda s: 0 * s,
    "below float32's products": lambda s: np.where(np.arange(s.size) < 256, 1e-42, s),
    "beyond float32's products": lambda s: np.where(np.arange(s.size) < 256, 3e35, s),
    "one column": lambda s: np.where(np.arange(s.size) == 5, 7, 0),
}


@pytest.mark.parametrize("fill", FILLS.values(), ids=FILLS)
@pytest.mark.parametrize("kind", ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "IQ4_XS",
                                  "IQ4_NL"])  # fmt: skip
def test_columns_without_importance_are_not_erased(kind, fill):
    random = np.random.default_rng(3)
    x = random.normal(0, 0.05, (16, 512)).astype(np.float32)  # two blocks of 256
    filled = fill_importance({"x": fill(random.random(512)).astype(np.float32)}).importance.get("x")
    weighed, plain = (edgekit.encode(x, f"ggml:{kind}", importance=weights) for weights in (filled, None))
    assert relative_error(x, weighed) < 1.5 * relative_error(x, plain)


def test_the_bytes_of_llama_cpp_stay_available(source, tmp_path):
    name = "blk.0.ffn_down.weight"
    weights = {name: FILLS["zero"](np.random.default_rng(3).random(512)).astype(np.float32)}
    made = edgekit.quantize(
        source, Recipe.of({"*ffn_down*": "Q4_K"}), to=tmp_path / "out.gguf", importance=weights, exact_importance=True
    )
    expected = edgekit.encode(source.model.tensors[name].float32(), "ggml:Q4_K", importance=weights[name])
    np.testing.assert_array_equal(made.tensors[name].read().parts["blocks"], expected.parts["blocks"])
    assert not made.tensors[name].float32()[:, :256].any(), "which erases those columns"


def test_the_notes_count_columns_and_matrices_without_importance(source, tmp_path):
    weights = {f"blk.0.{n}.weight": np.ones(320, np.float32) for n in ("attn_q", "attn_k", "attn_v", "ffn_up")}
    weights["blk.0.attn_q.weight"][:7] = 0
    weights["blk.0.attn_k.weight"][:] = 0
    made = edgekit.quantize(source, "Q8_0", to=tmp_path / "out.gguf", importance=weights)
    assert made.notes["importance"] == (
        "7 columns of 1 matrix without importance got the smallest of their matrix, "
        "1 matrix without any importance encoded without, 10 matrices not in the importance matrix"
    )
    assert "importance" not in edgekit.quantize(source, "Q8_0", to=tmp_path / "plain.gguf").notes


def test_each_expert_is_filled_by_itself():
    values = np.float32([[0, 2, 4], [0, 0, 0], [1, 1, 1]])
    filled = fill_importance({"stack": values, "none": 0 * values, "matrix": values[0]})
    assert filled.importance["stack"].tolist() == [[2, 2, 4], [0, 0, 0], [1, 1, 1]]
    assert filled.importance["matrix"].tolist() == [2, 2, 4]
    assert (filled.columns, filled.experts, filled.without) == ({"stack": 1, "matrix": 1}, {"stack": 1}, ("none",))


@pytest.mark.parametrize("target", ["out.gguf", "out"])
def test_experts_that_the_text_never_reached_are_counted_and_encoded_without(target, tmp_path):
    config = config_from_hf(
        {"model_type": "qwen3_moe", "hidden_size": 64, "intermediate_size": 64, "moe_intermediate_size": 32,
         "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32, "num_experts": 4,
         "num_experts_per_tok": 2, "vocab_size": 40, "max_position_embeddings": 32, "norm_topk_prob": True},
        "test",
    )  # fmt: skip
    source = artifact_of(random_model(config), tmp_path / "source")
    name = "blk.0.ffn_up_exps.weight"
    weights = np.random.default_rng(0).random((4, 64)).astype(np.float32) + np.float32(0.1)
    weights[1:3] = 0
    weights[3, :5] = 0
    made = edgekit.quantize(source, "ggml:Q4_0", to=tmp_path / target, importance={name: weights})
    assert made.notes["importance"].startswith(
        "5 columns of 1 matrix without importance got the smallest of their matrix, "
        "2 experts in 1 matrix that the text never reached encoded without, "
    )
    filled = weights[3].copy()
    filled[:5] = filled[5:].min()
    stack, written = source.model.tensors[name].float32().reshape(4, 32, 64), made.model.tensors[name].read_parts
    for expert, importance in enumerate((weights[0], None, None, filled)):
        expected = edgekit.encode(stack[expert], "ggml:Q4_0", importance=importance).parts["blocks"]
        assert np.array_equal(written(32 * expert, 32 * expert + 32)["blocks"], expected), expert
    same = [edgekit.encode(stack[0], "ggml:Q4_0", importance=w).parts["blocks"] for w in (None, weights[0])]
    assert not np.array_equal(*same)


def test_filling_changes_no_ordinary_importance():
    values = np.float32([1e-6, 1, 3e4])
    filled = fill_importance({"a": values})
    np.testing.assert_array_equal(filled.importance["a"], values)
    assert (filled.columns, filled.without) == ({}, ())


def test_a_huge_importance_is_scaled_by_a_power_of_two():
    values = np.float32([3e38, 1.5e38, 1e30])
    scaled = fill_importance({"a": values}).importance["a"]
    assert scaled.max() <= 2.0**64
    ratio = values / scaled
    assert np.all(ratio == ratio[0])
    assert np.log2(ratio[0]).is_integer()
