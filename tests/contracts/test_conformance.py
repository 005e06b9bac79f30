"""The kit over the core and all plugins: every precision, format, runtime and plugin; and faulty plugins are named.

`EDGEKIT_TEST_PROFILE=default` (or ``deep``) tries harder.
"""

import functools
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # tests are no package; the faults lie beside them
from plugin_faults import FAULTS, NATIVE, family, first_failure, put

from edgekit.plugin import BUILT_IN, build, entry_points, manager
from edgekit.precision import catalogue, load_plugins
from edgekit.testing import (
    run_format_checks,
    run_plugin_checks,
    run_quantizer_checks,
    run_runtime_checks,
)
from edgekit.testing._subjects import encodable, registered

PROFILE = os.environ.get("EDGEKIT_TEST_PROFILE", "quick")
load_plugins()
PRECISIONS = [precision for precision in catalogue() if encodable(precision)]
QUANTIZERS = manager().all("quantizers")
PLUGINS = [info.name for info in manager().plugins if info.distribution != BUILT_IN]


def faults(results):
    return [result.message for result in results if not result.ok]


@pytest.mark.parametrize("precision", PRECISIONS, ids=str)
def test_the_reference_conforms(precision):
    results = run_quantizer_checks(precision, profile=PROFILE)
    assert faults(results) == []
    assert sum(result.status == "passed" for result in results) >= 18


@pytest.mark.parametrize("registration", QUANTIZERS, ids=lambda r: f"{r.plugin}-{r.name}")
def test_every_installed_encoder_keeps_its_claim(registration):
    assert faults(run_quantizer_checks(registered(registration), profile=PROFILE)) == []


@pytest.mark.parametrize("name", [r.name for r in manager().all("formats")])
def test_every_installed_format_conforms(name):
    library = {"openvino": "openvino", "onnx": "onnx", "onnx-portable": "onnx"}.get(name, "edgekit")
    if importlib.util.find_spec(library) is None:
        pytest.skip(f"without {library} it writes nothing to read; with it: tests/oracles")
    assert faults(run_format_checks(name, profile=PROFILE)) == []


@pytest.mark.parametrize("name", [r.name for r in manager().all("runtimes")])
def test_every_installed_runtime_conforms(name):
    assert faults(run_runtime_checks(name, profile=PROFILE)) == []


@pytest.mark.parametrize("name", PLUGINS)
def test_every_installed_plugin_conforms(name):
    framework = {"llamacpp": "llama_cpp", "openvino": "openvino"}.get(name, "edgekit")
    if importlib.util.find_spec(framework) is None:
        pytest.skip(f"{framework} is not installed; with it: tests/oracles")
    assert faults(run_plugin_checks(name, profile=PROFILE)) == []


# Faulty plugins, each a distribution of its own on the path.


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Puts a plugin on the path."""
    monkeypatch.syspath_prepend(str(tmp_path))
    return functools.partial(put, tmp_path)


@pytest.mark.parametrize("what", FAULTS)
def test_every_faulty_plugin_is_named(what, install):
    files, checks, says = FAULTS[what]
    found = first_failure(install(f"faulty{list(FAULTS).index(what)}", **files))
    assert found is not None, f"{what}: nobody noticed"
    assert found.check in ([checks] if isinstance(checks, str) else checks), found.message
    assert says in found.message


def test_a_right_plugin_passes(install):
    assert faults(run_plugin_checks(install("right"))) == []


def test_a_plugin_with_a_right_family_passes(install):
    assert faults(run_plugin_checks(install("family", **family()))) == []


def test_a_faulty_plugin_breaks_no_other(install):
    install("raises", light="raise OSError('no GPU')")
    name = install("beside")
    found = build([point for point in entry_points() if point[0].name in ("raises", "beside")])
    status = {info.name: info.status for info in found.plugins}
    assert (status["raises"], status[name]) == ("failed", "loaded")


# The command line.


def verify(*arguments, code=0, path=""):
    environment = os.environ | ({"PYTHONPATH": os.pathsep.join([path, *filter(None, sys.path)])} if path else {})
    command = [sys.executable, "-m", "edgekit", "verify", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == code, f"exit {done.returncode}, wanted {code}\n{done.stdout}\n{done.stderr}"
    return done


def test_verify_a_precision():
    done = verify("affine:int4-sym-g32")
    assert "check_ties" in done.stdout
    assert "passed" in done.stdout
    report = json.loads(verify("affine:int4-sym-g32", "--check", "check_ties", "--json").stdout)
    assert report["ok"]
    assert [result["check"] for result in report["results"]] == ["check_ties"]


def test_verify_a_format_and_a_runtime():
    assert "check_tokenizer" in verify("hf", "--check", "check_tokenizer").stdout
    assert "check_greedy" in verify("numpy", "--check", "check_greedy").stdout


def test_verify_a_plugin_with_all_that_it_registers(install, tmp_path):
    install("right")
    report = json.loads(verify("right", "--json", path=str(tmp_path)).stdout)
    assert report["ok"]
    assert {result["check"] for result in report["results"]} >= {"check_metadata", "check_exact", "check_vectors"}


def test_verify_says_which_line_is_wrong(install, tmp_path):
    wrong = NATIVE.replace("return ", "parts = ") + '        return {**parts, "scale": 2 * parts["scale"]}\n'
    install("wrong", native=wrong)
    done = verify("wrong", "--failed", code=7, path=str(tmp_path))
    assert "quantizer 'wrong' (affine:int4-sym-g32), check_exact: it claims exact" in done.stdout
    assert "part 'scale'" in done.stdout
    assert "wrong: " in done.stderr
    assert "checks failed; the first: check_exact" in done.stderr


def test_verify_refuses_what_it_does_not_know():
    assert "no format, runtime, pass or plugin of that name is installed" in verify("nix", code=2).stderr
    assert "no check of hf is called check_nix" in verify("hf", "--check", "check_nix", code=2).stderr
    assert "no backend 'nix' encodes ggml:Q4_K" in verify("ggml:Q4_K", "--backend", "nix", code=4).stderr
