"""NNCF's modes as recipes: what they say of themselves, and what of matrices that the group does not divide."""

import attrs
import pytest

from edgekit import sample
from edgekit.pipeline import find_format, find_recipe, make_plan, open_artifact
from edgekit.pipeline._recipes import list_recipes
from edgekit.recipe import Recipe
from edgekit_openvino.recipes import INT4_SYM, Nncf


@pytest.fixture(scope="module")
def layout():
    return find_format("openvino", sample.path()).layout(open_artifact(sample.path()))


def test_what_the_group_does_not_divide_fell_back(layout):
    wide = attrs.evolve(INT4_SYM, group=96)
    fallen = [line for line in make_plan(wide, layout) if line.fell_back]
    assert fallen
    for line in fallen:
        assert line.shape[-1] % 96
        assert (line.precision.name, line.asked) == ("openvino:int8-asym-channel", wide.precision)


def test_every_mode_describes_itself():
    listed = {recipe.name: recipe.clauses for recipe in list_recipes("openvino")}
    assert [(c.tensors, c.precision) for c in listed["INT4_SYM_G64"]][:2] == [
        ("token_embd.weight and output.weight", "openvino:int8-asym-channel"),
        ("other weight matrices", "openvino:int4-sym-g64"),
    ]
    assert all(listed.values())
    partial = Nncf("INT4_SYM", 64, ratio=0.8).describe()
    assert ("other weight matrices", "the least sensitive 80%") in [(c.tensors, c.when) for c in partial]


def test_short_names_are_openvinos(layout):
    assert find_recipe("int4-sym-g32", "openvino").name == "INT4_SYM_G32"  # the mode, with what it backs up
    rules = find_recipe(Recipe.of({"*attn*": "int4-sym-g32", "*": "MXFP4"}), "openvino")
    found = {line.role: line.precision.name for line in make_plan(rules, layout)}
    assert found["blk.0.attn_q.weight"] == "openvino:int4-sym-g32"
    assert found["blk.0.ffn_up.weight"] == "openvino:mxfp4"
