"""`edgekit optimize` over every installed framework: artifacts in at least four formats, all gated, one report."""

import json

import pytest

import edgekit
from edgekit import sample
from edgekit_workflow.optimize import Settings, optimize
from edgekit_workflow.report import report

FORMATS = {"gguf", "openvino", "onnx", "mlx", "hf"}
RECIPES = ("Q4_K_M", "INT4_SYM_G32", "MATMUL_NBITS_4", "4bit", "affine:int4-asym-g64")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("all")
    (folder / "stories.txt").write_text(sample.heldout_text()[:9000], "utf-8")
    asked = Settings(
        sample.path(),
        folder / "run",
        texts={"stories": folder / "stories.txt"},
        recipes=RECIPES,
        methods=("nearest",),
        context=64,
        tokens=256,
        speed=False,
    )
    return optimize(asked)


def test_artifacts_in_every_format_all_gated(run):
    made = run.result["quantize"]
    assert {record["format"] for record in made} == FORMATS
    assert {record["format"] for record in run.result["convert"]} == FORMATS
    judged = {record["name"]: record["gates"] for record in run.result["validate"]}
    assert set(judged) == {record["name"] for record in made}, "one of each format is the front of its format"
    for gates in judged.values():
        assert {"quality", "silent", "derivation", "security"} <= {gate["category"] for gate in gates}
    assert run.chosen.format in FORMATS


def test_unquantized_artifacts_diverge_by_rounding_alone(run):
    noise = run.result["baseline"]["noise_floor"]
    for record in run.result["convert"]:
        assert record["quality"]["kl"] <= 10 * noise, record["name"]


def test_each_artifact_opens_and_is_what_its_record_says(run):
    for record in run.result["quantize"]:
        artifact = edgekit.open(run.path / "quantize" / record["file"])
        assert (artifact.format, artifact.nbytes) == (record["format"], record["nbytes"])
        assert artifact.manifest is not None


def test_one_report_names_them_all(run):
    written = report(run.path)
    told = json.loads(written["json"].read_text("utf-8"))
    page = written["page"].read_text("utf-8")
    for record in run.result["quantize"]:
        assert record["name"] in page
        for path, digest in record["sha256"].items():
            assert told["hashes"][path] == digest


def test_stories(stories, stories_text, tmp_path):
    """A model whose rows no K-quant's block divides: what fell back is told."""
    (tmp_path / "stories.txt").write_text(stories_text[:6000], "utf-8")
    asked = Settings(
        stories,
        tmp_path / "run",
        texts={"stories": tmp_path / "stories.txt"},
        recipes=RECIPES,
        methods=("nearest",),
        context=64,
        tokens=256,
        speed=False,
        gates=False,
    )
    done = optimize(asked)
    made = {record["format"]: record for record in done.result["quantize"]}
    assert len(made) >= 4
    assert any("no multiple of" in why for why in made["gguf"]["fallbacks"].values())
    assert "no multiple of" in report(done.path)["page"].read_text("utf-8")
