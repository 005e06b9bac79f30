"""The pages on the modules that plugins import, a page for each room of the core."""

from __future__ import annotations

import ast
import importlib
import inspect
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
#: What users import beside what plugins do, and what the authors of model families import.
OF_USERS = (
    *("edgekit.encoding", "edgekit.evaluation"),
    *("edgekit.architectures.decoder", "edgekit.architectures.links"),
    *("edgekit.architectures.mixers", "edgekit.architectures.mixture"),
)
#: Modules with a page of their own.
ELSEWHERE = ("edgekit.errors", "edgekit.files.atomic", "edgekit.files.foreign", "edgekit.testing")


def documented() -> list[str]:
    """The core's modules that the plugins of this repository import, and those of users, by name."""
    found = {module for file in ROOT.glob("plugins/*/src/**/*.py") for module in _imported(file)}
    return sorted({*found, *OF_USERS} - {"edgekit"})


def _imported(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "edgekit":
            for alias in node.names:
                yield f"{node.module}.{alias.name}" if _is_module(node.module, alias.name) else str(node.module)


def _is_module(package: str | None, name: str) -> bool:
    module = importlib.import_module(str(package))
    return hasattr(module, "__path__") and find_spec(f"{package}.{name}") is not None


def pages() -> dict[str, str]:
    """The index, and a page for each room."""
    rooms: dict[str, list[str]] = {}
    for module in documented():
        if module not in ELSEWHERE:
            rooms.setdefault(module.split(".")[1], []).append(module)
    listed = "\n".join(f"modules/{room}" for room in rooms)
    rows = "\n".join(
        f"| [`{module}`]({_page(module)}) | {_first_line(module)} |" for module in sorted({*documented(), *ELSEWHERE})
    )
    index = (
        "# Public modules\n\nWhat plugins and users import. What these modules declare in `__all__` stays, or goes "
        "with a note in the changelog; all else may change in any release.\n\n"
        f"| module | what it holds |\n|---|---|\n{rows}\n\n```{{toctree}}\n:maxdepth: 1\n:hidden:\n\n{listed}\n```\n"
    )
    return {"reference/modules.md": index} | {
        f"reference/modules/{room}.md": _room(room, modules) for room, modules in rooms.items()
    }


def _page(module: str) -> str:
    own = {"edgekit.errors": "errors.md", "edgekit.testing": "contracts/testing.md"}
    if module in ELSEWHERE:
        return own.get(module, f"contracts/{module.rpartition('.')[2]}.md")
    return f"modules/{module.split('.')[1]}.md"


def _first_line(module: str) -> str:
    """The first sentence of a module's docstring, as Markdown."""
    text = (inspect.getdoc(importlib.import_module(module)) or "").partition("\n\n")[0]
    return " ".join(text.split()).replace("``", "`").replace("|", "\\|")


def _room(room: str, modules: list[str]) -> str:
    # Not indexed: what the pages on contracts and the Python API show, they index.
    sections = "\n\n".join(
        f"## {module}\n\n```{{eval-rst}}\n.. automodule:: {module}\n   :members:\n   :no-index:\n```"
        for module in modules
    )
    return f"# edgekit.{room}\n\n{sections}\n"
