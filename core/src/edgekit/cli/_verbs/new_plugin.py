"""`edgekit new-plugin`: write the skeleton of a plugin, a distribution whose tests pass.

The templates lie in one folder for each part and one for files that all plugins have. The parts' modules are the
example plugin's, which `docs/generate.py` copies.
"""

from __future__ import annotations

import difflib
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from string import Template

import click

from edgekit.cli.output import json_option, print_json
from edgekit.errors import UsageError
from edgekit.files.atomic import writing
from edgekit.plugin._registry import installed, manager

_NAME = re.compile(r"[a-z][a-z0-9]{0,31}(-[a-z0-9]{1,31}){0,3}")
#: Reserved names: the core's plugin, the reference backend, and the extra with all plugins.
_TAKEN = ("core", "reference", "all", "edgekit", "testing", "text")
_SUFFIX = ".in"
_ROOT = files("edgekit.cli") / "_templates"
#: Template files of a part: its hook, its tests with their imports, and lines of the README.
_FRAGMENTS = ("hook", "imports", "test", "does", "next")
#: The parts that a plugin may have, in the order of its files.
PARTS = ("precision", "quantizer", "format", "runtime", "command")


@click.command("new-plugin")
@click.argument("name")
@click.option("--with", "parts", default="quantizer", show_default=True, metavar="PART,...", help=", ".join(PARTS))
@click.option(
    "--dir",
    "directory",
    type=click.Path(path_type=Path),
    help="Directory to write; default: edgekit-NAME in the current directory.",
)
@json_option
def command(name: str, parts: str, directory: Path | None, as_json: bool) -> None:
    """Write the skeleton of a plugin: a distribution with the parts that you name, and tests that pass.

    \b
    edgekit new-plugin mine --with precision,format
    pip install -e './edgekit-mine[testing]' && pytest edgekit-mine
    """  # noqa: D301  - click's mark, a real backspace
    target = directory or Path(f"edgekit-{name}")
    written = generate(name, target, parts.split(","))
    if as_json:
        print_json({"name": name, "directory": str(target), "files": written})
        return
    for file in written:
        click.echo(target / file)
    click.echo(f"\nNext: pip install -e '{target}[testing]' && pytest {target}, then edgekit verify {name}", err=True)


def generate(name: str, target: Path, parts: Sequence[str] = ("quantizer",)) -> list[str]:
    """Write the skeleton of a plugin into a new directory, whole or not at all; return its files.

    Args:
        name: of the plugin.
        target: a directory that does not exist or is empty.
        parts: of the plugin, from `PARTS`.

    Raises:
        UsageError: an invalid name, an unknown part, or a target that is not empty.
        ResourceError: the target cannot be written.
    """
    check_name(name)
    chosen = [part for part in PARTS if part in [each.strip() for each in parts]]
    for part in (each.strip() for each in parts):
        if part not in PARTS:
            near = difflib.get_close_matches(part, PARTS, n=1)
            hint = f", did you mean {near[0]!r}?" if near else ""
            raise UsageError(
                f"a plugin has no part {part!r}{hint}; --with takes {', '.join(PARTS)}, separated by commas"
            )
    target = Path(os.path.abspath(target))
    partial = target.with_name(f".{target.name}.{os.getpid()}")
    with writing(target):
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            raise UsageError(f"{target} exists, and nothing is overwritten; choose another with --dir")
        partial.mkdir()
        try:
            written = sorted(_write(partial, _words(name, chosen), chosen))
            os.replace(partial, target)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return written


def check_name(name: str) -> None:
    """Raise if a plugin cannot have that name.

    Raises:
        UsageError: states what is allowed.
    """
    if name.startswith("edgekit-"):
        raise UsageError(f"plugin name {name!r}: leave out the prefix, {name.removeprefix('edgekit-')!r} is enough")
    if not _NAME.fullmatch(name):
        raise UsageError(f"plugin name {name!r}: use lower-case letters, digits and single hyphens, a letter first")
    commands = {registration.name for registration in manager().all("commands")}
    if name in _TAKEN or name in commands or any(name == plugin.name for plugin in installed()):
        raise UsageError(f"plugin name {name!r} is taken; `edgekit plugins` lists what is installed")


def _words(name: str, parts: Sequence[str]) -> dict[str, str]:
    """Return the values of the templates' placeholders."""
    word = name.replace("-", "_")
    words = {
        "name": name,
        "word": word,
        "Name": "".join(piece.capitalize() for piece in name.split("-")),
        "distribution": f"edgekit-{name}",
        "module": f"edgekit_{word}",
        "magic": f"{name.replace('-', '').upper()}XXX"[:3] + "1",
    }

    def all_of(file: str) -> list[str]:
        return [Template((_ROOT / part / f"{file}{_SUFFIX}").read_text("utf-8")).substitute(words) for part in parts]

    does = [line.strip() for line in all_of("does")]
    return words | {
        "hooks": "".join(all_of("hook")).rstrip("\n"),
        "imports": "".join(sorted("".join(all_of("imports")).splitlines(keepends=True))),
        "tests": "".join(all_of("test")).rstrip("\n"),
        "does": ", ".join(does).replace("`", ""),
        "list": "\n".join(f"- {line}" for line in does),
        "next": "".join(f"- {line}" for line in all_of("next")).rstrip("\n"),
    }


def _write(folder: Path, words: Mapping[str, str], parts: Sequence[str]) -> Iterator[str]:
    for path, template in (listed for part in ("base", *parts) for listed in _templates(_ROOT / part)):
        if "/" not in path and path.removesuffix(_SUFFIX) in _FRAGMENTS:
            continue
        file = folder / path.removesuffix(_SUFFIX).replace("src/module/", f"src/{words['module']}/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(Template(template.read_text("utf-8")).substitute(words), "utf-8", newline="\n")
        yield file.relative_to(folder).as_posix()


def _templates(folder: Traversable, before: str = "") -> Iterator[tuple[str, Traversable]]:
    for entry in folder.iterdir():
        if entry.is_dir():
            yield from _templates(entry, f"{before}{entry.name}/")
        elif entry.name.endswith(_SUFFIX):
            yield before + entry.name, entry


__all__ = ["PARTS", "check_name", "command", "generate"]
