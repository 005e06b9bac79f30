"""`edgekit new-plugin`: a whole distribution to start from, whose tests pass at once."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from string import Template

import click

from edgekit.cli._output import json_option, print_json
from edgekit.errors import UsageError
from edgekit.files.atomic import writing
from edgekit.plugin.registry import installed

_NAME = re.compile(r"[a-z][a-z0-9]{0,31}(-[a-z0-9]{1,31}){0,3}")
#: Names that mean something else: the core's plugin, the reference as a backend, the extra that brings everything.
_TAKEN = ("core", "reference", "all", "edgekit", "testing", "text")
_SUFFIX = ".in"


@click.command("new-plugin")
@click.argument("name")
@click.option("--dir", "directory", type=click.Path(path_type=Path), help="Where. Default: edgekit-NAME, here.")
@json_option
def command(name: str, directory: Path | None, as_json: bool) -> None:
    """Write the skeleton of a plugin: a distribution with one exact quantizer, and tests that pass.

    \b
    edgekit new-plugin mine
    pip install -e './edgekit-mine[testing]' && pytest edgekit-mine
    """  # noqa: D301  - click's mark, a real backspace
    target = directory or Path(f"edgekit-{name}")
    written = generate(name, target)
    if as_json:
        print_json({"name": name, "directory": str(target), "files": written})
        return
    for file in written:
        click.echo(target / file)
    click.echo(f"\nNext: pip install -e '{target}[testing]' && pytest {target}, then edgekit verify {name}", err=True)


def generate(name: str, target: Path) -> list[str]:
    """Write the skeleton of a plugin into a directory that appears whole, or not at all; gives its files.

    Raises:
        UsageError: a name that no plugin can have, or a target that holds something.
        ResourceError: the target cannot be written.
    """
    check_name(name)
    target = Path(os.path.abspath(target))
    partial = target.with_name(f".{target.name}.{os.getpid()}")
    with writing(target):
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            raise UsageError(f"{target} is there already, and nothing is overwritten; choose another with --dir")
        partial.mkdir()
        try:
            written = sorted(_write(partial, name))
            os.replace(partial, target)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return written


def check_name(name: str) -> None:
    """Refuse names that are no plugin's.

    Raises:
        UsageError: says what is allowed.
    """
    if name.startswith("edgekit-"):
        raise UsageError(f"plugin name {name!r}: leave out the prefix, {name.removeprefix('edgekit-')!r} is enough")
    if not _NAME.fullmatch(name):
        raise UsageError(f"plugin name {name!r}: take small letters, digits and single hyphens, a letter first")
    if name in _TAKEN or any(name == plugin.name for plugin in installed()):
        raise UsageError(f"plugin name {name!r} is taken; `edgekit plugins` lists what is installed")


def _write(folder: Path, name: str) -> Iterator[str]:
    words = {"name": name, "distribution": f"edgekit-{name}", "module": f"edgekit_{name.replace('-', '_')}"}
    for path, template in _templates(files("edgekit.cli") / "_templates"):
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
