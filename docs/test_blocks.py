"""Every Python block of the README and the docs runs, page by page, in order, in one namespace and directory.

A block that cannot run says why: ```` ```python no-run: reason ````. Shell blocks (```` ```console ````) with
lines that begin with ``$ edgekit`` run as well and have to succeed.
"""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
GENERATED = {"cli.md", "precisions.md", "hooks.md"}
PAGES = [ROOT / "README.md", *sorted(p for p in (ROOT / "docs").rglob("*.md") if "_build" not in p.parts)]
PAGES += sorted(ROOT.glob("plugins/*/README.md"))
BLOCK = re.compile(r"^```(\w+)([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page: Path):
    for language, info, body in BLOCK.findall(page.read_text("utf-8")):
        if "no-run" in info:
            assert re.search(r"no-run: \w+", info), f"{page.name}: a block that does not run says why"
        elif language == "python" or (language == "console" and "$ edgekit" in body):
            yield language, body


@pytest.mark.parametrize("page", [p for p in PAGES if p.name not in GENERATED], ids=lambda p: str(p.relative_to(ROOT)))
def test_the_blocks_of_a_page_run(page, tmp_path, monkeypatch):
    found = list(blocks(page))
    if not found:
        pytest.skip("no code on this page")
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "__main__"}
    for language, body in found:
        if language == "python":
            exec(compile(body, str(page), "exec"), namespace)
        else:
            for line in re.findall(r"^\$ (edgekit .*)$", body, re.MULTILINE):
                run(line, page)


def run(line: str, page: Path) -> None:
    done = subprocess.run([sys.executable, "-m", *shlex.split(line)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{page.name}: {line}\n{done.stdout}{done.stderr}"
