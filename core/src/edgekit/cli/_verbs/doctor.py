"""`edgekit doctor`: check the installation and list the devices."""

from __future__ import annotations

import importlib.util
import os
import platform
from importlib import metadata
from typing import Any

import click

from edgekit.cli._examined import Examined, examine
from edgekit.cli._foreign import foreign_owners
from edgekit.cli.output import json_option, print_json
from edgekit.plugin._registry import BUILT_IN, installed, manager

_OPTIONAL = {
    "tokenizers": "text",
    "jinja2": "chat",
    "rich": "progress",
    "hypothesis": "testing",
    "ml_dtypes": "testing",
}
_DEPENDENCIES = ("attrs", "click", "numpy", "pluggy")


@click.command("doctor")
@click.option("--profile", is_flag=True, help="Describe this machine instead; the command `profile` of a plugin.")
@json_option
@click.pass_context
def command(ctx: click.Context, profile: bool, as_json: bool) -> None:
    """Check the installation: versions, plugins and everything they register, optional packages, devices.

    Exits with 4 if a plugin is broken, or if another project's distribution installs the module `edgekit` too.
    """
    if profile:
        described: click.Command = manager().load("commands", "profile")
        ctx.invoke(described, as_json=as_json)
        return
    report = examined()
    if as_json:
        print_json(report)
    else:
        _show(report)
    ctx.exit(4 if report["problems"] else 0)


def examined() -> dict[str, Any]:
    """Return everything that `edgekit doctor` shows, as plain data."""
    looked_at = examine(installed())
    problems = list(foreign_owners())
    for plugin in installed():
        messages = [plugin.error] if plugin.error and plugin.status != "disabled" else []
        messages += looked_at.get(plugin.name, Examined()).problems
        problems += [f"{plugin.distribution} {plugin.version}: {problem}" for problem in messages]
    return {
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "versions": {name: _version(name) for name in (BUILT_IN, *_DEPENDENCIES)},
        "optional": {name: importlib.util.find_spec(name) is not None for name in _OPTIONAL},
        "plugins": {p.name: f"{p.distribution} {p.version}, {p.status}" for p in installed()},
        "devices": {name: lines for result in looked_at.values() for name, lines in result.devices.items()},
        "problems": problems,
    }


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:  # a source tree on the path
        return "not installed"


def _show(report: dict[str, Any]) -> None:
    click.echo(f"Python {report['python']} on {report['machine']}")
    click.echo("  ".join(f"{name} {version}" for name, version in report["versions"].items()))
    for name, importable in report["optional"].items():
        cure = "" if importable else f"  (pip install 'edgekit-core[{_OPTIONAL[name]}]')"
        click.echo(f"{'✓' if importable else '–'} {name}{cure}")
    for name, line in report["plugins"].items():
        click.echo(f"plugin {name}: {line}")
    for name, lines in report["devices"].items():
        click.echo(f"devices of {name}: {'; '.join(lines)}")
    for problem in report["problems"]:
        click.secho(f"✗ {problem}", fg="red")
    click.echo("" if report["problems"] else "All is well.")


__all__ = ["command", "examined"]
