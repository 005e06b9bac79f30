"""The guide quotes the example plugin's own files: every quotation leads somewhere, and no file is left out."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "plugins" / "example"
PAGE = ROOT / "docs" / "how-to" / "write-a-plugin.md"
QUOTATION = re.compile(r"^```\{literalinclude\} (?P<path>\S+)\n(?P<options>(?::.*\n)*)```$", re.MULTILINE)
QUOTATIONS = [(match["path"], match["options"]) for match in QUOTATION.finditer(PAGE.read_text("utf-8"))]


def option(options, name):
    found = re.search(rf"^:{name}: (.*)$", options, re.MULTILINE)
    return found and found[1].strip('"')


@pytest.mark.parametrize(("path", "options"), QUOTATIONS)
def test_a_quotation_leads_somewhere(path, options):
    file = (PAGE.parent / path).resolve()
    assert file.is_relative_to(EXAMPLE)
    text = file.read_text("utf-8")
    start, name = option(options, "start-at"), option(options, "pyobject")
    if start:
        assert text.count(start) == 1, "it would begin elsewhere one day"
    if name:
        named = [node.name for node in ast.parse(text).body if isinstance(node, ast.ClassDef | ast.FunctionDef)]
        assert named.count(name) == 1


def test_every_file_of_the_example_is_quoted():
    files = {*(EXAMPLE / "src").rglob("*.py"), EXAMPLE / "pyproject.toml", EXAMPLE / "tests" / "test_conformance.py"}
    assert len(files) >= 8
    assert {(PAGE.parent / path).resolve() for path, _ in QUOTATIONS} == files


def test_nothing_of_the_example_is_copied_by_hand():
    """A block of Python on the page is its own; what the example says is included, so that it cannot grow old."""
    own = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    assert own
    code = "\n".join(file.read_text("utf-8") for file in EXAMPLE.rglob("*.py"))
    copied = [block for block in own if any(f"class {name}" in block for name in re.findall(r"class (\w+)", code))]
    assert not copied
