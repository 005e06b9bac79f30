"""The contract of every plugin of the project: a light entry point, public names only, a stated contract."""

import ast
import json
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
POINTS = list(metadata.entry_points(group="edgekit"))
PLUGINS = sorted(path for path in (ROOT / "plugins").iterdir() if (path / "pyproject.toml").is_file())
LIGHT = {"attr", "attrs", "click", "edgekit", "numpy", "pluggy", "safetensors"}


def of_the_noxfile(name):
    """A list of the noxfile's, without importing nox."""
    tree = ast.parse((ROOT / "noxfile.py").read_text("utf-8"))
    (found,) = (n.value for n in tree.body if isinstance(n, ast.Assign) and ast.unparse(n.targets[0]) == name)
    return {path.removeprefix("./") for path in ast.literal_eval(found)}


def test_every_plugin_that_the_house_installs_is_installed():
    wanted = {Path(path).name for path in of_the_noxfile("PLUGINS")}
    assert "gguf" in wanted
    assert {point.dist.name for point in POINTS} >= {f"edgekit-{name}" for name in wanted}


def test_every_plugin_of_the_house_is_built_and_type_checked():
    assert of_the_noxfile("DISTRIBUTIONS") == {"core", *(f"plugins/{path.name}" for path in PLUGINS)}
    assert of_the_noxfile("SOURCES") == {"core/src", *(f"plugins/{path.name}/src" for path in PLUGINS)}


@pytest.mark.parametrize("point", POINTS, ids=lambda point: point.name)
def test_the_entry_point_module_is_light(point):
    code = (
        "import importlib, json, sys, time; import edgekit.plugin.hookspecs; before = set(sys.modules); start = time.perf_counter(); "
        f"module = importlib.import_module({point.value!r}); seconds = time.perf_counter() - start; "
        "print(json.dumps([sorted(set(sys.modules) - before), seconds, module.edgekit_api]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    modules, seconds, api = json.loads(done.stdout)
    packages = {name.partition(".")[0] for name in modules} - set(sys.stdlib_module_names) - LIGHT - {point.value}
    assert not packages, f"{point.value} imports {packages} ({seconds * 1e3:.0f} ms)"
    assert api == [1, 0]


@pytest.mark.parametrize("path", PLUGINS, ids=lambda path: path.name)
def test_plugins_import_public_names_only_and_never_each_other(path):
    others = {f"edgekit_{other.name}" for other in PLUGINS if other != path}
    for file in (path / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
            for name in names:
                parts = name.split(".")
                private = parts[0] == "edgekit" and any(p.startswith("_") and not p.startswith("__") for p in parts)
                assert not private, f"{file.name} imports the private {name}"
                assert parts[0] not in others, f"{file.name} imports another plugin: {name}"
                helps_commands = parts[:3] in (["edgekit", "cli", "output"], ["edgekit", "cli", "options"])
                above = parts[:2] in (["edgekit", "testing"], ["edgekit", "cli"]) and not helps_commands
                assert not above, f"{file.name} imports {name}"


@pytest.mark.parametrize("path", [ROOT / "core", *PLUGINS], ids=lambda path: path.name)
def test_a_distribution_is_complete(path):
    for name in ("pyproject.toml", "README.md", "CHANGELOG.md", "LICENSE"):
        assert (path / name).is_file(), f"{path.name} lacks {name}"
    package = "edgekit" if path.name == "core" else f"edgekit_{path.name}"
    assert (path / "src" / package / "py.typed").is_file()


def test_the_top_level_is_the_agreed_one():
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    top = {line.partition("/")[0] for line in listed.stdout.splitlines()}
    visible = {name for name in top if not name.startswith(".")} - {"LICENSE"}
    assert visible == {"README.md", "core", "docs", "noxfile.py", "plugins", "pyproject.toml", "tests"}
