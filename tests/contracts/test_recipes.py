"""Recipes of one's own, their names and files, and the one check that every recipe's plan has to pass."""

import re

import attrs
import numpy as np
import pytest

import edgekit
from edgekit.architectures import ModelConfig
from edgekit.errors import (
    InvalidFileError,
    MissingFileError,
    MissingPluginError,
    ShapeError,
    UnknownPrecisionError,
    UnknownRecipeError,
    UsageError,
    on_command_line,
    option,
)
from edgekit.pipeline import find_format, find_recipe, make_plan, read_recipe
from edgekit.pipeline._recipes import list_recipes
from edgekit.precision import find_precision
from edgekit.recipe import Assignment, Plan, Recipe, Rules, Slot, Uniform, check_plan
from edgekit.tensor import EncodedTensor, Tensor
from edgekit.testing.models import artifact_of, random_model

CONFIG = ModelConfig(
    family="llama", layers=2, width=64, heads=4, kv_heads=2, head_dim=16, ffn=96, vocab=128, context=64,
    norm_eps=1e-5, rope_theta=10000.0, attention_scale=0.25, rotary_dim=16,
)  # fmt: skip
Q8_0 = find_precision("ggml:Q8_0")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recipes")
    return edgekit.convert(artifact_of(random_model(CONFIG), folder / "memory"), folder / "model")


@pytest.fixture(scope="module")
def layout(source):
    return find_format("hf", source.path).layout(source)


def precisions(artifact):
    return {
        name: tensor.precision.name if isinstance(tensor, EncodedTensor) else tensor.dtype
        for name, tensor in artifact.tensors.items()
    }


# -- rules ----------------------------------------------------------------------------------------------------------


def test_the_first_rule_that_matches_decides_and_vectors_keep_theirs(source, tmp_path):
    recipe = Recipe.of({"*attn*": "Q8_0", "token_embd*": "F16", "*": "Q4_0"})
    found = precisions(edgekit.quantize(source, recipe, to=tmp_path / "out"))
    assert found["model.layers.1.self_attn.q_proj.weight"] == "ggml:Q8_0"
    assert found["model.embed_tokens.weight"] == "float16"
    assert found["model.layers.0.mlp.down_proj.weight"] == "ggml:Q4_0"
    assert found["model.layers.0.input_layernorm.weight"] == found["model.norm.weight"] == "float32"


def test_rules_stand_on_a_base_and_the_rest_without_one_is_as_it_was(source, tmp_path):
    on_base = edgekit.quantize(source, Recipe.of({"*.mlp.*": "Q8_0"}, "ggml:Q4_1"), to=tmp_path / "a")
    alone = edgekit.quantize(source, Recipe.of({"*.mlp.*": "Q8_0"}), to=tmp_path / "b")
    for made, rest in ((on_base, "ggml:Q4_1"), (alone, "float32")):
        assert precisions(made)["model.layers.0.mlp.up_proj.weight"] == "ggml:Q8_0"
        assert precisions(made)["model.layers.0.self_attn.k_proj.weight"] == rest
    assert (on_base.manifest.recipe, alone.manifest.recipe) == ("ggml:Q4_1+rules", "rules")
    assert on_base.manifest.tensors["model.layers.0.mlp.up_proj.weight"]["reason"] == "rule *.mlp.*=ggml:Q8_0"


def test_a_vector_gets_a_precision_by_its_full_name(layout):
    plan = make_plan(Recipe.of({"output_norm.weight": "F16", "*": "Q8_0"}), layout)
    found = {line.role: line.precision.name for line in plan}
    assert (found["output_norm.weight"], found["blk.0.attn_norm.weight"]) == ("float:F16", "float:F32")


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"*atn_q*": "Q8_0"}, "pattern '*atn_q*' matches no tensor; near it are blk.0.attn_q.weight, "),
        ({"*": "Q8_0", "*attn*": "F16"}, "pattern '*attn*' decides on nothing: '*' before it takes all that it "
                                         "matches; put it first"),
        ({"*norm*": "F16"}, "pattern '*norm*' matches only vectors ("),
    ],
)  # fmt: skip
def test_a_rule_that_decides_on_nothing_is_an_error(rules, message, layout):
    with pytest.raises(UsageError, match=re.escape(message)):
        make_plan(Recipe.of(rules), layout)


@pytest.mark.parametrize("rules", [{}, {"": "Q8_0"}, {"*": 4}, {1: "Q8_0"}, "Q8_0", [("*", "Q8_0")]])
def test_what_is_no_rule_is_refused(rules):
    with pytest.raises(UsageError):
        Recipe.of(rules)


def test_rows_that_no_block_divides_are_refused_before_a_tensor_is_read(source, tmp_path):
    with pytest.raises(
        ShapeError, match=r"tensor 'model.embed_tokens.weight': rows of 64 are not a multiple of ggml:Q4_K"
    ):
        edgekit.quantize(source, Recipe.of({"*": "ggml:Q4_K"}), to=tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_the_names_in_rules_are_the_target_formats_own(layout):
    resolved = find_recipe(Recipe.of({"*": "q4_0"}, "Q8_0"), "gguf")
    assert isinstance(resolved, Rules)
    assert (resolved.rules[0].precision.name, resolved.base) == ("ggml:Q4_0", find_recipe("Q8_0", "gguf"))
    assert find_recipe("mxfp4", "gguf").precision.name == "ggml:MXFP4"  # elsewhere it is MLX's or OpenVINO's
    with pytest.raises(UnknownRecipeError, match="choose one of mlx:mxfp4, openvino:mxfp4"):
        find_recipe("mxfp4", "hf")
    with pytest.raises(UnknownPrecisionError, match="did you mean ggml:Q4_0"):
        find_recipe(Recipe.of({"*": "Q4_00"}), "gguf")
    with pytest.raises(UnknownPrecisionError):
        make_plan(Recipe.of({"*": "nothing"}), layout)


# -- files ----------------------------------------------------------------------------------------------------------


def test_a_recipe_is_a_toml_file_wherever_a_name_is_taken(source, tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text('base = "ggml:Q4_1"\n[tensors]\n"*attn_v*" = "Q8_0"\n"*attn*" = "F16"\n')
    for path in (file, str(file)):
        made = edgekit.quantize(source, path, to=tmp_path / "out")
        found = precisions(made)
        assert made.manifest.recipe == "mine"
        assert found["model.layers.0.self_attn.v_proj.weight"] == "ggml:Q8_0"
        assert found["model.layers.0.self_attn.q_proj.weight"] == "float16"
        assert found["model.layers.0.mlp.up_proj.weight"] == "ggml:Q4_1"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[tensors", "not TOML"),
        ("", "table tensors: a recipe is made of patterns with precisions"),
        ("[tensors]\n", "a recipe is made of patterns"),
        ("tensors = 3", "a recipe is made of patterns"),
        ('rules = 1\n[tensors]\n"*" = "Q8_0"', "key 'rules'; a recipe has name, base, tensors"),
        ('base = 4\n[tensors]\n"*" = "Q8_0"', "base is 4; write a string"),
        ('base = "other.toml"\n[tensors]\n"*" = "Q8_0"', "base is the file other.toml"),
        ('[tensors]\n"*" = 8', "rule '*': 8; write a pattern"),
        ("[tensors]\nblk.0 = 'Q8_0'", "rule 'blk': {'0': 'Q8_0'}"),
        ("a = " + "[" * 5000, "not TOML"),
        ("\udcff", "not TOML"),
    ],
)
def test_a_file_that_is_no_recipe_is_refused(text, message, tmp_path):
    file = tmp_path / "bad.toml"
    file.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(InvalidFileError, match=re.escape(message)) as caught:
        read_recipe(file)
    assert str(file) in str(caught.value)


def test_a_file_that_is_not_there_or_too_long(tmp_path):
    with pytest.raises(MissingFileError, match="cannot be read"):
        read_recipe(tmp_path / "nothing.toml")
    (tmp_path / "long.toml").write_bytes(b"#" * (1 << 20) + b"#")
    with pytest.raises(InvalidFileError, match="longer than 1,048,576 bytes"):
        read_recipe(tmp_path / "long.toml")


# -- names ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["q4_k_m", "Q4_K_M", "q4-k-m", "Q4_k_M"])
def test_a_recipe_is_known_in_every_case(name):
    assert find_recipe(name, "gguf").name == "Q4_K_M"


@pytest.mark.parametrize(
    ("name", "full"),
    [("q4_k", "ggml:Q4_K"), ("GGML:q4_k", "ggml:Q4_K"), ("Affine:INT4-Sym-G32", "affine:int4-sym-g32"),
     ("f16", "float:F16"), ("MXFP4", "ggml:MXFP4")],
)  # fmt: skip
def test_a_precision_is_known_in_every_case(name, full):
    assert find_precision(name).name == full


def test_an_unknown_name_says_what_is_near_and_where_to_look(tmp_path):
    with pytest.raises(UnknownRecipeError, match=r"'Q4_KM' is neither .* did you mean Q4_K_M or .*`edgekit recipes"):
        find_recipe("Q4_KM", "gguf")
    message = r"Q4_K_M is a recipe for gguf, and .* is hf \(name has no suffix.*directory.*\); .*\.gguf, or say format="
    with pytest.raises(UnknownRecipeError, match=message):
        find_recipe("Q4_K_M", "hf", tmp_path.__class__("name"))
    with on_command_line(), pytest.raises(UnknownRecipeError, match=r"say --format openvino$"):
        find_recipe("INT4_SYM", "gguf")


def test_a_format_is_known_in_every_case_and_its_suffix_guessed(tmp_path):
    assert find_format("GGUF", tmp_path).name == "gguf"
    with pytest.raises(MissingPluginError, match=r"did you mean x.gguf\? format=\"hf\" makes a directory"):
        find_format(None, tmp_path / "x.ggfu")


def test_options_are_written_as_the_reader_writes_them():
    assert (option("format", "gguf"), option("allow_unquantized")) == ('format="gguf"', "allow_unquantized=True")
    with on_command_line():
        assert (option("format", "gguf"), option("allow_unquantized")) == ("--format gguf", "--allow-unquantized")
    assert option("x") == "x=True"


@pytest.mark.parametrize("thing", [None, 4, object(), {"*": "Q8_0"}, ["Q8_0"]])
def test_what_is_no_recipe_is_refused(thing, source, tmp_path):
    with pytest.raises(UsageError, match="is not a recipe; give the name of a recipe"):
        edgekit.quantize(source, thing, to=tmp_path / "out")


def test_the_list_has_every_recipe_with_its_rules():
    listed = {recipe.name: recipe for recipe in list_recipes("gguf")}
    clauses = [(c.tensors, c.precision) for c in listed["Q4_K_M"].clauses]
    assert {("attn_v", "Q6_K"), ("ffn_down", "Q6_K"), ("other weight matrices", "Q4_K")} <= set(clauses)
    assert all(recipe.clauses and recipe.formats == ("gguf",) for recipe in listed.values())
    assert {recipe.name for recipe in list_recipes()} > set(listed)
    described = Recipe.of({"*": Q8_0}, Uniform(Q8_0)).describe()
    assert [c.tensors for c in described] == ["*", "weight matrices", "the rest"]


# -- plans ----------------------------------------------------------------------------------------------------------


class Other:
    """Somebody's recipe: Q8_0 where it fits, changed by a function of the lines."""

    name = "other"

    def __init__(self, change):
        self.change = change

    def plan(self, slots, config, importance=False):
        return self.change(Uniform(Q8_0).plan(slots, config, importance))


def changed(**fields):
    """The first matrix's line with other fields."""
    return lambda plan: attrs.evolve(plan, assignments=(attrs.evolve(plan.assignments[0], **fields), *list(plan)[1:]))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda plan: None, UsageError, "returned None; return an edgekit.recipe.Plan"),
        (list, UsageError, "return an edgekit.recipe.Plan of Assignments"),
        (lambda plan: Plan("other", ("Q8_0",)), UsageError, "return an edgekit.recipe.Plan of Assignments"),
        (lambda plan: Plan("other", plan.assignments[:-2]), UsageError, "leaves out 2 of 21 tensors ("),
        (lambda plan: Plan("other", ()), UsageError, "leaves out 21 of 21 tensors"),
        (lambda plan: Plan("other", (*plan, plan.assignments[3])), UsageError, "twice; give each slot one line"),
        (lambda plan: Plan("other", plan.assignments[::-1]), UsageError, "is next; keep the order of the slots"),
        (changed(name="model.embed_token.weight"), UsageError,
         "plans tensor 'model.embed_token.weight', which the target does not have; near it are model.embed_tokens"),
        (changed(role="x"), UsageError, "role and shape are 'x'"),
        (changed(shape=(64, 128)), UsageError, "role and shape are"),
        (changed(precision="ggml:Q8_0"), UsageError, "its precision is 'ggml:Q8_0', a str; assign a Precision"),
        (changed(precision=find_precision("ggml:Q4_K")), ShapeError, "rows of 64 are not a multiple of ggml:Q4_K's"),
    ],
)  # fmt: skip
def test_a_bad_plan_is_refused_before_a_tensor_is_read(change, error, message, source, tmp_path, monkeypatch):
    def no_reading(*arguments, **options):
        raise AssertionError("a tensor was read")

    monkeypatch.setattr("edgekit.pipeline._stream.raw_rows", no_reading)
    with pytest.raises(error, match=re.escape(message)) as caught:
        edgekit.quantize(source, Other(change), to=tmp_path / "out")
    assert str(caught.value).startswith("recipe 'other'")
    assert list(tmp_path.iterdir()) == []


def test_a_good_plan_of_somebody_elses_passes(source, tmp_path):
    made = edgekit.quantize(source, Other(lambda plan: plan), to=tmp_path / "out")
    assert precisions(made)["model.embed_tokens.weight"] == "ggml:Q8_0"


def test_a_scalar_in_blocks_is_refused():
    slot = Slot("a", "a", Tensor.of("a", np.float32(1)), find_precision("float:F32"))
    with pytest.raises(ShapeError, match="rows of 1 are not a multiple of ggml:Q8_0's block of 32"):
        check_plan(Plan("other", (Assignment("a", "a", (), Q8_0, ""),)), (slot,), "other")


def test_the_check_takes_a_plan_without_tensors():
    assert len(check_plan(Plan("none", ()), (), "none")) == 0
    assert Plan("none", ()).bits_per_weight == 0


def test_an_assignment_fell_back_where_another_precision_was_asked():
    line = Assignment("a", "a", (4, 64), Q8_0, "why")
    assert not line.fell_back
    assert not attrs.evolve(line, asked=Q8_0).fell_back
    assert attrs.evolve(line, asked=find_precision("ggml:Q4_0")).fell_back
