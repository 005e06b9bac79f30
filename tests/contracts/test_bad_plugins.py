"""Bad plugins, each installed as a wheel: one clear line in `edgekit plugins` and `doctor`, and the others work on."""

import base64
import hashlib
import json
import sys
import zipfile
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # tests are no package; this is a helper beside them
from fresh_environment import ROOT, Environment, build_wheel
from plugin_faults import GOOD, NATIVE, files

FORMAT = """
import edgekit
edgekit_api = (1, 0)

@edgekit.hookimpl
def edgekit_register_formats(register):
    register("twin", "{module}.native:Int4", suffixes=(".twin",))
"""
WHOLE_FORMAT = NATIVE + "    name = 'twin'\n    matches = open = layout = writer = None\n"
#: name -> light module, native module, status, and what the line says.
BAD = {
    "raises": (GOOD + "raise OSError('no GPU')", NATIVE, "failed", "OSError: no GPU (__init__.py:8)"),
    "exits": (GOOD + "raise SystemExit(3)", NATIVE, "failed", "SystemExit: 3"),
    "hangs": (
        GOOD + "import threading; threading.Event().wait()", NATIVE, "failed",
        "importing it did not end within 2 s; EDGEKIT_NO_PLUGINS=hangs switches it off",
    ),
    "spins": (GOOD + "while True: pass", NATIVE, "failed", "importing it did not end within 2 s"),
    "prints": (GOOD + "print('hello')", NATIVE, "loaded", "it writes to stdout when it is imported"),
    "newer": (
        GOOD.replace("(1, 0)", "(1, 9)"), NATIVE, "refused",
        "it is written for plugin contract 1.9 and this edgekit has 1.0: upgrade edgekit.",
    ),
    "twin-a": (FORMAT, WHOLE_FORMAT, "loaded", "format 'twin' is claimed by edgekit-twin-a and edgekit-twin-b"),
    "twin-b": (FORMAT, WHOLE_FORMAT, "loaded", "format 'twin' is claimed by edgekit-twin-a and edgekit-twin-b"),
    "twice": (
        GOOD + "    register('affine:int4-sym-g32', '{module}.native:Int4', claim='exact')\n", NATIVE, "loaded",
        "quantizer 'affine:int4-sym-g32' is registered twice by edgekit-twice",
    ),
    "liar": (
        GOOD, NATIVE.replace("return ", "parts = ") + "        return {**parts, 'scale': parts['scale'] * 2}\n", "loaded",
        "quantizer 'affine:int4-sym-g32' of edgekit-liar claims exact, and its bytes are not the reference's; "
        "`edgekit verify liar --failed` shows where",
    ),
    "lacks": (
        GOOD, NATIVE.replace("def encode", "def quantize"), "loaded",
        "quantizer 'affine:int4-sym-g32' of edgekit-lacks lacks encode",
    ),
    "crashes": (GOOD, "import os; os.abort()", "loaded", "loading its registrations ends the process (exit -6"),
    "missing": (GOOD, "", "loaded", "AttributeError: module 'edgekit_missing.native' has no attribute 'Int4'"),
}  # fmt: skip


def wheel(folder, name, light, native):
    """A wheel as a build backend would make it; gives its path."""
    module = f"edgekit_{name.replace('-', '_')}"
    info = f"{module}-1.0.dist-info"
    content = files(name, light, native) | {
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{path},sha256={digest(text)},{len(text.encode())}\n" for path, text in content.items())
    path = folder / f"{module}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name_, text in {**content, f"{info}/RECORD": f"{record}{info}/RECORD,,\n"}.items():
            archive.writestr(name_, text)
    return path


def digest(text):
    return base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bad")
    made = Environment.create(folder / "venv", "edgekit-core[testing,text]")
    wheels = [wheel(folder, name, light, native) for name, (light, native, _, _) in BAD.items()]
    made.install(build_wheel(ROOT / "core", folder), *wheels, wheel(folder, "good", GOOD, NATIVE))
    return made


@pytest.fixture(scope="module")
def plugins(environment):
    """What people see: a line for each plugin, by its name."""
    return {line.split()[0]: line for line in edgekit(environment, "plugins").splitlines()[2:]}


def edgekit(environment, *arguments, code=0):
    """The command line, with less patience than usual."""
    script = f"import os, sys; os.environ['EDGEKIT_PLUGIN_SECONDS'] = '2'; sys.argv[1:] = {list(arguments)!r}; "
    return environment.run("-c", script + "import edgekit.cli; edgekit.cli.main()", code=code)


@pytest.mark.parametrize("name", BAD)
def test_it_is_one_clear_line_in_the_list_of_plugins(plugins, name):
    *_, status, told = BAD[name]
    assert f"edgekit-{name} 1.0" in plugins[name]
    assert status in plugins[name]
    assert told in plugins[name]


def test_the_others_are_as_they_were(environment, plugins):
    assert plugins["good"].split() == ["good", "edgekit-good", "1.0", "loaded", "provides", "1", "quantizers"]
    code = (
        "import os; os.environ['EDGEKIT_PLUGIN_SECONDS'] = '2'; import edgekit as ek, numpy as np; "
        "print(ek.encode(np.ones((1, 32), np.float32), 'affine:int4-sym-g32', backend='good').backend)"
    )
    assert environment.run("-c", code).strip() == "good"


def test_the_doctor_has_the_same_lines(environment):
    said = edgekit(environment, "doctor", "--json", code=4)
    problems = json.loads(said[: said.rindex("}") + 1])["problems"]
    for name, (_, _, _, told) in BAD.items():
        assert sum(p.startswith(f"edgekit-{name} 1.0: ") and told in p for p in problems) == 1, (name, problems)
    assert not [problem for problem in problems if "edgekit-good" in problem]
