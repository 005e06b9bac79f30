"""Installing edgekit, from a checkout and from wheels, beside a stranger's distribution of the module's name."""

import importlib.util
import json
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # tests are no package; this is a helper beside them
from fresh_environment import ROOT, Environment, build_wheel, run

NEEDED = ("edgekit-core[chat,text,progress]", "edgekit-gguf", "edgekit-numba", "edgekit-serve", "hatchling")
PYPROJECTS = [*ROOT.glob("core/pyproject.toml"), *ROOT.glob("plugins/*/pyproject.toml")]
DISTRIBUTIONS = {tomllib.loads(path.read_text("utf-8"))["project"]["name"] for path in PYPROJECTS}
_spec = importlib.util.spec_from_file_location("checkout", ROOT / ".ci" / "checkout.py")
checkout = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(checkout)


@pytest.fixture(scope="module")
def wheels(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheels")
    return [build_wheel(ROOT / part, folder) for part in ("core", "plugins/gguf", "plugins/numba", "plugins/serve")]


@pytest.fixture
def fresh(tmp_path):
    return Environment.create(tmp_path / "venv", *NEEDED)


def doctor(environment, code=0):
    return json.loads(environment.run("-m", "edgekit", "doctor", "--json", code=code))


def works(environment):
    """It opens, encodes with a plugin and writes with another."""
    environment.run(
        "-c",
        "import edgekit as ek; from edgekit import sample;"
        "print(ek.quantize(ek.open(sample.path()), 'Q4_K_M', to='sample.gguf').format)",
    )
    assert (environment.path / "sample.gguf").stat().st_size > 1_000_000


def test_from_the_built_wheels(fresh, wheels):
    fresh.install(*wheels)
    assert doctor(fresh)["problems"] == []
    works(fresh)


def pip(environment, *arguments, code=0):
    """pip without a network, building with what the environment has."""
    offline = ("--no-index", "--no-build-isolation", "--no-compile", "--disable-pip-version-check")
    return run(
        sys.executable,
        "-m",
        "pip",
        "--python",
        environment.python,
        "install",
        *offline,
        *arguments,
        cwd=ROOT,
        code=code,
    )


@pytest.mark.parametrize("page", ["README.md", "docs/tutorial.md"])
def test_the_line_for_a_checkout_is_the_one_that_is_tested(page):
    assert checkout.INSTALL in (ROOT / page).read_text("utf-8")


def test_from_a_checkout(fresh):
    words = re.findall(r"'[^']*'|\S+", checkout.INSTALL)
    assert words[:4] == ["python", "-m", "pip", "install"]
    pip(fresh, *(word.strip("'") for word in words[4:]))
    report = doctor(fresh)
    assert report["problems"] == []
    assert set(report["plugins"]) == {"core", "gguf", "numba", "serve"}
    works(fresh)
    assert run("git", "status", "--porcelain", "--ignored", "core", "plugins", cwd=ROOT).count("egg-info") == 0


@pytest.mark.parametrize("arguments", [(".",), ("-e", "."), (".[all]",)])
def test_the_root_of_a_checkout_says_what_to_install(fresh, arguments):
    said = pip(fresh, *arguments, code=1)
    assert "The root of this checkout is no distribution: its folders are. Install them with" in said
    assert checkout.INSTALL in said
    assert "Traceback" not in said


STRANGER = {
    "edgekit/__init__.py": "VERSION = '0.1.1'\n",
    "edgekit/device.py": "",
    "edgekit-0.1.1.dist-info/METADATA": "Metadata-Version: 2.1\nName: edgekit\nVersion: 0.1.1\n",
    "edgekit-0.1.1.dist-info/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
}


@pytest.fixture
def stranger(tmp_path):
    """A wheel as the index has one: another project's `edgekit`."""
    path = tmp_path / "edgekit-0.1.1-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in STRANGER.items():
            archive.writestr(name, text)
        record = "edgekit-0.1.1.dist-info/RECORD"
        archive.writestr(record, "".join(f"{name},,\n" for name in (*STRANGER, record)))
    return path


@pytest.mark.parametrize("first", ["stranger", "ours"])
def test_the_doctor_names_a_stranger_who_owns_the_module(fresh, wheels, stranger, first):
    for wheel in ([stranger], wheels) if first == "stranger" else (wheels, [stranger]):
        fresh.install(*wheel)
    problems = doctor(fresh, code=4)["problems"]
    assert problems[0] == (
        "edgekit 0.1.1: another project's distribution that installs the module 'edgekit' too; each overwrites the "
        "other's files. pip uninstall edgekit, then pip install --force-reinstall --no-deps edgekit-core "
        "(or ./core of a checkout)"
    )
    assert len(problems) == 1 or first == "ours"  # plugins miss what the stranger has overwritten
    fresh.uninstall("edgekit")
    pip(fresh, "--force-reinstall", "--no-deps", "./core")
    assert doctor(fresh)["problems"] == []
    works(fresh)


# What pages and messages say.


def texts():
    """Every page and every module that people read or run, and what their names are."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split(
        "\n"
    )
    for name in listed:
        if name.endswith((".md", ".py", ".toml", ".in")) and not name.startswith("tests/"):
            yield name, (ROOT / name).read_text("utf-8")


def test_install_lines_name_only_distributions_of_this_repository():
    """What they name of ours exists, and the bare name, which is another project's, is nowhere to be installed."""
    installing = re.compile(r"(?:pip install|; install)[^\n\"`&,;]*?'?\b(edgekit(?:-[a-z]+)?)\b(?![-_/.][a-z{])")
    found = {name: [*installing.findall(text)] for name, text in texts()}
    named = {one for names in found.values() for one in names}
    assert named - {"edgekit-mine"} <= DISTRIBUTIONS  # that is the skeleton of the guide
    assert len(named) >= 5
    assert not [name for name, names in found.items() if "edgekit" in names]


def test_extras_are_the_core_s():
    extras = {"chat", "text", "progress", "testing", "structured", "all"}
    asked = [(name, one) for name, text in texts() for one in re.findall(r"edgekit(?:-core)?\[([a-z,]+)\]", text)]
    assert asked
    assert not [(name, one) for name, one in asked if not set(one.split(",")) <= extras]
    assert not [name for name, text in texts() if re.search(r"\bedgekit\[", text)]


def test_messages_take_names_from_a_list_of_what_exists():
    from edgekit.plugin._registry import KNOWN_DISTRIBUTIONS

    assert set(KNOWN_DISTRIBUTIONS.values()) <= DISTRIBUTIONS
    invented = re.compile(r"install [^\n]*edgekit-\{")
    assert not [name for name, text in texts() if name.endswith(".py") and invented.search(text)]
