"""How many files an extension of the core touches: each kind is added to a copy of the core, and used.

The same lists stand in docs/how-to/extend-the-core.md; `test_the_page_lists_the_files` compares them.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import edgekit

CORE = Path(edgekit.__file__).parent
PAGE = Path(__file__).parents[2] / "docs/how-to/extend-the-core.md"

VERB = '''"""`edgekit hello`: say hello."""

import click


@click.command("hello")
def command() -> None:
    """Say hello."""
    click.echo("hello")
'''
RUNTIME = '''"""A runtime that never says anything."""

from edgekit.runtime.numpy import NumpyRuntime


class Silent(NumpyRuntime):
    name = "silent"

    def tokens(self, prompt, *, max_tokens=None, sampling=None):
        return iter(())
'''


def copied(source: str, target: str, *changes: tuple[str, str]):
    """An edit: a new file, made of an existing one."""
    return lambda core: (core / target).write_text(replaced((core / source).read_text(), *changes))


def written(target: str, text: str):
    """An edit: a new file."""
    return lambda core: (core / target).write_text(text)


def changed(target: str, *changes: tuple[str, str]):
    """An edit of a file that is there."""
    return lambda core: (core / target).write_text(replaced((core / target).read_text(), *changes))


def replaced(text: str, *changes: tuple[str, str]) -> str:
    for old, new in changes:
        assert old in text, f"{old!r} is not there any more"
        text = text.replace(old, new)
    return text


#: What is added -> (file -> its edit, a program that uses it, what that prints).
ADDITIONS = {
    "a ggml type": (
        {
            "precision/ggml.py": changed(
                "precision/ggml.py",
                ('    "Q2_K": GgmlType(', '    "Q8_X": GgmlType(250, 8, 32, 34, True),\n    "Q2_K": GgmlType('),
            ),
            "reference/ggml/q8_x.py": copied("reference/ggml/q8_0.py", "reference/ggml/q8_x.py"),
            "reference/ggml/__init__.py": changed(
                "reference/ggml/__init__.py",
                ("    q8_0,\n", "    q8_0,\n    q8_x,\n"), ('    "Q8_0": q8_0,\n', '    "Q8_0": q8_0,\n    "Q8_X": q8_x,\n'),
            ),
        },
        """
import numpy as np, edgekit as ek
from edgekit.encoding._catalogue import entries
from edgekit_gguf.types import TENSOR_TYPES
import edgekit_llamacpp
x = np.random.default_rng(0).standard_normal((3, 64), np.float32)
own, other = (ek.encode(x, f"ggml:{kind}", backend="reference") for kind in ("Q8_X", "Q8_0"))
assert (own.dequantize() == other.dequantize()).all()
assert "ggml:Q8_X" in [entry.name for entry in entries()]
assert "Q8_X" in edgekit_llamacpp.KINDS
print(TENSOR_TYPES[250].name, TENSOR_TYPES[250].size)
""",
        "Q8_X 34",
    ),
    "a number convention": (
        {
            "precision/_plain.py": copied("precision/_floats.py", "precision/_plain.py", ('"float"', '"plain"')),
            "precision/_registry.py": changed(
                "precision/_registry.py",
                ("_openvino, _packed, ggml\n", "_openvino, _packed, _plain, ggml\n"), ("_olive, _packed)", "_olive, _packed, _plain)"),
            ),
            "reference/plain.py": copied("reference/floats.py", "reference/plain.py"),
            "reference/__init__.py": changed(
                "reference/__init__.py",
                ('    "float": "edgekit.reference.floats",\n', '    "float": "edgekit.reference.floats",\n    "plain": "edgekit.reference.plain",\n'),
            ),
        },
        """
import numpy as np, edgekit as ek
encoded = ek.encode(np.ones((2, 3), np.float32), "plain:F16")
print(encoded.precision.name, encoded.dequantize().sum())
""",
        "plain:F16 6.0",
    ),
    "a command": (
        {
            "cli/_verbs/hello.py": written("cli/_verbs/hello.py", VERB),
            "cli/__init__.py": changed("cli/__init__.py", ("VERBS = {\n", 'VERBS = {\n    "hello": "Say hello.",\n')),
        },
        "from edgekit.cli import main; main(['hello'])",
        "hello",
    ),
    "a runtime": (
        {
            "runtime/silent.py": written("runtime/silent.py", RUNTIME),
            "plugin/_builtin.py": changed(
                "plugin/_builtin.py",
                ('    register("numpy",', '    register("silent", "edgekit.runtime.silent:Silent.open", formats=("hf",), speed=0)\n    register("numpy",'),
            ),
        },
        """
import edgekit as ek
from edgekit import sample
with ek.load(sample.path(), runtime="silent") as model:
    print(repr(model.generate("Once", max_tokens=3)))
""",
        "''",
    ),
}  # fmt: skip
#: Files of the core that each may touch.
LIMITS = {"a ggml type": 6, "a number convention": 5, "a command": 2, "a runtime": 2}


@pytest.mark.parametrize("what", ADDITIONS)
def test_an_addition_touches_few_files(what: str, tmp_path: Path) -> None:
    edits, program, printed = ADDITIONS[what]
    shutil.copytree(CORE, tmp_path / "edgekit", ignore=shutil.ignore_patterns("__pycache__"))
    for edit in edits.values():
        edit(tmp_path / "edgekit")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment, cwd=tmp_path, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == printed
    assert len(edits) <= LIMITS[what]


@pytest.mark.skipif(not PAGE.exists(), reason="the docs are not beside the tests")
@pytest.mark.parametrize("what", ADDITIONS)
def test_the_page_lists_the_files(what: str) -> None:
    section = PAGE.read_text("utf-8").partition(f"## {what[0].upper()}{what[1:]}")[2].partition("\n## ")[0]
    assert section, f"no section on {what}"
    names = {"reference/ggml/q8_x.py": "reference/ggml/NAME.py", "precision/_plain.py": "precision/_NAME.py",
             "reference/plain.py": "reference/NAME.py", "cli/_verbs/hello.py": "cli/_verbs/NAME.py",
             "runtime/silent.py": "runtime/NAME.py"}  # fmt: skip
    for file in ADDITIONS[what][0]:
        assert f"`{names.get(file, file)}`" in section, f"{file} is not in the section on {what}"
