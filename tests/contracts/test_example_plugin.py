"""The example plugin, as a third party would ship it: a wheel in a fresh environment, held to the conformance kit."""

import json
import shutil
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # tests are no package; this is a helper beside them
from fresh_environment import ROOT, Environment, build_wheel

EXAMPLE = ROOT / "plugins" / "example"


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    folder = tmp_path_factory.mktemp("example")
    made = Environment.create(folder / "venv", "edgekit-core[testing,text]")
    made.install(build_wheel(ROOT / "core", folder), build_wheel(EXAMPLE, folder))
    return made


def test_it_is_loaded_and_names_what_it_brings(environment):
    plugins = {p["name"]: p for p in json.loads(environment.run("-m", "edgekit", "plugins", "--json"))}
    assert plugins.keys() == {"core", "example"}
    assert plugins["example"]["status"] == "loaded"
    assert plugins["example"]["provides"] == {
        "formats": ["ekx"],
        "quantizers": ["ggml:Q8_0"],
        "precisions": ["example:log4-g32"],
        "runtimes": ["example"],
    }


def test_its_own_tests_pass(environment, tmp_path):
    shutil.copytree(EXAMPLE / "tests", tmp_path / "tests")
    shutil.copy(EXAMPLE / "pyproject.toml", tmp_path)
    told = environment.run("-m", "pytest", "-q", "-p", "no:cacheprovider", "tests", cwd=tmp_path)
    assert " passed" in told


def test_verify_says_that_all_is_well(environment):
    report = json.loads(environment.run("-m", "edgekit", "verify", "example", "--json"))
    assert report["ok"]
    subjects = {result["subject"] for result in report["results"] if result["status"] == "passed"}
    assert subjects == {
        "plugin 'example' (edgekit-example 0.1.0)",
        "quantizer 'reference' (example:log4-g32)",
        "quantizer 'example' (ggml:Q8_0)",
        "format 'ekx'",
        "runtime 'example'",
    }


@pytest.mark.parametrize(
    ("file", "line", "broken", "check", "told"),
    [
        ("q8_0.py", "np.float32(127)", "np.float32(128)", "check_exact", "its bytes are not the reference's"),
        ("q8_0.py", "np.trunc(wide + np.copysign(0.5, wide))", "np.rint(wide)", "check_ties", "each by one: rounding"),
        ("log4.py", "fraction >= 0.75", "fraction >= 0.85", "check_error_within_bound", "the bound is 0.0"),
        ("format.py", "start * row", "start", "check_row_slices", "read in slices of 1 rows differs from the whole"),
        ("writer.py", "path, plan,", "path, Plan('', plan.assignments[:-1]),", "check_complete", "a tensor is missing"),
        ("runtime.py", ".logits(tokens)", ".logits(tokens) * 1.01", "check_logits", "a logit is off by"),
        ("runtime.py", "yield token\n", "yield token + 1\n", "check_greedy", "the likeliest"),
    ],
)
def test_with_one_line_broken_verify_says_which(environment, file, line, broken, check, told):
    path = environment.site / "edgekit_example" / file
    right = path.read_text("utf-8")
    assert right.count(line) == 1
    path.write_text(right.replace(line, broken), "utf-8")
    try:
        said = environment.run("-m", "edgekit", "verify", "example", "--failed", "--check", check, code=7)
    finally:
        path.write_text(right, "utf-8")
    assert told in said
    assert f"the first: {check}" in said
