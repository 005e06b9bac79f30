"""Every Python block of the README and the docs runs, page by page, in order, in one namespace and directory.

A block that cannot run says why: ```` ```python no-run: reason ````. Shell blocks (```` ```console ````) with
lines that begin with ``$ edgekit`` run as well and have to succeed. A block ```` ```text output ```` holds what the
Python block before it prints: the same words, and the same numbers but for the last digits.

python docs/test_blocks.py tutorial.md     writes what is printed into those blocks of a page
"""

import contextlib
import io
import os
import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
GENERATED = {"cli.md", "precisions.md", "hooks.md"}
PAGES = [ROOT / "README.md", *sorted(p for p in (ROOT / "docs").rglob("*.md") if "_build" not in p.parts)]
PAGES += sorted(ROOT.glob("plugins/*/README.md"))
BLOCK = re.compile(r"^```(\w+)([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?")
#: Of a number that is printed: machines sum in other orders, which moves the last digits of what is measured.
CLOSE = 0.02


def blocks(page: Path):
    for match in BLOCK.finditer(page.read_text("utf-8")):
        language, info, body = match.groups()
        if "no-run" in info:
            assert re.search(r"no-run: \w+", info), f"{page.name}: a block that does not run says why"
        elif language == "python" or (language == "console" and "$ edgekit" in body):
            yield language, match
        elif language == "text" and info.strip() == "output":
            yield "output", match


@pytest.mark.parametrize("page", [p for p in PAGES if p.name not in GENERATED], ids=lambda p: str(p.relative_to(ROOT)))
def test_the_blocks_of_a_page_run(page, tmp_path, monkeypatch):
    if not list(blocks(page)):
        pytest.skip("no code on this page")
    monkeypatch.chdir(tmp_path)
    for match, printed in outputs(page):
        same(match[3], printed, page)


def outputs(page: Path, shell: bool = True):
    """Run a page, its shell blocks too or not; for each block of output the match and what was printed before it."""
    namespace, printed = {"__name__": "__main__"}, None
    for language, match in blocks(page):
        body = match[3]
        if language == "output":
            assert printed is not None, f"{page.name}: output stands behind the Python block that prints it"
            yield match, printed
        elif language == "python":
            with contextlib.redirect_stdout(io.StringIO()) as out:
                exec(compile(body, str(page), "exec"), namespace)
            printed = out.getvalue()
        elif shell:
            for line in re.findall(r"^\$ (edgekit .*)$", body, re.MULTILINE):
                run(line, page)


def same(shown: str, printed: str, page: Path) -> None:
    told = f"{page.name} shows\n{shown}\nand what is printed is\n{printed}\npython docs/test_blocks.py {page.name}"
    assert _words(shown) == _words(printed), told
    pairs = zip(_numbers(shown), _numbers(printed), strict=True)
    assert all(a == pytest.approx(b, rel=CLOSE, abs=1e-3) for a, b in pairs), told


def _words(text: str) -> list[str]:
    return NUMBER.sub("#", text).split()


def _numbers(text: str) -> list[float]:
    return [float(number.replace(",", "")) for number in NUMBER.findall(text)]


def run(line: str, page: Path) -> None:
    done = subprocess.run([sys.executable, "-m", *shlex.split(line)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{page.name}: {line}\n{done.stdout}{done.stderr}"


def write(page: Path) -> None:
    """Put what is printed into a page's blocks of output."""
    text = page.read_text("utf-8")
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        for match, printed in reversed(list(outputs(page, shell=False))):
            start, end = match.span(3)
            text = text[:start] + printed + text[end:]
    page.write_text(text, "utf-8")


if __name__ == "__main__":
    for name in sys.argv[1:]:
        write(ROOT / "docs" / name)
