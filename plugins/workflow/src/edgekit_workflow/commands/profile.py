"""`edgekit profile`, and `edgekit doctor --profile`: what a machine has."""

from __future__ import annotations

import attrs
import click

from edgekit.cli.output import json_option, print_json, size
from edgekit_workflow.hardware import Machine, machine, profiles


@click.command("profile", short_help="Describe a machine.")
@click.argument("name", required=False)
@click.option("--list", "listed", is_flag=True, help="List the profiles.")
@json_option
def command(name: str | None, listed: bool, as_json: bool) -> None:
    """Describe this machine, its memory's bandwidth measured, or the profile of that NAME."""
    if listed:
        print_json(profiles()) if as_json else click.echo("\n".join(profiles()))
        return
    found = machine(name)
    if as_json:
        print_json(attrs.asdict(found))
    else:
        show(found)


def show(found: Machine) -> None:
    """Print a machine, a line for each thing that it has."""
    lines = {
        "processor": f"{found.processor} ({found.vendor}, {found.architecture})",
        "instructions": ", ".join(found.instructions) or "none of those that kernels are written for",
        "cores": f"{found.cores}, {found.threads} threads",
        "caches": ", ".join(f"{level} {size(nbytes)}" for level, nbytes in found.caches.items()),
        "memory": size(found.memory) + (", shared with the accelerators" if found.unified else ""),
        "bandwidth": f"{size(found.bandwidth)}/s" if found.bandwidth else "",
        "disk": f"{size(found.disk)} free" if found.disk is not None else "",
        "system": found.system,
        "source": found.source,
    }
    for device in found.devices:
        own = f", {size(device.memory)}" if device.memory else ""
        lines[f"{device.kind.upper()} {device.name}"] = f"{device.vendor}{own}"
    for label, text in lines.items():
        if text:
            click.echo(f"{label:<14} {text}")


__all__ = ["command", "show"]
