"""Fifty good artifacts: every recipe of several formats, and codes chosen with a calibration; none is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

import edgekit
from edgekit import sample
from edgekit.artifact import Artifact
from edgekit.errors import MissingPluginError
from edgekit.manifest import manifest_path
from edgekit.pipeline import list_recipes
from edgekit_workflow.gates import Policy, gate
from edgekit_workflow.gates.policy import Derivation
from edgekit_workflow.gates.tensors import check_tensors

#: Without what a recipe may choose to give away, and without runs, which take most of the time.
POLICY = Policy(skip=("quality", "performance", "robustness", "runtime", "degenerate"))
#: Recipes of formats whose plugins write them without their framework.
RECIPES = [
    *(("gguf", recipe.name) for recipe in list_recipes("gguf") if "gguf" in recipe.formats),
    *(("mlx", name) for name in ("2bit", "3bit", "4bit", "5bit", "6bit", "8bit", "mixed_2_6", "mixed_3_6")),
    *(("openvino", name) for name in ("INT8_SYM", "INT8_ASYM", "INT4_SYM_G64", "INT4_ASYM_G32", "NF4", "MXFP4")),
    *(("hf", name) for name in ("affine:int8-sym-g32", "affine:int4-asym-g64", "affine:int3-asym-g32", "F16")),
]
#: On another model: rows of 64, to which K-quants fall back.
ON_STORIES = ["Q8_0", "Q4_K_M", "Q2_K", "IQ4_NL", "F16"]


def judged(artifact: Artifact, source: Path, **options: object) -> None:
    certificate = gate(artifact, source, policy=POLICY, **options)
    certificate.refuse()
    codes = next(result for result in certificate if result.name == "codes")
    assert codes.measured > 0


@pytest.mark.parametrize(("form", "recipe"), RECIPES)
def test_recipe_passes(form: str, recipe: str, tmp_path: Path) -> None:
    target = tmp_path / ("good.gguf" if form == "gguf" else "good")
    try:
        artifact = edgekit.quantize(sample.path(), recipe, to=target, format=form, allow_unquantized=True)
    except MissingPluginError as error:
        pytest.skip(str(error))
    judged(artifact, sample.path())


@pytest.mark.parametrize("recipe", ON_STORIES)
def test_recipe_with_fallbacks_passes(stories: Path, recipe: str, tmp_path: Path) -> None:
    judged(edgekit.quantize(stories, recipe, to=tmp_path / "good.gguf", allow_unquantized=True), stories)


@pytest.mark.parametrize(("form", "recipe"), [("mlx", "4bit"), ("hf", "affine:int4-asym-g64")])
def test_a_second_copy_of_the_embedding_may_be_left_out(stories: Path, form: str, recipe: str, tmp_path: Path) -> None:
    """The source has an output matrix with the embedding's values, which these formats store once."""
    try:
        artifact = edgekit.quantize(stories, recipe, to=tmp_path / "good", format=form)
    except MissingPluginError as error:
        pytest.skip(str(error))
    assert artifact.model.config.tied
    assert not edgekit.open(stories).model.config.tied
    judged(artifact, stories)


@pytest.fixture(scope="module")
def calibration(tmp_path_factory: pytest.TempPathFactory) -> edgekit.Calibration:
    tokens = edgekit.open(sample.path()).tokenizer.encode(sample.heldout_text())[:2048]
    return edgekit.calibrate(sample.path(), tokens, to=tmp_path_factory.mktemp("calibration") / "c.safetensors")


@pytest.mark.parametrize("rounding", ["feedback", "nearest"])
@pytest.mark.parametrize("recipe", ["Q4_0", "Q2_K", "Q3_K_M"])
def test_calibrated_codes_pass_by_their_error(
    calibration: edgekit.Calibration, recipe: str, rounding: str, tmp_path: Path
) -> None:
    target = tmp_path / "good.gguf"
    artifact = edgekit.quantize(sample.path(), recipe, to=target, calibration=calibration, rounding=rounding)
    certificate = gate(artifact, sample.path(), policy=POLICY)
    certificate.refuse()
    codes = next(result for result in certificate if result.name == "codes")
    why = "with error feedback" if rounding == "feedback" else "with an importance"
    assert why in codes.detail
    assert "by their error alone" in codes.detail


def test_rows_that_few_tokens_moved_far_pass(tmp_path: Path) -> None:
    """2 bits with error feedback from 512 tokens: a row of blk.0.attn_q lies more than half the way to zeros."""
    tokens = edgekit.open(sample.path()).tokenizer.encode(sample.heldout_text())[:512]
    few = edgekit.calibrate(sample.path(), tokens, to=tmp_path / "c.safetensors", context=512)
    artifact = edgekit.quantize(sample.path(), "Q2_K", to=tmp_path / "good.gguf", calibration=few)
    judged(artifact, sample.path())


@pytest.mark.parametrize("coarse", ["affine:int4-asym-g64", "affine:int3-asym-g64"])
def test_fine_matrices_among_coarse_ones_pass(calibration: edgekit.Calibration, coarse: str, tmp_path: Path) -> None:
    """Error feedback moves them as far as the errors of the others are, which rounding to 8 bits alone never would."""
    recipe = tmp_path / "mixed.toml"
    recipe.write_text(f'base = "{coarse}"\n[tensors]\n"*attn_v*" = "affine:int8-asym-g64"\n', "utf-8")
    artifact = edgekit.quantize(sample.path(), recipe, to=tmp_path / "good", calibration=calibration)
    checks = [check for check in check_tensors(artifact, edgekit.open(sample.path()), Derivation()) if check.nearest]
    assert max(check.error / check.nearest for check in checks) > 10
    judged(artifact, sample.path())


def test_an_artifact_without_a_manifest_passes(tmp_path: Path) -> None:
    artifact = edgekit.quantize(sample.path(), "Q5_K_M", to=tmp_path / "good.gguf")
    manifest_path(artifact.path).unlink()
    judged(edgekit.open(artifact.path), sample.path())


def test_there_are_fifty() -> None:
    assert len(RECIPES) + len(ON_STORIES) + 6 + 1 >= 50
