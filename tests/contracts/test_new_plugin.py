"""`edgekit new-plugin`: a skeleton generated, built, installed, verified and uninstalled; and what is refused."""

import itertools
import json
import os
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # tests are no package; this is a helper beside them
from fresh_environment import ROOT, Environment, build_wheel

from edgekit.cli._verbs.new_plugin import PARTS, generate
from edgekit.plugin import build

EXAMPLE = ROOT / "plugins" / "example" / "src" / "edgekit_example"


def new_plugin(*arguments, code=0, cwd=None):
    command = [sys.executable, "-m", "edgekit", "new-plugin", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=cwd, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    return done


def test_a_skeleton_is_generated_built_installed_verified_and_uninstalled(tmp_path):
    environment = Environment.create(tmp_path / "venv", "edgekit-core[testing,text]")
    environment.install(build_wheel(ROOT / "core", tmp_path))
    target = tmp_path / "edgekit-two-words"
    environment.run("-m", "edgekit", "new-plugin", "two-words", "--dir", target)
    environment.install(build_wheel(target, tmp_path))

    told = environment.run("-m", "pytest", "-q", "-p", "no:cacheprovider", cwd=target)
    assert " passed" in told
    assert "failed" not in told
    report = json.loads(environment.run("-m", "edgekit", "verify", "two-words", "--json"))
    assert report["ok"]
    assert {r["subject"] for r in report["results"] if r["check"] == "check_exact" and r["status"] == "passed"}

    environment.uninstall("edgekit-two-words")
    plugins = json.loads(environment.run("-m", "edgekit", "plugins", "--json"))
    assert [plugin["name"] for plugin in plugins] == ["core"]


def test_it_is_the_example_s_quantizer_under_another_name(tmp_path):
    written = json.loads(new_plugin("acme", "--json", cwd=tmp_path).stdout)
    target = tmp_path / "edgekit-acme"
    assert written["directory"] == "edgekit-acme"
    assert written["files"] == sorted(p.relative_to(target).as_posix() for p in target.rglob("*") if p.is_file())
    package = target / "src" / "edgekit_acme"
    assert (package / "q8_0.py").read_text("utf-8") == (EXAMPLE / "q8_0.py").read_text("utf-8")
    assert (package / "py.typed").is_file()
    assert 'acme = "edgekit_acme"' in (target / "pyproject.toml").read_text("utf-8")
    assert not [path for path in target.rglob("*") if path.is_file() and "$" in path.read_text("utf-8")]
    assert os.listdir(tmp_path) == ["edgekit-acme"]


def combinations():
    for count in range(1, len(PARTS) + 1):
        yield from itertools.combinations(PARTS, count)


@pytest.mark.parametrize("parts", list(combinations()), ids="-".join)
def test_every_combination_of_parts_is_a_plugin_that_loads(parts, tmp_path, monkeypatch):
    name = "a-" + "".join(part[0] for part in parts)
    generate(name, tmp_path / "out", parts)
    module = f"edgekit_{name.replace('-', '_')}"
    monkeypatch.syspath_prepend(str(tmp_path / "out" / "src"))
    found = build([(EntryPoint(name, module, "edgekit"), f"edgekit-{name}", "1")])
    assert (found.plugins[-1].status, found.plugins[-1].error) == ("loaded", "")
    assert sorted(found.plugins[-1].provides) == sorted(f"{part}s" for part in parts)
    for registration in found.registrations:
        if registration.plugin == name:
            registration.load()
    files = [path for path in (tmp_path / "out").rglob("*") if path.suffix in (".py", ".md", ".toml", ".typed")]
    assert not [path for path in files if "$" in path.read_text("utf-8")]
    tests = (tmp_path / "out" / "tests" / "test_conformance.py").read_text("utf-8")
    assert [f"def test_{part}" in tests for part in PARTS] == [part in parts for part in PARTS]
    tomllib.loads((tmp_path / "out" / "pyproject.toml").read_text("utf-8"))


@pytest.mark.parametrize("parts", ["precision", "format", "runtime", "command", ",".join(PARTS)])
def test_what_is_generated_passes_its_own_tests_and_verify(parts, tmp_path):
    target = tmp_path / "edgekit-made"
    new_plugin("made", "--with", parts, "--dir", target)
    with zipfile.ZipFile(build_wheel(target, tmp_path)) as wheel:
        wheel.extractall(tmp_path / "site")
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(tmp_path / "site"), *filter(None, sys.path)]),
        "EDGEKIT_TEST_PROFILE": "quick",
    }
    for command in (["pytest", "-q", "-p", "no:cacheprovider"], ["edgekit", "verify", "made"]):
        done = subprocess.run(
            [sys.executable, "-m", *command], cwd=target, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert " passed" in done.stdout


def test_parts_that_there_are_not_are_refused(tmp_path):
    told = new_plugin("acme", "--with", "format,runtim", code=2, cwd=tmp_path).stderr
    assert "a plugin has no part 'runtim', did you mean 'runtime'?; --with takes precision, quantizer, format" in told
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("Mine", "'Mine': use lower-case letters, digits and single hyphens, a letter first"),
        ("my_engine", "'my_engine': use lower-case letters"),
        ("../evil", "'../evil': use lower-case letters"),
        ("a--b", "'a--b': use lower-case letters"),
        ("", "'': use lower-case letters"),
        ("edgekit-mine", "'edgekit-mine': leave out the prefix, 'mine' is enough"),
        ("core", "'core' is taken"),
        ("quantize", "'quantize' is taken"),
        ("reference", "'reference' is taken"),
    ],
)
def test_names_that_are_no_plugin_s_are_refused(tmp_path, name, told):
    assert told in new_plugin(name, code=2, cwd=tmp_path).stderr
    assert not os.listdir(tmp_path)


def test_nothing_is_overwritten(tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "precious.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for target in ("full", "file"):
        told = new_plugin("acme", "--dir", target, code=2, cwd=tmp_path).stderr
        assert f"{target} exists, and nothing is overwritten; choose another with --dir" in told
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["file", "full", "precious.txt"]
    assert "create the directory first" in new_plugin("acme", "--dir", "no/such/place", code=5, cwd=tmp_path).stderr


def test_an_empty_directory_is_taken(tmp_path):
    (tmp_path / "empty").mkdir()
    new_plugin("acme", "--dir", tmp_path / "empty")
    assert (tmp_path / "empty" / "pyproject.toml").is_file()
